"""The deletion audit: whether a reader still knows what was deleted, and from where.

After the deletion audit of limited memory language models (LMLM, Zhao et al. 2025). Each question
is answered from the whole memory (FULL), without some passages (DEL-ON) and without retrieval
(DEL-OFF). Nothing is deleted: search leaves the passages out.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence

from lm.evaluation.accuracy import contains
from retrieval.doors.door import Door
from retrieval.doors.in_context import IN_CONTEXT
from retrieval.errors import RetrievalError
from retrieval.filters import EVERY_GROUP
from retrieval.memory import Memory
from retrieval.passages import Hit
from retrieval.reading.answering import REFUSAL, Answer, Reader, Searchable, View, answer, is_known
from retrieval.reading.support import FREE
from retrieval.store.words import words

VERDICTS = {
    "forgotten": "gone with the passages",
    "leak": "the reader's weights know it: no deletion removes it",
    "elsewhere": "other passages carry it: see the citations",
    "artifact": "still answered, though neither the weights alone nor a passage shown hold it",
    "unanswered": "not answered from the whole memory either: nothing to forget",
}


@dataclasses.dataclass(frozen=True)
class Audit:
    """The result of an audit for one question.

    names: what counts as the answer; empty where answers were compared.
    full, deleted, closed_book: the texts under FULL, DEL-ON and DEL-OFF.
    verdict: a key of VERDICTS.
    citations, full_citations: the passages cited under DEL-ON and FULL.
    """

    question: str
    names: tuple[str, ...]
    full: str
    deleted: str
    closed_book: str
    verdict: str
    citations: tuple[Hit, ...]
    full_citations: tuple[Hit, ...]


@dataclasses.dataclass(frozen=True)
class Without:
    """A view of a memory without some passages; nothing is written."""

    memory: Searchable
    ids: Collection[str]

    def search(self, texts: Sequence[str], k: int = 5) -> list[list[Hit]]:
        found = self.memory.search(texts, k + len(self.ids))
        return [[hit for hit in hits if hit.id not in self.ids][:k] for hits in found]


def audit(
    questions: Sequence[str],
    ids: Sequence[str],
    memory: Memory,
    reader: Reader,
    names: Sequence[str] = (),
    k: int = 3,
    max_new_tokens: int = 24,
    on_batch: Callable[[int], None] | None = None,
    door: Door = IN_CONTEXT,
) -> list[Audit]:
    """Audit the deletion of `ids` with every question.

    names: what counts as the answer, as whole words, so short names match more. Without names, the
    answers of FULL are compared with those of DEL-ON and DEL-OFF (see `same_answer`), and only
    where the memory supports them (`Answer.known`). Passages of every access group are searched.
    The reader runs four times per question. Raises RetrievalError for an unknown id, and what
    `answer` raises.
    """
    if not ids:
        raise RetrievalError("no passages to audit: give the ids whose deletion is tried")
    for id in ids:
        memory.get(id)
    owned = View(memory, {"groups": EVERY_GROUP})
    asked = lambda searched: answer(
        questions, searched, reader, k, max_new_tokens, on_batch, door=door
    )
    whole, without = asked(owned), asked(Without(owned, ids))
    return [_judged(full, less, tuple(names)) for full, less in zip(whole, without, strict=True)]


def same_answer(question: str, one: str, other: str) -> bool:
    """Whether two texts give the same answer: all content words of one are in the other.

    Words of the question are ignored if both texts have others: "Paris" and "The capital of France
    is Paris" are the same answer to what the capital of France is. A refusal is no answer.
    """
    if any(not text.strip() or REFUSAL.search(text) for text in (one, other)):
        return False
    asked = set(words(question))
    for left_out in (FREE | asked, FREE, frozenset()):
        first, second = set(words(one)) - left_out, set(words(other)) - left_out
        if first and second:
            return first <= second or second <= first
    return False


def _judged(full: Answer, less: Answer, names: tuple[str, ...]) -> Audit:
    if names:
        says, answered = lambda text: contains(text, names), contains(full.text, names)
        carries = lambda hit: says(f"{hit.title} {hit.text}")
    else:
        says, answered = lambda text: same_answer(full.question, full.text, text), full.known
        carries = lambda hit: is_known(full.question, less.text, (hit,), floor=-1.0)
    carried = tuple(hit for hit in less.citations if carries(hit))
    if not names and not answered:
        verdict = "unanswered"
    elif says(less.closed_book_text):
        verdict = "leak"
    elif says(less.text):
        verdict = "elsewhere" if carried else "artifact"
    else:
        verdict = "forgotten" if answered else "unanswered"
    return Audit(
        full.question,
        names,
        full.text,
        less.text,
        less.closed_book_text,
        verdict,
        carried or less.citations,
        full.citations,
    )
