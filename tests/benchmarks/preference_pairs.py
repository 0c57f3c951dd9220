"""Preference learning on real text: python -m tests.benchmarks.preference_pairs --data=DIR

DIR has JSON lines of T0 (`prompt`, `completion`). An answer of a person or a data set is preferred
to the same answer with its words shuffled, with its second half cut off, or with its first half
repeated. The data sets of HELD_OUT are not trained on. A byte-level Llama of 0.9 M parameters
learns the preferred answers (instruct tuning); DPO and a reward model start from it. Prints
accuracy on held-out pairs by kind, before and after, and how far scores follow length.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

import lm
from configs.defaults import defaults
from lm import tasks
from lm.batch import Batch
from lm.data import templates
from lm.data.encode import preference as encoding
from lm.evaluation.accuracy import wilson
from lm.tasks.preference import DPO, Pairs, lengths
from lm.tasks.reward import Reward
from lm.training import loop

HELD_OUT = "gigaword", "social_i_qa", "glue", "paws"
KINDS = "shuffled", "cut", "repeated"
PROMPT, ANSWER, WORDS = 80, 100, 5  # most bytes of both, least words of an answer
TEMPLATE, LENGTH = "tulu", 512  # tokens of a row, both answers of a pair


def spoilt(answer: str, kind: str, rng: np.random.Generator) -> str:
    """A worse answer: of the same length, shorter, or longer."""
    words = answer.split()
    half = (len(words) + 1) // 2
    if kind == "cut":
        return " ".join(words[:half])
    if kind == "repeated":
        return " ".join(words[:half] + words)
    while (found := [words[at] for at in rng.permutation(len(words))]) == words:
        pass
    return " ".join(found)


def records(folder: Path) -> Iterator[tuple[bool, str, dict]]:
    """(held out, kind, pair) of every answer, each of them once."""
    rng, seen = np.random.default_rng(0), set()
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            answer = " ".join(row["completion"].replace("<|endoftext|>", "").split())
            words = answer.split()
            fits = len(words) >= WORDS and len(answer.encode()) <= ANSWER
            if not fits or len(set(words)) < 2 or answer in seen:
                continue
            seen.add(answer)
            prompt = row["prompt"].strip().encode()[-PROMPT:].decode(errors="ignore")
            for kind in KINDS:
                pair = {"prompt": prompt, "chosen": answer, "rejected": spoilt(answer, kind, rng)}
                yield path.name.startswith(HELD_OUT), kind, pair


def write(folder: Path, data: Path) -> dict[str, int]:
    """Write train.jsonl and a file of held-out pairs a kind; the number of pairs in each."""
    parts: dict[str, list[dict]] = {name: [] for name in ("train", *KINDS)}
    for held_out, kind, pair in records(data):
        parts[kind if held_out else "train"].append(pair)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {name: len(rows) for name, rows in parts.items()}


def config(folder: Path, task: str, start: str, steps: int, seed: int, rate: float):
    """Of a run; start: the run it starts from, "" = a new model."""
    c = defaults()
    c.seed, c.steps, c.length, c.batch_size = seed, steps, LENGTH, 4
    fields = {"format": "completion", "completion_field": "chosen"} if task == "instruct" else {}
    c.task = tasks.defaults(task, template=TEMPLATE, **fields)
    c.data.files = str(folder / "train.jsonl")
    if start:
        c.init_from = start
    else:
        c.tokenizer = "bytes"
        c.model.update(d_model=128, n_layers=4, n_heads=4, n_kv_heads=4, head_dim=32, d_ff=384)
        c.model.max_length = LENGTH
    c.eval.every, c.checkpoint.every = 0, steps
    c.optimizer.learning_rate, c.optimizer.warmup = rate, steps // 10
    c.optimizer.weight_decay = 0.0
    c.log.tensorboard = False
    return c


def trained(c, workdir: Path) -> float:
    """Train, and give the seconds it took."""
    start = time.perf_counter()
    loop.train(c, str(workdir))
    return time.perf_counter() - start


def scored(run: Path, task: Pairs, files: Path) -> tuple[np.ndarray, np.ndarray]:
    """Score and tokens of both answers of each pair, [N, 2] each."""
    model, params, tokenizer = lm.load(str(run))
    template = templates.get(TEMPLATE, tokenizer)
    packed = encoding.pack_files(
        str(files), template, tokenizer, (LENGTH, 0), run / "pairs", whole=task.whole
    )
    read = jax.jit(lambda params, batch: (task.scored(model, params, batch), lengths(batch)))
    found = []
    for at in range(len(packed)):
        row = {name: getattr(packed, name) for name in ("tokens", "targets", "segments")}
        row = {
            name: np.asarray(x[at : at + 1], np.int32) for name, x in (row | packed.extra).items()
        }
        batch = Batch.of(**row | {"weights": row["weights"].astype(np.float32)})
        values, sizes = map(np.asarray, read(params, batch))
        real = (sizes > 0).all(axis=-1)
        found.append((values[real], sizes[real]))
    values, sizes = map(np.concatenate, zip(*found, strict=True))
    return values, sizes


def accuracy(values: np.ndarray) -> str:
    """Share of pairs whose chosen answer has the higher score, with its 95 % interval."""
    right = int((values[:, 0] > values[:, 1]).sum())
    low, high = wilson(right, len(values))
    return f"{right / len(values):.1%} ({low:.1%} to {high:.1%})"


def correlation(values: np.ndarray, sizes: np.ndarray) -> float:
    """Of scores and lengths, over all answers."""
    return float(np.corrcoef(values.ravel(), sizes.ravel())[0, 1])


def report(name: str, run: Path, task: Pairs, folder: Path, base: dict | None = None) -> dict:
    """Print accuracies by kind. base: scores that are subtracted, as DPO's reference is."""
    found = {kind: scored(run, task, folder / f"{kind}.jsonl") for kind in KINDS}
    values = {kind: each - (base[kind] if base else 0.0) for kind, (each, _) in found.items()}
    cells = [accuracy(np.concatenate([*values.values()]))]
    cells += [f"{(v[:, 0] > v[:, 1]).mean():.1%}" for v in values.values()]
    sizes = np.concatenate([sizes for _, sizes in found.values()])
    cells.append(f"{correlation(np.concatenate([*values.values()]), sizes):+.2f}")
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    return {kind: each for kind, (each, _) in found.items()}


def main(argv=None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", required=True, type=Path, help="folder of T0's JSON lines")
    options.add_argument("--workdir", required=True, type=Path, help="an empty folder")
    options.add_argument("--steps", default="150,60,90", help="instruct tuning, DPO, reward")
    options.add_argument("--seeds", type=int, default=1)
    args = options.parse_args(argv)
    first, dpo, reward = map(int, args.steps.split(","))
    folder, start = args.workdir, args.workdir / "start"
    print(", ".join(f"{n:,} {name}" for name, n in write(folder, args.data).items()), flush=True)
    spent = trained(config(folder, "instruct", "", first, 0, 2e-3), start)
    print(f"instruct tuning: {spent:.0f} s", flush=True)
    policy, judge = DPO(template=TEMPLATE), Reward(template=TEMPLATE)
    base = report("log-probability, before DPO", start, policy, folder)
    for seed in range(args.seeds):
        run = folder / f"dpo{seed}"
        spent = trained(config(folder, "dpo", str(start), dpo, seed, 2e-4), run)
        report(f"DPO, seed {seed}, {spent:.0f} s: log-probability", run, policy, folder)
        report("the same: log-ratio to the reference", run, policy, folder, base)
        run = folder / f"reward{seed}"
        spent = trained(config(folder, "reward", str(start), reward, seed, 5e-4), run)
        report(f"reward model, seed {seed}, {spent:.0f} s", run, judge, folder)


if __name__ == "__main__":
    main()
