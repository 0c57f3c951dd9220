"""Finds passages: python -m retrieval.search --memory=DIR "a question" """

import dataclasses
import json
import sys

from retrieval.cli import add_encoder_option, add_past_option, entry_point, open_memory, parser
from retrieval.filters import Filter

MODES = ("dense", "lexical", "hybrid")


@entry_point
def main(argv=None):
    options = parser("retrieval.search", "Find the passages of a memory that are most similar to a text.")
    options.add_argument("text", nargs="+", help="what to search for; several texts are searched for one by one")
    options.add_argument("-k", type=int, default=5, help="passages to show for each text")
    options.add_argument("--mode", choices=MODES, default="dense", help="by vectors, by words (BM25), or both fused by rank")
    options.add_argument("--tag", action="append", default=[], metavar="TAG", help="only passages with this tag; repeat it for more")
    options.add_argument("--after", default="", metavar="TIME", help="only passages of this time (ISO 8601) or later")
    options.add_argument("--before", default="", metavar="TIME", help="only passages of before this time")
    options.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="GROUP",
        help="an access group of who asks, beside what everybody may read; may be repeated",
    )
    options.add_argument("--diversity", type=float, default=0.0, help="0 to 1: what likeness to hits before it costs a hit")
    add_past_option(options)
    add_encoder_option(options)
    args = options.parse_args(argv)
    memory = open_memory(args.memory, args.encoder, args.as_of)
    where = Filter(all_tags=args.tag, after=args.after, before=args.before)
    found = memory.search(args.text, args.k, mode=args.mode, where=where, groups=args.group, diversity=args.diversity)
    for text, hits in zip(args.text, found, strict=True):
        if args.json:
            print(json.dumps({"query": text, "hits": [dataclasses.asdict(hit) for hit in hits]}, ensure_ascii=False))
            continue
        print(text if hits else f"{text}\n  nothing that can be read and matches")
        for hit in hits:
            print(f"  {hit.score:.3f}  {hit.id}  {hit.title + ': ' if hit.title else ''}{hit.text}")


if __name__ == "__main__":
    sys.exit(main())
