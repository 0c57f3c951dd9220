"""Plain text: documents with their special tokens, packed into rows of exactly T tokens.

No token is lost, and no document attends to another. A document of n tokens (start token, text,
end-of-text token) is n - 1 predictions. Rows hold predictions, not tokens: the end-of-text token is
always trained, and a document that is split into windows loses no prediction at the boundaries.
Rows are filled by best-fit decreasing (Ding et al. 2024, "Fewer Truncations Improve Language
Modeling", section 3).
"""

import dataclasses
import itertools
import logging
import os
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import processors

from lm.data import packing
from lm.data.cache import cached
from lm.data.encode.encoding import affixes
from lm.data.packed import Packed
from lm.data.read import sources
from lm.data.read.sources import DataError

log = logging.getLogger(__name__)

ENCODE_AT_ONCE = 256  # documents per call of the tokenizer


def encode(
    texts: Iterable[str], tokenizer, whole: bool = False
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (token ids int32 [n], UTF-8 bytes) per text: start token, text, end-of-text token.

    The start token is the tokenizer's own, or the end-of-text token if it has none (as in GPT-2).
    So the first token of a document is predicted too.
    whole: encode for an encoder. The ids after the first are then the complete document: the start
    token or [CLS], if there is one, the text, and the end-of-text token or [SEP]; so the targets
    are the complete document.
    Control tokens in the text stay text. Raises DataError without an end-of-text token.
    """
    end = _end_token(tokenizer, whole)
    if end is None:
        raise DataError(
            "the tokenizer has no end-of-text token (eos_token), so documents cannot be told "
            "apart; set one and save it again"
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
    """Token that every document starts with."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def as_documents(tokenizer, whole: bool = False):
    """Make the tokenizer add the same special tokens to a text as `encode` does.

    They are saved with the tokenizer, so other programs add them too. A decoder's prompt gets the
    start token and no end token; with `whole`, a text is framed for an encoder. The tokenizer is
    changed in place and returned; without an end-of-text token it is left unchanged.
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
    for option in ("add_bos_token", "add_eos_token"):  # would make transformers replace it
        tokenizer.init_kwargs.pop(option, None)
    return tokenizer


def _end_token(tokenizer, whole: bool) -> int | None:
    return (
        tokenizer.sep_token_id
        if whole and tokenizer.eos_token_id is None
        else tokenizer.eos_token_id
    )


def _first(tokenizer) -> list[int]:
    """Start token or [CLS] that an encoder reads before a document, if there is one."""
    first = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return [] if first is None else [first]


def pack(
    encoded: Iterable[tuple[np.ndarray, int]],
    length: int,
    name: str = "the corpus",
    stride: int = 0,
) -> Packed:
    """Pack (token ids [n], bytes) pairs into rows of `length` tokens, deterministically.

    A document longer than a row becomes consecutive windows; the last target of one is the first
    input of the next. With a `stride` less than `length`, windows overlap: predictions of the
    previous window are read again without a loss (`extra`: weights). So every later prediction has
    at least length - stride tokens of context.
    Raises DataError, which calls the documents `name`, when there is nothing to predict.
    """
    documents, document_bytes = [], []
    for ids, size in encoded:
        documents.append(ids)
        document_bytes.append(size)
    stride = stride or length
    again = length - stride  # overlap of a window with the previous one
    windows = [
        (document, start, min(length, len(ids) - 1 - start))
        for document, ids in enumerate(documents)
        for start in range(0, max(len(ids) - 1 - again, min(1, len(ids) - 1)), stride)
    ]
    if not windows:
        raise DataError(
            f"{name} is empty: no document with any text in it; check the files, and task.field "
            "for JSONL"
        )
    tokens = packing.token_dtype(max(int(ids.max()) for ids in documents))
    dtypes = {"tokens": tokens, "targets": tokens} | ({"weights": np.uint8} if again else {})

    def pieces() -> Iterator[packing.Piece]:
        for document, start, size in windows:
            ids = documents[document][start : start + size + 1]
            piece = {"tokens": ids[:-1], "targets": ids[1:]}
            yield piece | ({"weights": np.arange(size) >= again * (start > 0)} if again else {})

    sizes = np.array([(size, 0) for _, _, size in windows])
    row_of = packing.rows_of(sizes, (length, 0))
    document_of = [document for document, _, _ in windows]
    packed = packing.pack(pieces(), sizes, row_of, (length, 0), dtypes, document_of, document_bytes)
    if not again:
        return packed
    read = int((packed.segments > 0).sum() - packed.extra["weights"].sum())
    return dataclasses.replace(packed, counts={"read_again": read})


def pack_files(
    patterns: str,
    tokenizer,
    length: int,
    cache: str | os.PathLike,
    *,
    field: str = "text",
    separator: str = "",
    whole: bool = False,
    stride: int = 0,
    max_bad_share: float = 0.0,
    tally: sources.Tally | None = None,
    share: float = 0.0,
    held_out: bool = False,
) -> Packed:
    """Pack the documents of the files, or memory-map them from `cache`.

    share: share of the documents that is held out, selected by a hash of their text. held_out: pack
    the held-out documents instead of the others. whole: as in `encode`. tally: counts what is read.
    The cache key covers the content of the files, the tokenizer, the code and every argument that
    affects the rows. Raises DataError as `pack` and `sources.documents` do.
    """
    files = sources.find_files(patterns)
    options = [length, field, separator, stride % length, max_bad_share, share, held_out]
    key = ["text", options, sources.content_hash(files)]
    if whole:
        key += ["whole", tokenizer.cls_token_id, tokenizer.sep_token_id]

    def make() -> Packed:
        read = sources.Tally() if tally is None else tally
        texts = sources.documents(files, field, separator, max_bad_share=max_bad_share, tally=read)
        left: list[int] = []
        texts = _of_share(texts, share, held_out, left) if share else texts
        packed = pack(encode(texts, tokenizer, whole), length, patterns, stride)
        bad = {"bad_records": read.bad} if read.bad else {}
        if separator and read.undivided == read.texts:
            bad[f"text files without the separator {sources.unescaped(separator)!r}"] = read.texts
        if share and not held_out:
            bad["documents_held_out"] = len(left)
        return dataclasses.replace(packed, counts={**packed.counts, **bad})

    return cached(cache, key, tokenizer, make)


def _of_share(texts: Iterable[str], share: float, held_out: bool, left: list[int]) -> Iterator[str]:
    """Yield the documents on one side of the split, and append the numbers of the others to `left`.

    Raises DataError when one side is empty.
    """
    number = -1
    for number, text in enumerate(texts):
        if sources.is_held_out(text, share) == held_out:
            yield text
        else:
            left.append(number)
    if len(left) == number + 1 > 0:
        what = "none" if held_out else "all"
        raise DataError(
            f"data.holdout_share={share:g} holds out {what} of the {number + 1:,} documents; "
            "give another share, or task.separator where "
            "a file holds several documents"
        )
