"""FLOPs of a model and peak FLOP/s of devices, for MFU (Chowdhery et al. 2022, appendix B)."""

from collections.abc import Iterable

import jax

from lm.models.config import ModelConfig

# Peak dense bfloat16 FLOP/s per device, by part of JAX's device_kind; the first match is used.
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
    """Peak dense bfloat16 FLOP/s of a device; None if unknown (every CPU)."""
    kind = (jax.devices()[0] if device is None else device).device_kind
    return next((flops for part, flops in PEAKS if part.lower() in kind.lower()), None)


def parameters(c: ModelConfig) -> dict[str, int]:
    """Parameters in matrix products per token, by part; shared layers count `n_layers` times.

    Those of an encoder are not included, because it reads other tokens.
    """
    attention = c.d_model * c.head_dim * 2 * (c.n_heads + c.n_kv_heads)
    mlp = c.d_model * c.d_ff * (3 if c.gated_mlp else 2)
    ways = 3 * c.d_model * c.ssm_inner  # in, gate and out projections
    if c.ssm_heads:
        ssm = ways + c.d_model * (2 * c.ssm_groups * c.ssm_state + c.ssm_heads)
    else:
        ssm = ways + c.ssm_inner * 2 * (c.ssm_dt_rank + c.ssm_state)
    states = c.layer_kinds.count("ssm")
    width = c.embedding_width or c.d_model
    head = {
        "masked_lm": (c.vocab_size + c.d_model) * width,
        "causal_lm": c.vocab_size * width,
        "seq2seq_lm": c.vocab_size * width,
    }
    return {
        "attention": (c.n_layers - states) * attention,
        "cross": (c.n_layers if c.encoder_layers else 0) * attention,
        "ssm": states * ssm,
        "mlp": c.n_layers * mlp,
        "head": head.get(c.head, 0),
        "projection": c.embedding_width * c.d_model,
    }


def forward_per_token(c: ModelConfig, length: int) -> float:
    """FLOPs of a forward pass per token of a row of `length`.

    Two per parameter of a matrix product, plus attention and scans. Causal attention counts only
    the needed half of the scores. A state-space layer counts six operations per element of its
    state. Rematerialisation and packing do not count. For an encoder-decoder, `length` is that of
    both rows, and the encoder's FLOPs are included.
    """
    seen = {"global": length * (0.5 if c.causal else 1.0), "ssm": 0}
    seen["local"] = min(seen["global"], c.sliding_window * (1 if c.causal else 2))
    scores = sum(seen[kind] for kind in c.layer_kinds) + (
        c.n_layers * length if c.encoder_layers else 0
    )
    states = 6 * c.ssm_inner * c.ssm_state * c.layer_kinds.count("ssm")
    own = 2 * sum(parameters(c).values()) + 4 * c.n_heads * c.head_dim * scores + states
    return own + (forward_per_token(c.encoder, length) if c.encoder_layers else 0)


def train_per_token(c: ModelConfig, length: int) -> float:
    """FLOPs of forward and backward passes per token: three times the forward pass."""
    return 3 * forward_per_token(c, length)


def train_per_row(c: ModelConfig, length: int, encoder_length: int = 0) -> float:
    """FLOPs of forward and backward passes per row, with its encoder row of `encoder_length`."""
    if not c.encoder_layers or encoder_length == length:
        return length * train_per_token(c, length)
    cross = (
        4 * c.n_layers * c.d_model * c.head_dim * c.n_kv_heads
    )  # keys and values of an encoder token in the decoder
    scores = 4 * c.n_heads * c.head_dim * c.n_layers * (encoder_length - length)
    own = forward_per_token(c, length) - forward_per_token(c.encoder, length) - cross + scores
    return 3 * (
        length * own + encoder_length * (forward_per_token(c.encoder, encoder_length) + cross)
    )


def beside_per_row(models: Iterable, length: int, encoder_length: int = 0) -> float:
    """FLOPs of auxiliary models (lm.training.auxiliary) per row; frozen ones run forward only."""
    return sum(
        train_per_row(one.model.config, length, encoder_length) / (1 if one.trained else 3)
        for one in models
    )


def utilisation(
    c: ModelConfig,
    lengths: tuple[int, int],
    rows_per_second: float,
    devices: int,
    models: Iterable = (),
) -> float | None:
    """MFU: model FLOPs as a share of the devices' peak; None if the peak is unknown.

    lengths: (tokens of a row, tokens of its encoder row; 0 without an encoder). models: auxiliary.
    """
    best = peak()
    each = train_per_row(c, *lengths) + beside_per_row(models, *lengths)
    return None if best is None else rows_per_second * each / (best * devices)
