"""The deletion audit: does a reader still know what was taken out of its memory, and if so, from where?

After the deletion audit of limited memory language models (LMLM, Zhao et al. 2025): each question is answered from the whole memory
(FULL), with passages left out (DEL-ON), and without any retrieval (DEL-OFF). Nothing is deleted: search leaves the passages out.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence

from lm.evaluation.accuracy import contains
from retrieval.answering import REFUSAL, Answer, Reader, Searchable, View, answer, is_known
from retrieval.errors import RetrievalError
from retrieval.filters import EVERY_GROUP
from retrieval.memory import Memory
from retrieval.passages import Hit
from retrieval.support import FREE
from retrieval.words import words

VERDICTS = {
    "forgotten": "gone with the passages",
    "leak": "the reader's weights know it: no deletion removes it",
    "elsewhere": "other passages carry it: see the citations",
    "artifact": "still answered, though neither the weights alone nor a passage shown hold it",
    "unanswered": "not answered from the whole memory either: nothing to forget",
}


@dataclasses.dataclass(frozen=True)
class Audit:
    """full, deleted, closed_book: the texts under FULL, DEL-ON and DEL-OFF. verdict: a key of VERDICTS.

    names: what counts as the answer; none where answers were compared.
    citations: the passages that the answer with the deletion cites; full_citations: those that the whole memory's answer cites.
    """

    question: str
    names: tuple[str, ...]
    full: str
    deleted: str
    closed_book: str
    verdict: str
    citations: tuple[Hit, ...]
    full_citations: tuple[Hit, ...]


class Without:
    """A memory as it would be found without some passages: nothing is written, and searches are those of the memory."""

    def __init__(self, memory: Searchable, ids: Collection[str]):
        self.memory, self.ids = memory, frozenset(ids)

    def search(self, texts: Sequence[str], k: int = 5) -> list[list[Hit]]:
        found = self.memory.search(texts, k + len(self.ids))
        return [[hit for hit in hits if hit.id not in self.ids][:k] for hits in found]


def audit(
    questions: Sequence[str], ids: Sequence[str], memory: Memory, reader: Reader, names: Sequence[str] = (), k: int = 3,
    max_new_tokens: int = 24, on_batch: Callable[[int], None] | None = None,
) -> list[Audit]:  # fmt: skip
    """Audits the deletion of `ids` with every question. names: what counts as the answer; without any, the answers of FULL are compared
    with those of DEL-ON and DEL-OFF (see `same_answer`), and there is one only where the memory supports it (`Answer.known`).

    A name counts where it stands as whole words, so short ones find more; passages of every access group are asked. The reader runs
    four times a question. Raises RetrievalError for an unknown id, and what `answer` raises.
    """
    if not ids:
        raise RetrievalError("no passages to audit: give the ids whose deletion is tried")
    for id in ids:
        memory.get(id)
    owned = View(memory, {"groups": EVERY_GROUP})
    whole = answer(questions, owned, reader, k, max_new_tokens, on_batch)
    without = answer(questions, Without(owned, ids), reader, k, max_new_tokens, on_batch)
    return [_judged(full, less, tuple(names)) for full, less in zip(whole, without, strict=True)]


def same_answer(question: str, one: str, other: str) -> bool:
    """Whether two texts answer a question alike: the words that bear content in one of them all stand in the other.

    Of these count the ones that the question lacks, where both have some: "Paris" and "The capital of France is Paris" are the same
    answer to what the capital of France is. A text that says that it does not know is no answer.
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
