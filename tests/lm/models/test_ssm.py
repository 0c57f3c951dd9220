"""State-space mixers against float64 recurrences, in pieces, packed, and against transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import FalconMambaConfig, Mamba2Config, MambaConfig
from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaMixer
from transformers.models.mamba.modeling_mamba import MambaMixer as TorchMambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer as TorchMamba2Mixer

import lm
from lm.models import scan
from lm.models.ssm import Mamba2Mixer, MambaMixer

SEGMENTS = {
    "one document": [[1] * 13, [1] * 13],
    "packed, padded": [[1] * 5 + [2] * 7 + [0], [0, 0, 3] + [1] * 4 + [0] + [2] * 3 + [0, 0]],
}
KINDS = ("s6", "ssd")


def inputs(kind, batch=2, length=13, seed=0):
    """Arguments of selective_scan or ssd up to D, float64 numpy."""
    r = np.random.default_rng(seed)
    dt = lambda *shape: r.uniform(0.01, 1.0, shape)
    if kind == "s6":
        e, n = 5, 3
        return [
            r.normal(size=(batch, length, e)),
            dt(batch, length, e),
            -r.uniform(0.5, 2, (e, n)),
            r.normal(size=(batch, length, n)),
            r.normal(size=(batch, length, n)),
            r.normal(size=e),
        ]
    h, p, g, n = 4, 3, 2, 5
    return [
        r.normal(size=(batch, length, h, p)),
        dt(batch, length, h),
        -r.uniform(0.5, 2, h),
        r.normal(size=(batch, length, g, n)),
        r.normal(size=(batch, length, g, n)),
        r.normal(size=h),
    ]


def plain(kind, u, dt, A, B, C, D, segments):
    """The papers' recurrences token by token in numpy.

    Returns y and the state after each row's last token.
    """
    y, last = np.zeros_like(u), []
    for b in range(len(u)):
        h, document = 0.0, 0
        for t, segment in enumerate(segments[b]):
            if segment == 0:
                continue
            if segment != document:
                h, document = 0.0, segment
            if kind == "s6":
                # Gu & Dao 2023, equations 2a, 2b and section 3.6: A, B discretised by exp(dt A),
                # dt B.
                h = np.exp(dt[b, t][:, None] * A) * h + (dt[b, t] * u[b, t])[:, None] * B[b, t]
                y[b, t] = h @ C[b, t] + D * u[b, t]
            else:
                # Dao & Gu 2024, section 2.1, heads as in section 7: head i is in group i //
                # (heads / groups).
                per_group = u.shape[2] // B.shape[2]
                Bh, Ch = (np.repeat(z[b, t], per_group, axis=0) for z in (B, C))
                h = (
                    np.exp(dt[b, t] * A)[:, None, None] * h
                    + (dt[b, t][:, None] * u[b, t])[:, :, None] * Bh[:, None, :]
                )
                y[b, t] = np.einsum("hpn,hn->hp", h, Ch) + D[:, None] * u[b, t]
        last.append(h.T if kind == "s6" else h)
    return y, np.stack(last)


def kernel(kind, *args, **kwargs):
    return (scan.selective_scan if kind == "s6" else scan.ssd)(*args, **kwargs)


def tokens_of(segments):
    return np.asarray(segments) != 0


@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
@pytest.mark.parametrize("chunk", [4, 13, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_chunked_scans_equal_the_papers_recurrence_in_float64(kind, chunk, segments):
    args = inputs(kind)
    expected, last = plain(kind, *args, segments)
    with jax.enable_x64(True):
        y, state = jax.jit(functools.partial(kernel, kind, chunk=chunk))(
            *args, jnp.asarray(segments)
        )
    assert y.dtype == state.dtype == np.float64
    real = tokens_of(segments)
    np.testing.assert_allclose(np.asarray(y)[real], expected[real], atol=1e-6, rtol=0)
    np.testing.assert_allclose(state, last, atol=1e-6, rtol=0)


@pytest.mark.parametrize("pieces", [(1, 12), (6, 7), (3, 1, 1, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_state_carried_across_calls_continues_the_recurrence(kind, pieces):
    args = inputs(kind)
    # No piece begins at 9, so every call continues its row's first document.
    segments = np.asarray([[1] * 13, [1] * 9 + [2] * 4])
    expected, last = plain(kind, *args, segments)
    u, dt, A, B, C, D = args
    state, ys, at = None, [], 0
    run = jax.jit(functools.partial(kernel, kind, chunk=4))
    with jax.enable_x64(True):
        for n in pieces:
            cut = slice(at, at + n)
            y, state = run(
                u[:, cut],
                dt[:, cut],
                A,
                B[:, cut],
                C[:, cut],
                D,
                jnp.asarray(segments[:, cut]),
                state,
            )
            ys.append(y)
            at += n
    np.testing.assert_allclose(np.concatenate(ys, axis=1), expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(state, last, atol=1e-6, rtol=0)


def unchunked(kind, u, dt, A, B, C, D, segments, state):
    """The recurrence as one lax.scan, differentiated by JAX. Segments have no padding."""
    start = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    step = scan._s6_step if kind == "s6" else scan._ssd_step
    A = A.T if kind == "s6" else A

    def body(h, x):
        u, dt, B, C, start = x
        h = jnp.where(start.reshape(-1, *(1,) * (h.ndim - 1)), 0, h)
        y, h = step(A, h, u, dt, B, C)
        return h, y

    state, y = jax.lax.scan(
        body, state, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (u, dt, B, C, start))
    )
    return jnp.moveaxis(y, 0, 1) + (D if kind == "s6" else D[:, None]) * u, state


@pytest.mark.parametrize(
    ("kind", "recurrence"),
    [("s6", "sequential"), ("s6", "parallel"), ("ssd", "by chunk"), ("ssd", "at once")],
)
def test_gradients_equal_those_of_the_recurrence_differentiated_by_jax(
    kind, recurrence, monkeypatch
):
    if recurrence == "parallel":  # used on devices other than CPUs
        monkeypatch.setattr(scan, "_sequential", scan._parallel)
        monkeypatch.setattr(scan, "_s6_adjoint_by_token", scan._s6_adjoint_at_once)
    if recurrence == "at once":
        monkeypatch.setattr(scan, "_ssd", scan._ssd_at_once)
    args = inputs(kind)
    segments = np.asarray([[1] * 13, [1] * 5 + [2] * 8])
    state = np.random.default_rng(1).normal(size=plain(kind, *args, segments)[1].shape)

    def loss(f, args, state):
        y, state = f(kind, *args, segments=jnp.asarray(segments), state=state)
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(state))

    with jax.enable_x64(True):
        chunked, reference = (
            jax.jit(jax.grad(functools.partial(loss, f), argnums=(0, 1)))(args, state)
            for f in (functools.partial(kernel, chunk=4), unchunked)
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), chunked, reference)


def test_memory_of_the_backward_pass_does_not_hold_every_state():
    batch, length, e, n = 1, 1024, 64, 16
    args = [
        jnp.ones(shape)
        for shape in (
            (batch, length, e),
            (batch, length, e),
            (e, n),
            (batch, length, n),
            (batch, length, n),
            (e,),
        )
    ]
    gradient = jax.jit(
        jax.grad(
            lambda *a: scan.selective_scan(*a, jnp.ones((batch, length), jnp.int32))[0].sum(),
            argnums=range(6),
        )
    )
    temporary = gradient.lower(*args).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 4 * length * e * n / 1.5, "all states alone would take 4 T E N bytes"


def test_convolution_window_stops_at_document_borders_and_skips_padding():
    r = np.random.default_rng(0)
    x, kernel_KC = (
        r.normal(size=(2, 13, 3)).astype(np.float32),
        r.normal(size=(4, 3)).astype(np.float32),
    )
    segments = np.asarray(SEGMENTS["packed, padded"])
    y, window = jax.jit(scan.causal_conv)(x, kernel_KC, segments)
    for b in range(2):
        for document in set(segments[b]) - {0}:
            inside = segments[b] == document
            alone = np.concatenate([np.zeros((3, 3)), x[b, inside]])
            expected = [np.sum(kernel_KC * alone[t : t + 4], axis=0) for t in range(inside.sum())]
            np.testing.assert_allclose(y[b, inside], expected, atol=1e-5)
    np.testing.assert_array_equal(window[0], x[0, 9:12])
    np.testing.assert_array_equal(window[1], x[1, 8:11])


SHAPES = {
    "mamba": dict(ssm_state=4, ssm_dt_rank=3),
    "falcon_mamba": dict(
        ssm_state=4, ssm_dt_rank=3, ssm_bias=True, ssm_inner_norm_eps=1e-6, ssm_chunk=5
    ),
    "mamba2": dict(ssm_state=5, ssm_heads=6, ssm_head_dim=4, ssm_groups=2, ssm_chunk=5),
    "mamba2-bias": dict(
        ssm_state=5,
        ssm_heads=6,
        ssm_head_dim=4,
        ssm_bias=True,
        ssm_conv_bias=False,
        ssm_dt_limit=(0.01, 0.5),
    ),
}
CONFIG = dict(
    family="mamba",
    vocab_size=9,
    d_model=12,
    n_layers=1,
    n_heads=0,
    n_kv_heads=0,
    head_dim=0,
    d_ff=0,
    max_length=64,
    positions="none",
    ssm_inner=24,
    initializer_range=0.3,
)


@functools.cache
def make(name):
    config = lm.ModelConfig(**CONFIG | SHAPES[name])
    module = (Mamba2Mixer if config.ssm_heads else MambaMixer)(config)
    x, segments = jnp.zeros((1, 2, config.d_model)), jnp.ones((1, 2), jnp.int32)
    boxed = jax.jit(module.init)(jax.random.key(0), x, segments)["params"]
    params = jax.tree.map(lambda box: box.unbox(), boxed, is_leaf=lambda b: hasattr(b, "unbox"))
    # Biases and step sizes large enough to reveal errors.
    noise = {
        n: 0.3 * jax.random.normal(jax.random.key(i), v.shape)
        for i, (n, v) in enumerate(sorted(params.items()))
    }
    return module, jax.tree.map(jnp.add, params, noise)


def empty_cache(config, batch_size):
    """Cache of the single layer under test."""
    return lm.init_cache(config.replace(layers="separate"), batch_size, 64)["layers"][0]


@functools.cache
def applied(name):
    module, _ = make(name)
    return jax.jit(
        lambda params, x, segments, cache=None: module.apply({"params": params}, x, segments, cache)
    )


def hidden(batch, length, seed=0):
    return (
        np.random.default_rng(seed)
        .normal(size=(batch, length, CONFIG["d_model"]))
        .astype(np.float32)
    )


@pytest.mark.parametrize("name", SHAPES)
def test_packed_documents_get_the_values_and_gradients_they_get_alone(name):
    """In float64, so that any difference above rounding is a leak.

    Gradients reach 30 and more, where float32 rounding differs between processors.
    """
    module, params = make(name)
    config = module.config.replace()
    for field in ("dtype", "param_dtype"):
        object.__setattr__(config, field, "float64")  # no config may set float64
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x, segments = (
        hidden(1, 19).astype(np.float64),
        np.asarray([[1] * 7 + [2] * 2 + [0] + [3] * 8 + [0]]),
    )

    def loss(params, x, segments):
        y, _ = type(module)(config).apply({"params": params}, x, segments)
        return jnp.sum(jnp.where(segments[..., None] != 0, jnp.sin(3 * y), 0)), y

    close = functools.partial(np.testing.assert_allclose, atol=1e-11, rtol=1e-11)
    with jax.enable_x64(True):
        gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (_, packed), (packed_grad, packed_dx) = jax.device_get(gradient(params, x, segments))
        assert {leaf.dtype for leaf in jax.tree.leaves((packed, packed_grad, packed_dx))} == {
            np.dtype(np.float64)
        }
        total = jax.tree.map(np.zeros_like, params)
        for document in (1, 2, 3):
            inside = segments[0] == document
            n = inside.sum()
            # Its tokens, then padding: the compiled length stays the same.
            first = np.argsort(~inside, kind="stable")
            (_, alone), (grad, dx) = jax.device_get(
                gradient(params, x[:, first], np.where(np.arange(19) < n, 1, 0)[None])
            )
            close(packed[:, inside], alone[:, :n])
            close(packed_dx[:, inside], dx[:, :n])
            total = jax.tree.map(np.add, total, grad)
    jax.tree.map(close, packed_grad, total)
    np.testing.assert_array_equal(packed_dx[segments == 0], 0)


@pytest.mark.parametrize("name", SHAPES)
def test_a_leaking_border_would_be_seen(name):
    _, params = make(name)
    x = hidden(1, 12)
    good, leaking = (
        applied(name)(params, x, np.asarray([s]))[0] for s in ([1] * 6 + [2] * 6, [1] * 12)
    )
    assert np.abs(good - leaking)[0, :6].max() == 0
    assert np.abs(good - leaking)[0, 6:].max(axis=-1).min() > 1e-4


@pytest.mark.parametrize("pieces", [(11,), (5, 6), (5, *(1,) * 6)])
@pytest.mark.parametrize("name", SHAPES)
def test_a_cache_filled_in_pieces_gives_what_one_pass_gives(name, pieces):
    module, params = make(name)
    # In row 2 a new document begins where a piece may begin.
    x, segments = (
        hidden(2, 11),
        np.asarray([[1] * 11, [4] * 5 + [1] * 6]),
    )
    whole, _ = applied(name)(params, x, segments)
    cache, ys, at = empty_cache(module.config, 2), [], 0
    for n in pieces:
        y, new = applied(name)(params, x[:, at : at + n], segments[:, at : at + n], cache)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), new) == jax.tree.map(
            lambda a: (a.shape, a.dtype), cache
        )
        cache, at = new, at + n
        ys.append(y)
    np.testing.assert_allclose(np.concatenate(ys, axis=1), whole, atol=2e-5)


@pytest.mark.parametrize("side", ["left", "both"])
@pytest.mark.parametrize("name", SHAPES)
def test_padding_around_a_prompt_leaves_state_and_decoding_as_if_it_were_alone(name, side):
    module, params = make(name)
    empty, prompt, following = empty_cache(module.config, 1), hidden(1, 3), hidden(1, 2, seed=1)
    padding = ((0, 0), (4, 4 * (side == "both")))
    padded, segments = (
        np.pad(prompt, (*padding, (0, 0)), constant_values=7.0),
        np.pad(np.ones((1, 3), int), padding),
    )
    outputs = []
    for x, s in ((prompt, np.ones((1, 3), int)), (padded, segments)):
        y, cache = applied(name)(params, x, s, empty)
        if x is padded:
            # Append a row of padding only.
            _, cache = applied(name)(
                params, np.full_like(padded, 7.0), np.zeros_like(segments), cache
            )
        decoded = []
        for t in range(2):
            z, cache = applied(name)(params, following[:, t : t + 1], np.ones((1, 1), int), cache)
            decoded.append(z)
        outputs.append((y[s != 0], *decoded, cache))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *outputs)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_bfloat16_compute_keeps_a_float32_state_near_the_exact_one(name):
    (module, params), x, segments = make(name), hidden(1, 40), np.ones((1, 40), int)
    low = type(module)(module.config.replace(dtype="bfloat16"))
    exact, rough = (
        jax.jit(m.apply)(
            {"params": params}, jnp.asarray(x, m.config.dtype), segments, empty_cache(m.config, 1)
        )
        for m in (module, low)
    )
    assert rough[0].dtype == jnp.bfloat16
    assert rough[1]["state"].dtype == jnp.float32
    assert np.abs(exact[0] - rough[0]).max() < 0.05 * np.abs(exact[0]).max()


def theirs(name):
    """transformers' mixer on torch with our parameters."""
    module, params = make(name)
    c = module.config
    shared = dict(
        hidden_size=12,
        state_size=c.ssm_state,
        num_hidden_layers=1,
        expand=2,
        use_bias=c.ssm_bias,
        use_conv_bias=c.ssm_conv_bias,
    )
    p = {n: np.asarray(v) for n, v in params.items()}
    if c.ssm_heads:
        parts, convs = ("gate", "input", "bc", "dt_in"), ("conv", "bc_conv")
        limit = {"time_step_limit": c.ssm_dt_limit} if c.ssm_dt_limit else {}
        shape = dict(
            num_heads=c.ssm_heads,
            head_dim=c.ssm_head_dim,
            n_groups=c.ssm_groups,
            chunk_size=4,
            layer_norm_epsilon=c.norm_eps,
        )
        mixer = TorchMamba2Mixer(Mamba2Config(**shared, **shape, **limit), 0)
        state = {"dt_bias": p["dt_bias"], "norm.weight": p["norm_scale"]}
    else:
        parts, convs = ("input", "gate"), ("conv",)
        kind, config = (
            (TorchMambaMixer, MambaConfig)
            if not c.ssm_inner_norm_eps
            else (FalconMambaMixer, FalconMambaConfig)
        )
        mixer = kind(
            config(**shared, time_step_rank=c.ssm_dt_rank), 0, initialize_mixer_weights=False
        )
        state = {
            "x_proj.weight": np.concatenate([p["dt_down"], p["bc"]], axis=1).T,
            "dt_proj.weight": p["dt_up"].T,
            "dt_proj.bias": p["dt_bias"],
        }
    state |= {
        "in_proj.weight": np.concatenate([p[n] for n in parts], axis=1).T,
        "out_proj.weight": p["out"].T,
    }
    state |= {
        "conv1d.weight": np.concatenate([p[n] for n in convs], axis=1).T[:, None],
        "A_log": p["a_log"],
        "D": p["skip"],
    }
    if c.ssm_bias:
        state |= {
            "in_proj.bias": np.concatenate([p[f"{n}_bias"] for n in parts]),
            "out_proj.bias": p["out_bias"],
        }
    if c.ssm_conv_bias:
        state["conv1d.bias"] = np.concatenate([p[f"{n}_bias"] for n in convs])
    mixer.load_state_dict({n: torch.tensor(np.ascontiguousarray(v)) for n, v in state.items()})
    return mixer.eval()


@pytest.mark.parametrize("name", SHAPES)
def test_mixers_equal_those_of_transformers(name):
    _, params = make(name)
    x = hidden(2, 11)
    with torch.no_grad():
        expected = theirs(name)(torch.tensor(x)).numpy()
    y, _ = applied(name)(params, x, np.ones((2, 11), int))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(y, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(ssm_dt_rank=3, ssm_heads=6, ssm_head_dim=4), "not both"),
        (dict(), "ssm_dt_rank=0"),
        (dict(ssm_heads=5, ssm_head_dim=4), "is not model.ssm_inner=24"),
        (dict(ssm_heads=6, ssm_head_dim=4, ssm_groups=4), "multiple of model.ssm_groups=4"),
        (dict(ssm_dt_rank=3, ssm_state=0), "positive integer"),
        (dict(ssm_dt_rank=3, causal=False, head="none"), "read from left to right"),
        (
            dict(ssm_dt_rank=3, layer_pattern=("global",), n_heads=1, n_kv_heads=1, head_dim=12),
            "layers need a width",
        ),
        (dict(ssm_dt_rank=3, layer_pattern=("ssm", "global"), n_layers=2), "n_heads=0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_words(changes, message):
    with pytest.raises(lm.ConfigError, match=message):
        lm.ModelConfig(**CONFIG | dict(ssm_state=4) | changes)


def test_off_a_cpu_the_loop_over_chunks_has_no_matmuls(monkeypatch):
    """So that the matmuls of all chunks run at once; with one chunk after another they do not."""

    def inside_loops():
        program = jax.make_jaxpr(functools.partial(scan.ssd, chunk=4))(
            *inputs("ssd"), jnp.ones((2, 13), jnp.int32)
        )
        return [str(loop).count("dot_general") for loop in scans(program.jaxpr)]

    def scans(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "scan":
                yield equation.params["jaxpr"]
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
            ):
                yield from scans(inner) if hasattr(inner, "eqns") else ()

    assert [count > 0 for count in inside_loops()] == [True]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert inside_loops() == [0]
