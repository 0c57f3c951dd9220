"""KTO: learn from single answers that are desirable or not (Ethayarajh et al. 2024).

The estimate of the divergence from the reference, with which answers are compared, is the mean
log-ratio of answers to other prompts in the whole batch (section 4.1), so the batch is joint.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import TEXT, Batch, Field
from lm.data.packed import Packed
from lm.data.read.sources import DataError
from lm.losses import Loss, Term, preference
from lm.models.config import ConfigError, ModelConfig
from lm.tasks.models import Models
from lm.tasks.preference import Referenced, check_positive, lengths, present
from lm.tasks.task import Shown, Tools


@dataclasses.dataclass(frozen=True)
class KTO(Referenced):
    """Raise the log-ratio of desirable answers to a reference, and lower that of others."""

    beta: float = 0.1  # strength of the pull to the reference
    # Weights of the labels; number of records times weight is best about equal for both.
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    judged: ClassVar[bool] = True
    joint: ClassVar[bool] = True
    new_fields: ClassVar[Mapping[str, Field]] = {
        **Referenced.new_fields,
        "desirable": Field(TEXT, np.float32),
    }

    def check(self, config) -> None:
        super().check(config)
        check_positive("beta", self.beta)
        for name in ("desirable_weight", "undesirable_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"task.{name}={getattr(self, name)}: expected a finite number, 0 or more"
                )
        if not self.desirable_weight and not self.undesirable_weight:
            raise ConfigError(
                "task.desirable_weight and task.undesirable_weight are 0: nothing would be learned"
            )

    def fields(self, length: int, model: ModelConfig) -> dict[str, tuple[int, ...]]:
        row = (self.target_length or length,)
        return super().fields(length, model) | {"desirable": row}

    def rows(self, files: str, part: str, tools: Tools) -> Packed:
        found = super().rows(files, part, tools)
        for name in ("desirable", "undesirable"):
            if part == "train" and not found.counts[name]:
                raise DataError(
                    f"{files}: none of the {sum(found.counts[n] for n in LABELS):,} records is "
                    f"{name}, and KTO learns from both: add records with 'label': "
                    f"{str(name == 'desirable').lower()}"
                )
        return found

    def loss(
        self,
        model,
        params: dict,
        batch: Batch,
        rng: jax.Array | None = None,
        parts: int = 1,
        *,
        models: Models = {},  # noqa: B006 never changed
    ) -> Loss:
        """Mean of weight * (1 - value) over the answers. parts: as in `Contrastive.loss`."""
        own = lambda rows, rng: self.scored(model, params, rows, rng)
        theirs = lambda rows, rng: self.reference_scores(models, rows)
        scores = in_parts(own, batch, rng, parts)
        ratios = scores - jax.lax.stop_gradient(in_parts(theirs, batch, None, parts))
        sizes, real = lengths(batch)[..., 0], present(batch)
        more: Any = batch.more
        good = preference.per_answer(more["desirable"], batch.segments)[..., 0] > 0
        answers = jnp.sum(real)
        kl = jnp.sum(real * ratios[..., 1]) / jnp.maximum(answers, 1)
        kl = jax.lax.stop_gradient(jnp.maximum(kl, 0))
        ratio = ratios[..., 0]
        weights = jnp.where(good, self.desirable_weight, self.undesirable_weight)
        losses = weights * preference.judged(ratio, good, kl, self.beta)
        metrics: dict[str, Any] = {"kl": Term(kl * answers, answers)}
        for name, label in zip(LABELS, (good, ~good), strict=True):
            of = real * label
            values = {"reward": self.beta * ratio, "logp": scores[..., 0], "tokens": sizes}
            for figure, value in values.items():
                metrics[f"{figure}_{name}"] = Term(jnp.sum(of * value), jnp.sum(of))
        return Loss({"loss": Term(jnp.sum(real * losses), answers)}, metrics)

    def shown(self, row, spelled, names) -> Shown:
        segments, weights, targets, labels = (
            np.asarray(row[name]) for name in ("segments", "weights", "targets", "desirable")
        )
        said = []
        for i in range(1, int(segments.max(initial=0)), 2):
            own, other = (spelled(targets[(segments == at) & (weights > 0)]) for at in (i, i + 1))
            label = LABELS[not labels[segments == i].any()]
            said.append(f"{label}: {own!r}, compared with {other!r} of another record")
        return Shown(said="; ".join(said))


LABELS = ("desirable", "undesirable")


def in_parts(
    function: Callable[[Batch, jax.Array | None], jax.Array],
    batch: Batch,
    rng: jax.Array | None,
    parts: int,
) -> jax.Array:
    """function(batch, rng) over the rows in `parts` parts, recomputed in the backward pass.

    Part i is rows i, i + parts, ..., as in accumulation, so each device splits its own rows.
    """
    if parts == 1:
        return function(batch, rng)
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
    rngs = None if rng is None else jax.random.split(rng, parts)
    found = jax.lax.map(jax.checkpoint(lambda xs: function(*xs)), (split, rngs))
    return found.swapaxes(0, 1).reshape(-1, *found.shape[2:])
