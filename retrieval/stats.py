"""Report the contents and size of a memory: python -m retrieval.stats --memory=DIR"""

import sys

from retrieval.cli import entry_point, open_memory, parser
from retrieval.sanitising import as_json, shown


@entry_point
def main(argv=None):
    options = parser(
        "retrieval.stats",
        "Say how many passages a memory holds, with which encoder and index, and what it takes "
        "on disk.",
    )
    args = options.parse_args(argv)
    stats = open_memory(args.memory, None).stats()
    if args.json:
        print(as_json(stats))
        return
    width = max(map(len, stats))
    for name, value in stats.items():
        print(f"{name:<{width}}  {f'{value:,}' if isinstance(value, int) else shown(value)}")


if __name__ == "__main__":
    sys.exit(main())
