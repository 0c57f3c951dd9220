"""Fakes of gcloud and sbatch on PATH.

They log every argv and keep state in files, so a test can see what would still cost money.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GCLOUD = r"""#!PYTHON -IS
import json, os, pathlib, subprocess, sys, time
home = pathlib.Path("HOME")
argv = sys.argv[1:]
with open(home / "calls.jsonl", "a") as log:
    log.write(json.dumps(argv) + "\n")
plan = json.loads((home / "plan.json").read_text())
cloud = json.loads((home / "cloud.json").read_text())
what = " ".join(argv[2:4])
flags = dict(a[2:].split("=", 1) for a in argv if a.startswith("--") and "=" in a)

def save():
    (home / "cloud.new").write_text(json.dumps(cloud))
    os.replace(home / "cloud.new", home / "cloud.json")

def play(act):  # a scripted answer
    time.sleep(act.get("hang", 0))
    sys.stdout.write(act.get("out", "")); sys.stderr.write(act.get("err", ""))
    sys.exit(act.get("rc", 0))

if what == "queued-resources create":
    acts = plan.get("create", {})
    act = acts[min(cloud["asked"], len(acts) - 1)] if isinstance(acts, list) else acts
    cloud["asked"] += 1; save()
    if act.get("makes", True):
        cloud["resources"].append(argv[4]); cloud["created"] += 1; cloud["looks"] = 0
        cloud["labels"] = act.get("labels", dict([flags["labels"].split("=")]))
        cloud["hidden"] = act.get("hidden", 0); save()
    play(act)
name = plan["name"]
if what == "queued-resources delete":
    if cloud["undeletable"]:
        cloud["undeletable"] -= 1; save()
        play({"rc": 1, "err": "ERROR: quota of operations exceeded\n"})
    time.sleep(plan.get("delete_takes", 0))
    if argv[4] not in cloud["resources"]:
        play({"rc": 1, "err": "ERROR: NOT_FOUND: Resource was not found\n"})
    cloud["resources"].remove(argv[4]); save(); play(plan.get("delete", {}))
if what == "queued-resources describe" and "--format=json" in argv:
    if "describe" in plan:
        play(plan["describe"])
    cloud["hidden"] -= 1; save()
    if argv[4] not in cloud["resources"] or cloud["hidden"] >= 0:
        play({"rc": 1, "err": "ERROR: NOT_FOUND: Resource was not found\n"})
    node = {"nodeId": argv[4], "node": {"labels": cloud["labels"]}}
    play({"out": json.dumps({"tpu": {"nodeSpec": [node]}})})
if what == "queued-resources describe":
    if argv[4] not in cloud["resources"]:
        play({"rc": 1, "err": "ERROR: NOT_FOUND: Resource was not found\n"})
    states = plan["states"][min(cloud["created"], len(plan["states"])) - 1]
    state = states[min(cloud["looks"], len(states) - 1)]; cloud["looks"] += 1; save()
    if isinstance(state, list):  # [path, state once it exists, state before]
        state = state[1] if pathlib.Path(state[0]).exists() else state[2]
    play(state if isinstance(state, dict) else {"out": json.dumps({"state": {"state": state}})})
if what == "tpu-vm describe":
    play(plan.get("endpoints") or {"out": json.dumps({"networkEndpoints": [{}] * plan["workers"]})})
chosen = range(plan["workers"]) if flags.get("worker") == "all" else [int(flags["worker"])]
boxes = [home / f"worker{i}" for i in chosen]
for box in boxes:
    box.mkdir(exist_ok=True)
if what == "tpu-vm scp":
    if "scp" in plan:
        play(plan["scp"])
    files = [a for a in argv[4:] if not a.startswith("--")]
    for box in boxes:
        real = [str(box / f.split(":", 1)[1]) if f.startswith(name + ":") else f for f in files]
        subprocess.run(["cp", "-r", "--preserve=mode", *real], check=True)
    sys.exit(0)
# gcloud and ssh split the command at spaces and join it with spaces
command = " ".join(flags["command"].split(" "))
env = {"HOME": str(boxes[0]), "PATH": f"{home}/worker-bin:/usr/bin:/bin"}
env |= {"WORKER": str(chosen[0]), "LANG": "C.UTF-8"}
sys.exit(subprocess.run(["bash", "-c", command], cwd=boxes[0], env=env).returncode)
"""
SBATCH = r"""#!PYTHON -IS
import json, pathlib, sys
home = pathlib.Path("HOME")
with open(home / "calls.jsonl", "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\n")
answer = json.loads((home / "plan.json").read_text()).get("sbatch", {"out": "4242;cluster\n"})
sys.stdout.write(answer.get("out", "")); sys.stderr.write(answer.get("err", ""))
sys.exit(answer.get("rc", 0))
"""
STUB = "#!/bin/sh\nexit 0\n"  # python3 of a worker: only installs


@dataclasses.dataclass
class Cloud:
    """The fake cloud; `home` holds its state, a folder per worker and the log of calls."""

    home: Path
    name: str = "trial"

    def plan(self, states=("ACTIVE",), *later_states, workers=1, undeletable=0, **more):
        """Set how the cloud behaves.

        states: of the queued resource, one per query; the last one stays. later_states: those of
        resources created later.
        """
        (self.home / "plan.json").write_text(
            json.dumps(
                {"states": [states, *later_states], "workers": workers, "name": self.name, **more}
            )
        )
        counts = dict.fromkeys(("created", "asked", "looks", "hidden"), 0)
        (self.home / "cloud.json").write_text(
            json.dumps({"resources": [], "labels": {}, "undeletable": undeletable, **counts})
        )

    def calls(self) -> list[list[str]]:
        log = self.home / "calls.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def said(self, *words: str) -> list[list[str]]:
        return [call for call in self.calls() if call[2:4] == list(words)]

    def left(self) -> list[str]:
        """Return the queued resources that still exist."""
        return json.loads((self.home / "cloud.json").read_text())["resources"]


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    home = tmp_path / "cloud"
    for folder in ("bin", "worker-bin"):
        (home / folder).mkdir(parents=True)
    for path, text in (
        ("bin/gcloud", GCLOUD),
        ("bin/sbatch", SBATCH),
        ("worker-bin/python3", STUB),
    ):
        (home / path).write_text(
            text.replace("PYTHON", sys.executable).replace("HOME", str(home), 1)
        )
        (home / path).chmod(0o755)
    (home / "worker-bin/python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{home / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("CLOUDSDK_COMPUTE_ZONE", raising=False)
    cloud = Cloud(home)
    cloud.plan()
    return cloud


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Make a small git checkout and change into it."""
    root = tmp_path / "checkout"
    root.mkdir()
    (root / ".gitignore").write_text("ignored.txt\n")
    (root / "code.py").write_text("print('hello')\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "first")
    monkeypatch.chdir(root)
    return root


def git(root: Path, *args: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *args], check=True, capture_output=True, text=True
    ).stdout
