"""Stored predictions of a teacher: written, resumed, refused, and trained from as from it."""

import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import lm
from lm import teacher_outputs
from lm.data import outputs, packed, tokenizers
from lm.data.cache import fingerprint
from lm.distributed import sharding
from lm.models.config import ConfigError
from lm.training import checkpoints, loop, setup
from lm.weights.runs import paths
from tests.lm.small_models import identical
from tests.lm.tasks.test_distillation import (  # noqa: F401
    MESH,
    config,
    log_softmax,
    prepared,
    teacher,
)
from tests.lm.training import runs

K = 5
FILE = """
from pathlib import Path
from tests.lm.tasks.test_distillation import config

def get_config():
    return config(Path({folder!r}), {teacher!r}, **{{"task.top_k": 5}})
"""


def command(folder, *more):
    return [f"--config={folder / 'c.py'}", f"--workdir={folder / 'stored'}", *more]


@pytest.fixture(scope="module")
def made(tmp_path_factory, teacher):  # noqa: F811
    """(folder, teacher) after an interrupted and a second run of the command."""
    folder = tmp_path_factory.mktemp("distil")
    (folder / "c.py").write_text(FILE.format(folder=str(folder), teacher=teacher))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "SHARD_BYTES", 60 * 16 * (K * 6 + 4))
        add = outputs.Writer.add

        def interrupted(writer, shard, arrays):
            if shard:
                raise OSError("the disk is full")
            add(writer, shard, arrays)

        patch.setattr(outputs.Writer, "add", interrupted)
        assert teacher_outputs.main(command(folder)) == 2
        with pytest.raises(ConfigError, match=r"stored has 1 of \d+ shards: .*goes on when"):
            outputs.about(str(folder / "stored"))
        numbers = []
        patch.setattr(
            outputs.Writer, "add", lambda w, n, arrays: (numbers.append(n), add(w, n, arrays))
        )
        assert teacher_outputs.main(command(folder)) == 0
    of = outputs.about(str(folder / "stored"))
    assert numbers == list(range(1, of.shards)) and of.shards > 2
    return folder, teacher


def of_run(made, tmp_path, **changes):
    """Config that reads the rows of `made`."""
    folder, teacher = made  # noqa: F811
    c = config(tmp_path, teacher, **{"task.top_k": K})
    c.data.files, c.data.cache = str(folder / "x.txt"), str(folder / "cache")
    c.update_from_flattened_dict(changes)
    return c


def test_what_is_stored_is_not_what_the_teacher_predicts(made):
    folder, name = made
    model, params, _ = lm.load(name)
    run = setup.prepare(of_run(made, folder), folder / "unused")
    rows = setup.training_data(of_run(made, folder), run)
    of = outputs.about(str(folder / "stored"))
    assert (of.rows, of.length, of.k, of.temperature) == (len(rows), 16, K, 3.0)
    found = outputs.load(str(folder / "stored"), of.tokenizer, packed.digest(rows), 16)
    for row in (0, of.shard_rows, len(rows) - 1):
        batch = lm.Batch.of(rows.tokens[[row]], rows.segments[[row]])
        exact = log_softmax(np.asarray(lm.forward(model, params, batch).logits)[0] / 3.0)
        best = np.argsort(-exact, axis=-1)[:, :K]
        np.testing.assert_array_equal(found[outputs.TOKENS][row], best)
        kept = np.take_along_axis(exact, best, -1)
        np.testing.assert_allclose(found[outputs.LOG_PROBS][row], kept, atol=2e-5)
        rest = np.log1p(-np.exp(kept).sum(-1))
        np.testing.assert_allclose(found[outputs.LOG_REST][row], rest, atol=2e-5)


def gradient(run, state, batch):
    """(divergence of the loss, gradient)."""
    models = run.beside(state) if run.extras.models else {}

    def loss(params):
        found = run.task.loss(run.model, params, batch, models=models)
        return found.first.sum, found.metrics["divergence"]

    with sharding.activate(run.mesh, run.activations):
        (_, divergence), found = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)
    return jax.device_get((divergence, found))


def test_the_gradient_from_stored_outputs_differs_from_that_with_the_teacher(made, tmp_path):
    live = gradient(*prepared(of_run(made, tmp_path), tmp_path / "live"))
    changes = {"task.outputs": str(made[0] / "stored"), **MESH, "accumulate": 2}
    run, state, batch = prepared(of_run(made, tmp_path, **changes), tmp_path / "stored")
    assert state.fixed is None, "the teacher is in the state"
    stored = gradient(run, state, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), live, stored)
    weight = np.asarray(batch.weights).sum()
    new, metrics = run.train_step(state, batch)
    assert metrics["divergence"] == pytest.approx(live[0] / weight, rel=1e-4) and live[0] > 0.1
    norm = np.sqrt(sum(np.square(x / weight).sum() for x in jax.tree.leaves(live[1])))
    assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    again = runs.saved_and_restored(run, new)
    ends = [jax.device_get(run.train_step(one, batch)) for one in (new, again)]
    assert identical(*ends), "a resumed run goes on otherwise"


def test_a_source_of_a_mixture_reads_other_outputs(made, tmp_path):
    stored = {"task.outputs": str(made[0] / "stored")}
    c = of_run(made, tmp_path, **stored)
    c.data.mixture = ConfigDict({"own": {"files": c.data.files, "task": {"soft": 0.5}}})
    c.data.files = ""
    run = setup.prepare(c, tmp_path / "run")
    mixture = setup.training_data(c, run)
    batch, rows = next(setup.train_source(c, run, mixture)), mixture.parts[0].packed
    place = {row.tobytes(): at for at, row in enumerate(np.int32(rows.tokens))}
    for row, tokens in enumerate(np.asarray(batch.tokens)):
        at = place[tokens.tobytes()]
        for name in outputs.FIELDS:
            np.testing.assert_array_equal(batch.more[name][row], rows.extra[name][at])


@pytest.mark.slow
def test_a_run_from_stored_outputs_resumes_otherwise(made, tmp_path):
    c = of_run(made, tmp_path, **{"task.outputs": str(made[0] / "stored"), "checkpoint.every": 2})
    c.task.teacher = ""
    assert loop.train(c, tmp_path / "whole") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "4")
    assert loop.train(c, tmp_path / "half") == 0
    run = setup.prepare(c, paths.resolve(str(tmp_path / "half")))
    whole, half = (
        checkpoints.restore(paths.resolve(str(tmp_path / name)), run.abstract).state
        for name in ("whole", "half")
    )
    assert identical(jax.device_get(whole), jax.device_get(half))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"task.temperature": 2.0}, r"task\.temperature=2\.0: the outputs .* made with 3\.0"),
        ({"task.top_k": 4}, r"task\.top_k=4: .* made with 5"),
        ({"task.teacher": "other"}, r"task\.teacher='other': .* made with"),
        ({"length": 32}, r"are of rows of 16 tokens, and length=32"),
        ({"task.stride": 8}, r"are of other rows \(rows \d+ with CRC-32 .*; the run has rows"),
        ({"model.vocab_size": 384}, r"model\.vocab_size=384, and the outputs .* of 320 tokens"),
        ({"task.outputs": "none"}, r"task\.outputs=none has no outputs\.json: python -m"),
    ],
)
def test_outputs_that_do_not_fit_are_read(made, tmp_path, fields, said):
    c = of_run(made, tmp_path, **{"task.outputs": str(made[0] / "stored"), **fields})
    with pytest.raises(ConfigError, match=said):
        setup.training_data(c, setup.prepare(c, tmp_path / "run"))


def test_damaged_outputs_are_read_and_stay_damaged(made, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(made[0] / "stored", folder / "stored")
    shutil.copy(made[0] / "c.py", folder)
    file = folder / "stored" / "shard-00001" / f"{outputs.LOG_PROBS}.npy"
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    c = of_run(made, tmp_path, **{"task.outputs": str(folder / "stored")})
    of = outputs.about(c.task.outputs)
    other = fingerprint(tokenizers.bytes_only(mask=True))
    with pytest.raises(ConfigError, match="were made with another tokenizer"):
        outputs.load(c.task.outputs, other, of.sequence, 16)
    for content in (whole[:-100], bytes(flipped)):
        file.write_bytes(content)
        if content == whole[:-100]:
            with pytest.raises(ConfigError, match=r"shard-00001.*is not whole \(mmap length"):
                setup.training_data(c, setup.prepare(c, tmp_path / "run"))
        assert teacher_outputs.main(command(folder)) == 0
        assert "shards 1 are damaged: written again" in capsys.readouterr().err
        assert file.read_bytes() == whole
    assert teacher_outputs.main(command(folder)) == 0
    assert "is complete: " in capsys.readouterr().out
    assert teacher_outputs.main(command(folder, "--config.task.top_k=4")) == 2
    assert "has outputs of something else (k 5, now 4)" in capsys.readouterr().err
    manifest = folder / "stored" / outputs.MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 2}))
    with pytest.raises(ConfigError, match="has version 2, expected 1"):
        outputs.about(c.task.outputs)
    manifest.write_text("{")
    with pytest.raises(ConfigError, match=r"outputs\.json cannot be read \(JSONDecodeError"):
        outputs.about(c.task.outputs)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--config.task.top_k=0"], "task.top_k is not set"),
        (["--config.task.top_k=320"], "task.top_k=320: expected fewer than the model's 320"),
        (["--dtype=int8"], "--dtype='int8': expected float32 or float16"),
        (["--config.task.teacher="], "task.teacher is not set"),
        (["--config.task.outputs=elsewhere"], "is another folder than --workdir="),
    ],
)
def test_the_command_takes_what_it_cannot_do(made, capsys, options, said):
    assert teacher_outputs.main(command(made[0], *options)) == 2
    assert said in capsys.readouterr().err
