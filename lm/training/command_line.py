"""Command line of a training run.

--config=FILE.py[:variant] --workdir=DIR --config.field=value ...
"""

import difflib
import os
import re
import traceback

from absl import flags
from ml_collections import ConfigDict, config_flags

from lm.models.config import ConfigError


def parse(argv: list[str]) -> tuple[ConfigDict, str]:
    """(config with all overrides, locked; workdir) from arguments without the program's name.

    Raises ConfigError for an unknown field (with the nearest name), a value of another type, and a
    file that cannot be read.
    """
    given = [a.removeprefix("-").removeprefix("-") for a in argv]
    for name, example in (
        ("config", "--config=configs/tiny.py"),
        ("workdir", "--workdir=runs/tiny"),
    ):
        if not any(a.startswith(f"{name}=") for a in given):
            raise ConfigError(f"--{name} is missing, e.g. {example}; --help says more")
    file = (
        next(a for a in given if a.startswith("config=")).removeprefix("config=").partition(":")[0]
    )
    if not os.path.isfile(file):
        raise ConfigError(f"--config={file}: there is no such file (looked from {os.getcwd()})")
    overrides = [
        a.removeprefix("config.").partition("=")[0] for a in given if a.startswith("config.")
    ]
    plain = [a for a, name in zip(argv, given, strict=True) if not name.startswith("config.")]
    known = list(_dotted(_read(plain, file)[0]))
    for path in overrides:
        if path not in known:
            close = _nearest(path, known)
            hint = (
                f" (did you mean {close!r}?)" if close else "; configs/defaults.py has all of them"
            )
            raise ConfigError(f"the config has no field {path!r}{hint}{_of_tasks(path)}")
    return _read(argv, file)


def _of_tasks(path: str) -> str:
    """Say which tasks have a field of that name, if any do."""
    from lm.tasks import TASKS

    first, name = path.partition(".")[0], path.rpartition(".")[2]
    having = [task for task, kind in TASKS.items() if name in vars(kind())]
    if first not in ("task", "objective", "data") or not (having or first == "objective"):
        return ""
    fields = f"; task.{name} is a field of the tasks {', '.join(having)}" if having else ""
    return f"{fields}; a config file chooses the task with c.task = tasks.defaults(NAME)"


def _nearest(path: str, known: list[str]) -> str:
    """Most similar field, or "".

    The only one of that name in another section; or by initials (lr, wd) in the most similar
    section; or by name.
    """
    section, _, name = path.rpartition(".")
    elsewhere = [field for field in known if field.rpartition(".")[2] == name]
    if len(elsewhere) == 1:
        return elsewhere[0]
    fields = [field.rpartition(".") for field in known]
    sections = difflib.get_close_matches(section, {where for where, _, _ in fields}, n=1)
    for where, _, what in fields:
        if [where] == sections and "".join(word[:1] for word in what.split("_")) == name:
            return f"{where}.{what}"
    return next(iter(difflib.get_close_matches(path, known, n=1, cutoff=0.5)), "")


def _read(argv: list[str], path: str) -> tuple[ConfigDict, str]:
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file(
        "config", None, "a config file", lock_config=True, flag_values=values, sys_argv=["", *argv]
    )
    workdir = flags.DEFINE_string("workdir", None, "the run folder", flag_values=values)
    try:
        rest = values(["lm.train", *argv])
        settings = config.value
        if not isinstance(settings, ConfigDict):
            raise ConfigError(
                "get_config() of the config file returned no ConfigDict; start it from "
                "configs.defaults.defaults()"
            )
    except Exception as e:  # a config is a program and may raise anything
        raise ConfigError(_root(e, path)) from e
    if len(rest) > 1:
        raise ConfigError(
            f"unexpected argument {rest[1]!r}; fields are set as --config.field=value"
        )
    return settings, str(workdir.value)


def _root(error: BaseException, file: str) -> str:
    """One-line cause of an error, which config_flags wraps in the text of a traceback."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    if said := [e for e in chain if isinstance(e, ConfigError)]:
        return str(said[-1])
    if isinstance(error, flags.Error) and "whilst parsing config file" not in str(error):
        return str(error)
    lines = [
        frame.lineno
        for e in chain
        for frame in traceback.extract_tb(e.__traceback__)
        if os.path.abspath(frame.filename) == os.path.abspath(file)
    ]
    message = re.sub(
        r"Other fields present: .*?\}\"\s*", "", str(chain[-1]).replace("\\n", " "), flags=re.DOTALL
    ).strip("\"' ")
    return (
        f"{file}{f', line {lines[-1]}' if lines else ''}: {type(chain[-1]).__name__}: "
        f"{' '.join(message.split())}"
    )


def _dotted(config: ConfigDict, prefix: str = ""):
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name
