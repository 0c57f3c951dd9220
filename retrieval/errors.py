"""RetrievalError: every error that the retrieval package raises on purpose."""

import contextlib
import re


class RetrievalError(ValueError):
    """An invalid input or a damaged memory; the memory is unchanged.

    The message names the thing, its value, what was expected and what to do.
    """


class Overtaken(RetrievalError):
    """Another writer changed the passage that this change was based on."""


@contextlib.contextmanager
def in_words(what: str):
    """Turn Lance's exceptions into a RetrievalError.

    On damaged files its Rust code panics, which Python sees as a BaseException.
    """
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
    """Return a dependency's message without the Rust source location that Lance adds."""
    text = re.sub(r",? /\S+\.rs:\d+.*", "", (str(error).splitlines() or [""])[0])
    return text[:200] or type(error).__name__
