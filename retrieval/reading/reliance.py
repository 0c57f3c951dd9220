"""Whether a reader's score comes from its memory: the same questions with other memories.

Each is asked with the true memory, with none, with shuffled values, with random passages, and with
counterfactual facts. A score that does not move shows that the memory is not what gives it.
"""

import dataclasses
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence

from lm.evaluation.accuracy import contains, wilson
from retrieval.doors.door import Door
from retrieval.doors.in_context import IN_CONTEXT
from retrieval.errors import RetrievalError
from retrieval.memory import Memory
from retrieval.passages import Hit
from retrieval.reading.answering import Answer, Reader, Searchable, answer
from retrieval.reading.extracting import Extractor

CONDITIONS = {
    "true": "the memory as it is",
    "none": "no passages: the weights alone",
    "shuffled": "every passage found has the title and place of its own, and another's text",
    "random": "passages found for other questions, with the scores of its own",
    "counterfactual": "answers in the passages are exchanged; right is what the memory now says",
}
POOL = 200  # passages that are exchanged in texts
SURE = 0.05  # probability below which a difference is taken for one


@dataclasses.dataclass(frozen=True)
class Condition:
    """Scores under one condition.

    right, asked: answers that contain a right name, of those that were scored. interval: 95 % of
    their share. changed: answers that differ from those with the true memory. p: probability of a
    difference at least as large in the expected direction if there is none (exact sign test of the
    questions whose score changed). moved: whether p is below 0.05; True for the true memory.
    """

    name: str
    right: int
    asked: int
    interval: tuple[float, float]
    changed: int
    p: float
    moved: bool


@dataclasses.dataclass(frozen=True)
class Replaced:
    """A view of a memory whose hits are replaced."""

    memory: Searchable
    change: Callable[[list[Hit]], list[Hit]]

    def search(self, texts: Sequence[str], k: int = 5) -> list[list[Hit]]:
        return [self.change(hits) for hits in self.memory.search(texts, k)]


def reliance(
    rows: Sequence[Mapping],
    memory: Searchable,
    reader: Reader | Extractor,
    door: Door = IN_CONTEXT,
    k: int = 3,
    max_new_tokens: int = 24,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> list[Condition]:
    """Ask all questions under every condition of CONDITIONS.

    rows: "question", "answers" (right names) and optionally "others", as in retrieval.evaluate. The
    reader runs eight times per question. Raises RetrievalError if all questions find the same
    passages, so that none are random, and what `answer` raises.
    """
    questions = [row["question"] for row in rows]
    hits = memory.search(questions, k)
    pool = {hit.id: hit for found in hits for hit in found}
    if len(pool) < 2:
        raise RetrievalError(
            f"{len(rows)} questions find {len(pool)} passages: expected at least two passages to "
            "exchange; ask more questions"
        )
    swaps = exchanged([row["answers"] for row in rows], seed)
    views = {
        "true": memory,
        "shuffled": Replaced(memory, shuffled(pool, seed)),
        "random": Replaced(memory, drawn(pool, seed)),
        "counterfactual": Replaced(memory, rewritten(swaps)),
    }
    given: dict[str, list[Answer]] = {
        name: answer(questions, view, reader, k, max_new_tokens, on_batch, door=door)
        for name, view in views.items()
    }
    texts = {name: [one.text for one in answers] for name, answers in given.items()}
    texts["none"] = [one.closed_book_text for one in given["true"]]

    def right(name: str, wanted: Sequence[Sequence[str]]) -> list[bool]:
        others = [row.get("others", ()) for row in rows]
        return [contains(*each) for each in zip(texts[name], wanted, others, strict=True)]

    names = [row["answers"] for row in rows]
    new = [[swaps[name] for name in each if name in swaps] for each in names]
    told = [  # only where a passage held the answer does the memory say something else now
        bool(now) and any(contains(f"{hit.title} {hit.text}", was) for hit in found)
        for now, was, found in zip(new, names, hits, strict=True)
    ]
    found = []
    for name in CONDITIONS:
        pairs = list(zip(right("true", names), right(name, names), strict=True))
        if name == "counterfactual":
            pairs = list(zip(right(name, new), right("true", new), strict=True))
            pairs = [pair for pair, held in zip(pairs, told, strict=True) if held]
        hit = sum(first if name == "counterfactual" else second for first, second in pairs)
        changed = sum(a != b for a, b in zip(texts[name], texts["true"], strict=True))
        p = 0.0 if name == "true" else sign_test(pairs)
        interval = wilson(hit, len(pairs))
        found.append(Condition(name, hit, len(pairs), interval, changed, p, p < SURE))
    return found


def controls(memory: Memory, seed: int = 0) -> dict[str, Replaced]:
    """The memory with shuffled values and with random passages, for texts.

    Both exchange some passages that everybody may read. Raises RetrievalError for fewer than two.
    """
    ids = memory.ids()
    chosen = [memory.get(id) for id in random.Random(seed).sample(ids, min(len(ids), POOL))]
    pool = {p.id: Hit(p.id, p.text, p.title, p.source, 0.0, 0) for p in chosen if not p.access}
    if len(pool) < 2:
        raise RetrievalError(
            f"the memory has {len(pool)} passages that everybody may read: expected at least two "
            "to exchange"
        )
    return {
        "shuffled": Replaced(memory, shuffled(pool, seed)),
        "random": Replaced(memory, drawn(pool, seed)),
    }


def sign_test(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Probability of as many (True, False) among the pairs that differ, if both are as likely."""
    more, less = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    n = more + less
    return sum(math.comb(n, i) for i in range(more, n + 1)) / 2**n


def shuffled(pool: Mapping[str, Hit], seed: int) -> Callable[[list[Hit]], list[Hit]]:
    """Give every passage the text of another of the pool; always the same for one passage."""
    ids = sorted(pool)
    random.Random(seed).shuffle(ids)
    other = {id: pool[ids[i - 1]] for i, id in enumerate(ids)}

    def change(hits: list[Hit]) -> list[Hit]:
        def text(hit: Hit) -> str:
            # A later search may find passages that no question did.
            if hit.id in other:
                return other[hit.id].text
            return pool[ids[sum(hit.id.encode()) % len(ids)]].text

        return [dataclasses.replace(hit, text=text(hit)) for hit in hits]

    return change


def drawn(pool: Mapping[str, Hit], seed: int) -> Callable[[list[Hit]], list[Hit]]:
    """Replace the hits of a query by passages of the pool that it did not find."""

    def change(hits: list[Hit]) -> list[Hit]:
        others = [hit for id, hit in sorted(pool.items()) if id not in {hit.id for hit in hits}]
        chosen = random.Random(f"{seed} {[hit.id for hit in hits]}").sample(
            others, min(len(others), len(hits))
        )
        return [
            dataclasses.replace(other, score=hit.score)
            for other, hit in zip(chosen, hits, strict=False)
        ]

    return change


def exchanged(answers: Sequence[Sequence[str]], seed: int) -> dict[str, str]:
    """Map every right name to the first name of another question with another answer."""
    distinct = list(dict.fromkeys(tuple(names) for names in answers))
    random.Random(seed).shuffle(distinct)
    return {
        name: distinct[i - 1][0]
        for i, names in enumerate(distinct)
        for name in names
        if len(distinct) > 1 and not contains(distinct[i - 1][0], names)
    }


def rewritten(swaps: Mapping[str, str]) -> Callable[[list[Hit]], list[Hit]]:
    """Exchange names, as whole words and at once, in the titles and texts of hits."""
    names = sorted(swaps, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names)) or '(?!)'})(?!\w)")

    def change(hits: list[Hit]) -> list[Hit]:
        new = lambda text: pattern.sub(lambda found: swaps[found[0]], text)
        return [dataclasses.replace(hit, title=new(hit.title), text=new(hit.text)) for hit in hits]

    return change
