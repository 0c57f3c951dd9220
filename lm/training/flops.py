"""Floating-point operations of a model, and of the devices it could have had: the two sides of MFU (Chowdhery et al. 2022, appendix B)."""

import jax

from lm.models.config import ModelConfig

# Peak dense bfloat16 FLOP/s of one device, by a part of JAX's device_kind; the first that is found counts.
PEAKS = (
    ("TPU v6", 918e12),
    ("TPU v5p", 459e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
)


def peak(device=None) -> float | None:
    """Peak dense bfloat16 FLOP/s of a device, or None where it is not known (every CPU)."""
    kind = (jax.devices()[0] if device is None else device).device_kind
    return next((flops for part, flops in PEAKS if part.lower() in kind.lower()), None)


def parameters(c: ModelConfig) -> dict[str, int]:
    """Parameters that take part in matrix products, by part, and those that are only looked up or added."""
    attention = c.d_model * c.head_dim * 2 * (c.n_heads + c.n_kv_heads)
    mlp = c.d_model * c.d_ff * (3 if c.gated_mlp else 2)
    head = {"none": 0, "causal_lm": c.vocab_size * c.d_model, "masked_lm": c.vocab_size * c.d_model + c.d_model**2}[c.head]
    return {"attention": c.n_layers * attention, "mlp": c.n_layers * mlp, "head": head}


def forward_per_token(c: ModelConfig, length: int) -> float:
    """Operations of a forward pass for each token of a row of `length`: two per parameter of a matrix product, and attention.

    Causal attention counts the half of the scores that is needed; rematerialisation and packing do not count.
    """
    seen = min(length, c.sliding_window) if c.sliding_window else length
    scores = 4 * c.n_layers * c.n_heads * c.head_dim * seen * (0.5 if c.causal and not c.sliding_window else 1.0)
    return 2 * sum(parameters(c).values()) + scores


def train_per_token(c: ModelConfig, length: int) -> float:
    """Operations of forward and backward passes for each token: three times the forward pass."""
    return 3 * forward_per_token(c, length)


def utilisation(c: ModelConfig, length: int, tokens_per_second: float, devices: int) -> float | None:
    """MFU: the share of the devices' peak that the model's own operations use; None where the peak is not known."""
    best = peak()
    return None if best is None else tokens_per_second * train_per_token(c, length) / (best * devices)
