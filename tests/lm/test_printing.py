"""Commands whose reader closes the pipe, as `| head` does."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lm
from launch.errors import one_line
from lm import interrupts
from lm.data.preview import rendering
from lm.data.preview.preview import Check
from lm.printing import piped


@contextlib.contextmanager
def unread():
    """Replace standard output by a pipe that nobody reads.

    This is not a fixture, because pytest sets its own output for each phase of a test.
    """
    ends = os.pipe()
    os.close(ends[0])
    # No `with`: closing may raise, which must not hide an error of the block.
    out = open(ends[1], "w", encoding="utf-8")  # noqa: SIM115
    try:
        with contextlib.redirect_stdout(out):
            yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            out.close()


def test_a_command_whose_reader_has_gone_ends_in_a_trace():
    ends = os.pipe()
    os.close(ends[0])
    done = subprocess.run(
        [sys.executable, "-m", "lm.families"], stdout=ends[1], stderr=subprocess.PIPE, text=True
    )
    os.close(ends[1])
    assert (done.returncode, done.stderr) == (0, "")


def test_a_preview_whose_reader_has_gone_says_that_a_check_failed():
    with unread():
        with piped():
            rendering.show([], [Check("stop tokens", True, "x" * 100_000)])
        print("nobody is told", flush=True)


def test_an_entry_point_is_not_wrapped():
    """Every module that is run with `python -m` ends quietly where its reader has gone."""
    root = Path(lm.__file__).parents[1]
    internal = {root / "launch/resolve.py"}  # whose reader is a study
    for room in ("lm", "retrieval", "launch"):
        for file in sorted({*(root / room).rglob("*.py")} - internal):
            text = file.read_text()
            if 'if __name__ == "__main__":' in text:
                assert re.search(
                    r"@(entry_point|one_line)\ndef main\(|with piped\(\):\n +main", text
                ), file


@pytest.mark.parametrize("wrap", [interrupts.entry_point, one_line])
def test_help_that_nobody_reads_says_an_error(wrap):
    """argparse leaves by SystemExit, with the text still to be written."""

    @wrap
    def main(argv=None):
        print("usage")
        raise SystemExit(0)

    with unread():
        assert main([]) == 141


@pytest.mark.parametrize("wrap", [interrupts.entry_point, one_line])
def test_an_entry_point_whose_reader_has_gone_says_an_error(wrap):
    @wrap
    def main(argv=None):
        try:
            print("x" * 100_000, flush=True)
        except BrokenPipeError:
            raise
        except OSError:
            return 2
        return 0

    with unread():
        assert main([]) == 141


def test_a_broken_pipe_is_taken_for_a_file_that_cannot_be_read():
    """Every entry point that turns an OSError into a line lets BrokenPipeError through."""
    files = [
        file for file in Path(lm.__file__).parent.glob("*.py") if "@entry_point" in file.read_text()
    ]
    for file in files:
        text = file.read_text()
        assert text.count("except BrokenPipeError:\n") == len(
            re.findall(r"except \([^\n]*OSError\)", text)
        ), file
    assert len(files) > 8


def test_other_errors_are_lost():
    with pytest.raises(ValueError, match="wrong"), piped():
        raise ValueError("wrong")
