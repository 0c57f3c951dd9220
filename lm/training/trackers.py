"""Write metrics to metrics.jsonl, TensorBoard and Weights & Biases, and plot the loss.

metrics.jsonl has one row per step, exactly once even if the run is killed and resumed.
"""

import importlib.util
import io
import json
import logging
import pathlib
import secrets
import tempfile
from collections.abc import Mapping
from typing import Any

from lm.models.config import ConfigError
from lm.weights.runs.paths import Folder, is_remote, resolve, upload, write_atomically

FILE = "metrics.jsonl"
WANDB = "wandb.json"  # in a run folder: id of the W&B run, so that a resumed run continues it

log = logging.getLogger(__name__)


class Trackers:
    """Writer of metrics for a run that starts or resumes after `step`.

    active: False on every process but the first, which then writes nothing.
    wandb: project on Weights & Biases, "" for none. config: shown there.
    Raises ConfigError when W&B cannot start.
    """

    def __init__(
        self,
        workdir: str | Folder,
        step: int,
        tensorboard: bool = True,
        active: bool = True,
        wandb: str = "",
        config: Mapping | None = None,
    ):
        self._file = self._board = self._wandb = None
        if not active:
            return
        folder = resolve(workdir)
        self._remote = folder if is_remote(folder) else None
        if self._remote is None:
            local = pathlib.Path(folder)
        else:  # object storage cannot append: write locally, and copy in `sync`
            self._temporary = tempfile.TemporaryDirectory()
            local = pathlib.Path(self._temporary.name)
            if (self._remote / FILE).exists():
                (local / FILE).write_bytes((self._remote / FILE).read_bytes())
        self._local = local
        keep_until(local / FILE, step)
        self._file = (local / FILE).open("a", encoding="utf-8")
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(
                str(local / "tensorboard"), purge_step=step + 1 if step else None
            )
        if wandb:
            self._wandb = _wandb(wandb, folder, local, dict(config or {}))

    def write(self, row: dict) -> None:
        """Append a row, which must have "step", and flush it to the operating system."""
        if self._file is None:
            return
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(name, value, int(row["step"]))
        if self._wandb is not None:
            self._wandb.log(
                {
                    name: value
                    for name, value in row.items()
                    if name != "step" and value is not None
                },
                step=int(row["step"]),
            )

    def sync(self) -> None:
        """Copy everything written so far to a run folder in object storage."""
        if self._file is not None and self._remote is not None:
            if self._board is not None:
                self._board.flush()
            upload(self._local, self._remote)

    def close(self) -> None:
        """Flush and close. Idempotent."""
        if self._file is not None and not self._file.closed:
            self.sync()
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None


def check_wandb(project: str) -> None:
    """Raise ConfigError when a project is named and the package wandb is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"log.wandb={project!r} needs the package wandb, which is not installed: pip install "
            "'openbook[wandb]'"
        )


def _wandb(project: str, folder: Folder, local: pathlib.Path, config: dict):
    """Run on Weights & Biases, resumed if the run folder has its id.

    The API key comes from WANDB_API_KEY or ~/.netrc.
    """
    wandb: Any = importlib.import_module("wandb")
    file = folder / WANDB
    identity = json.loads(file.read_text())["id"] if file.exists() else secrets.token_hex(4)
    try:
        run = wandb.init(
            project=project,
            id=identity,
            resume="allow",
            name=folder.name,
            dir=str(local),
            config=config,
        )
    except wandb.Error as error:
        raise ConfigError(
            f"log.wandb={project!r}: {str(error).splitlines()[0].rstrip('.')}. Use wandb login, "
            "or WANDB_MODE=offline, or leave it empty"
        ) from error
    write_atomically(file, json.dumps({"id": identity, "project": project}))
    return run


def keep_until(path: pathlib.Path, step: int) -> None:
    """Remove rows after `step`, which will be computed again, and an unfinished last line.

    Other invalid lines are removed with a warning, and the old file is kept as
    metrics.jsonl.unreadable.
    """
    if not path.exists():
        return
    there, kept, bad = path.read_bytes(), [], []
    lines = there.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            break
        if (row := _row(line)) is None:
            bad.append(number)
        elif row["step"] <= step:
            kept.append(line)
    if bad:
        aside = path.with_name(f"{path.name}.unreadable")
        aside.write_bytes(there)
        log.warning(
            "%s: lines %s are no rows of metrics and are left out; the file as it was is %s",
            path,
            bad,
            aside,
        )
    if (new := b"".join(kept)) != there:
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_bytes(new)
        temporary.replace(path)


def read(workdir: str | Folder) -> list[dict]:
    """Complete rows of metrics.jsonl, in order. Invalid lines are skipped with a warning."""
    path = resolve(workdir) / FILE
    lines = [
        line
        for line in (path.read_bytes() if path.exists() else b"").splitlines(keepends=True)
        if line.endswith(b"\n")
    ]
    rows = [row for line in lines if (row := _row(line)) is not None]
    if len(rows) < len(lines):
        log.warning(
            "%s: %d of %d lines are no rows of metrics and are left out",
            path,
            len(lines) - len(rows),
            len(lines),
        )
    return rows


def _row(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def plot(workdir: str | Folder) -> None:
    """Plot the training loss and every evaluated loss over steps, in plots/loss.png."""
    from matplotlib.figure import Figure

    rows = read(workdir)
    names = sorted(
        {
            name
            for row in rows
            for name in row
            if name == "loss" or (name.startswith("eval/") and name.endswith("/loss"))
        }
    )
    if not names:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name in reversed(names):
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot(
            *zip(*points, strict=True),
            label="training" if name == "loss" else name.split("/")[1],
            marker="" if name == "loss" else "o",
        )
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    folder = resolve(workdir) / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "loss.png").write_bytes(picture.getvalue())
