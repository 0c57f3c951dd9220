"""A trained dual encoder against BM25: python -m tests.benchmarks.dual_encoder --data=xquad.en.json

The paragraphs of a SQuAD file are cut into passages as by `open_book_qa`. Its articles are dealt
into three parts. For each part, the encoder learns the questions of the other two, with the other
passages of a batch as negatives, and also with one that BM25 ranks high (`mine-negatives`). Then
the questions of the part are searched for among all passages, so that every question is asked of
encoders that have not seen its article. Intervals are 95 %, over articles. Runs and ranks that are
already in --workdir are used again.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

import lm
from configs.defaults import defaults
from lm import tasks
from lm.data import samples
from lm.evaluation.scores import bootstrap
from lm.training import loop
from retrieval import Encoder, Memory, Passage, mine_negatives
from retrieval.passages import titled
from tests.benchmarks.open_book_qa import kept, read
from tests.benchmarks.retrieval_quality import places

PARTS = 3
BATCH, TOKENS = 16, 64  # questions of an update; tokens of a text, of which longer ones are cut
NEGATIVES = {"in-batch negatives": 0, "a mined negative": 1}  # method -> mined ones of a question
FIGURES = {
    "recall@1": lambda gains: gains == 1,
    "recall@5": lambda gains: gains >= 1 / 5,
    "MRR": lambda gains: gains,
}


def articles(passages: list[Passage]) -> dict[str, int]:
    """Passage id -> number of its article, which its title tells."""
    titles = {title: at for at, title in enumerate(dict.fromkeys(p.title for p in passages))}
    return {passage.id: titles[passage.title] for passage in passages}


def write(folder: Path, passages: list[Passage], rows: list[dict], encoder) -> Path:
    """Write mined.jsonl: each question with its passage and one of `passages` as a negative."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs, output = folder / "pairs.jsonl", folder / "mined.jsonl"
    texts = {passage.id: titled(passage.title, passage.text) for passage in passages}
    lines = [json.dumps(row | {"context": texts[row["passage"]]}) + "\n" for row in rows]
    pairs.write_text("".join(lines), encoding="utf-8")
    Memory.create(folder / "memory", encoder).add(passages)
    told = [f"--memory={folder / 'memory'}", f"--pairs={pairs}", f"--output={output}", "--replace"]
    if mine_negatives.main(told):
        raise SystemExit(1)
    return output


def config(pairs: Path, negatives: int, model: str, steps: int, seed: int):
    c = defaults()
    c.seed, c.steps, c.batch_size, c.init_from = seed, steps, BATCH, model
    c.length = TOKENS * (2 + negatives)
    named = {"negatives_field": "negatives"} if negatives else {}
    c.task = tasks.defaults(
        "contrastive", pair_field="positive", negatives=negatives, max_long=1.0, **named
    )
    c.data.files = str(pairs)
    c.optimizer.learning_rate, c.optimizer.schedule = 5e-5, "linear"
    c.optimizer.warmup, c.optimizer.weight_decay = steps // 10, 0.01
    c.eval.every, c.checkpoint.every, c.log.every = 0, steps, 1
    c.log.tensorboard = False
    return c


def trained(c, workdir: Path) -> dict:
    start = time.process_time()
    if stopped := loop.train(c, str(workdir)):
        raise SystemExit(stopped)
    return {"cpu_seconds": time.process_time() - start}


def gains(folder: Path, encoder, passages: list[Passage], rows: list[dict], modes) -> dict:
    """mode -> 1 / rank of each question's passage among all, 0 if it is not found."""
    memory = Memory.create(folder, encoder)
    memory.add(passages)
    asked = [(row["question"], row["passage"]) for row in rows]
    return {mode: (1 / places(memory, asked, mode)).tolist() for mode in modes}


def line(name: str, found: np.ndarray, base: np.ndarray, groups: list[int], seconds: str) -> str:
    """Row of the table: figures of 1 / rank [N], and their change from those of BM25."""
    cells = [name]
    for figure in FIGURES.values():
        each = figure(found).astype(float)
        low, high = bootstrap(each, groups)
        cells.append(f"{each.mean():.3f} ({low:.3f} to {high:.3f})")
    for figure in FIGURES.values():
        each = figure(found).astype(float) - figure(base)
        low, high = bootstrap(each, groups)
        cells.append(f"{each.mean():+.3f} ({low:+.3f} to {high:+.3f})")
    return "| " + " | ".join([*cells, seconds]) + " |"


def main(argv=None) -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--data", required=True, type=Path, help="SQuAD's JSON, with titles")
    options.add_argument("--workdir", type=Path, default=Path("runs/dual_encoder"))
    options.add_argument("--encoder", default="", help="default: MiniLM of lm.data.samples")
    options.add_argument("--steps", type=int, default=24, help="updates; about an epoch of XQuAD")
    args = options.parse_args(argv)
    passages, rows = read(args.data)
    article = articles(passages)
    part = [article[row["passage"]] % PARTS for row in rows]
    model = args.encoder or str(samples.fetch("minilm"))
    start, work = Encoder.from_hf(model), args.workdir
    work.mkdir(parents=True, exist_ok=True)
    print(
        f"{len(passages)} passages of {max(article.values()) + 1} articles, {len(rows)} questions"
    )
    found = kept(
        work / "start.json",
        lambda: gains(work / "start", start, passages, rows, ("lexical", "dense", "hybrid")),
    )
    found = {
        "BM25": np.array(found["lexical"]),
        "vectors of the start": np.array(found["dense"]),
        "the same and BM25": np.array(found["hybrid"]),
    }
    spent: dict[str, float] = {}
    for seed in range(PARTS):
        inside = lambda number, seed=seed: number % PARTS != seed
        ours = [p for p in passages if inside(article[p.id])]
        learnt = [row for row, at in zip(rows, part, strict=True) if at != seed]
        held = [at for at, each in enumerate(part) if each == seed]
        pairs = work / f"part{seed}/mined.jsonl"
        if not pairs.exists():
            write(pairs.parent, ours, learnt, start)
        for method, negatives in NEGATIVES.items():
            run = pairs.parent / str(negatives)
            c = config(pairs, negatives, model, args.steps, seed)
            seconds = kept(run.with_suffix(".json"), lambda c=c, run=run: trained(c, run))
            spent[method] = spent.get(method, 0.0) + seconds["cpu_seconds"]
            asked = [rows[at] for at in held]
            after = kept(
                run.with_suffix(".after.json"),
                lambda run=run, asked=asked: gains(
                    run / "memory",
                    Encoder(*lm.load(str(run))),
                    passages,
                    asked,
                    ("dense", "hybrid"),
                ),
            )
            for mode, name in (("dense", method), ("hybrid", f"{method}, and BM25")):
                of = found.setdefault(name, np.zeros(len(rows)))
                of[held] = after[mode]
                print(f"{name}, part {seed}: recall@1 {np.mean(of[held] == 1):.3f}", flush=True)
    groups = [article[row["passage"]] for row in rows]
    heads = [*FIGURES, *(f"{name} − BM25" for name in FIGURES), "CPU s of training"]
    print("| | " + " | ".join(heads) + " |\n|---" + "|---" * len(heads) + "|")
    for name, of in found.items():
        seconds = f"{spent[name]:.0f}" if name in spent else ""
        print(line(name, of, found["BM25"], groups, seconds))


if __name__ == "__main__":
    main()
