"""LaunchError, how an entry point of this room ends when it meets one, and the hint that goes into it. Needs nothing heavy."""

import difflib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterable


class LaunchError(ValueError):
    """A request that cannot work; the message names the thing, its value, what was expected and what to do."""


def one_line(main: Callable[..., int]) -> Callable[..., int]:
    """Wraps an entry point: a LaunchError becomes one message on stderr and exit code 2, Ctrl-C exit code 130, never a stack trace."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        try:
            code = main(*args, **kwargs)
            sys.stdout.flush()
            return code
        except LaunchError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except (
            BrokenPipeError
        ):  # who reads has seen enough, as `head` has; Python flushes once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        except KeyboardInterrupt:
            return 130

    return wrapped


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' when some known name is close, else ''. As in lm.models.config, without importing JAX."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
