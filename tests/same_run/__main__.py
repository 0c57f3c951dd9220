"""Compare the results of two checkouts bit for bit, to check that a refactoring changes nothing.

python -m tests.same_run OTHER_CHECKOUT            # compare with another checkout or worktree
python -m tests.same_run --record FILE [CHECKOUT]  # record a checkout (default: this one)
python -m tests.same_run FILE                      # compare this checkout with a record

Both checkouts train the same small runs on eight CPU devices. These results are compared: the
loss, weight, gradient norm and evaluation of every step, the final parameters, the StableHLO of
three training steps, and the memory, evaluations and exports made from the runs. This checkout
also reads the memory and the runs of the other one.

Exit code: 0 all results are the same; 1 a result differs or a job failed; 2 nothing was compared.
"""

import argparse
import dataclasses
import itertools
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time

from tests.same_run import compare, jobs, record
from tests.same_run.processes import FOLDERS, Processes, Side, batches

ROOT = pathlib.Path(__file__).parents[2]
PAUSE = 0.2  # seconds between checks for ended processes
HERE, THERE, INPUTS, DIFFERENCES = "here", "there", "inputs", "differences"  # folders in DIR


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.same_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("other", nargs="?", type=pathlib.Path, help="a checkout, or a record")
    parser.add_argument("--record", type=pathlib.Path, metavar="FILE", help="write a record")
    parser.add_argument("--only", default="*", metavar="GLOB", help="these jobs and their needs")
    parser.add_argument("--list", action="store_true", help="list the jobs")
    parser.add_argument("--keep", type=pathlib.Path, metavar="DIR", help="keep runs and logs there")
    parser.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="run at most N at a time (default: the number of cores)",
    )
    args = parser.parse_args(argv)
    if not (args.other or args.record or args.list):
        parser.error("give another checkout or a record, or --record=FILE, or --list")
    if args.processes < 1:
        parser.error(f"--processes={args.processes}: expected at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    chosen = jobs.chosen(args.only, jobs.JOBS)
    if not chosen:
        print(f"error: --only={args.only!r} matches no job; --list shows all", file=sys.stderr)
        return 2
    if args.list:
        for job in chosen:
            changes = " ".join(f"{name}={value}" for name, value in job.changes.items())
            print(
                f"{job.name:<32} {job.config}:{job.variant} {changes}" if job.variant else job.name
            )
        return 0
    try:
        folder = scratch(args.keep)
    except record.RecordError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the worker processes too
    try:
        code = recorded(args, chosen, folder) if args.record else compared(args, chosen, folder)
    except (record.RecordError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    if code == 1 or args.keep:
        print(f"runs, logs and differences are in {folder}")
    else:
        shutil.rmtree(folder)
    return code


def scratch(keep: pathlib.Path | None) -> pathlib.Path:
    """Make a folder that is empty except for the compiled programs of an earlier call.

    Raise RecordError if DIR holds other files.
    """
    if keep is None:
        return pathlib.Path(tempfile.mkdtemp(prefix="same_run_"))
    folder = keep.resolve()
    if folder.exists() and any(folder.iterdir()) and not (folder / INPUTS).is_dir():
        raise record.RecordError(f"--keep={keep} holds other files: give a new folder")
    of_sides = [f"{side}/{name}" for side in (HERE, THERE) for name in FOLDERS]
    for name in (INPUTS, DIFFERENCES, *of_sides):
        shutil.rmtree(folder / name, ignore_errors=True)
    return folder


def checkout(path: pathlib.Path) -> pathlib.Path:
    """Return the absolute path of a checkout. Raise RecordError if it is not one."""
    if not (path / "configs" / "smoke.py").is_file():
        raise record.RecordError(f"{path} is no checkout: it has no configs/smoke.py")
    return path.resolve()


def recorded(args: argparse.Namespace, chosen: list[jobs.Job], folder: pathlib.Path) -> int:
    side = Side(checkout(args.other or ROOT), folder / HERE)
    wanted = [job for job in chosen if not job.of_other]
    texts = jobs.inputs(side.checkout)
    write(folder / INPUTS, texts)
    processes = Processes(batches(side, wanted), folder / INPUTS, args.processes)
    verdicts = watched(processes, Table(wanted, folder, side, side))
    if failed := [name for name, verdict in verdicts.items() if verdict != compare.SAME]:
        print(f"{args.record} was not written, since these failed: {', '.join(failed)}")
        return 1
    results = {job.name: side.result(job.name) | {"asked": jobs.asked(job)} for job in wanted}
    record.save(args.record, side, texts, results)
    print(f"wrote {args.record} and {record.archive_of(args.record)}")
    return 0


def compared(args: argparse.Namespace, chosen: list[jobs.Job], folder: pathlib.Path) -> int:
    here = Side(checkout(ROOT), folder / HERE, made=folder / THERE)
    if args.other.is_file():
        there = Side(args.other, folder / THERE)
        content = record.load(args.other)
        record.unpack(args.other, content, there, chosen)
        write(folder / INPUTS, content["inputs"])
        waiting = batches(here, chosen)
    else:
        there = Side(checkout(args.other), folder / THERE)
        write(folder / INPUTS, jobs.inputs(ROOT))
        pairs = itertools.zip_longest(batches(here, chosen, after=there), batches(there, chosen))
        waiting = [batch for pair in pairs for batch in pair if batch]
    table = Table(chosen, folder, here, there)
    verdicts = watched(Processes(waiting, folder / INPUTS, args.processes), table)
    others = {name: verdict for name, verdict in verdicts.items() if verdict != compare.SAME}
    print(f"{len(others)} of {len(verdicts)} jobs differ or failed" if others else "all the same")
    return int(bool(others))


def write(folder: pathlib.Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")


@dataclasses.dataclass
class Table:
    """Table of results, one line per job.

    A line is printed when both sides have finished the job, with an estimate of the remaining time.
    """

    jobs: list[jobs.Job]
    folder: pathlib.Path
    here: Side
    there: Side

    def __post_init__(self):
        self.open, self.verdicts, self.begun = list(self.jobs), {}, time.monotonic()

    def look(self) -> None:
        for job in list(self.open):
            if found := compare.judged(job, self.here, self.there, self.folder / DIFFERENCES):
                self.open.remove(job)
                self.verdicts[job.name] = found.verdict
                self._print(job, found)

    def _print(self, job: jobs.Job, found: compare.Judged) -> None:
        done, all_jobs = len(self.verdicts), len(self.jobs)
        left = (time.monotonic() - self.begun) / done * (all_jobs - done) / 60
        eta = f"  about {left:.0f} min left" if self.open else ""
        number = f"{done:>2}/{all_jobs}"
        print(
            f"{number}  {job.name:<30} {found.verdict:<7} {found.seconds:4.0f} s  {found.said}{eta}"
        )
        print("".join(f"         {line}\n" for line in found.lines), end="", flush=True)


def watched(processes: Processes, table: Table) -> dict[str, str]:
    """Run the processes and print the table. Return job -> verdict."""
    try:
        while processes.step():
            table.look()
            time.sleep(PAUSE)
        table.look()
    finally:
        processes.stop()
    assert not table.open, f"no process did {table.open[0].name}"
    return table.verdicts


if __name__ == "__main__":
    sys.exit(main())
