"""Read the config of a study, fill in its placeholders, and fingerprint its stages.

The format is described in launch/study.py.
"""

import dataclasses
import hashlib
import importlib.util
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.errors import LaunchError, nearest
from launch.resolve import plain

ALLOWED = ("lm.", "retrieval.", "launch.", "configs.")
STUDY_FIELDS = ("name", "stages", "workdir", "samples_dir")
HASHED_BYTES = (
    64 * 2**20
)  # files up to this size are compared by content, larger ones by size and modification time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One command of a study, with placeholders filled in. seconds: expected duration."""

    name: str
    module: str
    args: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    seconds: float = 10.0
    about: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Chain of stages, and the directory that it writes to."""

    name: str
    workdir: Path
    stages: tuple[Stage, ...]


def load_study(
    config: str, workdir: str = "", samples: str = "", allowed: Sequence[str] = ALLOWED
) -> Study:
    """Read FILE.py[:variant]. Raises LaunchError for an invalid or unknown field.

    workdir, samples: override the config's, if given. allowed: prefixes of module names.
    """
    raw = plain(_get_config(config))
    if not isinstance(raw, dict):
        raise LaunchError(
            f"{config}: get_config() returned {type(raw).__name__}; expected a ConfigDict with "
            "name and stages"
        )
    _known(config, raw, STUDY_FIELDS)
    name = _text(config, raw, "name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise LaunchError(
            f"{config}: name={name!r}; expected letters, digits, '-', '_' and '.', as it names a "
            "directory"
        )
    places = {
        "workdir": workdir or _text(config, raw, "workdir", f"runs/{name}"),
        "samples": samples or _text(config, raw, "samples_dir", "samples"),
    }
    stages = raw.get("stages")
    if not isinstance(stages, list | tuple) or not stages:
        raise LaunchError(
            f"{config}: stages={stages!r}; expected a tuple of at least one dict (see python -m "
            "pydoc launch.study)"
        )
    parsed = tuple(
        _stage(f"{config}: stages[{i}]", stage, places, allowed) for i, stage in enumerate(stages)
    )
    names = [stage.name for stage in parsed]
    for i, one in enumerate(names):
        if one in names[:i]:
            raise LaunchError(
                f"{config}: two stages are named {one!r}; names must differ, as they name logs "
                "and records"
            )
    return Study(name=name, workdir=Path(places["workdir"]), stages=parsed)


def _get_config(config: str) -> Any:
    path, _, variant = (
        config.partition(".py:") if ".py:" in config else (config.removesuffix(".py"), "", "")
    )
    file = Path(f"{path}.py")
    if "://" in config or not (config.endswith(".py") or ".py:" in config):
        raise LaunchError(
            f"--config={config}: expected a Python file on this machine, FILE.py or FILE.py:variant"
        )
    if not file.is_file():
        beside = [str(p) for p in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise LaunchError(f"--config={config}: there is no file {file}{nearest(str(file), beside)}")
    spec = importlib.util.spec_from_file_location("study_config", file)
    assert spec is not None and spec.loader is not None  # true for a .py file
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = module.get_config
        takes_variant = bool(inspect.signature(get_config).parameters)
        if variant and not takes_variant:
            raise LaunchError(
                f"--config={config}: get_config() of {file} takes no variant; leave out "
                f"':{variant}'"
            )
        return get_config(variant) if takes_variant else get_config()
    except LaunchError:
        raise
    except Exception as error:  # a config is a program and may raise anything
        raise LaunchError(
            f"--config={config} could not be read: {type(error).__name__}: {error}"
        ) from error


def _stage(where: str, raw: Any, places: Mapping[str, str], allowed: Sequence[str]) -> Stage:
    if not isinstance(raw, dict):
        raise LaunchError(f"{where} is {type(raw).__name__}; expected a dict with name and module")
    _known(where, raw, [field.name for field in dataclasses.fields(Stage)])
    name = _text(where, raw, "name")
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise LaunchError(
            f"{where}: name={name!r}; expected lower-case letters, digits, '-' and '_', as it "
            "names a log file"
        )
    where = f"{where} ({name})"
    module = _text(where, raw, "module")
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", module) or not module.startswith(
        tuple(allowed)
    ):
        raise LaunchError(
            f"{where}: module={module!r} is not an entry point of this project; expected a name "
            f"under {', '.join(allowed)}"
        )
    seconds = raw.get("seconds", Stage.seconds)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e9:
        raise LaunchError(f"{where}: seconds={seconds!r}; expected a positive number of seconds")
    return Stage(
        name=name,
        module=module,
        args=tuple(_fill(where, arg, places) for arg in _argv(where, raw.get("args", ()))),
        inputs=_paths(where, raw, "inputs", places),
        outputs=_paths(where, raw, "outputs", places),
        seconds=float(seconds),
        about=_text(where, raw, "about", ""),
    )


def _argv(where: str, args: Any) -> list[str]:
    """Convert a dict of flags, or a list of arguments, to argv."""
    if isinstance(args, list | tuple):
        for arg in args:
            _scalar(f"{where}: args", arg)
        return [str(arg) for arg in args]
    if not isinstance(args, dict):
        raise LaunchError(
            f"{where}: args={args!r}; expected a dict of flags or a list of arguments"
        )
    argv = []
    for flag, value in args.items():
        if not isinstance(flag, str) or not re.fullmatch(r"[A-Za-z][\w.-]*", flag):
            raise LaunchError(
                f"{where}: args has the flag {flag!r}; write it without dashes, as in "
                f"{{'workdir': '...'}}"
            )
        for item in value if isinstance(value, list | tuple) else [value]:
            if item is None or (item is False and "." not in flag):
                continue
            if item is True and "." not in flag:
                argv.append(f"--{flag}")
                continue
            _scalar(f"{where}: args[{flag!r}]", item)
            argv.append(f"--{flag}={item}")
    return argv


def _fill(where: str, text: str, places: Mapping[str, str]) -> str:
    """Replace {workdir} and {samples}. A misspelling of one raises LaunchError."""

    def place(match: re.Match[str]) -> str:
        name = match[1]
        if name in places:
            return places[name]
        if hint := nearest(name, places):
            raise LaunchError(f"{where}: {match[0]} in {text!r} is not a placeholder{hint}")
        return match[0]

    return re.sub(r"\{([A-Za-z_]+)\}", place, text)


def _paths(where: str, raw: dict, field: str, places: Mapping[str, str]) -> tuple[str, ...]:
    value = raw.get(field, ())
    if not isinstance(value, list | tuple) or not all(
        isinstance(item, str) and item for item in value
    ):
        raise LaunchError(f"{where}: {field}={value!r}; expected a tuple of paths")
    return tuple(_fill(where, item, places) for item in value)


def _text(where: str, raw: dict, field: str, default: str | None = None) -> str:
    value = raw.get(field, default)
    if not isinstance(value, str) or (default is None and not value):
        raise LaunchError(
            f"{where}: {field}={value!r}; expected {'some' if default is None else 'a'} text"
        )
    return value or default or ""


def _scalar(where: str, value: Any) -> None:
    if not isinstance(value, str | int | float) or "\0" in str(value):
        raise LaunchError(f"{where}={value!r}; expected a string, a number or a truth value")


def _known(where: str, raw: dict, fields: Sequence[str]) -> None:
    for field in raw:
        if field not in fields:
            raise LaunchError(
                f"{where}: unknown field {field!r}{nearest(str(field), fields)}; one of "
                f"{', '.join(fields)}"
            )


def digest(stage: Stage) -> str:
    """SHA-256 of the stage's command and the values of its configs (--config=FILE.py[:variant]).

    For a config that cannot be read, the fingerprint of its file is used.
    """
    said = {config: resolved(config) or fingerprint(_file(config)) for config in configs(stage)}
    return hashlib.sha256(
        json.dumps([stage.module, stage.args, "resolved", said]).encode()
    ).hexdigest()


def digest_by_files(stage: Stage) -> str:
    """Digest of earlier versions: of the config files themselves, without what they import."""
    files = {
        _file(arg.removeprefix("--config=")): ""
        for arg in stage.args
        if re.fullmatch(r"--config=.+\.py(:.*)?", arg, re.DOTALL)
    }
    return hashlib.sha256(
        json.dumps([stage.module, stage.args, {file: fingerprint(file) for file in files}]).encode()
    ).hexdigest()


def configs(stage: Stage) -> list[str]:
    """Configs FILE.py[:variant] in the arguments: --config=X, or --config and X."""
    named = [arg.partition("=")[2] for arg in stage.args if re.match(r"--?config=", arg)]
    named += [
        after for arg, after in itertools.pairwise(stage.args) if arg in ("--config", "-config")
    ]
    return [name for name in named if re.fullmatch(r".+\.py(:.*)?", name, re.DOTALL)]


def _file(config: str) -> str:
    return config.partition(".py:")[0] + ".py" if ".py:" in config else config


_resolved: dict[
    str, tuple[dict[str, str], str | None]
] = {}  # config -> (fingerprints of its files, its value as JSON)


def resolved(config: str, others: Sequence[str] = ()) -> str | None:
    """Value of a config as JSON text; None if it cannot be read.

    others: further configs to read in the same process and cache.
    """
    known = _resolved.get(os.path.abspath(config))
    if known is None or any(fingerprint(file) != was for file, was in known[0].items()):
        wanted = list(dict.fromkeys([config, *others]))
        done = subprocess.run(
            [sys.executable, "-B", "-m", "launch.resolve", *wanted],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        answer: dict[str, Any] = (
            json.loads(done.stdout)
            if done.returncode == 0
            else {"configs": dict.fromkeys(wanted), "files": []}
        )
        for name, said in answer["configs"].items():
            files = {file: fingerprint(file) for file in (_file(name), *answer["files"])}
            _resolved[os.path.abspath(name)] = (files, said)
    return _resolved[os.path.abspath(config)][1]


def fingerprint(path: str | Path) -> str:
    """Fingerprint of a file or directory, which changes with its content; '' if there is none.

    File: size and SHA-256, or size and modification time above 64 MiB. Directory: fingerprints of
    all its files, by relative path.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(Path(root, file) for root, _, names in os.walk(path) for file in names)
        return hashlib.sha256(
            "".join(f"{file.relative_to(path)}\0{fingerprint(file)}\n" for file in files).encode()
        ).hexdigest()
    if not path.is_file():
        return ""
    stat = path.stat()
    if stat.st_size > HASHED_BYTES:
        return f"{stat.st_size} bytes at {stat.st_mtime_ns}"
    with path.open("rb") as file:
        return f"{stat.st_size} bytes {hashlib.file_digest(file, 'sha256').hexdigest()}"


def size(path: str | Path) -> int:
    """Bytes of a file, or of all files under a directory; 0 if there is none."""
    path = Path(path)
    if path.is_dir():
        return sum(size(Path(root, file)) for root, _, names in os.walk(path) for file in names)
    return path.stat().st_size if path.is_file() else 0
