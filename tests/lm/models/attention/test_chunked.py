"""Chunked attention equals the dense oracle: values, log-sum-exps and all gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models.attention import Bias, Mask, chunked, dense, merge

B, H, K = 2, 4, 8
PACKED = [[1] * 6 + [2] * 13 + [3] * 4 + [0] * 2, [1] * 25]
UNSEEN = [[7] * 6 + [2] * 13 + [8] * 6, [9] * 25]  # queries whose segment has no key
CASES = {  # of self-attention: segments of the queries, causal, window, a prefix
    "bidirectional": (PACKED, False, 0, False),
    "causal": (PACKED, True, 0, False),
    "window": (PACKED, True, 5, False),
    "two-sided window": (PACKED, False, 3, False),
    "prefix": (PACKED, True, 0, True),
    "prefix and window": (PACKED, True, 4, True),
    "rows that see nothing": (UNSEEN, True, 0, False),
}


def drawn(rng, keys, heads, dtype=np.float32, queries=25):
    shapes = (B, queries, H, K), (B, keys, heads, K), (B, keys, heads, K)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def of(attend):
    """Function that returns y, lse and the gradients of q, k, v and the table, compiled."""

    def loss(arrays, table, mask, weights, settings):
        bias = None if table is None else Bias(table, 8, mask.causal)
        y, lse = attend(*arrays, mask, bias, scale=0.4, **dict(settings))
        finite = jnp.where(jnp.isneginf(lse), 0, lse)
        total = (y * weights).sum() + (finite * jnp.cos(jnp.arange(25.0))[:, None]).sum()
        return total.astype(jnp.float32), (y, lse)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), static_argnums=4)


CHUNKED = of(functools.partial(chunked.attend, block=8))
DENSE = of(dense.attend)


def agree(arrays, mask, table=None, settings=(), atol=2e-5):
    weights = np.random.default_rng(1).normal(size=arrays[0].shape).astype(np.float32)
    found, expected = (each(arrays, table, mask, weights, settings) for each in (CHUNKED, DENSE))
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert a.dtype == b.dtype and not np.isnan(a).any()
        np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (a, b)), atol, atol)
    return expected[0][1]


def mask_of(case) -> Mask:
    segments, causal, window, prefix = CASES[case]
    index, keys = jnp.arange(25), jnp.asarray(PACKED)
    first = jnp.asarray(np.asarray([[1] * 3 + [0] * 3 + [1] * 7 + [0] * 12] * B, bool))
    return Mask(
        jnp.asarray(segments),
        keys,
        index,
        index,
        first if prefix else None,
        causal,
        jnp.int32(window),  # data, so that cases share a program
    )


@pytest.mark.parametrize("case", CASES)
def test_self_attention(case):
    y, lse = agree(drawn(np.random.default_rng(0), 25, 2), mask_of(case))
    unseen = ~np.asarray(mask_of(case).visible())[:, 0].any(-1)
    assert unseen.any() == (case == "rows that see nothing")
    assert (np.asarray(y)[unseen] == 0).all() and np.isneginf(np.asarray(lse)[unseen]).all()


def test_a_static_window_and_a_soft_cap():
    mask = dataclasses.replace(mask_of("window"), window=5)
    agree(drawn(np.random.default_rng(0), 25, 1), mask, settings=(("softcap", 2.0),))


@pytest.mark.parametrize("causal", [True, False])
def test_a_relative_bias_and_its_table(causal):
    mask = mask_of("causal" if causal else "bidirectional")
    table = jnp.asarray(np.random.default_rng(2).normal(size=(8, H)), jnp.float32)
    agree(drawn(np.random.default_rng(0), 25, 4), mask, table)


def test_bfloat16():
    agree(drawn(np.random.default_rng(0), 25, 2, jnp.bfloat16), mask_of("causal"), atol=0.06)


def test_the_passages_of_a_question_belong_to_its_segment():
    """Passages encoded in rows of their own; a question reads all of its own, and no other."""
    passages, width = 3, 7  # for each question; two questions in the first row
    owner = np.asarray([[1, 1, 2], [1, 1, 1]])[..., None] * np.ones(width, int)
    owner[0, 1, 5:] = owner[1, 2, 2:] = -1  # padding of a passage
    mask = Mask.between(
        jnp.asarray([[1] * 10 + [2] * 12 + [0] * 3, [1] * 25]),
        jnp.asarray(owner.reshape(B, passages * width), jnp.int32),
    )
    arrays = drawn(np.random.default_rng(0), passages * width, 2)
    y, _ = agree(arrays, mask)
    # The second question's only passage, alone:
    q, k, v = arrays[0][:1, 10:22], arrays[1][:1, 14:], arrays[2][:1, 14:]
    alone, _ = dense.attend(q, k, v, Mask.between(jnp.ones((1, 12)), jnp.ones((1, 7))), scale=0.4)
    np.testing.assert_allclose(y[:1, 10:22], alone, atol=1e-6)
    assert (np.asarray(y)[0, 22:] == 0).all()


def test_merged_parts_of_the_keys_equal_the_whole():
    """Values, log-sum-exps and gradients, for any split; some parts see nothing."""
    mask, rng = mask_of("causal"), np.random.default_rng(0)
    arrays = drawn(rng, 25, 2)
    weights = rng.normal(size=arrays[0].shape).astype(np.float32)

    def loss(attend):
        def run(q, k, v, part_S):
            y, lse = attend(q, k, v, part_S)
            return (y * weights).sum() + lse.sum(), (y, lse)

        return jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))

    def joined(q, k, v, part_S):
        def part(n):
            own = jnp.where(part_S == n, mask.k_segments, -1)
            return chunked.attend(
                q, k, v, dataclasses.replace(mask, k_segments=own), scale=0.4, block=8
            )

        y, lse = jax.lax.map(part, jnp.arange(4))
        return merge([(y[n], lse[n]) for n in range(4)])

    close = functools.partial(np.testing.assert_allclose, rtol=0)
    merged = loss(joined)
    whole = loss(lambda q, k, v, _: dense.attend(q, k, v, mask, scale=0.4))(*arrays, None)
    for part_S in (np.arange(25) // 7, np.arange(25) // 25, rng.integers(0, 3, 25)):
        (_, results), gradients = merged(*arrays, part_S)
        jax.tree.map(lambda a, b: close(a, b, atol=1e-6), results, whole[0][1])
        jax.tree.map(lambda a, b: close(a, b, atol=1e-5), gradients, whole[1])
    y, lse = merge([(jnp.ones((1, 1, 1, 2)), jnp.full((1, 1, 1), -jnp.inf))] * 2)
    assert (y == 0).all() and jnp.isneginf(lse).all()


def test_a_window_s_work_grows_with_the_length():
    """Blocks that no query of a block sees are not visited, so pairs of blocks are the work."""

    def pairs(length, window):
        segments, index = jnp.ones((1, length), jnp.int32), jnp.arange(length)
        mask = Mask(segments, segments, index, index, causal=True, window=window)
        live = chunked._live(mask, chunked.Settings(1.0, 0.0, 64, 64))
        visited = sum(int(last - first) for first, last in map(chunked._span, live))
        assert visited == int(live.sum())
        return visited

    assert pairs(4096, 128) < 2.1 * pairs(2048, 128) < 0.25 * pairs(4096, 0)
    assert pairs(2048, 0) == 32 * 33 // 2


def test_memory_grows_with_the_length():
    def temporary(length, block):
        heads, index = jnp.zeros((1, length, 2, 8)), jnp.arange(length)
        segments = jnp.ones((1, length), jnp.int32)

        def loss(q, k, v):
            mask = Mask(segments, segments, index, index, causal=True)
            return chunked.attend(q, k, v, mask, scale=0.3, block=block)[0].sum()

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(heads, heads, heads).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporary(2048, 256), temporary(4096, 256)
    assert long < 2.2 * short
    assert long < 4096 * 4096  # a mask of bytes, let alone scores
