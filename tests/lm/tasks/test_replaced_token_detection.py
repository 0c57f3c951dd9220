"""ELECTRA's two models: losses in float64, draws, one array for tied embeddings, resumed runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm import export, tasks
from lm.batch import Batch
from lm.data import tokenizers
from lm.distributed import rules
from lm.families import preset
from lm.models.config import ConfigError
from lm.tasks.models import Beside
from lm.tasks.replaced_token_detection import ReplacedTokenDetection, drawn
from lm.training import loop, optimizer, settings, setup
from lm.training.auxiliary import Made
from lm.training.state import Extras
from lm.weights.runs import paths
from lm.weights.runs.steps import CheckpointError
from lm.weights.runs.weights import load_beside
from tests.lm.small_models import drawn as random_params
from tests.lm.small_models import identical
from tests.lm.training import runs, small

NAME = "replaced_token_detection"
SHAPE = dict(d_model=32, n_layers=1, n_heads=8, n_kv_heads=8, head_dim=4, d_ff=64, dropout=0.0)


def config(folder, **changes):
    own = tasks.defaults(NAME, rate=0.3, generator_size=0.5, discriminator_weight=20.0)
    model = settings.model_section(preset("electra", "tiny", embedding_width=16, **SHAPE))
    fields = {f"model.{n}": value for n, value in model.to_dict().items() if value is not None}
    fields |= {"task": own, "model.vocab_size": 0, "steps": 4, "checkpoint.every": 2}
    return runs.config(folder, **{**fields, **changes})


def prepared(c, folder):
    """(run, state, first batch)."""
    run = setup.prepare(c, paths.resolve(str(folder / "run")))
    batches = setup.train_source(c, run, setup.training_data(c, run))
    return run, run.fresh_state(c.seed), next(batches)


def by_hand(run, generator, params, batch):
    """The loss, its terms and metrics in float64, where the generator's draws are greedy."""
    z = np.float64(lm.forward(generator.model, generator.params, batch).logits)
    masked, real = batch.weights > 0, batch.segments > 0
    assert 0 < masked.sum() < real.sum() < real.size
    log_z = np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1)) + z.max(-1)
    nll = (log_z - np.take_along_axis(z, batch.targets[..., None], -1)[..., 0])[masked].mean()
    tokens = np.where(masked, z.argmax(-1), batch.targets)
    seen = Batch.of(tokens, batch.segments, positions=batch.positions)
    scores = np.float64(lm.forward(run.model, params, seen).logits)
    other = tokens != batch.targets
    chance = 1 / (1 + np.exp(-scores))
    told = -np.where(other, np.log(chance), np.log1p(-chance))[real].mean()
    right = ((scores > 0) == other)[real].mean()
    return nll + 20.0 * told, nll, told, right, other[real].mean()


def greedy(monkeypatch):
    monkeypatch.setattr(jax.random, "gumbel", lambda key, shape: jnp.zeros(shape))


def test_the_losses_in_parts_on_a_mesh_are_not_the_formulas(tmp_path, monkeypatch):
    greedy(monkeypatch)
    (tmp_path / "short.txt").write_text("few words")  # a row with padding
    c = config(
        tmp_path,
        **{"mesh.data": 2, "mesh.tensor": 4, "accumulate": 2, "task.separator": "."},
    )
    run, state, batch = prepared(c, tmp_path)
    own = state.params["models"]["generator"]
    assert {*own["embeddings"]} == {"norm", "type"}, "tied arrays exist twice"
    before, batch = jax.device_get((state.params, batch))
    generator = run.beside(state)["generator"]
    assert generator.params["embeddings"]["token"] is state.params["embeddings"]["token"]
    assert generator.model.config.d_model == 16 and generator.model.config.head == "masked_lm"
    main = {name: x for name, x in before.items() if name != "models"}
    expected = by_hand(run, jax.device_get(generator), main, batch)
    new, metrics = run.train_step(state, batch)
    names = ("loss", "loss/generator", "loss/discriminator", "accuracy", "replaced")
    np.testing.assert_allclose([float(metrics[n]) for n in names], expected, rtol=2e-5)
    changed = jax.tree.map(
        lambda a, b: not np.array_equal(a, b), before, jax.device_get(new.params)
    )
    assert all(jax.tree.leaves(changed["models"])) and changed["embeddings"]["token"]
    again = runs.saved_and_restored(run, new)
    ends = [jax.device_get(run.train_step(one, batch)) for one in (new, again)]
    assert identical(*ends), "a resumed run goes on otherwise"


@pytest.mark.slow
def test_a_mesh_or_micro_batches_change_the_update(tmp_path, monkeypatch):
    greedy(monkeypatch)
    found = {}
    split = {"mesh.data": 2, "mesh.tensor": 4, "accumulate": 2}
    for name, changes in {"split": split, "one": {}}.items():
        if name == "one":
            monkeypatch.setattr(setup, "make_mesh", lambda **_: small.mesh_of(1, 1, 1))
        run, state, batch = prepared(config(tmp_path, **changes), tmp_path)
        new, metrics = run.train_step(state, batch)
        found[name] = jax.device_get((new.params, metrics))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6),
        found["one"],
        found["split"],
    )


@pytest.mark.slow
def test_the_discriminator_teaches_the_generator():
    """Its loss reaches the shared embeddings, and no other parameter of the generator."""
    task = ReplacedTokenDetection(rate=0.5)
    main = lm.build(preset("electra", "tiny", embedding_width=16, vocab_size=64, **SHAPE))
    main = lm.build(task_head(main.config))
    own = lm.build(task.aux(main.config)["generator"].model)
    params, others = random_params(main, 0.1), random_params(own, 0.1, seed=1)
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 2, (2, 8))
    batch = Batch.of(
        rng.integers(0, 64, (2, 8)), targets=rng.integers(0, 64, (2, 8)), weights=weights
    )

    def told(params, others, key):
        models = {"generator": Beside(own, others)}
        found = task.loss(main, params, batch, key, models=models)
        return found.terms["discriminator"].sum

    of_main, of_generator = jax.jit(jax.grad(told, argnums=(0, 1)))(
        params, others, jax.random.key(0)
    )
    assert not any(np.any(g) for g in jax.tree.leaves(of_generator))
    assert np.any(of_main["embeddings"]["token"]) and np.any(of_main["head"]["classifier"])


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == "muon" else [pytest.mark.slow]) for n in optimizer.USES],
)
def test_an_optimizer_updates_a_model_beside_another_otherwise_than_alone(name):
    """With weight decay, for two updates; clipping would look at both models."""
    task = ReplacedTokenDetection(rate=0.5)
    main = lm.build(preset("electra", "tiny", embedding_width=16, vocab_size=64, **SHAPE))
    main = lm.build(task_head(main.config))
    aux = task.aux(main.config)["generator"]
    one = Made(lm.build(aux.model), True, False, aux.tied, ("", "random"))
    trained = {
        "main": random_params(main, 0.1),
        "other": one.own(random_params(one.model, 0.1, seed=1)),
    }
    names = {
        "main": Extras().axes(main)[0],
        "other": one.own(one.model.logical_axes()),
        "both": Extras(models={"generator": one}).axes(main)[0],
    }
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), trained)
    for found in (trained, gradients):
        found["both"] = {**found["main"], "models": {"generator": found["other"]}}
    ends = {}
    for which, params in trained.items():
        axes = rules.by_path(names[which])
        assert axes.keys() == rules.by_path(params).keys()
        made = optimizer.build(name, lambda step: 0.1, axes, clip=0.0)

        def twice(params, gradient, made=made):
            state = made.init(params)
            for _ in range(2):
                updates, state = made.update(gradient, state, params)
                params = jax.tree.map(jnp.add, params, updates)
            return params

        ends[which] = jax.jit(twice)(params, gradients[which])
    both = {**ends["main"], "models": {"generator": ends["other"]}}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        ends["both"],
        both,
    )


def task_head(c):
    from lm import families

    return families.other_head(c, NAME, head_dense=c.activation)


def test_draws_are_not_those_of_the_softmax_or_depend_on_the_chunk():
    scores = jnp.float32([[2.0, 0.0, 1.0, -1.0]])
    logits = lambda head, hidden: hidden * head
    hidden = jnp.broadcast_to(scores[None], (2000, 5, 4))
    draw = jax.jit(drawn, static_argnums=(0, 4))
    found = [draw(logits, 1.0, hidden, jax.random.key(3), chunk) for chunk in (1, 2, 5)]
    assert all(np.array_equal(found[0], other) for other in found)
    share = np.bincount(np.ravel(found[0]), minlength=4) / 10_000
    np.testing.assert_allclose(share, np.asarray(jax.nn.softmax(scores[0])), atol=0.015)
    assert len({tuple(column) for column in np.asarray(found[0]).T}) == 5


def test_a_run_has_no_evaluation_or_no_discriminator_to_export(tmp_path):
    changes = {"optimizer.ema": 0.9, "eval.data.heldout": runs.text(tmp_path)}
    c = config(tmp_path, **{**changes, "steps": 2})
    assert loop.train(c, tmp_path / "run") == 0
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluated = next(row for row in rows if "eval/heldout/discriminator" in row)
    assert 0 < evaluated["eval/heldout/discriminator"] < 1.5
    assert 5 < evaluated["eval/heldout/generator"] < 6.5
    model, params, _ = lm.load(str(tmp_path / "run"))
    assert model.config.head == NAME and params.keys() == model.shapes().keys()
    lm.to_hf(model, params, tmp_path / "exported")
    written = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert written["architectures"] == ["ElectraForPreTraining"]
    generator, its, _ = load_beside(tmp_path / "run", "generator")
    assert generator.config.head == "masked_lm" and rules.by_path(its).keys() == set(
        rules.by_path(generator.shapes())
    )
    path = "embeddings/token"  # tied
    np.testing.assert_array_equal(rules.by_path(its)[path], rules.by_path(params)[path])
    asked = [f"--model={tmp_path / 'run'}", f"--output={tmp_path / 'generator'}"]
    assert export.main([*asked, "--beside=generator"]) == 0
    assert identical(lm.from_hf(tmp_path / "generator")[1], its)
    with pytest.raises(CheckpointError, match="no model 'critic' beside its own; it has generator"):
        load_beside(tmp_path / "run", "critic")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"task.generator_size": 0.0}, r"task\.generator_size=0\.0: expected a number above 0"),
        ({"task.discriminator_weight": 0.0}, r"task\.discriminator_weight=0\.0: expected a finite"),
        ({"model.causal": True}, r"task 'replaced_token_detection' needs model\.causal=False"),
        ({"task.generator": "wide"}, r"'generator' ties 'embeddings/token' \[320, 64\] to .*16\]"),
        ({"task.generator": "llama"}, r"'generator' has head='causal_lm': expected 'masked_lm'"),
    ],
)
def test_a_run_that_cannot_work_is_started(tmp_path, fields, said):
    if kind := fields.get("task.generator"):
        shape = dict(n_layers=1, vocab_size=320)
        made = (
            preset("bert", "tiny", **shape) if kind == "wide" else preset("llama", "tiny", **shape)
        )
        model, fields = lm.build(made), {"task.generator": str(tmp_path / kind)}
        tokenizer = tokenizers.bytes_only(mask=True)
        lm.to_hf(model, random_params(model), tmp_path / kind, tokenizer)
    c = config(tmp_path, **fields)
    with pytest.raises(ConfigError, match=said):
        setup.prepare(c, paths.resolve(str(tmp_path / "run")))
