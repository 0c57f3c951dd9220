"""Every recipe's small form needs only the checkout: its data is read, drawn and checked."""

import json
import re
from pathlib import Path

import pytest

from lm import preview

ROOT = Path(__file__).parents[3]
# need earlier output: a stage of a study, a base model, a teacher, a policy to start from
LATER = {"quickstart_pretrain", "lora", "distill", "grpo", "ppo"}
RECIPES = sorted(
    {
        path.stem
        for path in (ROOT / "configs").glob("*.py")
        if re.search(r"\btiny=", path.read_text())
    }
    - LATER
)


def test_the_recipes_are_found():
    assert {
        "classify",
        "alpaca_llama",
        "continual_domain",
        "pretrain_gpt2",
        "superni_t5_small",
    } <= set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_at_tiny_reads_what_it_trains_on_and_nothing_is_wrong_with_it(
    recipe, monkeypatch, capsys
):
    monkeypatch.chdir(ROOT)
    preview.main([f"--config=configs/{recipe}.py:tiny", "--rows=1", "--json"])
    printed = capsys.readouterr()
    assert printed.out, printed.err
    shown = json.loads(printed.out)
    assert shown["rows"]
    wrong = [check for check in shown["checks"] if check["ok"] is False]
    # Small data sets of one kind share phrases.
    assert all("overlap" in check["name"] for check in wrong), wrong
