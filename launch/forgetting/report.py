"""The table and the picture of configs/studies/forgetting.py: python -m launch.forgetting.report --workdir=DIR

A row a run: ROUGE-L and exact match on tasks held out, stop rate, and the perplexity of held-out text. Writes DIR/report.md and
DIR/forgetting.svg: what was learned against what was forgotten.
"""

import argparse
import json
import sys
from pathlib import Path

NAMES = {
    "base": "before", "none": "plain", "replay": "replay, a tenth", "kl": "KL to the base", "l2_sp": "L2-SP", "ewc": "EWC", "lora": "LoRA",
    "wise_ft": "WiSE-FT, α = 0.5",
}  # fmt: skip
HEAD = "| {} | ROUGE-L, held-out tasks | exact match | stops by itself | perplexity, held-out text | change |\n|---|---|---|---|---|---|"


def read(folder: Path) -> dict[str, dict[str, dict]]:
    """run -> {"tasks", "text"}: what lm.evaluate wrote. Raises OSError when a file is missing, ValueError when one is no JSON."""
    return {run: {what: json.loads((folder / f"{run}-{what}.json").read_text()) for what in ("tasks", "text")} for run in NAMES}


def table(model: str, runs: dict[str, dict[str, dict]]) -> str:
    """One model's runs in Markdown, and what copying scores."""
    lines, before = [HEAD.format(model)], runs["base"]["text"]["perplexity"]
    for run, found in runs.items():
        of, text = found["tasks"]["all"], found["text"]
        change = "" if run == "base" else f"{text['perplexity'] / before - 1:+.1%}"
        lines.append(f"| {NAMES[run]} | {scored(of)} | {percent(of['scores']['exact_match'])} | {percent(of['scores']['stop_rate'])} "
                     f"| {text['perplexity']:.2f} | {change} |")  # fmt: skip
    for name, of in runs["base"]["tasks"]["baselines"].items():
        lines.append(f"| {name} | {scored(of)} | {percent(of['scores']['exact_match'])} | | | |")
    return "\n".join(lines)


def scored(of: dict) -> str:
    low, high = of["intervals"]["rouge_l"]
    return f"{of['scores']['rouge_l']:.1f} ({low:.1f} to {high:.1f})"


def percent(share: float) -> str:
    return f"{share:.0f} %"


def picture(models: dict[str, dict[str, dict[str, dict]]], file: Path) -> None:
    """A panel a model: the change of perplexity to the right, ROUGE-L upwards; best is high and on the left."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(models), figsize=(5 * len(models), 4), squeeze=False)
    for panel, (model, runs) in zip(panels[0], models.items(), strict=True):
        before = runs["base"]["text"]["perplexity"]
        for run, found in runs.items():
            x, y = 100 * (found["text"]["perplexity"] / before - 1), found["tasks"]["all"]["scores"]["rouge_l"]
            panel.plot(x, y, "o", color="#888" if run == "base" else "#1d5fbf")
            panel.annotate(NAMES[run], (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
        panel.set(title=model, xlabel="forgotten: perplexity of held-out text, % above the base", ylabel="learned: ROUGE-L, held-out tasks")
        panel.grid(alpha=0.3)
        panel.margins(0.18)
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.forgetting.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workdir", required=True, type=Path, metavar="DIR", help="of the study")
    parser.add_argument("--models", nargs="+", required=True, metavar="FOLDER=NAME", help="folders of DIR, and what to call their models")
    args = parser.parse_args(argv)
    try:
        models = {name: read(args.workdir / folder) for folder, _, name in (given.partition("=") for given in args.models)}
        answers = {name: runs["base"]["tasks"]["answers"] for name, runs in models.items()}
        text = "\n\n".join(table(name, runs) for name, runs in models.items())
        said = ", ".join(f"{count} of {name}" for name, count in answers.items())
        (args.workdir / "report.md").write_text(
            f"{text}\n\nAnswers scored: {said}. Intervals: 95 %, whole tasks drawn again.\n", encoding="utf-8"
        )
        picture(models, args.workdir / "forgetting.svg")
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(f"{args.workdir / 'report.md'}\n{args.workdir / 'forgetting.svg'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
