"""PPO: advantages from a critic (Schulman et al. 2017; Ouyang et al. 2022, section 3.5).

The critic is a model beside the policy with one value per token. Every token is rewarded with -kl
times its log-ratio to the reference, and the last token of an answer also with the answer's reward.
PPO-ptx is this task with text in `further_tasks`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm import families
from lm.batch import Batch, Field
from lm.losses import Loss, Term, advantages, policy
from lm.models.config import ConfigError, ModelConfig
from lm.tasks.models import Aux, Models
from lm.tasks.policy import OF_TOKENS, Policy
from lm.tasks.rollouts import finite

OWN = ("old_values", "returns")  # batch fields that the critic learns from


@dataclasses.dataclass(frozen=True)
class PPO(Policy):
    """Prefer answers that are better than a critic expects."""

    group: int = 1  # answers to each prompt
    # Run or model folder that the critic starts from: a reward model or a critic; "" = the policy's
    # initial weights with a head that predicts 0.
    critic: str = ""
    gamma: float = 1.0  # discount of later rewards
    gae_lambda: float = 0.95  # weight of later errors of the critic in an advantage
    whiten: bool = True  # advantages of a rollout have mean 0 and variance 1
    value_weight: float = 0.5  # weight of the critic's loss
    clip_value: float = 0.2  # values are held within this of the old ones; 0 = not held
    unended: float = 0.0  # subtracted from the reward of an answer that did not end

    terms: ClassVar[tuple[str, ...]] = ("policy", "value")
    by_row: ClassVar[bool] = True
    new_fields: ClassVar[Mapping[str, Field]] = {
        **Policy.new_fields,
        **dict.fromkeys(OWN, OF_TOKENS),
    }

    @property
    def coefficients(self) -> Mapping[str, float]:
        return {"value": self.value_weight}

    def check(self, config) -> None:
        super().check(config)
        for name in ("gamma", "gae_lambda"):
            finite(name, getattr(self, name), 0.0, 1.0)
        for name in ("value_weight", "clip_value", "unended"):
            finite(name, getattr(self, name), 0.0)
        if self.rounds > 1 and self.group == 1:
            raise ConfigError(
                f"task.rounds={self.rounds} replaces groups with equal rewards, and with "
                "task.group=1 each group is one answer; set task.rounds=1, or a larger group"
            )

    def aux(self, model: ModelConfig) -> dict[str, Aux]:
        """The reference, and a critic, which is trained."""
        if self.critic:
            critic = Aux(self.critic, trained=True, heads=("value",))
        else:
            try:
                config = families.other_head(model, "value")
            except ConfigError as error:
                raise ConfigError(f"task.name='ppo' needs a critic: {error}") from error
            critic = Aux(config, start="body", trained=True)
        return super().aux(model) | {"critic": critic}

    def fields(self, length: int, model: ModelConfig) -> dict[str, tuple[int, ...]]:
        tokens = (self.group, self.row_length(length, model))
        return super().fields(length, model) | dict.fromkeys(OWN, tokens)

    def finished(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        shape = arrays["weights"].shape
        of_tokens: Any = lambda name: arrays[name].reshape(-1, shape[-1]).astype(np.float64)
        of_answers: Any = lambda name: arrays[name].reshape(-1).astype(np.float64)
        mask = of_tokens("weights") > 0
        rewards = np.zeros(mask.shape)
        if self.kl:
            rewards -= self.kl * (of_tokens("old_log_probs") - of_tokens("reference_log_probs"))
        last = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
        scores = of_answers("rewards") - self.unended * (of_answers("ended") == 0)
        rewards[np.arange(len(mask)), last] += scores
        found, returns = advantages.generalised(
            rewards * mask, of_tokens("old_values"), mask, self.gamma, self.gae_lambda
        )
        if self.whiten:
            found = advantages.whitened(found, mask)
        made = {"advantages": found, "returns": returns}
        return arrays | {name: x.astype(np.float32).reshape(shape) for name, x in made.items()}

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        return dict.fromkeys(self.terms, jnp.sum(batch.weights))

    def loss(
        self,
        model,
        params: dict,
        batch: Batch,
        rng: jax.Array | None = None,
        *,
        models: Models = {},  # noqa: B006 never changed
    ) -> Loss:
        del rng  # without dropout
        flat = batch.ungrouped()
        more, weights = flat.more or {}, flat.weights
        log_probs, entropy = self.log_probs(model, params, flat)
        ratio = policy.ratios(log_probs, more["old_log_probs"], weights)
        losses = policy.clipped(ratio, more["advantages"], self.clip_low, self.clip_high)
        losses -= self.entropy * entropy
        values = self.values(models["critic"], flat)
        errors, held = policy.value_losses(
            values, more["old_values"], more["returns"], self.clip_value
        )
        tokens = jnp.sum(weights)
        over = lambda x: Term(jnp.sum(x * weights), tokens)
        metrics = self.measured(batch, log_probs, entropy, ratio)
        metrics |= {
            "value": over(values),
            "return": over(more["returns"]),
            "clipped_values": over(held),
        }
        return Loss({"policy": over(losses), "value": over(errors)}, dict(metrics))

    def values(self, critic: Any, flat: Batch) -> jax.Array:
        """Value of each token's context, before its target is drawn, float32 [N, T]."""
        return critic.model.apply({"params": critic.params}, flat).logits
