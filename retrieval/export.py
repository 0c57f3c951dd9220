"""Export passages as JSON lines, which retrieval.build reads.

python -m retrieval.export --memory=DIR [--history] > passages.jsonl
"""

import dataclasses
import sys

from retrieval.cli import add_past_option, entry_point, parser
from retrieval.passages import Passage
from retrieval.sanitising import as_json

PART = 1_000  # passages per read


def as_row(passage: Passage) -> dict:
    """Return the non-empty fields of a passage, except its origin."""
    return {
        name: value
        for name, value in dataclasses.asdict(passage).items()
        if value and name != "origin"
    }


@entry_point
def main(argv=None):
    options = parser(
        "retrieval.export",
        "Write the passages of every access group as JSON lines, which retrieval.build reads.",
    )
    what = options.add_mutually_exclusive_group()
    add_past_option(what)
    what.add_argument(
        "--history",
        action="store_true",
        help="every commit instead, oldest first, with the passages that it left",
    )
    args = options.parse_args(argv)
    from retrieval.store.store import Store

    store = Store.open(args.memory, args.as_of)
    if args.history:
        commits = store.log()
        for commit, then in zip(
            commits, store.earlier([commit.version for commit in commits]), strict=True
        ):
            found = then.get(commit.ids)
            print(
                as_json(
                    dataclasses.asdict(commit)
                    | {"passages": [as_row(found[id][0]) for id in commit.ids if id in found]}
                )
            )
        return
    ids = store.ids()
    for start in range(0, len(ids), PART):
        found = store.get(ids[start : start + PART])
        for id in ids[start : start + PART]:
            print(as_json(as_row(found[id][0])))


if __name__ == "__main__":
    sys.exit(main())
