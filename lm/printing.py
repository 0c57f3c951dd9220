"""Output of entry points: broken pipes, and the name of the command as it was typed."""

import contextlib
import os
import sys
from collections.abc import Generator

typed: str = ""  # such as "openbook edit", set by the console script


@contextlib.contextmanager
def piped() -> Generator[None]:
    """Ignore a closed pipe while the block prints, as after `| head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # the interpreter would flush again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def program(module: str) -> str:
    """Command as it was typed: "openbook edit", or "python -m" with its module."""
    return typed or f"python -m {module}"
