"""Render a preview (lm/data/preview/preview.py) on a terminal, as an HTML page, or as JSON."""

import dataclasses
import html
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from lm.data.preview.preview import Check, Piece, Row

STYLES = {
    "trained": "bold green underline",
    "context": "",
    "padding": "dim",
}  # trained tokens are underlined, so that they are visible without colour
LEGEND = (
    "underlined, green: trained; plain: context; ‹...›: special token; "
    "|: next document; a→b: "
    "reads a, must say b; ∅n: n of padding"
)
MARKS = {True: "✓", False: "✗", None: "·"}

_PAGE = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>What the model sees</title>'
    "<style>\n"
    "body{{font:15px/1.6 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;"
    "color:#222;background:#fff}}\n"
    "p.row{{font-family:ui-monospace,monospace;overflow-wrap:anywhere;"
    "border-left:3px solid #ccc;padding-left:.8em}}\n"
    ".trained{{background:#bfe8c4;text-decoration:underline}}.special{{color:#7a3fa0}}"
    ".padding{{color:#999}}.wrong{{color:#b00020;font-weight:bold}}\n"
    ".edge{{color:#c60;font-weight:bold}}td{{padding:.1em .8em .1em 0;vertical-align:top}}\n"
    "@media (prefers-color-scheme:dark){{body{{color:#ddd;background:#181818}}"
    ".trained{{background:#1e5128}}.special{{color:#c9a0e8}}}}\n"
    "</style><h1>What the model sees</h1><p>{what}</p><p>{legend}</p><table>{checks}</table>"
    "{rows}</html>\n"
)


class _Piped(Console):
    def on_broken_pipe(self) -> None:
        # Rich would exit with 1, which means a failed check. lm.printing.piped handles this.
        raise BrokenPipeError


def show(rows: Iterable[Row], checks: Iterable[Check], console: Console | None = None) -> None:
    """Print rows and checks on a terminal."""
    console = console or _Piped(highlight=False, soft_wrap=True)
    console.print(LEGEND, markup=False, style="dim")
    for number, row in enumerate(rows):
        console.rule(f"row {number}" + (f", {said(row)}" if said(row) else ""), align="left")
        if row.encoder:
            console.print("reads:  ", line(row.encoder))
        console.print("writes: " if row.encoder else "", line(row.tokens))
    console.rule("checks", align="left")
    for check in checks:
        console.print(
            f"{MARKS[check.ok]} {check.name}: {check.found}",
            markup=False,
            style="red" if check.ok is False else "",
        )


def said(row: Row) -> str:
    """Labels of a row, in words if there are any."""
    return row.said or (
        f"labels {', '.join(f'{label:g}' for label in row.labels)}" if row.labels else ""
    )


def line(pieces: list[Piece]) -> Text:
    """Styled text of one row for a terminal."""
    text = Text()
    for mark, piece in _marked(pieces):
        text.append(mark, style="bold yellow" if mark == " | " else STYLES[piece.kind])
    return text


def page(what: str, rows: Iterable[Row], checks: Iterable[Check]) -> str:
    """Complete HTML document with every token escaped."""

    def spans(pieces: list[Piece]) -> str:
        found = []
        for mark, piece in _marked(pieces):
            kind = (
                "edge"
                if mark == " | "
                else " ".join([piece.kind, *(["special"] if piece.special else [])])
            )
            found.append(f'<span class="{kind}">{html.escape(mark)}</span>')
        return "".join(found)

    body = ""
    for number, row in enumerate(rows):
        body += f"<h2>Row {number}{html.escape(f', {said(row)}' if said(row) else '')}</h2>"
        body += (
            f'<p>reads</p><p class="row">{spans(row.encoder)}</p><p>writes</p>'
            if row.encoder
            else ""
        )
        body += f'<p class="row">{spans(row.tokens)}</p>'
    table = "".join(
        f'<tr><td class="{"wrong" if check.ok is False else ""}">{MARKS[check.ok]}</td>'
        f"<td>{html.escape(check.name)}</td><td>{html.escape(check.found)}</td></tr>"
        for check in checks
    )
    return _PAGE.format(what=html.escape(what), legend=html.escape(LEGEND), checks=table, rows=body)


def record(what: str, rows: Iterable[Row], checks: Iterable[Check]) -> dict:
    """JSON-compatible dict of the preview."""
    return {
        "config": what,
        "rows": [dataclasses.asdict(row) for row in rows],
        "checks": [dataclasses.asdict(check) for check in checks],
    }


def _marked(pieces: list[Piece]):
    """(text, its piece) for tokens, boundaries between documents, and padding as one mark."""
    before, padding = 0, 0
    for piece in pieces:
        if piece.kind == "padding":
            padding += 1
            continue
        if before and piece.segment != before:
            yield " | ", piece
        before = piece.segment
        text = f"{piece.text}→{piece.target}" if piece.target else piece.text
        yield (f"‹{text}›" if piece.special else text), piece
    if padding:
        yield f" ∅{padding}", pieces[-1]
