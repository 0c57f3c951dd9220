"""Background answering for the explorer: one reader thread, cached by question and version."""

import collections
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from retrieval.doors.door import Door
from retrieval.doors.in_context import IN_CONTEXT
from retrieval.doors.knn import KnnLM
from retrieval.filters import EVERY_GROUP
from retrieval.memory import Memory
from retrieval.reading.answering import Answer, Reader, View, answer
from retrieval.reading.explaining import Explained, explained

REMEMBERED = 200
STEPS = 2  # closed-book, then open-book


class Job:
    """A question put to one version of the memory.

    done: how many of its two answers (closed-book, open-book) are finished. told: the answer with
    a token datastore mixed in, if there is one.
    """

    told: Explained | None = None

    def __init__(self, question: str, version: int):
        self.question, self.version, self.done = question, version, 0
        self.result: Future[Answer] = Future()

    @property
    def finished(self) -> bool:
        return self.result.done()

    @property
    def answer(self) -> Answer:
        return self.result.result()


class Answers:
    """A queue and cache of answers; `ask` returns at once.

    A question to one version is answered once. hook: a kNN-LM, which also answers questions to the
    newest version.
    """

    def __init__(self, reader: Reader, door: Door | None = None, hook: KnnLM | None = None):
        self._reader, self._door, self._hook = reader, door or IN_CONTEXT, hook
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._jobs: collections.OrderedDict[tuple[str, int], Job] = collections.OrderedDict()
        self._lock = threading.Lock()

    def ask(self, question: str, memory: Memory) -> Job:
        key = (question, memory.version)
        with self._lock:
            if key not in self._jobs:
                self._jobs[key] = Job(*key)
                self._thread.submit(self._run, self._jobs[key], memory)
            self._jobs.move_to_end(key)
            while len(self._jobs) > REMEMBERED:
                self._jobs.popitem(last=False)
            return self._jobs[key]

    def forget(self, job: Job) -> None:
        """Drop a job, so that its question is tried again when asked again."""
        with self._lock:
            self._jobs.pop((job.question, job.version), None)

    def before(self, question: str, version: int) -> Job | None:
        """Return the finished job of the question at the latest earlier version it was asked at."""
        with self._lock:
            jobs = [
                job
                for job in self._jobs.values()
                if job.question == question and job.version < version and job.finished
            ]
        earlier = [job for job in jobs if job.result.exception() is None]
        return max(earlier, key=lambda job: job.version) if earlier else None

    def close(self) -> None:
        """Stop without answering the queued questions."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self, job: Job, memory: Memory) -> None:
        def count(number: int) -> None:
            job.done += number

        def answered(asked: Memory) -> Answer:
            job.done = 0
            return answer(
                [job.question],
                View(asked, {"groups": EVERY_GROUP}),
                self._reader,
                on_batch=count,
                door=self._door,
            )[0]

        try:
            newest = self._hook is not None and memory is self._hook.memory
            if newest and memory.version == job.version:
                job.told = explained([job.question], self._reader, self._hook)[0]
            made = answered(memory) if memory.version == job.version else None
            # The memory may have changed since the question was asked.
            if made is None or memory.version != job.version:
                made = answered(memory.as_of(job.version))
            job.result.set_result(made)
        except Exception as error:  # shown by the page; the thread must go on
            job.result.set_exception(error)
