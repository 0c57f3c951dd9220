"""Perplexity of texts with and without passages from a memory.

    python -m retrieval.evaluate_text --memory=DIR --reader=PATH --data=FILES \\
        --door=in_context,stride=4

The memory should not hold the texts themselves. With --controls, the same with shuffled and with
random passages: a gain that stays does not come from what the passages say.
"""

import dataclasses
import json
import sys

from retrieval.cli import (
    READER,
    add_door_option,
    add_encoder_option,
    entry_point,
    open_memory,
    parser,
)


@entry_point
def main(argv=None):
    options = parser(
        "retrieval.evaluate_text", "Perplexity of texts with and without passages from a memory."
    )
    options.add_argument("--reader", required=True, metavar="PATH", help=READER)
    options.add_argument("--data", required=True, metavar="FILES", help="texts, as lm.evaluate's")
    add_door_option(options)
    options.add_argument("-k", type=int, default=1, help="passages to retrieve for each stride")
    options.add_argument(
        "--max-texts", type=int, default=0, help="only the first texts; 0 takes all"
    )
    options.add_argument(
        "--controls", action="store_true", help="also with shuffled and with random passages"
    )
    add_encoder_option(options)
    args = options.parse_args(argv)
    if args.max_texts < 0:
        options.error(f"--max-texts={args.max_texts}: expected 0, or a number of texts")
    from lm.data.read import sources
    from retrieval.reading import reliance, texts
    from retrieval.reading.reader import door_of, load_reader

    door = door_of(args.reader, args.door or "in_context,stride=4")
    read = list(sources.documents(sources.find_files(args.data)))[: args.max_texts or None]
    memory = open_memory(args.memory, args.encoder)
    reader = load_reader(args.reader, door)
    views = {"closed-book": None, "open-book": memory}
    if args.controls:
        views |= reliance.controls(memory)
    closed = None
    for name, view in views.items():
        found = texts.score(read, reader, door, view, args.k)
        closed = closed or found
        row = {
            "condition": name,
            "perplexity": found.perplexity,
            "bits_per_byte": found.bits_per_byte,
            "gain": 1 - found.perplexity / closed.perplexity,
            **dataclasses.asdict(found),
        }
        if args.json:
            print(json.dumps(row), flush=True)
            continue
        cut = f", {found.cut:,} tokens of them cut" if found.cut else ""
        more = f"{found.passages:,} passages read{cut}; " if view else ""
        print(
            f"{name}: perplexity {found.perplexity:.3f}, {found.bits_per_byte:.4f} bits per byte "
            f"({more}{row['gain']:+.1%} perplexity gained over closed-book)",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
