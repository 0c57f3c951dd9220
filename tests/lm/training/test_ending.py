"""Final messages of a run: figures as in metrics.jsonl, and commands that entry points accept."""

import pathlib
import shlex
import types
from typing import Any

import pytest

from configs.defaults import defaults
from lm import tasks
from lm.evaluation.command_line import arguments as evaluate_arguments
from lm.generation_flags import arguments as generate_arguments
from lm.training import ending

ROWS = [
    {"step": 1, "loss": 5.0, "weight": 64.0},
    {
        "step": 2,
        "eval/held/loss": 4.0,
        "eval/held/bits_per_byte": 2.0,
        "eval/held/bits_per_byte_stderr": 0.1,
    },
    {"step": 3, "loss": 2.34567},
    {"step": 3, "eval/held/loss": 3.0, "eval/held/bits_per_byte": None},
]


def said(task, head="causal_lm", rank=0, tokenizer="some", neighbour_layers=()):
    c = defaults()
    c.steps, c.task, c.adaptation.lora.rank, c.samples.prompts = 3, tasks.defaults(task), rank, ()
    model: Any = types.SimpleNamespace(head=head, neighbour_layers=neighbour_layers)
    return ending.lines(c, model, pathlib.Path("runs/my run"), tokenizer, ROWS)


def test_the_figures_are_not_the_last_ones():
    assert ending.figures(ROWS) == "training loss 2.346, held loss 3"
    assert ending.figures([]) == ""


@pytest.mark.parametrize(
    ("given", "modules"),
    [
        ({"task": "next_token"}, ["lm.generate", "lm.evaluate --data", "lm.export"]),
        (
            {"task": "next_token", "rank": 4},
            ["lm.generate", "lm.evaluate --data", "lm.export", "lm.export --adapter"],
        ),
        (
            {"task": "instruct", "head": "seq2seq_lm"},
            ["lm.generate", "lm.evaluate --examples", "lm.export"],
        ),
        ({"task": "masked", "head": "masked_lm"}, ["lm.evaluate --data", "lm.export"]),
        ({"task": "span_corruption", "head": "seq2seq_lm"}, ["lm.generate", "lm.export"]),
        (
            {"task": "classification", "head": "sequence_classification"},
            ["lm.evaluate --task", "lm.export"],
        ),
        ({"task": "contrastive", "head": "embedding"}, ["lm.export"]),
        (
            {"task": "next_token", "neighbour_layers": (1,)},
            ["lm.evaluate --data", "lm.export"],
        ),
        ({"task": "next_token", "tokenizer": None}, []),
    ],
)
def test_a_next_command_does_not_suit_the_run(given, modules):
    lines = said(**given)
    assert (
        lines[0] == "done: runs/my run"
        and lines[2] == "  there: checkpoints/3, metrics.jsonl, plots/loss.png"
    )
    argvs = [shlex.split(line) for line in lines[lines.index("next:") + 1 :]] if modules else []
    assert len(argvs) == len(modules) and ("next:" in lines) == bool(modules)
    for argv, wanted in zip(argvs, modules, strict=True):
        assert argv[:2] == ["python", "-m"] and argv[3] == "--model=runs/my run"
        module, *flag = wanted.split()
        assert argv[2] == module and all(any(word.startswith(one) for word in argv) for one in flag)
        if module == "lm.generate":
            generate_arguments("", argv[3:])
        if module == "lm.evaluate":
            evaluate_arguments("", argv[3:])
