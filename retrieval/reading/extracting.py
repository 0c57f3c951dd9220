"""Reading without writing: an encoder points at a span of a passage, or names a class."""

from collections.abc import Callable, Sequence

import numpy as np

from lm.data.encode import labels as rows
from lm.data.encode.labels import Shape
from lm.data.records.labels import Question, Text, class_names
from lm.evaluation.labelled import outputs
from lm.evaluation.labels import best_span
from retrieval.doors import door as doors
from retrieval.doors.door import Asked, Read
from retrieval.doors.in_context import close_to_the_best
from retrieval.errors import RetrievalError
from retrieval.passages import titled
from retrieval.sanitising import one_line

LENGTH = 384  # tokens of a window, as in question answering on SQuAD
STRIDE = 128  # tokens between the starts of windows


class Extractor:
    """An encoder with a head for answer spans (Devlin et al. 2019, section 4.2) or for classes.

    Spans: every passage is read with the question, in windows if it is long, and the span of the
    highest score over all of them is the answer (shared normalisation, Clark & Gardner 2018,
    section 3). Without passages there is no answer. Classes: the question is read with all passages
    as one text, and the answer is the name of the most probable class.
    """

    def __init__(self, model, params, tokenizer):
        self.kind = doors.kind_of(model.config)
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self.length = min(model.config.max_length, LENGTH)

    def read(
        self, asked: Sequence[Asked], on_batch: Callable[[int], None] | None = None
    ) -> list[Read]:
        """Answer every question. Raises RetrievalError for one that is blank."""
        for each in asked:
            if not isinstance(each.question, str) or not each.question.strip():
                raise RetrievalError(f"the question is {each.question!r}: expected some text")
        found = [self._span(each) if self.kind == "spans" else self._class(each) for each in asked]
        if on_batch is not None:
            on_batch(len(found))
        return found

    def _span(self, asked: Asked) -> Read:
        hits = close_to_the_best(asked.hits)
        if not hits:
            return Read("")
        texts = [titled(hit.title, hit.text) for hit in hits]
        records = [Question("", one_line(asked.question), text, ((0, ""),), "") for text in texts]
        windows = self._encoded(records, rows.windows, pairs=True)
        best = (-np.inf, 0, "")
        for window, logits in zip(windows, self._outputs(windows, pairs=True), strict=True):
            inside = np.zeros(len(window.ids), np.int32)
            inside[window.offset : window.offset + len(window.spans)] = 1
            if not inside.any():
                continue
            first, last = best_span(logits[:, 0], logits[:, 1], inside)
            start = window.spans[first - window.offset][0]
            end = window.spans[last - window.offset][1]
            score = float(logits[first, 0] + logits[last, 1])
            if score > best[0]:
                best = (score, window.document, texts[window.document][start:end])
        chosen = hits[best[1]]
        others = tuple(hit for hit in hits if hit is not chosen)
        return Read(one_line(best[2]), (chosen, *others), sum(window.cut for window in windows))

    def _class(self, asked: Asked) -> Read:
        hits = close_to_the_best(asked.hits)
        text = " ".join(titled(hit.title, one_line(hit.text)) for hit in hits)
        record = Text(one_line(asked.question), text, 0, "")
        encoded = self._encoded([record], rows.texts, pairs=bool(hits))
        logits = self._outputs(encoded, pairs=bool(hits))[0]
        names = class_names(self.model.config)
        return Read(names[int(np.argmax(logits))], tuple(hits), encoded[0].cut, label=True)

    def _shape(self, pairs: bool) -> Shape:
        types = self.model.config.type_vocab_size > 1
        return Shape(self.length, types, pairs=pairs, stride=min(STRIDE, self.length // 3))

    def _encoded(self, records: list, encoding, pairs: bool) -> list[rows.Encoded]:
        names = class_names(self.model.config) if self.kind == "classes" else ()
        return list(rows.encode(records, self.tokenizer, encoding, self._shape(pairs), names))

    def _outputs(self, encoded: list[rows.Encoded], pairs: bool) -> list[np.ndarray]:
        return outputs(
            self.model, self.params, encoded, self._shape(pairs), tokenizer=self.tokenizer
        )
