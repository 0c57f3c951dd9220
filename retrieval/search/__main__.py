"""Search a memory.

python -m retrieval.search --memory=DIR "a question"
"""

import dataclasses
import sys

from retrieval.cli import (
    add_encoder_option,
    add_filter_options,
    add_past_option,
    entry_point,
    filter_options,
    open_memory,
    parser,
)
from retrieval.sanitising import as_json, shown
from retrieval.search import MODES


@entry_point
def main(argv=None):
    options = parser(
        "retrieval.search", "Find the passages of a memory that are most similar to a text."
    )
    options.add_argument(
        "text", nargs="+", help="what to search for; several texts are searched for one by one"
    )
    options.add_argument("-k", type=int, default=5, help="passages to show for each text")
    options.add_argument(
        "--mode",
        choices=MODES,
        default="dense",
        help="by vectors, by words (BM25), or both fused by rank",
    )
    options.add_argument(
        "--diversity",
        type=float,
        default=0.0,
        help="0 to 1: what likeness to hits before it costs a hit",
    )
    options.add_argument(
        "--min-score", type=float, metavar="SCORE", help="leave out hits that score less"
    )
    options.add_argument(
        "--rerank",
        metavar="PATH",
        help="directory or hub id of a cross-encoder that orders what was found anew",
    )
    add_filter_options(options)
    add_past_option(options)
    add_encoder_option(options)
    args = options.parse_args(argv)
    memory = open_memory(args.memory, args.encoder, args.as_of)
    from retrieval import CrossEncoder

    rerank = CrossEncoder.from_hf(args.rerank) if args.rerank else None
    found = memory.search(
        args.text,
        args.k,
        mode=args.mode,
        diversity=args.diversity,
        rerank=rerank,
        **filter_options(args),
    )
    for text, hits in zip(args.text, found, strict=True):
        hits = [hit for hit in hits if args.min_score is None or hit.score >= args.min_score]
        if args.json:
            print(as_json({"query": text, "hits": [dataclasses.asdict(hit) for hit in hits]}))
            continue
        print(shown(text) if hits else f"{shown(text)}\n  nothing that can be read and matches")
        for hit in hits:
            print(
                f"  {hit.score:.3f}  {hit.id}  "
                + shown(f"{hit.title + ': ' if hit.title else ''}{hit.text}")
            )


if __name__ == "__main__":
    sys.exit(main())
