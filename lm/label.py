"""Label new texts, or their words, with a classifier, such as a run of configs/classify.py.

python -m lm.label --model=RUN --data='new/*.txt' --output=labels.jsonl

Texts are the lines of text files, or the text field of JSONL, CSV or TSV, by default the one of the
run. The output is JSONL in the same order: {"text", "label", "probability"}, with "pair" and the
record's "id" if there are any. For a regression model, "value" replaces the last two.
A model of token_classification gives {"words", "tags", "probabilities"}; words are separated by
spaces, or are a list in the record.
"""

import argparse
import json
import sys
from pathlib import Path

from lm.interrupts import entry_point
from lm.printing import program


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program("lm.label"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        required=True,
        help="run folder, model directory or hub id of a model that classifies texts",
    )
    parser.add_argument(
        "--data", required=True, metavar="GLOBS", help="comma-separated files and globs"
    )
    parser.add_argument("--output", default="-", metavar="FILE", help="default: standard output")
    parser.add_argument(
        "--field",
        default="",
        help="the field of a record that holds the text (default: a run's own, or text)",
    )
    parser.add_argument(
        "--pair-field",
        default="",
        help="the field of the second text of a pair (default: a run's own, or none)",
    )
    parser.add_argument(
        "--length",
        type=int,
        default=0,
        help="tokens that are read of a text (default: a run's own, or at most 512)",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="texts at a time (default 32)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="precision to run in; default: float32"
    )
    args = parser.parse_args(argv)
    return argparse.Namespace(task="classification", label_field="", stride=0, **vars(args))


@entry_point
def main(argv=None) -> int:
    args = arguments(argv)
    try:
        from lm.evaluation.labelled import label
        from lm.evaluation.progress import bar

        if args.batch_size < 1 or args.length < 0:
            raise ValueError(
                f"--batch-size={args.batch_size}, --length={args.length}: expected at least 1, "
                "and 0 or more"
            )
        rows, cut = label(args, lambda total: bar(total, "texts"))
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if args.output != "-":
            Path(args.output).parent.mkdir(parents=True, exist_ok=True)
            Path(args.output).write_text(lines, encoding="utf-8")
            lines = f"{args.output}: {len(rows):,} texts labelled\n"
        print(lines, end="")
        if cut:
            print(
                f"{cut:,} texts were longer than a row, and only their beginning was read",
                file=sys.stderr,
            )
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
