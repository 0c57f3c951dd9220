"""Labels combined with several sources and with low-rank adapters."""

import json

import jax
import numpy as np
import pytest

from lm import tasks
from lm.models.config import ConfigError
from lm.training import checkpoints, loop, setup
from lm.weights.loading import load
from lm.weights.runs import paths
from tests.lm.training import runs

LABELS = {"a.jsonl": ("x", "y"), "b.jsonl": ("y", "z")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two files of labelled texts with one common label, and a decoder of text."""
    folder = tmp_path_factory.mktemp("labels")
    for name, labels in LABELS.items():
        rows = [{"text": f"{name[0]} {i}", "label": labels[i % 2]} for i in range(8)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    loop.train(runs.config(folder, steps=2), folder / "base")
    return folder


def config(folder, **changes):
    based = {
        "init_from": str(folder / "base"),
        "tokenizer": "",
        "task": tasks.defaults("classification"),
        "steps": 3,
    }
    return runs.config(folder, **based | changes)


def test_a_mixture_numbers_a_label_by_its_source(folder, tmp_path):
    c = config(folder, **{"data.files": ""})
    c.data.mixture = {name[0]: {"files": str(folder / name), "weight": 1.0} for name in LABELS}
    assert loop.train(c, tmp_path / "run") == 0
    run = setup.prepare(c, paths.resolve(str(tmp_path / "run")))
    assert run.model.config.label_names == ("x", "y", "z")
    batches = setup.train_source(c, run, setup.training_data(c, run))
    seen = set()
    for batch in (next(batches) for _ in range(4)):
        tokens, labels = np.asarray(batch.tokens), np.asarray(batch.labels)[:, 0]
        for row, label in zip(tokens, labels, strict=True):
            text = run.tokenizer.decode(row, skip_special_tokens=True)
            seen.add((text.strip("\0 ")[0], run.model.config.label_names[int(label)]))
    assert seen == {("a", "x"), ("a", "y"), ("b", "y"), ("b", "z")}


def test_adapters_leave_a_head_of_chance_as_it_is(folder, tmp_path):
    changes = {
        "data.files": str(folder / "a.jsonl"),
        "adaptation.lora.rank": 2,
        "optimizer.learning_rate": 0.1,
    }
    with pytest.raises(
        ConfigError, match=r"leaves head/classifier frozen, and it is drawn at random"
    ):
        loop.train(config(folder, **changes), tmp_path / "refused")
    c = config(folder, **changes, **{"adaptation.lora.pattern": "(attention|mlp|head)/"})
    assert loop.train(c, tmp_path / "run") == 0
    model, found, _ = load(str(tmp_path / "run"))
    started = setup.prepare(c, paths.resolve(str(tmp_path / "new"))).params
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), found, started)
    assert (
        model.config.label_names == ("x", "y")
        and not same["head"]["classifier"]
        and same["embeddings"]["token"]
    )
    # The model already has the head, so adapters may leave it frozen.
    again = config(folder, **changes, init_from=str(tmp_path / "run"))
    assert loop.train(again, tmp_path / "again") == 0
    head = load(str(tmp_path / "again"))[1]["head"]
    assert np.array_equal(head["classifier"], found["head"]["classifier"])
    assert checkpoints.steps(tmp_path / "again") == [3]
