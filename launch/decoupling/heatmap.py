"""Heat map of the ledger as SVG: a cell is the darker the better, and names its interval."""

from collections.abc import Mapping, Sequence
from html import escape

from launch.decoupling.ledger import COLUMNS, CONDITIONS, Cell, Column, Row

CELL, HIGH, LEFT, TOP, GAP = 112, 40, 250, 92, 16
LIGHT, DARK = (243, 246, 250), (29, 95, 191)  # of the worst and the best value of a column


def strength(column: Column, cell: Cell, cells: Sequence[Cell]) -> float:
    """Where a value lies from the worst, or a guess (0), to the best of its column (1)."""
    values = [column.sign * each.value for each in cells]
    floor = min(values) if column.floor is None else column.sign * column.floor
    width = max(values) - floor
    return min(1.0, max(0.0, (column.sign * cell.value - floor) / width)) if width > 0 else 0.0


def shown(column: Column, value: float | None) -> str:
    return "–" if value is None else f"{value:.{column.digits}f}"


def interval(column: Column, cell: Cell) -> str:
    return f"{shown(column, cell.low)} to {shown(column, cell.high)}"


def draw(rows: Sequence[Row], names: Mapping[str, str]) -> str:
    """SVG of all rows. names: of the models."""
    width, body, y = LEFT + CELL * len(COLUMNS) + 10, [], TOP
    for i, column in enumerate(COLUMNS):
        middle = LEFT + (i + 0.5) * CELL
        words = column.name.split(", ")
        for line, text in enumerate(words):
            body.append(_text(middle, TOP - 30 + 16 * line, text, "middle", 11))
    before: tuple[str, ...] = ()
    for row in rows:
        if before and before != (row.model, row.stage):
            y += GAP if before[0] != row.model else GAP // 2
        if before[:1] != (row.model,):
            body.append(_text(10, y + 25, names[row.model], "start", 12, "600"))
        if before != (row.model, row.stage):
            body.append(_text(118, y + 25, row.stage, "start", 11))
        before = row.model, row.stage
        body.append(_text(LEFT - 8, y + 25, CONDITIONS[row.condition], "end", 10))
        for i, column in enumerate(COLUMNS):
            cell = row.cells[column.name]
            share = strength(column, cell, [each.cells[column.name] for each in rows])
            body.append(_cell(LEFT + i * CELL, y, column, cell, share))
        y += HIGH
    title = "What each stage of training and a memory are worth"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 28}" '
        f'role="img" aria-label="{title}" font-family="system-ui, sans-serif">'
    )
    note = "Darker is better within a column. Small figures: 95 % intervals."
    return "\n".join(
        [
            head,
            f"<title>{title}</title>",
            f'<rect width="{width}" height="{y + 28}" fill="#ffffff"/>',
            _text(10, 24, title, "start", 16, "600"),
            *body,
            _text(10, y + 18, note, "start", 11),
            "</svg>\n",
        ]
    )


def _cell(x: float, y: float, column: Column, cell: Cell, share: float) -> str:
    colour = [round(a + share * (b - a)) for a, b in zip(LIGHT, DARK, strict=True)]
    ink = "#ffffff" if share > 0.55 else "#1f2933"
    middle = x + CELL / 2
    return (
        f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{HIGH - 2}" rx="3" '
        f'fill="rgb({",".join(map(str, colour))})"/>'
        + _text(middle, y + 17, shown(column, cell.value), "middle", 13, "600", ink)
        + _text(middle, y + 31, interval(column, cell), "middle", 9, "400", ink)
    )


def _text(x, y, text: str, anchor: str, size: int, weight="400", ink="#1f2933") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" fill="{ink}">{escape(text)}</text>'
    )
