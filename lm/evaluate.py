"""Perplexity and bits per byte, with its standard error, of a model on text files.

python -m lm.evaluate --model=PATH_OR_HUB_ID_OR_RUN --data='texts/*.txt' [--json[=FILE]]

Text is read in windows of --length tokens that do not overlap; each document ends in the end-of-text token, which is predicted too.
"""

import argparse
import dataclasses
import json
import logging
import math
import pathlib
import sys
import tempfile

import jax

from lm.data import packing
from lm.evaluation import perplexity
from lm.loading import load
from lm.training.mesh import make_mesh
from lm.training.sharding import replicated


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lm.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="run folder, model directory, hub id or .gguf file")
    parser.add_argument("--data", required=True, metavar="GLOBS", help="comma-separated files and globs: text, or .jsonl with a text field")
    parser.add_argument("--length", type=int, default=0, help="tokens a window (default: what the model can read, at most 1024)")
    parser.add_argument("--batch_size", "--batch-size", type=int, default=8, help="windows at a time (default 8)")
    parser.add_argument("--field", default="text", help="the field of a JSONL record that holds the text (default: text)")
    parser.add_argument("--separator", default="", help="what divides a text file into documents (default: nothing)")
    parser.add_argument("--max_rows", "--max-rows", type=int, default=0, help="read only the first N windows; 0 = all")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="precision to run in; default: float32")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="write the numbers as JSON, to FILE or standard output")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = arguments(argv)
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        if args.batch_size < 1:
            raise ValueError(f"--batch-size={args.batch_size}: expected at least 1")
        model, params, tokenizer = load(args.model, args.dtype)
        length = args.length or min(model.config.max_length, 1024)
        perplexity.check_length(length, model.config.max_length)
        mesh = make_mesh()
        batch_size = -(-args.batch_size // mesh.size) * mesh.size
        params = jax.device_put(params, replicated(mesh))
        with tempfile.TemporaryDirectory() as cache:
            packed = packing.pack_files(args.data, tokenizer, length, cache, field=args.field, separator=args.separator)
            result = perplexity.make_evaluator(model, mesh, batch_size)(params, packed, args.max_rows)
        found = {"model": args.model, "data": args.data, "length": length, **dataclasses.asdict(result)}
        found = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in found.items()}
        if args.json and args.json != "-":
            pathlib.Path(args.json).parent.mkdir(parents=True, exist_ok=True)
            pathlib.Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json == "-":
        print(json.dumps(found))
    else:
        over = f"over {result.units} {result.unit}s"
        print(f"loss {result.loss:.4f} nats a token, perplexity {result.perplexity:.2f}, {result.tokens:,} tokens, {result.bytes:,} bytes")
        print(f"bits per byte {result.bits_per_byte:.4f} ± {result.bits_per_byte_stderr:.4f} (standard error {over})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
