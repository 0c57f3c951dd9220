"""Compare runs: differences of their configs, last metrics, and curves of losses with --html.

python -m lm.compare RUN RUN [RUN ...] [--html=compare.html] [--json[=FILE]]
"""

import argparse
import json
import sys
from pathlib import Path

from lm.interrupts import entry_point
from lm.printing import program


@entry_point
def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog=program("lm.compare"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder of lm.train")
    parser.add_argument(
        "--html", metavar="FILE", help="write a page with the curves of every loss and score"
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the same as JSON, to FILE or standard output",
    )
    args = parser.parse_args(argv)
    try:
        from lm.training import comparison

        if len(args.runs) < 2:
            raise ValueError(f"one run is given, {args.runs[0]}: give two or more to compare")
        found = comparison.compare(args.runs)
        for file, text in (
            (args.html, lambda: comparison.page(found)),
            (args.json, lambda: json.dumps(found.record(), indent=1) + "\n"),
        ):
            if file and file != "-":
                Path(file).parent.mkdir(parents=True, exist_ok=True)
                Path(file).write_text(text(), encoding="utf-8")
        print(json.dumps(found.record()) if args.json == "-" else comparison.text(found))
        if args.html:
            print(f"\n{args.html}", file=sys.stderr)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
