"""Show the history of a memory or of one passage.

python -m retrieval.log --memory=DIR [--id=ID | --diff A B]
"""

import dataclasses
import sys

from retrieval.cli import entry_point, open_memory, parser, print_commit, version_or_time
from retrieval.sanitising import as_json, shown


@entry_point
def main(argv=None):
    options = parser(
        "retrieval.log",
        "Show every commit of a memory, oldest first: version, time, author, action, passages, "
        "reason.",
    )
    what = options.add_mutually_exclusive_group()
    what.add_argument(
        "--id",
        metavar="ID",
        help="only the commits that touched this passage, each with the text it left",
    )
    what.add_argument(
        "--diff",
        nargs=2,
        type=version_or_time,
        metavar=("A", "B"),
        help="what differs between two versions or times",
    )
    args = options.parse_args(argv)
    memory = open_memory(args.memory, None)
    if args.diff:
        diff = dataclasses.asdict(memory.diff(*args.diff))
        if args.json:
            print(as_json(diff))
        else:
            print(
                "\n".join(f"{change:<8}{id}" for change, ids in diff.items() for id in ids)
                or "no passage differs"
            )
        return
    for commit, passage in (
        memory.history(args.id) if args.id else [(commit, None) for commit in memory.log()]
    ):
        if args.json:
            after = {"passage": passage and dataclasses.asdict(passage)} if args.id else {}
            print(as_json(dataclasses.asdict(commit) | after))
        else:
            print_commit(commit, False)
            if args.id:
                text = (
                    f"{passage.title}: {passage.text}"
                    if passage and passage.title
                    else passage.text
                    if passage
                    else "(deleted)"
                )
                print(f"        {shown(text)}")


if __name__ == "__main__":
    sys.exit(main())
