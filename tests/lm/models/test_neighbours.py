"""Neighbour attention: which tokens see which chunks, in pieces, packed, and no cost when off."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm.models.model import _say_alone
from tests.lm.models.test_model import CONFIGS, SEQ2SEQ, pack
from tests.lm.small_models import drawn

CHUNK, WIDTH = 4, 6
DOORS = {  # for each kind of block: all layers, some, or an aperiodic pattern
    "llama": (0, 1, 2),
    "gpt2": (1,),
    "gemma2": (0, 2),
    "mamba": (0, 1, 2),
    "mamba2": (2,),
    "bamba": (1, 3),
    "bart": (0, 1),
    "t5": (1,),
}


@functools.cache
def make(name):
    base = dict(
        family="llama",
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
    options = (
        base
        | CONFIGS[name]
        | dict(neighbour_layers=DOORS[name], neighbour_chunk=CHUNK, neighbour_width=WIDTH)
    )
    if not options["n_heads"]:
        options |= dict(n_heads=4, n_kv_heads=2, head_dim=8)  # heads of the door itself
    if name == "bart":
        options |= dict(n_layers=2)
    model = lm.build(lm.ModelConfig(**options))
    return model, drawn(model)


def untrained(model, params):
    """The parameters with those of the door as they are initialised; only these are computed."""

    @jax.jit
    def initial(key):
        params = model.init(key, lm.Batch.of([[1, 2]]))["params"]
        flat = flax.traverse_util.flatten_dict(params, sep="/")
        return {path: x for path, x in flat.items() if "neighbours" in path}

    flat, door = flax.traverse_util.flatten_dict(params, sep="/"), initial(jax.random.key(0))
    assert door and door.keys() < flat.keys()
    return flax.traverse_util.unflatten_dict(flat | door, sep="/")


def batch_of(name, tokens, segments=None, chunks=5, of=None, seed=0):
    vectors = (
        np.random.default_rng(seed).normal(size=(len(tokens), chunks, 3, WIDTH)).astype(np.float32)
    )
    read = (
        dict(encoder_tokens=np.asarray(tokens)[:, :5], encoder_segments=np.ones((len(tokens), 5)))
        if name in SEQ2SEQ
        else {}
    )
    return lm.Batch.of(tokens, segments, neighbours=vectors, neighbour_segments=of, **read)


def run(model, params, batch):
    return np.asarray(lm.forward(model, params, batch).logits)


def changed_chunk(batch, chunk):
    vectors = np.array(batch.neighbours)
    vectors[:, chunk] += 1.0
    return batch.replace(neighbours=vectors)


@pytest.mark.parametrize("name", DOORS)
def test_a_chunks_neighbours_are_seen_from_its_last_token_on_and_by_none_before(name):
    """With one layer and no other mixing, tokens up to the next chunk's last but one see them.

    In deeper models later tokens are affected too.
    """
    model, params = make(name)
    batch = batch_of(name, np.arange(1, 19)[None])
    plain = run(model, params, batch)
    for chunk in (0, 2):
        difference = np.abs(run(model, params, changed_chunk(batch, chunk)) - plain).max(
            axis=(0, 2)
        )
        first = CHUNK * (chunk + 1) - 1
        np.testing.assert_array_equal(difference[:first], 0.0)
        assert difference[first : first + CHUNK].min() > 1e-4
    # The row ends before any token may see these neighbours.
    np.testing.assert_array_equal(run(model, params, changed_chunk(batch, 4)), plain)


def test_one_door_equals_the_formula_token_by_token():
    """Against plain attention of each token to its chunk (Borgeaud et al. 2022, section 2.4)."""
    from lm.models.attention import NeighbourAttention

    model, _ = make("llama")
    door, r = NeighbourAttention(model.config), np.random.default_rng(0)
    x, vectors = (
        r.normal(size=(2, 11, 32)).astype(np.float32),
        r.normal(size=(2, 3, 5, WIDTH)).astype(np.float32),
    )
    segments = np.asarray([[1] * 11, [1] * 5 + [2] * 4 + [0] * 2], np.int32)
    of = r.integers(0, 3, (2, 3, 5), np.int32)
    boxed = door.init(jax.random.key(0), x, vectors, of, segments)["params"]
    p = {n: r.normal(size=b.value.shape).astype(np.float32) for n, b in boxed.items()}
    expected = np.zeros_like(x)
    for b, t in np.ndindex(2, 11):
        chunk = (t + 1) // CHUNK - 1
        if not 0 <= chunk < 3:
            continue
        keep = (of[b, chunk] == segments[b, t]) & (of[b, chunk] != 0)
        if not keep.any():
            continue
        q = np.einsum("d,dhk->hk", x[b, t], p["query"])
        k, v = (
            np.repeat(np.einsum("sn,njk->sjk", vectors[b, chunk][keep], p[n]), 2, axis=1)
            for n in ("key", "value")
        )
        scores = np.einsum("hk,shk->hs", q, k) / np.sqrt(8)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        y = np.einsum("hs,shk->hk", weights / weights.sum(-1, keepdims=True), v)
        expected[b, t] = np.einsum("hk,hkd->d", y, p["out"])
    for backend in ("dense", "chunked"):
        door = NeighbourAttention(model.config.replace(attention_backend=backend))
        found = jax.jit(door.apply)({"params": p}, x, vectors, of, segments)
        np.testing.assert_allclose(found, expected, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mamba", "bart"])
def test_reading_in_pieces_gives_what_one_pass_gives(name):
    model, params = lm.separate(*make(name))
    batch = batch_of(name, np.arange(1, 15)[None])
    whole = run(model, params, batch)
    cache, pieces = lm.init_cache(model.config, 1, 20, 5), []
    apply = jax.jit(lambda batch, cache: model.apply({"params": params}, batch, cache))
    for piece in (slice(0, 5), slice(5, 6), slice(6, 7), slice(7, 14)):
        part = {
            n: getattr(batch, n)[:, piece]
            for n in ("tokens", "targets", "weights", "segments", "positions")
        }
        out = apply(batch.replace(**part), cache)
        cache = out.cache
        pieces.append(out.logits)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=3e-5)


def test_a_packed_document_sees_only_what_was_retrieved_for_it():
    model, params = make("llama")
    documents = [list(range(1, 8)), list(range(20, 29))]
    packed = pack(documents, 16)
    of = np.asarray([[[1, 1, 1], [1, 2, 0], [2, 2, 2], [2, 2, 2], [0, 0, 0]]])
    batch = batch_of("llama", packed.tokens, packed.segments, of=of)
    plain = run(model, params, batch)
    for segment, inside in ((1, slice(0, 7)), (2, slice(7, 16))):
        vectors = np.where(of[..., None] == segment, batch.neighbours + 1.0, batch.neighbours)
        difference = np.abs(run(model, params, batch.replace(neighbours=vectors)) - plain).max(
            axis=(0, 2)
        )
        assert difference[inside].max() > 1e-3
        difference[inside] = 0
        np.testing.assert_array_equal(difference, 0.0)


@pytest.mark.parametrize("name", ["llama", "mamba2", "gpt2"])
def test_gradients_reach_the_neighbours_and_the_door(name):
    model, params = make(name)
    batch = batch_of(name, np.arange(1, 19)[None])

    def loss(params, vectors):
        return jnp.sum(
            jnp.sin(model.apply({"params": params}, batch.replace(neighbours=vectors)).logits)
        )

    of_params, of_vectors = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, batch.neighbours)
    assert np.abs(of_vectors[:, :4]).max(axis=(0, 2, 3)).min() > 1e-6
    doors = [
        x
        for path, x in jax.tree_util.tree_leaves_with_path(of_params)
        if "neighbours" in jax.tree_util.keystr(path)
    ]
    assert min(np.abs(x).max() for x in doors) > 1e-6


@pytest.mark.parametrize("name", DOORS)
def test_an_untrained_door_leaves_a_model_what_it_was(name):
    model, params = make(name)
    params = untrained(model, params)
    batch = batch_of(name, np.arange(1, 19)[None])
    with_neighbours = run(model, params, batch)
    without = run(model, params, batch.replace(neighbours=None, neighbour_segments=None))
    np.testing.assert_array_equal(with_neighbours, without)


def program(model, batch) -> str:
    """Text of loss and gradient as lowered for the compiler; equal text, equal program."""

    def loss(params):
        return jnp.sum(model.apply({"params": params}, batch).logits)

    return jax.jit(jax.grad(loss)).lower(model.shapes()).as_text()


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_off_costs_nothing(name):
    """With the door off, its other settings do not affect the program; on, they do."""
    off = make(name)[0].config.replace(neighbour_layers=())
    batch = lm.Batch.of([[1, 2, 3, 4]])
    expected = program(lm.build(off), batch)
    assert program(lm.build(off.replace(neighbour_chunk=16, neighbour_width=0)), batch) == expected
    assert program(make(name)[0], batch_of(name, [[1, 2, 3, 4]])) != expected
    stacked = lm.build(off).shapes()["layers"]
    assert not any(part.startswith("neighbours") for part in stacked)


def test_neighbours_are_never_silently_ignored():
    model, params = make("llama")
    off = lm.build(model.config.replace(neighbour_layers=()))
    batch = batch_of("llama", [[1, 2, 3, 4]])
    with pytest.raises(ValueError, match="would be ignored: set model"):
        lm.forward(off, params, batch)
    with pytest.raises(ValueError, match=r"expected \[B, C, S, N\]"):
        lm.Batch.of([[1, 2]], neighbours=np.zeros((2, 1, 3, WIDTH)))
    with pytest.raises(
        lm.ConfigError, match=r"neighbour_layers=\(3,\): expected different layers from 0 to 2"
    ):
        model.config.replace(neighbour_layers=(3,))


def test_a_model_that_is_given_no_neighbours_says_nothing(caplog):
    model, params = make("llama")
    _say_alone.cache_clear()
    for _ in range(2):
        lm.generate(model, params, [[1, 2]], 1)
    said = [r.message for r in caplog.records if "attends to retrieved neighbours" in r.message]
    assert (
        len(said) == 1
        and f"in layers {', '.join(map(str, DOORS['llama']))}" in said[0]
        and "is given none" in said[0]
    )
