"""Report of a Self-Instruct run: counts, drop reasons and plots, as one page and as JSON."""

import collections
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.synthesis import files, pipeline
from lm.synthesis.prompts import Task

PAGE, FIGURES = "report.html", "report.json"
VERBS, NOUNS = 20, 4  # of the sunburst: verbs, and nouns of each
_STARTS = """
what which who whom whose why when where how is are was were do does did can could will would should
may might must has have had if in on at for to from with the a an this that these those here there i
you we they it he she my your our given as of by and or but not no
"""
_BETWEEN = """
following some any all each every one two three four five several many more most few other another
me us him her them its their his out up down about into over than whether whatever
"""
QUESTIONS = set(_STARTS.split())  # words that begin no imperative
BETWEEN = QUESTIONS | set(_BETWEEN.split())  # words between a verb and its noun

_HTML = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Self-Instruct</title><style>
body{{font:15px/1.6 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;\
color:#222;background:#fff}}
td,th{{padding:.1em .8em .1em 0;text-align:left;vertical-align:top}}
svg{{max-width:100%;height:auto;background:#fff}}
</style><h1>Self-Instruct</h1>{body}</html>
"""


def verb_and_noun(instruction: str) -> tuple[str, str] | None:
    """First verb of an imperative, and the noun after it; None for a question or a statement.

    A heuristic in the place of the paper's parser: the first word is the verb, and the noun is the
    next word that is no article, pronoun, number or preposition.
    """
    words = ["".join(c for c in word.lower() if c.isalpha()) for word in instruction.split()]
    words = [word for word in words if word]
    if not words or words[0] in QUESTIONS or instruction.rstrip().endswith("?"):
        return None
    after = [word for word in words[1:] if word not in BETWEEN]
    return (words[0], after[0]) if after else None


def figures(folder: Path, tasks: Sequence[Task], bad_seeds: int) -> dict[str, Any]:
    """Counts of a run as JSON values."""
    first = files.read(folder / pipeline.INSTRUCTIONS)
    third = files.read(folder / pipeline.INSTANCES)
    dropped: dict[str, collections.Counter[str]] = {}
    for name, rows in (("instructions", first), ("instances", third)):
        dropped[name] = collections.Counter()
        for row in rows:
            dropped[name].update(row["dropped"])
    instances = [one for task in tasks for one in task["instances"]]
    words = lambda texts: float(np.mean([len(text.split()) for text in texts])) if texts else 0.0
    return {
        "seeds_left_out": bad_seeds,
        "requests": len(first),
        "instructions_read": sum(row["read"] for row in first),
        "instructions_kept": sum(len(row["kept"]) for row in first),
        "tasks": len(tasks),
        "classification": sum(bool(task.get("is_classification")) for task in tasks),
        "instances": len(instances),
        "empty_inputs": sum(not one["input"] for one in instances),
        "words": {
            "instruction": words([task["instruction"] for task in tasks]),
            "input": words([one["input"] for one in instances if one["input"]]),
            "output": words([one["output"] for one in instances]),
        },
        "dropped": {name: dict(found.most_common()) for name, found in dropped.items()},
        "novelty": [
            [
                sum(row["read"] for row in first[:end]),
                sum(len(row["kept"]) for row in first[:end]),
            ]
            for end in range(1, len(first) + 1)
        ],
    }


def write(folder: Path, tasks: Sequence[Task], bad_seeds: int) -> Path:
    """Write report.json and report.html, and return the page's path."""
    found = figures(folder, tasks, bad_seeds)
    (folder / FIGURES).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    rows = [(name.replace("_", " "), f"{n:,}") for name, n in found.items() if isinstance(n, int)]
    rows += [(f"mean words of an {name}", f"{n:.1f}") for name, n in found["words"].items()]
    body = _table("Counts", rows)
    for name, reasons in found["dropped"].items():
        body += _table(f"Dropped {name}", [(why, f"{n:,}") for why, n in reasons.items()])
    body += _plots(found, tasks) if tasks else ""
    shown = [
        (one["instruction"], one["instances"][0]["input"], one["instances"][0]["output"])
        for one in tasks[:20]
    ]
    body += _table("The first tasks: instruction, input, output", shown)
    (folder / PAGE).write_text(_HTML.format(body=body), encoding="utf-8")
    return folder / PAGE


def _table(title: str, rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<h2>{html.escape(title)}</h2><table>{cells}</table>" if rows else ""


def _plots(found: dict[str, Any], tasks: Sequence[Task]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 10), layout="constrained")
    axes = figure.subplots(2, 2)
    _sunburst(axes[0, 0], [task["instruction"] for task in tasks])
    read, kept = zip(*found["novelty"], strict=True)
    axes[0, 1].plot(read, kept)
    axes[0, 1].set(title="Novelty", xlabel="instructions read", ylabel="kept")
    lengths = [len(task["instruction"].split()) for task in tasks]
    axes[1, 0].hist(lengths, bins=min(30, max(lengths)))
    axes[1, 0].set(title="Length of instructions", xlabel="words", ylabel="tasks")
    outputs = [len(one["output"].split()) for task in tasks for one in task["instances"]]
    axes[1, 1].hist(outputs, bins=30)
    axes[1, 1].set(title="Length of outputs", xlabel="words", ylabel="instances")
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _sunburst(axes, instructions: Sequence[str]) -> None:
    """Most frequent verbs (inner ring) and their nouns (outer ring), as the paper's figure 3."""
    from matplotlib import colormaps

    pairs = collections.Counter(filter(None, map(verb_and_noun, instructions)))
    verbs: collections.Counter[str] = collections.Counter()
    for (verb, _), count in pairs.items():
        verbs[verb] += count
    inner, outer = [], []
    for number, (verb, count) in enumerate(verbs.most_common(VERBS)):
        colour = colormaps["tab20"](number % 20)
        nouns = [(noun, n) for (v, noun), n in pairs.most_common() if v == verb]
        inner.append((verb, count, colour))
        outer += [(noun, n, colour) for noun, n in nouns[:NOUNS]]
        rest = count - sum(n for _, n in nouns[:NOUNS])
        outer += [("", rest, (1, 1, 1, 0))] if rest else []
    axes.set_title(f"Verbs and their nouns ({verbs.total()} of {len(instructions)} instructions)")
    if not inner:
        axes.axis("off")
        return
    for ring, radius, size in ((outer, 1.0, 5), (inner, 0.65, 6)):
        labels, counts, colours = zip(*ring, strict=True)
        axes.pie(
            counts,
            radius=radius,
            labels=[label.replace("$", r"\$") for label in labels],
            colors=colours,
            labeldistance=0.8,
            rotatelabels=True,
            startangle=90,
            textprops={"fontsize": size, "ha": "center", "va": "center"},
            wedgeprops={"linewidth": 0.3, "edgecolor": "white"},
        )
