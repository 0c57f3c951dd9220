"""Files of commands that make data in batches, and go on where they were interrupted."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.errors import ConfigError

SETTINGS = "settings.json"


def same_settings(folder: Path, now: Mapping[str, Any], may_change: Collection[str] = ()) -> None:
    """Write the settings. Raises ConfigError if the folder was begun with others."""
    path, now = folder / SETTINGS, json.loads(json.dumps(now))
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            f"{name} {before.get(name)!r} -> {value!r}"
            for name, value in now.items()
            if before.get(name) != value and name not in may_change
        ]
        if changed:
            raise ConfigError(
                f"{folder} was begun with other settings ({', '.join(changed)}): give "
                "another --workdir, or the settings it was begun with"
            )
    write(path, [json.dumps(now, indent=2)])


def write(path: Path, lines: Sequence[str]) -> None:
    """Replace the file's lines atomically."""
    beside = path.with_name(f".{path.name}")
    beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(beside, path)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write(path, [json.dumps(row, ensure_ascii=False) for row in rows])


def read(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a file; a line that was cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


class Step:
    """File of a step: rows of whole batches, appended a batch at a time."""

    def __init__(self, path: Path, batch: int, total: int | None = None):
        self.path = path
        rows = read(path)
        whole = len(rows) if len(rows) == total else len(rows) // batch * batch
        self.rows = rows[:whole]
        write_rows(path, self.rows)

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        self.rows += rows
