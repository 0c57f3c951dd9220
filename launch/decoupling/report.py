"""Write the ledger of configs/studies/decoupling.py: ledger.json, ledger.svg, report.md and .html.

python -m launch.decoupling.report --workdir=DIR --stages pretrain domain instruct \
    --models decoder=NAME t5=NAME
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from launch.decoupling import heatmap, ledger
from launch.decoupling.ledger import COLUMNS, CONDITIONS, Row
from launch.errors import LaunchError, one_line
from launch.quickstart.passages import write


def table(rows: Sequence[Row], names: Mapping[str, str]) -> list[list[str]]:
    """Head and lines: every cell with its interval."""
    lines = [["model", "after", "condition", *(column.name for column in COLUMNS)]]
    for row in rows:
        cells = [
            f"{heatmap.shown(column, cell.value)} ({heatmap.interval(column, cell)})"
            for column in COLUMNS
            for cell in (row.cells[column.name],)
        ]
        lines.append([names[row.model], row.stage, CONDITIONS[row.condition], *cells])
    return lines


def moved(rows: Sequence[Row], names: Mapping[str, str], why: str) -> list[list[str]]:
    """Head and lines: changes by a stage, or by a memory. Only those whose interval excludes 0."""
    lines = [["model", "stage", "condition", "gained", "forgotten"]]
    for after, before, reason, each in ledger.changes(rows):
        if reason != why:
            continue
        said = {"gained": [], "forgotten": []}
        for column in COLUMNS:
            change = each[column.name]
            if change.verdict:
                ends = " to ".join(f"{x:+.{column.digits}f}" for x in (change.low, change.high))
                value = f"{change.value:+.{column.digits}f}"
                said[change.verdict].append(f"{column.name}: {value} ({ends})")
        step = f"{before.stage} → {after.stage}" if why == "stage" else after.stage
        told = ["; ".join(each) or "–" for each in said.values()]
        lines.append([names[after.model], step, CONDITIONS[after.condition], *told])
    return lines


def paid(rows: Sequence[Row], costs: Sequence[dict], names: Mapping[str, str]) -> list[list[str]]:
    """Head and lines: seconds and bytes of stages, and of probes under each condition."""
    lines = [["what", "seconds", "bytes"]]
    lines += [[one["name"], f"{one['seconds']:.0f}", f"{one['bytes']:,}"] for one in costs]
    for row in rows:
        what = f"probes of {names[row.model]} after {row.stage}, {CONDITIONS[row.condition]}"
        lines.append([what, f"{row.seconds:.0f}", f"{row.bytes:,}" if row.bytes else "–"])
    return lines


def markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = lines
    said = [head, ["---"] * len(head), *rest]
    return "\n".join("| " + " | ".join(line) + " |" for line in said)


def html(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = lines
    of = lambda line, tag: "".join(f"<{tag}>{escape(text)}</{tag}>" for text in line)
    said = "\n".join(f"<tr>{of(line, 'td')}</tr>" for line in rest)
    return f"<table>\n<tr>{of(head, 'th')}</tr>\n{said}\n</table>"


def sections(rows, costs, names) -> dict[str, list[list[str]]]:
    return {
        "The ledger": table(rows, names),
        "What a stage changed": moved(rows, names, "stage"),
        "What a memory changed": moved(rows, names, "memory"),
        "What it cost": paid(rows, costs, names),
    }


STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2em;color:#1f2933}table{border-collapse:collapse}"
    "td,th{border:1px solid #d9dee3;padding:.3em .6em;text-align:left;font-size:13px}"
    "svg{max-width:1200px;width:100%}"
)
NOTE = (
    "Intervals are 95 %: Wilson's for shares of facts, bootstrap over texts, paradigms and tasks "
    "for the others. The interval of a change takes the two as independent, although they are of "
    "the same examples: it is rather too wide. Facts are ranked among ten answers: a guess has "
    "10 %, and of minimal pairs 50 %. Seconds are of wall time."
)


@one_line
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.decoupling.report",
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, type=Path, help="of the study")
    parser.add_argument("--stages", nargs="+", required=True, help="folders of a model's runs")
    parser.add_argument(
        "--models", nargs="+", required=True, metavar="FOLDER=NAME", help="folders of the workdir"
    )
    args = parser.parse_args(argv)
    pairs = [given.partition("=") for given in args.models]
    names = {folder: name or folder for folder, _, name in pairs}
    rows = ledger.read(args.workdir, [*names], args.stages)
    costs = ledger.costs(args.workdir)
    picture, parts = heatmap.draw(rows, names), sections(rows, costs, names)
    found = {
        "columns": [dataclasses.asdict(column) for column in COLUMNS],
        "rows": [dataclasses.asdict(row) for row in rows],
        "changes": [
            {
                "model": after.model,
                "stage": after.stage,
                "condition": after.condition,
                "against": [before.stage, before.condition],
                "columns": {name: dataclasses.asdict(change) for name, change in each.items()},
            }
            for after, before, _, each in ledger.changes(rows)
        ],
        "costs": costs,
    }
    text = "\n\n".join(f"## {title}\n\n{markdown(lines)}" for title, lines in parts.items())
    page = "\n".join(f"<h2>{title}</h2>\n{html(lines)}" for title, lines in parts.items())
    try:
        write(args.workdir / "ledger.json", _json(found))
        write(args.workdir / "ledger.svg", picture)
        write(args.workdir / "report.md", f"![ledger](ledger.svg)\n\n{NOTE}\n\n{text}\n")
        head = f'<!doctype html><meta charset="utf-8"><title>Ledger</title><style>{STYLE}</style>'
        write(
            args.workdir / "report.html",
            f"{head}\n<h1>The knowledge ledger</h1>\n{picture}<p>{NOTE}</p>\n{page}\n",
        )
    except OSError as error:
        raise LaunchError(str(error)) from error
    print(f"{args.workdir}/report.html")
    return 0


def _json(found: dict) -> str:
    """JSON without NaN, which is null."""
    text = json.dumps(found, indent=1)
    return text.replace("NaN", "null") + "\n"


if __name__ == "__main__":
    sys.exit(main())
