"""Advantages of sampled answers, computed on the host in float64."""

import numpy as np

SCALES = ("group", "none")


def of_groups(rewards_PG: np.ndarray, scale: str = "group", eps: float = 1e-4) -> np.ndarray:
    """Reward minus the mean of its group, float64 [P, G]; NaN rewards do not count and get 0.

    scale: "group" also divides by the group's standard deviation (n - 1) + eps (GRPO, Shao et al.
    2024, section 4.1.2); "none" does not (Dr. GRPO, Liu et al. 2025, section 3.2).
    """
    mean, n = _mean(rewards_PG)
    centred = np.where(np.isnan(rewards_PG), 0.0, rewards_PG - mean)
    if scale == "none":
        return centred
    variance = np.sum(centred**2, axis=1, keepdims=True) / np.maximum(n - 1, 1)
    return centred / (np.sqrt(variance) + eps)


def leave_one_out(rewards_PG: np.ndarray) -> np.ndarray:
    """Reward minus the mean of the others of its group, float64 [P, G].

    RLOO (Ahmadian et al. 2024, section 3.3). NaN rewards do not count and get 0.
    """
    mean, n = _mean(rewards_PG)
    centred = np.where(np.isnan(rewards_PG), 0.0, rewards_PG - mean)
    return centred * n / np.maximum(n - 1, 1)


def _mean(rewards_PG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of a group without NaN, and its size, [P, 1] each."""
    n = np.sum(~np.isnan(rewards_PG), axis=1, keepdims=True)
    return np.nansum(rewards_PG, axis=1, keepdims=True) / np.maximum(n, 1), n


def generalised(
    rewards_NT: np.ndarray, values_NT: np.ndarray, mask_NT: np.ndarray, gamma: float, decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns of generalised advantage estimation, float64 [N, T] each.

    Schulman et al. 2016, equation 16, with lambda = `decay`. mask: the actions of a row, which are
    adjacent; the value after the last one is 0. Elsewhere both are 0.
    """
    mask = mask_NT > 0
    advantages = np.zeros(rewards_NT.shape)
    after = value = np.zeros(len(rewards_NT))
    for t in reversed(range(rewards_NT.shape[1])):
        delta = rewards_NT[:, t] + gamma * value - values_NT[:, t]
        after = np.where(mask[:, t], delta + gamma * decay * after, 0.0)
        value = np.where(mask[:, t], values_NT[:, t], 0.0)
        advantages[:, t] = after
    return advantages, np.where(mask, advantages + values_NT, 0.0)


def whitened(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Values with mean 0 and variance 1 over the mask, and 0 elsewhere."""
    of = values[mask > 0]
    if not of.size:
        return np.zeros_like(values)
    return np.where(mask > 0, (values - of.mean()) / np.sqrt(of.var() + 1e-8), 0.0)
