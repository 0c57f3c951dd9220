"""How the next token is chosen from its logits. A sampler is a hashable value, so that it can be compiled in."""

import dataclasses
import math

import jax
import jax.numpy as jnp

CANDIDATES = 1024  # top-p looks at no more than these: a full sort of the vocabulary is far slower


@dataclasses.dataclass(frozen=True)
class Greedy:
    """The most probable token, after a repetition penalty (1 = none; see `penalize`)."""

    repetition_penalty: float = 1.0

    def __post_init__(self):
        _check_penalty(self.repetition_penalty)

    def __call__(
        self, logits_BV: jax.Array, key: jax.Array, seen_BV: jax.Array | None = None
    ) -> jax.Array:
        """float32 [B, V] -> int32 [B]. seen bool [B, V], the tokens so far: for a repetition penalty, which needs it."""
        del key
        return jnp.argmax(penalize(logits_BV, seen_BV, self.repetition_penalty), axis=-1).astype(
            jnp.int32
        )


@dataclasses.dataclass(frozen=True)
class Sample:
    """Sampling with temperature, among the `top_k` best (0 = all), of those the smallest set of probability `top_p`
    (Holtzman et al. 2020, section 3.1; taken over the 1,024 best tokens), and of those the ones that are at least `min_p` times as
    probable as the best (Nguyen et al. 2024, section 3), in this order; before them all, a repetition penalty (see `penalize`).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature={self.temperature}: expected a number above 0 (for the best token use Greedy)"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: expected 0 (all tokens) or a count")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: expected a probability in (0, 1]")
        if not 0 <= self.min_p <= 1:
            raise ValueError(
                f"min_p={self.min_p}: expected a share of the best token's probability, in [0, 1]"
            )
        _check_penalty(self.repetition_penalty)

    def __call__(
        self, logits_BV: jax.Array, key: jax.Array, seen_BV: jax.Array | None = None
    ) -> jax.Array:
        """float32 [B, V] -> int32 [B]. seen bool [B, V], the tokens so far: for a repetition penalty, which needs it."""
        logits_BK, tokens_BK = self.candidates(logits_BV, seen_BV)
        choice = jax.random.categorical(key, logits_BK)
        return jnp.take_along_axis(tokens_BK, choice[:, None], axis=-1)[:, 0]

    def candidates(
        self, logits_BV: jax.Array, seen_BV: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """What is drawn from: float32 logits [B, K], -inf where a token is left out, and int32 tokens [B, K]; K <= V."""
        logits = penalize(logits_BV, seen_BV, self.repetition_penalty) / self.temperature
        vocabulary = logits.shape[-1]
        kept = min(
            self.top_k or vocabulary, CANDIDATES if self.top_p < 1.0 else vocabulary, vocabulary
        )
        if kept == vocabulary and self.top_p == 1.0:
            best, tokens = logits, jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        else:
            best, tokens = jax.lax.top_k(logits, kept)
        if self.top_p < 1.0:
            # Of the distribution that top_k leaves, keep a token while those before it hold less than top_p.
            total = jax.nn.logsumexp(best if self.top_k else logits, axis=-1, keepdims=True)
            probabilities = jnp.exp(best - total)
            best = jnp.where(
                jnp.cumsum(probabilities, axis=-1) - probabilities < self.top_p, best, -jnp.inf
            )
        if self.min_p > 0.0:
            best = jnp.where(
                best >= best.max(axis=-1, keepdims=True) + math.log(self.min_p), best, -jnp.inf
            )
        return best, tokens.astype(jnp.int32)


def penalize(logits_BV: jax.Array, seen_BV: jax.Array | None, penalty: float) -> jax.Array:
    """Logits of tokens that were there before, divided by the penalty if positive and multiplied by it if negative
    (Keskar et al. 2019, CTRL, section 4.1, with the sign minded as transformers does). float32 [B, V], seen bool [B, V].

    Raises ValueError when there is a penalty (not 1) but no `seen`.
    """
    if penalty == 1.0:
        return logits_BV
    if seen_BV is None:
        raise ValueError(
            f"repetition_penalty={penalty} needs the tokens so far: pass seen, bool [B, V]"
        )
    return jnp.where(
        seen_BV, jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty), logits_BV
    )


def _check_penalty(penalty: float) -> None:
    if not 0 < penalty < math.inf:
        raise ValueError(
            f"repetition_penalty={penalty}: expected a number above 0; 1 is none, above 1 discourages repetition"
        )
