"""T5 (Raffel et al. 2020): an encoder-decoder with relative position biases.

T5 v1.1, Flan-T5, mT5 and UMT5 have gated MLPs and an untied output table. UMT5 (Chung et al. 2023)
has biases in every layer.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

from lm.families import heads
from lm.families.family import (
    Family,
    activation,
    expect,
    head,
    seq2seq_tokens,
    special_tokens,
    special_tokens_to_hf,
    their_activation,
    value,
)
from lm.families.table import Row, dense, linear, norm, row, table
from lm.models.config import ConfigError, ModelConfig

STEMS = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}
BOTH = "encoder/final_norm/scale"  # a path that only encoder-decoders have


def attention(ours: str, theirs: str) -> list[Row]:
    """Rows of the four projections of an attention layer."""
    parts = [dense(f"{ours}/{name}", f"{theirs}.{name[0]}") for name in ("query", "key", "value")]
    return [r for part in parts for r in part] + dense(f"{ours}/out", f"{theirs}.o", inputs=2)


def side(ours: str, theirs: str, mlp: int, given: str = "") -> list[Row]:
    """Rows of an encoder, or of a decoder without its cross-attention.

    mlp: the MLP's index among a layer's sublayers. given: see `Row`.
    """
    block, bias = theirs + "block.{i}.layer.", "SelfAttention.relative_attention_bias.weight"
    dense_mlp, gate = f"{block}{mlp}.DenseReluDense.", f"{ours}layers/mlp/gate"
    rows = [
        *norm(ours + "layers/attention_norm", block + "0.layer_norm"),
        *attention(ours + "layers/attention", block + "0.SelfAttention"),
        row(ours + "layers/attention/relative_bias/table", block + "0." + bias),
        row(ours + "relative_bias/table", theirs + "block.0.layer.0." + bias),
        *norm(ours + "layers/mlp_norm", f"{block}{mlp}.layer_norm"),
        row(gate, dense_mlp + "wi_0.weight", linear()),
        row(ours + "layers/mlp/up", dense_mlp + "wi_1.weight", linear(), given=gate),
        row(ours + "layers/mlp/up", dense_mlp + "wi.weight", linear(), given="!" + gate),
        *dense(ours + "layers/mlp/down", dense_mlp + "wo"),
        *norm(ours + "final_norm", theirs + "final_layer_norm"),
    ]
    return [dataclasses.replace(r, given=f"{given} {r.given}") for r in rows]


WEIGHTS = table(
    row("embeddings/token", "shared.weight"),
    side("encoder/", "encoder.", mlp=1),
    side("", "encoder.", mlp=1, given="!" + BOTH),
    side("", "decoder.", mlp=2, given=BOTH),
    norm("layers/cross_norm", "decoder.block.{i}.layer.1.layer_norm"),
    attention("layers/cross", "decoder.block.{i}.layer.1.EncDecAttention"),
    row("head/table", "lm_head.weight"),
)


def t5(
    *, d_model: int, n_layers: int, n_heads: int, d_ff: int, vocab_size: int, **changes
) -> ModelConfig:
    """Config of a T5 of any size; `changes` are further fields of ModelConfig.

    The encoder has as many layers as the decoder unless `encoder_layers` is given.
    """
    fields: dict[str, Any] = dict(
        family="t5",
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        encoder_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=64,
        d_ff=d_ff,
        max_length=512,
        positions="relative",
        relative_buckets=32,
        relative_max_distance=128,
        score_dim=1.0,
        norm_eps=1e-6,
        activation="relu",
        gated_mlp=False,
        head="seq2seq_lm",
        logit_scale=d_model**-0.5,
        eos_token_ids=(1,),
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    return ModelConfig(**fields | changes)


def v1_1(**changes) -> ModelConfig:
    """Config of a T5 v1.1, Flan-T5, mT5 or UMT5 of any size; takes the arguments of `t5`."""
    own: dict[str, Any] = dict(
        activation="gelu_tanh", gated_mlp=True, tie_embeddings=False, logit_scale=1.0
    )
    return t5(**own | changes)


def feed_forward(hf: dict) -> tuple[str, bool]:
    """Read (activation function, whether the MLP is gated) from feed_forward_proj.

    Examples are "relu" and "gated-gelu", whose gelu is the tanh approximation.
    """
    name = hf.get("feed_forward_proj") or ("relu" if hf["model_type"] == "t5" else "gated-gelu")
    *before, act = name.split("-")
    if before not in ([], ["gated"]):
        raise ConfigError(
            f"feed_forward_proj={name!r} is not supported; an activation function, "
            "or 'gated-' and one"
        )
    act = "gelu_new" if name == "gated-gelu" else act
    expect(hf, is_gated_act=bool(before), dense_act_fn=act)
    return activation(hf | dict(feed_forward_proj=act), "feed_forward_proj", act), bool(before)


def config_from_hf(hf: dict) -> ModelConfig:
    """Convert config.json to a ModelConfig; `with_head` later corrects `tie_embeddings`.

    Logits of tied models are scaled; scale_decoder_outputs is set where this differs. mT5's logits
    are never scaled.
    """
    kind, (act, gated), layers = (
        head(hf, architectures(hf["model_type"])),
        feed_forward(hf),
        value(hf, "num_layers"),
    )
    alone = str((hf.get("architectures") or [""])[0]).endswith("EncoderModel")
    expect(hf, is_decoder=False)
    tied = hf.get("tie_word_embeddings") is not False
    scaled = hf.get("scale_decoder_outputs", tied) and hf["model_type"] != "mt5"
    if alone:
        own: dict[str, Any] = dict(
            n_layers=layers, encoder_layers=0, decoder_start_token_id=None, **special_tokens(hf)
        )
    else:
        own = dict(n_layers=hf.get("num_decoder_layers") or layers, encoder_layers=layers)
        own |= seq2seq_tokens({"decoder_start_token_id": 0} | hf)
    return t5(
        family=hf["model_type"],
        d_model=value(hf, "d_model"),
        n_heads=value(hf, "num_heads"),
        head_dim=value(hf, "d_kv"),
        d_ff=value(hf, "d_ff"),
        vocab_size=value(hf, "vocab_size"),
        max_length=hf.get("n_positions") or 1024,
        relative_buckets=hf.get("relative_attention_num_buckets", 32),
        relative_max_distance=hf.get("relative_attention_max_distance", 128),
        relative_per_layer=hf["model_type"] == "umt5",
        norm_eps=hf.get("layer_norm_epsilon", 1e-6),
        activation=act,
        gated_mlp=gated,
        tie_embeddings=tied,
        logit_scale=value(hf, "d_model") ** -0.5 if scaled else 1.0,
        dropout=hf.get("dropout_rate", 0.1),
        initializer_range=hf.get("initializer_range", 0.02),
        causal=not alone,
        head=kind,
        **own,
    )


def config_to_hf(c: ModelConfig) -> dict:
    """Convert a ModelConfig to config.json."""
    gelu = "gelu" if c.gated_mlp else "gelu_new"
    act, alone = (
        gelu if c.activation == "gelu_tanh" else their_activation(c.activation),
        not c.encoder_layers,
    )
    scaled = c.logit_scale != 1.0
    return dict(
        d_model=c.d_model,
        num_layers=c.encoder_layers or c.n_layers,
        num_decoder_layers=c.n_layers,
        num_heads=c.n_heads,
        d_kv=c.head_dim,
        d_ff=c.d_ff,
        vocab_size=c.vocab_size,
        n_positions=c.max_length,
        relative_attention_num_buckets=c.relative_buckets,
        relative_attention_max_distance=c.relative_max_distance,
        layer_norm_epsilon=c.norm_eps,
        feed_forward_proj="gated-" * c.gated_mlp + act,
        tie_word_embeddings=c.tie_embeddings,
        **({} if scaled == c.tie_embeddings else dict(scale_decoder_outputs=scaled)),
        initializer_range=c.initializer_range,
        dropout_rate=c.dropout,
        is_encoder_decoder=not alone,
        **special_tokens_to_hf(c),
    )


def with_head(c: ModelConfig, names: Collection[str]) -> ModelConfig:
    """Untie the embeddings if the checkpoint has an output table.

    transformers 5 writes tie_word_embeddings=true for every T5, so only the tensor names tell.
    """
    return c.replace(tie_embeddings=c.tie_embeddings and "lm_head.weight" not in names)


def architectures(model_type: str) -> dict[str, str]:
    stem = STEMS[model_type]
    return {
        f"{stem}ForConditionalGeneration": "seq2seq_lm",
        f"{stem}Model": "none",
        f"{stem}EncoderModel": "none",
    }


def family(model_type: str, presets: dict[str, ModelConfig]) -> Family:
    return Family(
        model_type,
        architectures(model_type),
        WEIGHTS,
        config_from_hf,
        config_to_hf,
        presets,
        refine=with_head,
        labels=heads.of_encoder_decoder(
            STEMS[model_type], base=f"{STEMS[model_type]}EncoderModel", prefix="transformer."
        ),
        # unused by the model
        ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
        duplicates={
            f"{side}.embed_tokens.weight": "shared.weight" for side in ("encoder", "decoder")
        },
        stored_copies=False,
        encoder=f"{STEMS[model_type]}EncoderModel",
    )


TINY: dict[str, Any] = dict(
    d_model=64,
    n_layers=2,
    n_heads=4,
    head_dim=16,
    d_ff=128,
    vocab_size=259,
    relative_buckets=16,
    relative_max_distance=64,
)
SMALL: dict[str, Any] = dict(d_model=512, n_layers=8, n_heads=6, d_ff=1024, max_length=1024)

FAMILIES = (
    family(
        "t5",
        {
            "small": t5(d_model=512, n_layers=6, n_heads=8, d_ff=2048, vocab_size=32128),
            "base": t5(d_model=768, n_layers=12, n_heads=12, d_ff=3072, vocab_size=32128),
            # also the shape of Flan-T5
            "v1_1_base": v1_1(d_model=768, n_layers=12, n_heads=12, d_ff=2048, vocab_size=32128),
            "tiny": t5(**TINY),
        },
    ),
    family(
        "mt5",
        {
            "small": v1_1(family="mt5", **SMALL, vocab_size=250112),
            "tiny": v1_1(family="mt5", **TINY),
        },
    ),
    family(
        "umt5",
        {
            "small": v1_1(family="umt5", **SMALL, vocab_size=256384, relative_per_layer=True),
            "tiny": v1_1(family="umt5", **TINY, relative_per_layer=True),
        },
    ),
)
