"""The store of a memory that a task of a config searches."""

from lm.models.config import ConfigError
from retrieval.errors import RetrievalError
from retrieval.store.store import Store


def store(memory: str) -> Store:
    """Open the store of task.memory, with no encoder.

    Raises ConfigError if there is none, or if its encoder has no path.
    """
    try:
        found = Store.open(memory)
    except RetrievalError as error:
        raise ConfigError(f"task.memory: {error}") from None
    if not found.encoder_source:
        raise ConfigError(
            f"task.memory={memory!r} was made with an encoder that has no path, so that questions "
            "cannot be searched here; make it with one that is in a folder"
        )
    return found
