"""Answer questions with and without a memory.

python -m retrieval.ask --memory=DIR --reader=PATH_OR_GGUF "In which country is Bagheria?"
"""

import dataclasses
import sys

from retrieval.cli import (
    add_encoder_option,
    add_filter_options,
    add_past_option,
    add_reader_options,
    entry_point,
    filter_options,
    open_memory,
    parser,
)
from retrieval.sanitising import as_json, shown


@entry_point
def main(argv=None):
    options = parser(
        "retrieval.ask",
        "Answer questions from a memory, with the passages used, beside the answer from the "
        "weights alone.",
    )
    options.add_argument("question", nargs="+", help="one or several questions, each in quotes")
    add_reader_options(options)
    options.add_argument(
        "--floor",
        type=float,
        help="does not know when the best passage scores less, a cosine (default: 0.25)",
    )
    add_filter_options(options)
    add_past_option(options)
    add_encoder_option(options)
    args = options.parse_args(argv)
    memory = open_memory(args.memory, args.encoder, args.as_of)
    from retrieval import Reader, answer
    from retrieval.reading.answering import FLOOR, View

    searched = View(memory, filter_options(args))
    floor = FLOOR if args.floor is None else args.floor
    for given in answer(
        args.question,
        searched,
        Reader.from_hf(args.reader),
        args.k,
        args.max_new_tokens,
        floor=floor,
    ):
        if args.json:
            print(as_json(dataclasses.asdict(given)))
            continue
        words = (
            f"the reader's words, which the memory does not support: {shown(given.text) or 'none'}"
        )
        unknown = (
            "does not know ("
            f"{words if given.citations else 'nothing in the memory can be read and matches'})"
        )
        print(
            f"{shown(given.question)}\n  open-book:   "
            f"{shown(given.text) if given.known else unknown}"
        )
        for hit, sentence in zip(given.citations, given.sentences, strict=True):
            said = shown(f"[{hit.id}] {hit.title + ': ' if hit.title else ''}{sentence}")
            print(f"    {said}  (score {hit.score:.3f}, version {hit.version})")
        print(f"  closed-book: {shown(given.closed_book_text)}")


if __name__ == "__main__":
    sys.exit(main())
