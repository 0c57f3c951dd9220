"""Distillation: the loss of Hinton et al. 2015 in float64, on a mesh, in parts, and resumed."""

import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import lm
from lm import tasks
from lm.data import tokenizers
from lm.families import preset
from lm.models.config import ConfigError
from lm.tasks.models import Aux
from lm.training import auxiliary, checkpoints, loop, settings, setup
from lm.training.report import Report
from lm.weights import WeightsError, loading
from lm.weights.runs import paths
from lm.weights.runs.steps import CheckpointError
from tests.lm.small_models import drawn, identical
from tests.lm.training import runs, small

MESH = {"mesh.data": 2, "mesh.tensor": 4}
SMALL = dict(
    max_length=64,
    vocab_size=320,
    d_model=24,
    n_layers=1,
    n_heads=4,
    n_kv_heads=4,
    head_dim=6,
    d_ff=40,
)
# fields of tests.lm.training.runs.config that init_from would ignore, at their defaults
UNSET = {
    name: getattr(settings.MODEL, name)
    for name in SMALL
    if name not in ("vocab_size", "max_length")
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Folder of a Llama that is wider than the students, with the tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("models") / "teacher"
    model = lm.build(preset("llama", "tiny", **SMALL))
    lm.to_hf(model, drawn(model, 0.3), folder, tokenizers.bytes_only())
    return str(folder)


def config(folder, teacher, **changes):
    own = tasks.defaults("distillation", teacher=teacher, temperature=3.0, soft=0.7)
    heads = {"model.n_heads": 4, "model.n_kv_heads": 4}
    fields = {"task": own, "model.vocab_size": 320, "steps": 4, **heads}
    return runs.config(folder, **{**fields, **changes})


def prepared(c, folder):
    """(run, state, first batch)."""
    run = setup.prepare(c, paths.resolve(str(folder / "run")))
    batches = setup.train_source(c, run, setup.training_data(c, run))
    return run, run.fresh_state(c.seed), next(batches)


def log_softmax(z):
    z = np.float64(z) - np.max(z, -1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def by_hand(student, theirs, batch):
    """The loss and its two parts in float64, from all logits [B, T, V] of both models."""
    weights = np.float64(batch.weights)
    hard = -np.take_along_axis(log_softmax(student), np.asarray(batch.targets)[..., None], -1)
    p, q = log_softmax(theirs / 3.0), log_softmax(student / 3.0)
    parts = hard[..., 0], (np.exp(p) * (p - q)).sum(-1)
    hard, soft = (np.sum(part * weights) / weights.sum() for part in parts)
    return 0.3 * hard + 0.7 * 9.0 * soft, hard, soft


def mamba(**changes):
    """Fields of a Mamba student."""
    fields = settings.model_section(preset("mamba", "tiny", vocab_size=320, **changes)).to_dict()
    known = {name: value for name, value in fields.items() if value is not None}
    return {f"model.{name}": value for name, value in known.items() if "token_id" not in name}


def test_the_loss_of_a_mamba_student_in_parts_on_a_mesh_is_not_the_formula(
    tmp_path, teacher, monkeypatch
):
    changes = mamba(d_model=16, n_layers=1, ssm_inner=32) | MESH | {"accumulate": 2}
    c = config(tmp_path, teacher, **changes)
    run, state, batch = prepared(c, tmp_path)
    beside = run.beside(state)["teacher"]
    assert identical(beside.params, lm.load(teacher)[1])
    assert beside.model.config.d_model == 24 and run.model.config.family == "mamba"
    assert "tensor" in str(beside.params["layers"]["mlp"]["up"].sharding.spec)
    before, held = jax.device_get((state.params, state.fixed))
    batch = jax.device_get(batch)
    logits = lm.forward(run.model, before, batch).logits
    theirs = lm.forward(beside.model, held["models"]["teacher"], batch).logits
    new, metrics = run.train_step(state, batch)
    found = [float(metrics[name]) for name in ("loss", "cross_entropy", "divergence")]
    np.testing.assert_allclose(found, by_hand(logits, theirs, batch), rtol=2e-5)
    assert identical(jax.device_get(new.fixed), held), "the teacher has changed"
    assert not identical(jax.device_get(new.params), before)
    again = runs.saved_and_restored(run, new)
    ends = [jax.device_get(run.train_step(one, batch)) for one in (new, again)]
    assert identical(*ends), "a resumed run goes on otherwise"
    loop._write_folder(c, run, Report())
    monkeypatch.setattr(loading, "load", lambda path: pytest.fail(f"{path} is read again"))
    resumed = setup.prepare(c, run.workdir)
    assert resumed.extras.models["teacher"].model.config == beside.model.config
    assert not resumed.given and resumed.abstract == run.abstract
    with pytest.raises(CheckpointError, match="'teacher' are in the checkpoints of the run"):
        resumed.fresh_state(0)
    c.task.teacher = "another"
    with pytest.raises(ConfigError, match=r"'teacher' of this run is model='.*asks for model='ano"):
        setup.prepare(c, run.workdir)


@pytest.mark.slow
def test_a_mesh_or_micro_batches_change_the_update(tmp_path, teacher, monkeypatch):
    found = {}
    for name, changes in {"mesh": {**MESH, "accumulate": 2}, "one": {}}.items():
        if name == "one":
            monkeypatch.setattr(setup, "make_mesh", lambda **_: small.mesh_of(1, 1, 1))
        run, state, batch = prepared(config(tmp_path, teacher, **changes), tmp_path)
        new, metrics = run.train_step(state, batch)
        found[name] = jax.device_get((new.params, metrics))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6),
        found["one"],
        found["mesh"],
    )


@pytest.mark.slow
def test_an_interrupted_run_ends_with_other_weights(tmp_path, teacher):
    """With LoRA and a divergence from the base too, of which the state holds one array.

    The teacher's folder is deleted before the run resumes.
    """
    own, (_, params, _) = tmp_path / "teacher", lm.load(teacher)
    teacher = str(shutil.copytree(teacher, own))
    start = {"init_from": str(tmp_path / "start"), "tokenizer": "", "model.vocab_size": 0}
    model = lm.build(preset("llama", "tiny", **SMALL | {"d_model": 16, "head_dim": 8}))
    lm.to_hf(model, drawn(model), start["init_from"], tokenizers.bytes_only())
    adapted = {"adaptation.lora.rank": 2, "adaptation.kl.strength": 0.1, "optimizer.ema": 0.9}
    changes = {**start, **adapted, "checkpoint.every": 2}
    c = config(tmp_path, teacher, **{f"model.{name}": value for name, value in UNSET.items()})
    c.update_from_flattened_dict(changes)
    assert loop.train(c, tmp_path / "whole") == 0
    _, end = checkpoints.steps(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / str(end))
    shutil.rmtree(own)
    assert loop.train(c, tmp_path / "half") == 0
    run = setup.prepare(c, paths.resolve(str(tmp_path / "half")))
    states = [
        checkpoints.restore(paths.resolve(str(tmp_path / name)), run.abstract).state
        for name in ("whole", "half")
    ]
    assert identical(*(jax.device_get(state) for state in states))
    assert identical(states[0].fixed["models"]["teacher"], params)
    merged, params, _ = lm.load(str(tmp_path / "half"))
    assert merged.config.d_model == 16 and params.keys() == run.model.shapes().keys()


def test_the_base_of_adaptation_and_a_reference_are_two_arrays(tmp_path, teacher):
    """A teacher that is the model the run starts from, with a divergence from it, and without."""
    unset = {f"model.{name}": value for name, value in UNSET.items()}
    start = {**unset, "init_from": teacher, "tokenizer": "", "model.vocab_size": 0}
    for strength in (0.1, 0.0):
        c = config(tmp_path, "same", **start, **{"adaptation.kl.strength": strength})
        run = setup.prepare(c, paths.resolve(str(tmp_path / "run")))
        assert {*run.abstract.fixed} == {"base"} and {*run.extras.models} == {"teacher"}
        assert run.abstract.fixed["base"].keys() == run.abstract.params.keys()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"task.teacher": ""}, r"task\.teacher is not set"),
        ({"task.temperature": 0.0}, r"task\.temperature=0\.0: expected a finite number above 0"),
        ({"task.soft": 1.5}, r"task\.soft=1\.5: expected a share"),
        (
            {"model.vocab_size": 384},
            r"auxiliary model 'teacher' has a vocabulary of 320 tokens, .* one of 384.*"
            r"set model\.vocab_size=320",
        ),
        ({"length": 72}, r"'teacher' reads at most 64 tokens.* 72"),
    ],
)
def test_a_teacher_that_does_not_fit_is_taken(tmp_path, teacher, fields, said):
    c = config(tmp_path, teacher, **fields)
    with pytest.raises(ConfigError, match=said):
        setup.prepare(c, paths.resolve(str(tmp_path / "run")))


def test_a_further_task_with_a_teacher_is_taken(tmp_path, teacher):
    c = config(tmp_path, teacher)
    more = {"task": c.task.copy_and_resolve_references(), "files": c.data.files, "batch_size": 8}
    c.task, c.further_tasks = tasks.defaults("next_token"), ConfigDict({"more": more})
    with pytest.raises(
        ConfigError, match=r"further_tasks\.more\.task\.name=.* needs models beside"
    ):
        setup.prepare(c, paths.resolve(str(tmp_path / "run")))


def test_auxiliary_models_that_do_not_fit_are_taken(teacher):
    main, tokenizer = lm.build(preset("llama", "tiny", **SMALL)), tokenizers.bytes_only()
    other = tokenizers.bytes_only(mask=True)
    wide = preset("llama", "tiny", **SMALL | {"d_model": 48})
    t5 = preset("t5", "tiny", vocab_size=320)
    for aux, its, said in (
        (Aux(t5, "random"), tokenizer, r"is an encoder-decoder, and the run's model is no"),
        (Aux(teacher, heads=("value",)), tokenizer, r"has head='causal_lm': expected 'value'"),
        (Aux(teacher), other, r"has another tokenizer: '.*' is no token there, and \d+ in the"),
        (Aux(wide), tokenizer, r"made from a config, which has no weights"),
        (Aux(wide, teacher), tokenizer, r"weights of .* have .* \[.*24.*\], expected \[.*48"),
        (Aux(""), tokenizer, r"no model is named"),
        (Aux("none/there"), tokenizer, r"'none/there' is not a local directory"),
        (
            Aux(wide, "random", tied={"embeddings/token": "embeddings/token"}),
            tokenizer,
            r"ties 'embeddings/token' \[320, 48\] to 'embeddings/token' \[320, 24\]",
        ),
        (
            Aux(wide, "random", tied={"embeddings/tokens": "embeddings/token"}),
            tokenizer,
            r"'x' has no parameter 'embeddings/tokens' .did you mean 'embeddings/token'",
        ),
    ):
        with pytest.raises((ConfigError, WeightsError), match=rf"auxiliary model 'x'.*{said}"):
            auxiliary.made({"x": aux}, main, its, 16)
