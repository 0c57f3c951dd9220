"""Slots against fixed batches for answers of unequal lengths: python -m tests.benchmarks.slots

Prints a line for each way to serve 64 prompts with 8 rows: the forward passes of the batch, their
ratio to the ideal (tokens / rows), the prompts read (with the empty rows beside them), and the CPU
seconds. Known lengths are budgets, log-normal (median 12, at most 96). Unknown lengths come from a
stop token with the probability 1/16 everywhere (at most 96 tokens). The fixed batches are of
prompts of similar length, as `lm.generate` had them.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

import lm
from lm.generation.engine import Engine
from lm.generation.hooks import Hook
from lm.generation.requests import Request

ROWS, LENGTH, MOST = 8, 128, 96
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
UNKNOWN = (0, 32, 24, 16)  # patience


@dataclasses.dataclass(frozen=True)
class Ends(Hook):
    """Gives the stop token, id 0, this probability."""

    probability: float = 1 / 16

    def mix(self, logits, found):
        others = jax.nn.logsumexp(logits[:, 1:], axis=-1)
        odds = jnp.log(self.probability / (1 - self.probability))
        return logits.at[:, 0].set(others + odds)


def main() -> None:
    model = lm.build(lm.ModelConfig(**CONFIG))
    params = model.init(jax.random.key(0), lm.Batch.of([[1, 2]]))["params"]
    model, params = lm.for_decoding(model, params)
    rng = np.random.default_rng(0)
    budgets = np.minimum(np.ceil(rng.lognormal(np.log(12), 1.0, 64)), MOST).astype(int).tolist()
    prompts = [rng.integers(1, 32_000, n).tolist() for n in rng.integers(4, 32, 64)]
    known = [Request(p, n) for p, n in zip(prompts, budgets, strict=True)]
    by_length = sorted(known, key=lambda request: len(request.tokens))
    unknown = [Request(p, MOST) for p in prompts]
    ways = {
        "known lengths, fixed batches": (0, [by_length[i : i + ROWS] for i in range(0, 64, ROWS)]),
        "known lengths, slots": (0, [known]),
        **{f"unknown lengths, slots, patience {n}": (n, [unknown]) for n in UNKNOWN},
    }
    for round_ in range(3):
        for name, (patience, batches) in list(ways.items())[:: -1 if round_ == 2 else 1]:
            free = batches[0][0] in unknown
            engine = Engine(
                model,
                rows=ROWS,
                length=LENGTH,
                sampler=lm.Sample(1.0) if free else lm.Greedy(),
                stop_tokens=[0] if free else [],
                patience=patience,
            )
            start = time.process_time()
            for batch in batches:
                list(engine.run(params, batch, hooks=[Ends()] if free else ()))
            seconds = time.process_time() - start
            if round_:  # the first compiles
                print(
                    f"{name:37} {engine.steps:5d} steps, {engine.tokens} tokens, "
                    f"{engine.steps * ROWS / engine.tokens:.2f} x ideal, {engine.reads} prompts "
                    f"read, {seconds:.1f} s of CPU",
                    flush=True,
                )


if __name__ == "__main__":
    main()
