"""Chunking: cut documents into passages of limited length, at sentence borders where possible."""

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
Count = Callable[[Sequence[str]], Sequence[int]]  # texts -> tokens of each
Cut = Callable[[str, int, int], list[Span]]  # text, start, end -> the spans of its parts

LONGEST = 32  # assumed characters of a token, at most: BERT makes one [UNK] of any long word
WAYS = ("auto", "headings", "sentences", "tokens", "none")


@dataclasses.dataclass(frozen=True)
class Chunking:
    """How to cut documents into passages.

    way: one of WAYS.
    size: most tokens of a passage with its title.
    overlap: most tokens that a passage repeats of the one before.

    A passage holds whole sentences: of one paragraph ("sentences") or of one section under a
    heading ("headings"). "tokens" cuts between any words; "none" keeps whole documents. A unit too
    long for a passage is cut: a sentence between lines, a line between words, a word anywhere.
    "auto" is sentences for text files and headings for others; a table row stays whole if it fits.
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
                f"overlap={self.overlap}: expected 0 to {self.size // 2}, half of the size of a "
                "passage"
            )


def passages(document: Document, chunking: Chunking, count: Count) -> Iterator[Passage]:
    """Yield the passages of a document.

    count: counts tokens as the encoder sees them.

    A passage's text is its span of the document's text with white space collapsed. Its id is the
    document's name, then "#" and the words of its headings if any, then ":" and a number that
    counts from 1 for each name. A row that fits stays as it is: its id is its name and its span is
    that of its field. If it does not fit, the first passage has the bare name, and spans are offset
    by the start of the row's span.
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
    """Return a counter of tokens per text for a fast tokenizer of transformers.

    Tokens that the tokenizer adds at the ends are not counted.
    """
    import tokenizers

    # Five times as fast as the wrapper.
    plain = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
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
    """Yield (id prefix, title, passage spans) of each part that no passage may cross."""
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
        room = max(room, chunking.size // 2)  # a longer title is cut by the encoder, which warns
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
    """Return (start, end, tokens) of each span, none above `room` tokens if possible.

    A longer span is cut by the first of `finer`, and its parts by the next.
    """
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
    """Yield spans of as many successive units (start, end, tokens) as fit.

    Each span begins with the last units of the one before, up to `overlap` tokens.
    """
    first = 0
    while first < len(units):
        last, tokens = first + 1, units[first][2]
        while last < len(units) and tokens + units[last][2] <= room:
            tokens += units[last][2]
            last += 1
        yield units[first][0], units[last - 1][1]
        if last == len(units):
            return
        left = min(overlap, room - units[last][2])  # leave room for the next unit
        again = last
        while again - 1 > first and units[again - 1][2] <= left:
            again -= 1
            left -= units[again][2]
        first = again


def _sections(document: Document) -> Iterator[tuple[str, str, int, int]]:
    """Yield (name, title, start, end) of the text before the first heading and under each.

    A heading with nothing under it is a section of its own.
    """
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
            start = heading.start  # the section is the heading itself
        yield document.name + (f"#{path}" if path else ""), title, start, end


def _anchors(titles: Collection[str]) -> dict[str, str]:
    """Return title -> its form in ids: its words joined by "-", with C# and C++ kept.

    A hash is appended where other titles have the same words.
    """
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
