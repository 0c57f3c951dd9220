"""Checks a memory on disk: python -m retrieval.verify --memory=DIR; exit code 0 when it is sound, 1 when it is not"""

import json
import sys

from retrieval.cli import entry_point, open_memory, parser


@entry_point
def main(argv=None):
    options = parser("retrieval.verify", "Read all of a memory's passages and its index and compare them with their checksums.")
    args = options.parse_args(argv)
    memory = open_memory(args.memory, None)
    problems = memory.verify()
    if args.json:
        print(json.dumps({"memory": str(args.memory), "version": memory.version, "problems": problems}, ensure_ascii=False))
    else:
        print("\n".join(problems) or f"{args.memory}: {len(memory):,} passages in version {memory.version}, all sound")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
