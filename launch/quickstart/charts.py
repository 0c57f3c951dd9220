"""SVG charts: shares with intervals by group, and a curve, in the reader's light or dark theme."""

import math
from collections.abc import Sequence
from html import escape

STYLE = (
    "<style>\n"
    ".ob{--ink:#1f2933;--soft:#5b6773;--line:#d9dee3;--a:#b3541e;--b:#1d5fbf;"
    "font:13px system-ui,-apple-system,'Segoe UI',sans-serif}\n"
    "@media(prefers-color-scheme:dark){.ob{--ink:#e6eaee;--soft:#9aa7b4;--line:#39424c;"
    "--a:#f0955a;--b:#6aa9ff}}\n"
    ".ob text{fill:var(--ink)}.ob .soft{fill:var(--soft)}.ob .grid{stroke:var(--line)}\n"
    ".ob .a{fill:var(--a);stroke:var(--a)}.ob .b{fill:var(--b);stroke:var(--b)}\n"
    ".ob text.a,.ob text.b{stroke:none;font-weight:600}.ob .line{fill:none;stroke-width:2}\n"
    "</style>"
)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 380, 56, 120, 46, 58


def _frame(title: str, description: str, body: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" class="ob" '
        f'role="img" aria-label="{escape(description)}">'
    )
    heading = f'<text x="{LEFT}" y="22" font-size="16" font-weight="600">{escape(title)}</text>'
    return "\n".join(
        [
            head,
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(description)}</desc>",
            STYLE,
            heading,
            *body,
            "</svg>\n",
        ]
    )


def _grid(ticks: Sequence[tuple[float, str]], y) -> list[str]:
    return [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" '
        f'y2="{y(value):.1f}"/>'
        f'<text class="soft" x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{label}</text>'
        for value, label in ticks
    ]


def shares(
    title: str,
    description: str,
    groups: Sequence[str],
    axis: str,
    series: Sequence[tuple[str, Sequence[tuple[float, float, float]]]],
) -> str:
    """Chart of up to two series of (share, low, high), each in [0, 1], with one point per group."""
    step = (WIDTH - LEFT - RIGHT) / len(groups)
    body = _grid(
        [(s / 100, f"{s} %") for s in range(0, 101, 25)],
        y := lambda share: TOP + (1 - share) * (HEIGHT - TOP - BOTTOM),
    )
    for i, group in enumerate(groups):
        middle = (
            f'x="{LEFT + (i + 0.5) * step:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle" '
            'font-size="11"'
        )
        body.append(f'<text class="soft" {middle}>{escape(group)}</text>')
    body.append(
        f'<text class="soft" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" '
        f'text-anchor="middle">{escape(axis)}</text>'
    )
    for (name, points), colour, shift in zip(series, "ab", (-4, 4), strict=False):
        x = [LEFT + (i + 0.5) * step + shift for i in range(len(points))]
        line = " ".join(
            f"{xi:.1f},{y(share):.1f}" for xi, (share, _, _) in zip(x, points, strict=True)
        )
        body.append(f'<polyline class="{colour} line" points="{line}"/>')
        for xi, (share, low, high) in zip(x, points, strict=True):
            ends = f'x1="{xi:.1f}" x2="{xi:.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}"'
            body.append(f'<line class="{colour}" {ends} opacity=".55" stroke-width="2"/>')
            body.append(f'<circle class="{colour}" cx="{xi:.1f}" cy="{y(share):.1f}" r="4"/>')
        body.append(
            f'<text class="{colour}" x="{x[-1] + 14:.1f}" '
            f'y="{y(points[-1][0]) + 4:.1f}">{escape(name)}</text>'
        )
    return _frame(title, description, body)


def curve(
    title: str, description: str, points: Sequence[tuple[float, float]], axis: str, unit: str
) -> str:
    """Chart of one series of (x, y) as a line; the axes end at round numbers."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    across, up = _ticks(min(xs), max(xs)), _ticks(min(ys), max(ys))
    place = lambda v: LEFT + (v - across[0]) / (across[-1] - across[0]) * (WIDTH - LEFT - RIGHT)
    y = lambda v: TOP + (up[-1] - v) / (up[-1] - up[0]) * (HEIGHT - TOP - BOTTOM)
    body = _grid([(v, f"{v:g}") for v in up], y)
    for v in across:
        body.append(
            f'<text class="soft" x="{place(v):.1f}" y="{HEIGHT - BOTTOM + 20}" '
            f'text-anchor="middle">{v:,g}</text>'
        )
    body.append(
        f'<text class="soft" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" '
        f'text-anchor="middle">{escape(axis)}</text>'
    )
    body.append(
        '<polyline class="b line" '
        f'points="{" ".join(f"{place(a):.1f},{y(b):.1f}" for a, b in points)}"/>'
    )
    body.append(
        f'<text class="b" x="{place(xs[-1]) + 8:.1f}" y="{y(ys[-1]) + 4:.1f}">{ys[-1]:.2f} '
        f"{escape(unit)}</text>"
    )
    return _frame(title, description, body)


def _ticks(low: float, high: float) -> list[float]:
    """Four to ten evenly spaced round numbers, from at most `low` to at least `high`."""
    rough = (high - low) / 5 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]
