"""Run every command of the page of recipes, in order, on small data."""

import contextlib
import importlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest

from launch.cli import COMMANDS
from lm.training import loop
from tests.retrieval.models import save_encoder, save_reader

ROOT = Path(__file__).parent.parent
SECTIONS = dict(
    section.split("\n", 1) for section in (ROOT / "docs/recipes.md").read_text().split("\n## ")[1:]
)
SLOW = {title for title in SECTIONS if title != "Label texts"}
STEPS = [
    "--config.steps=4",
    "--config.log.tensorboard=False",
    "--config.checkpoint.every=4",
    "--config.samples.prompts=()",
]


def commands(section):
    return [
        shlex.split(line)[1:]
        for line in re.findall(r"^    (openbook .*)", SECTIONS[section], re.MULTILINE)
    ]


def files(folder):
    """Write the files that a user brings, as my/..."""
    (mine := folder / "my").mkdir()
    for name in ("labelled", "heldout"):
        (mine / f"{name}.jsonl").write_text((ROOT / "configs/examples/topics.jsonl").read_text())
    (mine / "new.txt").write_text("The goat eats grass.\n\nBoil the rice.\n")
    for name in ("chat", "heldout-chat"):
        (mine / f"{name}.jsonl").write_text((ROOT / "configs/examples/chat.jsonl").read_text())
    (mine / "texts").mkdir()
    for number in range(20):  # of which one is of the share that is held out
        (mine / "texts" / f"{number}.txt").write_text(f"Lease {number} ends in May. " * 20)
    (mine / "other.txt").write_text("The lease began in June. " * 20)
    (mine / "notes").mkdir()
    (mine / "notes" / "a.md").write_text("# Flat\n\nThe lease ends in May.\n")


def run(argv, folder, monkeypatch):
    """(exit code, output) of a command of the page, at a size for a test."""
    monkeypatch.chdir(folder)
    argv = [re.sub(r"configs/(\w+)\.py(?=$|:)", rf"{ROOT}/configs/\1.py", a) for a in argv]
    argv = [f"{a}:tiny" if re.search(r"/configs/\w+\.py$", a) else a for a in argv]
    argv = [
        re.sub(
            r"~/\.cache/openbook/samples/(minilm|smollm2\S*)",
            lambda m: "reader" if "smol" in m[1] else "encoder",
            a,
        )
        for a in argv
    ]
    given = [a for a in argv[1:] if a.startswith("--config=")]
    more = (
        STEPS
        if argv[0] == "train"
        else ["--max-new-tokens=4"]
        if argv[0] in ("generate", "ask")
        else []
    )
    if given and given[0].endswith("lora.py:tiny"):
        more = [*more, "--config.init_from=base"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = importlib.import_module(COMMANDS[argv[0]][0]).main([*argv[1:], *more])
    return code, out.getvalue()


@pytest.mark.parametrize(
    "section", [pytest.param(s, marks=[pytest.mark.slow] if s in SLOW else []) for s in SECTIONS]
)
def test_a_command_of_the_page_does_not_run(section, tmp_path, monkeypatch):
    asked = commands(section)
    assert len(asked) == 5
    files(tmp_path)
    if "memory" in section:
        save_encoder(tmp_path / "encoder")
        save_reader(tmp_path / "reader")
    if "LoRA" in section:
        monkeypatch.chdir(ROOT)
        from configs import lora

        config = lora.get_config("base")
        config.update_from_flattened_dict(
            {"steps": 2, "data.cache": str(tmp_path / "cache"), "log.tensorboard": False}
        )
        assert loop.train(config, tmp_path / "trained") == 0
        model = [f"--model={tmp_path / 'trained'}", f"--output={tmp_path / 'base'}"]
        assert importlib.import_module("lm.export").main(model) == 0
    for argv in asked:
        code, said = run(argv, tmp_path, monkeypatch)
        assert code == 0, (argv, said)
        held_out = "--config.data.holdout_share" in " ".join(argv)
        assert not held_out or argv[0] != "train" or "holdout loss" in said
    if section == "Label texts":
        rows = [
            json.loads(line)
            for line in (tmp_path / "runs/labels/new.jsonl").read_text().splitlines()
        ]
        assert [row["text"] for row in rows] == ["The goat eats grass.", "Boil the rice."]
        assert all(
            row["label"] in ("animal", "food", "weather") and 1 / 3 < row["probability"] <= 1
            for row in rows
        )
        page = (tmp_path / "runs/labels.html").read_text()
        assert (
            "optimizer.learning_rate" in page
            and "<svg" in page
            and "learning_rate" in said
            and "loss" in said
        )
