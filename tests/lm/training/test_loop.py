"""A run: its folder, its end, signals, another mesh, a loss that is not finite."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import lm
from lm.data import tokenizers
from lm.evaluation.harness import Harness
from lm.training import checkpoints, loop, trackers
from lm.weights.loading import load
from lm.weights.runs import steps
from lm.weights.runs import weights as run_weights
from retrieval.doors.in_context import build_prompt
from tests.lm.training import runs, two_processes

EVAL = {"eval.every": 6}


def losses(workdir):
    return [
        (row["step"], {k: v for k, v in row.items() if "loss" in k})
        for row in trackers.read(workdir)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(folder):
    """(workdir, number of compilations at each row) of an uninterrupted run."""
    compiled, seen = [], {}
    listen = lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    write = trackers.Trackers.write

    def count(self, row):
        seen.setdefault(row["step"], len(compiled))
        write(self, row)

    with pytest.MonkeyPatch.context() as m:
        m.setattr(trackers.Trackers, "write", count)
        c = runs.config(
            folder, **EVAL, **{"log.tensorboard": True, "samples.prompts": ("The 3", "")}
        )
        c.eval.data.heldout = runs.text(folder, "held.txt")
        assert loop.train(c, folder / "whole") == 0
    jax.monitoring.clear_event_listeners()
    return folder / "whole", seen


@pytest.fixture(scope="module")
def stopped(folder):
    """A run of the same config that got SIGTERM during its fifth step."""
    write = trackers.Trackers.write

    def interrupt(self, row):
        write(self, row)
        if row["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    c = runs.config(folder, **EVAL)
    c.eval.data.heldout = runs.text(folder, "held.txt")
    with pytest.MonkeyPatch.context() as m:
        m.setattr(trackers.Trackers, "write", interrupt)
        assert loop.train(c, folder / "stopped") == 128 + signal.SIGTERM
    return folder / "stopped", c


def test_the_run_folder_lacks_a_file(whole):
    workdir, _ = whole
    assert json.loads((workdir / "config.json").read_text())["optimizer"]["warmup"] == 2
    environment = json.loads((workdir / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__ and len(environment["devices"]) == 8
    status = json.loads((workdir / "status.json").read_text())
    assert (status["state"], status["step"], status["steps"]) == ("done", 12, 12)
    assert (workdir / "plots" / "loss.png").stat().st_size > 1000
    assert list((workdir / "tensorboard").iterdir())
    assert (
        "## step 12" in (workdir / "samples.md").read_text()
        and "**The 3**" in (workdir / "samples.md").read_text()
    )
    rows = trackers.read(workdir)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
    assert [row["step"] for row in rows if "eval/heldout/bits_per_byte" in row] == [6, 12]
    assert rows[-2]["tokens_per_second"] > 0 and rows[0]["loss"] == pytest.approx(
        np.log(320), rel=0.05
    )
    assert rows[-2]["loss"] < rows[0]["loss"]


def test_the_step_compiles_again_after_warm_up(whole):
    _, compilations = whole
    assert compilations[2] == compilations[3]  # the first checkpoint, at step 4, compiles copies
    assert compilations[7] == compilations[11], (
        "evaluation or a checkpoint makes the step compile again"
    )


def test_a_finished_run_trains_on(whole, folder, capsys):
    workdir, _ = whole
    before = losses(workdir)
    assert loop.train(runs.config(folder, **EVAL), workdir) == 0
    assert "nothing to train" in capsys.readouterr().out
    assert losses(workdir) == before


def test_a_signal_loses_a_step_or_repeats_one(whole, stopped, folder):
    workdir, c = stopped
    assert json.loads((workdir / "status.json").read_text())["state"] == "stopped"
    at = checkpoints.steps(workdir)[-1]
    assert at in (5, 6)
    shutil.copytree(workdir, folder / "resumed")
    assert loop.train(c, folder / "resumed") == 0
    assert losses(folder / "resumed") == losses(whole[0])
    ours, theirs = (run_weights.load_params(d)[1] for d in (folder / "resumed", whole[0]))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    "mesh",
    [
        {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2, "accumulate": 2},
        pytest.param({"mesh.data": 2, "mesh.sequence": 4}, marks=pytest.mark.slow),
    ],
)
def test_a_run_cannot_continue_on_another_mesh(whole, stopped, folder, mesh):
    workdir = folder / "-".join(mesh)
    shutil.copytree(stopped[0], workdir)
    c = stopped[1].copy_and_resolve_references()
    c.update_from_flattened_dict(mesh)
    assert loop.train(c, workdir) == 0
    for (step, ours), (also, theirs) in zip(losses(workdir), losses(whole[0]), strict=True):
        assert step == also
        assert ours == pytest.approx(theirs, abs=2e-4)


def test_a_run_continues_with_another_model(stopped, folder):
    c = stopped[1].copy_and_resolve_references()
    c.model.d_ff = 48
    with pytest.raises(checkpoints.CheckpointError, match=r"model.d_ff: 32 in the run, 48 now"):
        loop.train(c, stopped[0])


def test_a_resumed_run_reads_other_rows_in_silence(stopped, folder, capsys):
    shutil.copytree(stopped[0], folder / "others")
    kept, at = (folder / "others" / "config.json").read_bytes(), checkpoints.steps(stopped[0])[-1]
    c = stopped[1].copy_and_resolve_references()
    c.seed = 5
    with pytest.raises(
        checkpoints.CheckpointError, match=r"seed: 0 -> 5\nuse .*--config.resume.allow=seed"
    ):
        loop.train(c, folder / "others")
    assert (folder / "others" / "config.json").read_bytes() == kept, (
        "the next start would find nothing changed"
    )
    c.update_from_flattened_dict(
        {"resume.allow": "seed", "batch_size": 16, "steps": at + 1, "eval.every": 0}
    )
    c.eval.data.heldout = ""
    assert loop.train(c, folder / "others") == 0
    assert "resume.allow says: seed: 0 -> 5" in capsys.readouterr().out
    saved = steps.saved_with(folder / "others" / "checkpoints" / str(at + 1))
    assert (
        saved["data"]["rows"] == at * 8 + 16 == trackers.read(folder / "others")[-1]["tokens"] // 16
    )


def test_a_loss_that_is_not_a_number_goes_on(folder):
    c = runs.config(
        folder,
        **{
            "optimizer.learning_rate": 1e30,
            "optimizer.clip": 0.0,
            "optimizer.warmup": 0,
            "checkpoint.every": 1,
        },
    )
    said = (
        r"is (nan|inf) at step 2: stopped. No checkpoint is from before it; step 1, which led to "
        r"it, is kept as 1.diverged; try an"
    )
    with pytest.raises(loop.TrainingError, match=said):
        loop.train(c, folder / "nan")
    assert (
        checkpoints.steps(folder / "nan") == []
        and (folder / "nan" / "checkpoints" / "1.diverged" / "state").is_dir()
    )
    assert [row["step"] for row in trackers.read(folder / "nan")] == [1]
    status = json.loads((folder / "nan" / "status.json").read_text())
    assert status["state"] == "failed" and "step 2" in status["error"]


def test_weights_to_start_from_are_not_used(whole, folder):
    c = runs.config(
        folder, **{"init_from": str(whole[0]), "steps": 1, "tokenizer": "", "optimizer.warmup": 0}
    )
    assert loop.train(c, folder / "continued") == 0
    first, last = losses(folder / "continued")[0][1]["loss"], losses(whole[0])[-2][1]["loss"]
    assert first < last + 0.5 < losses(whole[0])[0][1]["loss"]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_starts_elsewhere_if_its_layers_are_kept_otherwise(whole, folder, rank):
    """From a run with stacked layers to one with separate ones, and from that one back."""
    start, found = str(whole[0]), []
    for number, layers in enumerate(("scan", "separate", "scan")):
        changes = {"init_from": start, "steps": 1, "tokenizer": "", "optimizer.warmup": 0}
        changes |= {"model.layers": layers, "adaptation.lora.rank": rank}
        changes |= {"optimizer.learning_rate": 1e-9}  # the next begins where this one did
        run = folder / f"layers-{rank}-{number}"
        assert loop.train(runs.config(folder, **changes), run) == 0
        start = str(run)
        found.append(losses(run)[0][1]["loss"])
    assert found == pytest.approx([found[0]] * 3, abs=1e-4)
    assert found[0] < losses(whole[0])[0][1]["loss"] - 0.5


def test_two_processes_end_elsewhere_than_one_or_stop_apart(whole, folder):
    """Ctrl-C in one process, or in both, stops both at the same verified step with code 130.

    Resumed, they end as a single process does, and what they draw with a hook that looks on the
    host is what a single process draws.
    """
    env = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    argv = [sys.executable, "-m", "tests.lm.training.two_processes", str(folder)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=600)
    assert done.stdout.splitlines()[-1] == "[130, 130] [130, 130] [0, 0]", done.stdout + done.stderr
    assert "Ctrl-C: still training, which has to end first, then the run is saved" in done.stderr
    assert "cannot be verified" not in done.stderr
    said = "\n".join(re.findall("^(?:stopped|continuing).*", done.stdout, re.MULTILINE))
    stops, resumes = (
        re.findall(r"SIGINT at step (\d+)", said),
        re.findall(r"after step (\d+)", said),
    )
    assert len(stops) == 2 and resumes == stops, done.stdout
    for (step, ours), (also, theirs) in zip(losses(folder / "two"), losses(whole[0]), strict=True):
        assert step == also and ours == pytest.approx(theirs, abs=1e-6)
    (model, ours, _), (_, theirs, _) = map(run_weights.load_params, (folder / "two", whole[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), ours, theirs)
    text = (folder / "two" / "samples.md").read_text()
    assert f"**drawn**{two_processes.drawn(model, ours)}" in text, text


def test_a_prompt_begins_unlike_the_documents_of_training(whole, monkeypatch, tmp_path):
    """The bytes tokenizer adds no start token; training starts every document with token 0."""
    model, params, tokenizer = load(str(whole[0]))
    ids, asked = [0, *tokenizers.bytes_only().encode("The 3")], []
    assert np.load(next((whole[0].parent / "cache").rglob("tokens.npy")))[0, 0] == 0
    assert Harness(model, params, tokenizer).tok_encode("The 3") == ids
    assert build_prompt(tokenizer, "Who?", (), 64).tokens[0] == 0
    command = importlib.import_module("lm.generate")
    monkeypatch.setattr("lm.weights.loading.load", lambda *_: (model, params, tokenizer))
    monkeypatch.setattr(
        "lm.generation.stream_text", lambda *given, **_: asked.append(given[3]) or iter(())
    )
    assert command.main([f"--model={whole[0]}", "--prompt=The 3"]) == 0 and asked == [ids]
    wanted = lm.generate(model, params, [ids], 6)
    assert lm.generate_text(model, params, tokenizer, ["The 3"], 6) == [
        tokenizer.decode(wanted[0], skip_special_tokens=True)
    ]
    lm.to_hf(model, params, tmp_path / "out", tokenizer)
    assert lm.load_tokenizer(tmp_path / "out").encode("The 3") == ids


def test_a_run_from_before_this_was_kept_begins_prompts_otherwise(whole, tmp_path):
    old = shutil.copytree(
        whole[0], tmp_path / "old", ignore=shutil.ignore_patterns("cache", "tensorboard")
    )
    tokenizers.bytes_only().save_pretrained(old / "model" / "tokenizer")
    (old / "digests-0-of-1").unlink()  # from a later version
    config = json.loads((old / "config.json").read_text())
    config["objective"] = objective = {"name": config.pop("task")["name"]}
    del config["format"]
    (old / "config.json").write_text(json.dumps(config))
    assert load(str(old))[2].encode("a") == [0, *tokenizers.bytes_only().encode("a")]
    objective["name"] = "instruct"
    (old / "config.json").write_text(json.dumps(config))
    assert load(str(old))[2].encode("a") == tokenizers.bytes_only().encode("a")
