"""What a model makes of text, as perplexity and bits per byte with its standard error, or its answers to instruct data, scored.

python -m lm.evaluate --model=PATH_OR_HUB_ID_OR_RUN --data='texts/*.txt' [--json[=FILE]]
python -m lm.evaluate --model=PATH_OR_HUB_ID_OR_RUN --examples=tasks/ [--template=tk_instruct] [--baselines] [--json[=FILE]]

Text is read in windows of --length tokens that do not overlap; each document ends in the end-of-text token, which is predicted too.
A run that was trained on instruct data is asked with its own template. docs/evaluation.md says what each number is.
"""

import json
import logging
import pathlib
import sys

from lm.evaluation.command_line import arguments, of_examples, of_text


def main(argv=None) -> int:
    args = arguments(__doc__, argv)
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        if bool(args.data) == bool(args.examples):
            raise ValueError("give --data=FILES (text) or --examples=FILES (instruct data), and not both")
        found, said = of_text(args) if args.data else of_examples(args)
        if args.json and args.json != "-":
            pathlib.Path(args.json).parent.mkdir(parents=True, exist_ok=True)
            pathlib.Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found) if args.json == "-" else said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
