"""AdamW with linear warm-up, cosine decay and clipping by the global norm."""

import re

import jax
import jax.numpy as jnp
import optax

from lm.models.config import ConfigError
from lm.training.sharding import path_name

# The first pattern found in a parameter's path decides its share of the weight decay.
DECAY = ((r"norm[/_]|bias$|a_log$|skip$", 0.0), (r".", 1.0))


def learning_rate(peak: float, warmup: int, steps: int, final: float) -> optax.Schedule:
    """0 -> `peak` over `warmup` updates, then half a cosine down to `final * peak` at update `steps` (Loshchilov & Hutter 2017)."""

    def schedule(count):
        count = jnp.asarray(count, jnp.float32)
        # The first update already moves: its rate is peak / warmup, not 0.
        rising = (count + 1) / max(1, warmup)
        progress = jnp.clip((count - warmup) / max(1, steps - warmup), 0.0, 1.0)
        falling = final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return peak * jnp.where(count < warmup, rising, falling)

    return schedule


def decay_mask(params, rules=DECAY):
    """The share of weight decay of each parameter, a tree of floats like params.

    Raises ConfigError when a parameter matches no pattern.
    """

    def share(path, _):
        name = path_name(path)
        for pattern, value in rules:
            if re.search(pattern, name):
                return float(value)
        raise ConfigError(f"optimizer.decay has no pattern for parameter {name}; end the list with ('.', share)")

    return jax.tree_util.tree_map_with_path(share, params)


def adamw(
    schedule: optax.Schedule, *, b1: float = 0.9, b2: float = 0.95, eps: float = 1e-8,
    weight_decay: float = 0.1, clip: float = 1.0, decay=DECAY,
) -> optax.GradientTransformation:  # fmt: skip
    """AdamW (Loshchilov & Hutter 2019) with moments in float32; `clip` bounds the gradient's global norm, 0 leaves it."""

    def decayed(updates, state, params=None):
        shares = decay_mask(params, decay)
        return jax.tree.map(lambda u, p, share: u + weight_decay * share * p.astype(u.dtype), updates, params, shares), state

    def init(params):
        decay_mask(params, decay)
        return optax.EmptyState()

    return optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.scale_by_adam(b1, b2, eps, mu_dtype=jnp.float32),
        optax.GradientTransformation(init, decayed),
        optax.scale_by_learning_rate(schedule),
    )
