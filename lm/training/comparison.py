"""Comparison of runs: config fields that differ, last values of the metrics, and curves."""

import dataclasses
import html
import io
import json
import math
from collections.abc import Sequence

import jax

from lm.models import build
from lm.models.config import ConfigError
from lm.training import trackers
from lm.weights.runs import model_files
from lm.weights.runs.old_runs import upgrade
from lm.weights.runs.paths import resolve
from lm.weights.runs.run_folder import flat

# training metrics, in this order; those of evaluation follow
FIRST = ("loss", "tokens", "tokens_per_second", "seconds")
LEFT_OUT = ("data.cache", "format")  # config fields that change no result

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Runs compared</title><style>
body{{font:15px/1.6 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;\
color:#222;background:#fff}}
td,th{{padding:.1em .8em .1em 0;text-align:left;vertical-align:top;overflow-wrap:anywhere}}\
th{{border-bottom:1px solid #999}}
svg{{max-width:100%;height:auto;background:#fff}}\
@media (prefers-color-scheme:dark){{body{{color:#ddd;background:#181818}}}}
</style><h1>Runs compared</h1><h2>Last figures</h2>{figures}<h2>What differs</h2>{differences}\
<h2>Curves</h2>{curves}</html>
"""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparison of several runs.

    * runs: their paths as given.
    * differences: config field -> one value per run, for fields that differ.
    * figures: metric -> its last value in each run; None where a run has none.
    * rows: each run's metrics.jsonl.
    """

    runs: tuple[str, ...]
    differences: dict[str, list]
    figures: dict[str, list]
    rows: tuple[list[dict], ...]

    def record(self) -> dict:
        """Everything but the rows, as JSON values."""
        return {"runs": list(self.runs), "differences": self.differences, "figures": self.figures}


def compare(runs: Sequence[str]) -> Comparison:
    """Compare run folders.

    Raises ValueError (ConfigError, CheckpointError) for a path that is no run folder.
    """
    configs = [dict(flat(_config(run))) for run in runs]
    names = sorted({name for config in configs for name in config if name not in LEFT_OUT})
    values = {name: [config.get(name) for config in configs] for name in names}
    differences = {
        name: found for name, found in values.items() if any(value != found[0] for value in found)
    }
    rows = tuple(trackers.read(run) for run in runs)
    last = [{name: value for row in each for name, value in row.items()} for each in rows]
    evaluated = sorted({name for each in last for name in each if name.startswith("eval/")})
    figures: dict[str, list] = {"parameters": [parameters(run) for run in runs]}
    figures |= {name: [each.get(name) for each in last] for name in ("step", *FIRST, *evaluated)}
    return Comparison(tuple(runs), differences, figures, rows)


def _config(run: str) -> dict:
    file = resolve(run) / "config.json"
    if not file.exists():
        raise ConfigError(
            f"{run} is not a run folder: it has no config.json; python -m lm.train --workdir={run} "
            "would make one"
        )
    try:
        return upgrade(json.loads(file.read_text()))
    except ValueError as error:
        raise ConfigError(
            f"{file} is damaged, and no JSON ({error}): start the run again, which writes it anew"
        ) from None


def parameters(run: str) -> int:
    """Count the parameters of a run's model.

    Raises CheckpointError for a folder that does not describe its model.
    """
    config = model_files.load_model_config(run)
    return sum(math.prod(x.shape) for x in jax.tree.leaves(build(config).shapes()))


def text(found: Comparison) -> str:
    """Format both tables for a terminal."""
    said = [
        _aligned(
            ["", *found.runs],
            [[name, *map(_figure, values)] for name, values in found.figures.items()],
        )
    ]
    rows = [[name, *map(_value, values)] for name, values in found.differences.items()]
    return "\n\n".join(
        [*said, _aligned(["config", *found.runs], rows) if rows else "the configs are the same"]
    )


def page(found: Comparison) -> str:
    """Build an HTML document with a curve per metric; text from the runs is escaped."""
    figures = [[name, *map(_figure, values)] for name, values in found.figures.items()]
    rows = [[name, *map(_value, values)] for name, values in found.differences.items()]
    names = [
        name for name in ("loss", *found.figures) if name == "loss" or name.startswith("eval/")
    ]
    curves = "".join(_curve(found, name) for name in dict.fromkeys(names))
    return _PAGE.format(
        figures=_table(["", *found.runs], figures),
        curves=curves,
        differences=_table(["config", *found.runs], rows)
        if rows
        else "<p>The configs are the same.</p>",
    )


def _curve(found: Comparison, name: str) -> str:
    """SVG of one metric over steps, with a line per run; '' if no run has it."""
    from matplotlib.figure import Figure

    lines = [
        [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        for rows in found.rows
    ]
    if not any(lines):
        return ""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for run, points in zip(found.runs, lines, strict=True):
        if points:
            axes.plot(
                *zip(*points, strict=True),
                label=_plain(run),
                marker="o" if len(points) < 10 else "",
            )
    axes.set(xlabel="step", ylabel=_plain(name))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _plain(name: str) -> str:
    """Label that matplotlib neither parses as mathematics nor hides."""
    return " " + name.replace("$", r"\$")


def _figure(value) -> str:
    return (
        "-"
        if value is None
        else f"{value:,}"
        if isinstance(value, int)
        else f"{value:,.4f}"
        if value < 1000
        else f"{value:,.0f}"
    )


def _value(value) -> str:
    return json.dumps(value, ensure_ascii=False)


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = lambda row, tag: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
    lines = [cells(head, "th"), *(cells(row, "td") for row in rows)]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _aligned(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    )
