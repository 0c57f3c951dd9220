"""RetrievalError: everything this room refuses, in words."""

import contextlib
import re


class RetrievalError(ValueError):
    """The message names the thing, its value, what was expected and what to do; the memory is unchanged."""


class Overtaken(RetrievalError):
    """Another writer changed what this change was made from."""


@contextlib.contextmanager
def in_words(what: str):
    """Turns what Lance raises into a RetrievalError; on damaged files its Rust code panics, which Python sees as a BaseException."""
    try:
        yield
    except RetrievalError:
        raise
    except BaseException as error:
        if (
            not isinstance(error, OSError | ValueError | RuntimeError)
            and type(error).__name__ != "PanicException"
        ):
            raise
        raise RetrievalError(f"{what} ({first_line(error)})") from None


def first_line(error: BaseException) -> str:
    """What a dependency says, without the place in its own source that Lance adds."""
    text = re.sub(r",? /\S+\.rs:\d+.*", "", (str(error).splitlines() or [""])[0])
    return text[:200] or type(error).__name__
