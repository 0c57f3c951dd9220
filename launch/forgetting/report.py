"""Write the report of configs/studies/forgetting.py: a table and a chart.

python -m launch.forgetting.report --workdir=DIR --models FOLDER=NAME ...

One row per run: ROUGE-L and exact match on held-out tasks, stop rate, and perplexity of held-out
text. Writes DIR/report.md and DIR/forgetting.svg.
"""

import argparse
import json
import sys
from pathlib import Path

from launch.errors import one_line

NAMES = {
    "base": "before",
    "none": "plain",
    "replay": "replay, a tenth",
    "kl": "KL to the base",
    "l2_sp": "L2-SP",
    "ewc": "EWC",
    "lora": "LoRA",
    "wise_ft": "WiSE-FT, α = 0.5",
}
HEAD = (
    "| {} | ROUGE-L, held-out tasks | exact match | stops by itself | perplexity, held-out text "
    "| change |\n|---|---|---|---|---|---|"
)


def read(folder: Path) -> dict[str, dict[str, dict]]:
    """run -> {"tasks", "text"}: results of lm.evaluate. Raises OSError or ValueError (bad JSON)."""
    return {
        run: {
            what: json.loads((folder / f"{run}-{what}.json").read_text())
            for what in ("tasks", "text")
        }
        for run in NAMES
    }


def table(model: str, runs: dict[str, dict[str, dict]]) -> str:
    """Markdown table of one model's runs and of the copying baselines."""
    lines, before = [HEAD.format(model)], runs["base"]["text"]["perplexity"]
    for run, found in runs.items():
        of, text = found["tasks"]["all"], found["text"]
        change = "" if run == "base" else f"{text['perplexity'] / before - 1:+.1%}"
        lines.append(
            f"| {NAMES[run]} | {scored(of)} | {percent(of['scores']['exact_match'])} | "
            f"{percent(of['scores']['stop_rate'])} "
            f"| {text['perplexity']:.2f} | {change} |"
        )
    for name, of in runs["base"]["tasks"]["baselines"].items():
        lines.append(f"| {name} | {scored(of)} | {percent(of['scores']['exact_match'])} | | | |")
    return "\n".join(lines)


def scored(of: dict) -> str:
    low, high = of["intervals"]["rouge_l"]
    return f"{of['scores']['rouge_l']:.1f} ({low:.1f} to {high:.1f})"


def percent(share: float) -> str:
    return f"{share:.0f} %"


def picture(models: dict[str, dict[str, dict[str, dict]]], file: Path) -> None:
    """Plot two panels per model with a bar per run: ROUGE-L with interval, change of perplexity."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(
        len(models), 2, figsize=(9, 3 * len(models)), squeeze=False, sharey="row"
    )
    for (learned, forgotten), (model, runs) in zip(rows, models.items(), strict=True):
        names, before = [NAMES[run] for run in runs], runs["base"]["text"]["perplexity"]
        colours = ["#1d5fbf" if run != "base" else "#888" for run in runs]
        scores = [found["tasks"]["all"]["scores"]["rouge_l"] for found in runs.values()]
        low, high = zip(
            *(found["tasks"]["all"]["intervals"]["rouge_l"] for found in runs.values()), strict=True
        )
        below, above = (
            [s - x for s, x in zip(scores, low, strict=True)],
            [x - s for s, x in zip(scores, high, strict=True)],
        )
        learned.barh(
            names,
            scores,
            color=colours,
            xerr=(below, above),
            error_kw={"ecolor": "#555", "capsize": 2},
        )
        forgotten.barh(
            names,
            [100 * (found["text"]["perplexity"] / before - 1) for found in runs.values()],
            color=colours,
        )
        forgotten.axvline(0, color="#555", linewidth=0.8)
        learned.set(title=model, xlabel="learned: ROUGE-L of tasks held out")
        forgotten.set(xlabel="forgotten: perplexity of text held out, % above before")
        learned.invert_yaxis()
        for panel in (learned, forgotten):
            panel.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)


@one_line
def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.forgetting.report", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--workdir", required=True, type=Path, metavar="DIR", help="of the study")
    parser.add_argument(
        "--models",
        nargs="+",
        required=True,
        metavar="FOLDER=NAME",
        help="folders of DIR, and what to call their models",
    )
    args = parser.parse_args(argv)
    try:
        models = {
            name: read(args.workdir / folder)
            for folder, _, name in (given.partition("=") for given in args.models)
        }
        answers = {name: runs["base"]["tasks"]["answers"] for name, runs in models.items()}
        text = "\n\n".join(table(name, runs) for name, runs in models.items())
        said = ", ".join(f"{count} of {name}" for name, count in answers.items())
        (args.workdir / "report.md").write_text(
            f"{text}\n\nAnswers scored: {said}. Intervals: 95 %, whole tasks drawn again.\n",
            encoding="utf-8",
        )
        picture(models, args.workdir / "forgetting.svg")
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(f"{args.workdir / 'report.md'}\n{args.workdir / 'forgetting.svg'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
