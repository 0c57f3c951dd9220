"""Samplers: choose the next token from its logits.

A sampler is a hashable value, so that it can be a static argument of a compiled function. It is
called with the logits, keys and, if it has a repetition penalty, the tokens seen so far. The
engine calls `choose` where there is one, and else knows no behaviour log-probability.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

# top-p considers only the best CANDIDATES tokens: sorting the whole vocabulary is far slower
CANDIDATES = 1024


@dataclasses.dataclass(frozen=True)
class Greedy:
    """Take the most probable token after a repetition penalty (1 = none; see `penalize`)."""

    repetition_penalty: float = 1.0

    def __post_init__(self):
        _check_penalty(self.repetition_penalty)

    def __call__(self, logits_BV, keys, seen_BV=None) -> jax.Array:
        """Map float32 [B, V] to int32 [B]; see `choose`."""
        return self.choose(logits_BV, keys, seen_BV)[0]

    def choose(self, logits_BV, keys, seen_BV=None) -> tuple[jax.Array, jax.Array]:
        """Return tokens int32 [B] and log-probabilities float32 [B] after the penalty.

        seen: bool [B, V], the tokens so far, required by a repetition penalty.
        """
        del keys
        logits = penalize(logits_BV, seen_BV, self.repetition_penalty)
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return tokens, log_probability(logits, tokens)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Sample with temperature after these filters, in this order.

    * repetition_penalty: see `penalize`.
    * top_k: the `top_k` best tokens (0 = all).
    * top_p: the smallest set of probability `top_p` (Holtzman et al. 2020, section 3.1), taken over
      the 1,024 best tokens.
    * min_p: tokens at least `min_p` times as probable as the best (Nguyen et al. 2024, section 3).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature={self.temperature}: expected a number above 0 (for the best token "
                "use Greedy)"
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

    def __call__(self, logits_BV, keys, seen_BV=None) -> jax.Array:
        """Map float32 [B, V] to int32 [B]; see `choose`."""
        return self.choose(logits_BV, keys, seen_BV)[0]

    def choose(self, logits_BV, keys, seen_BV=None) -> tuple[jax.Array, jax.Array]:
        """Return tokens int32 [B] and the log-probabilities float32 [B] they were drawn with.

        keys: one key for every row [B], or one for all. seen: bool [B, V], the tokens so far,
        required by a repetition penalty.
        """
        logits_BK, tokens_BK = self.candidates(logits_BV, seen_BV)
        draw = jax.vmap(jax.random.categorical) if keys.ndim else jax.random.categorical
        choice = draw(keys, logits_BK)
        tokens = jnp.take_along_axis(tokens_BK, choice[:, None], axis=-1)[:, 0]
        return tokens, log_probability(logits_BK, choice)

    def candidates(
        self, logits_BV: jax.Array, seen_BV: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Return the candidates' float32 logits [B, K] and int32 tokens [B, K], K <= V.

        The logits of filtered tokens are -inf.
        """
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
            # In the distribution that top_k leaves, keep a token while those before it hold less
            # than top_p.
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


def log_probability(logits_BV: jax.Array, tokens_B: jax.Array) -> jax.Array:
    """Log-softmax of the logits at one token a row, float32 [B]."""
    chosen = jnp.take_along_axis(logits_BV, tokens_B[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits_BV, axis=-1)


def penalize(logits_BV: jax.Array, seen_BV: jax.Array | None, penalty: float) -> jax.Array:
    """Penalise tokens that occurred before (Keskar et al. 2019, CTRL, section 4.1).

    Positive logits are divided by the penalty and negative ones multiplied by it, as in
    transformers. float32 [B, V], seen bool [B, V]. Raises ValueError for a penalty other than 1
    without `seen`.
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
            f"repetition_penalty={penalty}: expected a number above 0; 1 is none, "
            "above 1 discourages repetition"
        )
