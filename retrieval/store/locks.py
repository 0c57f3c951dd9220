"""Locks: one writer among processes (a locked file); many readers or one writer among threads."""

import contextlib
import fcntl
import os
import threading
import time
from pathlib import Path

from retrieval.errors import RetrievalError

WAIT_SECONDS = 120.0


@contextlib.contextmanager
def file_lock(path: Path, wait_seconds: float = WAIT_SECONDS):
    """Hold an exclusive lock on `path`, which is created when missing.

    The operating system releases it when the process dies. The holder may remove or move the file:
    a waiting process then locks the file that is there. Raises RetrievalError when another process
    or thread holds it for longer than `wait_seconds`.
    """
    deadline = time.monotonic() + wait_seconds
    while (descriptor := _locked(path)) is None:
        if time.monotonic() > deadline:
            raise RetrievalError(
                f"{path} is held by another writer for more than {wait_seconds:g} s: wait for it "
                "to finish, then try again"
            )
        time.sleep(0.005)
    try:
        yield
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int | None:
    """Return a descriptor that holds the lock; None if it is held elsewhere."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RetrievalError(
            f"{path} cannot be opened for writing ({error.strerror}): a memory needs a writable "
            "folder to be changed"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


class ReadersWriter:
    """A lock for many readers or one writer; a waiting writer goes first. Not reentrant."""

    def __init__(self):
        self._mutex = threading.Lock()
        self._condition = threading.Condition(self._mutex)
        self._readers = 0
        self._writers_waiting = 0
        self._writing = False

    def read(self) -> "ReadersWriter":
        """Use as `with lock.read():`; costs about a microsecond, once per search."""
        return self

    def __enter__(self) -> None:
        with self._mutex:
            while self._writing or self._writers_waiting:
                self._condition.wait()
            self._readers += 1

    def __exit__(self, *_) -> None:
        with self._mutex:
            self._readers -= 1
            if not self._readers:
                self._condition.notify_all()

    @contextlib.contextmanager
    def write(self):
        with self._condition:
            self._writers_waiting += 1
            self._condition.wait_for(lambda: not self._writing and not self._readers)
            self._writers_waiting -= 1
            self._writing = True
        try:
            yield
        finally:
            with self._condition:
                self._writing = False
                self._condition.notify_all()
