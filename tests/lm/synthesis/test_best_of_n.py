"""Best of n: what is kept of answers with rewards, going on after a kill, and bad input."""

import json
import re

import jax
import pytest

from lm import best_of_n, rewards
from lm.data.records import preference, reading
from lm.distributed import mesh as meshes
from lm.synthesis import best_of_n as made
from lm.synthesis import files
from lm.training import loop
from tests.lm.tasks import policies

CONFIG = """import pathlib
from tests.lm.tasks import policies

def get_config():
    fields = {{"group": 4, "new_tokens": 4}}
    return policies.config(pathlib.Path({folder!r}), fields=fields, **{changes!r})
"""


def written(folder, **changes):
    """Path of a config of a policy."""
    path = folder / f"{len(changes)}.py"
    path.write_text(CONFIG.format(folder=str(folder), changes=changes))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(folder, config) of a run that answers."""
    folder = tmp_path_factory.mktemp("best")
    assert loop.train(policies.config(folder, steps=1), folder / "base") == 0
    return folder, written(folder, **{"init_from": str(folder / "base"), "batch_size": 5})


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_kill_changes_the_answers_or_the_data_cannot_be_learned(base, tmp_path, monkeypatch):
    config, workdir = base[1], tmp_path / "whole"
    argv = [f"--config={config}", f"--workdir={workdir}", "--keep=all"]
    ended = monkeypatch.setattr(made, "answer_of", always_ended(made.answer_of))
    assert best_of_n.main(argv) == 0 and ended is None
    rows, chosen, pairs = (lines(workdir / n) for n in (made.ANSWERS, made.CHOSEN, made.PAIRS))
    assert len(rows) == 12 and all(len(row["answers"]) == 4 for row in rows)
    for row in rows:
        for one in row["answers"]:
            text = one["text"]
            share = sum(c in "aeiou" for c in text) / max(len(text), 1)
            assert one["reward"] == pytest.approx(share)
    records = reading.read(str(workdir / made.CHOSEN), reading.Reading()).records
    assert [record.output for record in records] == [row["completion"] for row in chosen]
    assert [row["prompt"] for row in rows] == [f"Say {n * 7 % 11}" for n in range(12)]
    for row in pairs:
        assert preference.pair(row, "x").chosen == row["chosen"].strip("")
        assert row["score_chosen"] > row["score_rejected"]

    score, calls = rewards.score, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(*args)

    argv[1] = f"--workdir={tmp_path / 'killed'}"
    with monkeypatch.context() as patch:
        patch.setattr(rewards, "score", killed)
        best_of_n.main(argv)
    assert len(lines(tmp_path / "killed" / made.ANSWERS)) == 5
    assert best_of_n.main(argv) == 0
    for name in (made.ANSWERS, made.CHOSEN, made.PAIRS):
        assert (tmp_path / "killed" / name).read_text() == (workdir / name).read_text()


def test_several_devices_draw_other_answers_than_one(base, tmp_path, monkeypatch):
    folder, _ = base
    shapes = {}
    placed = made.sharding.placed

    def seen(mesh, model, params, rules):
        params = placed(mesh, model, params, rules)
        shapes[mesh.size] = {len(x.sharding.device_set) for x in jax.tree.leaves(params)}
        assert any(not x.is_fully_replicated for x in jax.tree.leaves(params)) == (mesh.size > 1)
        return params

    monkeypatch.setattr(made.sharding, "placed", seen)
    monkeypatch.setattr(made, "answer_of", always_ended(made.answer_of))
    changes = {"init_from": str(folder / "base"), "batch_size": 8}
    changes |= {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
    argv = [f"--config={written(tmp_path, **changes)}", f"--workdir={tmp_path / 'several'}"]
    assert best_of_n.main(argv) == 0
    one = lambda **_: meshes.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(made, "make_mesh", one)
    argv[1] = f"--workdir={tmp_path / 'one'}"
    assert best_of_n.main(argv) == 0
    assert shapes == {8: {8}, 1: {1}}
    for name in (made.ANSWERS, made.CHOSEN, made.PAIRS):
        assert lines(tmp_path / "several" / name) == lines(tmp_path / "one" / name)


def always_ended(function):
    """Answers of an untrained model seldom end."""
    import dataclasses

    return lambda *args: dataclasses.replace(function(*args), ended=True)


def row(*answers):
    return {
        "prompt": "p",
        "answers": [{"text": t, "reward": r, "ended": end} for t, r, end in answers],
    }


def test_an_answer_is_kept_against_the_rules(tmp_path):
    rows = [
        row(("a", 0.5, True), ("b", 1.0, True), ("c", 2.0, False), (" ", 3.0, True)),
        row(("a", 0.2, True), ("a ", 0.2, True), ("b", None, True)),
        row(("x", 0.9, True), ("y", 0.9, True)),
    ]
    best = made._selected(rows, tmp_path, "best", 0.5)
    assert [one["completion"] for one in best.chosen] == ["b", "x"]
    assert [(one["chosen"], one["rejected"]) for one in best.pairs] == [("b", "a")]
    assert best.report["best_reward"] == pytest.approx((1.0 + 0.2 + 0.9) / 3)
    every = made._selected(rows, tmp_path, "all", 0.0)
    assert [one["completion"] for one in every.chosen] == ["b", "a", "a", "x", "y"]
    assert files.read(tmp_path / made.CHOSEN) == every.chosen


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--keep=worst"], "--keep='worst': expected one of best, all"),
        (["--least=nan"], "--least=nan: expected a number"),
        (["--config.task.group=1"], "task.group=1"),
        (["--config.init_from="], "init_from is not set: give the model that answers"),
        (["--config.data.files=no.jsonl"], "no.jsonl"),
        (["--config.mesh.tensor=3"], "tensor 3"),
    ],
)
def test_bad_input_is_accepted(base, tmp_path, capsys, more, said):
    argv = [f"--config={base[1]}", f"--workdir={tmp_path / 'run'}", *more]
    assert best_of_n.main(argv) == 2
    assert said in capsys.readouterr().err


def test_another_task_or_changed_settings_are_accepted(base, tmp_path, capsys):
    argv = ["--config=configs/smoke.py:next_token,llama", f"--workdir={tmp_path / 'run'}"]
    assert best_of_n.main(argv) == 2
    assert "task.name='next_token' has no rewards" in capsys.readouterr().err
    assert best_of_n.main([f"--config={base[1]}", f"--workdir={base[0] / 'base'}"]) == 2
    assert "base holds a run" in capsys.readouterr().err
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / files.SETTINGS).write_text('{"seed": 9}')
    assert best_of_n.main([f"--config={base[1]}", f"--workdir={tmp_path / 'old'}"]) == 2
    assert "begun with other settings" in capsys.readouterr().err


def test_a_constant_reward_is_accepted(base, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(policies, "vowels", lambda answer: 1.0)
    argv = [f"--config={base[1]}", f"--workdir={tmp_path}", "--config.task.max_constant=2"]
    assert best_of_n.main(argv) == 2
    words = r"test_best_of_n\.py\): all 20 answers of 2 rollouts in a row had the reward 1, "
    assert re.search(words, capsys.readouterr().err)


def test_nothing_that_is_kept_is_no_error(tmp_path):
    with pytest.raises(made.ConfigError, match=r"none of the answers to 1 prompts .* least 2 and"):
        made._selected([row(("a", 1.0, True))], tmp_path, "best", 2.0)
