"""Attention of rows that are split over eight devices equals the dense oracle."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import families
from lm.distributed import sharding
from lm.distributed.mesh import make_mesh
from lm.models.attention import Bias, Mask, backends, chunked, dense, ring

B, T, H, J, K = 2, 24, 4, 2, 8
PACKED = np.asarray([[1] * 6 + [2] * 13 + [3] * 4 + [0], [1] * 24])
OWNERS = np.asarray([[1] * 9 + [2] * 5 + [-1] * 10, [1] * 3 + [7] * 21])
SCALE = 0.4


def local(attend):
    return lambda *of, joined=False: attend(*of, scale=SCALE, softcap=0.0)


LOCAL = {"dense": local(dense.attend), "chunked": local(chunked.attend)}


def mask(case, window: int | jax.Array = 0) -> Mask:
    index, own = jnp.arange(T), jnp.asarray(PACKED)
    if case == "cross":
        return Mask(own, jnp.asarray(OWNERS), index, index)
    prefix = jnp.asarray(np.arange(T) < 5)[None].repeat(B, 0) if case == "prefix" else None
    return Mask(own, own, index, index, prefix, case in ("causal", "prefix"), window, own=True)


def value_and_gradients(attend, arrays, table, seen: Mask):
    """y, and the gradients of q, k, v and the table of biases."""

    def loss(arrays, table):
        bias = None if table is None else Bias(table, 8, seen.causal)
        y = attend(*arrays, seen, bias)
        return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum(), y

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(arrays, table)


def agree(seen: Mask, backend: str, biased=False, cached=False, shape=(2, 1, 1, 4)):
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=(B, T, n, K)), jnp.float32) for n in (H, J, J)]
    table = jnp.asarray(rng.normal(size=(8, H)), jnp.float32) if biased else None
    expected = value_and_gradients(
        lambda *of: dense.attend(*of, scale=SCALE)[0], arrays, table, seen
    )
    with sharding.activate(make_mesh(*shape)):
        split = lambda *of: ring.attend(LOCAL[backend], *of, cached=cached)
        found = value_and_gradients(split, arrays, table, seen)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("most", [pytest.param(10**9, id="gathered"), pytest.param(0, id="ring")])
@pytest.mark.parametrize(
    ("case", "backend", "biased"),
    [
        ("causal", "chunked", True),
        pytest.param("causal", "dense", False, marks=SLOW),
        pytest.param("prefix", "chunked", False, marks=SLOW),
        pytest.param("both ways", "dense", True, marks=SLOW),
        ("cross", "dense", False),
    ],
)
def test_split_rows_attend_otherwise(monkeypatch, most, case, backend, biased):
    monkeypatch.setattr(ring, "MOST_GATHERED", most)
    agree(mask(case), backend, biased)


@pytest.mark.parametrize(
    ("case", "window"), [("causal", 7), pytest.param("both ways", 4, marks=SLOW)]
)
def test_a_window_reads_other_parts_or_too_few(case, window):
    """Windows of one part before, and one behind: parts have six tokens."""
    sent = []
    moved = ring.moved
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring, "moved", lambda *of, **more: sent.append(of[2]) or moved(*of, **more))
        agree(mask(case, window), "dense")
    assert sent, "all keys were gathered"
    near = ring.ring_of(T, 4, window, case == "causal")
    assert near == ((0, 2) if case == "causal" else (1, 3))


def test_a_window_is_data():
    """Layers of several kinds share one loop, so their windows are arrays."""
    agree(mask("causal", jnp.int32(7)), "chunked", shape=(2, 1, 2, 2))


@pytest.mark.slow
def test_the_keys_of_a_cache_are_split():
    """A prompt is split, the cache with its keys is not."""
    agree(dataclasses.replace(mask("causal"), own=False), "dense", cached=True)


def test_the_way_of_the_keys():
    assert ring.ring_of(4096, 4, 0, True) is None
    assert ring.ring_of(ring.MOST_GATHERED + 4, 4, 0, True) == (0, 4)
    assert ring.ring_of(4096, 4, 1025, True) == (0, 2)
    assert ring.ring_of(4096, 4, 1026, True) == (0, 3)
    assert ring.ring_of(4096, 4, 1025, False) == (1, 3)
    assert ring.ring_of(4096, 4, 1026, False) is None  # three parts before and two behind
    assert ring.ring_of(4096, 4, 1, True) == (0, 1)


def test_the_first_lines_do_not_say_how_rows_are_split():
    config = families.preset("llama", "tiny")
    with sharding.activate(make_mesh(2, 1, 1, 4)):
        said = backends.described(config, (4096, 0))
        assert said.startswith("attention: chunked for rows of 4096 in 4 parts, all keys gathered")
        said = backends.described(config.replace(sliding_window=1025), (4096, 0))
        assert "in 4 parts, a ring of 2" in said
        assert "parts" not in backends.described(config, (4098, 0))
