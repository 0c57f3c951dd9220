"""Check a memory on disk: python -m retrieval.verify --memory=DIR

Exit code 0 when it is sound, 1 when it is not.
"""

import sys

from retrieval.cli import entry_point, open_memory, parser
from retrieval.sanitising import as_json, shown


@entry_point
def main(argv=None):
    options = parser(
        "retrieval.verify",
        "Read all of a memory's passages and its index and compare them with their checksums.",
    )
    args = options.parse_args(argv)
    from retrieval.verification import problems

    found = problems(args.memory)  # also checks what cannot be opened
    memory = None if found else open_memory(args.memory, None)
    if args.json:
        print(
            as_json(
                {
                    "memory": str(args.memory),
                    "version": None if memory is None else memory.version,
                    "problems": found,
                }
            )
        )
    else:
        sound = (
            memory is not None
            and f"{args.memory}: {len(memory):,} passages in version {memory.version}, all sound"
        )
        print(sound or "\n".join(map(shown, found)))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
