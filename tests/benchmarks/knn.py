"""Cost of kNN-LM: python -m tests.benchmarks.knn [--sizes 10000,100000,1000000]

Generates with SmolLM2-135M, 8 rows, without and with a datastore, k = 64, keys of 128 principal
components. Prints, for each size: tokens per second of both, in rounds that alternate, the ratios
of their times and CPU times, and how long a search of 8 vectors takes alone. The keys are
synthetic: context vectors of the documentation, each with noise of a tenth of their spread.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import lm
from lm.data import samples
from lm.generation.engine import Engine
from lm.generation.requests import Request
from retrieval.datastore import building, manifest, rows
from retrieval.datastore.building import Entries, Settings
from retrieval.datastore.datastore import Datastore
from retrieval.datastore.observer import Observer
from retrieval.datastore.segment import index_kind
from retrieval.doors.knn import KnnLM

ROOT = Path(__file__).parents[2]
ROWS, NEW, K, PCA, ROUNDS, AT_ONCE = 8, 48, 64, 128, 3, 16_384


def real_vectors(observer: Observer) -> tuple[np.ndarray, np.ndarray]:
    """Context vectors of a page, float32 [N, D], and the tokens that follow."""
    packed = rows.of_files(
        str(ROOT / "docs/memory.md"), observer.tokenizer, observer.model.config, observer.length
    )
    seen = list(observer.observe(packed))
    return np.concatenate([s.vectors for s in seen]), np.concatenate([s.targets for s in seen])


def synthetic(path: Path, observer: Observer, vectors, tokens, size: int) -> Datastore:
    rng, scale = np.random.default_rng(0), 0.1 * vectors.std(axis=0)

    def stream():
        for start in range(0, size, AT_ONCE):
            count = min(AT_ONCE, size - start)
            some = rng.integers(0, len(vectors), count)
            noisy = vectors[some] + scale * rng.normal(size=(count, vectors.shape[1]))
            nothing = np.zeros(count, np.int32)
            source = (rows.Source(f"synthetic-{start}"),)
            yield Entries(source, noisy.astype(np.float32), tokens[some], nothing, nothing)

    path.mkdir()
    made = building.write(path, stream(), Settings(PCA, segment=10**9), index_kind(""))
    facts = {"format": manifest.FORMAT, "version": 1, "index": "", "segment": 10**9}
    identity = dict(model=observer.identity.model, tokenizer=observer.identity.tokenizer)
    identity |= dict(tap=observer.tap, width=vectors.shape[1])
    facts |= {"identity": identity, "memory": None, "segments": made, "dead": {}}
    manifest.write(path, facts)
    return Datastore(path)


def cost(model, params, requests, hooks=()) -> tuple[float, float]:
    """Seconds and CPU seconds of a token."""
    engine = Engine(model, rows=ROWS, length=128, stop_tokens=[])
    start, cpu = time.perf_counter(), time.process_time()
    tokens = sum(len(one.tokens) for one in engine.run(params, requests, hooks))
    return (time.perf_counter() - start) / tokens, (time.process_time() - cpu) / tokens


def main(argv=None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sizes", default="10000,100000,1000000")
    sizes = [int(size) for size in options.parse_args(argv).sizes.split(",")]
    model, params = lm.from_hf(samples.fetch("smollm2"))
    tokenizer = lm.load_tokenizer(samples.fetch("smollm2"))
    observer = Observer(model, params, tokenizer, batch_size=4, length=256)
    vectors, tokens = real_vectors(observer)
    model, params = lm.for_decoding(model, params)
    rng = np.random.default_rng(0)
    requests = [Request(rng.choice(tokens, 16).tolist(), NEW) for _ in range(ROWS)]
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            start = time.perf_counter()
            store = synthetic(Path(folder) / str(size), observer, vectors, tokens, size)
            built = time.perf_counter() - start
            hook, both = KnnLM(store, K, 0.25, 10.0), []
            for _ in range(ROUNDS + 1):  # the first compiles
                both.append((cost(model, params, requests), cost(model, params, requests, [hook])))
            (base, base_cpu), (mixed, mixed_cpu) = np.median(both[1:], axis=0)
            start = time.perf_counter()
            for at in range(0, 80, ROWS):
                store.snapshot().search(vectors[at : at + ROWS], K)
            search = (time.perf_counter() - start) / 10
            print(
                f"{size:>9,} entries: base {1 / base:.1f} tokens/s, kNN-LM {1 / mixed:.1f}, time x "
                f"{mixed / base:.2f}, CPU time x {mixed_cpu / base_cpu:.2f}; a search of {ROWS} "
                f"{1e3 * search:.1f} ms; built in {built:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
