"""Runs of policies: rollouts, their log-probabilities, resuming, and wrong values."""

import json

import jax
import numpy as np
import pytest
from jax import monitoring

from lm import preview, rewards
from lm.data.read.sources import DataError
from lm.models.config import ConfigError
from lm.tasks import rollouts
from lm.training import loop, settings, setup, trackers
from lm.weights.runs import paths
from tests.lm.tasks import policies

FIELDS = {"top_p": 0.9, "temperature": 0.8, "minibatches": 2, "epochs": 2, "kl": 0.1}
STEPS = 6
COMPILED = "/jax/core/compile/backend_compile_duration"


def config(folder, **changes):
    evals = {"held": {"type": "rewards", "files": policies.prompts(folder), "every": 3}}
    return policies.config(
        folder,
        fields=FIELDS,
        **{"steps": STEPS, "checkpoint.every": 3, "evals": evals, **changes},
    )


def rows(folder):
    names = {"tokens_per_second", "mfu", "seconds"}
    return [{k: v for k, v in row.items() if k not in names} for row in trackers.read(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, compilations at each call of the source) of a whole run."""
    folder, count, at = tmp_path_factory.mktemp("policy"), [0], []

    def see(event, seconds, **_):
        count[0] += event == COMPILED

    class Counted(rollouts.Rollouts):
        def next(self, state):
            before = count[0]
            batch = super().next(state)
            at.append(count[0] - before)
            return batch

    monitoring.register_event_duration_secs_listener(see)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm.tasks.policy.Rollouts", Counted)
        assert loop.train(config(folder), folder / "whole") == 0
    monitoring.clear_event_listeners()
    return folder, at


def test_a_first_ratio_is_not_1_or_the_learner_disagrees_with_the_engine(whole):
    found = [row for row in rows(whole[0] / "whole") if "ratio" in row]
    assert len(found) == STEPS and found[0]["ratio"] == pytest.approx(1, abs=1e-6)
    assert found[0]["kl"] == pytest.approx(0, abs=1e-7) and found[1]["ratio"] != 1
    assert all(row["rollout_difference"] < 1e-5 for row in found)
    assert all(0 < row["answer_length"] <= 6 and row["draws"] == 1 for row in found)


def test_a_later_rollout_compiles_again(whole):
    first, *later = whole[1]
    assert first and later == [0] * (STEPS - 1)


def test_samples_lack_the_rewards_of_answers(whole):
    text = (whole[0] / "whole" / "samples.md").read_text()
    assert "## step 3" in text and "**Say " in text and "(reward 0" in text
    held = [row for row in trackers.read(whole[0] / "whole") if "eval/held/reward" in row]
    assert [row["step"] for row in held] == [3, 6] and "eval/held/ended" in held[0]


def test_a_restored_source_gives_other_batches_and_another_group_is_accepted(whole):
    folder = whole[0]
    c = config(folder)
    run = setup.prepare(c, paths.resolve(str(folder / "prepared")))
    data, state = setup.training_data(c, run), run.fresh_state(0)
    first, second = (setup.train_source(c, run, data) for _ in range(2))
    batches = [first.next(state)]
    position, carry = json.loads(json.dumps(first.position())), first.carry()
    batches += [first.next(state) for _ in range(5)]  # into the second rollout
    second.restore(position, carry)
    again = [second.next(state) for _ in range(5)]
    jax.tree.map(np.testing.assert_array_equal, batches[1:], again)
    other = {name: x[:, :2] for name, x in carry.items()}
    with pytest.raises(ConfigError, match=r"16 prompts with 2 answers, .* asks for 16 with 4"):
        second.restore(position, other)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task.group": 1}, "task.group=1: answers are compared with others"),
        ({"task.new_tokens": 0}, "task.new_tokens=0: expected at least 1"),
        ({"task.minibatches": 0}, "task.minibatches=0: expected at least 1"),
        ({"task.epochs": 0}, "task.epochs=0"),
        ({"task.rounds": 0}, "task.rounds=0"),
        ({"task.slots": -1}, "task.slots=-1"),
        ({"task.max_constant": -1}, "task.max_constant=-1"),
        ({"task.chunk": -1}, "task.chunk=-1"),
        ({"task.max_bad_rewards": 2.0}, "task.max_bad_rewards=2.0: .*at most 1"),
        ({"task.max_long": -1.0}, "task.max_long=-1.0"),
        ({"task.clip_low": 1.5}, "task.clip_low=1.5"),
        ({"task.clip_high": -1.0}, "task.clip_high=-1.0"),
        ({"task.entropy": float("nan")}, "task.entropy=nan"),
        ({"task.kl": -1.0}, "task.kl=-1.0"),
        ({"task.kl": 0.1, "task.reference": False}, "task.kl=0.1 is a divergence"),
        ({"task.temperature": 0.0}, "task.temperature=0.0: expected a number above 0"),
        ({"task.top_k": -1}, "task.top_k=-1"),
        ({"task.top_p": 0.0}, "task.top_p=0.0"),
        ({"task.min_p": 2.0}, "task.min_p=2.0"),
        ({"task.baseline": "mean"}, "task.baseline='mean'.*expected one of group, leave_one_out"),
        ({"task.baseline": "leave_one_out"}, "task.scale='group': with task.baseline="),
        ({"task.scale": "std"}, "task.scale='std'"),
        ({"task.ratio": "row"}, "task.ratio='row'"),
        ({"task.mean": "all"}, "task.mean='all'"),
        ({"task.template": "alpca"}, "alpca"),
        ({"eval.data.heldout": "x.jsonl"}, "prompts have no text to predict"),
        ({"model.dropout": 0.1}, "model.dropout=0.1: answers are drawn without dropout"),
        ({"evals": {"r": {"type": "rewards"}}}, "evals.r.files is not set"),
        ({"evals": {"r": {"type": "rewards", "files": "x", "shown": -1}}}, "evals.r.shown=-1"),
        ({"task.rewards.vowels.type": "vowls"}, "vowels.type='vowls' is unknown"),
    ],
)
def test_a_wrong_value_is_accepted(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        settings.check(policies.config(tmp_path, **changes), 8)


@pytest.mark.parametrize(
    ("rows", "changes", "words"),
    [
        (['{"prompt": ""}'], {}, r"x\.jsonl, line 1: the field 'prompt' is '', expected a text"),
        (['{"question": "a"}'], {}, "the field 'prompt' is None"),
        (['{"prompt": "0123456789012345678"}'], {}, r"1 of 1 prompts have more than 18 tokens"),
        (['{"prompt": "a"}'], {"task.new_tokens": 24}, "leaves no room for a prompt in length=24"),
    ],
)
def test_a_prompt_that_cannot_be_asked_is_accepted(tmp_path, rows, changes, words):
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    c = policies.config(tmp_path, **{"data.files": str(tmp_path / "x.jsonl"), **changes})
    run = setup.prepare(c, paths.resolve(str(tmp_path / "run")))
    with pytest.raises((DataError, ConfigError), match=words):
        setup.training_data(c, run)


def test_rewards_that_are_all_equal_are_learned_from():
    section = {"vowels": {"type": policies.REWARD}}
    of, constant = rewards.of(section, rewards.REWARDS), 0
    for values in ([1.0, 1.0], [1.0, 0.0], [0.5, np.nan, 0.5]):
        constant = rewards.check_constant(of, np.array(values), constant, 2)
    assert constant == 1 and rewards.check_constant(of, np.array([0.5]), 7, 0) == 8
    words = r"policies\.py\): all 2 answers of 2 rollouts in a row had the reward 0.5"
    with pytest.raises(ConfigError, match=words):
        rewards.check_constant(of, np.array([0.5, 0.5]), constant, 2)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "bart", "mamba", "mamba2", "bamba", "gpt2", "gemma"])
def test_another_architecture_does_not_learn_from_rollouts(tmp_path, family):
    changes = {"mesh.data": 2, "mesh.fsdp": 4}
    c = policies.config(tmp_path, family=family, fields={"minibatches": 2}, **changes)
    assert loop.train(c, tmp_path / "run") == 0
    found = trackers.read(tmp_path / "run")
    assert found[0]["ratio"] == pytest.approx(1, abs=1e-5)
    assert all(row["rollout_difference"] < 1e-5 for row in found)


@pytest.mark.slow
def test_the_preview_of_a_rollout_fails(tmp_path, capsys):
    text = "import pathlib\nfrom tests.lm.tasks import policies\n\n\ndef get_config():\n"
    text += f"    return policies.config(pathlib.Path({str(tmp_path)!r}))\n"
    (tmp_path / "c.py").write_text(text)
    preview.main([f"--config={tmp_path / 'c.py'}", f"--workdir={tmp_path / 'run'}", "--json"])
    shown = json.loads(capsys.readouterr().out)["rows"]
    texts = ["".join(piece["text"] for piece in row["tokens"]) for row in shown]
    assert len(texts) > 1 and all("Say" in text for text in texts)
