"""Loss: the result of every task's loss function.

It holds sums and weights, never means, so that accumulation, data parallelism and packing are
exact.
"""

import flax.struct
import jax


@flax.struct.dataclass
class Term:
    """Weighted sum of losses in nats, and the sum of their weights. Both are float32 scalars."""

    sum: jax.Array
    weight: jax.Array


@flax.struct.dataclass
class Loss:
    """Named terms of a loss, and further metrics.

    metrics: each a sum over the weights of the first term, or a Term with its own. The loss is the
    sum over the terms of coefficient * sum / weight, where sums and weights are those of the whole
    batch (`Task.coefficients`; 1 by default).
    """

    terms: dict[str, Term]
    metrics: dict[str, jax.Array | Term]

    @classmethod
    def of(cls, sum: jax.Array, weight: jax.Array, **metrics: jax.Array) -> "Loss":
        """Loss of one term. metrics: sums over the same weights."""
        return cls({"loss": Term(sum, weight)}, dict(metrics))

    @property
    def first(self) -> Term:
        """The first term; for most tasks the only one."""
        return next(iter(self.terms.values()))
