"""Time Openbook and its peers in turns, and write the figures as JSON and into the documentation.

python -m tests.benchmarks.run --list
python -m tests.benchmarks.run --only=train-bert-base-f32,decode-gpt2-124m-b1-f32
python -m tests.benchmarks.run --write-docs                  # all rows that are not yet measured

Each side of a row is a process of its own. All are pinned to the same core, with one thread, and
take turns; each warms up before. A figure is work per CPU second, so that other work on the machine
disturbs it less. A ratio is that of one turn. A row is measured again if versions, settings or the
CPU have changed, or with --again.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from tests.benchmarks import children, tables
from tests.benchmarks.rows import OURS, ROWS, Pair

RESULTS = Path(__file__).parent / "results"
TURNS, QUICK_TURNS = 5, 2
PACKAGES = ("openbook", "jax", "jaxlib", "flax", "torch", "transformers", "numpy")


def settings(row, quick: bool) -> dict:
    """What makes a figure: if any of it changes, the row is measured again."""
    return {
        **row.settings(quick),
        "turns": QUICK_TURNS if quick else TURNS,
        "threads": 1,
        "sides": [*row.sides] if isinstance(row, Pair) else [OURS],
    }


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def machine() -> dict[str, str | int]:
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        names = Path("/proc/cpuinfo").read_text().split("\n")
        cpu = next((x.split(":", 1)[1].strip() for x in names if x.startswith("model name")), cpu)
    return {"cpu": cpu, "cpus": len(os.sched_getaffinity(0)), "python": platform.python_version()}


def measured(row, quick: bool) -> dict:
    """Run a row. Raises ChildFailed if a side of it fails."""
    load = os.getloadavg()[0]
    found = in_turns(row, quick) if isinstance(row, Pair) else once(row, quick)
    described = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(described, capture_output=True, text=True).stdout.strip()
    head = {"row": row.name, "what": row.what, "settings": settings(row, quick)}
    about = {"versions": versions(), "machine": machine(), "commit": commit, "load": load}
    return head | about | found


def once(row, quick: bool) -> dict:
    child = children.Child(row.name, OURS, quick)
    child.ready()
    report = child.work()
    child.close()
    return {"report": report}


def in_turns(row: Pair, quick: bool) -> dict:
    """The figures of every side of a row that is installed here."""
    sides, running, rates = {}, {}, {}
    with contextlib.ExitStack() as opened:
        for side in row.sides:
            child = children.Child(row.name, side, quick)
            opened.callback(child.close)
            said = child.ready()
            rates = said.get("rates", rates)
            if "missing" in said:
                sides[side] = said
            else:
                running[side] = child
        turns = [
            {side: child.work() for side, child in running.items()}
            for _ in range(QUICK_TURNS if quick else TURNS)
        ]
    for side in running:
        speeds = [row.at(quick).tokens / turn[side]["cpu"] for turn in turns]
        every = {name: [turn[side][name] for turn in turns] for name in turns[0][side]}
        sides[side] = {"tokens_per_cpu_second": spread(speeds), "turns": every}
    ratios = {
        side: spread([turn[side]["cpu"] / turn[OURS]["cpu"] for turn in turns])
        for side in running
        if side != OURS
    }
    return {"rates": rates, "sides": sides, "ratios": ratios}


def spread(values: list[float]) -> dict[str, float]:
    digits = lambda x: float(f"{x:.4g}")
    return {
        "min": digits(min(values)),
        "median": digits(statistics.median(values)),
        "max": digits(max(values)),
    }


def current(path: Path, row, quick: bool) -> bool:
    """Whether the figures of a file are of these versions, settings and CPU."""
    if not path.exists():
        return False
    kept = json.loads(path.read_text())
    return (kept["settings"], kept["versions"], kept["machine"]) == (
        settings(row, quick),
        versions(),
        machine(),
    )


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="NAME,...", help="these rows")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--again", action="store_true", help="measure what is measured already too")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to test the command")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument(
        "--write-docs", nargs="?", const=tables.PAGE, type=Path, metavar="PAGE",
        help="write the tables of all results into this page; default: docs/performance.md",
    )  # fmt: skip
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.rows = args.only.split(",") if args.only else [*ROWS]
    if unknown := [name for name in args.rows if name not in ROWS]:
        parser.error(f"--only={args.only}: no row {unknown[0]!r}; --list prints the names")
    if not hasattr(os, "sched_setaffinity"):
        parser.error(f"{platform.system()} pins no process to a core: run it on Linux")
    return args


def main(argv=None) -> int:
    args = arguments(argv)
    if args.list:
        print("\n".join(ROWS))
        return 0
    if args.side:
        children.serve(args.rows[0], args.side, args.quick)
        return 0
    failed = 0
    for name in args.rows:
        row, path = ROWS[name], args.results / f"{name}.json"
        if not args.again and current(path, row, args.quick):
            print(f"{name}: measured already", flush=True)
            continue
        try:
            found = measured(row, args.quick)
        except children.ChildFailed as error:
            failed += 1
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            continue
        args.results.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        ratios = " ".join(f"{x['median']:.2f} × {s}" for s, x in found.get("ratios", {}).items())
        print(f"{name}: {ratios or 'done'}", flush=True)
    if args.write_docs:
        tables.write(args.results, args.write_docs)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
