"""How the next token is chosen from its logits. A sampler is a hashable value, so that it can be compiled in."""

import dataclasses

import jax
import jax.numpy as jnp

CANDIDATES = 1024  # top-p looks at no more than these: a full sort of the vocabulary is far slower


@dataclasses.dataclass(frozen=True)
class Greedy:
    """The most probable token."""

    def __call__(self, logits_BV: jax.Array, key: jax.Array) -> jax.Array:
        """float32 [B, V] -> int32 [B]."""
        del key
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Sampling with temperature, among the `top_k` best (0 = all) and the smallest set of probability `top_p`
    (Holtzman et al. 2020, section 3.1; taken over the 1,024 best tokens).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: expected a number above 0 (for the best token use Greedy)")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: expected 0 (all tokens) or a count")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: expected a probability in (0, 1]")

    def __call__(self, logits_BV: jax.Array, key: jax.Array) -> jax.Array:
        """float32 [B, V] -> int32 [B]."""
        logits_BV = logits_BV / self.temperature
        if not self.top_k and self.top_p == 1.0:
            return jax.random.categorical(key, logits_BV).astype(jnp.int32)
        vocabulary = logits_BV.shape[-1]
        kept = min(self.top_k or CANDIDATES, CANDIDATES if self.top_p < 1.0 else vocabulary, vocabulary)
        best, tokens = jax.lax.top_k(logits_BV, kept)
        if self.top_p < 1.0:
            # Of the distribution that top_k leaves, keep a token while those before it hold less than top_p.
            total = jax.nn.logsumexp(best if self.top_k else logits_BV, axis=-1, keepdims=True)
            probabilities = jnp.exp(best - total)
            best = jnp.where(jnp.cumsum(probabilities, axis=-1) - probabilities < self.top_p, best, -jnp.inf)
        choice = jax.random.categorical(key, best)
        return jnp.take_along_axis(tokens, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)
