"""ExactIndex on one device and on eight."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from retrieval import ExactIndex
from retrieval.index import exact
from tests.retrieval.index.test_index import brute_force, clustered, names


def mesh_of(devices):
    return jax.make_mesh(
        (devices,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("k", [3, 300])
def test_every_number_of_devices_finds_what_brute_force_finds(devices, k):
    vectors, queries = clustered(2_500), clustered(9, seed=1)
    index = ExactIndex.build(vectors[:100], names(100), mesh_of(devices))
    index.upsert(vectors[100:], names(2_400, 100))
    right, right_scores = brute_force(vectors, queries, k)
    found, scores = index.search(queries, k)
    assert found == right and np.allclose(scores, right_scores, atol=1e-5)
    assert {shard.data.shape[0] for shard in index._vectors.addressable_shards} == {4096 // devices}
    index.delete(names(1_300, 700))  # across blocks, many moved
    kept = np.r_[0:700, 2000:2500]
    right = [
        [f"v{kept[int(id[1:])]}" for id in row] for row in brute_force(vectors[kept], queries, k)[0]
    ]
    assert index.search(queries, k)[0] == right


def test_a_change_of_one_row_is_made_in_the_arrays_own_memory():
    index = ExactIndex.build(clustered(2_000), names(2_000), mesh_of(8))
    index.upsert(clustered(1, seed=2), ["v3"])
    index.delete(["v1999"])
    where = lambda: [
        shard.data.unsafe_buffer_pointer() for shard in index._vectors.addressable_shards
    ]
    before = where()
    index.upsert(clustered(1, seed=3), ["v3"])
    index.delete(["v5"])
    assert where() == before


def test_only_k_scores_a_device_cross_between_devices():
    index, k = ExactIndex.build(clustered(8_000), names(8_000), mesh_of(8)), 16
    with jax.set_mesh(index._mesh):
        program = (
            exact._jitted_top_k.lower(index._vectors, clustered(4), 8_000, k=k, mesh=index._mesh)
            .compile()
            .as_text()
        )
    crossing = re.findall(
        r"= \(?(?:f32|s32)\[([\d,]+)\][^\n]* "
        r"(?:all-gather|all-reduce|all-to-all|collective-permute)",
        program,
    )
    assert crossing and all(
        np.prod([int(n) for n in shape.split(",")]) <= 4 * 8 * k for shape in crossing
    )


def test_many_queries_are_split_and_an_outer_mesh_does_not_matter(monkeypatch):
    vectors, queries = clustered(500), clustered(33, seed=1)
    index = ExactIndex.build(vectors, names(500))
    monkeypatch.setattr(exact, "SCORES_AT_ONCE", 10 * 1024)
    with jax.set_mesh(jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)):
        assert index.search(queries, 5)[0] == brute_force(vectors, queries, 5)[0]
        index.upsert(vectors[:1], ["new"])
    assert index.health() == {"kind": "exact", "size": 501, "devices": 8, "recall": 1.0}
