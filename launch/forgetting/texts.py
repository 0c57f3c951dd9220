"""Split WikiText-2 into two texts without a common article.

python -m launch.forgetting.texts --input=valid.txt --output=DIR

DIR/old.txt has every other article and may be used for training. DIR/heldout.txt has the others and
measures forgetting.
"""

import argparse
import re
import sys
from pathlib import Path

from launch.errors import one_line

TITLE = re.compile(
    r"^ = [^=].*[^=] = \n", re.MULTILINE
)  # title of an article; titles of sections have two or more "="


def articles(text: str) -> list[str]:
    """Articles of a text in WikiText's format, each with its title line."""
    starts = [found.start() for found in TITLE.finditer(text)]
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=False)]


@one_line
def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.forgetting.texts", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--input", required=True, type=Path, metavar="FILE", help="a split of WikiText-2"
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder for old.txt and heldout.txt",
    )
    args = parser.parse_args(argv)
    try:
        found = articles(args.input.read_text(encoding="utf-8"))
        if len(found) < 2:
            raise ValueError(
                f"{args.input} has {len(found)} articles; expected WikiText's format, where ' = "
                "Title = ' begins one"
            )
        args.output.mkdir(parents=True, exist_ok=True)
        for name, part in (("old", found[::2]), ("heldout", found[1::2])):
            (args.output / f"{name}.txt").write_text("".join(part), encoding="utf-8")
            print(
                f"{args.output / name}.txt: {len(part)} articles, {sum(map(len, part)):,} "
                "characters"
            )
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
