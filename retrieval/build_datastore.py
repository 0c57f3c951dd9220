"""Build a token datastore for kNN-LM, bring it up to date, and tune its mixture.

python -m retrieval.build_datastore --datastore=DIR --model=PATH --memory=DIR [--dev='dev/*.txt']
"""

import sys
from pathlib import Path

from retrieval.cli import bare_parser, entry_point, open_memory, place


@entry_point
def main(argv=None):
    options = bare_parser(
        "retrieval.build_datastore",
        "Keep the tokens of a memory's passages, or of text files, with the context vectors that "
        "a model has before them, for kNN-LM. A datastore that is there is brought to the memory's "
        "newest version.",
    )
    options.add_argument("--datastore", required=True, type=Path, metavar="DIR", help="its folder")
    options.add_argument(
        "--model",
        required=True,
        metavar="PATH",
        help="run, directory, hub id or .gguf file of a language model",
    )
    options.add_argument(
        "--memory", type=place, help="folder of the memory, or its URI on an object store"
    )
    options.add_argument("--files", metavar="GLOBS", help="text files, instead of a memory")
    options.add_argument(
        "--tap", default="", help="hidden states that are the keys: ffn_input (default) or hidden"
    )
    options.add_argument(
        "--pca", type=int, default=0, help="numbers of a key; 0 = as many as the hidden state"
    )
    options.add_argument("--index", default="", help="exact or scann; by default what runs here")
    options.add_argument(
        "--length", type=int, default=0, help="longest row in tokens; 0 = as long as it reads"
    )
    options.add_argument("--batch-size", type=int, default=8, help="rows at a time")
    tuning = options.add_argument_group("the mixture, which is tuned with --dev")
    tuning.add_argument("--dev", metavar="GLOBS", help="text files that the mixture shall suit")
    tuning.add_argument("-k", type=int, default=64, help="neighbours")
    tuning.add_argument(
        "--adaptive",
        action="store_true",
        help="fit a network that predicts the share of each token, and skip searches by it",
    )
    tuning.add_argument("--max-rows", type=int, default=0, help="rows of --dev; 0 = all")
    args = options.parse_args(argv)
    if args.memory and args.files:
        options.error("give --memory=DIR or --files=GLOBS, not both")
    if args.adaptive and not args.dev:
        options.error("--adaptive is fitted on --dev=GLOBS: give it too")
    run(args, options)


def run(args, options) -> None:
    from lm.weights.loading import load
    from retrieval.datastore import rows
    from retrieval.datastore.building import Settings
    from retrieval.datastore.datastore import Datastore
    from retrieval.datastore.manifest import MANIFEST
    from retrieval.datastore.observer import Observer

    memory = open_memory(args.memory, None) if args.memory else None
    model, params, tokenizer = load(args.model)
    observer = Observer(model, params, tokenizer, args.tap, args.batch_size, args.length)
    if (args.datastore / MANIFEST).exists():
        store = Datastore(args.datastore)
        store.check(observer.identity)
        done = store.update(memory, observer) if memory is not None else None
    else:
        source = memory
        if source is None:
            if not args.files:
                options.error("give --memory=DIR or --files=GLOBS: what the datastore shall hold")
            source = rows.of_files(args.files, tokenizer, model.config, args.length)
        settings = Settings(args.pca, args.index)
        store, done = Datastore.build(args.datastore, source, observer, settings)
    if done is not None:
        cut = f", {done.split:,} of them in windows" if done.split else ""
        print(
            f"{args.datastore}: version {done.version}, {len(store):,} entries; read "
            f"{done.passages:,} passages{cut}, removed {done.removed:,}"
        )
    if args.dev:
        tune(args, store, observer)


def tune(args, store, observer) -> None:
    from retrieval.datastore import rows
    from retrieval.doors.knn_mixture import skipping
    from retrieval.doors.knn_mixture import tune as tuned
    from retrieval.doors.knn_perplexity import score
    from retrieval.filters import EVERY_GROUP

    packed = rows.of_files(args.dev, observer.tokenizer, observer.model.config, args.length)
    snapshot = store.snapshot(groups=EVERY_GROUP)
    scored = score(observer, packed, snapshot, args.k, args.max_rows, args.adaptive)
    mixture = tuned(scored, args.adaptive)
    mixture.save(args.datastore)
    shares = mixture.shares(scored)
    print(
        f"perplexity {scored.perplexity().perplexity:.3f}, with the datastore "
        f"{scored.perplexity(shares, mixture.temperature).perplexity:.3f}: k {mixture.k}, "
        f"share {shares.mean():.3f}, temperature {mixture.temperature:.4g}"
    )
    if mixture.adaptive is not None:
        for skip, searched, perplexity in skipping(scored, mixture):
            mark = "  (kept)" if skip == mixture.skip else ""
            print(
                f"  searched where the predicted share is at least {skip:<4g}: {searched:6.1%} of "
                f"the tokens, perplexity {perplexity:.3f}{mark}"
            )


if __name__ == "__main__":
    sys.exit(main())
