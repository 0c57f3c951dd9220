"""Share: a small network that predicts the memory's part of each token's mixture.

He et al. 2021, "Efficient Nearest Neighbor Language Models", section 4.1. It reads the context
vector alone, so where it predicts a part near 0 nothing needs to be searched.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from retrieval.errors import RetrievalError

WIDTH, STEPS, BATCH, RATE = 64, 400, 512, 1e-3
SPARSITY = 0.02  # coefficient of the mean share in the loss, which lets it fall to 0


@dataclasses.dataclass(frozen=True)
class Share:
    """sigmoid(w2 tanh((x - mean) / scale w1 + b1) + b2). arrays: by these names, float32."""

    arrays: dict

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Predicted shares, float32 [N], of context vectors [N, D]."""
        a = self.arrays
        h = np.tanh((np.asarray(vectors, np.float32) - a["mean"]) / a["scale"] @ a["w1"] + a["b1"])
        return 1 / (1 + np.exp(-(h @ a["w2"] + a["b2"])))

    @classmethod
    def fit(
        cls,
        vectors: np.ndarray,
        own: np.ndarray,
        memory: np.ndarray,
        start: float,
        *,
        sparsity: float = SPARSITY,
        steps: int = STEPS,
        seed: int = 0,
    ) -> "Share":
        """Fit to context vectors [N, D] with log p of the model and of the memory, [N] each.

        start: share at the start, such as the best constant one.
        """
        rng = np.random.default_rng(seed)
        mean, scale = vectors.mean(axis=0), vectors.std(axis=0) + 1e-6
        x = jnp.asarray((vectors - mean) / scale, jnp.float32)
        # log p of both, as far apart as float32 can mix
        log_p = jnp.asarray(np.stack([own, np.maximum(memory, own - 60)], axis=1), jnp.float32)
        start = min(max(start, 0.01), 0.99)
        weights = {
            "w1": rng.normal(size=(x.shape[1], WIDTH)) / np.sqrt(x.shape[1]),
            "b1": np.zeros(WIDTH),
            "w2": np.zeros(WIDTH),
            "b2": np.array(np.log(start / (1 - start))),
        }
        weights = {name: jnp.asarray(value, jnp.float32) for name, value in weights.items()}
        optimizer = optax.adamw(optax.cosine_decay_schedule(RATE, steps), weight_decay=1e-4)

        def loss(w, x, log_p):
            z = jnp.tanh(x @ w["w1"] + w["b1"]) @ w["w2"] + w["b2"]
            parts = jnp.stack([jax.nn.log_sigmoid(-z), jax.nn.log_sigmoid(z)], axis=1)
            mixed = jax.nn.logsumexp(log_p + parts, axis=1)
            return -mixed.mean() + sparsity * jax.nn.sigmoid(z).mean()

        @jax.jit
        def train(w, order):
            def step(carry, rows):
                w, state = carry
                gradient = jax.grad(loss)(w, x[rows], log_p[rows])
                updates, state = optimizer.update(gradient, state, w)
                return (optax.apply_updates(w, updates), state), None

            return jax.lax.scan(step, (w, optimizer.init(w)), order)[0][0]

        order = rng.integers(0, len(x), (steps, min(BATCH, len(x))))
        fitted = jax.device_get(train(weights, jnp.asarray(order)))
        return cls({"mean": mean, "scale": scale} | fitted)

    def save(self, path) -> None:
        with open(path, "wb") as file:
            np.savez(file, **self.arrays)

    @classmethod
    def load(cls, path) -> "Share":
        """Raises RetrievalError for a file that does not hold one."""
        try:
            with np.load(Path(path), allow_pickle=False) as found:
                arrays = {name: found[name] for name in ("mean", "scale", "w1", "b1", "w2", "b2")}
        except (OSError, ValueError, KeyError) as error:
            raise RetrievalError(
                f"{path} holds no predicted share ({error}): tune the datastore again"
            ) from None
        return cls(arrays)
