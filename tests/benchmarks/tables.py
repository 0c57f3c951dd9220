"""Tables and a plot of the benchmarks' results, for the documentation."""

import json
from pathlib import Path

from tests.benchmarks.rows import OURS, PEER, ROWS, Pair, Report

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
BEGIN = "<!-- benchmarks: written by python -m tests.benchmarks.run --write-docs -->"
END = "<!-- end of benchmarks -->"
PLOT = "benchmarks.svg"  # in the folder `images` beside the page


def write(results: Path, page: Path) -> None:
    """Write all results between the markers of a page, and the plot beside it.

    Raises ValueError if the page has no markers.
    """
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page}: expected the lines {BEGIN!r} and {END!r} once each")
    found = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name in ROWS
        if (path := results / f"{name}.json").exists()
    }
    before, rest = text.split(BEGIN)
    body = markdown(found)
    if any(PEER in one.get("ratios", ()) for one in found.values()):
        plot(found, page.parent / "images" / PLOT)
        body = f"![Speed of Openbook relative to its peers](images/{PLOT})\n\n{body}"
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{body}\n{END}{after}", encoding="utf-8")


def markdown(found: dict[str, dict]) -> str:
    """One table for every group of rows, and one for every report."""
    parts, groups = [], {}
    for name, result in found.items():
        row = ROWS[name]
        if isinstance(row, Pair):
            groups.setdefault(row.group, []).append(result)
    for group, results in groups.items():
        parts.append(f"### {group}\n\n{_compared(results)}")
    for name, result in found.items():
        if isinstance(ROWS[name], Report):
            report = result["report"]
            parts.append(
                f"### {ROWS[name].what}\n\n{report['note']}; load {result['load']:.1f}.\n\n"
                + _table(report["columns"], report["rows"])
            )
    return "\n".join(parts)


def _compared(results: list[dict]) -> str:
    columns = [
        "row",
        "precision",
        "beside",
        f"{OURS}, tokens per CPU second",
        "it",
        "ratio, median",
        "min to max",
        "GFLOP/s, GB/s of the core",
        "load",
    ]
    rows = []
    for result in results:
        for side, its in result["sides"].items():
            if side == OURS:
                continue
            ours = result["sides"][OURS]["tokens_per_cpu_second"]["median"]
            row = [result["what"], result["settings"]["dtype"], side, f"{ours:,.4g}"]
            if "missing" in its:
                rows.append([*row, "not installed", "", "", "", ""])
                continue
            ratio, rates = result["ratios"][side], result["rates"]
            rows.append(
                [
                    *row,
                    f"{its['tokens_per_cpu_second']['median']:,.4g}",
                    f"{ratio['median']:.2f}",
                    f"{ratio['min']:.2f} to {ratio['max']:.2f}",
                    f"{rates['matmul_gflops']:.0f}, {rates['copy_gb_per_s']:.0f}",
                    f"{result['load']:.1f}",
                ]
            )
    return _table(columns, rows)


def _table(columns: list[str], rows: list[list]) -> str:
    shown = lambda x: f"{x:,}" if isinstance(x, int) else str(x)
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(shown, line))} |\n" for line in lines)


def plot(found: dict[str, dict], path: Path) -> None:
    """Ratio of every row to transformers: the median as a bar, with minimum and maximum."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "benchmarks"
    from matplotlib import pyplot

    pairs = {n: one["ratios"][PEER] for n, one in found.items() if PEER in one.get("ratios", ())}
    names, ratios = [*pairs][::-1], [*pairs.values()][::-1]
    figure, axes = pyplot.subplots(figsize=(7, 1 + 0.25 * len(names)))
    middle = [one["median"] for one in ratios]
    reach = [
        [one["median"] - one["min"] for one in ratios],
        [one["max"] - one["median"] for one in ratios],
    ]
    axes.barh(names, middle, xerr=reach, color="#4878a8", ecolor="#303030")
    axes.axvline(1, color="#303030", linewidth=0.8)
    axes.set_xlabel(f"{OURS} ÷ {PEER}, tokens per CPU second (above 1 Openbook is faster)")
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
