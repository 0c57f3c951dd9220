"""LaunchError, and how an entry point of this room ends when it meets one."""

import functools
import sys
from collections.abc import Callable


class LaunchError(ValueError):
    """A request that cannot work; the message names the thing, its value, what was expected and what to do."""


def one_line(main: Callable[..., int]) -> Callable[..., int]:
    """Wraps an entry point: a LaunchError becomes one clear message on stderr and exit code 2, never a stack trace."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except LaunchError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return wrapped
