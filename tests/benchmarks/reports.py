"""Figures without a peer: growth, compile time, input, saving.

A report is a table: {"columns": names, "rows": values, "note": how it was measured}.
"""

import pathlib
import statistics
import tempfile
import time

import numpy as np

from lm.families import preset
from lm.host_memory import keep_freed
from tests.benchmarks.models import Sizes, compile_step, our_step

TRAINED_AT_ONCE = 4096  # tokens of the largest step that is timed; larger ones are only compiled
GROWTH = {  # axis -> (values, what is common to all)
    "length": ((512, 1024, 2048, 4096, 8192, 16_384, 32_768), {}),
    "length, window 128": ((512, 1024, 2048, 4096, 8192, 16_384, 32_768), {"sliding_window": 128}),
    "window": ((256, 512, 1024, 2048), {"length": 4096}),
    "batch": ((1, 2, 4, 8), {"length": 256}),
    "layers": ((2, 4, 8, 16), {"length": 512}),
    "vocabulary": ((16_384, 32_768, 65_536, 131_072), {"length": 512}),
}
FIELDS = {
    "window": "sliding_window",
    "layers": "n_layers",
    "vocabulary": "vocab_size",
    "length, window 128": "length",
}
DECODER = dict(d_model=256, n_layers=4, n_heads=4, n_kv_heads=4, head_dim=64, d_ff=1024)


def decoder(length: int, **changes):
    c = preset("gpt2", "tiny").replace(**DECODER, vocab_size=50_257)
    return c.replace(max_length=max(length, 1024), **changes)


def step(batch: int = 1, length: int = 512, **changes):
    """(compiled training step of a small GPT-2, function that makes its state, batch)."""
    import lm

    model = lm.build(decoder(length, **changes))
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (batch, length))
    rows = lm.Batch.of(tokens)
    return *compile_step(model, rows), rows


def exponent(xs, ys) -> float:
    """Slope of log y over log x for the larger half of the points."""
    half = min(len(xs) // 2, len(xs) - 2)
    return float(np.polyfit(np.log(xs[half:]), np.log(ys[half:]), 1)[0])


def growth(quick: bool = False) -> dict:
    """Temporary memory and CPU seconds of the training step against one size at a time."""
    import jax

    keep_freed()  # as `openbook train` does
    rows = []
    note = (
        "Training step with AdamW of a GPT-2 of 4 layers, width 256 and 50,257 tokens, one row of "
        "512 tokens, float32. Memory is XLA's report; seconds the least of three steps; exponents "
        "are those of the larger half"
    )
    for axis, (values, common) in GROWTH.items():
        if quick:
            values = tuple(value // 4 for value in values[-2:])
        sizes, memory, seconds = {"batch": 1, "length": 512} | common, [], []
        for value in values:
            these = sizes | {FIELDS.get(axis, axis): value}
            if quick:
                these |= {"length": 64, "vocab_size": 320, "n_layers": 1}
            compiled, start, batch = step(**these)
            memory.append(compiled.memory_analysis().temp_size_in_bytes)
            if these["batch"] * these["length"] <= TRAINED_AT_ONCE:
                state, _ = jax.block_until_ready(compiled(start(), batch))
                spent = []
                for _ in range(1 if quick else 3):
                    begun = time.process_time()
                    state, _ = jax.block_until_ready(compiled(state, batch))
                    spent.append(time.process_time() - begun)
                seconds.append(min(spent))
        rows.append(
            [
                axis,
                f"{values[0]:,} to {values[-1]:,}",
                " ".join(f"{x / 1e6:,.0f}" for x in memory),
                round(exponent(values, memory), 2),
                " ".join(f"{x:.2f}" for x in seconds),
                round(exponent(values[: len(seconds)], seconds), 2),
            ]
        )
    columns = ["axis", "from, doubling", "temporary MB", "exponent", "CPU seconds", "exponent "]
    return {"columns": columns, "rows": rows, "note": note}


def compile_time(quick: bool = False) -> dict:
    """CPU seconds to trace, lower and compile the training step."""
    import jax

    rows, first = [], 0.0
    for layers in (2, 4) if quick else (12, 48, 96):
        spent = []
        for _ in range(1 if quick else 3):
            jax.clear_caches()
            start = time.process_time()
            step(n_layers=layers, **({"length": 32, "vocab_size": 320} if quick else {}))
            spent.append(time.process_time() - start)
        first = first or statistics.median(spent)
        middle = statistics.median(spent)
        rows.append(
            [layers, *(round(x, 2) for x in (min(spent), middle, max(spent), middle / first))]
        )
    columns = ["layers", "min s", "median s", "max s", "ratio"]
    return {"columns": columns, "rows": rows, "note": "GPT-2 of width 256, CPU seconds, no cache"}


def reading(quick: bool = False) -> dict:
    """Rows of memory-mapped packed data per CPU second of one process."""
    import jax

    from lm import tasks
    from lm.data import batches, packed, tokenizers
    from lm.distributed import mesh, sharding

    length, batch, steps = 1024, 32, 4 if quick else 200
    tokenizer = tokenizers.bytes_only()
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    one = mesh.make_mesh(devices=jax.devices()[:1])
    where = sharding.batch_sharding(one, (batch, length))
    rows = []
    for name, family in (("next_token", "gpt2"), ("masked", "bert")):
        c = preset(family, "tiny", vocab_size=len(tokenizer), max_length=length)
        transform = tasks.of({"task": tasks.defaults(name)}).transform(tokenizer, c)
        with tempfile.TemporaryDirectory() as folder:
            at = pathlib.Path(folder) / "rows"
            at.mkdir()
            packed.save(packed.synthetic(len(tokenizer), 256 if quick else 20_000, length), at)
            source = batches.TrainBatches(packed.load(at), batch, 0, where, transform, c)
            next(source)
            start, wall = time.process_time(), time.perf_counter()
            for _ in range(steps):
                jax.block_until_ready(next(source))
            cpu, wall = time.process_time() - start, time.perf_counter() - wall
        each = steps * batch
        rows.append(
            [name, length, round(each / cpu), round(each * length / cpu), round(each / wall)]
        )
    columns = ["task", "length", "rows per CPU second", "tokens per CPU second", "rows/s"]
    return {"columns": columns, "rows": rows, "note": f"batches of {batch}, rows read from a file"}


def saving(quick: bool = False) -> dict:
    """Wall seconds that a save holds up the training loop."""
    import jax

    from lm.training.checkpoints import Checkpoints

    keep_freed()
    sizes = Sizes("gpt2-124m", 1, 16, size="tiny" if quick else "")
    compiled, state, batch = our_step(sizes)
    state, _ = jax.block_until_ready(compiled(state, batch))
    stall, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        writer = Checkpoints(f"{folder}/run", keep=1)
        for step in range(1, 2 if quick else 4):
            start = time.perf_counter()
            writer.save(step, state, {"rows": 0})
            stall.append(time.perf_counter() - start)
            writer.wait()
            whole.append(time.perf_counter() - start)
        writer.close()
    rows = [
        [name, *(round(x, 3) for x in (min(spent), statistics.median(spent), max(spent)))]
        for name, spent in (("loop held up", stall), ("until written and digested", whole))
    ]
    columns = ["save of GPT-2 124M with AdamW", "min s", "median s", "max s"]
    return {"columns": columns, "rows": rows, "note": "wall seconds, asynchronous, local disk"}
