"""Run the tests and list their time by folder and by file.

python -m tests.times [ARGUMENT_OF_PYTEST ...]

The time of a test is that of its setup, call and teardown. A shared fixture counts towards the
first test that uses it. Times of parallel workers are added up. Exit code: pytest's.
"""

import collections
import pathlib
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable

FILES = 30  # number of slowest files listed
SLOWEST = (  # files that tests/conftest.py runs first, the slowest first
    "tests/lm/test_smoke.py",
    "tests/lm/families/test_every_family.py",
    "tests/lm/models/test_model.py",
    "tests/lm/training/test_step.py",
    "tests/lm/generation/test_beams.py",
    "tests/lm/test_weights_real.py",
    "tests/lm/generation/test_encoder_decoders.py",
    "tests/lm/training/test_loop.py",
    "tests/lm/families/test_seq2seq.py",
    "tests/lm/training/test_instruction.py",
    "tests/lm/families/test_greedy.py",
    "tests/lm/tasks/test_contrastive.py",
    "tests/test_same_run.py",
    "tests/lm/test_train.py",
    "tests/retrieval/index/test_approximate.py",
    "tests/lm/evaluation/test_labelled.py",
    "tests/lm/training/test_tfds.py",
    "tests/lm/training/test_further.py",
    "tests/lm/adaptation/test_runs.py",
    "tests/lm/generation/test_hooks.py",
    "tests/retrieval/test_entry_points.py",
    "tests/lm/models/test_neighbours.py",
    "tests/lm/families/test_heads.py",
    "tests/lm/data/test_instruct.py",
    "tests/lm/tasks/test_replaced_token_detection.py",
    "tests/benchmarks/test_retrieval.py",
    "tests/lm/test_generate_command.py",
    "tests/lm/tasks/test_own.py",
    "tests/lm/training/test_source.py",
    "tests/retrieval/test_explorer_browser.py",
    "tests/lm/adaptation/test_penalties.py",
    "tests/lm/evaluation/evaluators/test_evaluators.py",
    "tests/lm/families/test_parity.py",
    "tests/lm/generation/test_engine.py",
    "tests/test_day_one.py",
)


def read(report: pathlib.Path) -> list[tuple[str, float]]:
    """Read (file, seconds) of every test in a JUnit report of the family xunit1."""
    cases = ElementTree.parse(report).iter("testcase")
    return [(case.get("file", "?"), float(case.get("time", 0))) for case in cases]


def table(cases: Iterable[tuple[str, float]], files: int = FILES) -> list[str]:
    """Lines of the table: all folders, then the slowest files, both slowest first.

    Each line has the seconds, the share of the total and the number of tests.
    """
    by_folder, by_file, tests = collections.Counter(), collections.Counter(), collections.Counter()
    for file, seconds in cases:
        folder = file.rpartition("/")[0] or "."
        by_folder[folder] += seconds
        by_file[file] += seconds
        tests.update((folder, file))
    total = sum(by_file.values())
    lines = [f"{sum(tests[file] for file in by_file):,} tests, {total:,.0f} s"]
    for title, times in (("folder", by_folder.most_common()), ("file", by_file.most_common(files))):
        lines += ["", f"seconds  share  tests  {title}"]
        lines += [f"{s:7.1f}  {s / (total or 1):5.1%}  {tests[n]:5}  {n}" for n, s in times]
    return lines


def main(argv: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.xml"
        options = ["-o", "junit_family=xunit1", f"--junitxml={report}"]
        begun = time.monotonic()
        code = subprocess.run([sys.executable, "-m", "pytest", *options, *argv]).returncode
        if report.exists():
            print(
                "\n".join(["", *table(read(report)), f"{time.monotonic() - begun:,.0f} s waited"])
            )
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
