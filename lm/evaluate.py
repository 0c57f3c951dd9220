"""Evaluate a model: bits per byte and perplexity of text, or scores of its answers or labels.

python -m lm.evaluate --model=PATH_OR_HUB_ID_OR_RUN --data='texts/*.txt' [--json[=FILE]]
python -m lm.evaluate --model=PATH_OR_HUB_ID_OR_RUN --examples=tasks/ [--template=tk_instruct]
    [--baselines] [--json[=FILE]]
python -m lm.evaluate --model=PATH_OR_HUB_ID_OR_RUN
    --superni=natural-instructions/splits/default/test_tasks.txt [--encodings=def,def-pos]
    [--answers=FILE] [--json[=FILE]]
python -m lm.evaluate --model=PATH_OR_HUB_ID_OR_RUN --task=question_answering --data=dev.json
    [--predictions=FILE] [--json[=FILE]]
python -m lm.evaluate --model=RUN --evals[=NAMES] [--json[=FILE]]

Text is read in non-overlapping windows of --length tokens. Each document ends with the end-of-text
token, which is predicted too. A run on instruct data uses its own template. docs/evaluation.md
explains each metric.
"""

import json
import logging
import pathlib
import sys

from lm.compiled import keep_compiled
from lm.evaluation.command_line import arguments, check
from lm.evaluation.examples import of_examples
from lm.evaluation.labelled import of_labels
from lm.evaluation.superni import of_superni
from lm.evaluation.text import of_text
from lm.interrupts import entry_point
from lm.printing import piped
from lm.training.evaluations import of_run


@entry_point
def main(argv=None) -> int:
    args = arguments(__doc__, argv)
    keep_compiled()
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        check(args)
        measure = (
            of_run
            if args.evals
            else of_superni
            if args.superni
            else of_examples
            if args.examples
            else of_labels
            if args.task
            else of_text
        )
        found, said = measure(args)
        if args.json and args.json != "-":
            pathlib.Path(args.json).parent.mkdir(parents=True, exist_ok=True)
            pathlib.Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with piped():
        print(json.dumps(found) if args.json == "-" else said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
