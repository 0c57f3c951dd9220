"""HTML reader: the visible text of a page without navigation. Nothing is fetched."""

import re

from retrieval.ingest.documents import Heading, Unusable, in_utf16, known_time, one_line, plain

UNSEEN = {
    "script",
    "style",
    "noscript",
    "template",
    "nav",
    "footer",
    "button",
    "select",
    "textarea",
    "svg",
    "canvas",
    "iframe",
    "object",
    "head",
    "dialog",
    "rt",
    "rp",
}
# Elements that begin a new line; other blocks begin after an empty line.
LINES = {"br", "li", "tr", "dt", "dd", "option"}
BLOCKS = {
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "details",
    "div",
    "dl",
    "fieldset",
    "figcaption",
    "figure",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hr",
    "main",
    "ol",
    "p",
    "pre",
    "section",
    "summary",
    "table",
    "ul",
}
LEVELS = {f"h{level}": level for level in range(1, 7)}
INVISIBLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
TIMES = ("article:published_time", "date", "dc.date", "dcterms.date")
# Charsets that browsers read as windows-1252.
LATIN = {"iso-8859-1", "iso8859-1", "latin1", "latin-1", "ascii", "us-ascii"}
SEPARATORS = ("", " ", "\n", "\n\n")
SIGNS = {"", "#", "¶", "§", "🔗"}  # texts of a link from a heading to itself
EXPONENT = re.compile(r"[-+−]?\d+|[a-z]|[-+−]?[\da-z]+[-+−*/ ][\da-z]+", re.IGNORECASE)
UNIT = re.compile(r"(?<![^\W_])(?:[a-zµμ]{1,3}|mc|[A-Z])$")  # bases of a power: km, cm, x
RAISED = str.maketrans("0123456789+-−n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻ⁿ")
# Written by Word: a comment to a browser, an error to Python's parser.
SECTION = re.compile(r"<!\[(?!CDATA\[)")


class _Text:
    """Laid-out text: white space collapsed except in `pre`.

    Between two pieces stands the widest separator asked for.
    """

    def __init__(self):
        self.parts, self.length, self.pending = [], 0, 0

    def need(self, separator: int) -> None:
        self.pending = max(self.pending, separator)

    def add(self, text: str, keep: bool) -> None:
        if not text.strip():
            self.need(1 if text else 0)
            return
        self.need(text[0].isspace())
        for part in (
            SEPARATORS[self.pending] if self.length else "",
            text.strip("\n") if keep else " ".join(text.split()),
        ):
            self.parts.append(part)
            self.length += len(part)
        self.pending = int(text[-1].isspace())

    @property
    def before(self) -> str:
        """The end of the text that the next piece joins; "" where a separator is due."""
        return "" if self.pending or not self.parts else self.parts[-1][-40:]

    @property
    def next(self) -> int:
        """Where the next piece will begin."""
        return self.length + (len(SEPARATORS[self.pending]) if self.length else 0)


def html(raw: bytes) -> dict:
    """Read UTF-8, or the charset that the page declares.

    The text is that of the first non-empty <main>, else of the body.
    """
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(SECTION.sub("<! [", _decoded(raw)), "html.parser")
    text, headings = next(
        filter(lambda seen: seen[0], map(_seen, soup.select("main, [role=main]"))), None
    ) or _seen(soup.body or soup)
    title = (
        one_line(soup.title.get_text())
        if soup.title
        else next((h.title for h in headings if h.level == 1), "")
    )
    return {"text": text, "title": title, "time": _time(soup), "headings": headings}


def _decoded(raw: bytes) -> str:
    from bs4.dammit import EncodingDetector

    declared = EncodingDetector.find_declared_encoding(raw, is_html=True)
    if declared and declared.lower() in LATIN:
        declared = "cp1252"
    for charset in (
        "utf-16" if in_utf16(raw) else "utf-8-sig",
        declared,
        "latin-1" if declared == "cp1252" else None,
    ):
        try:
            return plain(raw.decode(charset or "utf-8"))
        except (LookupError, ValueError):  # ValueError also for a NUL in a charset's name
            continue
    raise Unusable(
        " is neither UTF-8 nor of the charset it declares: convert it, for example with iconv -t "
        "UTF-8"
    )


def _seen(root) -> tuple[str, tuple[Heading, ...]]:
    """Return the text of an element and its headings; iterative, as pages nest deeply."""
    from bs4 import CData, NavigableString

    out, spans, pre, notes = _Text(), [], 0, _notes(root)
    todo: list = [(root, None)]  # (node, None); on leaving an element, (element, its start)
    while todo:
        node, began = todo.pop()
        if isinstance(node, NavigableString):
            if type(node) in (NavigableString, CData):
                out.add(str(node), pre > 0)
            continue
        name = node.name
        if began is None and (name in UNSEEN or _invisible(node) or _links_itself(node)):
            continue
        if name in ("sup", "sub"):
            separator, written = _shifted(node, out.before, notes)
            out.need(separator)
            out.add(written, pre > 0)
            out.need(int(written.startswith("[") and str(node.next_sibling or "")[:1].isalnum()))
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
    headings = (
        Heading(start, end, level, one_line(text[start:end]).strip(" ¶"))
        for start, end, level in sorted(spans)
    )
    return text, tuple(heading for heading in headings if heading.title)


def _notes(root) -> set[str]:
    """Return the numbers and letters that begin a block: the footnotes that markers refer to."""
    first = (
        node
        for node in root.find_all("sup")
        if node.parent.name in BLOCKS | LINES and not _text_before(node)
    )
    return {node.get_text().strip() for node in first}


def _text_before(node) -> bool:
    return any(str(sibling).strip() for sibling in node.previous_siblings)


def _shifted(node, before: str, notes: set[str]) -> tuple[int, str]:
    """Return (separator, text) of a superscript or subscript after the text `before`.

    A footnote marker must not become part of a number. An exponent is written 10^6 or km², a
    fraction 1/2, an ordinal 1st, a subscript CO2 or x_i. A marker with a link is left out; another
    is set apart: 5,000 [1].
    """
    text = " ".join(node.get_text().split())
    if not text or not before or before[-1].isspace():
        return 0, text
    digit = before[-1].isdecimal()
    if node.name == "sub":
        return 0, text if not text[0].isalnum() or (text.isdecimal() and not digit) or before[
            -1
        ] in "/⁄" else f"_{text}"
    if str(node.next_sibling or "").lstrip()[:1] in ("/", "⁄") and text.isdecimal():  # a fraction
        return int(digit), text
    link = node.find_parent("a")
    if (
        node.find("a", href=True)
        or (link and link.get_text().strip() == text)
        or "doc-noteref" in str(node.get("role"))
    ):
        return 0, "" if re.fullmatch(r"\W*\w{1,3}\W*|\[.*\]", text) else text
    if text.upper() in ("TM", "SM") or (
        not text.strip("[]()")[:1].isalnum() and text[0] not in "-+−"
    ):
        return 0, {"TM": "™", "SM": "℠"}.get(text.upper(), text)
    if text.isalpha() and (len(text) > 1 or (digit and text in "eoºª")):  # 1st, Mme
        return 0, text
    number = re.search(r"[\d.,\u00a0\u202f]*\d$", before)
    power = EXPONENT.fullmatch(text) and text not in notes and (not text.isalpha() or not number)
    if power and number and (text[0] in "-+−" or number[0] == "10" or len(number[0]) < 3):
        return 0, "^" + (text if text.isalnum() or text[0] in "-+−" else f"({text})").replace(
            "−", "-"
        )
    unit = UNIT.search(before)
    if power and unit and not number and (len(text) > 1 or text in "23n" or len(unit[0]) == 1):
        return 0, text.translate(RAISED) if re.fullmatch(r"[-+−]?[\dn]+", text) else f"^({text})"
    return 1, text if text[0] in "[(" else f"[{text}]"


def _links_itself(node) -> bool:
    """Whether a link is the sign beside a heading that links to it."""
    alone = (
        node.name == "a"
        and len(node.contents) <= 1
        and not getattr(node.contents and node.contents[0], "name", None)
    )
    return alone and node.get_text().strip() in SIGNS and node.find_parent(list(LEVELS)) is not None


def _invisible(node) -> bool:
    return (
        node.has_attr("hidden")
        or node.get("aria-hidden") == "true"
        or bool(INVISIBLE.search(str(node.get("style", ""))))
    )


def _time(soup) -> str:
    said = [
        str(meta.get("content", ""))
        for meta in soup.find_all("meta")
        if str(meta.get("property") or meta.get("name")).lower() in TIMES
    ]
    return next(filter(None, map(known_time, said)), "")
