"""Mix weights: interpolate a base and a tuned model (WiSE-FT), or average models (soup); evaluate.

python -m lm.interpolate --base=BASE --tuned=RUN --alphas=0,0.25,0.5,0.75,1 --data=old.txt
    --data=new.txt [--json=FILE]
python -m lm.interpolate --base=BASE --tuned=RUN --alphas=0.5 --output=DIR
python -m lm.interpolate --soup=RUN_1,RUN_2,RUN_3 [--greedy --data=heldout.txt] --output=DIR

A model is a run folder, a model directory, a hub id or a .gguf file. Several --alphas write
DIR/alpha-0.25 and so on.
"""

import argparse
import json
import math
import pathlib
import sys
import tempfile

from lm import folders
from lm.evaluation.mixes import measurer, mixes
from lm.interrupts import entry_point
from lm.printing import program
from lm.weights import to_hf
from lm.weights.loading import GENERATION, kept, kept_template, save_template


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program("lm.interpolate"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base", help="where alpha is 0")
    parser.add_argument("--tuned", help="where alpha is 1")
    parser.add_argument(
        "--alphas",
        default="0,0.25,0.5,0.75,1",
        help="comma-separated numbers (default %(default)s)",
    )
    parser.add_argument(
        "--soup", help="comma-separated models to average, instead of --base and --tuned"
    )
    parser.add_argument(
        "--greedy",
        action="store_true",
        help="keep in the soup only what does not raise the loss on the first --data",
    )
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="GLOBS",
        help="text files to measure perplexity on; may be repeated",
    )
    parser.add_argument("--output", help="directory to write the mixed model, or several, to")
    parser.add_argument(
        "--length",
        type=int,
        default=0,
        help="tokens a window (default: a run's own, else at most 1024)",
    )
    parser.add_argument(
        "--max_rows",
        "--max-rows",
        type=int,
        default=0,
        help="read only the first N windows; 0 = all",
    )
    parser.add_argument("--json", metavar="FILE", help="write the measurements there")
    args = parser.parse_args(argv)
    if bool(args.soup) == bool(args.base and args.tuned):
        parser.error("give --base and --tuned, or --soup")
    if not args.data and not args.output:
        parser.error("give --data to measure on, --output to write to, or both")
    if args.greedy and not (args.soup and args.data):
        parser.error("--greedy chooses a --soup by the loss on --data: give both")
    return args


@entry_point
def main(argv=None) -> int:
    args = arguments(argv)
    read = [args.base, args.tuned, *(args.soup or "").split(",")]
    try:
        if args.output:
            folders.refuse(
                "output",
                args.output,
                ("a model", "an adapter", "a tokenizer", "other files"),
                read=read,
            )
        with tempfile.TemporaryDirectory() as cache:
            loss = measurer(cache, args.length, args.max_rows, args.base or args.soup.split(",")[0])
            model, tokenizer, wanted = mixes(
                args.base, args.tuned, args.alphas, args.soup, args.greedy and args.data[0], loss
            )
            rows = []
            for name, described, make in wanted:
                params = make()
                losses = {data: loss(model, params, tokenizer, data) for data in args.data}
                rows.append(
                    described
                    | {
                        "loss": losses,
                        "perplexity": {data: math.exp(min(x, 700)) for data, x in losses.items()},
                    }
                )
                measured = "".join(
                    f"  {data}: loss {x:.4f}, perplexity {math.exp(min(x, 700)):.2f}"
                    for data, x in losses.items()
                )
                print(
                    f"{name}{measured}"
                    + (f"  of {', '.join(described['soup'])}" if "soup" in described else "")
                )
                if args.output:
                    folder, like = (
                        pathlib.Path(args.output) / (name if len(wanted) > 1 else ""),
                        args.tuned or args.soup.split(",")[0],
                    )
                    to_hf(model, params, folder, tokenizer, generation=kept(like, GENERATION))
                    save_template(folder, kept_template(like))
        if args.json:
            pathlib.Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
