"""HTML: what a reader of the page sees, without what surrounds it. Nothing that a page names is fetched."""

import re

from retrieval.ingest.documents import Heading, Unusable, in_utf16, known_time, one_line, plain

UNSEEN = {
    "script", "style", "noscript", "template", "nav", "footer", "button", "select", "textarea", "svg", "canvas", "iframe", "object",
    "head", "dialog",
}  # fmt: skip
LINES = {"br", "li", "tr", "dt", "dd", "option"}  # begin a line; every other block begins after an empty one
BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "details", "div", "dl", "fieldset", "figcaption", "figure", "form", "h1", "h2",
    "h3", "h4", "h5", "h6", "header", "hr", "main", "ol", "p", "pre", "section", "summary", "table", "ul",
}  # fmt: skip
LEVELS = {f"h{level}": level for level in range(1, 7)}
INVISIBLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
TIMES = ("article:published_time", "date", "dc.date", "dcterms.date")
LATIN = {"iso-8859-1", "iso8859-1", "latin1", "latin-1", "ascii", "us-ascii"}  # which to a browser are windows-1252
SEPARATORS = ("", " ", "\n", "\n\n")
SECTION = re.compile(r"<!\[(?!CDATA\[)")  # such as Word writes: a comment to a browser, an error to Python's parser


class _Text:
    """Text as it is laid out: whitespace joined, except in `pre`, and the widest separator asked for between two pieces."""

    def __init__(self):
        self.parts, self.length, self.pending = [], 0, 0

    def need(self, separator: int) -> None:
        self.pending = max(self.pending, separator)

    def add(self, text: str, keep: bool) -> None:
        if not text.strip():
            self.need(1 if text else 0)
            return
        self.need(text[0].isspace())
        for part in (SEPARATORS[self.pending] if self.length else "", text.strip("\n") if keep else " ".join(text.split())):
            self.parts.append(part)
            self.length += len(part)
        self.pending = int(text[-1].isspace())

    @property
    def next(self) -> int:
        """Where the next piece will begin."""
        return self.length + (len(SEPARATORS[self.pending]) if self.length else 0)


def html(raw: bytes) -> dict:
    """UTF-8, or the charset that the page declares. The text is that of the first <main> with any, else of the body."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(SECTION.sub("<! [", _decoded(raw)), "html.parser")
    text, headings = next(filter(lambda seen: seen[0], map(_seen, soup.select("main, [role=main]"))), None) or _seen(soup.body or soup)
    title = one_line(soup.title.get_text()) if soup.title else next((h.title for h in headings if h.level == 1), "")
    return {"text": text, "title": title, "time": _time(soup), "headings": headings}


def _decoded(raw: bytes) -> str:
    from bs4.dammit import EncodingDetector

    declared = EncodingDetector.find_declared_encoding(raw, is_html=True)
    if declared and declared.lower() in LATIN:
        declared = "cp1252"
    for charset in ("utf-16" if in_utf16(raw) else "utf-8-sig", declared, "latin-1" if declared == "cp1252" else None):
        try:
            return plain(raw.decode(charset or "utf-8"))
        except (LookupError, ValueError):  # also of a charset with a NUL in its name
            continue
    raise Unusable(" is neither UTF-8 nor of the charset it declares: convert it, for example with iconv -t UTF-8")


def _seen(root) -> tuple[str, tuple[Heading, ...]]:
    """The text of an element, and its headings. Without recursion: pages nest as deep as they like."""
    from bs4 import CData, NavigableString

    out, spans, pre = _Text(), [], 0
    todo: list = [(root, None)]  # (node, None), or on leaving an element, (element, where it began)
    while todo:
        node, began = todo.pop()
        if isinstance(node, NavigableString):
            if type(node) in (NavigableString, CData):
                out.add(str(node), pre > 0)
            continue
        name = node.name
        if began is None and (name in UNSEEN or _invisible(node)):
            continue
        out.need(2 if name in LINES else 3 if name in BLOCKS else 1 if name in ("td", "th") else 0)
        if began is None:
            pre += name == "pre"
            todo.append((node, out.next))
            todo += ((child, None) for child in reversed(node.contents))
        else:
            pre -= name == "pre"
            if name in LEVELS and out.length > began:
                spans.append((began, out.length, LEVELS[name]))
    text = plain("".join(out.parts))
    headings = (Heading(start, end, level, one_line(text[start:end]).strip(" ¶#")) for start, end, level in sorted(spans))
    return text, tuple(heading for heading in headings if heading.title)


def _invisible(node) -> bool:
    return node.has_attr("hidden") or node.get("aria-hidden") == "true" or bool(INVISIBLE.search(str(node.get("style", ""))))


def _time(soup) -> str:
    said = [
        str(meta.get("content", "")) for meta in soup.find_all("meta") if str(meta.get("property") or meta.get("name")).lower() in TIMES
    ]
    return next(filter(None, map(known_time, said)), "")
