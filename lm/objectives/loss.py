"""Loss: the result of every objective.

It holds sums, never means, so that accumulation, data parallelism and packing are exact.
"""

import flax.struct
import jax


@flax.struct.dataclass
class Loss:
    """Weighted sum of losses in nats, and sum of weights; the loss is sum / weight.

    sum, weight: float32 scalars. metrics: further float32 scalars, each a weighted sum over the
    same weights, reported divided by `weight`.
    """

    sum: jax.Array
    weight: jax.Array
    metrics: dict[str, jax.Array]
