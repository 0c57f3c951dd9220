"""Loss: what every objective returns. Sums, never means, so that accumulation, data parallelism and packing are exact."""

import flax.struct
import jax


@flax.struct.dataclass
class Loss:
    """sum: float32 scalar, the weighted sum of losses in nats.   weight: float32 scalar, the sum of weights; the loss is sum / weight.

    metrics: further float32 scalars, each a weighted sum over the same weights; reported divided by `weight`.
    """

    sum: jax.Array
    weight: jax.Array
    metrics: dict[str, jax.Array]
