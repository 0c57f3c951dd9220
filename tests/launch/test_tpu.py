"""TPU runs against a stateful fake cloud: no cost is left behind, and the cause is reported."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from launch import gcloud
from launch.gcloud import Pod, run_command
from launch.interrupt import Interrupted, Signals, catch_signals
from launch.run import main
from launch.target import Target
from launch.tpu import STATES, Timing

FAST = Timing(poll=0.02, call=8.0, transfer=8.0, settle=0.3, tick=0.02, patience=3)
# Never polls the state while the command runs.
QUIET = Timing(poll=60.0, call=8.0, transfer=8.0, settle=0.3, tick=0.02)
TPU = ["--on=tpu:v5litepod-16,spot", "--name=trial", "--zone=us-west4-a"]
HELLO = ["--", "echo", "hello"]


def run(*argv: str, timing: Timing = FAST) -> int:
    return main([*TPU, *argv], timing)


def test_a_run_that_succeeds_leaves_a_tpu_behind(cloud, checkout, capfd):
    cloud.plan(states=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], workers=2)
    assert run(*HELLO) == 0
    assert cloud.left() == []
    out = capfd.readouterr().out
    assert "[0] hello" in out and "[1] hello" in out
    assert [call[2:4] for call in cloud.calls()][-1] == ["queued-resources", "delete"]


@pytest.mark.parametrize(
    "capacity, flags", [("spot", ["--spot"]), ("reserved", ["--reserved"]), ("on-demand", [])]
)
def test_a_capacity_asks_for_another(capacity, flags):
    plain = Pod("trial", Target("tpu", "v6e-8"), "z").create(6)
    assert [
        word
        for word in Pod("trial", Target("tpu", "v6e-8", capacity), "z").create(6)
        if word not in plain
    ] == flags
    assert set(plain) <= set(Pod("trial", Target("tpu", "v6e-8", capacity), "z").create(6))


def test_the_commands_are_not_those_of_the_record(cloud, checkout):
    command = ["--name=trial", "--zone=z", "--project=p", "--wait-hours=0.5", *HELLO]
    assert main(["--on=tpu:v6e-8,spot", *command], QUIET) == 0
    archive = next(word for word in cloud.said("tpu-vm", "scp")[0] if word.endswith(".tar.gz"))
    place = ["--zone=z", "--project=p", "--quiet"]
    alive = "--ssh-flag=-o ServerAliveInterval=30 -o ServerAliveCountMax=4"
    calls = [[word for word in call if not word.startswith("--command=")] for call in cloud.calls()]
    tpus = ["compute", "tpus"]
    assert calls == [
        [
            *tpus,
            "queued-resources",
            "create",
            "trial",
            "--node-id=trial",
            "--accelerator-type=v6e-8",
            "--runtime-version=v2-alpha-tpuv6e",
        ]
        + [
            "--spot",
            "--valid-until-duration=1800s",
            f"--labels=openbook-run={gcloud.RUN}-0",
            "--async",
            *place,
        ],
        [*tpus, "queued-resources", "describe", "trial", "--format=json(state)", *place],
        [*tpus, "tpu-vm", "describe", "trial", "--format=json(networkEndpoints)", *place],
        [*tpus, "tpu-vm", "scp", archive, "trial:", "--worker=all", *place],
        [*tpus, "tpu-vm", "ssh", "trial", "--worker=0", alive, *place],
        [*tpus, "tpu-vm", "ssh", "trial", "--worker=0", alive, *place],
        [*tpus, "queued-resources", "delete", "trial", "--force", *place],
    ]


def test_a_dry_run_calls_something_or_prints_other_commands_than_the_run(
    cloud, checkout, capsys, monkeypatch
):
    monkeypatch.setenv("TOKEN", "canary-7f3a")
    argv = ["--env=TOKEN", "--", "python", "-c", "pass", "--note=two words; $HOME\nnext line"]
    assert run("--dry-run", *argv) == 0
    assert cloud.calls() == []
    printed = capsys.readouterr().out
    assert "canary" not in printed
    assert main([*TPU[:1], "--name=trial", "--zone=us-west4-a", *argv], QUIET) == 0

    def same(call):
        return [word for word in call if not word.startswith(("--worker=", "/tmp/"))]

    planned = [same(words[1:]) for words in commands(printed) if words[0] == "gcloud"]
    real = [same(call) for call in cloud.calls()]
    # The state is queried more than once.
    assert planned == [call for i, call in enumerate(real) if call not in real[:i]]


def test_a_dry_run_outside_a_checkout_fails(cloud, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "plain").mkdir()
    monkeypatch.chdir(tmp_path / "plain")
    assert run("--dry-run", "--", "python", "-c", "pass") == 0
    assert "# code: none that could be copied: git rev-parse failed" in capsys.readouterr().out


def commands(text: str) -> list[list[str]]:
    """Return the commands of a printed plan; a newline inside quotes does not end one."""
    found, lines = [], []
    for line in text.splitlines():
        lines.append(line)
        try:
            words = shlex.split("\n".join(lines), comments=True)
        except ValueError:  # inside quotes
            continue
        lines = []
        found += [words] if words else []
    return found


def test_a_failure_of_one_worker_leaves_others_running_or_hides_its_error(cloud, checkout, capfd):
    cloud.plan(workers=3)
    script = (
        'if [ $WORKER = 1 ]; then echo "ValueError: bad shape" >&2; echo later; exit 3; else '
        "sleep 30; fi"
    )
    began = time.monotonic()
    assert run("--", "bash", "-c", script) == 3
    assert time.monotonic() - began < 10
    assert cloud.left() == []
    assert (
        "error: worker 1 of 3 ended with 3; its first error: ValueError: bad shape"
        in capfd.readouterr().err
    )


def test_output_is_shown_only_at_the_end(cloud, checkout):
    cloud.plan(workers=2)
    process = driver("--", "bash", "-c", "echo early; sleep 60")
    assert wait_for_line(process, "early") < 15
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=15) == 143
    assert cloud.left() == []


@pytest.mark.parametrize(
    "number, code, moment",
    [
        (signal.SIGINT, 130, "WAITING"),
        (signal.SIGINT, 130, "hello"),
        (signal.SIGTERM, 143, "hello"),
        (signal.SIGHUP, 129, "WAITING"),
    ],
)
def test_a_signal_leaves_a_tpu_behind(cloud, checkout, number, code, moment):
    cloud.plan(
        states=["WAITING_FOR_RESOURCES"] if moment == "WAITING" else ["ACTIVE"],
        workers=2,
        delete_takes=0.5,
    )
    process = driver("--", "bash", "-c", "echo hello; sleep 60")
    wait_for_line(process, moment)
    process.send_signal(number)
    time.sleep(0.25)
    process.send_signal(signal.SIGINT)  # impatience must not cut the delete short
    assert process.wait(timeout=15) == code
    assert cloud.left() == []


def test_a_signal_during_the_create_leaves_a_tpu_behind(cloud, checkout):
    cloud.plan(create={"hang": 1.0})
    process = driver(*HELLO)
    wait_for_line(process, "should this program be killed")
    while not cloud.left():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=15) == 130
    assert cloud.left() == []
    assert cloud.said("tpu-vm", "ssh") == []


def test_a_signal_during_the_delete_leaves_a_tpu_behind(cloud, checkout):
    cloud.plan(delete_takes=0.7)
    process = driver(*HELLO)
    while not cloud.said("queued-resources", "delete"):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=15) == 143
    assert cloud.left() == []


def test_a_second_signal_breaks_into_the_way_out():
    signals, left = Signals(), []
    with pytest.raises(Interrupted), signals.may_interrupt():
        try:
            signals.handle(signal.SIGINT, None)
        finally:
            signals.handle(signal.SIGINT, None)
            left.append("orderly")
    assert left == ["orderly"]


def test_a_run_under_nohup_ends_with_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catch_signals():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def driver(*argv: str) -> subprocess.Popen:
    """Run the same entry point in a process of its own, with fast timing."""
    code = (
        "import sys; from launch.run import main; from launch.tpu import Timing; "
        f"sys.exit(main(sys.argv[1:], {FAST!r}))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *TPU, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
    )


def wait_for_line(process: subprocess.Popen, text: str) -> float:
    began = time.monotonic()
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return time.monotonic() - began
    raise AssertionError(f"{text!r} never came")


def test_a_create_that_fails_is_reported_without_its_reason(cloud, checkout, capfd):
    cloud.plan(
        create={
            "rc": 1,
            "makes": False,
            "err": "ERROR: (gcloud) PERMISSION_DENIED: no quota\nmore\n",
        }
    )
    assert run(*HELLO) == 70
    assert cloud.left() == []
    assert "PERMISSION_DENIED: no quota" in capfd.readouterr().err


def test_a_create_that_fails_after_all_was_made_leaves_a_tpu_behind(cloud, checkout):
    cloud.plan(create={"rc": 1, "err": "ERROR: connection reset\n"})
    assert run(*HELLO) == 70
    assert cloud.left() == []


def test_a_create_that_hangs_blocks_for_ever_or_leaves_a_tpu_behind(cloud, checkout):
    cloud.plan(create={"hang": 60})
    assert run(*HELLO, timing=Timing(poll=0.02, call=0.6)) == 70
    assert cloud.left() == []


def test_someone_elses_tpu_of_the_same_name_is_deleted(cloud, checkout, capfd):
    for labels in ({}, {"openbook-run": "0123456789ab-0"}, {"team": "vision"}):
        cloud.plan(create={"rc": 1, "err": EXISTS, "labels": labels})
        assert run(*HELLO) == 70
        assert cloud.left() == ["trial"] and cloud.said("queued-resources", "delete") == []
        assert "choose another --name" in capfd.readouterr().err


EXISTS = (
    "ERROR: (gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS: Resource already exists\n"
)
LOST = "ERROR: (gcloud) The read operation timed out\n"
BRIEF = Timing(poll=0.02, call=1.0, transfer=8.0, settle=0.3, tick=0.02, patience=3)


def test_its_own_tpu_is_taken_for_someone_elses(cloud, checkout, capfd):
    """gcloud retries when a reply is lost, and is then told that the resource exists."""
    cloud.plan(create={"rc": 1, "err": EXISTS})
    assert run(*HELLO) == 0
    assert cloud.left() == [] and "[0] hello" in capfd.readouterr().out


def test_a_tpu_that_appears_after_a_lost_answer_is_left_behind(cloud, checkout, capfd):
    cloud.plan(create={"rc": 1, "err": LOST, "hidden": 5})
    assert run(*HELLO) == 70
    assert cloud.left() == [] and "but it was made" in capfd.readouterr().err


@pytest.mark.parametrize("describe", [None, {"rc": 1, "err": "ERROR: UNAVAILABLE\n"}])
def test_an_unsure_create_is_passed_over_in_silence(cloud, checkout, capfd, describe):
    more = {} if describe is None else {"describe": describe}
    cloud.plan(create={"rc": 1, "err": LOST, "makes": False}, **more)
    assert run(*HELLO, timing=BRIEF) == 70
    err = capfd.readouterr().err
    assert "IT MAY COST MONEY" in err and "The read operation timed out" in err
    assert (
        "gcloud compute tpus queued-resources describe trial --format=json --zone=us-west4-a "
        "--quiet\n" in err
    )
    assert (
        f"openbook-run is {gcloud.RUN}-0, delete it with:\n  gcloud compute tpus "
        "queued-resources delete trial --force" in err
    )
    assert cloud.said("queued-resources", "delete") == []


def test_a_name_that_a_preempted_try_still_holds_ends_the_run(cloud, checkout, tmp_path):
    mark, held = tmp_path / "began", {"rc": 1, "err": EXISTS, "makes": False}
    cloud.plan([[str(mark), "SUSPENDED", "ACTIVE"]], ["ACTIVE"], create=[{}, held, held, {}])
    script = f"if [ -e {mark} ]; then echo resumed; else touch {mark}; exit 255; fi"
    assert run("--retries=1", "--", "bash", "-c", script) == 0
    assert cloud.left() == [] and len(cloud.said("queued-resources", "create")) == 4


def test_a_delete_whose_answer_was_lost_is_reported_as_failed(cloud, checkout, capfd):
    cloud.plan(delete={"rc": 1, "err": LOST})
    assert run(*HELLO) == 0
    assert (
        "trial is deleted" in capfd.readouterr().out
        and len(cloud.said("queued-resources", "delete")) == 1
    )


def test_a_tpu_that_never_becomes_active_is_waited_for_for_ever(cloud, checkout, capfd):
    cloud.plan(states=["WAITING_FOR_RESOURCES"])
    assert run("--wait-hours=0.0001", *HELLO) == 69
    assert cloud.left() == []
    assert "not ready within --wait-hours=0.0001" in capfd.readouterr().err


@pytest.mark.parametrize("state", ["FAILED", "DELETING"])
def test_a_failed_request_is_waited_for_or_left_behind(cloud, checkout, capfd, state):
    failed = {
        "out": json.dumps(
            {"state": {"state": state, "failedData": {"error": {"message": "no capacity in zone"}}}}
        )
    }
    cloud.plan(states=["CREATING", failed])
    assert run(*HELLO) == 69
    assert cloud.left() == []
    assert "no capacity in zone" in capfd.readouterr().err


BAD = [
    {"out": "{not json"},
    {"out": ""},
    {"out": "[]"},
    {"out": '{"state": {}}'},
    {"out": '{"state": 7}'},
    {"rc": 1, "err": "ERROR: UNAVAILABLE"},
]


def test_an_answer_that_cannot_be_read_ends_the_run_at_once(cloud, checkout):
    # Three bad states in a row are an error.
    cloud.plan([*BAD[:2], "CREATING", *BAD[2:4], "CREATING", *BAD[4:], "ACTIVE"])
    assert run(*HELLO) == 0


@pytest.mark.parametrize("answer", BAD)
def test_answers_that_cannot_be_read_are_asked_for_for_ever(cloud, checkout, capfd, answer):
    cloud.plan(["CREATING", answer])
    assert run(*HELLO) == 70
    assert cloud.left() == []
    assert "3 times in a row" in capfd.readouterr().err


def test_a_describe_that_hangs_blocks_for_ever(cloud, checkout, capfd):
    cloud.plan(states=[{"hang": 60}])
    assert run(*HELLO, timing=Timing(poll=0.02, call=0.5, patience=2)) == 70
    assert cloud.left() == []
    assert "no answer within" in capfd.readouterr().err


def test_a_state_of_tomorrow_ends_the_run(cloud, checkout, capfd):
    cloud.plan(states=["CREATING", "CONTEMPLATING", "ACTIVE"])
    assert run(*HELLO) == 0
    assert "CONTEMPLATING (a state this program does not know: waiting)" in capfd.readouterr().out


def test_a_state_gcloud_documents_has_no_action():
    documented = (
        "STATE_UNSPECIFIED CREATING ACCEPTED PROVISIONING FAILED DELETING ACTIVE SUSPENDING "
        "SUSPENDED WAITING_FOR_RESOURCES"
    )
    assert set(STATES) == set(documented.split())


@pytest.mark.parametrize("state", ["SUSPENDING", "SUSPENDED"])
def test_a_preemption_is_taken_for_a_failure_or_not_tried_again(
    cloud, checkout, tmp_path, capfd, state
):
    mark = tmp_path / "began"
    cloud.plan([[str(mark), state, "ACTIVE"]], ["ACTIVE"], workers=2)
    script = (
        f"if [ $WORKER = 1 ]; then sleep 0.1; elif [ -e {mark} ]; then echo resumed; else touch "
        f"{mark}; exit 255; fi"
    )
    assert run("--retries=1", "--", "bash", "-c", script) == 0
    assert cloud.left() == []
    assert (
        len(cloud.said("queued-resources", "create"))
        == len(cloud.said("queued-resources", "delete"))
        == 2
    )
    assert "resumed" in capfd.readouterr().out


def test_a_preemption_that_hangs_the_connection_is_not_noticed(cloud, checkout):
    cloud.plan(["ACTIVE", "ACTIVE", "SUSPENDED"])
    assert run("--", "sleep", "60") == 75
    assert cloud.left() == []


def test_a_failing_command_is_retried_as_if_preempted(cloud, checkout):
    assert run("--retries=5", "--", "bash", "-c", "exit 2") == 2
    assert len(cloud.said("queued-resources", "create")) == 1


def test_a_preemption_before_the_start_is_not_tried_again(cloud, checkout):
    cloud.plan(["CREATING", "SUSPENDED"], ["ACTIVE"])
    assert run("--retries=1", *HELLO) == 0
    cloud.plan(states=["SUSPENDED"])
    assert run("--retries=1", *HELLO) == 75
    assert cloud.left() == []


def test_a_run_exceeds_its_hours(cloud, checkout, capfd):
    assert run("--max-hours=0.0002", "--", "sleep", "60") == 124
    assert cloud.left() == []
    assert "--max-hours reached" in capfd.readouterr().err


def test_a_delete_that_fails_once_is_not_tried_again(cloud, checkout):
    cloud.plan(undeletable=2)
    assert run(*HELLO) == 0
    assert cloud.left() == []


def test_a_delete_that_fails_is_passed_over_in_silence(cloud, checkout, capfd):
    cloud.plan(undeletable=99)
    assert run(*HELLO) == 71
    err = capfd.readouterr().err
    assert (
        "gcloud compute tpus queued-resources delete trial --force --zone=us-west4-a --quiet" in err
        and "may cost money" in err
    )


def test_a_copy_that_fails_leaves_a_tpu_behind(cloud, checkout, capfd):
    cloud.plan(scp={"rc": 1, "err": "ERROR: no route to host\n"})
    assert run(*HELLO) == 70
    assert cloud.left() == []
    assert "no route to host" in capfd.readouterr().err


def test_workers_that_cannot_be_listed_leave_a_tpu_behind(cloud, checkout):
    cloud.plan(endpoints={"out": "{}"})
    assert run(*HELLO) == 70
    assert cloud.left() == []


def test_an_unexpected_exception_leaves_a_tpu_behind(cloud, checkout, monkeypatch):
    monkeypatch.setattr("launch.tpu.run_on_workers", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*HELLO)
    assert cloud.left() == []


NASTY = [
    "two  words ",
    "it's",
    '"q"',
    "$HOME",
    "`id`",
    ";ls",
    "a\nb",
    "naïve ☃",
    "-leading",
    "--",
    "*",
    "",
    "\\",
    "!x",
    "a=b&c|d>e",
    "\t#",
]


def test_an_argument_arrives_changed(cloud, checkout, capfd):
    assert (
        run("--", "python", "-c", "import json, sys; print(json.dumps(sys.argv[1:]))", *NASTY) == 0
    )
    line = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("[0] ["))
    assert json.loads(line.removeprefix("[0] ")) == NASTY
    assert cloud.left() == []


def test_a_secret_shows_up_in_a_command_line_a_log_or_the_output(
    cloud, checkout, capfd, monkeypatch
):
    secret = "canary 'x\" $1"
    monkeypatch.setenv("HF_TOKEN", secret)
    program = (
        "import os; print('leak:', os.environ['HF_TOKEN']); print(len(os.environ['HF_TOKEN']))"
    )
    assert run("--env=HF_TOKEN", "--", "python", "-c", program) == 0
    printed = capfd.readouterr()
    assert "leak: ***" in printed.out and f"[0] {len(secret)}" in printed.out  # it arrived
    assert "canary" not in printed.out + printed.err + json.dumps(cloud.calls())
    assert not [
        path
        for path in cloud.home.rglob("*")
        if path.is_file() and "canary" in path.read_text(errors="replace")
    ]


def test_the_secret_file_can_be_read_by_others(cloud, checkout, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary")
    cloud.plan(scp={"rc": 1})
    modes = []

    def call(argv, timeout):
        modes.extend(os.stat(word).st_mode & 0o777 for word in argv if word.endswith(".env"))
        return gcloud.call(argv, timeout)

    monkeypatch.setattr("launch.tpu.call", call)
    run("--env=HF_TOKEN", *HELLO)
    assert modes == [0o600]


def test_the_code_that_arrives_is_not_what_git_tracks(cloud, checkout):
    (checkout / "code.py").write_text("print('changed')\n")
    (checkout / "ignored.txt").write_text("ignored")
    (checkout / "untracked.txt").write_text("untracked")
    assert run("--", "python", "code.py") == 0
    sent = cloud.home / "worker0" / "trial.tar.gz"
    with tarfile.open(sent) as archive:
        assert set(archive.getnames()) == {".gitignore", "code.py", ".source.json", ".source.diff"}
    folder = cloud.home / "worker0" / "openbook-run"
    assert (folder / "code.py").read_text() == "print('changed')\n"
    assert len(json.loads((folder / ".source.json").read_text())["commit"]) == 40
    assert "+print('changed')" in (folder / ".source.diff").read_text()


def test_a_command_is_started_twice_on_one_worker(tmp_path):
    (tmp_path / "openbook-run").mkdir()
    command = ["bash", "-c", run_command(["echo", "hi"])]
    first, second = (
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True) for _ in range(2)
    )
    assert first.stdout == "hi\n"
    assert (
        second.returncode == 76 and "the connection broke" in second.stderr and second.stdout == ""
    )


def test_results_on_the_tpus_own_disk_are_lost_with_it(cloud, checkout, capfd):
    assert (
        run(
            "--",
            "bash",
            "-c",
            "mkdir -p runs/x && echo result > runs/x/loss && exit 4",
            "bash",
            "--workdir=runs/x",
        )
        == 4
    )
    assert Path("runs/x/loss").read_text() == "result\n"
    assert "on the TPU's own disk" in capfd.readouterr().out


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--on=tpu:v5e-16", "--zone=z"], "did you mean v5litepod?"),
        (["--on=tpu:v5litepod-16,spott", "--zone=z"], "did you mean 'spot'?"),
        (["--on=tpu:v5litepod-16"], "needs --zone"),
        (["--on=tpu:v5litepod-16", "--zone=z", "--env=NO_SUCH_VARIABLE"], "no such variable"),
        (["--on=tpu:v5litepod-16", "--zone=z", "--max-hours=0"], "--max-hours=0"),
        (["--on=tpu:v5litepod-16", "--zone=z", "--max-hours=nan"], "--max-hours=nan"),
        (["--on=tpu:v5litepod-16", "--zone=z", "--name=Bad_Name"], "lower-case letters"),
        (["--on=tpu:v5litepod-16,spot,reserved", "--zone=z"], "exclude each other"),
        (["--on=tqu:v5litepod-16"], "did you mean 'tpu'?"),
        (["--on=local", "--zone=z"], "no meaning with --on=local"),
    ],
)
def test_a_wrong_request_reaches_the_cloud(cloud, checkout, capfd, argv, said):
    assert main([*argv, *HELLO], FAST) == 2
    assert said in capfd.readouterr().err
    assert cloud.calls() == []
