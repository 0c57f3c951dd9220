"""Pack labelled records into rows.

Texts are framed by the tokenizer's special tokens as in transformers. Rows hold BERT's token types,
labels and targets.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lm.data import packing
from lm.data.cache import cached
from lm.data.encode.frame import Frame
from lm.data.packed import Packed
from lm.data.read import sources
from lm.data.read.sources import DataError
from lm.data.records import labels as labelled
from lm.data.records.labels import Group, Question, Text, Words
from lm.models.config import ConfigError

LONGEST_QUESTION = (
    64  # tokens; longer questions are cut (max_query_length in the code of Devlin et al. 2019)
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Layout of the rows.

    length: tokens per row. texts: texts per record, each with a segment and an equal share of the
    row. types: rows have token types. pairs: texts come in pairs.
    stride: tokens between the starts of two windows of a context, 0 = no overlap.
    framed: where the tokenizer adds no special tokens, put its end-of-text token on both sides.
    """

    length: int
    types: bool = False
    pairs: bool = False
    stride: int = 0
    framed: bool = True
    texts: int = 1

    @property
    def width(self) -> int:
        """Tokens of a text."""
        return self.length // self.texts


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Tokens of a text or window. ids, types: [n]. targets, weights: [n], of token labels.

    labels: of the row. document: number of its record. cut: tokens left out.
    offset: index in ids of the context's first token. spans: characters [(start, end)] of the
    context's tokens.
    words: the word of each token with a weight.
    """

    ids: list[int]
    types: list[int]
    document: int
    targets: list[int] | None = None
    weights: list[int] | None = None
    labels: tuple[float, ...] = ()
    offset: int = 0
    spans: tuple[tuple[int, int], ...] = ()
    cut: int = 0
    words: tuple[int, ...] = ()


def encode(
    records: Sequence, tokenizer, encoding: "Encoding", shape: Shape, names: Sequence[str] = ()
) -> Iterator[Encoded]:
    """Encode records; one that is longer than a row becomes several windows, or is cut.

    encoding: `texts`, `words`, `groups` or `windows`, by the records. names: the class names, in
    order; () for a numeric label. Texts to classify are cut at the end, the longer of a pair first,
    as in transformers. Raises ConfigError when a row has no room for text.
    """
    frame = Frame(tokenizer, shape.pairs, shape.framed or shape.pairs)
    room = shape.width - len(frame)
    if room < 2:
        raise ConfigError(
            f"length={shape.length} leaves no room beside {shape.texts * len(frame)} special "
            "tokens; raise it"
        )
    for document, record in enumerate(records):
        yield from encoding(record, document, tokenizer, frame, room, shape, names)


# (record, its number, tokenizer, frame, tokens beside the frame, shape, names) -> its windows
Encoding = Callable[..., Iterator[Encoded]]


def texts(
    record: Text, document: int, tokenizer, frame: Frame, room: int, shape: Shape, names
) -> Iterator[Encoded]:
    """A text or pair of texts, cut to the row."""
    parts = [_ids(tokenizer, text) for text in (record.text, record.pair)[: 1 + shape.pairs]]
    cut = max(0, sum(map(len, parts)) - room)
    if cut:
        first, second = len(parts[0]), len(parts[-1]) if shape.pairs else 0
        keep = min(first, max(room - second, room - room // 2))
        parts = [parts[0][:keep], *([parts[1][: room - keep]] if shape.pairs else [])]
    ids, types, _ = frame.around(*parts)
    label = labelled.number(record.label, names) if names else record.label
    yield Encoded(ids, types, document, labels=(float(label),), cut=cut)


def words(
    record: Words, document: int, tokenizer, frame: Frame, room: int, shape: Shape, names
) -> Iterator[Encoded]:
    """Windows of whole words. The first token of a word carries its tag."""
    spelled = tokenizer(
        list(record.words),
        is_split_into_words=True,
        add_special_tokens=False,
        split_special_tokens=True,
        verbose=False,
    )
    pieces: list[list[int]] = [[] for _ in record.words]
    for token, word in zip(spelled["input_ids"], spelled.word_ids(0), strict=True):
        if word is not None:
            pieces[word].append(token)
    at = 0
    while at < len(pieces):
        ids: list[int] = []
        targets: list[int] = []
        weights: list[int] = []
        words: list[int] = []
        cut = 0
        while at < len(pieces) and (not ids or len(ids) + len(pieces[at]) <= room):
            kept = pieces[at][: room - len(ids)]
            cut += len(pieces[at]) - len(kept)
            if kept:
                ids += kept
                targets += [labelled.number(record.tags[at], names)] + [0] * (len(kept) - 1)
                weights += [1] + [0] * (len(kept) - 1)
                words.append(at)
            at += 1
        whole, types, (start,) = frame.around(ids)
        after = len(whole) - start - len(ids)
        yield Encoded(
            whole,
            types,
            document,
            [0] * start + targets + [0] * after,
            [0] * start + weights + [0] * after,
            offset=start,
            cut=cut,
            words=tuple(words),
        )


def groups(
    record: Group, document: int, tokenizer, frame: Frame, room: int, shape: Shape, names
) -> Iterator[Encoded]:
    """Each text of a group, framed separately and cut at the end."""
    for text in record.texts:
        spelled = _ids(tokenizer, text)
        ids, types, _ = frame.around(spelled[:room])
        yield Encoded(ids, types, document, cut=max(0, len(spelled) - room))


def windows(
    record: Question, document: int, tokenizer, frame: Frame, room: int, shape: Shape, names
) -> Iterator[Encoded]:
    """Overlapping windows of the context, each after the question.

    In a window without the complete answer, the labels point to the first token.
    """
    question = _ids(tokenizer, record.question)
    asked = question[: min(LONGEST_QUESTION, room // 2)]
    spelled = tokenizer(
        record.context,
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    ids, spans = spelled["input_ids"], [tuple(span) for span in spelled["offset_mapping"]]
    begin, text = record.answers[0]
    held = [i for i, (first, end) in enumerate(spans) if first < begin + len(text) and end > begin]
    size = room - len(asked)
    stride = min(shape.stride or size, size)
    for start in range(0, max(len(ids) - size, 0) + stride, stride):
        inside = slice(start, start + size)
        if start and start + size - stride >= len(ids):
            break
        whole, types, starts = frame.around(asked, ids[inside])
        offset = starts[1]
        labels = (0.0, 0.0)
        if held and start <= held[0] and held[-1] < start + size:
            labels = (float(offset + held[0] - start), float(offset + held[-1] - start))
        yield Encoded(
            whole,
            types,
            document,
            labels=labels,
            offset=offset,
            spans=tuple(spans[inside]),
            cut=0 if start else len(question) - len(asked),
        )


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]


def pack(
    encoded: Sequence[Encoded],
    sizes: Sequence[int],
    shape: Shape,
    counts: dict[str, int] | None = None,
) -> Packed:
    """Pack one text or window per row; several if their tokens have targets, and a group's texts.

    sizes: bytes of each record.
    """
    tagged = encoded[0].targets is not None
    tokens = packing.token_dtype(max(max(e.ids) for e in encoded))
    dtypes: dict[str, type] = {"tokens": tokens, "targets": np.int32, "weights": np.uint8}
    if shape.types:
        dtypes["types"] = np.uint8

    def piece(e: Encoded) -> packing.Piece:
        fields = {"tokens": e.ids} | ({"types": e.types} if shape.types else {})
        if e.targets is None or e.weights is None:
            return fields
        return fields | {"targets": e.targets, "weights": e.weights}

    width = np.array([len(e.ids) if tagged else shape.width for e in encoded])
    taken, capacity = np.stack([width, width * 0], axis=1), (shape.length, 0)
    row_of = (
        packing.rows_of(taken, capacity)
        if tagged
        else np.arange(len(encoded), dtype=np.int32) // shape.texts
    )
    cut = sum(e.cut > 0 for e in encoded)
    counts = (counts or {}) | ({"cut_texts": cut} if cut else {})
    document_of = [e.document for e in encoded]
    packed = packing.pack(
        map(piece, encoded), taken, row_of, capacity, dtypes, document_of, sizes, counts
    )
    extra = dict(packed.extra)
    if encoded[0].labels:
        extra["labels"] = np.array([e.labels for e in encoded], np.float32)
    return dataclasses.replace(
        packed,
        # without targets of their own, no token has a loss
        targets=packed.targets if tagged else packed.tokens,
        extra=extra,
        # one piece per record, not per text
        piece_row=packed.piece_row[:: shape.texts],
        piece_segment=packed.piece_segment[:: shape.texts],
        piece_document=packed.piece_document[:: shape.texts],
    )


def pack_files(
    patterns: str,
    tokenizer,
    record: labelled.Make,
    encoding: Encoding,
    shape: Shape,
    names: Sequence[str],
    cache,
    *,
    identity: Sequence = (),
    max_bad_share: float = 0.0,
    max_long: float = 1.0,
    tally: sources.Tally | None = None,
    share: float = 0.0,
    held_out: bool = False,
) -> Packed:
    """Pack the records of the files, or memory-map them from `cache`.

    identity: everything that affects what `record` and `encoding` do; part of the cache key. The
    other arguments are those of `labelled.read` and `encode`. Raises DataError as `labelled.read`
    does, and when more than the share `max_long` of the texts is cut.
    """
    files = sources.find_files(patterns)
    options = [vars(shape), list(names), max_long, max_bad_share, share, held_out]
    key = ["labelled", list(identity), options, sources.content_hash(files)]

    def make() -> Packed:
        counted = sources.Tally() if tally is None else tally
        records = labelled.read(
            patterns,
            record,
            names=names,
            max_bad_share=max_bad_share,
            tally=counted,
            share=share,
            held_out=held_out,
        )
        encoded = list(encode(records, tokenizer, encoding, shape, names))
        cut = sum(e.cut > 0 for e in encoded)
        texts = len(records) * shape.texts
        if cut > max_long * texts:
            raise DataError(
                f"{patterns}: {cut:,} of {texts:,} texts do not fit in {shape.width} tokens and "
                "lose a part, more than "
                f"task.max_long={max_long:g} allows; raise length, or task.max_long to the share "
                "that may be cut"
            )
        bad = {"bad_records": counted.bad} if counted.bad else {}
        return pack(encoded, [size(r) for r in records], shape, bad)

    return cached(cache, key, tokenizer, make)


def size(record: labelled.Record) -> int:
    """UTF-8 bytes of a record's text."""
    if isinstance(record, Text | Question):
        parts = (record.text, record.pair) if isinstance(record, Text) else (record.context,)
    else:
        parts = record.words if isinstance(record, Words) else record.texts
    return sum(len(part.encode()) for part in parts)
