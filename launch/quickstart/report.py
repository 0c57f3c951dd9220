"""Write report.html, report.md and the charts of a finished quickstart.

python -m launch.quickstart.report --workdir=runs/quickstart
"""

import argparse
import sys
from pathlib import Path

from launch.errors import LaunchError, one_line
from launch.quickstart import charts, findings, page
from launch.quickstart.passages import write


def draw(found: findings.Findings) -> dict[str, str]:
    """Chart file name -> SVG."""
    shares = "; ".join(
        f"{b} people: {c[0]:.0%} closed, {o[0]:.0%} open"
        for b, c, o in zip(found.bins, found.closed, found.open, strict=True)
    )
    return {
        "popularity.svg": charts.shares(
            "Which country is the city in? Share answered right",
            f"Accuracy by the city's population, with 95 % intervals. {shares}.",
            found.bins,
            "population of the city",
            [("closed-book", found.closed), ("open-book", found.open)],
        ),
        "training.svg": charts.curve(
            "Training loss of the decoder trained from scratch",
            f"Loss in nats a token by step, from {found.curve[0][1]:.2f} to "
            f"{found.curve[-1][1]:.2f}.",
            found.curve,
            "step",
            "nats",
        ),
    }


@one_line
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.quickstart.report",
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, type=Path, help="the study's directory")
    args = parser.parse_args(argv)
    found = findings.read(args.workdir)
    if not found.answers or not found.curve:
        raise LaunchError(
            f"{args.workdir} has no {'answers' if not found.answers else 'training curve'}; run "
            "the study again"
        )
    pictures = draw(found)
    for name, picture in pictures.items():
        write(args.workdir / name, picture)
    write(args.workdir / "report.md", page.markdown(found))
    write(args.workdir / "report.html", page.html(found, pictures))
    print(
        f"closed-book {page.percent(found.closed_all)}, open-book {page.percent(found.open_all)} "
        f"of {len(found.answers)} questions"
    )
    print(f"{args.workdir}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
