"""GRPO and its kin: advantages from the other answers to the same prompt, without a critic.

GRPO (Shao et al. 2024, arXiv 2402.03300, section 4.1), DAPO (Yu et al. 2025, arXiv 2503.14476),
Dr. GRPO (Liu et al. 2025, arXiv 2503.20783), GSPO (Zheng et al. 2025, arXiv 2507.18071) and RLOO
(Ahmadian et al. 2024, arXiv 2402.14740) are choices of four fields; docs/reinforcement.md has the
table.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Batch
from lm.losses import Loss, Term, advantages, policy
from lm.models.config import ConfigError, nearest
from lm.tasks.models import Models
from lm.tasks.policy import Policy

CHOICES = {
    "baseline": ("group", "leave_one_out"),
    "scale": advantages.SCALES,
    "ratio": ("token", "sequence"),
    "mean": ("sequence", "token", "constant"),
}


@dataclasses.dataclass(frozen=True)
class GRPO(Policy):
    """Prefer the answers to a prompt that are rewarded more than the others."""

    # What is subtracted from a reward: the mean of its group, or of the others (leave_one_out).
    baseline: str = "group"
    scale: str = "group"  # what the difference is divided by: the group's deviation, or none
    ratio: str = "token"  # probabilities are compared per token, or per sequence (GSPO)
    # Mean of the loss over: sequence (each answer counts alike), token (each token does, DAPO),
    # constant (batch * group * new_tokens, Dr. GRPO).
    mean: str = "sequence"

    by_row: ClassVar[bool] = True

    def check(self, config) -> None:
        super().check(config)
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(
                    f"task.{name}={value!r}{nearest(value, known)}: expected one of "
                    f"{', '.join(known)}"
                )
        if self.group < 2:
            raise ConfigError(
                f"task.group={self.group}: answers are compared with others to the same prompt; "
                "expected at least 2"
            )
        if self.baseline == "leave_one_out" and self.scale != "none":
            raise ConfigError(
                f"task.scale={self.scale!r}: with task.baseline='leave_one_out' (RLOO) rewards are "
                "not divided; set 'none'"
            )

    def finished(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rewards = arrays["rewards"].astype(np.float64)
        rewards = np.where(arrays["weights"].any(axis=-1), rewards, np.nan)
        if self.mask_truncated:  # they have no weight, and still a reward
            rewards = arrays["rewards"].astype(np.float64)
        of_answer = (
            advantages.leave_one_out(rewards)
            if self.baseline == "leave_one_out"
            else advantages.of_groups(rewards, self.scale)
        )
        every = of_answer[..., None] * (arrays["weights"] > 0)
        return arrays | {"advantages": every.astype(np.float32)}

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        return {"loss": self._weighed(batch.ungrouped().weights)[1]}

    def _weighed(self, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Weight of every token [N, T], and of all of them."""
        if self.mean == "token":
            return weights, jnp.sum(weights)
        if self.mean == "constant":
            return weights, jnp.float32(len(weights) * self.new_tokens)
        of_row = jnp.sum(weights, axis=1, keepdims=True)
        return weights / jnp.maximum(of_row, 1), jnp.sum(of_row > 0).astype(jnp.float32)

    def loss(
        self,
        model,
        params: dict,
        batch: Batch,
        rng: jax.Array | None = None,
        *,
        models: Models = {},  # noqa: B006 never changed
    ) -> Loss:
        del rng, models  # without dropout; the reference's log-probabilities are in the batch
        flat = batch.ungrouped()
        more = flat.more or {}
        log_probs, entropy = self.log_probs(model, params, flat)
        ratio = policy.ratios(log_probs, more["old_log_probs"], flat.weights, self.ratio)
        losses = policy.clipped(ratio, more["advantages"], self.clip_low, self.clip_high)
        losses -= self.entropy * entropy
        if self.kl:
            losses += self.kl * policy.k3(log_probs, more["reference_log_probs"])
        each, total = self._weighed(flat.weights)
        metrics = self.measured(batch, log_probs, entropy, ratio)
        return Loss({"loss": Term(jnp.sum(losses * each), total)}, dict(metrics))
