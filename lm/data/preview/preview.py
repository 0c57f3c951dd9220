"""Preview of training rows, token by token, with checks for likely mistakes.

Everything is computed from the batches that training reads, after templates, packing, masks and
corruption, never from the files.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lm.batch import Batch
from lm.data.packed import Packed

# Least length in tokens of an n-gram that counts as overlap. GPT-3's filter uses 13 words (Brown et
# al. 2020, appendix C), which are about so many bytes of English.
GRAM, GRAM_BYTES = 13, 78
# An n-gram in more documents than this, and in more than 1%, is ignored: a template's or a phrase.
# So is one in most documents, if there are some.
COMMON, SOME = 20, 4
SCAN = 20_000  # rows per data set that are scanned for duplicates and overlaps
SAMPLE = 100  # documents of which a token's length is known


@dataclasses.dataclass(frozen=True)
class Piece:
    """Token in a preview. kind: "trained" (with a loss), "context" (without) or "padding".

    special: a special token of the tokenizer. segment: number of its document.
    weight: of its loss.
    target: token to predict at this position, if another (masked language models).
    """

    text: str
    kind: str
    special: bool
    segment: int
    weight: float = 0.0
    target: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: the encoder's input ([] without an encoder), and the tokens of the model.

    labels: of the row, or (). said: the labels in words.
    """

    encoder: list[Piece]
    tokens: list[Piece]
    labels: tuple[float, ...] = ()
    said: str = ""


@dataclasses.dataclass(frozen=True)
class Check:
    """Result of a check. ok: True, False, or None if it is only information."""

    name: str
    ok: bool | None
    found: str


def rows(
    batch: Batch, tokenizer, *, shifted: bool, task: Any = None, names: Sequence[str] = ()
) -> list[Row]:
    """Rows of a batch; those of a group follow each other.

    shifted: targets are the next tokens (decoders); else of the same position (masked models).
    task: lm.tasks.Task, which says what carries the loss of a row, or None. names: the label names.
    """
    text, batch = _Texts(tokenizer), batch.ungrouped()
    given = vars(batch) | (batch.more or {})
    fields = {
        name: np.asarray(value)
        for name, value in given.items()
        if value is not None and name != "more"
    }
    found = []
    for i in range(len(fields["tokens"])):
        row = {name: value[i] for name, value in fields.items()}
        read = []
        if "encoder_tokens" in row:
            read = [
                text.piece(t, "context", s)
                for t, s in zip(row["encoder_tokens"], row["encoder_segments"], strict=True)
            ]
        shown = None if task is None else task.shown(row, text.of_all, names)
        if shown is not None:
            in_order = shifted and shown.trained is None
            pieces = _shifted(row, text) if in_order else _shown(row, text, shown)
            found.append(Row(read, list(pieces), shown.labels, shown.said))
            continue
        found.append(
            Row(
                read,
                list(_shifted(row, text) if shifted else _in_place(row, text)),
                tuple(map(float, row.get("labels", ()))),
            )
        )
    return found


def _shown(row: Mapping, text: "_Texts", shown) -> Iterator[Piece]:
    """Tokens of a row whose trained tokens and targets the task names."""
    trained = row["weights"] > 0 if shown.trained is None else shown.trained
    for at, (token, segment) in enumerate(zip(row["tokens"], row["segments"], strict=True)):
        kind = "trained" if trained[at] else "context"
        piece = text.piece(token, kind, segment, float(trained[at]))
        yield dataclasses.replace(piece, target=shown.targets.get(at, ""))


def _shifted(row: Mapping, text: "_Texts") -> Iterator[Piece]:
    """Tokens of each document in a decoder's order: its start token, then every target."""
    for segment, at in _documents(row["segments"]):
        if not segment:
            yield from (text.piece(0, "padding", 0) for _ in range(at.stop - at.start))
            continue
        yield text.piece(row["tokens"][at.start], "context", segment)
        for token, weight in zip(row["targets"][at], row["weights"][at], strict=True):
            yield text.piece(token, "trained" if weight else "context", segment, float(weight))


def _in_place(row: Mapping, text: "_Texts") -> Iterator[Piece]:
    for token, target, weight, segment in zip(
        row["tokens"], row["targets"], row["weights"], row["segments"], strict=True
    ):
        piece = text.piece(token, "trained" if weight else "context", segment, float(weight))
        yield (
            dataclasses.replace(piece, target=text.of(target))
            if weight and target != token
            else piece
        )


def checks(
    batch: Batch,
    packed: Mapping[str, Packed],
    held_out: Mapping[str, Packed],
    tokenizer,
    *,
    shifted: bool,
    stops=(),
    task: Any = None,
) -> list[Check]:
    """Checks of the data. `batch`: a sample of training. `packed`, `held_out`: scanned data sets.

    stops: tokens that end a document; default: the tokenizer's end-of-text token and [SEP].
    task: lm.tasks.Task, which says which texts are compared, or None.
    """
    grouped = task is not None and task.texts > 1  # a row's texts are compared as a whole
    if task is not None:
        packed, held_out = (
            {n: task.compared(r) for n, r in part.items()} for part in (packed, held_out)
        )
    stops = stops or {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    weights, segments = np.asarray(batch.weights), np.asarray(batch.segments)
    found = []
    trained, real = int((weights > 0).sum()), int((segments > 0).sum())
    if batch.labels is None and not grouped:
        found.append(
            Check(
                "trained tokens",
                trained > 0,
                f"{trained:,} of {real:,} in this sample ({trained / max(real, 1):.1%})",
            )
        )
        idle = int((~(weights > 0).any(axis=1)).sum())
        found.append(Check("rows that train nothing", idle == 0, f"{idle} of {len(weights)}"))
    if shifted:
        found += _starts(batch, tokenizer)
    for name, rows_ in packed.items():
        stats = rows_.stats()
        found.append(
            Check(
                f"{name}: filled",
                None,
                f"{stats['filled']:.1%} of {stats['rows']:,} rows of {stats['length']}",
            )
        )
        if shifted:
            ended, documents = ends(rows_, stops)
            found.append(
                Check(
                    f"{name}: end token trained",
                    ended >= documents,
                    f"in {ended:,} of {documents:,} documents",
                )
            )
        more = {
            key: value for key, value in stats.items() if key not in ("filled", "rows", "length")
        }
        found.append(
            Check(
                f"{name}: counts",
                None,
                ", ".join(f"{key} {_number(value)}" for key, value in more.items()),
            )
        )
        total, copies = duplicates(_one_each(rows_) if grouped else rows_)
        found.append(
            Check(
                f"{name}: duplicates",
                copies == 0,
                f"{copies:,} of {total:,} documents or windows are copies of others",
            )
        )
    gram = max((gram_length(rows_, tokenizer) for rows_ in held_out.values()), default=GRAM)
    grams = {name: ngrams(rows_, gram) for name, rows_ in packed.items()} if held_out else {}
    for name, rows_ in held_out.items():
        total, seen = overlap(rows_, grams.values(), gram)
        found.append(
            Check(
                f"{name}: overlap",
                seen == 0,
                f"{seen:,} of {total:,} documents share {gram} tokens in a row with training",
            )
        )
    return found


def _starts(batch: Batch, tokenizer) -> Iterator[Check]:
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokens, targets, segments = (
        np.asarray(x) for x in (batch.tokens, batch.targets, batch.segments)
    )
    starts = (segments > 0) & (np.diff(segments, axis=1, prepend=0) != 0)
    twice = (
        0
        if first is None or first == last
        else int((starts & (tokens == first) & (targets == first)).sum())
    )
    yield Check(
        "one start token",
        twice == 0,
        f"{twice} of {int(starts.sum())} documents start with it twice",
    )


def ends(packed: Packed, stops: Iterable[int]) -> tuple[int, int]:
    """(documents whose last target is trained and in `stops`, documents) of the first SCAN rows."""
    segments, targets = (
        np.asarray(x[:SCAN]).astype(np.int64) for x in (packed.segments, packed.targets)
    )
    weights = (
        np.asarray(packed.extra["weights"][:SCAN]) if "weights" in packed.extra else segments > 0
    )
    last = (segments > 0) & (np.diff(segments, axis=1, append=0) != 0)
    trained = last & (weights > 0) & np.isin(targets, list(stops))
    _, pieces = np.unique(
        packed.piece_document[np.asarray(packed.piece_row) < SCAN], return_counts=True
    )
    return int(trained.sum()), len(pieces)


def duplicates(packed: Packed) -> tuple[int, int]:
    """(number of documents or windows, number of exact copies of an earlier one).

    The last few tokens of a long document, in a window of their own, are no copy of others. Windows
    of one document may share phrases: their repeats count if they are more than one in a thousand.
    """
    places = zip(packed.piece_row.tolist(), packed.piece_segment.tolist(), strict=True)
    documents = dict(zip(places, packed.piece_document.tolist(), strict=True))
    windows = np.bincount(packed.piece_document)
    first: dict[bytes, Any] = {}
    total = copies = repeats = 0
    for place, tokens in _placed(packed):
        total += 1
        document, key = documents.get(place, place), tokens.tobytes()
        if len(tokens) < GRAM and place in documents and windows[document] > 1:
            continue
        if key in first:
            copies += first[key] != document
            repeats += first[key] == document
        first.setdefault(key, document)
    return total, copies + (repeats if 1000 * repeats > total else 0)


def _one_each(packed: Packed) -> Packed:
    """Packed rows with each row as one document: groups of texts are compared as a whole."""
    return dataclasses.replace(packed, segments=np.ones_like(packed.segments))


def gram_length(packed: Packed, tokenizer) -> int:
    """Tokens of an n-gram that counts as overlap: more if a token is a byte or a letter.

    At most three quarters of the longest document or window, or GRAM.
    """
    texts = list(itertools.islice(_texts(packed), SAMPLE))
    read = sum(len(tokenizer.decode(tokens.tolist()).encode()) for tokens in texts)
    needed = -(-GRAM_BYTES * sum(map(len, texts)) // max(read, 1))
    return max(GRAM, min(needed, max(map(len, texts), default=0) * 3 // 4))


def ngrams(packed: Packed, gram: int = GRAM) -> np.ndarray:
    """Sorted hashes of n-grams of `gram` tokens in documents, uint64 [n], without common ones."""
    found = [np.unique(_hashes(tokens, gram)) for tokens in _texts(packed)]
    grams, documents = np.unique(
        np.concatenate([np.zeros(0, np.uint64), *found]), return_counts=True
    )
    most = max(COMMON, len(found) // 100)
    return grams[documents <= (most if len(found) < SOME else min(most, len(found) // 2))]


def overlap(packed: Packed, grams, gram: int = GRAM) -> tuple[int, int]:
    """(number of documents or windows, number that share an n-gram with a set of hashes)."""
    total = seen = 0
    for tokens in _texts(packed):
        hashes = _hashes(tokens, gram)
        total += 1
        seen += any(
            len(known)
            and (known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)] == hashes).any()
            for known in grams
        )
    return total, seen


def _texts(packed: Packed) -> Iterator[np.ndarray]:
    """Tokens of every document of the first SCAN rows, after those its encoder reads."""
    return (tokens for _, tokens in _placed(packed))


def _placed(packed: Packed) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """(row, segment) and tokens of every document; see `_texts`."""
    read = packed.extra.get("encoder_tokens")
    for i in range(min(len(packed), SCAN)):
        encoder = {}
        if read is not None:
            numbers = np.asarray(packed.extra["encoder_segments"][i])
            encoder = {segment: np.asarray(read[i])[at] for segment, at in _documents(numbers)}
        targets = np.asarray(packed.targets[i]).astype(np.int64)
        for segment, at in _documents(np.asarray(packed.segments[i])):
            if segment:
                tokens = np.concatenate([encoder.get(segment, targets[:0]), targets[at]])
                yield (i, segment), tokens.astype(np.int64)


def _hashes(tokens: np.ndarray, gram: int) -> np.ndarray:
    if len(tokens) < gram:
        return np.zeros(0, np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(
        tokens.astype(np.uint64) + np.uint64(1), gram
    )
    factors = np.full(gram, 0x9E3779B97F4A7C15, np.uint64).cumprod(dtype=np.uint64)
    mixed = (windows * factors).sum(axis=1, dtype=np.uint64)
    return mixed ^ (mixed >> np.uint64(29))


def _documents(segments: np.ndarray) -> Iterator[tuple[int, slice]]:
    """(segment number, slice) of every run of one segment, including padding (0)."""
    edges = [0, *(np.flatnonzero(np.diff(segments)) + 1).tolist(), len(segments)]
    for start, stop in itertools.pairwise(edges):
        if stop > start:
            yield int(segments[start]), slice(start, stop)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.1%}"


class _Texts:
    """Visible text of tokens: a space as ·, a newline as ⏎, a tab as →."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}

    def of(self, token) -> str:
        token = int(token)
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        if not text or "\ufffd" in text:
            text = str(self._tokenizer.convert_ids_to_tokens(token) or f"<{token}>")
        return text.replace(" ", "·").replace("\n", "⏎").replace("\t", "→")

    def of_all(self, tokens) -> str:
        return self._tokenizer.decode([int(token) for token in tokens], skip_special_tokens=False)

    def piece(self, token, kind: str, segment, weight: float = 0.0) -> Piece:
        if not segment:
            return Piece("", "padding", False, 0)
        return Piece(self.of(token), kind, int(token) in self._special, int(segment), weight)
