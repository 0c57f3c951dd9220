"""Builds a memory from files, or adds to one: python -m retrieval.build --memory=DIR --encoder=PATH --input=passages.jsonl"""

import json
import shutil
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
    options.add_argument(
        "--replace", action="store_true", help="build anew; the memory there, history and all, gives way when that is done"
    )
    options.add_argument("--author", help="recorded in the log (default: the user's name)")
    options.add_argument("--reason", default="", help="recorded in the log")
    args = options.parse_args(argv)
    passages = read_passages(args.input)  # before anything slow, so that a bad file is found at once
    from retrieval import Encoder, Memory, RetrievalError
    from retrieval.store import check_free, exists

    place = args.memory
    if args.replace:
        if not exists(place):
            check_free(place)
        args.memory = place.with_name(f".{place.name}.building")
        shutil.rmtree(args.memory, ignore_errors=True)  # left by a build that was cut off
    if exists(args.memory):
        memory = open_memory(args.memory, args.encoder)
    elif args.encoder:
        memory = Memory.create(args.memory, Encoder.from_hf(args.encoder))
    else:
        raise RetrievalError(f"{args.memory} is a new memory: --encoder=PATH says which encoder to make it with")
    started = time.monotonic()
    commit = memory.add(passages, args.author, args.reason)
    seconds, size = time.monotonic() - started, len(memory)
    if args.replace:
        shutil.rmtree(place, ignore_errors=True)
        args.memory.replace(place)
    if args.json:
        print(json.dumps({"memory": str(place), "version": commit.version, "added": len(passages), "size": size, "seconds": seconds}))
    else:
        print(f"{place}: {len(passages):,} passages added in {seconds:.1f} s, version {commit.version}, {size:,} in all")


if __name__ == "__main__":
    sys.exit(main())
