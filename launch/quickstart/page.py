"""Report of the quickstart, as Markdown and as a self-contained HTML page."""

from collections.abc import Sequence
from html import escape

from launch.quickstart.findings import Findings, Share, examples, mistakes

CREDIT = (
    "Cities and countries: GeoNames (geonames.org), CC-BY 4.0. Elements: mendeleev, MIT. "
    "Speeches: United States "
    "government, public domain. Reader: SmolLM2-135M-Instruct, Apache-2.0. Encoder: "
    "all-MiniLM-L6-v2, Apache-2.0."
)
CSS = (
    "\n"
    ":root{color-scheme:light dark;--bg:#fff;--ink:#1f2933;--soft:#5b6773;--line:#d9dee3;"
    "--card:#f6f8fa;--a:#b3541e;--b:#1d5fbf}\n"
    "@media(prefers-color-scheme:dark){:root{--bg:#14181d;--ink:#e6eaee;--soft:#9aa7b4;"
    "--line:#39424c;--card:#1c2229;--a:#f0955a;--b:#6aa9ff}}\n"
    "*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);"
    'font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}\n'
    "main{max-width:54rem;margin:0 auto;padding:2rem 1.25rem 4rem}h1{font-size:1.9rem;"
    "line-height:1.2;margin:.5rem 0}\n"
    "h2{font-size:1.25rem;margin:2.6rem 0 .6rem}\n"
    "p{margin:.5rem 0}.soft{color:var(--soft)}svg{width:100%;height:auto;display:block}\n"
    ".figures{display:flex;gap:1rem;flex-wrap:wrap;margin:1.4rem 0}\n"
    ".figures div{flex:1 1 12rem;background:var(--card);border-radius:.6rem;"
    "padding:.9rem 1.1rem}\n"
    ".figures b{display:block;font-size:1.9rem;line-height:1.2}.closed b{color:var(--a)}"
    ".open b{color:var(--b)}\n"
    ".wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem}\n"
    "th,td{text-align:left;vertical-align:top;padding:.45rem .7rem .45rem 0;"
    "border-bottom:1px solid var(--line)}\n"
    "th{color:var(--soft);font-weight:600}td.n,th.n{text-align:right;"
    "font-variant-numeric:tabular-nums}\n"
)


def percent(share: Share) -> str:
    return f"{share[0]:.1%} ({share[1]:.1%} to {share[2]:.1%})"


def markdown(found: Findings) -> str:
    """Report as Markdown, which refers to popularity.svg and training.svg."""
    parts = [
        f"# Closed-book and open-book\n\n{summary(found)}\n\n![{alt(found)}](popularity.svg)\n"
    ]
    for title, note, header, rows in tables(found):
        parts.append(f"## {title}\n\n{note}\n" if note else f"## {title}\n")
        if title == "Training from scratch":
            parts.append("![Training loss by step](training.svg)\n")
        if rows:
            lines = [header, ["---"] * len(header), *rows]
            parts.append(
                "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)
                + "\n"
            )
    return "\n".join(parts) + f"\n{CREDIT}\n"


def html(found: Findings, pictures: dict[str, str]) -> str:
    """Report as one HTML page with embedded pictures, without external resources."""
    body = [
        f"<h1>Closed-book and open-book</h1><p>{escape(summary(found))}</p>",
        f'<div class="figures"><div class="closed"><b>{found.closed_all[0]:.1%}</b>right from '
        "the weights alone</div>"
        f'<div class="open"><b>{found.open_all[0]:.1%}</b>right with the memory</div>'
        f"<div><b>{len(found.answers)}</b>questions in {len(found.bins)} popularity "
        "bins</div></div>",
        f"<figure style='margin:0'>{pictures['popularity.svg']}</figure>",
    ]
    for title, note, header, rows in tables(found):
        body.append(f"<h2>{escape(title)}</h2>")
        if note:
            body.append(f'<p class="soft">{escape(note)}</p>')
        if title == "Training from scratch":
            body.append(f"<figure style='margin:0'>{pictures['training.svg']}</figure>")
        if rows:
            body.append(_table(header, rows))
    body.append(f'<h2>Sources</h2><p class="soft">{escape(CREDIT)}</p>')
    head = (
        '<meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><style>{CSS}</style>'
    )
    top = (
        f'<!doctype html><html lang="en"><head>{head}<title>Openbook: closed-book and '
        "open-book</title></head>"
    )
    return f"{top}<body><main>{''.join(body)}</main></body></html>\n"


def summary(found: Findings) -> str:
    ahead = sum(o[0] > c[0] for o, c in zip(found.open, found.closed, strict=True))
    return (
        f"The same language model was asked in which country {len(found.answers)} cities are. "
        "From its weights alone (closed-book) it was "
        f"right in {percent(found.closed_all)}, reading passages from its memory (open-book) in "
        f"{percent(found.open_all)}; open-book is "
        f"ahead in {ahead} of {len(found.bins)} popularity bins. Intervals are Wilson's, 95 %. "
        f"Measured on {found.hardware}."
    )


def alt(found: Findings) -> str:
    return (
        f"Accuracy by population: closed-book {found.closed_all[0]:.0%} and open-book "
        f"{found.open_all[0]:.0%} over all questions"
    )


def tables(found: Findings) -> list[tuple[str, str, list[str], list[list[str]]]]:
    """(title, note, header, rows) of every section after the picture."""
    wrong = mistakes(found.answers)
    first, last = found.curve[0], found.curve[-1]
    slowest = max((s["seconds"] for s in found.story if s["step"] != "before"), default=0)
    seconds, size = sum(s[2] for s in found.stages), sum(s[3] for s in found.stages)
    return [
        (
            "By popularity",
            "An answer is right when the country's name, or another name of it, stands in it.",
            ["population", "closed-book", "open-book"],
            [
                [b, percent(c), percent(o)]
                for b, c, o in zip(found.bins, found.closed, found.open, strict=True)
            ],
        ),
        (
            "Answers and what they cite",
            "One question a bin.",
            ["question", "closed-book", "open-book", "cited passage"],
            [_example(row) for row in examples(found.answers)],
        ),
        (
            "Open-book mistakes",
            f"{len(wrong)} of {len(found.answers)}, all of them." if wrong else "None in this run.",
            ["question", "right", "open-book", "cited passage"],
            [
                [row["question"], row["answers"][0], row["open_book"], _cited(row["citations"])]
                for row in wrong
            ],
        ),
        (
            "One fact edited, one deleted, both undone",
            f"The slowest of these changes was visible to the next question after {slowest:.2f} s.",
            ["", "question", "answer", "cited passage"],
            _story(found.story),
        ),
        (
            "What the memory remembers of it",
            "Every change is one version; each can still be searched (Memory.as_of).",
            ["version", "action", "passages", "when", "reason"],
            [
                [str(c["version"]), c["action"], f"{c['passages']:,}", c["time"], c["reason"]]
                for c in found.log
            ],
        ),
        (
            "Training from scratch",
            f"Loss fell from {first[1]:.2f} to {last[1]:.2f} nats a token in {last[0]:,.0f} "
            "steps on the speeches to 1900.",
            ["speeches of", "bits per byte", "standard error"],
            [[period, f"{bits:.3f}", f"{error:.3f}"] for period, bits, error in found.bits],
        ),
        (
            "Seconds and bytes",
            f"{seconds:.0f} seconds and {size / 1e6:,.0f} MB in all."
            if found.stages
            else "Run by hand: the stages were not timed.",
            ["stage", "what", "seconds", "bytes"],
            [[name, about, f"{s:.1f}", f"{b:,}"] for name, about, s, b in found.stages],
        ),
    ]


def _example(row: dict) -> list[str]:
    closed, opened = (
        f"{row[f'{book}_book']} {'✓' if row[f'{book}_correct'] else '✗'}"
        for book in ("closed", "open")
    )
    return [row["question"], closed, opened, _cited(row["citations"])]


def _story(story: Sequence[dict]) -> list[list[str]]:
    return [
        [
            step["what"] if i == 0 else "",
            asked["question"],
            asked["answer"],
            _cited(asked["citations"]),
        ]
        for step in story
        for i, asked in enumerate(step["asked"])
    ]


def _cited(citations: Sequence[dict]) -> str:
    return f"[{citations[0]['id']}] {citations[0]['text']}" if citations else "none"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    numbers = {
        i
        for i, name in enumerate(header)
        if name in ("seconds", "bytes", "bits per byte", "standard error")
    }

    def line(cells: Sequence[str], tag: str) -> str:
        return (
            "<tr>"
            + "".join(
                f"<{tag}{' class=n' if i in numbers else ''}>{escape(c)}</{tag}>"
                for i, c in enumerate(cells)
            )
            + "</tr>"
        )

    body = "".join(line(row, "td") for row in rows)
    return (
        f'<div class="wide"><table><thead>{line(header, "th")}</thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
