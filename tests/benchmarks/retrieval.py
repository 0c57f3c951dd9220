"""Compare indexes at equal recall, and time a memory of 200,000 passages.

python -m tests.benchmarks.retrieval                          # prepare what is missing and measure
python -m tests.benchmarks.retrieval --prepare                # prepare only: an hour, once
python -m tests.benchmarks.retrieval --rows=20000 --sets clusters   # smaller

Reports queries a second, build time, resident memory and edits. Every engine runs in a process of
its own, with one thread a core for batches (`taskset -c 0` makes it one) and one thread for single
queries. Its search settings are the fastest of tests/benchmarks/engines.py, single and batched,
with recall@10 of at least 0.95 over 1,000 queries. Each round runs all engines in turn; tables
show medians over rounds, and medians of the ratios within a round. Prepared files are kept in
~/.cache/openbook/benchmarks; --fresh makes indexes and memories again.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys

from tests.benchmarks import vectors
from tests.benchmarks.engines import ENGINES, THREADS
from tests.benchmarks.index_jobs import JOBS as INDEX_JOBS
from tests.benchmarks.index_jobs import MODES
from tests.benchmarks.memory_jobs import ENCODERS
from tests.benchmarks.memory_jobs import JOBS as MEMORY_JOBS

JOBS = INDEX_JOBS | MEMORY_JOBS
PACKAGES = ("numpy", "scann", "scann-core", "faiss-cpu", "hnswlib", "usearch", "pylance", "jax")


def child(job: str, **arguments) -> dict:
    """Run a job in a process of its own. Returns its answer."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(THREADS)}
    environment.pop("OPENBLAS_CORETYPE", None)  # set by tests that emulate an old CPU
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.retrieval",
        f"--job={json.dumps([job, arguments])}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{job} {arguments} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(header: str, rows: list[list[str]]) -> None:
    print(f"\n| {header} |\n|{'---|' * (header.count('|') + 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def report_set(name: str, facts: dict, rounds: list[dict]) -> None:
    rows = []
    for engine, fact in facts.items():
        both = [
            (
                " ".join(map(str, fact[f"{mode}_setting"])) or "as built",
                f"{fact[f'{mode}_recall']:.3f}",
            )
            for mode in MODES
        ]
        line = [
            f"{engine} ({ENGINES[engine].about})",
            *(" / ".join(dict.fromkeys(part)) for part in zip(*both, strict=True)),
        ]
        for mode in MODES:
            line.append(f"{statistics.median(r[engine][mode] for r in rounds):,.0f}")
            ratios = [r["ScannIndex"][mode] / r[engine][mode] for r in rounds if "ScannIndex" in r]
            line.append(f"{statistics.median(ratios):.2f}" if ratios else "")
        line += [
            f"{fact['build_s']:.0f}",
            f"{fact['build_cpu_s']:.0f}",
            f"{rounds[-1][engine]['index_mb']:.0f}",
        ]
        rows.append([*line, f"{rounds[-1][engine]['process_mb']:.0f}"])
    header = "settings, single / batched | recall@10 | single/s | ours ÷ it | batched/s | ours ÷ it"
    table(f"{name} | {header} | build s | build CPU s | index MB | process MB", rows)
    if "ScannIndex" in facts:
        keys = ("own_single", "own_batched", "layer", "layer_named", "layer_mixed")
        own = {key: statistics.median(r["ScannIndex"][key] for r in rounds) for key in keys}
        print(
            "\nScannIndex at the setting it chose itself: recall@10 "
            f"{facts['ScannIndex']['own_recall']:.3f}, "
            f"{own['own_single']:,.0f} single/s, {own['own_batched']:,.0f} batched/s; "
            f"layer {own['layer']:.2f}, with texts {own['layer_named']:.2f}, mixed "
            f"{own['layer_mixed']:.2f}."
        )


def report_memory(facts: dict, rounds: list[dict]) -> None:
    rows = []
    for encoder in facts:
        median = {
            key: statistics.median(r[encoder][key] for r in rounds) for key in rounds[0][encoder]
        }
        rows.append(
            [
                encoder,
                f"{median['edit_ms']:.1f}",
                f"{median['edit_p95_ms']:.1f}",
                f"{median['search_ms']:.1f}",
                f"{median['open_s']:.2f}",
                f"{median['ready_s']:.2f}",
                f"{facts[encoder]['build_s']:.0f}",
                f"{median['process_mb']:.0f}",
                f"{median['peak_mb']:.0f}",
            ]
        )
    header = (
        "edit to visible ms | p95 | search ms | open s | open and first search s | build s | "
        "process MB | peak MB"
    )
    table(f"memory | {header}", rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="*", choices=vectors.SETS, default=list(vectors.SETS))
    parser.add_argument(
        "--engines",
        nargs="*",
        choices=ENGINES,
        default=[name for name, engine in ENGINES.items() if engine.there()],
    )
    parser.add_argument(
        "--encoders", nargs="*", choices=ENCODERS, default=list(ENCODERS), help="of the memories"
    )
    parser.add_argument("--rows", type=int, default=100_000, help="vectors of each set")
    parser.add_argument("--passages", type=int, default=200_000, help="of a memory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument(
        "--json", metavar="FILE", help="where every figure of every round is written"
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.job:
        job, arguments = json.loads(args.job)
        print(json.dumps(JOBS[job](**arguments)))
        return
    work = (
        vectors.cache() / f"work-{args.rows}-{args.passages}{'-scann-core' * there('scann-core')}"
    )
    if args.fresh:
        shutil.rmtree(work, ignore_errors=True)
    folders = {
        name: str(work / name)
        for name in (*args.sets, *(f"memory-{encoder}" for encoder in args.encoders))
    }
    indexes = {name: {} for name in args.sets}
    for name in args.sets:
        say(f"{name}: vectors")
        child("vectors", name=name, rows=args.rows, folder=folders[name])
        for engine in args.engines:
            say(f"{name}: {engine}")
            indexes[name][engine] = child("prepare", engine=engine, folder=folders[name])
            say(f"    {indexes[name][engine]}")
    memories = {}
    for encoder in args.encoders:
        say(f"memory: {encoder}")
        memories[encoder] = child(
            "create", encoder=encoder, rows=args.passages, folder=folders[f"memory-{encoder}"]
        )
    if args.prepare:
        return
    rounds: dict[str, list] = {name: [] for name in (*args.sets, "memory")}
    for number in range(args.rounds):
        say(f"round {number + 1} of {args.rounds}")
        for name, facts in indexes.items():
            at = {
                e: {f"{mode}_setting": fact[f"{mode}_setting"] for mode in MODES}
                for e, fact in facts.items()
            }
            timed = {e: child("time", engine=e, folder=folders[name], **at[e]) for e in facts}
            rounds[name].append(timed)
        rounds["memory"].append(
            {
                e: child("edits", encoder=e, folder=folders[f"memory-{e}"], number=number)
                for e in memories
            }
        )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"indexes": indexes, "memories": memories, "rounds": rounds}, file, indent=1)
    versions = ", ".join(
        f"{package} {importlib.metadata.version(package)}" for package in PACKAGES if there(package)
    )
    print(
        f"{platform.machine()}, {THREADS} of {os.cpu_count()} CPUs, Python "
        f"{platform.python_version()}; {versions}; {args.rounds} rounds"
    )
    for name, facts in indexes.items():
        report_set(name, facts, rounds[name])
    if memories:
        report_memory(memories, rounds["memory"])


def there(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


if __name__ == "__main__":
    main()
