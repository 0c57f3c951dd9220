"""Chunking: documents cut into passages that an encoder sees whole, at the borders of sentences wherever they fit."""

import bisect
import collections
import dataclasses
import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

from retrieval.errors import RetrievalError
from retrieval.ingest.documents import Document, Heading, one_line
from retrieval.ingest.sentences import lines, paragraphs, pieces, sentences, words
from retrieval.passages import MAX_ID_CHARACTERS, Passage

Span = tuple[int, int]
Count = Callable[[Sequence[str]], Sequence[int]]  # texts -> the number of tokens of each
Cut = Callable[[str, int, int], list[Span]]  # text, start, end -> the spans of its parts

LONGEST = 32  # characters of a token; to BERT a word of a megabyte is one unknown token
WAYS = ("auto", "headings", "sentences", "tokens", "none")


@dataclasses.dataclass(frozen=True)
class Chunking:
    """way: of WAYS. size: most tokens of a passage with its title. overlap: most tokens that it repeats of the one before.

    A passage holds whole sentences: of one paragraph ("sentences"), or of what stands under one heading ("headings"). "tokens" takes
    words wherever they stand, "none" whole documents. What is too long for a passage by itself is cut: a sentence between lines, a line
    between words, a word anywhere. "auto": sentences for text files, headings for others; a row of a table stays whole when it fits.
    """

    way: str = "auto"
    size: int = 254
    overlap: int = 0

    def __post_init__(self):
        if self.way not in WAYS:
            raise RetrievalError(
                f"chunk={self.way!r} is unknown: expected one of {', '.join(WAYS)}"
            )
        if self.size < 8:
            raise RetrievalError(f"size={self.size}: expected at least 8 tokens")
        if not 0 <= self.overlap <= self.size // 2:
            raise RetrievalError(
                f"overlap={self.overlap}: expected 0 to {self.size // 2}, half of the size of a passage"
            )


def passages(document: Document, chunking: Chunking, count: Count) -> Iterator[Passage]:
    """The passages of a document. `count` counts tokens of the encoder that will see them.

    Each has its span in the document's text; its own text is that span with whitespace joined. Ids are the document's name, under a
    heading "#" and the headings' words, then ":" and a number, which counts from 1 under each name. A row that fits is left as it is,
    its name is its id, and its span is what its field says; of one that does not fit the first passage has the bare name, and spans
    count from where the field says that the row begins.
    """
    d, begin = document, document.span[0] if document.span else 0
    as_row = Passage(
        d.name, d.text, d.title, d.source, d.metadata, d.span, d.time, d.tags, d.access
    )
    if d.whole and (chunking.way == "none" or _fits(d, chunking.size, count)):
        yield as_row
        return
    numbers: collections.Counter[str] = collections.Counter()
    for name, title, spans in _groups(document, chunking, count):
        for start, end in spans:
            numbers[name] += 1
            id = _short(name, "" if d.whole and numbers[name] == 1 else f":{numbers[name]}")
            page = {"page": str(bisect.bisect_right(d.pages, start))} if d.pages else {}
            text = " ".join(d.text[start:end].split())
            yield dataclasses.replace(
                as_row,
                id=id,
                text=text,
                title=title,
                span=(begin + start, begin + end),
                metadata=d.metadata | page,
            )


def token_counter(tokenizer) -> Count:
    """Counts the tokens that a fast tokenizer of transformers makes of each text, without those that it adds at the ends."""
    import tokenizers

    plain = tokenizers.Tokenizer.from_str(
        tokenizer.backend_tokenizer.to_str()
    )  # five times as fast as the wrapper
    plain.no_truncation()
    plain.no_padding()
    return lambda texts: [
        len(encoded.ids)
        for encoded in plain.encode_batch_fast(list(texts), add_special_tokens=False)
    ]


def _fits(document: Document, size: int, count: Count) -> bool:
    title = f"{document.title}. " if document.title else ""
    return len(document.text) <= size * LONGEST and sum(count([document.text, title])) <= size


def _groups(
    document: Document, chunking: Chunking, count: Count
) -> Iterator[tuple[str, str, list[Span]]]:
    """(what ids begin with, title, spans of the passages) of each part of a document that no passage reaches across."""
    text, way = document.text, document.way if chunking.way == "auto" else chunking.way
    if way == "none":
        yield document.name, document.title, [(0, len(text))]
        return
    for name, title, start, end in (
        _sections(document)
        if way == "headings"
        else [(document.name, document.title, 0, len(text))]
    ):
        room = chunking.size - (count([f"{title}. "])[0] if title else 0)
        room = max(
            room, chunking.size // 2
        )  # a title that is longer still is cut by the encoder, which warns
        cuts: list[Cut] = [words, partial(pieces, room=room)]
        cuts = cuts if way == "tokens" else [sentences, lines, *cuts]
        parts = paragraphs(text, start, end) if way == "sentences" else [(start, end)]
        spans = [
            span
            for part in parts
            for span in pack(
                fitting(text, cuts[0](text, *part), room, count, cuts[1:]), room, chunking.overlap
            )
        ]
        yield name, title, spans


def fitting(
    text: str, spans: list[Span], room: int, count: Count, finer: Sequence[Cut]
) -> list[tuple[int, int, int]]:
    """(start, end, tokens) of each span; one of more than `room` tokens is cut by the first of `finer`, its parts by the next."""
    least = [-(-(end - start) // LONGEST) for start, end in spans]
    counts = iter(
        count(
            [
                " " + text[start:end]
                for (start, end), few in zip(spans, least, strict=True)
                if few <= room
            ]
        )
    )
    found = []
    for (start, end), few in zip(spans, least, strict=True):
        tokens = max(few, next(counts)) if few <= room else few
        if tokens > room and finer:
            found += fitting(text, finer[0](text, start, end), room, count, finer[1:])
        else:
            found.append((start, end, tokens))
    return found


def pack(units: Sequence[tuple[int, int, int]], room: int, overlap: int) -> Iterator[Span]:
    """Spans of as many successive units (start, end, tokens) as fit; each begins with the last units of the one before, up to `overlap`."""
    first = 0
    while first < len(units):
        last, tokens = first + 1, units[first][2]
        while last < len(units) and tokens + units[last][2] <= room:
            tokens += units[last][2]
            last += 1
        yield units[first][0], units[last - 1][1]
        if last == len(units):
            return
        left = min(overlap, room - units[last][2])  # the next unit must fit too
        again = last
        while again - 1 > first and units[again - 1][2] <= left:
            again -= 1
            left -= units[again][2]
        first = again


def _sections(document: Document) -> Iterator[tuple[str, str, int, int]]:
    """(name, title, start, end) of what stands before the first heading, and under each; of one with nothing under it, its own."""
    above: list[Heading] = []
    starts = [0, *(heading.end for heading in document.headings)]
    ends = [*(heading.start for heading in document.headings), len(document.text)]
    following = [*document.headings, None]
    anchors = _anchors({heading.title for heading in document.headings})
    for heading, start, end, below in zip(
        [None, *document.headings], starts, ends, following, strict=True
    ):
        if heading:
            above = [other for other in above if other.level < heading.level] + [heading]
        titles = [other.title for other in above]
        if titles[:1] == [document.title]:
            titles = titles[1:]
        path = "/".join(anchors[title] for title in titles)
        title = one_line(" > ".join([document.title] * bool(document.title) + titles))
        if (
            heading
            and not (below and below.level > heading.level)
            and not document.text[start:end].strip()
        ):
            start = heading.start  # nothing stands under it: it is all there is to find
        yield document.name + (f"#{path}" if path else ""), title, start, end


def _anchors(titles: Collection[str]) -> dict[str, str]:
    """title -> what stands for it in ids: its words, C# and C++ as they are; with a hash where others have these words too."""
    words = {
        title: "-".join(re.findall(r"\w+[#+*]*", title.lower()))[:60] or "-" for title in titles
    }
    alike = collections.defaultdict(set)
    for title, anchor in words.items():
        alike[anchor].add(title.lower())
    plainly = lambda title: title.lower().split() == re.findall(r"\w+", title.lower())
    marked = {
        title for title, anchor in words.items() if len(alike[anchor]) > 1 and not plainly(title)
    }
    return {
        title: f"{a}~{hashlib.sha256(title.lower().encode()).hexdigest()[:6]}"
        if title in marked
        else a
        for title, a in words.items()
    }


def _short(name: str, number: str) -> str:
    if len(name) + len(number) > MAX_ID_CHARACTERS:
        name = f"{name[:400]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name + number
