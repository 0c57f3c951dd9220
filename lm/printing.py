"""What entry points print may be read in part."""

import contextlib
import os
import sys
from collections.abc import Generator


@contextlib.contextmanager
def piped() -> Generator[None]:
    """What is printed in the block ends quietly when nobody reads it any more, as after `| head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # the interpreter would try again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
