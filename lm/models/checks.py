"""Validation of a ModelConfig: unknown values and contradictory fields raise ConfigError."""

import dataclasses
import functools
import math
import numbers
import types
import typing

from lm.errors import ConfigError, nearest

POSITIONS = ("learned", "sinusoidal", "rotary", "relative", "none")
NORMS = ("layernorm", "rmsnorm")
NORM_PLACEMENTS = ("pre", "post", "sandwich", "output")
QK_NORMS = ("none", "head", "projection")
LAYER_KINDS = ("global", "local", "ssm")
ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu", "tanh")
HEADS = (
    "causal_lm",
    "masked_lm",
    "seq2seq_lm",
    "sequence_classification",
    "token_classification",
    "question_answering",
    "replaced_token_detection",
    "value",
    "embedding",
    "none",
)
LM_HEADS = ("causal_lm", "masked_lm", "seq2seq_lm")  # their logits range over the vocabulary
POOLINGS = ("first", "last", "mean")
LAYERS = ("scan", "unrolled", "separate")
REMAT = ("none", "dots", "full")
LLAMA3 = {"factor", "high_freq_factor", "low_freq_factor", "original_max_position_embeddings"}
DTYPES = ("float32", "bfloat16", "float16")


def check(c) -> None:
    """Raise ConfigError for the first field of the ModelConfig `c` that cannot work."""
    for part in (
        _types,
        _values,
        _attention,
        _layers,
        _encoder,
        _ssm,
        _neighbours,
        _head,
        _tokens,
        _signs,
    ):
        part(c)


def _refuse(c, name: str, expected: str) -> None:
    raise ConfigError(f"model.{name}={getattr(c, name)!r}: expected {expected}")


def _count(c, *names: str, least: int = 1) -> None:
    for name in names:
        value = getattr(c, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            _refuse(c, name, "a positive integer" if least else "0 or a positive integer")


NAMES = {bool: "True or False", int: "a whole number", float: "a finite number", str: "a text"}


def _is(value, kind) -> bool:
    """Tell whether a value has an annotated type; an int is a float, a bool is no number."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return any(_is(value, one) for one in inside)
    if origin is tuple and inside[-1] is ...:
        return isinstance(value, tuple) and all(_is(x, inside[0]) for x in value)
    if origin is tuple:
        return (
            isinstance(value, tuple) and len(value) == len(inside) and all(map(_is, value, inside))
        )
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return (
            isinstance(value, number)
            and not isinstance(value, bool)
            and (kind is int or not math.isnan(value))
        )
    return isinstance(value, kind)


@functools.cache
def _hints(kind: type) -> dict:
    return typing.get_type_hints(kind)


def _types(c) -> None:
    """Check that each field has its annotated type."""
    for field in dataclasses.fields(c):
        value, kind = getattr(c, field.name), _hints(type(c))[field.name]
        if not _is(value, kind) or (kind is float and math.isinf(value)):
            each = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
            what = NAMES.get(kind) or (
                f"a tuple, each {NAMES[each]}" if each in NAMES and each is not kind else str(kind)
            )
            _refuse(c, field.name, what.replace("types.NoneType", "None"))
    for name, value in c.rope_scaling:
        if not 0 < value < math.inf:
            raise ConfigError(
                f"model.rope_scaling has {name}={value!r}: expected a finite number above 0"
            )
    names = {name for name, _ in c.rope_scaling}
    if names and names not in ({"factor"}, LLAMA3):
        raise ConfigError(
            f"model.rope_scaling={c.rope_scaling!r}: expected factor alone, "
            f"or {', '.join(sorted(LLAMA3))}"
        )
    limits = c.ssm_dt_limit
    if limits and not (len(limits) == 2 and 0 <= limits[0] <= limits[1]):
        _refuse(c, "ssm_dt_limit", "() or two numbers, the lowest and the highest")


def _signs(c) -> None:
    """Check number signs; runs last, because other checks give more specific messages."""
    for field in dataclasses.fields(c):
        if _hints(type(c))[field.name] in (int, float) and getattr(c, field.name) < 0:
            _refuse(c, field.name, "0 or a positive number")
    for name in ("rope_theta", "logit_scale"):
        if not getattr(c, name) > 0:
            _refuse(c, name, "a positive number")


def _values(c) -> None:
    """Check each field by itself."""
    for name, allowed in (
        ("positions", POSITIONS),
        ("norm", NORMS),
        ("activation", ACTIVATIONS),
        ("head", HEADS),
        ("pooling", POOLINGS),
        ("layers", LAYERS),
        ("remat", REMAT),
        ("dtype", DTYPES),
        ("param_dtype", DTYPES),
        ("norm_placement", NORM_PLACEMENTS),
        ("qk_norm", QK_NORMS),
        ("head_activation", ("", *ACTIVATIONS)),
        ("head_dense", ("", *ACTIVATIONS)),
    ):
        value = getattr(c, name)
        if value not in allowed:
            raise ConfigError(
                f"model.{name}={value!r} is unknown{nearest(str(value), allowed)}; "
                f"one of {', '.join(allowed)}"
            )
    for kind in c.layer_pattern:
        if kind not in LAYER_KINDS:
            raise ConfigError(
                f"model.layer_pattern holds {kind!r}{nearest(str(kind), LAYER_KINDS)}; "
                f"its kinds are {', '.join(LAYER_KINDS)}"
            )
    _count(c, "vocab_size", "d_model", "n_layers", "max_length")
    _count(
        c,
        "d_ff",
        "encoder_layers",
        "encoder_heads",
        "encoder_d_ff",
        "ssm_inner",
        "n_labels",
        "neighbour_width",
        least=0,
    )
    if not 0.0 <= c.dropout < 1.0:
        _refuse(c, "dropout", "a probability in [0, 1)")
    for name, zero in (
        ("sliding_window", "all tokens"),
        ("position_offset", "none"),
        ("embedding_width", "d_model"),
        ("ssm_inner_norm_eps", "none"),
        ("local_rope_theta", "rope_theta"),
        ("score_dim", "head_dim"),
        ("attention_softcap", "none"),
        ("logit_softcap", "none"),
    ):
        if not getattr(c, name) >= 0:
            _refuse(c, name, f"0 ({zero}) or a positive number")


def _attention(c) -> None:
    if set(c.layer_kinds) == {"ssm"} and not c.encoder_layers:
        return
    _count(c, "n_heads", "n_kv_heads", "head_dim")
    if c.n_heads % c.n_kv_heads:
        raise ConfigError(
            f"model.n_heads={c.n_heads} is not a multiple of model.n_kv_heads={c.n_kv_heads}: "
            "every key/value head serves the same number of query heads"
        )
    if c.positions == "rotary" and c.head_dim % 2:
        raise ConfigError(
            f"model.head_dim={c.head_dim} is odd, but rotary positions turn pairs of features: "
            "make it even"
        )
    if c.positions == "rotary" and (
        not 0.0 < c.rotary_fraction <= 1.0 or c.rotary_dim % 2 or not c.rotary_dim
    ):
        raise ConfigError(
            f"model.rotary_fraction={c.rotary_fraction} turns {c.rotary_dim} of "
            f"model.head_dim={c.head_dim} features: "
            "expected a fraction in (0, 1] that makes an even number, as features turn in pairs"
        )
    if c.positions == "sinusoidal" and c.d_model % 2:
        raise ConfigError(
            f"model.d_model={c.d_model} is odd, but sinusoidal positions are sines and cosines in "
            "pairs: make it even"
        )
    if (c.positions == "relative") != bool(c.relative_buckets):
        raise ConfigError(
            f"model.relative_buckets={c.relative_buckets} with model.positions={c.positions!r}: "
            "relative positions need them"
        )
    if c.relative_buckets and (
        c.relative_buckets < 4 or c.relative_max_distance <= c.relative_buckets // 2
    ):
        raise ConfigError(
            f"model.relative_buckets={c.relative_buckets} and "
            f"relative_max_distance={c.relative_max_distance}: "
            "expected at least 4, and a distance above its half, as half of the buckets are for "
            "single distances"
        )
    if c.relative_buckets and c.attention_softcap:
        raise ConfigError("model.attention_softcap does not go with model.positions='relative'")


def _layers(c) -> None:
    """Check the combinations of fields that concern the layers."""
    if len(c.layer_pattern) > c.n_layers:
        raise ConfigError(
            f"model.layer_pattern={c.layer_pattern} is longer than model.n_layers={c.n_layers}: "
            "give as many kinds as it needs"
        )
    if "local" in c.layer_pattern and not c.sliding_window:
        raise ConfigError(
            "model.layer_pattern has local layers, but model.sliding_window=0: "
            "give their window in tokens"
        )
    if c.local_rope_theta and "local" not in c.layer_pattern:
        raise ConfigError(
            f"model.local_rope_theta={c.local_rope_theta} is for the local layers of "
            "model.layer_pattern, which has none"
        )
    if c.parallel_residual and c.norm_placement != "pre":
        raise ConfigError(
            f"model.parallel_residual needs model.norm_placement='pre', not {c.norm_placement!r}: "
            "both mixers read one input"
        )
    if c.parallel_residual and (c.encoder_layers or c.ssm_inner or not c.d_ff):
        raise ConfigError(
            "model.parallel_residual is for attention beside an mlp: no encoder, "
            "no state-space layers, model.d_ff > 0"
        )
    if c.first_norm_on_stream and (
        c.parallel_residual or c.norm_placement not in ("pre", "sandwich")
    ):
        raise ConfigError(
            "model.first_norm_on_stream needs model.parallel_residual=False and "
            "model.norm_placement='pre' or 'sandwich', "
            f"not {c.norm_placement!r}: otherwise no norm comes before the first attention alone"
        )
    if c.shared_layers and c.layers == "separate":
        raise ConfigError(
            "model.layers='separate' cannot separate the layers of model.shared_layers=True: "
            "use scan or unrolled"
        )
    if c.shared_layers and (c.neighbour_layers or set(c.layer_kinds) > {"ssm"}):
        raise ConfigError(
            "model.shared_layers=True needs layers of one shape: no neighbour_layers, "
            "and not some of them state-space layers"
        )


def _encoder(c) -> None:
    if not c.encoder_layers:
        if c.head == "seq2seq_lm":
            raise ConfigError(
                "model.head='seq2seq_lm' needs an encoder: set model.encoder_layers, "
                "or use causal_lm"
            )
        return
    if c.head in ("causal_lm", "masked_lm", "embedding") or not c.causal:
        raise ConfigError(
            f"model.encoder_layers={c.encoder_layers} needs a causal decoder and "
            f"model.head='seq2seq_lm', not {c.head!r}"
        )
    if c.encoder_heads and c.n_heads * c.head_dim % c.encoder_heads:
        raise ConfigError(
            f"model.encoder_heads={c.encoder_heads} does not divide the width of attention, "
            f"{c.n_heads * c.head_dim}"
        )
    if c.ssm_inner or c.layer_pattern or c.shared_layers or c.embedding_width or c.type_vocab_size:
        raise ConfigError(
            "model.encoder_layers goes with layers that are alike: no ssm_inner, layer_pattern, "
            "shared_layers, embedding_width or types"
        )


def _ssm(c) -> None:
    if ("ssm" in c.layer_kinds) != bool(c.ssm_inner):
        raise ConfigError(
            f"model.ssm_inner={c.ssm_inner} with model.layer_pattern={c.layer_pattern}: "
            "state-space layers need a width, others none"
        )
    if not c.ssm_inner:
        return
    if not c.causal:
        raise ConfigError(
            "model.causal=False does not go with state-space layers, which read from left to right"
        )
    _count(c, "ssm_state", "ssm_conv", "ssm_groups")
    if bool(c.ssm_dt_rank) == bool(c.ssm_heads):
        raise ConfigError(
            f"model.ssm_dt_rank={c.ssm_dt_rank} and model.ssm_heads={c.ssm_heads}: "
            "Mamba needs the first, Mamba-2 the second, not both"
        )
    if c.ssm_heads and c.ssm_heads * c.ssm_head_dim != c.ssm_inner:
        raise ConfigError(
            f"model.ssm_heads={c.ssm_heads} times model.ssm_head_dim={c.ssm_head_dim} is not "
            f"model.ssm_inner={c.ssm_inner}; make them equal"
        )
    if c.ssm_heads and c.ssm_heads % c.ssm_groups:
        raise ConfigError(
            f"model.ssm_heads={c.ssm_heads} is not a multiple of model.ssm_groups={c.ssm_groups}: "
            "every group of B and C serves the same number of heads"
        )


def _neighbours(c) -> None:
    outside = [i for i in c.neighbour_layers if not 0 <= i < c.n_layers]
    if outside or len(set(c.neighbour_layers)) < len(c.neighbour_layers):
        _refuse(c, "neighbour_layers", f"different layers from 0 to {c.n_layers - 1}")
    if c.neighbour_layers:
        _count(c, "neighbour_chunk", "n_heads", "head_dim")
        if not c.causal:
            raise ConfigError(
                "model.neighbour_layers needs model.causal=True: a chunk's neighbours are for the "
                "tokens that follow it"
            )


def _head(c) -> None:
    if c.embedding_width and c.head == "causal_lm":
        raise ConfigError(
            f"model.embedding_width={c.embedding_width} needs model.head='masked_lm' or 'none': "
            "no other head projects back"
        )
    if c.head == "causal_lm" and not c.causal:
        raise ConfigError(
            "model.head='causal_lm' needs model.causal=True: a bidirectional model sees the token "
            "it predicts"
        )
    labelled = c.head in ("sequence_classification", "token_classification")
    if labelled != bool(c.n_labels):
        raise ConfigError(
            f"model.n_labels={c.n_labels} with model.head={c.head!r}: classification heads need "
            "labels, others have none"
        )
    if len(c.label_names) not in (0, c.n_labels):
        raise ConfigError(
            f"model.label_names has {len(c.label_names)} names for model.n_labels={c.n_labels}: "
            "give one a label, or none"
        )


def _tokens(c) -> None:
    for name in (
        "bos_token_id",
        "pad_token_id",
        "decoder_start_token_id",
        "forced_bos_token_id",
        "forced_eos_token_id",
    ):
        value = getattr(c, name)
        if value is not None and not 0 <= value < c.vocab_size:
            raise ConfigError(f"model.{name}={value} is outside the vocabulary of {c.vocab_size}")
    for value in c.eos_token_ids:
        if not 0 <= value < c.vocab_size:
            raise ConfigError(
                f"model.eos_token_ids: {value} is outside the vocabulary of {c.vocab_size}"
            )
