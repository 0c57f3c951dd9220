"""Undo the latest change of a memory: python -m retrieval.undo --memory=DIR"""

import sys

from retrieval.cli import add_record_options, entry_point, open_memory, parser, print_commit


@entry_point
def main(argv=None):
    options = parser(
        "retrieval.undo",
        "Restore the state before the latest change not yet undone, as a new commit. A second "
        "undo goes one change further back.",
    )
    add_record_options(options)
    args = options.parse_args(argv)
    print_commit(open_memory(args.memory, None).undo(args.author, args.reason), args.json)


if __name__ == "__main__":
    sys.exit(main())
