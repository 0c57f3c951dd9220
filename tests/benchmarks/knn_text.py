"""Adaptation without training: python -m tests.benchmarks.knn_text --wikitext=FILE --plays=FILE

Each text is split into a store (60 %), a dev and a test part, by article or by runs of lines.
Perplexity of SmolLM2-135M-Instruct on each test part is measured

* with the weights alone;
* with a kNN-LM over each store, with share and temperature tuned on dev, and the curve of skipped
  searches where the share is predicted;
* with --steps, after as many updates of all weights on the part that the store holds.

Prints a line each, with CPU seconds and bytes. A datastore in --workdir is used again.
"""

import argparse
import re
import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

import lm
from configs.defaults import defaults
from lm.data import samples
from lm.training import loop
from retrieval.datastore import rows
from retrieval.datastore.building import Settings
from retrieval.datastore.datastore import Datastore
from retrieval.datastore.observer import Observer
from retrieval.doors.knn_mixture import Mixture, skipping, tune
from retrieval.doors.knn_perplexity import Scored

PARTS = {"store": 0.6, "dev": 0.2, "test": 0.2}
K, LENGTH, BATCH = 64, 256, 8
SEEN = "losses", "rows"  # of what an observer gives


def articles(text: str) -> list[str]:
    """Articles of WikiText: each begins with a heading of one level, ` = Title = `."""
    starts = [m.start() for m in re.finditer(r"^ = [^=\n][^\n]* = $", text, re.MULTILINE)]
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


def scenes(text: str) -> list[str]:
    """Runs of 200 lines of plain text."""
    lines = text.splitlines(keepends=True)
    return ["".join(lines[at : at + 200]) for at in range(0, len(lines), 200)]


def split(documents: list[str], folder: Path, most: int = 0) -> dict[str, str]:
    """Write consecutive documents to a folder a part, a file each; the patterns of the files.

    most: characters of the store; 0 = no limit.
    """
    sizes = np.cumsum([len(one) for one in documents])
    ends, found, low = sizes / sizes[-1], {}, 0.0
    for name, share in PARTS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        found[name] = f"{folder / name}/*.txt"
        for number, (one, end) in enumerate(zip(documents, ends, strict=True)):
            fits = name != "store" or not most or sizes[number] <= most
            if low < end <= low + share + 1e-9 and fits:
                (folder / name / f"{number:04d}.txt").write_text(one, encoding="utf-8")
        low += share
    return found


def scores(observer: Observer, packed, stores: dict[str, Datastore], most: int):
    """Scored of the first rows with every store; the model reads them once."""
    snapshots = {name: store.snapshot() for name, store in stores.items()}
    kept = {name: [] for name in stores}
    for seen in observer.observe(packed, most):
        own = -seen.losses.astype(np.float64)
        for name, snapshot in snapshots.items():
            near = snapshot.search(seen.vectors, K)
            hits = near.values == seen.targets[:, None]
            kept[name].append((own, near.distances, hits, seen.rows, seen.places, seen.vectors))
    return {
        name: Scored(packed, *map(np.concatenate, zip(*each, strict=True)))
        for name, each in kept.items()
    }


def said(scored: Scored, mixture: Mixture | None = None) -> str:
    share = mixture.shares(scored) if mixture else 0.0
    return shown(-scored.mixed(share, mixture.temperature if mixture else 1.0), scored.rows)


def shown(losses: np.ndarray, rows: np.ndarray) -> str:
    """Perplexity, with the factor of its 95 % interval from the means of the rows."""
    means = [losses[rows == row].mean() for row in np.unique(rows)]
    half = 1.96 * np.std(means, ddof=1) / len(means) ** 0.5
    return f"perplexity {np.exp(losses.mean()):.3f} (x / {np.exp(half):.3f})"


def tuned(path: str, files: str, steps: int, rate: float, seed: int) -> ConfigDict:
    """Config of fine-tuning all weights on text."""
    c = defaults()
    c.seed = seed
    c.init_from, c.data.files, c.length, c.batch_size = path, files, LENGTH, BATCH
    c.steps, c.checkpoint.every, c.eval.every, c.log.every = steps, steps, 0, 1
    c.optimizer.learning_rate, c.optimizer.schedule, c.optimizer.final = rate, "linear", 0.0
    c.optimizer.warmup, c.log.tensorboard = min(2, steps // 2), False
    return c


def built(name: str, files: str, observer: Observer, folder: Path) -> Datastore:
    """The datastore of some files; built where the folder does not exist."""
    if folder.exists():
        return Datastore(folder)
    start = time.process_time()
    read = rows.of_files(files, observer.tokenizer, observer.model.config, LENGTH)
    store, _ = Datastore.build(folder, read, observer, Settings())
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    spent = time.process_time() - start
    print(f"{name}: {len(store):,} entries, {size / 1e6:.0f} MB, {spent:.0f} CPU s", flush=True)
    return store


def main(argv=None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--wikitext", type=Path, required=True)
    options.add_argument("--plays", type=Path, required=True)
    options.add_argument("--workdir", type=Path, default=Path("runs/knn_text"))
    options.add_argument("--model", default="", help="default: SmolLM2 of lm.data.samples")
    options.add_argument("--store", type=int, default=0, help="characters at most; 0 = all")
    options.add_argument("--rows", type=int, default=40, help="of 256 tokens, of dev and of test")
    options.add_argument("--steps", type=int, default=0, help="updates of fine-tuning; 0 = none")
    options.add_argument("--rate", type=float, default=1e-4, help="learning rate of these")
    options.add_argument("--seeds", type=int, nargs="+", default=[0], help="of fine-tuning")
    options.add_argument("--only", default="wikitext,plays", help="texts that are evaluated")
    args = options.parse_args(argv)
    documents = {
        "wikitext": articles(args.wikitext.read_text("utf-8")),
        "plays": scenes(args.plays.read_text("utf-8")),
    }
    texts = {name: split(of, args.workdir / name, args.store) for name, of in documents.items()}
    path = args.model or str(samples.fetch("smollm2"))
    model, params = lm.from_hf(path)
    tokenizer = lm.load_tokenizer(path)
    observer = Observer(model, params, tokenizer, batch_size=BATCH, length=LENGTH)
    stores = {
        name: built(name, parts["store"], observer, args.workdir / f"{name}-store")
        for name, parts in texts.items()
    }
    for name in args.only.split(","):
        read = {
            part: rows.of_files(texts[name][part], tokenizer, model.config, LENGTH)
            for part in ("dev", "test")
        }
        start = time.process_time()
        dev, test = (scores(observer, read[part], stores, args.rows) for part in ("dev", "test"))
        spent = time.process_time() - start
        alone = test[name]
        print(f"{name}, {len(alone.rows):,} tokens: weights alone, {said(alone)}; {spent:.0f} s")
        for seed in args.seeds if args.steps else ():
            start = time.process_time()
            run = str(args.workdir / f"{name}-tuned-{args.steps}-{seed}")
            loop.train(tuned(path, texts[name]["store"], args.steps, args.rate, seed), run)
            spent, (other, weights, _) = time.process_time() - start, lm.load(run)
            after = Observer(other, weights, tokenizer, batch_size=BATCH, length=LENGTH)
            seen = [*after.observe(read["test"], args.rows)]
            losses, number = (np.concatenate([getattr(x, of) for x in seen]) for of in SEEN)
            told = f"{name}, {args.steps} updates, seed {seed}: {shown(losses, number)}"
            print(f"{told}; {spent:.0f} CPU s", flush=True)
        for at in stores:
            for how in (False, True):
                mixture = tune(dev[at], adaptive=how)
                if how and mixture.adaptive is None:
                    print("  a predicted share is no better on dev")
                    continue
                print(
                    f"{name}, kNN-LM over {at}, {'predicted' if how else 'constant'} share: "
                    f"{said(test[at], mixture)}, mean {mixture.shares(test[at]).mean():.3f}, "
                    f"temperature {mixture.temperature:.3g}",
                    flush=True,
                )
                for least, searched, perplexity in skipping(test[at], mixture) if how else ():
                    print(f"  below {least:.2f}: {searched:.1%} searched, {perplexity:.3f}")


if __name__ == "__main__":
    main()
