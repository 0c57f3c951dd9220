"""Preference tasks: losses in float64, pairs in rows, a mesh, resuming, and bad records."""

import dataclasses
import json
import math
import types

import jax
import numpy as np
import pytest

import lm
from lm import tasks
from lm.batch import Batch
from lm.data.encode import preference as encoding
from lm.data.encode.encoding import Encoded
from lm.data.preview import preview
from lm.data.read.sources import DataError
from lm.data.records import preference as records
from lm.data.records.turns import BadRecord
from lm.losses.loss import Term
from lm.models.config import ConfigError
from lm.tasks.models import Beside
from lm.training import loop, settings, setup, stored, trackers
from lm.weights.runs import paths
from lm.weights.runs.steps import CheckpointError
from tests.lm.small_models import drawn, identical, tiny
from tests.lm.training import runs

MESH = {"mesh.data": 2, "mesh.tensor": 4, "accumulate": 2}
TALK = [{"role": "user", "content": "Is it?"}]


def written(folder, number=32, **more):
    """Path of a file of pairs."""
    rows = [
        {"prompt": f"Double {n}.", "chosen": f"{2 * n}", "rejected": f"{n} more", **more}
        for n in range(number)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(folder, task="dpo", fields=None, **changes):
    own = tasks.defaults(task, template="tulu", **(fields or {}))
    more = {"task": own, "data.files": written(folder), "length": 128, "model.n_heads": 4}
    return runs.config(folder, **{**more, "model.n_kv_heads": 4, **changes})


def batch_of(rng, rows=3, pairs=2, size=5, model=None):
    """Rows of pairs of random tokens; the first two tokens of each answer are a prompt."""
    segments = np.repeat(np.arange(1, 2 * pairs + 1), size)[None].repeat(rows, 0)
    segments[-1, 2 * size :] = 0
    weights = (np.arange(2 * pairs * size) % size >= 2) & (segments > 0)
    weights[:, size - 1] = False  # answers of different lengths
    tokens, targets = rng.integers(3, 37, (2, *segments.shape))
    more = {}
    if model is not None and model.config.encoder_layers:
        more = {"encoder_tokens": tokens, "encoder_segments": segments}
    return Batch.of(tokens, segments, targets=targets, weights=weights, **more)


def by_hand(model, params, batch):
    """(log-probabilities, tokens), float64 [pairs, 2] in the order of rows, from all logits."""
    z = np.float64(lm.forward(model, params, batch).logits)
    z = z - z.max(-1, keepdims=True)
    z = z - np.log(np.exp(z).sum(-1, keepdims=True))
    found = np.take_along_axis(z, np.asarray(batch.targets)[..., None], -1)[..., 0]
    weights, segments = np.float64(batch.weights), np.asarray(batch.segments)
    of = lambda values: np.array(
        [
            [(values[row] * (segments[row] == at + side)).sum() for side in (0, 1)]
            for row in range(len(values))
            for at in range(1, segments[row].max(), 2)
        ]
    )
    return of(found * weights), of(weights)


def softplus(x):
    return np.logaddexp(0, x)


def expected(task, mine, theirs, sizes):
    """Mean loss of a task in float64, written from the papers."""
    difference = lambda x: x[:, 0] - x[:, 1]
    if task.name == "dpo":
        ratios = (mine - theirs) / (sizes if task.length_normalised else 1)
        losses = {
            "sigmoid": lambda m: softplus(-task.beta * m),
            "hinge": lambda m: np.maximum(0, 1 - task.beta * m),
            "ipo": lambda m: (m - 0.5 / task.beta) ** 2,
        }
        one, m, e = losses[task.kind], difference(ratios), task.label_smoothing
        return np.mean((1 - e) * one(m) + e * one(-m))
    if task.name == "simpo":
        return np.mean(softplus(task.gamma - task.beta * difference(mine / sizes)))
    p = np.exp(mine / sizes)
    odds = difference(np.log(p / (1 - p)))
    return -mine[:, 0].sum() / sizes[:, 0].sum() + task.odds_weight * softplus(-odds).mean()


LOSSES = [
    ("dpo", {}),
    ("dpo", {"label_smoothing": 0.2}),
    ("dpo", {"kind": "ipo", "beta": 0.3}),
    ("dpo", {"kind": "hinge"}),
    ("dpo", {"length_normalised": True, "beta": 5.0}),
    ("simpo", {}),
    ("orpo", {}),
]


@pytest.mark.parametrize("family", ["llama", "t5", "mamba"])
def test_a_loss_is_not_the_formula(family):
    model, params = tiny(family)
    params = drawn(model, 0.3)
    reference = {"reference": Beside(model, drawn(model, 0.3, seed=1))}
    batch = batch_of(np.random.default_rng(0), model=model)
    mine, sizes = by_hand(model, params, batch)
    theirs, _ = by_hand(model, reference["reference"].params, batch)
    assert len(sizes) == 5 and len(set(sizes.ravel())) > 1
    for name, fields in LOSSES:
        task = tasks.of({"task": tasks.defaults(name, **fields)})
        models = {"models": reference} if name == "dpo" else {}
        found = task.loss(model, params, batch, **models)
        weights = task.weights(batch)
        assert {n: float(t.weight) for n, t in found.terms.items()} == {
            n: float(w) for n, w in weights.items()
        }
        total = sum(
            task.coefficients.get(n, 1.0) * float(t.sum) / float(t.weight)
            for n, t in found.terms.items()
        )
        np.testing.assert_allclose(total, expected(task, mine, theirs, sizes), rtol=2e-5)
        pairs = list(weights.values())[-1]
        first = found.metrics["logp_chosen"]
        first = first.sum if isinstance(first, Term) else first
        np.testing.assert_allclose(first / pairs, mine[:, 0].mean(), rtol=1e-5)
    same = {"reference": Beside(model, params)}
    dpo = tasks.of({"task": tasks.defaults("dpo")})
    start = dpo.loss(model, params, batch, models=same)
    np.testing.assert_allclose(start.first.sum / start.first.weight, math.log(2), rtol=1e-6)
    assert float(start.metrics["accuracy"]) == 2.5, "equal rewards are right by half"


def test_the_score_of_a_reward_model_is_not_that_of_its_last_token():
    model, params = tiny("llama", head="sequence_classification", n_labels=1, pad_token_id=0)
    rng = np.random.default_rng(0)
    batch, task = batch_of(rng), tasks.of({"task": tasks.defaults("reward", centring=0.1)})
    segments = np.asarray(batch.segments)
    scores = np.array(
        [
            float(
                lm.forward(
                    model, params, Batch.of(batch.tokens[row][segments[row] == at][None])
                ).logits[0, 0]
            )
            for row in range(3)
            for at in range(1, segments[row].max() + 1)
        ]
    ).reshape(-1, 2)
    margin = scores[:, 0] - scores[:, 1]
    wanted = np.mean(softplus(-margin) + 0.1 * scores.sum(1) ** 2)
    found = task.loss(model, params, batch)
    np.testing.assert_allclose(found.first.sum / 5, wanted, rtol=1e-4)
    assert float(found.metrics["accuracy"]) == (margin > 0).sum()
    shifted = dataclasses.replace(task, centring=0.0)
    params["head"]["classifier_bias"] = np.float32([3.0])
    moved = shifted.loss(model, params, batch)
    np.testing.assert_allclose(moved.first.sum / 5, np.mean(softplus(-margin)), rtol=1e-4)


def mamba():
    from lm.families import preset

    small = preset("mamba", "tiny", vocab_size=320, d_model=16, n_layers=1, ssm_inner=32)
    known = {n: x for n, x in settings.model_section(small).to_dict().items() if x is not None}
    return {f"model.{n}": x for n, x in known.items() if "token_id" not in n}


@pytest.mark.parametrize(
    ("task", "changes"),
    [("dpo", {**MESH}), ("orpo", mamba), ("reward", {"model.pad_token_id": 0})],
)
def test_a_resumed_run_goes_on_otherwise(tmp_path, task, changes):
    c = config(tmp_path, task, **(changes() if callable(changes) else changes))
    run = setup.prepare(c, paths.resolve(str(tmp_path / "run")))
    data = setup.training_data(c, run)
    state = run.fresh_state(c.seed)
    batch = next(setup.train_source(c, run, data))
    before, host = jax.device_get((state.params, batch))
    assert (host.segments.max(axis=1) % 2 == 0).all()
    state, metrics = run.train_step(state, batch)
    if task == "dpo":
        np.testing.assert_allclose(metrics["loss"], math.log(2), rtol=1e-6)
        assert float(metrics["accuracy"]) == 0.5
        held = jax.device_get(state.fixed["base"])
        assert identical(held, before), "the reference has changed"
    again = runs.saved_and_restored(run, state)
    ends = []
    for one in (state, again):
        for _ in range(2):
            one, metrics = run.train_step(one, batch)
        ends.append(jax.device_get(one))
    assert identical(*ends)
    assert run.train_step._cache_size() == 1, "a step was compiled again"


ROW = {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."}


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {
            "prompt": TALK,
            "chosen": [{"role": "assistant", "content": "Yes."}],
            "rejected": [{"role": "assistant", "content": "No."}],
        },
        {
            "prompt": "Is it?",
            "prompt_id": "7",
            "score_chosen": 8.0,
            "score_rejected": 2.0,
            "chosen": [*TALK, {"role": "assistant", "content": "Yes."}],
            "rejected": [*TALK, {"role": "assistant", "content": "No."}],
        },
        {
            "prompt": "Is it?",
            "chosen": [{"role": "assistant", "content": "Yes."}],
            "rejected": [{"role": "assistant", "content": "No."}],
        },
        {
            "chosen": "\n\nHuman: Is it?\n\nAssistant: Yes.",
            "rejected": "\n\nHuman: Is it?\n\nAssistant: No.",
        },
    ],
)
def test_a_format_is_read_otherwise(row):
    found = records.pair(row, "x:1")
    assert [(turn.role, turn.text) for turn in found.prompt] == [("user", "Is it?")]
    assert (found.chosen, found.rejected) == ("Yes.", "No.")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rejected": "Yes. "}, "are the same answer, 'Yes.'.*data.max_bad_share"),
        ({"rejected": " "}, "'rejected' is empty"),
        ({"score_chosen": 1, "score_rejected": 2}, "'score_chosen' is 1, below .* 2"),
        ({"images": ["a.png"]}, "'images' cannot be obeyed"),
        ({"tools": [{"name": "f"}]}, "'tools' have no place"),
        ({"prompt": 3}, "'prompt' is int"),
    ],
)
def test_a_bad_pair_is_read(change, said):
    with pytest.raises(BadRecord, match=said):
        records.pair({**ROW, **change}, "x:1")


def test_long_pairs_are_not_counted():
    e = lambda n: Encoded(np.arange(n, dtype=np.int32), np.arange(n) > 1, 2, np.zeros(0), 1)
    pairs = [(e(4), e(5)), (e(4), e(9)), (e(3), e(3))]
    packed = encoding.pack(pairs, ["a:1", "a:2", "a:3"], (10, 0), max_long=0.5)
    assert packed.counts == {"pairs_too_long": 1} and packed.segments.max() == 2
    with pytest.raises(DataError, match=r"1 of 3 pairs .*task\.max_long=0 .*a:2, has 11 tokens"):
        encoding.pack(pairs, ["a:1", "a:2", "a:3"], (10, 0))


@pytest.mark.parametrize(
    ("task", "field", "value"),
    [
        ("dpo", "kind", "sigmoids"),
        ("dpo", "beta", 0.0),
        ("dpo", "label_smoothing", 0.5),
        ("dpo", "reference", ""),
        ("dpo", "template", "tulip"),
        ("dpo", "max_long", 2.0),
        ("dpo", "chunk", -1),
        ("dpo", "target_length", -1),
        ("simpo", "beta", math.inf),
        ("simpo", "gamma", -1.0),
        ("orpo", "odds_weight", 0.0),
        ("reward", "centring", -1.0),
    ],
)
def test_a_wrong_option_is_taken(tmp_path, task, field, value):
    c = config(tmp_path, task, {field: value} if field != "template" else {})
    c.task[field] = value
    with pytest.raises(ConfigError, match=rf"task\.{field}={value!r}"):
        tasks.of(c).check(c)


def test_the_preview_does_not_tell_the_answers_apart(tmp_path):
    c = config(tmp_path)
    run = setup.prepare(c, paths.resolve(str(tmp_path / "run")))
    packed = setup.training_data(c, run)
    batch = Batch.of(
        packed.tokens[:1],
        packed.segments[:1],
        targets=packed.targets[:1],
        weights=packed.extra["weights"][:1],
    )
    (row,) = preview.rows(batch, run.tokenizer, shifted=True, task=tasks.of(c))
    assert row.said.startswith("prefer '") and " more" in row.said.split("' to '")[1]
    trained = [
        "".join(p.text for p in row.tokens if p.kind == "trained" and p.segment == at)
        for at in (1, 2)
    ]
    assert trained[0][:1].isdigit() and trained[1][:1].isdigit()
    assert "more" in trained[1] and "more" not in trained[0]


def test_a_cached_reference_gives_another_loss_or_is_read_again(tmp_path, monkeypatch):
    c = config(tmp_path, fields={"cache_reference": True})
    run = setup.prepare(c, paths.resolve(str(tmp_path / "run")))
    data, params = setup.training_data(c, run), drawn(run.model, 0.3)
    assert not run.extras.models and run.abstract.fixed is None
    batch = next(setup.train_source(c, run, data))
    plain = dataclasses.replace(run.task, cache_reference=False)
    base = jax.device_get(run.weights(run.fresh_state(c.seed)))
    beside = {"reference": Beside(run.model, base)}
    losses = jax.jit(
        lambda params: (
            run.task.loss(run.model, params, batch).first.sum,
            plain.loss(run.model, params, batch, models=beside).first.sum,
        )
    )(params)
    np.testing.assert_allclose(*losses, rtol=1e-5)
    run.stored.save(run.workdir)
    monkeypatch.setattr(stored, "_fill", lambda *_: pytest.fail("computed again"))
    *_, kept = stored.of_run(run.stored.models, {}, run.workdir, True)
    later = dataclasses.replace(run, params=None, stored=kept)  # as when the run resumes
    assert "reference_log_probs" in setup.training_data(c, later).extra
    c.data.files = written(tmp_path, 16)
    with pytest.raises(CheckpointError, match=r"outputs of reference is not there.*data.cache"):
        setup.training_data(c, later)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["dpo", "kto"])
def test_a_run_with_a_cached_reference_learns_otherwise(tmp_path, task):
    """Also with a reference of its own, held-out pairs, and a resumed end."""
    assert loop.train(config(tmp_path, task, {}, steps=2), tmp_path / "base") == 0
    found = {}
    for cached in (False, True):
        fields = {"cache_reference": cached, "reference": str(tmp_path / "base")}
        changes = {"data.holdout_share": 0.3, "eval.every": 2, "checkpoint.every": 2}
        c = config(tmp_path, task, fields, **changes, steps=2)
        assert loop.train(c, tmp_path / f"run{cached}") == 0
        c.steps = 4
        assert loop.train(c, tmp_path / f"run{cached}") == 0
        rows = trackers.read(tmp_path / f"run{cached}")
        found[cached] = [
            row[name] for row in rows for name in row if name.endswith(("loss", "chosen", "kl"))
        ]
        assert any("eval/" in name for row in rows for name in row)
    np.testing.assert_allclose(found[True], found[False], rtol=1e-4, atol=1e-6)


def test_several_processes_store_a_reference_at_once(monkeypatch):
    run = types.SimpleNamespace(stored=stored.Stored({"reference": None}))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"^2 processes run, .* set task\.cache_reference=False$"):
        stored.attached(run, None, None, None)
