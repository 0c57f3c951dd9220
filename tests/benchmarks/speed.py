"""Speed of GPT-2 124M in float32: training and greedy decoding, against transformers on torch.

python -m tests.benchmarks.speed              # ten minutes on two idle cores; a Markdown table
python -m tests.benchmarks.speed --rounds=5 --json

Each side runs in its own process, since two thread pools in one would compete for cores. The
processes alternate A B A B, and each returns the median of its timed repetitions after a warm-up.
The table shows medians over rounds, and the median of the ratios within a round.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

TRAIN_BATCH, TRAIN_LENGTH, TRAIN_STEPS = 4, 256, 4
PROMPT_LENGTH, NEW_TOKENS, DECODES = 16, 128, 3


def repeat(run, times: int) -> float:
    """Median seconds of `run()` after one call to warm up."""
    run()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def ours_model():
    import jax

    import lm
    from lm.families import preset

    model = lm.build(preset("gpt2", "124m"))
    return model, jax.jit(model.init)(jax.random.key(0), lm.Batch.of([[0, 0]]))["params"]


def ours_train() -> float:
    import jax
    import numpy as np

    import lm
    from lm.distributed import mesh, sharding
    from lm.losses.tokens import token_loss
    from lm.training import optimizer, schedules, state, step

    model, _ = ours_model()
    devices = mesh.make_mesh()
    schedule = schedules.schedule("cosine", 1e-4, 10, 100, 0.1)
    adamw = optimizer.adamw(schedule)
    current = state.create_state(model, adamw, devices, 0)
    train_step = jax.jit(step.make_train_step(model, token_loss, adamw, schedule), donate_argnums=0)
    batch = lm.Batch.of(
        np.random.default_rng(0).integers(0, model.config.vocab_size, (TRAIN_BATCH, TRAIN_LENGTH))
    )

    def run():
        nonlocal current
        current, metrics = train_step(current, batch)
        metrics["loss"].block_until_ready()

    with sharding.activate(devices):
        return TRAIN_BATCH * TRAIN_LENGTH / repeat(run, TRAIN_STEPS)


def ours_decode() -> float:
    import lm

    model, params = lm.separate(*ours_model())
    prompt = [list(range(100, 100 + PROMPT_LENGTH))]
    return NEW_TOKENS / repeat(
        lambda: lm.generate(model, params, prompt, NEW_TOKENS, stop_tokens=[]), DECODES
    )


def torch_model():
    import torch
    import transformers

    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    )


def torch_train() -> float:
    import torch

    model = torch_model()
    adamw = torch.optim.AdamW(model.parameters(), 1e-4)
    tokens = torch.randint(0, model.config.vocab_size, (TRAIN_BATCH, TRAIN_LENGTH))

    def run():
        adamw.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()

    return TRAIN_BATCH * TRAIN_LENGTH / repeat(run, TRAIN_STEPS)


def torch_decode() -> float:
    import torch

    model = torch_model().eval()
    tokens = torch.arange(100, 100 + PROMPT_LENGTH)[None]
    options = dict(
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        attention_mask=torch.ones_like(tokens),
    )
    with torch.no_grad():
        return NEW_TOKENS / repeat(lambda: model.generate(tokens, **options), DECODES)


SIDES = {f.__name__: f for f in (ours_train, torch_train, ours_decode, torch_decode)}


def measure(side: str) -> float:
    """Tokens per second of one side, in a new process."""
    command = [sys.executable, "-m", "tests.benchmarks.speed", f"--side={side}"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(SIDES[args.side]())
        return
    rows = []
    for task, name in (
        ("train", f"training step, batch {TRAIN_BATCH} x {TRAIN_LENGTH}"),
        ("decode", f"greedy, batch 1, {NEW_TOKENS} new"),
    ):
        pairs = []
        for i in range(args.rounds):
            print(f"{name}: round {i + 1} of {args.rounds}", file=sys.stderr)
            pairs.append((measure(f"ours_{task}"), measure(f"torch_{task}")))
        ours, peer = (statistics.median(side) for side in zip(*pairs, strict=True))
        rows.append(
            {
                "task": name,
                "ours": ours,
                "torch": peer,
                "ratio": statistics.median(a / b for a, b in pairs),
            }
        )
    if args.json:
        print(json.dumps(rows))
        return
    print(f"{platform.machine()}, {os.cpu_count()} CPUs; tokens per second\n")
    print(
        "| GPT-2 124M, float32 | Openbook | transformers on torch | ratio |\n"
        "| --- | --- | --- | --- |"
    )
    for row in rows:
        print(f"| {row['task']} | {row['ours']:.1f} | {row['torch']:.1f} | {row['ratio']:.2f} |")


if __name__ == "__main__":
    main()
