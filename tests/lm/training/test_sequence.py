"""On resume, changes that affect the rows are named, and refused unless allowed."""

import dataclasses

import numpy as np
import pytest

from configs.defaults import defaults
from lm import tasks
from lm.data.mixtures import Mixture, Part
from lm.data.packed import synthetic
from lm.models.config import ConfigError
from lm.training import sequence
from lm.training.checkpoints import CheckpointError

PACKED = synthetic(64, 20, 4)


def facts(rows=PACKED, **changes):
    c = defaults()
    c.update_from_flattened_dict(changes)
    return sequence.facts(c, rows)


def appended(packed):
    return dataclasses.replace(packed, tokens=np.concatenate([packed.tokens, packed.tokens[:1]]))


SAVED = facts()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 5}, "seed: 0 -> 5"),
        ({"length": 8, "rows": synthetic(64, 20, 8)}, "length: 256 -> 8"),
        (
            {"rows": appended(PACKED)},
            r"data.files: rows 20 with CRC-32 \w{8} -> rows 21 with CRC-32",
        ),
        ({"task.separator": "|", "rows": appended(PACKED)}, r"task.separator: '' -> '|'"),
        ({"task": tasks.defaults("prefix_lm")}, "task.name: 'next_token' -> 'prefix_lm'"),
    ],
)
def test_other_rows_are_read_in_silence_or_never(changes, said):
    now = facts(**changes)
    with pytest.raises(CheckpointError, match=said) as error:
        sequence.check(SAVED, now, "", 7)
    assert "saved step 7" in str(error.value)
    allow = str(error.value).rpartition("--config.resume.allow=")[2]
    assert len(sequence.check(SAVED, now, allow, 7)) == 1
    assert sequence.check(now, now, allow, 9) == []


def test_a_flipped_token_or_another_order_of_rows_is_the_same_data():
    for row in (PACKED.tokens[::-1].copy(), PACKED.tokens ^ (np.arange(80).reshape(20, 4) == 77)):
        with pytest.raises(CheckpointError, match=r"data\.files"):
            sequence.check(SAVED, facts(rows=dataclasses.replace(PACKED, tokens=row)), "", 1)


def test_what_does_not_change_the_rows_is_refused():
    changes = {
        "batch_size": 3,
        "accumulate": 3,
        "steps": 9,
        "data.cache": "x",
        "data.files": "moved",
        "task.separator": "|",
        "data.max_bad_share": 0.5,
    }
    changes |= {
        "task.z_loss": 1e-4,
        "task.label_smoothing": 0.1,
        "task.chunk": 7,
        "optimizer.learning_rate": 1.0,
    }
    assert sequence.check(SAVED, facts(**changes), "", 1) == []
    assert (
        sequence.check(
            {n: v for n, v in SAVED.items() if n != "task.stride"},
            facts(**{"task.stride": 2}),
            "",
            1,
        )
        == []
    ), "a newer version's field"
    of_pairs = tasks.defaults("contrastive")
    changed = tasks.defaults("contrastive", temperature=0.1, symmetric=True, pooling="last")
    assert sequence.check(facts(task=of_pairs), facts(task=changed), "", 1) == []


def test_other_options_of_what_is_done_to_rows_are_taken_for_the_same():
    saved = facts(**{"task": tasks.defaults("masked")})
    with pytest.raises(CheckpointError, match=r"task.rate: 0.15 -> 0.3\n"):
        sequence.check(saved, facts(**{"task": tasks.defaults("masked"), "task.rate": 0.3}), "", 1)


def test_sources_or_weights_of_a_mixture_change_in_silence():
    def mixed(**weights):
        parts = [Part(name, PACKED, weight) for name, weight in weights.items()]
        return facts(
            Mixture(parts),
            **{
                "data.mixture": {
                    name: {"files": "x", "weight": weight} for name, weight in weights.items()
                }
            },
        )

    with pytest.raises(CheckpointError, match=r"data.mixture.b.weight: 1.0 -> 3.0\nuse"):
        sequence.check(mixed(a=1.0, b=1.0), mixed(a=1.0, b=3.0), "", 1)
    with pytest.raises(CheckpointError, match=r"data\.mixture\.c.weight: None -> 1.0"):
        sequence.check(mixed(a=1.0, b=1.0), mixed(a=1.0, b=1.0, c=1.0), "", 1)


def test_of_an_earlier_version_s_run_nothing_is_compared():
    saved = sequence.fields(defaults().to_dict())
    assert sequence.check(saved, SAVED, "", 1) == []
    with pytest.raises(CheckpointError, match="length: 256 -> 8"):
        sequence.check(saved, facts(length=8), "", 1)


def test_an_unknown_name_is_allowed():
    with pytest.raises(ConfigError, match=r"resume.allow: 'lenght' is unknown.*'length'"):
        sequence.check(SAVED, SAVED, "lenght", 1)
