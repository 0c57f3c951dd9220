"""Commands whose output nobody reads to the end, as after `| head`."""

import os
import subprocess
import sys

import pytest

from lm.data import rendering
from lm.data.preview import Check
from lm.printing import piped


@pytest.fixture
def unread(monkeypatch):
    """Standard output is a pipe that nobody reads; returns what it was."""
    ends = os.pipe()
    os.close(ends[0])
    with open(ends[1], "w", encoding="utf-8") as out:
        monkeypatch.setattr(sys, "stdout", out)
        yield out


def test_a_command_whose_reader_has_gone_ends_in_a_trace():
    ends = os.pipe()
    os.close(ends[0])
    done = subprocess.run([sys.executable, "-m", "lm.families"], stdout=ends[1], stderr=subprocess.PIPE, text=True)
    os.close(ends[1])
    assert (done.returncode, done.stderr) == (0, "")


def test_a_preview_whose_reader_has_gone_says_that_a_check_failed(unread):
    with piped():
        rendering.show([], [Check("stop tokens", True, "x" * 100_000)])
    print("nobody is told", flush=True)


def test_other_errors_are_lost():
    with pytest.raises(ValueError, match="wrong"), piped():
        raise ValueError("wrong")
