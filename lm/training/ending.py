"""Final lines of a completed run: last metrics, files, and commands to continue with."""

import shlex

from lm import tasks
from lm.models.config import ModelConfig
from lm.training import settings
from lm.weights.runs.paths import Folder

# Ends of names that are beside a value, and not one.
BESIDE = ("_stderr", "_low", "_high", "_n", "/seconds", "/bytes")


def figures(rows: list[dict]) -> str:
    """Last training loss and last value of every evaluation, from rows of metrics.jsonl; or ""."""
    last: dict = {}
    for row in rows:
        last |= {
            name: value for name, value in row.items() if name == "loss" or name.startswith("eval/")
        }
    shown = {
        name: value
        for name, value in last.items()
        if value is not None and not name.endswith(BESIDE)
    }
    return ", ".join(
        f"{' '.join(name.split('/')[1:] or ['training loss']).replace('_', ' ')} {value:.4g}"
        for name, value in shown.items()
    )


def commands(config: settings.Config, model: ModelConfig, workdir: Folder, tokenizer) -> list[str]:
    """Commands that use the run. The user replaces "..."."""
    task, run = tasks.of(config), f"--model={shlex.quote(str(workdir))}"
    found = []
    if tokenizer is not None:
        if model.head in ("causal_lm", "seq2seq_lm") and not model.neighbour_layers:
            found.append(f'python -m lm.generate {run} --prompt="..."')
        if task.evaluation:
            found.append(f"python -m lm.evaluate {run} {task.evaluation}")
        adapter = [" --adapter"] if config.adaptation.lora.rank else []
        found += [f"python -m lm.export {run} --output=DIR{more}" for more in ("", *adapter)]
    return found


def lines(
    config: settings.Config, model: ModelConfig, workdir: Folder, tokenizer, rows: list[dict]
) -> list[str]:
    """All final lines."""
    said, next_ones = figures(rows), commands(config, model, workdir, tokenizer)
    files = f"metrics.jsonl, plots/loss.png{', samples.md' if config.samples.prompts else ''}"
    found = [
        f"done: {workdir}",
        f"  {said}",
        f"  there: checkpoints/{config.steps}, {files}",
        "next:",
        *(f"  {one}" for one in next_ones),
    ]
    return [line for line in found if line.strip()][: None if next_ones else -1]
