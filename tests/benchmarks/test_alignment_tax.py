"""The benchmark of what alignment costs."""

import json

import numpy as np
import pytest

from lm import tasks
from lm.rewards import Answer
from lm.tasks import preference
from tests.benchmarks import alignment_tax

PROMPT = "Which?\n\n Choices:\n\n- a red cat\n\n- a dog\n\n- a cow\n\nA:\n"


def test_a_wrong_choice_is_the_answer_or_a_heldout_question_is_trained(tmp_path):
    for name in alignment_tax.FILES:
        rows = [
            {"prompt": f"{name} {at}? {PROMPT}", "completion": "a dog<|endoftext|>"}
            for at in range(9)
        ]
        rows.append({"prompt": PROMPT, "completion": "a horse"})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = alignment_tax.write(tmp_path / "made", tmp_path)
    train, held_out = ([row["prompt"] for row in found[name]] for name in ("train", "heldout"))
    assert (len(train), len(held_out)) == (14, 4)
    assert not {*train} & {*held_out}
    assert {row["rejected"] for row in found["train"]} == {"a red cat", "a cow"}
    assert {row["chosen"] for row in found["train"]} == {"a dog"}
    lines = (tmp_path / "made/train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == found["train"]


@pytest.mark.parametrize(
    ("text", "reward"),
    [("It is a dog.", 1.0), ("dog", 1.0), ("a dog or a cow", 0.0), ("a cow", 0.0), ("", 0.0)],
)
def test_a_named_choice_is_rewarded_wrongly(text, reward):
    row = {"prompt": PROMPT, "completion": "a dog"}
    assert alignment_tax.named(Answer(PROMPT, text, alignment_tax.question(row))) == reward


def test_a_change_is_not_that_of_the_same_windows_and_pairs():
    before = {"losses": [20.0, 60.0], "sizes": [10, 20], "hits": [1.0, 0.0, 0.0, 1.0]}
    before |= {"paradigms": ["a", "a", "b", "b"]}
    after = before | {"losses": [21.0, 62.0], "hits": [1.0, 1.0, 1.0, 1.0]}
    assert alignment_tax.perplexity(before) == pytest.approx(np.exp(80 / 30))
    # Both windows cost 0.1 nats a token more: the interval of a paired change has no width.
    assert alignment_tax.dearer(after, before) == pytest.approx([np.expm1(0.1)] * 3)
    assert alignment_tax.better(after, before) == pytest.approx([0.5] * 3)


@pytest.mark.parametrize("method", alignment_tax.METHODS)
def test_a_method_trains_other_prompts_an_update_or_its_config_is_refused(method, tmp_path):
    c = alignment_tax.config(tmp_path, method, "model", "chatml", 20, 0)
    task = tasks.of(c)
    task.check(c)
    # answers to a prompt in a row; kto learns from one of them
    rows = 2 if isinstance(task, preference.Pairs) else 1
    answers = 2 if task.name == "kto" else 1
    assert (c.batch_size, c.length // rows) == (alignment_tax.BATCH * answers, 88)
    assert getattr(task, "group", alignment_tax.GROUP) == alignment_tax.GROUP
