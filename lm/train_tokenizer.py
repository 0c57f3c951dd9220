"""Train a tokenizer on text, and save it for AutoTokenizer and lm.load_tokenizer.

python -m lm.train_tokenizer --input='data/*.txt' --vocab_size=4096 --output=runs/tokenizer

For masked language models:
python -m lm.train_tokenizer --model=wordpiece --lowercase --input=wiki.jsonl --vocab_size=30000
    --output=DIR

For span corruption:
python -m lm.train_tokenizer --model=unigram --sentinels=100 --input=tfds:wiki --vocab_size=32000
    --output=DIR

bpe: byte-level BPE as GPT-2's, with <|endoftext|>. wordpiece: BERT's, with [PAD], [UNK], [CLS],
[SEP], [MASK]. unigram: T5's, with <pad>, </s>, <unk>. More: docs/data.md.
"""

import argparse
import sys

from lm import folders
from lm.data import tokenizers
from lm.data.read import sources
from lm.interrupts import entry_point
from lm.printing import program

SAMPLE = 10_000_000  # characters of the first documents, on which bytes per token are measured


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=program("lm.train_tokenizer"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--input",
        required=True,
        metavar="SOURCES",
        help="comma-separated: text, .jsonl, .json, .parquet (globs), tfds:NAME, hf:NAME",
    )
    parser.add_argument("--model", default="bpe", choices=tokenizers.MODELS, help="default bpe")
    parser.add_argument(
        "--vocab_size",
        "--vocab-size",
        type=int,
        default=4096,
        metavar="N",
        help="tokens in all (default 4096)",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="folder to write tokenizer.json and its settings to",
    )
    parser.add_argument(
        "--field",
        default="text",
        metavar="A,B",
        help="the fields of a record that hold text (default: text)",
    )
    parser.add_argument(
        "--separator", default="", help="what divides a text file into documents (default: nothing)"
    )
    parser.add_argument(
        "--special_tokens",
        "--special-tokens",
        default="",
        metavar="A,B",
        help="further control tokens, such as '<mask>,<|im_start|>'",
    )
    parser.add_argument(
        "--sentinels",
        type=int,
        default=0,
        metavar="N",
        help="<extra_id_0> to <extra_id_N-1>; of bpe and unigram",
    )
    parser.add_argument(
        "--lowercase",
        action="store_true",
        help="read all text in lower case; of wordpiece and unigram",
    )
    return parser.parse_args(argv)


@entry_point
def main(argv=None) -> int:
    args = arguments(argv)
    sample: list[str] = []
    tally = sources.Tally()

    def read():
        room = SAMPLE
        for field in args.field.split(","):
            for text in sources.documents(
                sources.find_files(args.input), field.strip(), args.separator, tally=tally
            ):
                if room > 0:
                    sample.append(text[:room])
                    room -= len(text)
                yield text
        if not sample:
            raise sources.DataError(f"{args.input}: no document with any text in it")

    try:
        folders.refuse("output", args.output, ("a tokenizer", "other files"))
        special = [token.strip() for token in args.special_tokens.split(",") if token.strip()]
        tokenizer = tokenizers.train(
            read(),
            args.vocab_size,
            args.model,
            special=special,
            sentinels=args.sentinels,
            lowercase=args.lowercase,
            progress=sys.stderr.isatty(),
        )
        tokenizer.save_pretrained(args.output)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sum(len(text.encode()) for text in sample)
    count = sum(
        len(ids) for ids in tokenizer(sample, add_special_tokens=False, verbose=False)["input_ids"]
    )
    few = (
        f" (fewer than the {args.vocab_size} asked for: the text has no more to merge)"
        if len(tokenizer) < args.vocab_size
        else ""
    )
    print(
        f"{args.output}: {len(tokenizer)} tokens{few} from {tally.records} documents; "
        f"{size / max(count, 1):.2f} bytes a token"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
