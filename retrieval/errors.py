"""RetrievalError: everything this room refuses, in words."""

import contextlib


class RetrievalError(ValueError):
    """The message names the thing, its value, what was expected and what to do; the memory is unchanged."""


@contextlib.contextmanager
def in_words(what: str):
    """Turns what Lance raises into a RetrievalError; on damaged files its Rust code panics, which Python sees as a BaseException."""
    try:
        yield
    except RetrievalError:
        raise
    except BaseException as error:
        if not isinstance(error, OSError | ValueError | RuntimeError) and type(error).__name__ != "PanicException":
            raise
        raise RetrievalError(f"{what} ({first_line(error)})") from None


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
