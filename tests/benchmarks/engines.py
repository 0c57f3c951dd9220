"""The compared indexes: how each is built, saved, loaded and searched, and the settings tried.

A curve is a list of search settings in order of effort. The first setting of a curve that reaches
the recall is a candidate, and the fastest candidate represents the engine. Build settings are
those that each project recommends, stated in `about`.
"""

import functools
import importlib
import importlib.util
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.vectors import K

# The CPUs that taskset allows.
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
SCANN = "scann.scann_ops.py.scann_ops_pybind"
# `ef` of a graph index.
EFFORT = (
    10,
    12,
    16,
    20,
    24,
    32,
    40,
    48,
    64,
    80,
    96,
    128,
    160,
    192,
    256,
    320,
    384,
    512,
    768,
    1024,
    1536,
)
PROBES = (
    1,
    2,
    3,
    4,
    6,
    8,
    10,
    12,
    16,
    20,
    24,
    32,
    40,
    48,
    64,
    80,
    96,
    128,
    160,
    192,
    256,
    384,
    512,
    768,
    1024,
)
REORDER = (15, 20, 30, 40, 60, 80, 100, 150, 200, 300)


class Engine(NamedTuple):
    about: str
    modules: tuple[str, ...]
    build: Callable[[np.ndarray], Any]
    save: Callable[[Any, Path], None]
    load: Callable[[Path], Any]
    curves: Callable[[int], list[list[tuple]]]  # rows -> settings
    # index, queries [Q, D], setting -> row numbers [Q, K]
    many: Callable[[Any, np.ndarray, tuple], Any]
    one: Callable[[Any, np.ndarray, tuple], Any]  # index, query [D], setting -> row numbers [K]

    def there(self) -> bool:
        return all(importlib.util.find_spec(module.partition(".")[0]) for module in self.modules)

    def warm(self) -> None:
        """Import the engine's modules, so that they do not count towards the index's memory."""
        for module in self.modules:
            importlib.import_module(module)


def leaves(rows: int) -> int:
    """Number of partitions of ScaNN's tree: twice the square root of the rows."""
    return max(1, 2 * math.isqrt(rows))


def lists(rows: int) -> int:
    """Number of inverted lists of faiss: four times the square root of the rows.

    This is the least that faiss's guidelines recommend below a million rows.
    """
    return max(1, 4 * math.isqrt(rows))


# Ours


def ours_build(base):
    from retrieval import ScannIndex

    return ScannIndex.build(base, [str(row) for row in range(len(base))])


def ours_save(index, folder):
    index.save(folder)


def ours_load(folder):
    from retrieval import ScannIndex

    index = ScannIndex.load(folder)[0]
    # The index measures its own recall in the background, which would disturb the timing.
    index._look_at = math.inf
    return index


@functools.cache
def given(setting: tuple):
    from retrieval.index.tuning import Tuning

    return (
        Tuning(leaves_searched=setting[0], reorder=setting[1], reach=setting[2])
        if setting
        else Tuning()
    )


def ours_many(index, queries, setting):
    """Search a batch. An empty setting means the one that the index chose itself."""
    tuned(index, given(setting))
    return index.search(queries, K)[0]


def ours_curves(rows):
    reaches = (*np.geomspace(0.02, 0.4, 14).round(3).tolist(), 0.0)  # 0: no limit
    return [
        [(probe, reorder, reach) for probe, reorder in curve]
        for curve in scann_curves(rows)
        for reach in reaches
    ]


def tuned(index, tuning) -> None:
    if index._trained.tuning is not tuning:
        index._trained.tuning, index._trained.widths = tuning, {}


# Plain ScaNN


def scann_build(base):
    from scann.scann_ops.py import scann_ops_pybind

    builder = scann_ops_pybind.builder(base, K, "dot_product")
    if len(base) >= 1000:
        builder = builder.tree(
            leaves(len(base)), leaves(len(base)) // 4, training_sample_size=min(len(base), 250_000)
        )
    return builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(200).build()


def scann_save(index, folder):
    folder.mkdir()
    index.serialize(str(folder), relative_path=True)


def scann_load(folder):
    from scann.scann_ops.py import scann_ops_pybind

    index = scann_ops_pybind.load_searcher(str(next(folder.rglob("scann_config.pb")).parent))
    index.set_num_threads(THREADS)
    return index


def scann_curves(rows):
    probes = sorted({max(1, round(leaves(rows) * share)) for share in np.geomspace(1 / 400, 1, 32)})
    return [[(probe, reorder) for probe in probes] for reorder in REORDER]


def scann_many(index, queries, setting):
    return index.search_batched_parallel(
        queries, K, setting[1], setting[0], -(-len(queries) // THREADS)
    )[0]


def scann_one(index, query, setting):
    return index.search(query, K, setting[1], setting[0])[0]


# faiss


def faiss_build(factory: str):
    def build(base):
        import faiss

        faiss.omp_set_num_threads(THREADS)
        dim = base.shape[1]
        index = faiss.index_factory(
            dim, factory.format(lists=lists(len(base)), blocks=dim // 2), faiss.METRIC_INNER_PRODUCT
        )
        if factory.startswith("HNSW"):
            index.hnsw.efConstruction = 100
        index.train(base)
        index.add(base)
        return index

    return build


def faiss_save(index, path):
    import faiss

    faiss.write_index(index, str(path))


def faiss_load(path):
    import faiss

    faiss.omp_set_num_threads(THREADS)
    return faiss.read_index(str(path))


def faiss_parameters(index, setting):
    """Search parameters for one call, so that the index itself is not changed."""
    import faiss

    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=setting[0])
    probes = faiss.SearchParametersIVF(nprobe=setting[0])
    if len(setting) == 1:
        return probes
    return faiss.IndexRefineSearchParameters(k_factor=setting[1], base_index_params=probes)


def faiss_many(index, queries, setting):
    return index.search(queries, K, params=faiss_parameters(index, setting))[1]


def one_of_many(many):
    return lambda index, query, setting: many(index, query[None], setting)[0]


# Graphs with a library of their own


def hnswlib_build(base):
    import hnswlib

    index = hnswlib.Index("ip", base.shape[1])
    index.init_index(len(base), M=16, ef_construction=200)
    index.add_items(base, num_threads=THREADS)
    return index


def hnswlib_load(path):
    import hnswlib

    dim = int(path.with_suffix(".dim").read_text())
    index = hnswlib.Index("ip", dim)
    index.load_index(str(path))
    return index


def hnswlib_save(index, path):
    index.save_index(str(path))
    path.with_suffix(".dim").write_text(str(index.dim))


def hnswlib_search(threads: int):
    def search(index, queries, setting):
        index.set_ef(setting[0])
        return index.knn_query(queries, K, num_threads=threads)[0]

    return search


def usearch_build(base):
    from usearch.index import Index

    index = Index(ndim=base.shape[1], metric="ip", dtype="f32", connectivity=16, expansion_add=128)
    index.add(np.arange(len(base)), base, threads=THREADS)
    return index


def usearch_save(index, path):
    index.save(str(path))


def usearch_load(path):
    from usearch.index import Index

    return Index.restore(str(path))


def usearch_search(threads: int):
    def search(index, queries, setting):
        index.expansion_search = setting[0]
        # A single query gives a vector.
        return index.search(queries, K, threads=threads).keys.reshape(len(queries), K)

    return search


def graph(rows):
    return [[(effort,) for effort in EFFORT]]


def inverted(rows):
    return [[(probe,) for probe in PROBES if probe <= lists(rows)]]


def refined(rows):
    return [
        [(probe, factor) for probe in PROBES if probe <= lists(rows)]
        for factor in (1, 2, 4, 8, 16, 32)
    ]


def faiss_engine(about: str, factory: str, curves) -> Engine:
    return Engine(
        about,
        ("faiss",),
        faiss_build(factory),
        faiss_save,
        faiss_load,
        curves,
        faiss_many,
        one_of_many(faiss_many),
    )


ENGINES = {
    "ScannIndex": Engine(
        "as retrieval.Memory uses it",
        (SCANN, "retrieval.index.approximate"),
        ours_build,
        ours_save,
        ours_load,
        ours_curves,
        ours_many,
        one_of_many(ours_many),
    ),
    "scann": Engine(
        "2 sqrt(n) leaves, 2 dimensions a block, reorder",
        (SCANN,),
        scann_build,
        scann_save,
        scann_load,
        scann_curves,
        scann_many,
        scann_one,
    ),
    "faiss HNSW": faiss_engine("M=32, efConstruction=100", "HNSW32", graph),
    "faiss IVF,Flat": faiss_engine("4 sqrt(n) lists", "IVF{lists},Flat", inverted),
    "faiss IVF,PQfs": faiss_engine(
        "4 sqrt(n) lists, 2 dimensions a block, refined", "IVF{lists},PQ{blocks}x4fs,RFlat", refined
    ),
    "hnswlib": Engine(
        "M=16, ef_construction=200",
        ("hnswlib",),
        hnswlib_build,
        hnswlib_save,
        hnswlib_load,
        graph,
        hnswlib_search(THREADS),
        one_of_many(hnswlib_search(1)),
    ),
    "usearch": Engine(
        "connectivity=16, expansion_add=128, float32",
        ("usearch.index",),
        usearch_build,
        usearch_save,
        usearch_load,
        graph,
        usearch_search(THREADS),
        one_of_many(usearch_search(1)),
    ),
}
