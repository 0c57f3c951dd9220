"""Slots against fixed batches for answers of long-tailed lengths: python -m tests.benchmarks.slots

Prints a line for each way to serve 64 prompts, whose answers' lengths are log-normal (median 12, at
most 96), with 8 rows: the forward passes of the batch, their ratio to the ideal (tokens / rows),
the prompts read (with the empty rows beside them), and the CPU seconds. The fixed batches are of
prompts of similar length, as `lm.generate` had them.
"""

import time

import jax
import numpy as np

import lm
from lm.generation.engine import Engine
from lm.generation.requests import Request

ROWS, LENGTH = 8, 128
CONFIG = dict(
    family="gpt2",
    vocab_size=32_000,
    d_model=256,
    n_layers=4,
    n_heads=4,
    n_kv_heads=4,
    head_dim=64,
    d_ff=1024,
    max_length=256,
)


def main() -> None:
    model = lm.build(lm.ModelConfig(**CONFIG))
    params = model.init(jax.random.key(0), lm.Batch.of([[1, 2]]))["params"]
    model, params = lm.separate(model, params)
    rng = np.random.default_rng(0)
    budgets = np.minimum(np.ceil(rng.lognormal(np.log(12), 1.0, 64)), 96).astype(int).tolist()
    prompts = [rng.integers(0, 32_000, n).tolist() for n in rng.integers(4, 32, 64)]
    requests = [Request(p, n) for p, n in zip(prompts, budgets, strict=True)]
    by_length = sorted(requests, key=lambda request: len(request.tokens))
    ways = {
        "fixed batches": [by_length[i : i + ROWS] for i in range(0, 64, ROWS)],
        "slots, as given": [requests],
        "slots, as given, patience 16": [requests],
        "slots, as given, patience 24": [requests],
        "slots, largest budget first": [sorted(requests, key=lambda request: -request.budget)],
    }
    ideal = -(-sum(budgets) // ROWS)
    for round_ in range(3):
        for name, batches in list(ways.items())[:: -1 if round_ == 2 else 1]:
            patience = int(name.partition("patience")[2] or 0)
            engine = Engine(model, rows=ROWS, length=LENGTH, stop_tokens=[], patience=patience)
            start = time.process_time()
            for batch in batches:
                assert all(one.finish == "length" for one in engine.run(params, batch))
            seconds = time.process_time() - start
            if round_:  # the first compiles
                print(
                    f"{name:28} {engine.steps:5d} steps, {engine.steps / ideal:.2f} x ideal, "
                    f"{engine.reads} prompts read, {seconds:.1f} s of CPU",
                    flush=True,
                )


if __name__ == "__main__":
    main()
