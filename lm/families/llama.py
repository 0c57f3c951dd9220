"""Llama (Touvron et al. 2023) and what shares its shape: Mistral (sliding window), Qwen2 (bias on query, key and value)."""

from lm.families.family import Family, activation, expect, head, special_tokens, special_tokens_to_hf, their_activation, value
from lm.families.table import dense, interleaved, linear, norm, row, table
from lm.models.config import ConfigError, ModelConfig

ROPE_SCALINGS = {  # rope_type -> the numbers it takes
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "high_freq_factor", "low_freq_factor", "original_max_position_embeddings"),
}

WEIGHTS = table(
    row("embeddings/token", "model.embed_tokens.weight"),
    norm("layers/attention_norm", "model.layers.{i}.input_layernorm"),
    dense("layers/attention/query", "model.layers.{i}.self_attn.q_proj"),
    dense("layers/attention/key", "model.layers.{i}.self_attn.k_proj"),
    dense("layers/attention/value", "model.layers.{i}.self_attn.v_proj"),
    dense("layers/attention/out", "model.layers.{i}.self_attn.o_proj", inputs=2),
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


def architectures(model_type: str) -> dict[str, str]:
    stem = model_type.capitalize()
    return {f"{stem}ForCausalLM": "causal_lm", f"{stem}Model": "none"}


def rope(hf: dict) -> tuple[float, tuple[tuple[str, float], ...]]:
    """rope_theta and our rope_scaling, from `rope_parameters` or the older `rope_theta` and `rope_scaling`."""
    given = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
    theta = given.pop("rope_theta", None) or hf.get("rope_theta") or 10_000.0
    kind, older = given.pop("rope_type", None), given.pop("type", None)
    kind = kind or older or "default"
    expect({**hf, **given}, partial_rotary_factor=1.0)
    if kind not in ROPE_SCALINGS:
        raise ConfigError(f"rope_type={kind!r} is not supported for model_type {hf.get('model_type')!r}; one of {', '.join(ROPE_SCALINGS)}")
    missing = [name for name in ROPE_SCALINGS[kind] if given.get(name) is None]
    if missing:
        raise ConfigError(f"rope_type={kind!r} needs {', '.join(missing)} beside it in config.json's rope parameters")
    return float(theta), tuple((name, float(given[name])) for name in ROPE_SCALINGS[kind])


def window(hf: dict) -> int:
    """The sliding window of every layer in tokens, 0 for none; layers that differ are refused."""
    size = hf.get("sliding_window")
    if hf["model_type"] == "llama" or not size or (hf["model_type"] == "qwen2" and not hf.get("use_sliding_window")):
        return 0
    layers = value(hf, "num_hidden_layers")
    full = min(layers, hf.get("max_window_layers", 28)) if hf["model_type"] == "qwen2" else 0
    kinds = set(hf.get("layer_types") or ["full_attention"] * full + ["sliding_attention"] * (layers - full))
    if len(kinds) > 1:
        raise ConfigError(f"layer_types={sorted(kinds)} mixed in one model is not supported for model_type {hf['model_type']!r}")
    return size if kinds == {"sliding_attention"} else 0


def config_from_hf(hf: dict) -> ModelConfig:
    """config.json -> ModelConfig."""
    model_type = hf["model_type"]
    expect(hf, num_local_experts=0, num_experts=0)
    attention_bias = bool(hf.get("attention_bias")) and model_type == "llama"
    theta, scaling = rope(hf)
    d_model, n_heads = value(hf, "hidden_size"), value(hf, "num_attention_heads")
    return ModelConfig(
        family=model_type, vocab_size=value(hf, "vocab_size"), d_model=d_model, n_layers=value(hf, "num_hidden_layers"),
        n_heads=n_heads, n_kv_heads=hf.get("num_key_value_heads") or (8 if model_type == "mistral" else n_heads),
        head_dim=hf.get("head_dim") or d_model // n_heads, d_ff=value(hf, "intermediate_size"),
        max_length=value(hf, "max_position_embeddings"), rope_theta=theta, rope_scaling=scaling, sliding_window=window(hf),
        norm_eps=hf.get("rms_norm_eps", 1e-6), activation=activation(hf, "hidden_act", "silu"),
        qkv_bias=attention_bias or model_type == "qwen2", out_bias=attention_bias,
        mlp_bias=bool(hf.get("mlp_bias")) and model_type == "llama", head=head(hf, architectures(model_type)),
        tie_embeddings=hf.get("tie_word_embeddings", False), initializer_range=hf.get("initializer_range", 0.02), **special_tokens(hf),
    )  # fmt: skip


def config_to_hf(c: ModelConfig) -> dict:
    """ModelConfig -> config.json."""
    scaling = {name: int(x) if name.startswith("original") else x for name, x in c.rope_scaling}
    hf = dict(
        vocab_size=c.vocab_size, hidden_size=c.d_model, num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads, head_dim=c.head_dim, intermediate_size=c.d_ff, max_position_embeddings=c.max_length,
        rope_theta=c.rope_theta, rope_scaling=None, rms_norm_eps=c.norm_eps, hidden_act=their_activation(c.activation),
        tie_word_embeddings=c.tie_embeddings, initializer_range=c.initializer_range, **special_tokens_to_hf(c),
    )  # fmt: skip
    if scaling:
        hf["rope_scaling"] = {"rope_type": "llama3" if "low_freq_factor" in scaling else "linear", **scaling}
    if c.family == "llama":
        hf |= dict(attention_bias=c.qkv_bias, mlp_bias=c.mlp_bias)
    else:
        hf["sliding_window"] = c.sliding_window or None
    if c.family == "qwen2":
        kind = "sliding_attention" if c.sliding_window else "full_attention"
        hf |= dict(use_sliding_window=bool(c.sliding_window), max_window_layers=0, layer_types=[kind] * c.n_layers)
    return hf


TINY = ModelConfig(
    family="llama", vocab_size=259, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=128, max_length=256,
)  # fmt: skip

SMOLLM2_135M = ModelConfig(
    family="llama", vocab_size=49152, d_model=576, n_layers=30, n_heads=9, n_kv_heads=3, head_dim=64, d_ff=1536, max_length=8192,
    rope_theta=100_000.0, initializer_range=1 / 24, bos_token_id=1, eos_token_ids=(2,), pad_token_id=2,
)  # fmt: skip


def family(model_type: str, presets: dict[str, ModelConfig], gguf_table=()) -> Family:
    return Family(
        model_type, architectures(model_type), WEIGHTS, config_from_hf, config_to_hf, presets, prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",), duplicates={"lm_head.weight": "model.embed_tokens.weight"}, gguf_table=gguf_table,
    )  # fmt: skip


FAMILIES = (
    family("llama", {"smollm2_135m": SMOLLM2_135M, "tiny": TINY}, GGUF_WEIGHTS),
    family("mistral", {"tiny": TINY.replace(family="mistral", sliding_window=32, tie_embeddings=False)}),
    family("qwen2", {"tiny": TINY.replace(family="qwen2", qkv_bias=True)}),
)
