"""Files of a run folder beside its checkpoints, written by the first process only.

config.json, environment.json, status.json, samples.md.
"""

import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import subprocess
import sys
import time

import jax
from ml_collections import ConfigDict

from lm.models.config import ConfigError
from lm.weights.runs.old_runs import FORMAT, upgrade
from lm.weights.runs.paths import Folder, write_atomically

log = logging.getLogger(__name__)

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "transformers",
    "tokenizers",
)


def write_config(workdir: Folder, config: dict) -> list[str]:
    """Write config.json, and return the differences from the old one as "field: old -> new"."""
    path = workdir / "config.json"
    new = {"format": FORMAT} | json.loads(json.dumps(config))
    old = read_config(workdir) or new
    write_atomically(path, json.dumps(new, indent=1))
    before, now = dict(flat(old)), dict(flat(new))
    names = sorted(before.keys() | now.keys())
    return [
        f"{name}: {before.get(name)!r} -> {now.get(name)!r}"
        for name in names
        if before.get(name) != now.get(name) and name != "format"
    ]


def read_config(workdir: Folder) -> dict | None:
    """Content of config.json in the current format.

    None if it is missing, or with a warning if it is damaged.
    """
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        log.warning(
            "%s is damaged, and is written anew: what has changed since cannot be said", path
        )
        return None
    return upgrade(found)


def config_of(workdir: Folder) -> ConfigDict:
    """Config of a run. Raises ConfigError for a folder without one."""
    found = read_config(workdir)
    if found is None:
        raise ConfigError(f"{workdir} is not a run folder: it has no config.json")
    return ConfigDict(_tuples({"evals": {}, "further_tasks": {}} | found | {"format": FORMAT}))


def _tuples(value):
    """Convert JSON's lists to the tuples of configs."""
    if isinstance(value, dict):
        return {name: _tuples(one) for name, one in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def write_environment(workdir: Folder) -> None:
    """Write environment.json: command, commit, versions and devices."""
    environment = {
        "command": sys.argv,
        "git": _git(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
        "processes": jax.process_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
    write_atomically(workdir / "environment.json", json.dumps(environment, indent=1))


def write_status(
    workdir: Folder, state: str, step: int, steps: int, eta_s: float | None = None, error: str = ""
) -> None:
    """Write status.json.

    state: "running", "stopped" (saved on a signal), "done" or "failed". eta_s: seconds left, if
    known.
    """
    status = {
        "state": state,
        "step": step,
        "steps": steps,
        "eta_s": eta_s,
        "error": error,
        "time": time.time(),
        "pid": os.getpid(),
    }
    write_atomically(workdir / "status.json", json.dumps(status))


def write_samples(workdir: Folder, step: int, samples: list[tuple[str, str]]) -> None:
    """Add a step's (prompt, continuation) pairs to samples.md, newest first.

    Sections of this step and of later ones are replaced.
    """
    path = workdir / "samples.md"
    sections = (
        path.read_bytes().decode(errors="replace").split("\n## step ")[1:] if path.exists() else []
    )
    parts = [section.partition("\n") for section in sections]
    kept = {int(at): text for at, _, text in parts if at.isdecimal()}
    kept = {at: text for at, text in kept.items() if at < step}
    kept[step] = "\n" + "\n".join(_quoted(prompt, continuation) for prompt, continuation in samples)
    body = "".join(f"\n## step {at}\n{kept[at].rstrip()}\n" for at in sorted(kept, reverse=True))
    write_atomically(
        path, "# Samples\n\nThe prompt in bold, what the model made of it after.\n" + body
    )


def _quoted(prompt: str, continuation: str) -> str:
    lines = f"**{prompt.strip()}**{continuation}".splitlines()
    return "\n".join(f"> {line}" for line in lines) + "\n"


def _git() -> dict | None:
    """Commit and changed files of this code; None outside a git repository."""

    def git(*args: str) -> str:
        here = pathlib.Path(__file__).parent
        return subprocess.run(
            ["git", *args], cwd=here, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "changed": git("status", "--porcelain").splitlines(),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def flat(tree: dict, prefix: str = ""):
    """Yield (dotted name, value) for every field of nested dicts."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
