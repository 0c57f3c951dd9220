"""KTO: the loss in float64, records, their mismatched answers, a mesh, resuming, bad input."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from lm import tasks
from lm.batch import Batch
from lm.data.preview import preview
from lm.data.read.sources import DataError
from lm.data.records import preference as records
from lm.data.records.turns import BadRecord
from lm.models.config import ConfigError
from lm.tasks.kto import KTO
from lm.tasks.models import Beside
from lm.training import settings, setup
from lm.weights.runs import paths
from tests.lm.small_models import drawn, identical, tiny
from tests.lm.tasks.test_preference import MESH, batch_of, by_hand, mamba
from tests.lm.training import runs

ROW = {"prompt": "Is it?", "completion": "Yes.", "label": True}
LABELS = np.array([1, 0, 0, 1, 1, 0, 1])  # of the pairs of `batch_of`
TALK = [{"role": "user", "content": "Is it?"}]


def config(folder, rows=None, fields=None, **changes):
    if rows is None:
        rows = [
            {"prompt": f"Double {n}.", "completion": f"{2 * n}" if n % 2 else f"{n} more"}
            | {"label": bool(n % 2)}
            for n in range(32)
        ]
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = tasks.defaults("kto", template="tulu", **(fields or {}))
    more = {"task": own, "data.files": str(path), "length": 128, "model.n_heads": 4}
    return runs.config(folder, **{**more, "model.n_kv_heads": 4, **changes})


def labelled(batch, labels):
    """The batch with the labels of its pairs, in the order of rows."""
    desirable, left = np.zeros(batch.segments.shape, np.float32), iter(labels)
    for row, segments in enumerate(np.asarray(batch.segments)):
        for at in range(1, segments.max(), 2):
            desirable[row, segments == at] = next(left)
    return dataclasses.replace(batch, more={"desirable": desirable})


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@dataclasses.dataclass(frozen=True)
class Given(KTO):
    """The task with log-probabilities as parameters."""

    def scored(self, model, params, batch, rng=None):
        return params


def models_of(model, params):
    return {"reference": Beside(model, params)}


@pytest.mark.parametrize("sign", [1, -1])
def test_the_loss_or_its_gradient_is_not_the_formula(sign):
    """With an estimate above 0, and with one that would be below."""
    rng = np.random.default_rng(0)
    batch = labelled(batch_of(rng, rows=4), LABELS)
    mine, theirs = rng.normal(-5, 1, (2, 4, 10, 2))
    mine[..., 1] = theirs[..., 1] + sign * 0.7
    task = Given(undesirable_weight=1.5, beta=0.2)
    loss = lambda mine: task.loss(None, mine, batch, models=models_of(None, theirs)).first.sum
    found, gradient = jax.value_and_grad(loss)(mine)
    ratios = np.concatenate([(mine - theirs)[:3, :2, 0].ravel(), (mine - theirs)[3, :1, 0]])
    side, weight = np.where(LABELS, 1, -1), np.where(LABELS, 1.0, 1.5)
    value = sigmoid(0.2 * side * (ratios - max(0, sign * 0.7)))
    np.testing.assert_allclose(found, np.sum(weight * (1 - value)), rtol=1e-5)
    wanted = -0.2 * weight * side * value * (1 - value)
    got = np.concatenate([gradient[:3, :2, 0].ravel(), gradient[3, :1, 0]])
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    assert np.count_nonzero(gradient) == 7, "the estimate has no gradient"


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(f, marks=pytest.mark.slow) for f in ("t5", "mamba"))]
)
def test_the_loss_of_a_model_is_another_or_depends_on_the_parts(family):
    model = tiny(family)[0]
    params, reference = drawn(model, 0.3), drawn(model, 0.3, seed=1)
    batch = labelled(batch_of(np.random.default_rng(0), rows=4, model=model), LABELS)
    task = tasks.of({"task": tasks.defaults("kto", undesirable_weight=1.5, beta=0.2)})
    (mine, sizes), (theirs, _) = (by_hand(model, p, batch) for p in (params, reference))
    ratios = mine - theirs
    kl = max(0.0, ratios[:, 1].mean())
    gain = np.where(LABELS, 1, -1) * (ratios[:, 0] - kl)
    wanted = np.mean(np.where(LABELS, 1.0, 1.5) * (1 - sigmoid(0.2 * gain)))
    run = jax.jit(
        lambda p, r, parts: task.loss(model, p, batch, parts=parts, models=models_of(model, r)),
        static_argnums=2,
    )
    found, split = run(params, reference, 1), run(params, reference, 2)
    np.testing.assert_allclose(found.first.sum / found.first.weight, wanted, rtol=2e-5)
    np.testing.assert_allclose(split.first.sum, found.first.sum, rtol=1e-5)
    mean = {name: float(term.sum / term.weight) for name, term in found.metrics.items()}
    np.testing.assert_allclose(mean["kl"], kl, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        mean["reward_undesirable"], 0.2 * ratios[LABELS == 0, 0].mean(), rtol=1e-4
    )
    assert mean["tokens_desirable"] == sizes[LABELS == 1, 0].mean()
    assert float(task.weights(batch)["loss"]) == float(found.first.weight) == 7
    same = run(params, params, 1)
    np.testing.assert_allclose(same.first.sum, 0.5 * (4 + 3 * 1.5), rtol=1e-6)


def test_an_answer_is_compared_with_the_same_answer():
    rows = [("a", "x", 1), ("b", "x", 0), ("c", "y ", 1), ("d", "x", 0), ("d", "z", 1)]
    found = [
        one
        for p, c, label in rows
        for one in records.judged({"prompt": p, "completion": c, "label": bool(label)}, p)
    ]
    pairs = records.mismatched(found)
    assert [(pair.prompt[0].text, pair.chosen, pair.rejected) for pair in pairs] == [
        ("a", "x", "y "),
        ("b", "x", "y "),
        ("c", "y ", "x"),
        ("d", "x", "y "),
        ("d", "z", "x"),
    ]
    talk = {**ROW, "prompt": TALK, "completion": [{"role": "assistant", "content": "Yes."}]}
    assert records.judged(talk, "w") == records.judged(ROW, "w")
    (yes,) = records.judged(ROW, "w")
    no = dataclasses.replace(yes, answer="No.", desirable=False)
    pair = {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."}
    assert records.judged(pair, "w") == [yes, no]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": 0.5}, "'label' is 0.5: expected true"),
        ({"label": "true"}, "'label' is 'true'"),
        ({"label": None}, "'label' is None"),
        ({"completion": " "}, "'completion' is empty"),
        ({"prompt": ""}, "'prompt' is empty"),
        ({"tools": [{"name": "f"}]}, "'tools' have no place"),
        ({"images": ["a.png"]}, "'images' cannot be obeyed"),
    ],
)
def test_a_bad_record_is_read(change, said):
    with pytest.raises(BadRecord, match=said):
        records.judged({**ROW, **change}, "x:1")
    with pytest.raises(BadRecord, match="no field 'label': expected"):
        records.judged({"prompt": "a", "completion": "b"}, "x:1")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("a", "x", 1), ("b", "y", 1)], r"none of the 2 records is undesirable.*'label': false"),
        ([("a", "x", 0), ("b", "y", 0)], "none of the 2 records is desirable.*'label': true"),
        ([("a", "x", 0), ("b", "x", 1)], "line 1: no record of another .* than 'x', and the div"),
        (
            [("a", "x", 0), ("b", "y", 1), ("a", "x", 1)],
            r"line 1: 2 of 3 answers are labelled differently .* data.max_bad_share=0 allows",
        ),
    ],
)
def test_data_that_cannot_be_learned_from_is_accepted(tmp_path, rows, said):
    rows = [{"prompt": p, "completion": c, "label": bool(label)} for p, c, label in rows]
    c = config(tmp_path, rows)
    run = setup.reader(c, paths.resolve(str(tmp_path / "run")))
    with pytest.raises(DataError, match=said):
        setup.training_data(c, run)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta", 0.0),
        ("desirable_weight", -1.0),
        ("undesirable_weight", math.inf),
        ("reference", ""),
        ("template", "tulip"),
    ],
)
def test_a_wrong_option_is_taken(tmp_path, field, value):
    c = config(tmp_path)
    c.task[field] = value
    with pytest.raises(ConfigError, match=rf"task\.{field}={value!r}"):
        settings.check(c, 8)


def test_no_weight_is_taken_or_the_preview_hides_the_labels(tmp_path):
    c = config(tmp_path, fields={"desirable_weight": 0.0, "undesirable_weight": 0.0})
    with pytest.raises(ConfigError, match="are 0: nothing would be learned"):
        settings.check(c, 8)
    c = config(tmp_path)
    run = setup.reader(c, paths.resolve(str(tmp_path / "run")))
    packed = setup.training_data(c, run)
    assert packed.counts["desirable"] == packed.counts["undesirable"] == 16
    batch = Batch.made(
        {name: getattr(packed, name)[:1] for name in ("tokens", "targets", "segments")}
        | {name: x[:1] for name, x in packed.extra.items()}
        | {"positions": packed.segments[:1]}
    )
    (row,) = preview.rows(batch, run.tokenizer, shifted=True, task=tasks.of(c))
    assert "desirable: '" in row.said and row.said.endswith("' of another record")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [MESH, mamba])
def test_a_resumed_run_goes_on_otherwise(tmp_path, changes):
    c = config(tmp_path, **(changes() if callable(changes) else changes))
    run = setup.prepare(c, paths.resolve(str(tmp_path / "run")))
    data = setup.training_data(c, run)
    state = run.fresh_state(c.seed)
    batch = next(setup.train_source(c, run, data))
    state, metrics = run.train_step(state, batch)
    np.testing.assert_allclose(metrics["loss"], 0.5, rtol=1e-6)
    again = runs.saved_and_restored(run, state)
    ends = []
    for one in (state, again):
        for _ in range(2):
            one, metrics = run.train_step(one, batch)
        ends.append(jax.device_get(one))
    assert identical(*ends) and metrics["loss"] < 0.5
    assert run.train_step._cache_size() == 1, "a step was compiled again"
