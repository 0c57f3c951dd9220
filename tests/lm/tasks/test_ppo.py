"""Runs of PPO: the critic's start, a bandit, text beside it, resuming, and wrong values."""

import pathlib

import jax
import numpy as np
import pytest

from configs import ppo
from lm import tasks
from lm.models.config import ConfigError
from lm.tasks import rollouts
from lm.tasks.models import Aux
from lm.training import auxiliary, checkpoints, loop, settings, setup, trackers
from lm.weights import WeightsError
from lm.weights.runs import paths
from lm.weights.runs import weights as run_weights
from tests.lm.tasks import policies

LETTER = {"format": {"pattern": "[a-z]"}}
BANDIT = {"rewards": LETTER, "new_tokens": 1, "group": 16, "minibatches": 2, "epochs": 2}


def test_a_bandit_is_not_learned_or_the_critic_does_not_start_from_the_policy(tmp_path):
    """26 of 257 tokens are rewarded, so the optimum is a reward of 1."""
    rate = {"optimizer.learning_rate": 3e-2, "optimizer.schedule": "constant"}
    c = policies.config(tmp_path, "ppo", fields=BANDIT, steps=40, **rate, **{"optimizer.warmup": 0})
    assert loop.train(c, tmp_path / "run") == 0
    found = [row for row in trackers.read(tmp_path / "run") if "reward" in row]
    assert found[0]["ratio"] == pytest.approx(1, abs=1e-6) and found[0]["value"] == 0
    assert found[0]["reward"] < 0.4 and found[0]["kl"] == pytest.approx(0, abs=1e-7)
    assert np.mean([row["reward"] for row in found[-4:]]) > 0.97
    assert found[-1]["value"] == pytest.approx(1, abs=0.2)
    run = setup.prepare(c, paths.resolve(str(tmp_path / "other")))
    params = run.fresh_state(0).params
    own = {name: x for name, x in params.items() if name not in ("models", "head")}
    body = {name: params["models"]["critic"][name] for name in own}
    jax.tree.map(np.testing.assert_array_equal, own, body)
    assert not np.any(params["models"]["critic"]["head"]["classifier"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task.gamma": 1.5}, "task.gamma=1.5: expected a number of at least 0, at most 1"),
        ({"task.gae_lambda": -1.0}, "task.gae_lambda=-1.0: expected a number"),
        ({"task.value_weight": -1.0}, "task.value_weight=-1.0: expected a number of at least 0"),
        ({"task.clip_value": float("inf")}, "task.clip_value=inf: expected a number"),
        ({"task.unended": -1.0}, "task.unended=-1.0: expected a number"),
        ({"task.rounds": 2}, "task.rounds=2 replaces groups .* task.group=1 each group is one"),
    ],
)
def test_a_wrong_value_is_accepted(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        settings.check(policies.config(tmp_path, "ppo", fields={"group": 1}, **changes), 8)


def test_a_critic_that_does_not_fit_is_accepted(tmp_path):
    c = policies.config(tmp_path, "ppo")
    run = setup.prepare(c, paths.resolve(str(tmp_path / "run")))
    other = run.model.config.replace(d_ff=64, head="value")
    with pytest.raises(ConfigError, match=r"start='body'\), which has .*16.* expected .*64"):
        auxiliary.made({"critic": Aux(other, start="body")}, run.model, None, 8)
    with pytest.raises(WeightsError, match=r"auxiliary model 'critic': no/such/folder/here does"):
        c = policies.config(tmp_path, "ppo", fields={"critic": "no/such/folder/here"})
        setup.prepare(c, paths.resolve(str(tmp_path / "run")))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "t5", "mamba"])
def test_another_architecture_does_not_learn_with_a_critic_on_a_mesh(tmp_path, family):
    """With PPO-ptx for llama, and resumed after an end in the middle of a rollout."""
    fields = {"group": 2, "kl": 0.05, "minibatches": 2, "epochs": 2}
    (tmp_path / "x.txt").write_text("The river runs to the sea. " * 40)
    text = {"task": tasks.defaults("next_token"), "batch_size": 8, "coefficient": 0.1}
    ptx = {"text": {**text, "files": str(tmp_path / "x.txt")}} if family == "llama" else {}
    changes = {"mesh.data": 2, "mesh.fsdp": 4, "further_tasks": ptx, "steps": 6}
    c = policies.config(tmp_path, "ppo", family, fields, **{**changes, "checkpoint.every": 3})
    assert loop.train(c, tmp_path / "run") == 0
    found, at = trackers.read(tmp_path / "run"), "main/" if ptx else ""
    assert found[0][f"{at}ratio"] == pytest.approx(1, abs=1e-5)
    assert found[0][f"{at}value"] == 0 and found[-1][f"{at}value"] != 0
    assert not ptx or found[-1]["loss/text/loss"] < found[0]["loss/text/loss"]

    call = rollouts.Rollouts.next

    def killed(self, state):
        if self.rollouts == 2:
            raise MemoryError("gone")  # as after SIGKILL, nothing is saved after step 3
        return call(self, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts.Rollouts, "next", killed)
        with pytest.raises(ConfigError, match="next raised MemoryError: gone"):
            loop.train(c, tmp_path / "killed")
    assert checkpoints.steps(tmp_path / "killed") == [3]
    assert loop.train(c, tmp_path / "killed") == 0
    (_, a, _), (_, b, _) = (run_weights.load_params(tmp_path / n) for n in ("killed", "run"))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_a_reward_model_is_not_read_as_a_critic(tmp_path):
    changes = {"data.files": "configs/examples/preferences.jsonl", "length": 256, "steps": 2}
    reward = policies.config(tmp_path, **changes)
    reward.task = tasks.defaults("reward", template="plain")
    assert loop.train(reward, tmp_path / "reward") == 0
    _, params, _ = run_weights.load_params(tmp_path / "reward")
    fields = {"critic": str(tmp_path / "reward"), "group": 2}
    c = policies.config(tmp_path, "ppo", fields=fields, steps=2)
    run = setup.prepare(c, paths.resolve(str(tmp_path / "run")))
    critic = run.fresh_state(0).params["models"]["critic"]
    jax.tree.map(np.testing.assert_array_equal, params, critic)
    assert loop.train(c, tmp_path / "run") == 0


@pytest.mark.slow
def test_the_bandit_of_the_config_is_not_learned(tmp_path, monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parents[3])
    c = ppo.get_config("bandit")
    c.data.cache, c.log.tensorboard = str(tmp_path / "cache"), False
    assert loop.train(c, tmp_path / "run") == 0
    held = [row for row in trackers.read(tmp_path / "run") if "eval/heldout/reward" in row]
    assert held[-1]["eval/heldout/reward"] > 0.97
