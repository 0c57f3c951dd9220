"""Llama (Touvron et al. 2023) and the families of its shape: Mistral, Qwen2 and Qwen3.

Mistral adds a sliding window, Qwen2 biases, and Qwen3 norms of queries and keys.
"""

from typing import Any

from lm.families import heads
from lm.families.family import (
    Family,
    activation,
    expect,
    head,
    special_tokens,
    special_tokens_to_hf,
    their_activation,
    value,
)
from lm.families.rotary import layer_types, rope, rope_to_hf, windows
from lm.families.table import dense, interleaved, linear, norm, row, table
from lm.models.config import ModelConfig

WEIGHTS = table(
    row("embeddings/token", "model.embed_tokens.weight"),
    norm("layers/attention_norm", "model.layers.{i}.input_layernorm"),
    dense("layers/attention/query", "model.layers.{i}.self_attn.q_proj"),
    dense("layers/attention/key", "model.layers.{i}.self_attn.k_proj"),
    dense("layers/attention/value", "model.layers.{i}.self_attn.v_proj"),
    dense("layers/attention/out", "model.layers.{i}.self_attn.o_proj", inputs=2),
    norm("layers/attention/query_norm", "model.layers.{i}.self_attn.q_norm"),
    norm("layers/attention/key_norm", "model.layers.{i}.self_attn.k_norm"),
    norm("layers/mlp_norm", "model.layers.{i}.post_attention_layernorm"),
    dense("layers/mlp/gate", "model.layers.{i}.mlp.gate_proj"),
    dense("layers/mlp/up", "model.layers.{i}.mlp.up_proj"),
    dense("layers/mlp/down", "model.layers.{i}.mlp.down_proj"),
    norm("final_norm", "model.norm"),
    row("head/table", "lm_head.weight"),
)

GGUF_WEIGHTS = table(
    row("embeddings/token", "token_embd.weight"),
    norm("layers/attention_norm", "blk.{i}.attn_norm"),
    row("layers/attention/query", "blk.{i}.attn_q.weight", interleaved()),
    row("layers/attention/key", "blk.{i}.attn_k.weight", interleaved()),
    row("layers/attention/value", "blk.{i}.attn_v.weight", linear()),
    row("layers/attention/out", "blk.{i}.attn_output.weight", linear(inputs=2)),
    norm("layers/mlp_norm", "blk.{i}.ffn_norm"),
    row("layers/mlp/gate", "blk.{i}.ffn_gate.weight", linear()),
    row("layers/mlp/up", "blk.{i}.ffn_up.weight", linear()),
    row("layers/mlp/down", "blk.{i}.ffn_down.weight", linear()),
    norm("final_norm", "output_norm"),
    row("head/table", "output.weight"),
)


# prefix of the model's tensor names in question-answering classes
SPANS = {
    "llama": "transformer.",
    "qwen2": "transformer.",
    "qwen3": "transformer.",
    "mistral": "model.",
}


def stem(model_type: str) -> str:
    return {"stablelm": "StableLm"}.get(model_type, model_type.capitalize())


def architectures(model_type: str) -> dict[str, str]:
    return {f"{stem(model_type)}ForCausalLM": "causal_lm", f"{stem(model_type)}Model": "none"}


def fields(
    hf: dict,
    *,
    kv_heads: int | None = None,
    fraction: float | None = None,
    act: tuple[str, str] = ("hidden_act", "silu"),
) -> dict[str, Any]:
    """Fields of ModelConfig whose config.json fields are the same in every family of Llama's shape.

    kv_heads: the family's default number; None = one per head. fraction: see `rope`. act: name of
    the activation field, and its default.
    """
    expect(hf, num_local_experts=0, num_experts=0)
    d_model, n_heads = value(hf, "hidden_size"), value(hf, "num_attention_heads")
    return dict(
        family=hf["model_type"],
        vocab_size=value(hf, "vocab_size"),
        d_model=d_model,
        n_layers=value(hf, "num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=hf.get("num_key_value_heads") or kv_heads or n_heads,
        head_dim=hf.get("head_dim") or d_model // n_heads,
        d_ff=value(hf, "intermediate_size"),
        max_length=value(hf, "max_position_embeddings"),
        norm_eps=hf.get("rms_norm_eps", 1e-6),
        activation=activation(hf, *act),
        head=head(hf, architectures(hf["model_type"])),
        tie_embeddings=hf.get("tie_word_embeddings", False),
        initializer_range=hf.get("initializer_range", 0.02),
        **rope(hf, fraction),
        **special_tokens(hf),
    )


def fields_to_hf(c: ModelConfig) -> dict[str, Any]:
    """Inverse of `fields`."""
    return dict(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads,
        head_dim=c.head_dim,
        intermediate_size=c.d_ff,
        max_position_embeddings=c.max_length,
        rms_norm_eps=c.norm_eps,
        hidden_act=their_activation(c.activation),
        tie_word_embeddings=c.tie_embeddings,
        initializer_range=c.initializer_range,
        **rope_to_hf(c),
        **special_tokens_to_hf(c),
    )


def llama_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig."""
    bias = bool(hf.get("attention_bias"))
    return ModelConfig(
        **fields(hf), qkv_bias=bias, out_bias=bias, mlp_bias=bool(hf.get("mlp_bias"))
    )


def llama_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    return fields_to_hf(c) | dict(attention_bias=c.qkv_bias, mlp_bias=c.mlp_bias)


def mistral_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig; all layers are windowed, or none."""
    window = windows(
        {**hf, "layer_types": None},
        hf.get("sliding_window"),
        ["sliding_attention"] * value(hf, "num_hidden_layers"),
    )
    return ModelConfig(**fields(hf, kv_heads=8), **window)


def mistral_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    return fields_to_hf(c) | dict(sliding_window=c.sliding_window or None)


def qwen_from_hf(hf: dict) -> ModelConfig:
    """Convert the config.json of Qwen2 (biases) or Qwen3 (q/k norms) to a ModelConfig.

    Layers from `max_window_layers` on are windowed.
    """
    two, layers = hf["model_type"] == "qwen2", value(hf, "num_hidden_layers")
    bias, full = (
        bool(hf.get("attention_bias")) and not two,
        min(layers, hf.get("max_window_layers", 28)),
    )
    size = hf.get("sliding_window", 4096) if hf.get("use_sliding_window") else None
    kinds = ["full_attention"] * full + ["sliding_attention"] * (layers - full)
    common = fields({**({} if two else {"head_dim": 128}), **hf})
    return ModelConfig(
        **common,
        **windows(hf, size, kinds),
        qkv_bias=two or bias,
        out_bias=bias,
        qk_norm="none" if two else "head",
    )


def qwen_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    kinds = layer_types(c)
    hf = dict(
        use_sliding_window=bool(c.sliding_window),
        sliding_window=c.sliding_window or None,
        layer_types=kinds,
    )
    hf["max_window_layers"] = kinds.count("full_attention")
    return fields_to_hf(c) | hf | ({} if c.family == "qwen2" else dict(attention_bias=c.qkv_bias))


TINY = ModelConfig(
    family="llama",
    vocab_size=259,
    d_model=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    d_ff=128,
    max_length=256,
)

SMOLLM2_135M = ModelConfig(
    family="llama",
    vocab_size=49152,
    d_model=576,
    n_layers=30,
    n_heads=9,
    n_kv_heads=3,
    head_dim=64,
    d_ff=1536,
    max_length=8192,
    rope_theta=100_000.0,
    initializer_range=1 / 24,
    bos_token_id=1,
    eos_token_ids=(2,),
    pad_token_id=2,
)


def family(
    model_type: str, presets: dict[str, ModelConfig], from_hf, to_hf, weights=WEIGHTS, gguf_table=()
) -> Family:
    """Build a family of Llama's shape, with Llama's tensor names unless `weights` is given."""
    tokens, spans = "" if model_type == "olmo2" else "score", SPANS.get(model_type)
    labels = heads.of_decoder(
        stem(model_type), tokens=tokens, spans=bool(spans), spans_prefix=spans
    )
    return Family(
        model_type,
        architectures(model_type),
        weights,
        from_hf,
        to_hf,
        presets,
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
        duplicates={"lm_head.weight": "model.embed_tokens.weight"},
        gguf_table=gguf_table,
        labels=labels,
    )


FAMILIES = (
    family(
        "llama",
        {"smollm2_135m": SMOLLM2_135M, "tiny": TINY},
        llama_from_hf,
        llama_to_hf,
        gguf_table=GGUF_WEIGHTS,
    ),
    family(
        "mistral",
        {"tiny": TINY.replace(family="mistral", sliding_window=32, tie_embeddings=False)},
        mistral_from_hf,
        mistral_to_hf,
    ),
    family(
        "qwen2", {"tiny": TINY.replace(family="qwen2", qkv_bias=True)}, qwen_from_hf, qwen_to_hf
    ),
    family(
        "qwen3", {"tiny": TINY.replace(family="qwen3", qk_norm="head")}, qwen_from_hf, qwen_to_hf
    ),
)
