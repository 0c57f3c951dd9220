"""Packing: documents become rows of exactly T tokens in which nothing is lost and no document sees another.

A document of n tokens (a start token, the text, the end-of-text token) is n - 1 predictions. Predictions, not tokens, are laid into
rows, so the end-of-text token is always trained and a document split into windows loses none at the seams. Rows are filled by
best-fit decreasing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling", section 3).
"""

import bisect
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import tokenizers
from tokenizers import processors

from lm.data import sources
from lm.data.encoding import affixes
from lm.data.sources import DataError

log = logging.getLogger(__name__)

VERSION = 1  # of the layout below; part of the cache key
UNFINISHED = "unfinished-"  # names of folders that are being written
ENCODE_AT_ONCE = 256  # documents per call of the tokenizer

_ARRAYS = (
    "tokens",
    "targets",
    "segments",
    "piece_row",
    "piece_segment",
    "piece_document",
    "document_bytes",
)


@dataclasses.dataclass(frozen=True)
class Packed:
    """N rows of T tokens. A piece is a document or a window of one: a run of one segment id in one row.

    tokens, targets: uint16 or int32 [N, T].   segments: uint16 [N, T], from 1 within each row, 0 = padding.
    piece_row, piece_segment, piece_document: int32 [P].   document_bytes: int64 [D], UTF-8 bytes of each document's text.
    extra: further fields of `lm.Batch` by name, N rows each, such as weights [N, T], encoder_tokens and encoder_segments [N, S].
    counts: what was left out or cut on the way here, by name.
    """

    tokens: np.ndarray
    targets: np.ndarray
    segments: np.ndarray
    piece_row: np.ndarray
    piece_segment: np.ndarray
    piece_document: np.ndarray
    document_bytes: np.ndarray
    extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        return self.tokens.shape[1]

    def stats(self) -> dict[str, float]:
        """Counts, and `filled`: the share of positions that carry a prediction; with an encoder `encoder_filled` too."""
        pieces = np.bincount(self.piece_document, minlength=len(self.document_bytes))
        predictions = int(np.count_nonzero(self.segments))
        found: dict[str, float] = {
            "documents": len(self.document_bytes), "bytes": int(self.document_bytes.sum()), "rows": len(self), "length": self.length,
            "predictions": predictions, "split_documents": int((pieces > 1).sum()), "filled": predictions / self.segments.size,
        }  # fmt: skip
        if "weights" in self.extra:
            found["trained_tokens"] = int(np.count_nonzero(self.extra["weights"]))
        if "encoder_segments" in self.extra:
            read = self.extra["encoder_segments"]
            found["encoder_filled"] = int(np.count_nonzero(read)) / read.size
        return found | dict(self.counts)


def encode(
    texts: Iterable[str], tokenizer, whole: bool = False
) -> Iterator[tuple[np.ndarray, int]]:
    """(token ids int32 [n], bytes) of each text: start token, text, end-of-text token.

    The start token is the tokenizer's own, or its end-of-text token where it has none (as in GPT-2), so that a document's first token is
    predicted too. With `whole`, all but the first id is the document as an encoder reads it: the tokenizer's start token, or [CLS], if
    it has one, the text, and its end-of-text token or [SEP]; its targets are then the whole of it.
    Control tokens spelled out in the text stay text. Raises DataError when the tokenizer has no end-of-text token.
    """
    end = _end_token(tokenizer, whole)
    if end is None:
        raise DataError(
            "the tokenizer has no end-of-text token (eos_token), so documents cannot be told apart; set one and save it again"
        )
    start = [end, *_first(tokenizer)] if whole else [start_token(tokenizer)]
    texts = iter(texts)
    while chunk := list(itertools.islice(texts, ENCODE_AT_ONCE)):
        encoded = tokenizer(
            chunk,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )
        for text, ids in zip(chunk, encoded["input_ids"], strict=True):
            yield np.array([*start, *ids, end], np.int32), len(text.encode("utf-8"))


def start_token(tokenizer) -> int:
    """The token every document starts with."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def as_documents(tokenizer, whole: bool = False):
    """Make a tokenizer frame a text as `encode` frames a document; the frame is saved with it, so other programs use it too.

    A decoder's prompt begins with the start token and has no end; an encoder reads a `whole` document. Returns the tokenizer, which is
    changed in place, or left as it is where it has no end-of-text token.
    """
    end = _end_token(tokenizer, whole)
    if end is None:
        return tokenizer
    before, after = (_first(tokenizer), [end]) if whole else ([start_token(tokenizer)], [])
    if (before, after) == affixes(tokenizer):
        return tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        log.warning(
            "%s cannot keep what begins a document: prompts begin as it does by itself",
            type(tokenizer).__name__,
        )
        return tokenizer
    single = [*["before:0"] * bool(before), "$A:0", *["after:0"] * bool(after)]
    special = [
        {"id": name, "ids": ids, "tokens": tokenizer.convert_ids_to_tokens(ids)}
        for name, ids in (("before", before), ("after", after))
        if ids
    ]
    pair = [*single, "$B:1", *["after:1"] * bool(after)]
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=special
    )
    for option in ("add_bos_token", "add_eos_token"):  # transformers would replace it by these
        tokenizer.init_kwargs.pop(option, None)
    return tokenizer


def _end_token(tokenizer, whole: bool) -> int | None:
    return (
        tokenizer.sep_token_id
        if whole and tokenizer.eos_token_id is None
        else tokenizer.eos_token_id
    )


def _first(tokenizer) -> list[int]:
    """What an encoder reads before a document: the start token, or [CLS], if there is one."""
    first = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return [] if first is None else [first]


def pack(
    encoded: Iterable[tuple[np.ndarray, int]],
    length: int,
    name: str = "the corpus",
    stride: int = 0,
) -> Packed:
    """Rows of `length` tokens from (token ids [n], bytes) pairs; the same input always gives the same rows.

    A document longer than a row becomes consecutive windows; the last target of one is the first input of the next. With a `stride` less
    than `length`, windows start that far apart: what the window before has predicted is read again, without a loss (`extra`: weights),
    so that every other prediction has at least length - stride tokens before it. Raises DataError, calling the documents `name`, when
    there is nothing to predict.
    """
    documents, sizes = [], []
    for ids, size in encoded:
        documents.append(ids)
        sizes.append(size)
    stride = stride or length
    again = length - stride  # predictions that a window shares with the one before
    pieces = [
        (document, start, min(length, len(ids) - 1 - start))
        for document, ids in enumerate(documents)
        for start in range(0, max(len(ids) - 1 - again, min(1, len(ids) - 1)), stride)
    ]
    if not pieces:
        raise DataError(
            f"{name} is empty: no document with any text in it; check the files, and data.field for JSONL"
        )
    row_of = best_fit([size for _, _, size in pieces], length)
    rows = int(row_of.max()) + 1
    largest = max(int(ids.max()) for ids in documents)
    dtype = np.uint16 if largest < 2**16 else np.int32
    tokens, targets = np.zeros((rows, length), dtype), np.zeros((rows, length), dtype)
    segments = np.zeros((rows, length), np.uint16)
    used, count = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    weights = np.zeros((rows, length), np.uint8) if again else None
    segment_of = np.zeros(len(pieces), np.int32)
    for i, (document, start, size) in enumerate(pieces):
        row, ids = row_of[i], documents[document]
        at = slice(used[row], used[row] + size)
        tokens[row, at] = ids[start : start + size]
        targets[row, at] = ids[start + 1 : start + size + 1]
        count[row] += 1
        segments[row, at] = segment_of[i] = count[row]
        if weights is not None:
            weights[row, used[row] + (again if start else 0) : used[row] + size] = 1
        used[row] += size
    document_of = np.array([document for document, _, _ in pieces], np.int32)
    extra, counts = (
        ({}, {})
        if weights is None
        else ({"weights": weights}, {"read_again": int((segments > 0).sum() - weights.sum())})
    )
    return Packed(
        tokens,
        targets,
        segments,
        row_of,
        segment_of,
        document_of,
        np.array(sizes, np.int64),
        extra,
        counts,
    )


def best_fit(sizes: list[int], capacity: int) -> np.ndarray:
    """The row of each size, int32 [P], by best-fit decreasing: longest first, each into the fullest row that still holds it."""
    row_of = np.zeros(len(sizes), np.int32)
    rows = 0
    room: list[int] = []  # the distinct rooms left, ascending
    open_rows: dict[int, list[int]] = {}
    for piece in np.argsort(-np.asarray(sizes), kind="stable"):
        size = sizes[piece]
        i = bisect.bisect_left(room, size)
        if i == len(room):
            row, left = rows, capacity
            rows += 1
        else:
            left = room[i]
            row = open_rows[left].pop()
            if not open_rows[left]:
                del open_rows[left], room[i]
        row_of[piece] = row
        left -= size
        if left:
            if left not in open_rows:
                open_rows[left] = []
                bisect.insort(room, left)
            open_rows[left].append(row)
    return row_of


def pack_files(
    patterns: str, tokenizer, length: int, cache: str | os.PathLike, *, field: str = "text", separator: str = "", whole: bool = False,
    stride: int = 0, max_bad_share: float = 0.0, tally: sources.Tally | None = None, share: float = 0.0, held_out: bool = False,
) -> Packed:  # fmt: skip
    """The packed documents of the files, encoded `whole` or not, memory-mapped from `cache` where they were packed before.

    share: of the documents that is left out, chosen by their content; with held_out, the rows are of these alone. The key is the
    content of the files, the tokenizer, the code, and every argument that changes the rows. `tally` counts what is read.
    Raises DataError as `pack` and `sources.documents` do.
    """
    files = sources.find_files(patterns)
    identity = [
        VERSION, code("files", "sources", "tables", "packing"),
        length, field, separator, sources.content_hash(files), fingerprint(tokenizer),
        stride % length, max_bad_share,
    ]  # fmt: skip
    if whole:
        identity += ["whole", tokenizer.cls_token_id, tokenizer.sep_token_id]
    if share:
        identity += ["share", share, held_out]
    folder = pathlib.Path(cache) / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
    if not folder.exists():
        tally = sources.Tally() if tally is None else tally
        texts = sources.documents(files, field, separator, max_bad_share=max_bad_share, tally=tally)
        left: list[int] = []
        texts = _of_share(texts, share, held_out, left) if share else texts
        packed = pack(encode(texts, tokenizer, whole), length, patterns, stride)
        bad = {"bad_records": tally.bad} if tally.bad else {}
        if separator and tally.undivided == tally.texts:
            bad[f"text files without the separator {sources.unescaped(separator)!r}"] = tally.texts
        if share and not held_out:
            bad["documents_held_out"] = len(left)
        save(dataclasses.replace(packed, counts={**packed.counts, **bad}), folder)
    return load(folder)


def _of_share(texts: Iterable[str], share: float, held_out: bool, left: list[int]) -> Iterator[str]:
    """The documents of one side of a share; `left` gets the numbers of the others. Raises DataError when there is none."""
    number = -1
    for number, text in enumerate(texts):
        if sources.is_held_out(text, share) == held_out:
            yield text
        else:
            left.append(number)
    if len(left) == number + 1 > 0:
        what = "none" if held_out else "all"
        raise DataError(
            f"data.holdout_share={share:g} holds out {what} of the {number + 1:,} documents; give another share, or data.separator where "
            "a file holds several documents"
        )


def named(count: str) -> str:
    """The name of a count in words; what it quotes stays as it is."""
    return count if "'" in count else count.replace("_", " ")


def code(*modules: str) -> str:
    """A hash of the source of modules of lm.data, and of the tokenizers library's version: what decides the rows beside the data."""
    total = hashlib.sha256(tokenizers.__version__.encode())
    for name in modules:
        path = pathlib.Path(__file__).parent / name
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]:
            total.update(file.name.encode() + file.read_bytes())
    return total.hexdigest()


def load(folder: pathlib.Path) -> Packed:
    """The rows that `save` wrote, memory-mapped."""
    found = {
        file.stem: np.load(file, mmap_mode="r", allow_pickle=False)
        for file in sorted(folder.glob("*.npy"))
    }
    counts = folder / "counts.json"
    return Packed(
        **{name: found.pop(name) for name in _ARRAYS},
        extra=found,
        counts=json.loads(counts.read_text()) if counts.exists() else {},
    )


def save(packed: Packed, folder: pathlib.Path) -> None:
    """Writes a folder, whole or not at all: another process may be packing the same files."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=UNFINISHED))
    try:
        for name, array in (
            {name: getattr(packed, name) for name in _ARRAYS} | dict(packed.extra)
        ).items():
            np.save(unfinished / f"{name}.npy", array, allow_pickle=False)
        (unfinished / "stats.json").write_text(json.dumps(packed.stats(), indent=1))
        (unfinished / "counts.json").write_text(json.dumps(dict(packed.counts)))
        unfinished.rename(folder)
    except BaseException as e:  # an interrupt too leaves nothing behind
        shutil.rmtree(unfinished, ignore_errors=True)
        if not (isinstance(e, OSError) and folder.exists()):
            raise


def fingerprint(tokenizer) -> str:
    """Of all that decides which tokens a text becomes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = (
        backend.to_str()
        if backend is not None
        else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    )
    ids = f"{tokenizer.bos_token_id} {tokenizer.eos_token_id} "
    return hashlib.sha256((ids + described).encode()).hexdigest()


def synthetic(vocab_size: int, rows: int, length: int, seed: int = 0) -> Packed:
    """Random tokens, one document a row: for benchmarks, where the data must cost nothing and mean nothing."""
    ids = np.random.default_rng(seed).integers(0, vocab_size, (rows, length + 1), dtype=np.int32)
    index = np.arange(rows, dtype=np.int32)
    return Packed(
        ids[:, :-1], ids[:, 1:], np.ones((rows, length), np.uint16),
        index, np.ones_like(index), index, np.full(rows, length, np.int64),
    )  # fmt: skip
