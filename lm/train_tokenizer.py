"""Trains a byte-level BPE tokenizer on text files and saves it as transformers does (AutoTokenizer and lm.load_tokenizer read it).

python -m lm.train_tokenizer --input='data/*.txt' --vocab_size=4096 --output=runs/tokenizer
"""

import argparse
import sys

from lm.data import sources, tokenizers


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lm.train_tokenizer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", required=True, metavar="GLOBS", help="comma-separated files and globs: text, or .jsonl with a text field"
    )
    parser.add_argument("--vocab_size", "--vocab-size", type=int, default=4096, metavar="N", help="tokens in all (default 4096)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write tokenizer.json and its settings to")
    parser.add_argument("--field", default="text", help="the field of a JSONL record that holds the text (default: text)")
    parser.add_argument("--separator", default="", help="what divides a text file into documents (default: nothing)")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = arguments(argv)
    try:
        files = sources.find_files(args.input)
        texts = list(sources.documents(files, args.field, args.separator))
        if not texts:
            raise sources.DataError(f"{args.input}: no document with any text in it")
        tokenizer = tokenizers.train(texts, args.vocab_size)
        tokenizer.save_pretrained(args.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sum(len(text.encode()) for text in texts)
    count = sum(len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"])
    few = f" (fewer than the {args.vocab_size} asked for: the text has no more pairs to merge)" if len(tokenizer) < args.vocab_size else ""
    print(f"{args.output}: {len(tokenizer)} tokens{few} from {len(texts)} documents; {size / count:.2f} bytes a token")
    return 0


if __name__ == "__main__":
    sys.exit(main())
