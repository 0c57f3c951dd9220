"""Perplexity of texts with passages from a memory, retrieved again every few tokens.

In-Context RALM (Ram et al. 2023, sections 3 and 5): a text is predicted in strides; before each,
the memory is searched for its last tokens, and the passages go before the text so far.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from retrieval.doors.door import Door, check
from retrieval.doors.running import log_probs
from retrieval.errors import RetrievalError
from retrieval.passages import Hit
from retrieval.reading.answering import Searchable
from retrieval.reading.reader import Reader

AT_ONCE = 256  # strides


@dataclasses.dataclass(frozen=True)
class Scored:
    """Sums over texts. nats: minus the log-probability of `tokens` tokens, of `bytes` bytes.

    cut: tokens of passages that did not fit. passages: that were read.
    """

    nats: float
    tokens: int
    bytes: int
    passages: int = 0
    cut: int = 0

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.nats / self.tokens, 700.0))

    @property
    def bits_per_byte(self) -> float:
        return self.nats / self.bytes / math.log(2)


def score(
    texts: Sequence[str],
    reader: Reader,
    door: Door,
    memory: Searchable | None,
    k: int = 1,
    on_batch: Callable[[int], None] | None = None,
) -> Scored:
    """Score every token of the texts but the first of each, `door.stride` at a time.

    memory: None for the weights alone, which then see as much of the text. Raises RetrievalError
    for a door without a stride, or that does not serve the reader.
    """
    check(door, reader.model.config)
    stride = door.stride
    if door.whole:
        raise RetrievalError(
            f"--door={door.name} mixes the probabilities of whole answers: for a text, whose "
            "tokens have one each, use rag_token or replug"
        )
    if not 1 <= stride < reader.model.config.max_length // 2:
        raise RetrievalError(
            f"--door={door.name},stride={stride}: a text is predicted in strides; expected 1 to "
            f"{reader.model.config.max_length // 2 - 1} tokens, half of the reader's context"
        )
    room = reader.prompt_tokens(stride)
    total = Scored(0.0, 0, 0)
    windows: list[tuple[list[int], list[int]]] = []
    for text in texts:
        ids = reader.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        windows += [(ids[:at], ids[at : at + stride]) for at in range(1, len(ids), stride)]
        share = (len(ids) - 1) / max(1, len(ids))
        total = dataclasses.replace(total, bytes=total.bytes + round(share * len(text.encode())))
    if not windows:
        raise RetrievalError("the texts have no token to predict: give longer ones")
    for start in range(0, len(windows), AT_ONCE):
        some = windows[start : start + AT_ONCE]
        hits: list[Sequence[Hit]] = [()] * len(some)
        if memory is not None:
            queries = [reader.tokenizer.decode(context[-door.query :]) for context, _ in some]
            # A memory refuses a blank query.
            asked = [i for i, query in enumerate(queries) if query.strip()]
            found = memory.search([queries[i] for i in asked], k)
            for i, of in zip(asked, found, strict=True):
                hits[i] = of
        inputs = [
            door.passage(reader, found, context, room)
            for (context, _), found in zip(some, hits, strict=True)
        ]
        scored = log_probs(door, reader, inputs, [after for _, after in some], on_batch)
        total = Scored(
            total.nats - float(np.concatenate(scored).sum()),
            total.tokens + sum(map(len, scored)),
            total.bytes,
            total.passages + sum(len(each.shown) for each in inputs),
            total.cut + sum(each.cut for each in inputs),
        )
    return total
