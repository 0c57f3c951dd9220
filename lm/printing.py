"""What entry points print: it may be read in part, and names the command as it was typed."""

import contextlib
import os
import sys
from collections.abc import Generator

typed: str = ""  # "openbook edit", while the console script runs that command


@contextlib.contextmanager
def piped() -> Generator[None]:
    """What is printed in the block ends quietly when nobody reads it any more, as after `| head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # the interpreter would try again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def program(module: str) -> str:
    """How the running command was typed: "openbook edit", or "python -m" with its module."""
    return typed or f"python -m {module}"
