"""Parts of the GPU benchmark. Each returns its figures as a dict; `tiny` shapes are for a CPU."""

import collections
import glob
import statistics
import tempfile
import time

import numpy as np

from lm.families import preset
from lm.models.config import ModelConfig
from tests.benchmarks import models
from tests.benchmarks.models import Sizes

BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12, "A100": 2.0e12}  # bytes/s, as NVIDIA states them
STEPS, TINY_STEPS = 20, 2
# Largest error of attention in bfloat16, relative to the largest value of the float32 reference:
# y and its gradients are rounded to 8 bits, and so are the probabilities.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
LLAMA_1B = dict(
    d_model=2048, n_layers=16, n_heads=32, n_kv_heads=8, head_dim=64, d_ff=8192, vocab_size=128_256
)
IGNORED = ("ThreadpoolListener", "end: ", "ThunkExecutor")  # bookkeeping of a CPU's profile


def train(
    tiny: bool, model: str, batch: int, length: int, profile: bool = False, **changes
) -> dict:
    """Tokens per second and MFU of the training step in bfloat16, after two steps to warm up."""
    import jax

    from lm.training import flops

    sizes = Sizes(model, batch, length, dtype="bfloat16")
    if tiny:
        sizes, changes = Sizes(model, 2, 32, dtype="bfloat16", size="tiny"), {}
    begun = time.perf_counter()
    compiled, state, rows = models.our_step(sizes, **changes)
    compiling = time.perf_counter() - begun
    steps = TINY_STEPS if tiny else STEPS

    def run(count: int):
        nonlocal state
        for _ in range(count):
            state, metrics = compiled(state, rows)
        return float(metrics["loss"])

    run(2)
    start = time.perf_counter()
    loss = run(steps)
    seconds = (time.perf_counter() - start) / steps
    c = sizes.config().replace(**changes)
    read = sizes.length if c.encoder_layers else 0
    memory = compiled.memory_analysis()
    return {
        "tokens_per_second": sizes.tokens / seconds,
        "mfu": flops.utilisation(c, (sizes.length, read), sizes.batch / seconds, 1),
        "flops_a_row": flops.train_per_row(c, sizes.length, read),
        "compile_seconds": compiling,
        "temporary_mb": memory.temp_size_in_bytes / 1e6,
        "loss": loss,
        "device": jax.devices()[0].device_kind,
    } | ({"slowest": slowest(lambda: run(1))} if profile else {})


def slowest(work, count: int = 10) -> list[dict]:
    """The operations that took longest in `work()`, by the profiler; [] where it saw none."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            work()
        files = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        planes = [plane for f in files for plane in jax.profiler.ProfileData.from_file(f).planes]
    lines = [line for p in planes if "/device:" in p.name for line in p.lines]
    if not lines:  # a CPU's operations are on the threads of XLA
        lines = [line for p in planes for line in p.lines if line.name.startswith("tf_XLA")]
    spent: collections.Counter = collections.Counter()
    for line in lines:
        for event in line.events:
            if not event.name.startswith(IGNORED):
                spent[event.name] += event.duration_ns
    total = sum(spent.values())
    return [
        {"operation": name, "ms": ns / 1e6, "share": ns / total}
        for name, ns in spent.most_common(count)
    ]


def decode(tiny: bool, model: str, batch: int, new: int, **changes) -> dict:
    """Tokens per second, and the share of the memory's bandwidth that reading the weights takes."""
    import jax

    import lm

    sizes = Sizes(model, batch, 64, new, "bfloat16")
    if tiny:
        sizes, changes = Sizes(model, batch, 8, 4, "bfloat16", "tiny"), {}
    built = models.our_model(sizes, param_dtype="bfloat16", **changes)
    model, params = lm.separate(*built)
    prompts = sizes.arrays()["tokens"].tolist()
    spent = []
    for _ in range(4):
        start = time.perf_counter()
        lm.generate(model, params, prompts, sizes.new, stop_tokens=[])
        spent.append(time.perf_counter() - start)
    seconds = statistics.median(spent[1:])
    bytes_read = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    kind = jax.devices()[0].device_kind
    best = next((speed for name, speed in BANDWIDTH.items() if name in kind), None)
    share = best and bytes_read * sizes.new / seconds / best
    return {"tokens_per_second": sizes.tokens / seconds, "bandwidth_share": share, "device": kind}


def attention(tiny: bool) -> dict:
    """Errors of every backend, in values and gradients, against dense float32 on this device."""
    import jax
    import jax.numpy as jnp

    from lm.models.attention import backends, dense
    from lm.models.attention.mask import Mask

    batch, length, heads, width = (1, 64, 4, 16) if tiny else (2, 2048, 16, 64)
    rng = np.random.default_rng(0)
    draw = lambda heads: rng.standard_normal((batch, length, heads, width), np.float32)
    one = np.ones((batch, length), np.int32)
    packed = np.sort(rng.integers(1, 6, (batch, length)), axis=1).astype(np.int32)
    cases = {  # name -> (segments, window, key heads)
        "packed": (packed, 0, heads),
        "windowed": (one, length // 8, heads),
        "grouped": (one, 0, heads // 4),
        "packed, windowed, grouped": (packed, length // 8, heads // 4),
    }
    errors, failed, refused = {}, [], {}
    for case, (segments, window, key_heads) in cases.items():
        index = np.arange(length, dtype=np.int32)
        mask = Mask(segments, segments, index, index, causal=True, window=window)
        given = (draw(heads), draw(key_heads), draw(key_heads)), draw(heads)

        def run(attend, dtype, mask=mask, given=given):
            def loss(*qkv):
                y, _ = attend(*qkv, mask, None, scale=width**-0.5, softcap=0.0)
                return jnp.sum(y.astype(jnp.float32) * given[1]), y

            def all_of(*qkv):
                (_, y), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*qkv)
                return y, *gradients

            return jax.device_get(jax.jit(all_of)(*(x.astype(dtype) for x in given[0])))

        with jax.default_matmul_precision("highest"):
            reference = run(dense.attend, jnp.float32)
        for name, kind in backends.BACKENDS.items():
            for dtype, most in TOLERANCE.items():
                shape = dict(n_heads=heads, n_kv_heads=key_heads, head_dim=width)
                c = preset("llama", "tiny", **shape, dtype=dtype, max_length=length)
                if why := kind().why_not(c, mask, jax.default_backend()):
                    refused[f"{case}; {name}; {dtype}"] = why
                    continue
                with jax.default_matmul_precision("highest"):
                    found = run(kind(), jnp.dtype(dtype))
                error = max(
                    float(np.abs(np.float32(x) - y).max() / np.abs(y).max())
                    for x, y in zip(found, reference, strict=True)
                )
                errors[f"{case}; {name}; {dtype}"] = error
                failed += [f"{case}; {name}; {dtype}"] * (not error <= most)
    return {"largest_relative_error": errors, "tolerance": TOLERANCE, "failed": failed} | {
        "refused": refused
    }


def llama_1b(tiny: bool) -> dict:
    return train(tiny, "llama-135m", 4, 4096, max_length=4096, remat="dots", **LLAMA_1B)


PARTS = {  # name -> (most seconds, function of `tiny`), most important first
    "attention": (60, attention),
    "train gpt2-124m at 1,024": (75, lambda t: train(t, "gpt2-124m", 32, 1024, profile=True)),
    "train llama-1b at 4,096": (75, llama_1b),
    "train mamba2-130m at 1,024": (60, lambda t: train(t, "mamba2-130m", 16, 1024, profile=True)),
    "train mamba-130m at 1,024": (60, lambda t: train(t, "mamba-130m", 16, 1024)),
    "decode gpt2-124m, batch 1": (45, lambda t: decode(t, "gpt2-124m", 1, 256)),
    "decode llama-1b, batch 1": (60, lambda t: decode(t, "llama-135m", 1, 256, **LLAMA_1B)),
    "train bert-base at 512": (45, lambda t: train(t, "bert-base", 64, 512)),
    "train t5-base at 512": (60, lambda t: train(t, "t5-base", 16, 512)),
    "decode gpt2-124m, batch 8": (45, lambda t: decode(t, "gpt2-124m", 8, 256)),
}
assert set(LLAMA_1B) <= ModelConfig.__dataclass_fields__.keys()
