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
    """Parameters of matrix products, by part, each counted as often as a token meets it (shared layers `n_layers` times)."""
    attention = c.d_model * c.head_dim * 2 * (c.n_heads + c.n_kv_heads)
    mlp = c.d_model * c.d_ff * (3 if c.gated_mlp else 2)
    width = c.embedding_width or c.d_model
    head = {"none": 0, "causal_lm": c.vocab_size * width, "masked_lm": c.vocab_size * width + c.d_model * width}[c.head]
    return {"attention": c.n_layers * attention, "mlp": c.n_layers * mlp, "head": head, "projection": c.embedding_width * c.d_model}


def forward_per_token(c: ModelConfig, length: int) -> float:
    """Operations of a forward pass for each token of a row of `length`: two per parameter of a matrix product, and attention.

    Causal attention counts the half of the scores that is needed; rematerialisation and packing do not count.
    """
    kinds = c.layer_pattern or ("local" if c.sliding_window else "global",)
    seen = {"global": length * (0.5 if c.causal else 1.0)}
    seen["local"] = min(seen["global"], c.sliding_window * (1 if c.causal else 2))
    return 2 * sum(parameters(c).values()) + 4 * c.n_heads * c.head_dim * sum(seen[kinds[i % len(kinds)]] for i in range(c.n_layers))


def train_per_token(c: ModelConfig, length: int) -> float:
    """Operations of forward and backward passes for each token: three times the forward pass."""
    return 3 * forward_per_token(c, length)


def utilisation(c: ModelConfig, length: int, tokens_per_second: float, devices: int) -> float | None:
    """MFU: the share of the devices' peak that the model's own operations use; None where the peak is not known."""
    best = peak()
    return None if best is None else tokens_per_second * train_per_token(c, length) / (best * devices)
