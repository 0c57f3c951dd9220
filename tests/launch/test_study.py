"""A study: stages run in order, finished ones are not repeated, failures are reported."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch.chain import run_chain
from launch.stages import Stage, digest, digest_by_files, load_study, resolved
from launch.study import main

ROOT = Path(__file__).parents[2]
TOOL = "tests.launch.tool"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def stage(name: str, **more) -> dict:
    """A stage that logs itself and writes {workdir}/<name>."""
    args = {"log": "log", "write": f"{{workdir}}/{name}", **more.pop("args", {})}
    return {
        "name": name,
        "module": TOOL,
        "args": args,
        "outputs": (f"{{workdir}}/{name}",),
        "seconds": 1,
        **more,
    }


def write(*stages: dict, **fields) -> str:
    """Write study.py, a config as users write it; return its name."""
    config = {"name": "trial", **fields}
    lines = [
        "import ml_collections",
        "def get_config():",
        f"    c = ml_collections.ConfigDict({config!r})",
    ]
    Path("study.py").write_text(
        "\n".join([*lines, f"    c.stages = {tuple(stages)!r}", "    return c", ""])
    )
    return "study.py"


def study(*argv: str) -> int:
    return main(["--config=study.py", *argv], allowed=("tests.",))


def ran() -> list[str]:
    """Return the stages that ran since the last call."""
    log = Path("log")
    names = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return names


def record(workdir: str = "runs/trial") -> dict:
    return json.loads(Path(workdir, "study.json").read_text())


def status(workdir: str = "runs/trial") -> list[str]:
    return [entry["status"] for entry in record(workdir)["stages"]]


def start(
    *argv: str, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=None
) -> subprocess.Popen[str]:
    code = (
        "import sys; from launch.study import main; sys.exit(main(sys.argv[1:], "
        "allowed=('tests.',)))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, "--config=study.py", *argv],
        stdout=stdout,
        stderr=stderr,
        env=env,
        text=True,
    )


def wait_for(condition) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_stages_run_out_of_order_or_are_not_recorded(place, capfd):
    write(stage("a"), stage("b", inputs=("{workdir}/a",), about="the second"))
    assert study() == 0
    assert ran() == ["a", "b"]
    got = record()
    assert got["study"] == "trial" and got["state"] == "done" and got["seconds"] > 0
    b = got["stages"][1]
    assert b["command"] == f"python -m {TOOL} --log=log --write=runs/trial/b"
    assert (b["name"], b["status"], b["returncode"], b["bytes"], b["outputs"]) == (
        "b",
        "done",
        0,
        5,
        ["runs/trial/b"],
    )
    assert b["about"] == "the second" and b["seconds"] > 0
    assert "terminal: False False" in Path("runs/trial/logs/b.log").read_text()
    assert "2/2 b" in capfd.readouterr().out


def test_a_finished_stage_runs_again(place, capfd):
    write(stage("a"), stage("b", inputs=("{workdir}/a",)))
    assert study() == 0 and ran() == ["a", "b"]
    assert study() == 0 and ran() == []
    assert capfd.readouterr().out.count("done earlier") == 2


def changed_command():
    write(stage("a", args={"say": "new"}), stage("b", inputs=("{workdir}/a", "given")), stage("c"))


def changed_input():
    Path("given").write_text("new")


def lost_output():
    Path("runs/trial/b").unlink()


def changed_output():
    Path("runs/trial/b").write_text("changed")


@pytest.mark.parametrize(
    "change, again",
    [
        (changed_command, ["a", "b"]),
        (changed_input, ["b"]),
        (lost_output, ["b"]),
        (changed_output, ["b"]),
    ],
)
def test_a_change_is_not_noticed_or_runs_too_much(place, change, again):
    write(stage("a"), stage("b", inputs=("{workdir}/a", "given")), stage("c"))
    Path("given").write_text("old")
    assert study() == 0 and ran() == ["a", "b", "c"]
    change()
    assert study() == 0 and ran() == again


def test_a_changed_config_of_a_stage_is_not_noticed(place):
    Path("train.py").write_text("steps = 1\n")
    tool = {"name": "a", "module": "tests.launch.configured", "args": {"config": "train.py:tiny"}}
    before = load_study(write(tool), allowed=("tests.",)).stages[0]
    first = digest(before)
    assert digest(before) == first
    Path("train.py").write_text("steps = 2\n")
    assert digest(before) != first


CONFIGURED = """import sys
from common import STEPS
def get_config(variant="none"):
    print("a config may print")
    return dict(steps=STEPS, variant=variant)
"""


def test_what_a_config_says_is_not_what_counts(place):
    """A file that it imports, its variant, and its two names count; a comment does not."""
    Path("train.py").write_text(CONFIGURED)
    Path("common.py").write_text("STEPS = 1\n")
    ways = (["--config", "train.py"], ["--config=train.py"], ["--config", "train.py:tiny"])
    stages = [Stage(name="a", module="lm.train", args=tuple(args)) for args in ways]
    assert resolved("train.py", ["train.py:tiny"]) == '{"steps": 1, "variant": "none"}'
    assert resolved("train.py:tiny") == '{"steps": 1, "variant": "tiny"}'
    before = [digest(stage) for stage in stages]
    Path("train.py").write_text("# a comment\n" + CONFIGURED)
    assert [digest(stage) for stage in stages] == before
    Path("common.py").write_text("STEPS = 22\n")
    assert not set(before) & {digest(stage) for stage in stages}


def test_a_record_from_before_configs_were_resolved_runs_again(place, monkeypatch):
    Path("train.py").write_text("STEPS = 1\ndef get_config():\n    return dict(steps=STEPS)\n")
    write(stage("a", args={"config": "train.py"}))
    with monkeypatch.context() as m:
        m.setattr("launch.chain.digest", digest_by_files)
        assert study() == 0 and ran() == ["a"]
    assert study() == 0 and ran() == []
    Path("train.py").write_text("STEPS = 22\ndef get_config():\n    return dict(steps=STEPS)\n")
    assert study() == 0 and ran() == ["a"]


def test_a_directory_that_later_stages_add_to_is_made_again(place):
    memory = stage(
        "memory", args={"write": "{workdir}/memory/passages"}, outputs=("{workdir}/memory",)
    )
    edit = stage(
        "edit", args={"write": "{workdir}/memory/edits"}, inputs=("{workdir}/memory",), outputs=()
    )
    write(memory, stage("ask", inputs=("{workdir}/memory",)), edit)
    assert study() == 0 and ran() == ["passages", "ask", "edits"]
    assert study() == 0 and ran() == []


def test_a_failure_does_not_stop_the_chain_or_is_not_explained(place, capfd):
    write(
        stage("a"),
        stage("b", args={"exit": 3, "say": "ValueError: loss is nan\nsome more words"}),
        stage("c"),
    )
    assert study() == 1
    assert ran() == ["a", "b"]
    err = capfd.readouterr().err
    assert "stage b failed: ValueError: loss is nan" in err and "log: runs/trial/logs/b.log" in err
    assert status() == ["done", "failed", "pending"] and record()["stages"][1]["returncode"] == 3
    write(stage("a"), stage("b"), stage("c"))
    assert study() == 0 and ran() == ["b", "c"]


def test_an_output_that_was_not_written_counts_as_done(place, capfd):
    write(stage("a", outputs=("{workdir}/b",)))
    assert study() == 1 and status() == ["failed"]
    assert "did not write runs/trial/b" in capfd.readouterr().err


def test_a_missing_input_is_found_only_by_the_stage(place, capfd):
    write(stage("a", inputs=("{samples}/speeches",)))
    assert study("--samples-dir=elsewhere") == 1
    assert (
        ran() == [] and "elsewhere/speeches does not exist; put it there" in capfd.readouterr().err
    )


def test_a_killed_study_runs_twice_at_once_or_loses_its_work(place, capfd):
    write(stage("a"), stage("b", args={"wait": "go"}), stage("c"))
    process = start()
    wait_for(lambda: Path("runs/trial/b").exists())
    process.kill()
    process.wait()
    assert status() == ["done", "running", "pending"]
    assert study() == 2  # the stage lives on and holds the directory
    assert "in use" in capfd.readouterr().err
    Path("go").touch()
    wait_for(lambda: study() != 2)
    assert ran() == ["a", "b", "b", "c"] and status() == ["done"] * 3


@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interruption_leaves_a_stage_running(place, number, code):
    write(stage("a", args={"wait": "go"}), stage("b"))
    process = start()
    wait_for(lambda: Path("runs/trial/a").exists())
    process.send_signal(number)
    assert process.wait(timeout=15) == code
    assert status() == ["interrupted", "pending"] and record()["state"] == "interrupted"
    Path("go").touch()
    assert study() == 0 and ran() == ["a", "a", "b"]


def test_a_study_whose_reader_has_gone_leaves_a_stage_running_or_says_an_error(place):
    """As after `| head -1`: during a stage, which is stopped as by SIGTERM, and between two."""
    write(stage("a", args={"wait": "go"}), stage("b", args={"say": "x"}))
    code = "import sys; from launch.chain import run_chain; from launch.stages import load_study; "
    code += "sys.exit(run_chain(load_study('study.py', allowed=('tests.',)), silence=0.2))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    wait_for(lambda: Path("runs/trial/a").exists())
    process.stdout.close()
    assert process.wait(timeout=15) == 141 and process.stderr.read() == ""
    assert status() == ["interrupted", "pending"] and record()["state"] == "interrupted"
    Path("go").touch()
    assert study() == 0 and ran() == ["a", "a", "b"]
    process = start(stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=15) == 141 and process.stderr.read() == ""
    assert record()["state"] == "interrupted" and study() == 0 and ran() == []


def test_a_stage_that_will_not_stop_cannot_be_killed(place):
    write(stage("a", args={"wait": "go", "stubborn": True}))
    process = start()
    output = process.stdout
    assert output is not None
    wait_for(lambda: "terminal" in output.readline())
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: "not yet" in output.readline())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=15) == 143


def test_from_or_only_run_other_stages(place, capfd):
    write(stage("a"), stage("b"), stage("c"))
    assert study("--only=b") == 0 and ran() == ["b"] and status() == ["pending", "done", "pending"]
    assert study() == 0 and ran() == ["a", "c"]
    assert study("--from=b") == 0 and ran() == ["b", "c"]
    assert study("--only=a") == 0 and ran() == ["a"]
    assert study("--only=d") == 2 and study("--from=bb") == 2
    assert "did you mean 'b'" in capfd.readouterr().err


def test_the_terminal_is_hidden_from_a_stage(place):
    write(stage("a"))
    for extra, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        ours, theirs = pty.openpty()
        env = {**os.environ, "TERM": "xterm-256color", **extra}
        process = start("--from=a", stdout=theirs, stderr=theirs, env=env)
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 4096) or b""
            except OSError:
                break
        os.close(ours)
        assert process.wait(timeout=15) == 0
        assert (
            b"terminal: True True" in shown
            and b"terminal: True True" in Path("runs/trial/logs/a.log").read_bytes()
        )
        assert (b"\x1b[32m" in shown) == coloured


def test_a_silent_stage_shows_no_sign_of_life(place, capfd):
    write(stage("a", args={"wait": "go"}, seconds=100), stage("b", seconds=20))
    threading.Timer(0.8, Path("go").touch).start()
    assert run_chain(load_study("study.py", allowed=("tests.",)), silence=0.2) == 0
    assert "  a: 0:00 so far, about 1:40; study about 2:00 left" in capfd.readouterr().out


def test_placeholders_are_not_filled_or_other_braces_are_touched(place):
    text = "{workdir} {samples} {question} {0} {workdir.__class__} {{}} {"
    write(
        stage(
            "a",
            args={
                "say": text,
                "k": 3,
                "on": True,
                "off": False,
                "none": None,
                "c.on": False,
                "many": ["x", "y"],
            },
        )
    )
    args = load_study("study.py", workdir="w", samples="s", allowed=("tests.",)).stages[0].args
    assert args[2:] == (
        "--say=w s {question} {0} {workdir.__class__} {{}} {",
        "--k=3",
        "--on",
        "--c.on=False",
        "--many=x",
        "--many=y",
    )
    write({"name": "a", "module": "lm.train", "args": ("add", "--k=5", "{workdir}/x y")})
    assert load_study("study.py").stages[0].args == ("add", "--k=5", "runs/trial/x y")


GOOD = {"name": "a", "module": "lm.train"}


@pytest.mark.parametrize(
    "stages, fields, said",
    [
        ([{**GOOD, "output": ()}], {}, "unknown field 'output' (did you mean 'outputs'?)"),
        ([GOOD], {"workdri": "x"}, "unknown field 'workdri' (did you mean 'workdir'?)"),
        ([GOOD, GOOD], {}, "two stages are named 'a'"),
        ([{"name": "a", "module": "os.path"}], {}, "not an entry point of this project"),
        ([{"name": "a", "module": "lm.train; rm"}], {}, "not an entry point of this project"),
        ([{"name": "../a", "module": "lm.train"}], {}, "names a log file"),
        ([{"module": "lm.train"}], {}, "name=None"),
        ([{**GOOD, "seconds": -1}], {}, "seconds=-1"),
        ([{**GOOD, "seconds": "10"}], {}, "seconds='10'"),
        ([{**GOOD, "args": "x"}], {}, "args='x'"),
        ([{**GOOD, "args": {"--k": 1}}], {}, "without dashes"),
        ([{**GOOD, "args": {"k": {"x": 1}}}], {}, "args['k']"),
        ([{**GOOD, "outputs": "x"}], {}, "outputs='x'; expected a tuple of paths"),
        (
            [{**GOOD, "args": {"k": "{wokdir}/x"}}],
            {},
            "{wokdir} in '--k={wokdir}/x' is not a placeholder (did you mean 'workdir'?)",
        ),
        ([], {}, "at least one dict"),
    ],
)
def test_a_wrong_config_starts_running(place, capfd, stages, fields, said):
    write(*stages, **fields)
    assert main(["--config=study.py"]) == 2
    err = capfd.readouterr().err
    assert said in err and "Traceback" not in err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "config, said",
    [
        ("stduy.py", "no file stduy.py (did you mean 'study.py'?)"),
        ("https://x/study.py", "on this machine"),
        ("study", "FILE.py"),
        ("study.py:tiny", "takes no variant"),
        ("broken.py", "SyntaxError"),
        ("empty.py", "get_config"),
    ],
)
def test_a_config_that_cannot_be_read_ends_in_a_stack_trace(place, capfd, config, said):
    write(GOOD)
    Path("broken.py").write_text("def (")
    Path("empty.py").write_text("")
    assert main([f"--config={config}"]) == 2
    err = capfd.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_variant_does_not_reach_the_config(place):
    text = (
        "def get_config(variant=''):\n    return dict(name='trial', stages=[dict(name='a', "
        "module='lm.train', about=variant)])\n"
    )
    Path("study.py").write_text(text)
    assert load_study("study.py:tiny").stages[0].about == "tiny"


def test_two_studies_share_a_directory(place, capfd):
    write(stage("a"))
    assert study("--workdir=w") == 0
    write(stage("a"), name="other")
    assert study("--workdir=w") == 2 and "holds study 'trial'" in capfd.readouterr().err
    Path("w/study.json").write_text('{"study": ')
    assert study("--workdir=w") == 2 and "move it away" in capfd.readouterr().err
