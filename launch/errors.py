"""LaunchError, its handling by entry points, and hints for messages. Imports nothing slow."""

import difflib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterable


class LaunchError(ValueError):
    """Invalid request. The message names the thing, its value, what was expected and what to do."""


def one_line(main: Callable[..., int]) -> Callable[..., int]:
    """Wrap an entry point so that it never ends with a stack trace.

    A LaunchError becomes one message on stderr and exit code 2; Ctrl-C gives 130. If the reader of
    the output has gone, it ends quietly with 141.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        try:
            try:
                return main(*args, **kwargs)
            finally:
                sys.stdout.flush()
        except LaunchError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except BrokenPipeError:
            unread()
            return 128 + signal.SIGPIPE
        except KeyboardInterrupt:
            return 130

    return wrapped


def unread() -> None:
    """Discard all further output: its reader has gone, and Python flushes once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def nearest(name: str, known: Iterable[str]) -> str:
    """Hint ' (did you mean ...?)' for a similar known name, else ''.

    A copy of lm.models.config.nearest, to avoid importing JAX.
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
