"""Model invariance: packing, masks, caches, stacks and precision do not change a document."""

import dataclasses
import functools
import json
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm.models.block import Block
from lm.models.model import laid_out
from tests.lm.small_models import drawn

MAMBA = dict(n_heads=0, n_kv_heads=0, head_dim=0, d_ff=0, positions="none")
CONFIGS = {
    "llama": dict(n_kv_heads=2),
    "llama-window": dict(n_kv_heads=1, sliding_window=5, tie_embeddings=False),
    "llama3-scaling": dict(
        n_kv_heads=2,
        rope_scaling=(
            ("factor", 8.0),
            ("high_freq_factor", 4.0),
            ("low_freq_factor", 1.0),
            ("original_max_position_embeddings", 16.0),
        ),
    ),
    "gpt2": dict(
        positions="learned",
        norm="layernorm",
        activation="gelu_tanh",
        gated_mlp=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
    ),
    "bert": dict(
        causal=False,
        positions="learned",
        norm="layernorm",
        norm_placement="post",
        activation="gelu",
        gated_mlp=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        type_vocab_size=2,
        embedding_norm=True,
        final_norm=False,
        head="masked_lm",
        pooler=True,
    ),
    "neox": dict(
        rotary_fraction=0.5,
        parallel_residual=True,
        norm="layernorm",
        gated_mlp=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tie_embeddings=False,
    ),
    "olmo2": dict(n_kv_heads=2, qk_norm="projection", norm_placement="output"),
    "gemma2": dict(
        n_kv_heads=2,
        layer_pattern=("local", "global"),
        sliding_window=4,
        local_rope_theta=500.0,
        norm_placement="sandwich",
        norm_plus_one=True,
        qk_norm="head",
        attention_softcap=3.0,
        logit_softcap=5.0,
        score_dim=5.0,
        scale_embeddings=True,
    ),
    "modernbert": dict(
        causal=False,
        layer_pattern=("global", "local", "local"),
        sliding_window=3,
        local_rope_theta=500.0,
        norm="layernorm",
        norm_bias=False,
        first_norm_on_stream=True,
        head="masked_lm",
        head_activation="gelu",
    ),
    "albert": dict(
        causal=False,
        positions="learned",
        position_offset=2,
        embedding_width=12,
        shared_layers=True,
        norm="layernorm",
        norm_placement="post",
        gated_mlp=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        embedding_norm=True,
        final_norm=False,
        head="masked_lm",
    ),
    "mamba": MAMBA | dict(ssm_inner=40, ssm_state=4, ssm_dt_rank=3, ssm_chunk=5),
    "mamba2": MAMBA | dict(ssm_inner=40, ssm_state=4, ssm_heads=5, ssm_head_dim=8, ssm_chunk=5),
    "bamba": dict(
        n_layers=4,
        n_kv_heads=2,
        layer_pattern=("ssm", "global"),
        ssm_inner=40,
        ssm_state=4,
        ssm_heads=10,
        ssm_head_dim=4,
        ssm_groups=2,
    ),
    "hybrid-window": dict(  # three layers of two shapes, one with a window; no repetition
        layer_pattern=("ssm", "local", "ssm"),
        sliding_window=4,
        ssm_inner=40,
        ssm_state=4,
        ssm_dt_rank=3,
        d_ff=0,
    ),
    "bart": dict(
        encoder_layers=2,
        encoder_heads=2,
        encoder_d_ff=40,
        positions="learned",
        norm="layernorm",
        norm_placement="post",
        gated_mlp=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        embedding_norm=True,
        final_norm=False,
        scale_embeddings=True,
        head="seq2seq_lm",
        head_bias=True,
    ),
    "marian": dict(
        encoder_layers=3,
        positions="sinusoidal",
        norm="layernorm",
        norm_placement="post",
        gated_mlp=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        final_norm=False,
        head="seq2seq_lm",
    ),
    "t5": dict(
        encoder_layers=1,
        positions="relative",
        relative_buckets=8,
        relative_max_distance=20,
        score_dim=1.0,
        head="seq2seq_lm",
        logit_scale=0.2,
    ),
    "umt5": dict(
        encoder_layers=3,
        positions="relative",
        relative_buckets=6,
        relative_max_distance=12,
        relative_per_layer=True,
        score_dim=1.0,
        head="seq2seq_lm",
        tie_embeddings=False,
    ),
}
ROUNDED = ("llama", "llama-window", "gemma2", "bert", "hybrid-window", "bamba", "bart")
MODES = ("bert", "gemma2", "albert", "mamba", "mamba2", "bamba", "bart", "t5")
SEQ2SEQ = [name for name, options in CONFIGS.items() if "encoder_layers" in options]
CAUSAL = [name for name, options in CONFIGS.items() if options.get("causal", True)]
# Every kind of position, mask and sequence mixer, with and without an encoder.
KINDS = ("llama", "llama-window", "hybrid-window", "marian", "umt5", *MODES)


def every_kind(names):
    """The names as parameters of a test: those of a kind that is there already are slow."""
    return [pytest.param(n, marks=[] if n in KINDS else [pytest.mark.slow]) for n in names]


DOCUMENTS = [[5, 9, 2, 7, 7, 30, 11], [3, 4, 50, 61, 12], [8, 8, 1, 40, 33, 20, 19, 2, 70]]


@functools.cache
def make(name: str, **changes):
    base = dict(
        family=name.split("-")[0],
        vocab_size=97,
        d_model=32,
        n_layers=3,
        n_heads=4,
        n_kv_heads=4,
        head_dim=8,
        d_ff=48,
        max_length=64,
        initializer_range=0.2,
    )
    model = lm.build(lm.ModelConfig(**(base | CONFIGS[name] | changes)))
    return model, drawn(model)


@functools.cache
def separated(name: str):
    return lm.separate(*make(name))


LENGTH = 24  # of every row but those of a cache, so that each model is compiled once


def pack(documents, length=LENGTH, encoder=False):
    """The documents in one row. With `encoder`, the encoder reads each reversed, plus one token."""
    if encoder:
        read = pack([[60 + len(d), *d[::-1]] for d in documents], length + 4)
        return pack(documents, length).replace(
            encoder_tokens=read.tokens,
            encoder_segments=read.segments,
            encoder_positions=read.positions,
        )
    tokens, segments = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
    at = 0
    for i, document in enumerate(documents, 1):
        tokens[0, at : at + len(document)], segments[0, at : at + len(document)] = document, i
        at += len(document)
    return lm.Batch.of(tokens, segments)


@functools.cache
def gradient(model):
    run = jax.jit(jax.grad(lambda params, batch: summed_loss(model, params, batch)))
    return lambda params, batch: jax.device_get(run(params, batch))


def logits(model, params, batch):
    return np.asarray(lm.forward(model, params, batch).logits)


def summed_loss(model, params, batch):
    out = model.apply({"params": params}, batch)
    chosen = jnp.take_along_axis(
        jax.nn.log_softmax(out.logits), jnp.asarray(batch.targets)[..., None], axis=-1
    )[..., 0]
    return -jnp.sum(chosen * batch.weights)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_documents_cannot_see_each_other(name):
    model, params = make(name)
    together = logits(model, params, pack(DOCUMENTS, encoder=name in SEQ2SEQ))[0]
    at = 0
    for document in DOCUMENTS:
        alone = logits(model, params, pack([document], encoder=name in SEQ2SEQ))[0, : len(document)]
        np.testing.assert_allclose(together[at : at + len(document)], alone, atol=2e-5)
        at += len(document)


# tests/lm/families/test_every_family.py has the same with the presets of all families.
@pytest.mark.parametrize("name", every_kind(CONFIGS))
def test_packed_gradients_are_the_sum_of_the_documents_gradients(name):
    model, params = make(name)
    packed = gradient(model)(params, pack(DOCUMENTS, encoder=name in SEQ2SEQ))
    alone = [gradient(model)(params, pack([d], encoder=name in SEQ2SEQ)) for d in DOCUMENTS]
    jax.tree.map(
        lambda p, *a: np.testing.assert_allclose(p, sum(a), atol=1e-4, rtol=1e-4), packed, *alone
    )


def test_one_leaking_boundary_would_be_seen():
    """The packing test can fail: without a segment border the logits after it change."""
    model, params = make("llama")
    good = pack(DOCUMENTS)
    leaking = good.replace(segments=np.where(good.segments == 2, 1, good.segments))
    difference = np.abs(logits(model, params, good) - logits(model, params, leaking)).max(axis=-1)[
        0
    ]
    assert difference[: len(DOCUMENTS[0])].max() == 0
    assert difference[len(DOCUMENTS[0])] > 1e-3


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_model_does_not_see_the_future(name):
    model, params = make(name)
    tokens = np.arange(1, LENGTH + 1)[None]
    changed = tokens.copy()
    changed[0, 8] = 90
    read = dict(encoder_tokens=[range(5, LENGTH + 9)]) if name in SEQ2SEQ else {}
    a, b = (logits(model, params, lm.Batch.of(t, **read))[0] for t in (tokens, changed))
    np.testing.assert_array_equal(a[:8], b[:8])
    assert np.abs(a[8:] - b[8:]).max() > 1e-3


def test_layers_take_their_windows_in_the_order_of_the_pattern():
    """A global layer passes everything; two local layers reach as far as both windows."""
    tokens = np.arange(1, 13)[None]
    changed = tokens.copy()
    changed[0, 2] = 90
    for pattern, reach in (
        (("local", "global", "global"), 9),
        (("local", "local", "local"), 6),
        (("global", "local"), 9),
    ):
        model, params = make("llama-window", sliding_window=3, layer_pattern=pattern)
        a, b = (logits(model, params, lm.Batch.of(t))[0] for t in (tokens, changed))
        assert np.flatnonzero(np.abs(a - b).max(axis=-1) > 1e-4).max() - 2 == reach


def test_a_local_layer_turns_by_its_own_base():
    """Local layers alone with base b equal a uniform model with base b."""
    one, params = make("llama-window", rope_theta=300.0)
    other = lm.build(
        one.config.replace(rope_theta=7.0, layer_pattern=("local",), local_rope_theta=300.0)
    )
    batch = pack(DOCUMENTS)
    np.testing.assert_array_equal(logits(one, params, batch), logits(other, params, batch))


def test_a_sliding_window_forgets_what_is_further_back():
    model, params = make("llama-window", n_layers=1)
    tokens = np.arange(1, 13)[None]
    changed = tokens.copy()
    changed[0, 2] = 90
    a, b = (logits(model, params, lm.Batch.of(t))[0] for t in (tokens, changed))
    assert np.abs(a[6] - b[6]).max() > 1e-4  # token 2 is the fifth latest as seen from token 6
    np.testing.assert_array_equal(a[7:], b[7:])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", dict(layers="unrolled")),
        ("llama", dict(remat="full")),
        ("llama", dict(remat="full", layers="unrolled")),
    ]
    + [(name, dict(remat="dots")) for name in ("llama", *MODES)]
    # tests/lm/families/test_every_family.py has these two together, with the preset of each.
    + [
        pytest.param(name, dict(remat="full", layers="unrolled"), marks=pytest.mark.slow)
        for name in MODES
    ],
)
def test_how_layers_are_run_changes_no_gradient(name, changes):
    model, params = make(name)
    other = lm.build(model.config.replace(**changes))
    plain, same = (
        gradient(m)(params, pack(DOCUMENTS, encoder=name in SEQ2SEQ)) for m in (model, other)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), plain, same)


@pytest.mark.parametrize("name", CONFIGS)
def test_separate_layers_compute_what_stacked_layers_compute(name):
    model, params = make(name)
    batch = pack(DOCUMENTS, encoder=name in SEQ2SEQ)
    np.testing.assert_allclose(
        logits(*separated(name), batch), logits(model, params, batch), atol=1e-5
    )


@pytest.mark.parametrize("name", ["llama", "hybrid-window", "umt5"])
def test_layers_that_were_separated_are_not_stacked_again(name):
    (model, params), (apart, split) = make(name), separated(name)
    for c, given, wanted in (
        (model.config, split, params),
        (model.config, params, params),
        (apart.config, params, split),
        (apart.config, split, split),
    ):
        found = laid_out(c, given)
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


CACHED = [(name, "separate") for name in CAUSAL]  # as generation runs them
CACHED += [pytest.param(*p.values, "scan", marks=p.marks) for p in every_kind(CAUSAL)]


@pytest.mark.parametrize(("name", "layers"), CACHED)
def test_a_cache_filled_in_pieces_gives_the_logits_of_the_whole(name, layers):
    model, params = separated(name) if layers == "separate" else make(name)
    batch = lm.Batch.of(np.arange(1, 23).reshape(2, 11))
    read = batch.tokens[:, 2:9] if name in SEQ2SEQ else None
    whole = []
    for i, row in enumerate(batch.tokens):
        encoded = {} if read is None else padded("encoder_", read[i], LENGTH + 4)
        row = lm.Batch.of(**padded("", row, LENGTH), **encoded)
        whole.append(logits(model, params, row)[0, :11])
    cache, pieces = lm.init_cache(model.config, 2, 20, 7), []
    encoder = {
        n: getattr(lm.Batch.of(batch.tokens, encoder_tokens=read), n)
        for n in ("encoder_tokens", "encoder_segments", "encoder_positions")
    }
    apply = jax.jit(lambda params, batch, cache: model.apply({"params": params}, batch, cache))
    for piece in (slice(0, 5), slice(5, 6), slice(6, 11)):
        part = jax.tree.map(lambda x, piece=piece: x[:, piece], batch).replace(**encoder)
        out = apply(params, part, cache)
        assert jax.tree.map(jnp.shape, out.cache) == jax.tree.map(jnp.shape, cache)
        cache, encoder = out.cache, {}
        pieces.append(out.logits)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=2e-5)


def padded(kind, tokens, length):
    """One document in a row of that length, as arguments of `Batch.of`."""
    padding = length - len(tokens)
    return {
        f"{kind}tokens": np.pad(tokens, (0, padding))[None],
        f"{kind}segments": np.pad(np.ones_like(tokens), (0, padding))[None],
    }


@pytest.mark.parametrize(
    "name",
    [  # tests/lm/families/test_every_family.py has the presets of all families
        pytest.param(name, marks=[] if name in ROUNDED else [pytest.mark.slow]) for name in CONFIGS
    ],
)
def test_bfloat16_compute_stays_near_float32(name):
    model, _ = make(name)
    params = drawn(model, 0.05)
    low = lm.build(model.config.replace(dtype="bfloat16"))
    batch = pack(DOCUMENTS, encoder=name in SEQ2SEQ)
    exact, rough = logits(model, params, batch), logits(low, params, batch)
    assert rough.dtype == jnp.float32
    assert np.abs(exact - rough).max() < 0.05 * np.abs(exact).max()


def test_dropout_acts_only_when_given_its_rng():
    model, params = make("bert", dropout=0.3)
    batch = lm.Batch.of([DOCUMENTS[0]])
    apply = jax.jit(lambda rngs: model.apply({"params": params}, batch, rngs=rngs).logits)
    run = lambda **rngs: np.asarray(apply(rngs))
    np.testing.assert_array_equal(run(), run())
    first, second = run(dropout=jax.random.key(1)), run(dropout=jax.random.key(2))
    assert np.abs(first - second).max() > 1e-3
    assert np.abs(first - run()).max() > 1e-3


def test_dropout_drops_another_share_or_does_not_scale_the_rest():
    class Dropped(Block):
        def __call__(self, y):
            return self.dropped(y)

    config = make("bert", dropout=0.3)[0].config
    y = jnp.ones((4, 50, 40), jnp.bfloat16)
    found = Dropped(config).apply({}, y, rngs={"dropout": jax.random.key(0)})
    assert found.dtype == y.dtype
    kept = np.asarray(found, np.float32) > 0
    np.testing.assert_allclose(np.asarray(found, np.float32)[kept], 1 / 0.7, rtol=1e-2)
    assert np.mean(kept) == pytest.approx(0.7, abs=0.02)
    assert len(np.unique(kept.reshape(4, -1), axis=0)) == 4


@pytest.mark.parametrize("name", CONFIGS)
def test_every_dimension_of_every_parameter_has_a_logical_name(name):
    model, params = make(name)
    axes = model.logical_axes()
    jax.tree.map(lambda p, names: np.testing.assert_equal(len(names), p.ndim), params, axes)
    stacked = () if model.config.shared_layers else ("layers",)
    layer = axes["layers"] if model.config.period == 1 else axes["layers"]["block_1"]
    if "attention" not in layer:
        assert layer["ssm"]["gate"] == ("layers", "embed", "mlp")
        return
    assert layer["attention"]["query"] == (*stacked, "embed", "heads", "head_dim")


def test_params_are_a_plain_nested_dict_of_arrays():
    _, params = make("llama")
    assert type(params) is dict
    assert all(type(leaf) is type(jnp.zeros(())) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(n_heads=4, n_kv_heads=3), "n_kv_heads=3"),
        (dict(norm="rms"), "did you mean 'rmsnorm'"),
        (dict(d_model=0), "positive integer"),
        (dict(head_dim=7), "odd"),
        (dict(causal=False), "causal_lm"),
        (dict(dropout=1.5), "probability"),
        (dict(eos_token_ids=(500,)), "outside the vocabulary"),
        (dict(norm_placement="before"), "norm_placement='before'"),
        (dict(rotary_fraction=0.4), "turns 3 of model.head_dim=8"),
        (dict(rotary_fraction=0.1), "turns 0 of"),
        (dict(rotary_fraction=1.5), "rotary_fraction=1.5"),
        (dict(attention_softcap=-1.0), "attention_softcap=-1.0"),
        (dict(logit_softcap=float("nan")), "logit_softcap=nan"),
        (dict(layer_pattern=("locl",), sliding_window=4), "did you mean 'local'"),
        (dict(layer_pattern=("local", "global")), "model.sliding_window=0"),
        (dict(layer_pattern=("global",) * 4), "longer than model.n_layers=3"),
        (dict(local_rope_theta=5.0), "local_rope_theta=5.0"),
        (dict(parallel_residual=True, norm_placement="post"), "parallel_residual needs"),
        (dict(first_norm_on_stream=True, norm_placement="output"), "first_norm_on_stream"),
        (dict(shared_layers=True, layers="separate"), "cannot separate"),
        (dict(embedding_width=8), "no other head projects back"),
    ],
)
def test_a_config_that_cannot_work_is_refused_in_words(changes, message):
    with pytest.raises(lm.ConfigError, match=message):
        make("llama", **changes)


WRONG = {
    bool: (1, "yes", None),
    int: (-1, 1.5, "1", None, True),
    float: (-0.5, float("nan"), float("inf"), "1", None, True),
    str: (1, None, True),
}


def test_every_field_of_the_wrong_type_or_sign_is_refused_by_name():
    config = lm.ModelConfig(
        family="llama",
        vocab_size=97,
        d_model=32,
        n_layers=3,
        n_heads=4,
        n_kv_heads=4,
        head_dim=8,
        d_ff=48,
        max_length=64,
    )
    for name, kind in typing.get_type_hints(lm.ModelConfig).items():
        for value in WRONG.get(kind, (-1.5, {}, ({},), (None,), "x")):
            with pytest.raises(lm.ConfigError, match=rf"model\.{name}"):
                config.replace(**{name: value})


def test_a_misspelled_config_field_suggests_the_right_one():
    model, _ = make("llama")
    with pytest.raises(lm.ConfigError, match="did you mean 'n_layers'"):
        model.config.replace(n_layer=2)


def test_a_config_survives_a_json_round_trip():
    model, _ = make("llama3-scaling")
    assert lm.ModelConfig(**dataclasses.asdict(model.config)) == model.config
    model, _ = make("gemma2")
    assert (
        lm.ModelConfig(**json.loads(json.dumps(dataclasses.asdict(model.config)))) == model.config
    )


def test_batch_of_restarts_positions_and_never_predicts_across_documents():
    batch = pack(DOCUMENTS[:2], length=14)
    assert batch.positions[0, :12].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4]
    assert batch.weights[0].tolist() == [1] * 6 + [0] + [1] * 4 + [0] * 3
    with pytest.raises(ValueError, match="segments have shape"):
        lm.Batch.of([[1, 2, 3]], [[1, 1]])
