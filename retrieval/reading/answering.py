"""Answering questions closed-book and open-book: the same reader without and with a memory."""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from retrieval.doors.door import Asked, Door, Find, Read, check
from retrieval.doors.in_context import IN_CONTEXT
from retrieval.doors.running import answers
from retrieval.errors import RetrievalError
from retrieval.ingest.sentences import sentences
from retrieval.memory import Memory
from retrieval.passages import Hit, titled
from retrieval.reading.extracting import Extractor
from retrieval.reading.reader import Reader
from retrieval.reading.support import supported
from retrieval.reading.when import When, drafts
from retrieval.store.words import words

# Least cosine of the best passage for a known answer; for MiniLM, chosen as docs/memory.md says.
FLOOR = 0.25
REFUSAL = re.compile(
    r"\b(i (don.?t|do not|can ?not|can.?t) (know|answer|tell|find)|i( a|.?)m not sure"
    r"|no information|(not enough|insufficient) information"
    r"|(is|are|was|were) not (\w+ )?(mentioned|stated|given|provided|known)"
    r"|do(es)? not (mention|say|state|give|provide)"
    r"|(can ?not|can.?t) be (determined|answered|known))|^\W*(unknown|n/a)\W*$"
    r"|\b(is|are|was|were|remains?) unknown\b",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answers to a question and the passages that support the open-book one.

    citations: the passages shown to the reader that contain the answer's words; all shown passages
    if none does.
    sentences: per citation, its sentence that best supports the answer, verbatim.
    known: whether the memory supports `text`; if not, say so instead of showing `text`.
    cut: tokens of the passages shown that the reader could not read.
    retrieved: whether passages were looked for; if not, `text` is `closed_book_text`, and known.
    measure: what `when` compared with its threshold.
    """

    question: str
    text: str
    citations: tuple[Hit, ...]
    closed_book_text: str
    sentences: tuple[str, ...] = ()
    known: bool = True
    cut: int = 0
    retrieved: bool = True
    measure: float | None = dataclasses.field(default=None, compare=False)


class Searchable(Protocol):
    """What `answer` searches: a Memory, or a view of one."""

    def search(self, texts: Sequence[str], k: int = 5) -> list[list[Hit]]: ...


@dataclasses.dataclass(frozen=True)
class View:
    """A memory that is always searched with the same `options`, such as groups; see
    `Memory.search`.
    """

    memory: Memory
    options: dict

    def search(self, texts: Sequence[str], k: int = 5) -> list[list[Hit]]:
        return self.memory.search(texts, k, **self.options)


def of_one_version(memory: Searchable, k: int) -> Find:
    """Search for k passages, always in the version of the first search.

    A change of the memory meanwhile is not seen; views of a memory keep what they leave out.
    """
    base, version, past = memory, None, None
    while not isinstance(base, Memory) and hasattr(base, "memory"):
        base = base.memory

    def at(view: Any) -> Any:
        if view is base:
            return view.as_of(version)
        return dataclasses.replace(view, memory=at(view.memory))

    def find(texts: Sequence[str]) -> list[list[Hit]]:
        nonlocal version, past
        found = (past or memory).search(texts, k)
        if past is None and isinstance(base, Memory):
            version = base.version if version is None else version
            if base.version != version:
                past = at(memory)
                found = past.search(texts, k)
        return found

    return find


def answer(
    questions: Sequence[str],
    memory: Searchable,
    reader: Reader | Extractor,
    k: int = 3,
    max_new_tokens: int = 24,
    on_batch: Callable[[int], None] | None = None,
    floor: float = FLOOR,
    door: Door = IN_CONTEXT,
    when: When | None = None,
    records: Sequence[Mapping] = (),
) -> list[Answer]:
    """Answer every question from the reader's weights alone and from at most k passages.

    An empty memory gives the closed-book answer twice, without citations. on_batch(number) is
    called as answers finish; there are two per question. floor: see `is_known`. door: how passages
    reach the reader. when: which questions passages are read for (default: all); the others have
    the closed-book answer. records: rows that the questions are of, for `when`. All passages are of
    one version of the memory.

    Raises RetrievalError, before the reader runs, for a question that is blank or too long, and for
    a door that does not serve the reader.
    """
    if isinstance(floor, bool) or not isinstance(floor, int | float) or not math.isfinite(floor):
        raise RetrievalError(
            f"floor={floor!r}: expected a cosine, below which the memory does not know"
        )
    questions = [questions] if isinstance(questions, str) else list(questions)
    if not questions:
        return []
    if model := getattr(reader, "model", None):
        check(door, model.config)
    find = of_one_version(memory, k)
    if when is not None:
        return _as_needed(
            questions, memory, reader, k, max_new_tokens, on_batch, floor, door, when, records
        )
    closed = [Asked(question) for question in questions]
    hits = find(questions)
    opened = [
        Asked(question, tuple(found)) for question, found in zip(questions, hits, strict=True)
    ]
    # One call for both: a single question is then one batch, compiled once.
    if isinstance(reader, Extractor):
        read = reader.read([*closed, *opened], on_batch)
    else:
        read = answers(door, reader, [*closed, *opened], find, max_new_tokens, on_batch)
    return [
        _answer(question, one, alone.text, floor)
        for question, one, alone in zip(
            questions, read[len(closed) :], read[: len(closed)], strict=True
        )
    ]


def _as_needed(
    questions, memory, reader, k, max_new_tokens, on_batch, floor, door, when, records
) -> list[Answer]:
    """Answers closed-book, then from passages where `when` says so."""
    begun = drafts(door, reader, questions, max_new_tokens, records, on_batch)
    find = of_one_version(memory, k)
    measures = when.measures(begun, memory)
    wanted = [draft for draft, read in zip(begun, when.read(measures), strict=True) if read]
    hits = find([draft.question for draft in wanted]) if wanted else []
    opened = [Asked(d.question, tuple(found)) for d, found in zip(wanted, hits, strict=True)]
    read = answers(door, reader, opened, find, max_new_tokens, on_batch) if opened else []
    if on_batch is not None and len(wanted) < len(begun):
        on_batch(len(begun) - len(wanted))
    told = {
        id(draft): _answer(draft.question, one, draft.text, floor)
        for draft, one in zip(wanted, read, strict=True)
    }
    skipped = lambda draft: Answer(draft.question, draft.text, (), draft.text, retrieved=False)
    return [
        dataclasses.replace(told.get(id(draft)) or skipped(draft), measure=value)
        for draft, value in zip(begun, measures, strict=True)
    ]


def _answer(question: str, read: Read, closed_text: str, floor: float) -> Answer:
    text, shown = read.text, read.shown
    cited = shown if read.label else citations(text, shown)
    supporting = tuple(supporting_sentence(hit.text, question, text) for hit in cited)
    known = (
        any(hit.score >= floor for hit in shown)
        if read.label
        else is_known(question, text, shown, floor)
    )
    return Answer(question, text, cited, closed_text, supporting, known, read.cut)


def citations(text: str, shown: Sequence[Hit]) -> tuple[Hit, ...]:
    """Return the shown passages that contain most of the answer's words.

    All of them if no passage contains half of the words.
    """
    said = set(words(text))
    if not said or not shown:
        return tuple(shown)
    shares = [len(said.intersection(words(f"{hit.title} {hit.text}"))) / len(said) for hit in shown]
    best = max(shares)
    return (
        tuple(hit for hit, share in zip(shown, shares, strict=True) if share == best)
        if best >= 0.5
        else tuple(shown)
    )


def supporting_sentence(passage: str, question: str, text: str) -> str:
    """Return the sentence of a passage that shares most words with the answer and question.

    A shared word counts 2 if it is the answer's plus 1 if it is the question's, divided by the
    number of sentences that contain it. The first of equal sentences is returned.
    """
    parts = [passage[start:end] for start, end in sentences(passage, 0, len(passage))] or [passage]
    found = [set(words(part)) for part in parts]
    held = collections.Counter(word for part in found for word in part)
    asked, said = set(words(question)), set(words(text))
    weight = lambda word: ((word in asked) + 2 * (word in said)) / held[word]
    scores = [math.fsum(map(weight, part)) for part in found]
    return parts[scores.index(max(scores))]


def is_known(question: str, text: str, shown: Sequence[Hit], floor: float = FLOOR) -> bool:
    """Whether the passages shown support an answer.

    The best passage must score at least `floor`, the reader must not refuse, and one passage must
    contain all that the answer adds to the question (see `support.supported`).
    """
    near = any(hit.score >= floor for hit in shown)
    if not near or not text.strip() or REFUSAL.search(text):
        return False
    return supported(question, text, [titled(hit.title, hit.text) for hit in shown])
