"""Kernels of GPUs and TPUs: what they compute, what they refuse, and when `auto` takes them.

No GPU or TPU is needed. The TPU's kernel is interpreted, and lowered for a TPU. cuDNN's cannot run
on a CPU: the call that would reach it is answered by the same function's plain implementation.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm.distributed import mesh, sharding
from lm.models.attention import Mask, backends, cudnn, dense, merge, shards, splash
from lm.models.attention.backends import described
from lm.models.config import ConfigError
from tests.lm.models.attention.test_backends import batch, config, traced
from tests.lm.small_models import drawn

T, K = 150, 64
PACKED = np.asarray([[1] * 40 + [2] * 70 + [3] * 25 + [0] * 15, [1] * T], np.int32)
OWNERS = np.asarray([[1] * 30 + [3] * 26 + [-1] * 8, [2] * 64], np.int32)  # row 2 reads nothing


def own(**how):
    index = jnp.arange(T)
    return Mask(jnp.asarray(PACKED), jnp.asarray(PACKED), index, index, own=True, **how)


MASKS = {
    "causal": own(causal=True),
    "bidirectional": own(),
    "causal window": own(causal=True, window=30),
    "window": own(window=30),
    "cross": Mask.between(jnp.asarray(PACKED), jnp.asarray(OWNERS)),
}


def arrays(mask, heads, kv_heads):
    rng, keys = np.random.default_rng(0), len(mask.k_index)
    shapes = (2, T, heads, K), (2, keys, kv_heads, K), (2, keys, kv_heads, K)
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def results(attend, mask, *, heads=2, kv_heads=1, **options):
    """Values and gradients of a weighted sum of them."""
    weights = np.random.default_rng(1).normal(size=(2, T, heads, K)).astype(np.float32)

    def loss(q, k, v):
        y = attend(q, k, v, mask, scale=0.1, **options)
        y = y[0] if isinstance(y, tuple) else y
        return (y * weights).sum(), y

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays(mask, heads, kv_heads))


def agree(attend, mask, **options):
    found, expected = (results(each, mask, **options) for each in (attend, dense.attend))
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


SPLASH = functools.partial(splash.attend, interpret=True)


@pytest.mark.parametrize(
    ("case", "softcap"),
    [
        ("causal", 0.0),
        ("cross", 0.0),
        ("causal window", 2.0),
        pytest.param("bidirectional", 2.0, marks=pytest.mark.slow),
        pytest.param("window", 0.0, marks=pytest.mark.slow),
    ],
)
def test_splash_computes_the_dense_values_and_gradients(case, softcap, monkeypatch):
    monkeypatch.setattr(splash, "BLOCK", 128)  # two blocks of queries, the second padded
    agree(SPLASH, MASKS[case], softcap=softcap)


def test_splash_lowers_for_a_tpu_in_both_passes():
    def loss(q, k, v):
        return splash.attend(q, k, v, MASKS["causal window"], scale=0.1).astype(jnp.float32).sum()

    args = [x.astype(jnp.bfloat16) for x in arrays(MASKS["causal window"], 2, 1)]
    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*args).lower(lowering_platforms=("tpu",))
    assert lowered.as_text().count("custom_call @tpu_custom_call") == 3  # forward, dq, dk and dv


@pytest.fixture
def plain_cudnn(monkeypatch):
    """Answers calls for cuDNN by the plain implementation; the list of their keyword arguments."""
    calls, plain = [], jax.nn.dot_product_attention

    def answer(*args, **options):
        if options.get("implementation") == "cudnn":
            calls.append(options)
            options = options | {"implementation": "xla"}
        return plain(*args, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", answer)
    return calls


@pytest.mark.parametrize("case", [*MASKS, "prefix"])
def test_cudnn_is_given_what_makes_the_dense_values_and_gradients(case, plain_cudnn):
    prefix = jnp.asarray(np.arange(T)[None] % 40 < 9).repeat(2, 0)
    mask = own(causal=True, prefix=prefix) if case == "prefix" else MASKS[case]
    agree(cudnn.attend, mask)
    (call,) = plain_cudnn
    assert call["is_causal"] == (case in ("causal", "causal window"))
    assert call["mask"].shape == (2, 1, T, len(mask.k_index))


def test_each_device_computes_its_own_rows_and_heads(plain_cudnn):
    devices = mesh.make_mesh(2, 1, 2, devices=jax.devices()[:4])
    alone = results(cudnn.attend, MASKS["causal"], heads=4, kv_heads=2)
    with sharding.activate(devices):
        found = results(cudnn.attend, MASKS["causal"], heads=4, kv_heads=2)
    assert [call["mask"].shape[0] for call in plain_cudnn] == [2, 1]
    for a, b in zip(*map(jax.tree.leaves, (found, alone)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    compiled = jax.jit(functools.partial(shards.local, lambda q, k, v, mask: q))
    split = {**sharding.ACTIVATIONS, "attention_length": ("tensor",), "heads": (), "kv_heads": ()}
    with sharding.activate(devices, split), pytest.raises(ConfigError, match="split over"):
        compiled(*arrays(MASKS["causal"], 4, 2), MASKS["causal"])


def test_splash_runs_under_a_mesh():
    devices = mesh.make_mesh(2, 1, 1, devices=jax.devices()[:2])
    with sharding.activate(devices):
        found = results(SPLASH, MASKS["causal"])
    for a, b in zip(
        *map(jax.tree.leaves, (found, results(dense.attend, MASKS["causal"]))), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


LLAMA = dict(dtype="bfloat16", head_dim=64, sliding_window=0)
LONG = Mask.between(jnp.zeros((1, 4098)), jnp.zeros((1, 4096)))


@pytest.mark.parametrize(
    ("kernel", "platform", "changes", "mask", "said"),
    [
        ("cudnn", "gpu", {}, "causal", ""),
        ("cudnn", "gpu", {}, "cross", ""),
        ("cudnn", "cpu", {}, "causal", "needs an NVIDIA GPU, and this run is on cpu"),
        ("cudnn", "tpu", {}, "causal", "needs an NVIDIA GPU, and this run is on tpu"),
        ("cudnn", "gpu", {"dtype": "float32"}, "causal", "dtype='float32'"),
        ("cudnn", "gpu", {"head_dim": 12}, "causal", "head_dim=12, .*multiples of 8 up to 256"),
        ("cudnn", "gpu", {"head_dim": 264}, "causal", "head_dim=264"),
        ("cudnn", "gpu", {"attention_softcap": 30.0}, "causal", "no soft cap"),
        ("cudnn", "gpu", {"relative_buckets": 8}, "causal", "relative position bias"),
        ("cudnn", "gpu", {}, LONG, "mask of 4098 queries and 4096 keys would take 34 MB"),
        ("cudnn", "gpu", {}, Mask.between(jnp.zeros((1, 7)), jnp.zeros((1, 8))), "7 queries"),
        ("splash", "tpu", {}, "causal", ""),
        ("splash", "tpu", {"dtype": "float32", "attention_softcap": 3.0}, "cross", ""),
        ("splash", "gpu", {}, "causal", "needs a TPU, and this run is on gpu"),
        ("splash", "tpu", {"dtype": "float16"}, "causal", "dtype='float16'"),
        ("splash", "tpu", {"head_dim": 80}, "causal", "head_dim=80, .*multiples of 64"),
        ("splash", "tpu", {"relative_buckets": 8}, "causal", "relative position bias"),
        ("splash", "tpu", {}, own(causal=True, prefix=jnp.ones((2, T), bool)), "prefix"),
        ("splash", "tpu", {}, own(causal=True).with_window_as_data(), "different windows"),
        ("splash", "tpu", {}, dataclasses.replace(MASKS["causal"], own=False), "own keys"),
    ],
)
def test_a_kernel_says_which_limit_stands_in_the_way(
    kernel, platform, changes, mask, said, monkeypatch
):
    monkeypatch.setattr(cudnn, "_capability", lambda: 9.0)
    if changes.get("relative_buckets"):
        changes = changes | dict(positions="relative", relative_max_distance=16)
    c = config("llama", **LLAMA | changes)
    mask = MASKS[mask] if isinstance(mask, str) else mask
    reason = backends.BACKENDS[kernel]().why_not(c, mask, platform)
    assert bool(reason) == bool(said) and re.search(said, reason)


@pytest.fixture
def gpu(monkeypatch):
    """Makes JAX say that it runs on a GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(cudnn, "_capability", lambda: 9.0)


@pytest.mark.parametrize("kind", ["llama-window", "t5", "bert"])
def test_auto_takes_the_kernel_of_the_platform_where_it_can(kind, gpu, plain_cudnn, monkeypatch):
    monkeypatch.setattr(cudnn, "DTYPES", ("float32",))
    c = config(kind)
    params, full = drawn(lm.build(c)), batch(c)
    rows = jax.tree.map(lambda x: x[:, :10], full)  # it takes even numbers
    found, expected = (
        jax.jit(lm.build(c.replace(attention_backend=name)).apply)({"params": params}, rows).logits
        for name in ("auto", "dense")
    )
    assert bool(plain_cudnn) == (kind != "t5")  # which has a relative bias
    real = np.asarray(rows.segments) > 0
    np.testing.assert_allclose(*(np.asarray(x)[real] for x in (found, expected)), 1e-5, 1e-5)


def test_a_run_says_which_kernel_serves_it_and_why_not(gpu, monkeypatch):
    c, said = config("llama", **LLAMA), lambda c: described(c, (512, 256))
    assert said(c) == "attention: cudnn for rows of 512 (auto)"
    assert said(c.replace(dtype="float32")) == (
        "attention: dense for rows of 512 (auto: not cudnn, because model.dtype='float32', and it "
        "computes bfloat16 and float16 alone; dense up to 1024 tokens)"
    )
    t5 = said(config("t5", dtype="bfloat16"))
    assert "dense for reading it (auto: not cudnn, because a relative position bias" in t5
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert said(c) == "attention: splash for rows of 512 (auto)"
    mixed = said(c.replace(sliding_window=8, layer_pattern=("local", "global")))
    assert "not splash, because layers of one compiled loop have different windows" in mixed


def test_a_kernel_that_a_config_names_is_refused_in_words_before_compiling():
    for name in ("cudnn", "splash"):
        with pytest.raises(ConfigError) as caught:
            traced(config(attention_backend=name))
        assert re.search(
            rf"^model.attention_backend='{name}' \(.*\) cannot compute this model: it needs an? "
            "(NVIDIA GPU|TPU), and this run is on cpu; use 'dense' or 'chunked'$",
            str(caught.value),
        )


def test_results_without_a_log_sum_exp_are_not_merged():
    y = jnp.zeros((1, 2, 3, 4))
    with pytest.raises(ValueError, match="part 1 of 2 has no log-sum-exp"):
        merge([(y, jnp.zeros((1, 2, 3))), (y, None)])
