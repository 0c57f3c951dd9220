"""Reward model: a score of an answer, learned from pairs (Bradley & Terry 1952).

The loss is -log sigmoid(r(chosen) - r(rejected)) (Ouyang et al. 2022, equation 1), plus
`centring` * (r(chosen) + r(rejected))^2 (Eisenstein et al. 2023, section 2). The head is that of a
sequence classifier with one label, so that the model is one of Hugging Face's too.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from lm.batch import Batch
from lm.heads import with_head
from lm.losses import Loss, preference
from lm.models import build
from lm.models.config import ConfigError
from lm.tasks.preference import Pairs, lengths, measured, present
from lm.tasks.task import Kept, Start

HEAD = "sequence_classification"


@dataclasses.dataclass(frozen=True)
class Reward(Pairs):
    """Score chosen answers above rejected ones, by a head on the last token of an answer."""

    centring: float = 0.01  # weight of the squared sum of a pair's scores; 0 = none

    heads: ClassVar[tuple[str, ...]] = (HEAD,)
    by_row: ClassVar[bool] = True
    makes_head: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    def check(self, config) -> None:
        super().check(config)
        if not 0 <= self.centring < math.inf:
            raise ConfigError(f"task.centring={self.centring}: expected a finite number, 0 or more")

    def prepare(self, start: Start, config, sources, kept: Kept) -> Start:
        """Give a causal model a head with one label, unless it has it."""
        start = super().prepare(start, config, sources, kept)
        c = start.model.config
        if not c.causal or c.encoder_layers:
            raise ConfigError(
                f"task 'reward' reads the last token of an answer, and this {c.family} model is "
                "not causal: start from a decoder or a state-space model"
            )
        if c.head == HEAD and c.n_labels == 1:
            return start
        if config.adaptation.lora.rank and "head" not in config.adaptation.lora.pattern:
            raise ConfigError(
                f"adaptation.lora.pattern={config.adaptation.lora.pattern!r} leaves "
                "head/classifier frozen, and it is drawn at random: add head, as in "
                "'(attention|mlp|ssm|head)/'"
            )
        padded = c if c.pad_token_id is not None else c.replace(pad_token_id=0)
        key = jax.random.key(config.seed)
        if start.params is None:
            from lm import families

            headed, params = families.other_head(padded, HEAD, n_labels=1), None
        else:
            model, params = with_head(build(padded), start.params, HEAD, key, n_labels=1)
            headed = model.config
        model = build(headed.replace(pad_token_id=c.pad_token_id))
        return dataclasses.replace(start, model=model, params=params)

    def scored(self, model, params: dict, batch: Batch, rng=None) -> jax.Array:
        """Scores of both answers of each pair, [B, P, 2]."""
        rngs = None if rng is None else {"dropout": rng}
        hidden = model.apply({"params": params}, batch, method="hidden", rngs=rngs).hidden
        values: Any = model.apply({"params": params}, hidden, method=lambda m, x: m.head(x))
        segments = batch.segments
        following = jnp.pad(segments[:, 1:], ((0, 0), (0, 1)))
        last = (segments > 0) & (following != segments)
        return preference.per_answer(jnp.where(last, values[..., 0], 0.0), segments)

    def loss(self, model, params: dict, batch: Batch, rng: jax.Array | None = None) -> Loss:
        """Loss of the pairs. `longer` and `prefers_longer` report the bias to long answers.

        longer: share of pairs whose chosen answer is longer. prefers_longer: share in which the
        longer answer has the higher score; above `longer`, the model leans to length.
        """
        rewards = self.scored(model, params, batch, rng)
        sizes, real = lengths(batch), present(batch)
        margin = rewards[..., 0] - rewards[..., 1]
        found = preference.preferred(margin, "sigmoid", 1.0)
        found += self.centring * jnp.sum(rewards, axis=-1) ** 2
        metrics = measured(rewards, rewards, sizes, real)
        extra = sizes[..., 0] - sizes[..., 1]
        metrics = {name: x for name, x in metrics.items() if not name.startswith("logp")} | {
            "longer": jnp.sum(real * (extra > 0)),
            "prefers_longer": jnp.sum(real * (extra * margin > 0)),
        }
        return Loss.of(jnp.sum(real * found), jnp.sum(real), **metrics)
