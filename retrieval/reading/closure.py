"""What else in a memory may hold a deleted fact.

After a deletion, LMLM's readers still found 0.7 to 13.6 % of the facts through their neighbours in
the store. This looks for such neighbours, and for theirs in turn.
"""

import dataclasses
from collections.abc import Sequence

from lm.evaluation.accuracy import contains, normalise
from retrieval.filters import EVERY_GROUP
from retrieval.ingest.duplicates import NEAR, jaccard, shingled
from retrieval.memory import Memory
from retrieval.passages import Hit, Passage
from retrieval.reading.support import NAME

REASONS = {
    "near duplicate": "shares most of its five-word sequences with a deleted passage",
    "alias": "has the title of a deleted passage",
    "same fact": "holds the answer and a name of the question",
}
NEIGHBOURS = 20  # passages nearest to a deleted one, and to a question, that are compared with it


@dataclasses.dataclass(frozen=True)
class Related:
    """A passage that may hold a deleted fact. of: the passage, or question, it was found by.

    reason: a key of REASONS.
    """

    id: str
    of: str
    reason: str


def closure(
    ids: Sequence[str], memory: Memory, questions: Sequence[str] = (), names: Sequence[str] = ()
) -> list[Related]:
    """Find what is related to the passages `ids`, what is related to that, and so on.

    names: right answers to the questions; without them no passage is the same fact. Passages of
    every access group are searched. Raises RetrievalError for an unknown id.
    """
    done = {id: memory.get(id) for id in ids}
    found: dict[str, Related] = {}
    if names and questions:
        for question, hits in zip(questions, _near(memory, questions), strict=True):
            subject = NAME.findall(question)
            for hit in hits:
                text = f"{hit.title} {hit.text}"
                if hit.id not in done and contains(text, names) and contains(text, subject):
                    found.setdefault(hit.id, Related(hit.id, question, "same fact"))
    ahead = [*done.values(), *(memory.get(id) for id in found)]
    done |= {passage.id: passage for passage in ahead}
    while ahead:
        some, ahead = ahead, []
        for passage, hits in zip(some, _near(memory, [p.searchable for p in some]), strict=True):
            for hit in hits:
                reason = "" if hit.id in done else _reason(passage, hit)
                if reason:
                    found[hit.id] = Related(hit.id, passage.id, reason)
                    done[hit.id] = memory.get(hit.id)
                    ahead.append(done[hit.id])
    return list(found.values())


def _near(memory: Memory, texts: Sequence[str]) -> list[list[Hit]]:
    return memory.search(list(texts), NEIGHBOURS, groups=EVERY_GROUP)


def _reason(passage: Passage, hit: Hit) -> str:
    if jaccard(shingled(passage.text), shingled(hit.text)) >= NEAR:
        return "near duplicate"
    title = normalise(passage.title)
    return "alias" if title and title == normalise(hit.title) else ""
