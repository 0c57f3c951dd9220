"""Time other forms of two operations: python -m tests.benchmarks.layouts [--quick]

* Projections of one input (queries, keys and values; gate and up): a product for each, which is
  what the models compute, or one product with the matrices side by side.
* The gradient of a table of embeddings: a scatter, which is what the models compute, a scatter of
  tokens that are sorted first, or a product with one-hot vectors.

A line has the milliseconds of each form (median, taken in turns) and the time of the first one
divided by it: CPU time on a CPU (pin it to a core: taskset -c 0), else wall time.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lm.models.layers import rows
from lm.models.matmul import product

ROUNDS = 5
PROJECTIONS = {  # width of the input, and of the outputs
    "GPT-2 124M, query, key and value": (768, (768, 768, 768)),
    "Llama-135M, query, key and value": (576, (576, 192, 192)),
    "Llama-135M, gate and up": (576, (1536, 1536)),
}
DECODED, TRAINED = (1, 8), 2048  # rows; decoding has no backward pass
TABLE, TOKENS = (50_257, 768), (512, 4096)


def milliseconds(forms: dict[str, tuple], seconds: float) -> dict[str, float]:
    """Median time of each form, (function, arguments), after it was compiled."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter

    def took(compiled, args, times: int) -> float:
        start = clock()
        for _ in range(times):
            jax.block_until_ready(compiled(*args))
        return (clock() - start) / times * 1e3

    every = {name: (jax.jit(form), args) for name, (form, args) in forms.items()}
    once = {name: [took(*one, 1) for _ in range(2)][1] for name, one in every.items()}
    found = {name: [] for name in every}
    for _ in range(ROUNDS):
        for name, one in every.items():
            found[name].append(took(*one, max(1, int(seconds * 1e3 / once[name]))))
    return {name: statistics.median(times) for name, times in found.items()}


def projected(width: int, outputs: tuple[int, ...], count: int, dtype) -> dict[str, tuple]:
    """Both forms of projections, with their gradients for rows that are trained."""
    key, *keys = jax.random.split(jax.random.key(0), 1 + len(outputs))
    x = jax.random.normal(key, (count, width), dtype)
    kernels = [
        0.02 * jax.random.normal(key, (width, size))
        for key, size in zip(keys, outputs, strict=True)
    ]
    one = lambda x, kernel: product("BD,DE->BE", x, kernel, dtype)

    def apart(x, *kernels):
        return [one(x, kernel) for kernel in kernels]

    def joined(x, kernel):
        ends = [sum(outputs[: i + 1]) for i in range(len(outputs) - 1)]
        return jnp.split(one(x, kernel), ends, axis=1)

    def form(f: Callable, *kernels) -> tuple:
        if count in DECODED:
            return f, (x, *(kernel.astype(dtype) for kernel in kernels))
        summed = lambda *xs: sum(jnp.sum(jnp.tanh(y.astype(jnp.float32))) for y in f(*xs))
        return jax.grad(summed, tuple(range(1 + len(kernels)))), (x, *kernels)

    return {"apart": form(apart, *kernels), "joined": form(joined, jnp.concatenate(kernels, 1))}


def embedded(table: tuple[int, int], count: int) -> dict[str, tuple]:
    """Forms of the float32 gradient [V, D] of a table, of which tokens are drawn by Zipf's law."""
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, table[0] + 1)
    ids = rng.choice(table[0], count, p=frequency / frequency.sum()).astype(np.int32)
    args = ids, rng.normal(size=(count, table[1])).astype(np.float32)

    def scatter(ids, cotangent):
        looked_up = lambda table: rows(table, ids)
        of_table = jax.linear_transpose(looked_up, jax.ShapeDtypeStruct(table, jnp.float32))
        return of_table(cotangent)[0]

    def sorted_first(ids, cotangent):
        order = jnp.argsort(ids)
        found = cotangent[order], ids[order], table[0]
        return jax.ops.segment_sum(*found, indices_are_sorted=True)

    def one_hot(ids, cotangent):
        return product("BV,BD->VD", jax.nn.one_hot(ids, table[0]), cotangent, jnp.float32)

    return {f.__name__: (f, args) for f in (scatter, sorted_first, one_hot)}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see that it works")
    quick = parser.parse_args(argv).quick
    projections = {"tiny": (8, (8, 4))} if quick else PROJECTIONS
    cases = {
        f"{name}, {count} rows, {dtype.__name__}": projected(*shape, count, dtype)
        for name, shape in projections.items()
        for dtype in (jnp.float32, jnp.bfloat16)
        for count in (*DECODED, 16 if quick else TRAINED)
    } | {
        f"table {table[0]:,} x {table[1]}, {count} tokens": embedded(table, count)
        for table, counts in [((50, 8), (16,)) if quick else (TABLE, TOKENS)]
        for count in counts
    }
    print(f"on {jax.devices()[0].device_kind}")
    for name, forms in cases.items():
        (first, usual), *others = milliseconds(forms, 0.01 if quick else 0.2).items()
        said = [f"{other} {ms:.3g} ms ({usual / ms:.2f})" for other, ms in others]
        print(f"{name}: {first} {usual:.3g} ms, {', '.join(said)}", flush=True)


if __name__ == "__main__":
    main()
