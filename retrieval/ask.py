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
    add_when_options,
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
    add_when_options(options)
    options.add_argument(
        "--datastore",
        metavar="DIR",
        help="also answer with this token datastore of the memory mixed in (kNN-LM), and with no "
        "passage in the prompt",
    )
    options.add_argument(
        "--explain",
        action="store_true",
        help="with --datastore: show for every token the passages that it was mixed from",
    )
    add_filter_options(options)
    add_past_option(options)
    add_encoder_option(options)
    args = options.parse_args(argv)
    if args.explain and not args.datastore:
        options.error("--explain is of an answer from a token datastore: give --datastore=DIR too")
    from retrieval import answer, load_reader
    from retrieval.reading.answering import FLOOR, View
    from retrieval.reading.explaining import lines
    from retrieval.reading.reader import door_of
    from retrieval.reading.when import when_named

    when = when_named(args.when)
    door = door_of(args.reader, args.door)  # before anything is loaded
    memory = open_memory(args.memory, args.encoder, args.as_of, args.reader)
    searched = View(memory, filter_options(args))
    floor = FLOOR if args.floor is None else args.floor
    reader, mixed = load_reader(args.reader, door), {}
    if args.datastore:
        mixed = from_datastore(args, reader, memory)
    given_to = {"floor": floor, "door": door, "when": when}
    for number, given in enumerate(
        answer(args.question, searched, reader, args.k, args.max_new_tokens, **given_to)
    ):
        told = mixed.get(number)
        if args.json:
            own = dataclasses.asdict(given)
            print(as_json(own | ({"knn": dataclasses.asdict(told)} if told else {})))
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
            f"{'' if given.retrieved else f'  (from the weights: --when={shown(args.when)})'}"
        )
        for hit, sentence in zip(given.citations, given.sentences, strict=True):
            said = shown(f"[{hit.id}] {hit.title + ': ' if hit.title else ''}{sentence}")
            print(f"    {said}  (score {hit.score:.3f}, version {hit.version})")
        if given.cut:
            print(f"    ({given.cut:,} tokens of the passages did not fit and were not read)")
        print(f"  closed-book: {shown(given.closed_book_text)}")
        if told:
            print(f"  kNN-LM:      {shown(told.text)}")
            for line in lines(told) if args.explain else ():
                print(f"    {shown(line)}")


def from_datastore(args, reader, memory) -> dict:
    """The answers of a kNN-LM by the number of their question."""
    from retrieval.reading.explaining import explained, hook_of

    hook = hook_of(args.datastore, reader, memory, filter_options(args)["groups"])
    return dict(enumerate(explained(args.question, reader, hook, args.max_new_tokens)))


if __name__ == "__main__":
    sys.exit(main())
