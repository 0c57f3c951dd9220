"""Builds a memory from files, or adds to one: python -m retrieval.build --memory=DIR --encoder=PATH --input=passages.jsonl"""

import json
import sys
import time

from retrieval.cli import add_encoder_option, entry_point, open_memory, parser
from retrieval.read import read_passages


@entry_point
def main(argv=None):
    options = parser(
        "retrieval.build",
        "Build a memory from passages, or add to one that exists. All passages are added in one commit, or none.",
        "A .jsonl file has one JSON object a line: text (required), id, title, source, metadata. A .txt file gives a passage a paragraph.",
    )
    options.add_argument("--input", required=True, nargs="+", metavar="FILE", help=".jsonl or .txt files")
    add_encoder_option(options)
    options.add_argument("--author", help="recorded in the log (default: the user's name)")
    options.add_argument("--reason", default="", help="recorded in the log")
    args = options.parse_args(argv)
    passages = read_passages(args.input)  # before anything slow, so that a bad file is found at once
    from retrieval import Encoder, Memory, RetrievalError
    from retrieval.store import exists

    if exists(args.memory):
        memory = open_memory(args.memory, args.encoder)
    elif args.encoder:
        memory = Memory.create(args.memory, Encoder.from_hf(args.encoder))
    else:
        raise RetrievalError(f"{args.memory} is a new memory: --encoder=PATH says which encoder to make it with")
    started = time.monotonic()
    commit = memory.add(passages, args.author, args.reason)
    seconds = time.monotonic() - started
    if args.json:
        print(
            json.dumps(
                {"memory": str(args.memory), "version": commit.version, "added": len(passages), "size": len(memory), "seconds": seconds}
            )
        )
    else:
        print(f"{args.memory}: {len(passages):,} passages added in {seconds:.1f} s, version {commit.version}, {len(memory):,} in all")


if __name__ == "__main__":
    sys.exit(main())
