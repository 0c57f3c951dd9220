"""The newest readable checkpoint is used; damaged ones are set aside and named, never deleted."""

import dataclasses
import json
import random
import shutil

import jax
import numpy as np
import pytest

from lm.data import tokenizers
from lm.models.config import ConfigError
from lm.training import checkpoints
from lm.training.checkpoints import CheckpointError, Checkpoints
from lm.training.state import abstract_state, create_state
from lm.weights.runs import digests, model_files
from lm.weights.runs import steps as step_folders
from lm.weights.runs import weights as run_weights
from tests.lm.training import small

CONFIG = small.MODEL.replace(
    n_layers=1, vocab_size=320, eos_token_ids=(0,), rope_scaling=(("factor", 2.0),)
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run folder with checkpoints 1, 2 and 3, and its state; the fsdp axis has two devices."""
    workdir = tmp_path_factory.mktemp("saved") / "run"
    model, adamw, _ = small.parts(CONFIG)
    state = create_state(model, adamw, small.mesh_of(1, 2, 1), seed=0)
    model_files.save_model(workdir, CONFIG, tokenizers.bytes_only())
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
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(restored.state.params),
        jax.device_get(saved[1].params),
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(restored.state.opt_state),
        jax.device_get(saved[1].opt_state),
    )
    assert (
        restored.state.params["embeddings"]["token"].sharding
        == abstract(shape=shape).params["embeddings"]["token"].sharding
    )


def test_an_empty_or_half_step_stops_the_run(run, caplog):
    (run / "checkpoints" / "9").mkdir()
    shutil.copytree(run / "checkpoints" / "3", run / "checkpoints" / "7")
    shutil.rmtree(run / "checkpoints" / "7" / "data")
    (run / "checkpoints" / "8").write_text("a file")
    (run / "checkpoints" / "10.orbax-checkpoint-tmp").mkdir()
    assert checkpoints.restore(run, abstract()).step == 3
    assert "9 is not used: it is incomplete" in caplog.text and "7 is not used" in caplog.text
    assert (run / "checkpoints" / "7.unreadable" / "state").is_dir(), (
        "a rejected checkpoint was deleted"
    )
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
    with pytest.raises(
        CheckpointError, match=r"no checkpoint in .* can be read .*Put back a good copy"
    ):
        checkpoints.restore(run, abstract())
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* can be read"):
        run_weights.load_params(run)
    assert checkpoints.steps(run) == [1, 2, 3], "nothing may be moved when nothing is used"


def test_no_checkpoint_is_an_error(tmp_path):
    assert checkpoints.restore(tmp_path, abstract()) is None


def test_arrays_of_another_model_or_dtype_are_cast_silently(run):
    with pytest.raises(
        CheckpointError,
        match=(
            r"params/layers/mlp/up: float32\[1, 32, 64\] in the checkpoint, float32\[1, 32, 48\] "
            r"expected"
        ),
    ):
        checkpoints.restore(run, abstract(CONFIG.replace(d_ff=48)))
    with pytest.raises(
        CheckpointError,
        match=(
            r"params/embeddings/token: float32\[320, 32\] in the checkpoint, bfloat16\[320, 32\] "
            r"expected"
        ),
    ):
        checkpoints.restore(run, abstract(CONFIG.replace(param_dtype="bfloat16")))


def test_a_run_folder_alone_is_not_enough_to_load(run, saved):
    model, params, tokenizer = run_weights.load_params(run)
    assert model.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(saved[1].params))
    assert len(tokenizer) == 257
    assert jax.tree.structure(params) == jax.tree.structure(run_weights.load_params(run, step=1)[1])


def test_what_cannot_be_loaded_is_not_named(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5; it has 1, 2, 3"):
        run_weights.load_params(run, step=5)
    with pytest.raises(CheckpointError, match="is not a run folder"):
        run_weights.load_params(tmp_path / "nowhere")


def test_another_model_is_accepted_in_a_run(run):
    model_files.check_model(run, CONFIG)
    model_files.check_model(
        run, dataclasses.replace(CONFIG, remat="full", attention_backend="chunked")
    )
    with pytest.raises(
        CheckpointError, match=r"model.n_heads: 4 in the run, 2 now\n.*another --workdir"
    ):
        model_files.check_model(run, CONFIG.replace(n_heads=2))


def test_a_failed_write_is_not_reported(run, monkeypatch):
    writer = Checkpoints(run, keep=3)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer._manager, "save", full)
    with pytest.raises(
        CheckpointError, match=r"could not be written .*No space left.*last one there is step 3"
    ):
        writer.save(4, create_state(*small.parts(CONFIG)[:2], small.mesh_of(1, 2, 1), 0), {})
    writer.close()


def flip(file, bit):
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_a_flipped_bit_is_read_as_another_number(run, caplog):
    step = run / "checkpoints" / "3"
    files = [file for file in step.rglob("*") if file.is_file()]
    draw, silent = random.Random(0), []
    assert digests.problems(step) == []
    for number in range(500):
        file = files[number % len(files)]
        bit = draw.randrange(8 * file.stat().st_size)
        flip(file, bit)
        if not digests.problems(step):
            silent.append((file, bit))
        flip(file, bit)
    assert not silent and digests.problems(step) == []
    arrays = max(files, key=lambda file: file.stat().st_size)
    flip(arrays, 999)
    assert run_weights.load_params(run) and "checkpoints/3 is not used" in caplog.text
    with pytest.raises(CheckpointError, match=rf"step 3: .*{arrays.name} differs from its digest"):
        run_weights.load_params(run, step=3)
    restored = checkpoints.restore(run, abstract())
    assert (restored.step, restored.data) == (2, {"next_index": 2})
    assert (run / "checkpoints" / "3.unreadable" / "data").is_dir()


def test_damaged_digests_reject_a_good_step_in_silence(run):
    for step in (1, 2, 3):
        flip(run / "checkpoints" / str(step) / "digests-0-of-1", 100)
    with pytest.raises(
        CheckpointError,
        match=r"3: digests-0-of-1 is damaged.*delete it to use the other files as they are",
    ):
        checkpoints.restore(run, abstract())
    (run / "checkpoints" / "3" / "digests-0-of-1").unlink()
    assert checkpoints.restore(run, abstract()).step == 3


def test_a_step_of_an_earlier_version_is_refused_or_taken_for_verified(run, saved, caplog):
    step = run / "checkpoints" / "3"
    (step / "digests-0-of-1").unlink()
    (step / "data" / "metadata").write_text(json.dumps({"next_index": 3}))
    restored = checkpoints.restore(run, abstract())
    assert (restored.step, restored.data) == (
        3,
        {"next_index": 3},
    ) and "3 cannot be verified: it has no digests" in caplog.text
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.device_get(restored.state.params),
        jax.device_get(saved[1].params),
    )


def test_a_step_of_another_run_or_under_another_number_is_used(run, saved, tmp_path, caplog):
    other = tmp_path / "other"
    writer = Checkpoints(other, keep=1)
    writer.save(7, saved[1].replace(step=saved[1].step + 7), {"next_index": 7})
    writer.close()
    shutil.copytree(other / "checkpoints" / "7", run / "checkpoints" / "7")
    for name in ("²", "٣", "007", "9"):
        shutil.copytree(run / "checkpoints" / "3", run / "checkpoints" / name)
    assert checkpoints.restore(run, abstract()).step == 3
    assert (
        "7 is not used: it is of another run" in caplog.text
        and "9 is not used: it was saved as step 3" in caplog.text
    )
    assert "² is not used: its name is not a step number" in caplog.text and checkpoints.steps(
        run
    ) == [1, 2, 3]
    assert all(
        (run / "checkpoints" / f"{name}.unreadable").is_dir()
        for name in ("7", "9", "²", "٣", "007")
    )


def test_a_run_that_lost_its_id_takes_its_steps_for_another_run_s(run, caplog):
    its = step_folders.saved_with(run / "checkpoints" / "3")["run"]
    for damage in (
        lambda file: flip(file, 100),
        lambda file: file.write_text("["),
        lambda file: file.unlink(),
    ):
        damage(run / "run.json")
        assert step_folders.run_id(run) == its
    assert caplog.text.count("run.json is damaged") == 2
    assert step_folders.keep_run_id(run) == its and '"crc32"' in (run / "run.json").read_text()


@pytest.mark.parametrize("name", ["model/config.json", "model/tokenizer/tokenizer.json"])
def test_a_damaged_description_of_the_weights_is_believed(run, name):
    whole = (run / name).read_bytes()
    flip(run / name, whole.index(b"2") * 8)  # changes the digit 2 to 3
    with pytest.raises(CheckpointError, match=f"{name} differs from its digest. Put back"):
        run_weights.load_params(run)
    (run / name).write_bytes(whole[:40])
    with pytest.raises(CheckpointError, match=f"{name} has 40 bytes"):
        run_weights.load_params(run)
    (run / "digests-0-of-1").unlink()
    with pytest.raises(CheckpointError, match=r"damaged: it is not JSON|tokenizer cannot be read"):
        run_weights.load_params(run)


def test_a_truncated_model_config_stops_a_run_with_a_stack_trace(run):
    (run / "model" / "config.json").write_text('{"family": "ll')
    with pytest.raises(CheckpointError, match=r"model/config\.json is damaged: it is not JSON"):
        model_files.check_model(run, CONFIG)


def test_processes_that_share_the_digests_disagree(run, monkeypatch):
    monkeypatch.setattr(digests, "PIECE", 1000)
    step = run / "checkpoints" / "3"
    (step / "digests-0-of-1").unlink()
    digests.write(step, 0, 2)
    assert digests.problems(step) is None, "one share is taken for the whole"
    digests.write(step, 1, 2)
    assert digests.problems(step) == digests.problems(step, 0, 3) == []
    flip(max((file for file in step.rglob("d/*")), key=lambda file: file.stat().st_size), 20_001)
    assert sorted(bool(digests.problems(step, part, 3)) for part in range(3)) == [
        False,
        False,
        True,
    ]


def test_a_run_s_path_with_a_pattern_is_found_out_when_it_is_done(tmp_path):
    for name in ("a[1]", "a*", "a?b", "a\\b"):
        with pytest.raises(ConfigError, match="a run folder cannot have any of"):
            checkpoints.steps(tmp_path / name)
    assert checkpoints.steps(tmp_path / "-ü %20 #{b}]. ") == []


def test_a_saved_step_is_not_read_back(saved, tmp_path):
    state = saved[1]
    writer = Checkpoints(tmp_path / " ü%20#{b}].", keep=3)
    writer.save(0, state, {})
    writer.verify(state)
    damage(tmp_path / " ü%20#{b}]." / "checkpoints" / "0")
    with pytest.raises(
        CheckpointError, match=r"checkpoints/0 was saved and cannot be restored: .* bytes, not"
    ):
        writer.verify(state)
    writer.close()
