"""Asks a model with and without its memory: python -m retrieval.ask --memory=DIR --reader=PATH_OR_GGUF "In which country is Bagheria?" """

import dataclasses
import json
import sys

from retrieval.cli import add_encoder_option, entry_point, open_memory, parser


@entry_point
def main(argv=None):
    options = parser("retrieval.ask", "Answer questions from a memory, with the passages used, beside the answer from the weights alone.")
    options.add_argument("question", nargs="+", help="one or several questions, each in quotes")
    options.add_argument("--reader", required=True, metavar="PATH", help="directory, hub id or .gguf file of a causal language model")
    options.add_argument("-k", type=int, default=3, help="passages to retrieve for each question")
    options.add_argument("--max-new-tokens", type=int, default=24, help="length of an answer, in tokens")
    options.add_argument("--as-of", type=int, metavar="VERSION", help="ask the memory as it was after this version")
    add_encoder_option(options)
    args = options.parse_args(argv)
    memory = open_memory(args.memory, args.encoder)
    if args.as_of is not None:
        memory = memory.as_of(args.as_of)
    from retrieval import Reader, answer

    for given in answer(args.question, memory, Reader.from_hf(args.reader), args.k, args.max_new_tokens):
        if args.json:
            print(json.dumps(dataclasses.asdict(given), ensure_ascii=False))
            continue
        print(f"{given.question}\n  open-book:   {given.text}")
        for hit in given.citations:
            print(f"    [{hit.id}] {hit.title + ': ' if hit.title else ''}{hit.text}  (score {hit.score:.3f}, version {hit.version})")
        print(f"  closed-book: {given.closed_book_text}")


if __name__ == "__main__":
    sys.exit(main())
