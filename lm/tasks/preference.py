"""Preference learning from pairs of answers: DPO and its kin, SimPO and ORPO.

A row holds pairs, both answers of each side by side (lm/data/encode/preference.py). Formulas and
their sources are in docs/preference.md.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import TEXT, Batch, Field
from lm.data import templates
from lm.data.encode import preference as encoding
from lm.data.packed import Packed
from lm.losses import Loss, chunks, preference
from lm.losses.log_probs import log_probs
from lm.losses.loss import Term
from lm.losses.tokens import head_of
from lm.models.config import ConfigError, ModelConfig, nearest
from lm.tasks.instruct import Instruct
from lm.tasks.models import Aux, Models
from lm.tasks.task import Kept, Shown, Start, Task, Tools


@dataclasses.dataclass(frozen=True)
class Pairs(Task):
    """Base class of tasks on preference pairs. A row of `length` tokens holds whole pairs.

    whole: rows hold every token of an answer, not the next token to predict. judged: records are
    single answers with a label; a pair is one with another record's answer to its prompt.
    """

    template: str = ""  # a name in lm/data/templates; "" = that of init_from's run
    # Tokens per row of an encoder-decoder's answers, where length is that of prompts; 0 = length.
    target_length: int = 0
    max_long: float = 0.01  # maximum share of pairs that are too long for a row, and are left out
    chunk: int = 0  # positions whose logits are in memory at once; 0 = as many as fit 256 MB

    heads: ClassVar[tuple[str, ...]] = ("causal_lm", "seq2seq_lm")
    renders: ClassVar[bool] = True
    whole: ClassVar[bool] = False
    judged: ClassVar[bool] = False

    def check(self, config) -> None:
        if self.template:
            templates.check_name(self.template)
        elif not config.init_from:
            raise ConfigError(f"task.template is not set: one of {', '.join(templates.TEMPLATES)}")
        if not 0 <= self.max_long <= 1:
            raise ConfigError(f"task.max_long={self.max_long}: expected a share between 0 and 1")
        for field in ("chunk", "target_length"):
            if getattr(self, field) < 0:
                raise ConfigError(f"task.{field}={getattr(self, field)}: expected 0 or more")

    def prepare_tokenizer(self, tokenizer):
        """Add the control tokens of the template to the bytes tokenizer."""
        return Instruct(template=self.template).prepare_tokenizer(tokenizer)

    def prepare(self, start: Start, config, sources, kept: Kept) -> Start:
        """Set the template, and end answers at its stop token in generation too."""
        return Instruct(template=self.template).prepare(start, config, sources, kept)

    def rows(self, files: str, part: str, tools: Tools) -> Packed:
        model, length = tools.model, tools.length
        start = model.decoder_start_token_id if model.encoder_layers else None
        if model.encoder_layers and start is None:
            raise ConfigError(
                "model.decoder_start_token_id is not set, and the decoder must start from some "
                "token"
            )
        if self.target_length and start is None:
            raise ConfigError(
                f"task.target_length={self.target_length} is for an encoder-decoder; a decoder's "
                "rows have length"
            )
        capacity = (length, 0) if start is None else (self.target_length or length, length)
        assert tools.template is not None  # set by `prepare`
        return encoding.pack_files(
            files,
            tools.template,
            tools.tokenizer,
            capacity,
            tools.cache,
            decoder_start=start,
            whole=self.whole,
            judged=self.judged,
            max_long=self.max_long,
            max_bad_share=tools.max_bad_share,
            tally=tools.tally,
            share=0.0 if part == "all" else tools.holdout_share,
            held_out=part == "holdout",
        )

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        return {"loss": jnp.sum(present(batch))}

    def scored(self, model, params: dict, batch: Batch, rng=None) -> jax.Array:
        """Log-probabilities of both answers of each pair, summed over tokens, [B, P, 2]."""
        return self.summed(self.token_log_probs(model, params, batch, rng), batch)

    def summed(self, log_probs: jax.Array, batch: Batch) -> jax.Array:
        """Sums of log-probabilities [B, T] over the tokens of each answer, [B, P, 2]."""
        return preference.per_answer(log_probs * batch.weights, batch.segments)

    def token_log_probs(self, model, params: dict, batch: Batch, rng=None) -> jax.Array:
        """Log-probabilities of the targets, float32 [B, T]."""
        rngs = None if rng is None else {"dropout": rng}
        hidden = model.apply({"params": params}, batch, method="hidden", rngs=rngs).hidden
        logits, head = head_of(model, params)
        chunk = self.chunk or chunks.chunk_length(*batch.tokens.shape, model.config.vocab_size)
        return log_probs(logits, head, hidden, batch.targets, chunk)[0]

    def shown(self, row, spelled, names) -> Shown:
        segments, weights = np.asarray(row["segments"]), np.asarray(row["weights"])
        tokens = np.asarray(row["tokens" if self.whole else "targets"])
        said = [
            spelled(tokens[(segments == i) & (weights > 0)])
            for i in range(1, int(segments.max(initial=0)) + 1)
        ]
        pairs = zip(said[::2], said[1::2], strict=True)
        return Shown(said="; ".join(f"prefer {a!r} to {b!r}" for a, b in pairs))


def lengths(batch: Batch) -> jax.Array:
    """Number of tokens of each answer, float32 [B, P, 2]."""
    return preference.per_answer(batch.weights, batch.segments)


def present(batch: Batch) -> jax.Array:
    """1 for every pair that a row has, float32 [B, P]."""
    return (lengths(batch) > 0).all(axis=-1).astype(jnp.float32)


def measured(
    scores: jax.Array, rewards: jax.Array, sizes: jax.Array, real: jax.Array
) -> dict[str, jax.Array]:
    """Metrics of pairs, as sums. scores: log-probabilities; rewards, sizes: all [B, P, 2]."""
    both = {"logp": scores, "reward": rewards, "tokens": sizes}
    found = {
        f"{name}_{side}": jnp.sum(real * values[..., at])
        for name, values in both.items()
        for at, side in enumerate(("chosen", "rejected"))
    }
    margin = rewards[..., 0] - rewards[..., 1]
    # equal rewards, as at the start of DPO, are right by half
    right = jnp.where(margin == 0, 0.5, margin > 0)
    return found | {"margin": jnp.sum(real * margin), "accuracy": jnp.sum(real * right)}


@dataclasses.dataclass(frozen=True)
class Referenced(Pairs):
    """Base class of tasks that compare the policy with a frozen reference."""

    # Model that the policy is compared with: "same" = as the run starts; or a run folder, model
    # folder or hub id with the same tokenizer.
    reference: str = "same"
    # Compute the reference's log-probabilities once, before the first step, and cache them in
    # data.cache; the reference is then not in memory during training.
    cache_reference: bool = False

    new_fields: ClassVar[Mapping[str, Field]] = {"reference_log_probs": Field(TEXT, np.float32)}

    def check(self, config) -> None:
        super().check(config)
        if not self.reference:
            raise ConfigError("task.reference='': expected 'same', a run or model folder, or an id")

    def aux(self, model: ModelConfig) -> dict[str, Aux]:
        return {"reference": Aux(self.reference, heads=self.heads, stored=self.cache_reference)}

    def fields(self, length: int, model: ModelConfig) -> dict[str, tuple[int, ...]]:
        row = (self.target_length or length,)
        return {"reference_log_probs": row} if self.cache_reference else {}

    def stored(self, models: Models, batch: Batch) -> dict[str, jax.Array]:
        one = models["reference"]
        return {"reference_log_probs": self.token_log_probs(one.model, one.params, batch)}

    def reference_scores(self, models: Models, batch: Batch) -> jax.Array:
        """As `scored`, of the reference."""
        if self.cache_reference:
            more: Any = batch.more
            return self.summed(more["reference_log_probs"], batch)
        return self.scored(models["reference"].model, models["reference"].params, batch)


@dataclasses.dataclass(frozen=True)
class DPO(Referenced):
    """Raise the log-ratio of chosen answers to a reference, relative to rejected ones."""

    kind: str = "sigmoid"  # of the loss: sigmoid (DPO), ipo, hinge
    beta: float = 0.1  # strength of the pull to the reference; about 5 if length_normalised
    label_smoothing: float = 0.0  # probability that a pair is the wrong way round (cDPO)
    length_normalised: bool = False  # log-ratios per token

    by_row: ClassVar[bool] = True

    def check(self, config) -> None:
        super().check(config)
        _check_known("kind", self.kind)
        check_positive("beta", self.beta)
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(
                f"task.label_smoothing={self.label_smoothing}: expected a probability from 0 to "
                "less than 0.5"
            )

    def loss(
        self,
        model,
        params: dict,
        batch: Batch,
        rng: jax.Array | None = None,
        *,
        models: Models = {},  # noqa: B006 never changed
    ) -> Loss:
        scores = self.scored(model, params, batch, rng)
        ratios = scores - self.reference_scores(models, batch)
        sizes, real = lengths(batch), present(batch)
        if self.length_normalised:
            ratios /= jnp.maximum(sizes, 1)
        margin = ratios[..., 0] - ratios[..., 1]
        found = preference.preferred(margin, self.kind, self.beta, self.label_smoothing)
        metrics = measured(scores, self.beta * ratios, sizes, real)
        return Loss.of(jnp.sum(real * found), jnp.sum(real), **metrics)


@dataclasses.dataclass(frozen=True)
class SimPO(Pairs):
    """Raise the mean log-probability of chosen answers above that of rejected ones by a margin."""

    beta: float = 2.0  # factor of the mean log-probabilities
    gamma: float = 1.0  # margin by which the chosen answer's reward is to be higher

    by_row: ClassVar[bool] = True

    def check(self, config) -> None:
        super().check(config)
        check_positive("beta", self.beta)
        if not 0 <= self.gamma < math.inf:
            raise ConfigError(f"task.gamma={self.gamma}: expected a finite number, 0 or more")

    def loss(self, model, params: dict, batch: Batch, rng: jax.Array | None = None) -> Loss:
        scores, sizes, real = self.scored(model, params, batch, rng), lengths(batch), present(batch)
        rewards = self.beta * scores / jnp.maximum(sizes, 1)
        margin = rewards[..., 0] - rewards[..., 1] - self.gamma
        found = preference.preferred(margin, "sigmoid", 1.0)
        return Loss.of(
            jnp.sum(real * found), jnp.sum(real), **measured(scores, rewards, sizes, real)
        )


@dataclasses.dataclass(frozen=True)
class ORPO(Pairs):
    """Learn chosen answers, with a penalty on the odds of rejected ones."""

    odds_weight: float = 0.1  # lambda, the factor of the loss of the odds

    terms: ClassVar[tuple[str, ...]] = ("chosen", "odds")
    by_row: ClassVar[bool] = True

    @property
    def coefficients(self) -> Mapping[str, float]:
        return {"odds": self.odds_weight}

    def check(self, config) -> None:
        super().check(config)
        check_positive("odds_weight", self.odds_weight)

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        real = present(batch)
        return {"chosen": jnp.sum(real * lengths(batch)[..., 0]), "odds": jnp.sum(real)}

    def loss(self, model, params: dict, batch: Batch, rng: jax.Array | None = None) -> Loss:
        scores, sizes, real = self.scored(model, params, batch, rng), lengths(batch), present(batch)
        mean = scores / jnp.maximum(sizes, 1)
        odds = preference.log_odds(mean)
        ratio = odds[..., 0] - odds[..., 1]
        pairs = jnp.sum(real)
        found = measured(scores, self.odds_weight * mean, sizes, real)
        metrics: dict[str, Any] = {name: Term(x, pairs) for name, x in found.items()}
        return Loss(
            {
                "chosen": Term(-jnp.sum(real * scores[..., 0]), jnp.sum(real * sizes[..., 0])),
                "odds": Term(jnp.sum(real * jax.nn.softplus(-ratio)), pairs),
            },
            metrics,
        )


def check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigError(f"task.{name}={value}: expected a finite number above 0")


def _check_known(name: str, value: str) -> None:
    known = preference.KINDS
    if value not in known:
        raise ConfigError(
            f"task.{name}={value!r}{nearest(value, known)}: expected one of {', '.join(known)}"
        )
