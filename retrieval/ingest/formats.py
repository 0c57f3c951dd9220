"""Readers of text, Markdown, PDF and Word: bytes to a Document's fields (HTML: see html.py).

A reader raises Unusable, with the reason and the remedy, for bytes not of its format.
"""

import datetime
import io
import itertools
import logging
import re
import zipfile
from collections.abc import Callable

from retrieval.ingest.documents import Heading, Unusable, in_utf16, known_time, one_line, plain
from retrieval.ingest.html import html
from retrieval.ingest.layout import page_text, unbroken

FRONT_MATTER = re.compile(r"\A---\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
TITLE = 2000  # characters of a heading that are considered
UNPACKED = 500_000_000  # bytes of a Word document that its parts may have
MARKUP = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|[*`]|\\(?=\W)")


def text(raw: bytes) -> dict:
    """Read UTF-8, or UTF-16 with a byte order mark."""
    try:
        return {
            "text": plain(raw.decode("utf-16" if in_utf16(raw) else "utf-8-sig")),
            "way": "sentences",
        }
    except UnicodeDecodeError as error:
        if in_utf16(raw):
            raise Unusable(" begins as UTF-16 and does not go on so: save it as UTF-8") from None
        line = raw.count(b"\n", 0, error.start) + 1
        raise Unusable(
            f" is not UTF-8 (line {line}, byte {raw[error.start]:#04x}): convert it, for example "
            "with iconv -t UTF-8"
        ) from None


def markdown(raw: bytes) -> dict:
    """Read CommonMark.

    The text is the file's own, with front matter blanked; its title and date are taken.
    """
    from markdown_it import MarkdownIt

    source = text(raw)["text"]
    front = FRONT_MATTER.match(source)
    facts = (
        dict(re.findall(r"^(title|date): *[\"']?(.*?)[\"']? *$", front[1], re.MULTILINE))
        if front
        else {}
    )
    # Blank the front matter instead of removing it: spans refer to the whole file.
    source = re.sub(r"[^\n]", " ", front[0]) + source[front.end() :] if front else source
    starts = [0, *itertools.accumulate(len(line) + 1 for line in source.split("\n"))]
    tokens = MarkdownIt("commonmark").disable("inline").parse(source)
    headings = [
        Heading(
            starts[begin],
            min(starts[end], len(source)),
            int(opened.tag[1:]),
            one_line(MARKUP.sub(r"\1", said.content[:TITLE])),
        )
        for opened, said in itertools.pairwise(tokens)
        if opened.type == "heading_open" and opened.map and not opened.level
        for begin, end in [opened.map]
    ]
    title = one_line(facts.get("title", "")) or next(
        (h.title for h in headings if h.level == 1), ""
    )
    return {
        "text": source,
        "title": title,
        "time": known_time(facts.get("date", "")),
        "headings": tuple(headings),
    }


def pdf(raw: bytes) -> dict:
    """Read the text of a PDF page by page; scanned images have none."""
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.ERROR)
    try:
        reader = pypdf.PdfReader(io.BytesIO(raw))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unusable(" is encrypted: save a copy without a password")
        pages = [plain(page_text(page)) for page in reader.pages]
        facts = reader.metadata
        title = one_line(str(facts.title or "")) if facts else ""
    except Unusable:
        raise
    except Exception as error:  # pypdf raises anything for a broken file
        raise Unusable(
            f" is no PDF that can be read ({type(error).__name__}: {one_line(str(error))}): "
            "print it to a new PDF"
        ) from None
    if not any(page.strip() for page in pages):
        raise Unusable(
            " is a PDF without text, perhaps scanned: recognise its text first, for example with "
            "ocrmypdf"
        )
    pages = unbroken(pages)
    starts = [0, *itertools.accumulate(len(page) + 1 for page in pages)][:-1]
    return {
        "text": "\n".join(pages),
        "title": title,
        "time": _created(facts),
        "pages": tuple(starts),
    }


def _created(facts) -> str:
    try:
        made: datetime.datetime | None = facts and facts.creation_date
    except Exception:  # a date in a non-standard format
        return ""
    return made.isoformat() if made else ""


def docx(raw: bytes) -> dict:
    """Read the text of a Word document: headings, tables, lists, and superscripts as in HTML."""
    import mammoth

    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as parts:
            if sum(part.file_size for part in parts.infolist()) > UNPACKED:
                raise Unusable(f" unpacks to more than {UNPACKED // 10**6} MB: split it")
            known = "docProps/core.xml" in parts.namelist()
            facts = parts.read("docProps/core.xml").decode("utf-8", "replace") if known else ""
        unread = mammoth.images.img_element(lambda image: {})
        body = mammoth.convert_to_html(io.BytesIO(raw), convert_image=unread).value
    except Unusable:
        raise
    except Exception as error:  # mammoth raises anything for a broken file
        raise Unusable(
            f" is no Word document that can be read ({type(error).__name__}: "
            f"{one_line(str(error))}): save it again as .docx"
        ) from None
    title = re.search(r"<dc:title[^>]*>(.*?)</dc:title>", facts, re.DOTALL)
    saved = re.search(r"<dcterms:modified[^>]*>(.*?)</dcterms:modified>", facts, re.DOTALL)
    head = (f"<title>{title[1]}</title>" if title else "") + (
        f'<meta name="date" content="{saved[1]}">' if saved else ""
    )
    page = f'<html><head><meta charset="utf-8">{head}</head><body>{body}</body></html>'
    return html(page.encode())


READERS: dict[str, Callable[[bytes], dict]] = {
    ".txt": text,
    ".text": text,
    ".md": markdown,
    ".markdown": markdown,
    ".html": html,
    ".htm": html,
    ".xhtml": html,
    ".pdf": pdf,
    ".docx": docx,
}
