"""Print the tables of README.md and docs/architectures.md.

python -m lm.families            print them
python -m lm.families --write    write them into the files, between their markers
"""

import re
import sys
from pathlib import Path

from lm.families import markdown, readme
from lm.printing import piped

TABLES = {"README.md": readme, "docs/architectures.md": markdown}


def main(argv: list[str]) -> None:
    for page, table in TABLES.items():
        if "--write" not in argv:
            print(f"{page}:\n{table()}\n")
            continue
        text = Path(page).read_text(encoding="utf-8")
        between = re.compile(r"(<!-- families -->\n).*?(\n<!-- /families -->)", re.DOTALL)
        Path(page).write_text(
            between.sub(lambda marks, table=table: marks[1] + table() + marks[2], text),
            encoding="utf-8",
        )


if __name__ == "__main__":
    with piped():
        main(sys.argv[1:])
