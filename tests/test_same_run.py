"""tests.same_run reports a difference of one bit, and none between equal results.

The tests run real processes on a tiny job.
"""

import dataclasses
import json
import math
import os
import shutil

import pytest

from configs import smoke
from tests.same_run import compare, jobs, processes, record, worker
from tests.same_run.__main__ import main

SHORT = {"steps": 2, "eval.every": 2, "checkpoint.every": 2}
TINY = jobs.smoke("next_token,gpt2", "tiny", changes=SHORT)
SEEDED = dataclasses.replace(TINY, name="seeded", changes=TINY.changes | {"seed": 1})
SMOOTHED = dataclasses.replace(
    TINY, name="smoothed", changes=TINY.changes | {"task.label_smoothing": 0.1}
)
BROKEN = dataclasses.replace(TINY, name="broken", variant="next_token,gtp2")


@pytest.fixture(autouse=True, scope="module")
def fast_compilation():
    """Compile for one device with the flags of the tests: what is computed does not matter."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "XLA_FLAGS", flags)
        patch.setitem(processes.SETTINGS, "XLA_FLAGS", flags)
        yield


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Record of this checkout, and the folder of its results."""
    folder = tmp_path_factory.mktemp("same_run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "JOBS", [TINY, SEEDED, SMOOTHED])
        command = ["--record", str(folder / "record.json"), "--keep", str(folder / "kept")]
        assert main(command) == 0
    return folder / "record.json", folder / "kept"


def judged(recorded, tmp_path, values):
    """Compare the recorded result of the tiny job with one that has these values."""
    here, there = processes.Side(tmp_path, recorded[1] / "here"), processes.Side(tmp_path, tmp_path)
    there.write(TINY.name, {"values": values, "seconds": 1.0})
    return compare.judged(TINY, here, there, tmp_path / "differences")


def values(recorded, job=TINY):
    return json.loads(recorded[0].read_text())["jobs"][job.name]["values"]


def test_a_checkout_differs_from_itself_or_a_failure_is_not_named(recorded, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "JOBS", [TINY, BROKEN])
    assert main([str(recorded[0]), "--keep", str(shutil.copytree(*_copied(recorded)))]) == 1
    said = capsys.readouterr().out
    assert f"1/2  {TINY.name}" in said and " same " in said and "DIFFERS" not in said
    assert "lm.train ended with exit code 2" in said


def _copied(recorded):
    return recorded[1], recorded[1].with_name("copy")  # with its compiled programs


@pytest.mark.parametrize(("job", "step"), [(SEEDED, 1), (SMOOTHED, 1)], ids=lambda x: str(x)[:4])
def test_another_seed_or_loss_is_not_seen(recorded, tmp_path, job, step):
    found = judged(recorded, tmp_path, values(recorded, job))
    assert found.verdict == compare.DIFFERS and found.said.startswith(f"step {step} loss: ")
    assert repr(values(recorded)["step 1 loss"]) in found.said
    everything = (tmp_path / "differences" / f"{TINY.name}.txt").read_text()
    assert {"step 2 gradient_norm", "step 2 eval/heldout/loss", "parameters"} <= {
        *everything.splitlines()
    }


@pytest.mark.parametrize("name", ["step 2 weight", "step 2 eval/heldout/loss"])
def test_one_bit_of_one_value_is_not_seen(recorded, tmp_path, name):
    altered = values(recorded)
    altered[name] = math.nextafter(altered[name], math.inf)
    found = judged(recorded, tmp_path, altered)
    assert found.verdict == compare.DIFFERS and found.said.startswith(f"{name}: ")
    del altered[name]
    assert "there" in judged(recorded, tmp_path, altered).said
    assert judged(recorded, tmp_path, values(recorded)).verdict == compare.SAME


def test_a_record_of_another_machine_or_job_is_compared(recorded, tmp_path, monkeypatch, capsys):
    content = json.loads(recorded[0].read_text())
    monkeypatch.setattr(jobs, "JOBS", [dataclasses.replace(TINY, changes=SHORT | {"steps": 3})])
    side = processes.Side(tmp_path, tmp_path / "there")
    record.unpack(recorded[0], content, side, jobs.JOBS)
    assert "record again" in side.result(TINY.name)["failed"]
    content["machine"]["jaxlib"] = "0.1"
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert main([str(tmp_path / "old.json")]) == 2
    said = capsys.readouterr().err
    assert "jaxlib is" in said and "'0.1' there" in said and "record it again" in said


def test_an_archive_of_another_record_is_unpacked(recorded, tmp_path):
    file = shutil.copy(recorded[0], tmp_path)
    content = json.loads(recorded[0].read_text())
    side = processes.Side(tmp_path, tmp_path / "there")
    with pytest.raises(record.RecordError, match="missing"):
        record.unpack(tmp_path / "record.json", content, side, [TINY])
    record.archive_of(tmp_path / "record.json").write_bytes(b"")
    with pytest.raises(record.RecordError, match="was not written with"):
        record.unpack(tmp_path / "record.json", content, side, [TINY])
    assert file


def test_names_in_a_program_count_or_what_it_computes_does_not():
    program = (
        "module @jit_step attributes {mhlo.num_partitions = 8 : i32} {\n"
        '  func.func public @main(%arg0: tensor<2xf32> {jax.arg_info = "state.step", '
        "tf.aliasing_output = 0 : i32}) {\n"
        '    %0 = call @relu(%arg0) : (tensor<2xf32>) -> tensor<2xf32> loc("a.py":3:1)\n'
        "    %1 = stablehlo.custom_call @Sharding(%0)\n  }\n"
        "  func.func private @relu(%arg0: tensor<2xf32>) {\n  }\n}\n#loc = loc(unknown)\n"
    )
    plain = worker.normalised(program)
    renamed = program.replace("relu", "relu_1").replace("jit_step", "jit_update")
    renamed = renamed.replace("state.step", "step").replace("a.py", "b.py")
    assert worker.normalised(renamed) == plain and "loc" not in plain and "@Sharding" in plain
    assert worker.normalised(program.replace("2xf32", "3xf32")) != plain
    assert worker.normalised(program.replace("Sharding", "Other")) != plain


def test_a_task_has_no_job_or_a_job_misses_what_it_needs():
    assert {job.variant.partition(",")[0] for job in jobs.JOBS} >= {*smoke.BELOW}
    before: dict[str, str] = {}
    for job in jobs.JOBS:
        assert job.name not in before
        for name in (job.start, *job.needs):
            assert not name or before[name] == job.process, f"{job.name} needs {name} before it"
        before[job.name] = job.process
    only = [job.name for job in jobs.chosen("*-lora-kl", jobs.JOBS)]
    assert only == ["instruct-llama", "instruct-llama-lora-kl"]


def test_the_environments_of_two_checkouts_differ(tmp_path):
    inherited = {"XLA_FLAGS": "--other", "JAX_ENABLE_X64": "1", "PYTHONPATH": "/x", "HOME": "/home"}
    sides = [processes.Side(tmp_path / name, tmp_path / f"of-{name}") for name in ("a", "b")]
    found = [processes.environment(side, inherited) for side in sides]
    same = {name for name in found[0] if found[0][name] == found[1].get(name)}
    assert {*found[0]} - same == {"PYTHONPATH", "JAX_COMPILATION_CACHE_DIR"}
    assert found[0]["HOME"] == "/home" and "JAX_ENABLE_X64" not in found[0]
    assert found[0]["XLA_FLAGS"] == processes.XLA_FLAGS
