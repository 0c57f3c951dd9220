"""The newest checkpoint that can be read is used; others are set aside and named, never deleted."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from lm.data import tokenizers
from lm.training import checkpoints
from lm.training.checkpoints import CheckpointError, Checkpoints
from lm.training.state import abstract_state, create_state
from tests.lm.training import small

CONFIG = small.MODEL.replace(n_layers=1, vocab_size=320, eos_token_ids=(0,), rope_scaling=(("factor", 2.0),))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run folder with checkpoints 1, 2 and 3, and its state; the fsdp axis has two devices."""
    workdir = tmp_path_factory.mktemp("saved") / "run"
    model, adamw, _ = small.parts(CONFIG)
    state = create_state(model, adamw, small.mesh_of(1, 2, 1), seed=0)
    checkpoints.save_model(workdir, CONFIG, tokenizers.bytes_only())
    writer = Checkpoints(workdir, keep=3)
    for step in range(4):
        writer.save(step, state.replace(step=state.step + step), {"next_index": step})
    writer.close()
    return workdir, state


@pytest.fixture
def run(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "run")
    return tmp_path / "run"


def abstract(config=CONFIG, shape=(1, 2, 1)):
    model, adamw, _ = small.parts(config)
    return abstract_state(model, adamw, small.mesh_of(*shape))


def damage(folder):
    for file in folder.rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_more_or_fewer_checkpoints_are_kept(run):
    assert checkpoints.steps(run) == [1, 2, 3]


@pytest.mark.parametrize("shape", [(1, 2, 1), (2, 1, 2), (1, 1, 1)])
def test_another_mesh_reads_other_bits(run, saved, shape):
    restored = checkpoints.restore(run, abstract(shape=shape))
    assert (restored.step, restored.data) == (3, {"next_index": 3})
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored.state.params), jax.device_get(saved[1].params))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored.state.opt_state), jax.device_get(saved[1].opt_state))
    assert restored.state.params["embeddings"]["token"].sharding == abstract(shape=shape).params["embeddings"]["token"].sharding


def test_an_empty_or_half_step_stops_the_run(run, caplog):
    (run / "checkpoints" / "9").mkdir()
    shutil.copytree(run / "checkpoints" / "3", run / "checkpoints" / "7")
    shutil.rmtree(run / "checkpoints" / "7" / "data")
    (run / "checkpoints" / "8").write_text("a file")
    (run / "checkpoints" / "10.orbax-checkpoint-tmp").mkdir()
    assert checkpoints.restore(run, abstract()).step == 3
    assert "9 is not used: it is incomplete" in caplog.text and "7 is not used" in caplog.text
    assert (run / "checkpoints" / "7.unreadable" / "state").is_dir(), "a rejected checkpoint was deleted"
    assert checkpoints.steps(run) == [1, 2, 3]


def test_a_damaged_checkpoint_stops_the_run(run, caplog):
    damage(run / "checkpoints" / "3")
    assert checkpoints.restore(run, abstract()).step == 2
    assert "checkpoints/3 is not used" in caplog.text
    writer = Checkpoints(run, keep=3)
    writer.save(3, create_state(*small.parts(CONFIG)[:2], small.mesh_of(1, 2, 1), 0), {})
    writer.close()
    assert checkpoints.steps(run)[-1] == 3, "the step cannot be saved again"


def test_damage_everywhere_begins_again_silently(run):
    for step in (1, 2, 3):
        damage(run / "checkpoints" / str(step))
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read .*Put back a good copy"):
        checkpoints.restore(run, abstract())
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* can be read"):
        checkpoints.load_params(run)
    assert checkpoints.steps(run) == [1, 2, 3], "nothing may be moved when nothing is used"


def test_no_checkpoint_is_an_error(tmp_path):
    assert checkpoints.restore(tmp_path, abstract()) is None


def test_arrays_of_another_model_or_dtype_are_cast_silently(run):
    with pytest.raises(
        CheckpointError, match=r"params/layers/mlp/up: float32\[1, 32, 64\] in the checkpoint, float32\[1, 32, 48\] expected"
    ):
        checkpoints.restore(run, abstract(CONFIG.replace(d_ff=48)))
    with pytest.raises(
        CheckpointError, match=r"params/embeddings/token: float32\[320, 32\] in the checkpoint, bfloat16\[320, 32\] expected"
    ):
        checkpoints.restore(run, abstract(CONFIG.replace(param_dtype="bfloat16")))


def test_a_run_folder_alone_is_not_enough_to_load(run, saved):
    model, params, tokenizer = checkpoints.load_params(run)
    assert model.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(saved[1].params))
    assert len(tokenizer) == 257
    assert jax.tree.structure(params) == jax.tree.structure(checkpoints.load_params(run, step=1)[1])


def test_what_cannot_be_loaded_is_not_named(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5; it has 1, 2, 3"):
        checkpoints.load_params(run, step=5)
    with pytest.raises(CheckpointError, match="is not a run folder"):
        checkpoints.load_params(tmp_path / "nowhere")


def test_another_model_is_accepted_in_a_run(run):
    checkpoints.check_model(run, CONFIG)
    checkpoints.check_model(run, dataclasses.replace(CONFIG, remat="full", dtype="bfloat16"))
    with pytest.raises(CheckpointError, match=r"model.n_heads: 4 in the run, 2 now\n.*another --workdir"):
        checkpoints.check_model(run, CONFIG.replace(n_heads=2))


def test_a_failed_write_is_not_reported(run, monkeypatch):
    writer = Checkpoints(run, keep=3)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer._manager, "save", full)
    with pytest.raises(CheckpointError, match=r"could not be written .*No space left.*last one there is step 3"):
        writer.save(4, create_state(*small.parts(CONFIG)[:2], small.mesh_of(1, 2, 1), 0), {})
    writer.close()
