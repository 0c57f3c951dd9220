"""Losses and advantages of policies against loops in float64, written from the papers."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Batch
from lm.losses import advantages, policy
from lm.tasks.grpo import GRPO
from lm.tasks.ppo import PPO

P, G, T = 3, 4, 6
LENGTHS = np.array([[6, 3, 1, 5], [2, 2, 6, 4], [3, 5, 4, 1]])
VARIANTS = {
    "grpo": {"kl": 0.04},
    "dapo": {"mean": "token", "clip_high": 0.28},
    "dr_grpo": {"mean": "constant", "scale": "none"},
    "gspo": {"ratio": "sequence", "clip_low": 0.05, "clip_high": 0.1},
    "rloo": {"baseline": "leave_one_out", "scale": "none", "entropy": 0.01},
}


@dataclasses.dataclass(frozen=True)
class Given(GRPO):
    """The task with log-probabilities and entropies as parameters."""

    def log_probs(self, model, params, flat):
        return params["log_probs"], params["entropy"]


def drawn(seed, equal=False):
    """(params, arrays [P, G, T]) of a random rollout."""
    rng = np.random.default_rng(seed)
    weights = (np.arange(T) < LENGTHS[..., None]).astype(np.float32)
    rewards = np.full((P, G), 0.5) if equal else rng.normal(size=(P, G))
    old = rng.normal(-2, 0.5, (P, G, T)).astype(np.float32)
    arrays = {
        "rewards": rewards.astype(np.float32),
        "weights": weights,
        "old_log_probs": old,
        "reference_log_probs": (old + rng.normal(0, 0.2, old.shape)).astype(np.float32),
        **{name: np.ones((P, G), np.float32) for name in ("lengths", "ended", "mismatch", "draws")},
    }
    log_probs = (old + rng.normal(0, 0.3, old.shape)).astype(np.float32).reshape(-1, T)
    entropy = rng.uniform(1, 2, log_probs.shape).astype(np.float32)
    return {"log_probs": log_probs, "entropy": entropy}, arrays


def batch_of(arrays):
    tokens = np.zeros((P, G, T), np.int32)
    every = dict.fromkeys(("tokens", "targets", "positions"), tokens)
    return jax.tree.map(jnp.asarray, Batch.made({**every, "segments": tokens + 1, **arrays}))


def expected(task, params, arrays):
    """The loss by loops in float64."""
    rewards, total, norm = arrays["rewards"].astype(np.float64), 0.0, 0.0
    new = params["log_probs"].astype(np.float64).reshape(P, G, T)
    entropy = params["entropy"].astype(np.float64).reshape(P, G, T)
    old, reference = (
        arrays[f"{name}_log_probs"].astype(np.float64) for name in ("old", "reference")
    )
    for p in range(P):
        for g in range(G):
            others = [rewards[p, i] for i in range(G) if i != g]
            advantage = rewards[p, g] - np.mean(rewards[p])
            if task.baseline == "leave_one_out":
                advantage = rewards[p, g] - np.mean(others)
            elif task.scale == "group":
                advantage /= np.std(rewards[p], ddof=1) + 1e-4
            n, of_answer = LENGTHS[p, g], 0.0
            for t in range(n):
                change = new[p, g, t] - old[p, g, t]
                if task.ratio == "sequence":
                    change = sum(new[p, g, i] - old[p, g, i] for i in range(n)) / n
                ratio = math.exp(change)
                held = min(max(ratio, 1 - task.clip_low), 1 + task.clip_high)
                loss = -min(ratio * advantage, held * advantage) - task.entropy * entropy[p, g, t]
                difference = reference[p, g, t] - new[p, g, t]
                loss += task.kl * (math.exp(difference) - difference - 1)
                of_answer += loss
            total += of_answer / n if task.mean == "sequence" else of_answer
            norm += {"sequence": 1, "token": n, "constant": task.new_tokens}[task.mean]
    return total / norm


@pytest.mark.parametrize("name", VARIANTS)
def test_a_loss_differs_from_its_paper_or_moves_without_a_signal(name):
    task = Given(new_tokens=T, group=G, **VARIANTS[name])
    value = lambda params, batch: (lambda loss: loss.first.sum / loss.first.weight)(
        task.loss(None, params, batch)
    )
    params, arrays = drawn(1)
    batch = batch_of(task.finished(arrays))
    found, gradient = jax.value_and_grad(value)(params, batch)
    np.testing.assert_allclose(found, expected(task, params, arrays), rtol=2e-5)
    assert task.weights(batch)["loss"] == task.loss(None, params, batch).first.weight
    assert bool(np.abs(gradient["entropy"]).sum()) == bool(task.entropy)
    params, arrays = drawn(2, equal=True)
    quiet = dataclasses.replace(task, entropy=0.0, kl=0.0)
    loss = lambda params: quiet.loss(None, params, batch_of(quiet.finished(arrays))).first.sum
    assert not np.asarray(jax.grad(loss)(params)["log_probs"]).any()


def test_the_metrics_of_an_unchanged_policy_are_not_those_of_no_change():
    task = Given(new_tokens=T, group=G)
    params, arrays = drawn(3)
    params["log_probs"] = arrays["old_log_probs"].reshape(-1, T)
    arrays["reference_log_probs"] = arrays["old_log_probs"]
    metrics = task.loss(None, params, batch_of(task.finished(arrays))).metrics
    mean = {name: float(term.sum / term.weight) for name, term in metrics.items()}
    assert mean["ratio"] == 1 and mean["kl"] == 0 and mean["clipped"] == 0
    np.testing.assert_allclose(mean["reward"], arrays["rewards"].mean(), rtol=1e-5)


def test_an_answer_without_a_reward_counts_in_its_group():
    rewards = np.array([[1.0, np.nan, 0.0, 1.0]])
    for found in (advantages.of_groups(rewards, "none"), advantages.leave_one_out(rewards)):
        assert found[0, 1] == 0 and abs(found.sum()) < 1e-12
    np.testing.assert_allclose(advantages.leave_one_out(rewards)[0, [0, 2]], [0.5, -1.0])


def test_advantages_of_a_critic_and_its_loss_differ_from_loops():
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, 3, T))
    mask = np.array([[0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]])
    gamma, decay = 0.9, 0.8
    found, returns = advantages.generalised(rewards, values, mask, gamma, decay)
    for row in range(3):
        at = np.flatnonzero(mask[row])
        for t in at:
            total = 0.0
            for later in at[at >= t]:
                following = values[row, later + 1] if later + 1 in at else 0.0
                delta = rewards[row, later] + gamma * following - values[row, later]
                total += (gamma * decay) ** (later - t) * delta
            np.testing.assert_allclose(found[row, t], total)
            np.testing.assert_allclose(returns[row, t], total + values[row, t])
    assert not found[mask == 0].any() and not returns[mask == 0].any()
    white = advantages.whitened(found, mask)[mask > 0]
    np.testing.assert_allclose([white.mean(), white.std()], [0, 1], atol=1e-6)
    new = values + rng.normal(size=values.shape)
    losses, held = policy.value_losses(new, values, returns, 0.2)
    for index in np.ndindex(*new.shape):
        clipped = values[index] + min(max(new[index] - values[index], -0.2), 0.2)
        errors = (new[index] - returns[index]) ** 2, (clipped - returns[index]) ** 2
        np.testing.assert_allclose(losses[index], 0.5 * max(errors), rtol=1e-5)
        if not np.isclose(*errors):
            assert held[index] == (errors[1] > errors[0])


@dataclasses.dataclass(frozen=True)
class GivenValues(PPO):
    """The task with log-probabilities, entropies and values as parameters."""

    def log_probs(self, model, params, flat):
        return params["log_probs"], params["entropy"]

    def values(self, critic, flat):
        return critic


@pytest.mark.parametrize("whiten", [True, False])
def test_the_loss_of_ppo_differs_from_loops(whiten):
    options = dict(kl=0.1, unended=0.5, entropy=0.01, clip_value=0.3, whiten=whiten)
    task = GivenValues(new_tokens=T, group=G, gamma=0.9, gae_lambda=0.8, **options)
    params, arrays = drawn(4)
    rng = np.random.default_rng(5)
    arrays["ended"] = rng.integers(0, 2, (P, G)).astype(np.float32)
    arrays["old_values"] = rng.normal(size=(P, G, T)).astype(np.float32)
    values = rng.normal(size=(P * G, T)).astype(np.float32)
    made = task.finished(arrays)
    batch = batch_of(made)
    of = lambda values: task.loss(None, params, batch, models={"critic": values})
    loss = of(values)

    advantage, target = np.zeros((2, P, G, T))
    for p, g in np.ndindex(P, G):
        n, after, value = LENGTHS[p, g], 0.0, 0.0
        for t in reversed(range(n)):
            old = {name: float(x[p, g, t]) for name, x in arrays.items() if x.ndim == 3}
            reward = -task.kl * (old["old_log_probs"] - old["reference_log_probs"])
            if t == n - 1:
                reward += arrays["rewards"][p, g] - task.unended * (arrays["ended"][p, g] == 0)
            after = reward + 0.9 * value - old["old_values"] + 0.9 * 0.8 * after
            value = old["old_values"]
            advantage[p, g, t], target[p, g, t] = after, after + value
    at = arrays["weights"] > 0
    if whiten:
        advantage = (advantage - advantage[at].mean()) / np.sqrt(advantage[at].var() + 1e-8)
    np.testing.assert_allclose(made["advantages"][at], advantage[at], rtol=1e-4, atol=1e-5)
    new, entropy = (params[name].reshape(P, G, T).astype(float) for name in params)
    ratio = np.exp(new - arrays["old_log_probs"])
    surrogate = np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
    wanted = (-surrogate - 0.01 * entropy)[at].mean()
    np.testing.assert_allclose(loss.terms["policy"].sum / at.sum(), wanted, rtol=1e-4)
    found, old = values.reshape(P, G, T), arrays["old_values"]
    held = old + np.clip(found - old, -0.3, 0.3)
    errors = np.square([found - target, held - target])
    wanted = 0.5 * errors.max(axis=0)[at].mean()
    np.testing.assert_allclose(loss.terms["value"].sum / at.sum(), wanted, rtol=1e-4)
    gradient = np.asarray(jax.grad(lambda x: of(x).terms["value"].sum)(values)).reshape(P, G, T)
    moved = at & ~((errors[1] > errors[0]) & (np.abs(found - old) > 0.3))
    np.testing.assert_allclose(gradient, np.where(moved, found - target, 0), atol=1e-4)
    assert {name: float(x) for name, x in task.weights(batch).items()} == {
        name: float(term.weight) for name, term in loss.terms.items()
    }
