"""Chat in the terminal, with or without a memory: python -m retrieval.chat --model=PATH
[--memory=DIR]
"""

import sys

from retrieval.cli import (
    READER,
    add_door_option,
    add_encoder_option,
    bare_parser,
    entry_point,
    open_memory,
    place,
)

COMMANDS = (
    "/open, /closed  switch the memory on and off    "
    "/sources  what the latest answer was given to read\n"
    "/new            forget the conversation          "
    "/quit     end (or Ctrl-D); Ctrl-C stops an answer"
)


@entry_point
def main(argv=None):
    options = bare_parser(
        "retrieval.chat",
        "Chat with a model, from its weights (closed-book) or from a memory (open-book).",
        COMMANDS,
    )
    options.add_argument(
        "--model",
        required=True,
        metavar="PATH",
        help=READER,
    )
    add_door_option(options)
    options.add_argument(
        "--memory",
        type=place,
        help="folder or URI of a memory: questions are open-book until /closed",
    )
    options.add_argument("-k", type=int, default=3, help="passages to retrieve for each question")
    options.add_argument(
        "--max-new-tokens", type=int, default=256, help="length of an answer, in tokens"
    )
    options.add_argument(
        "--temperature", type=float, default=0.0, help="0 takes the most probable token"
    )
    options.add_argument("--system", default="", help="system message of the conversation")
    options.add_argument("--seed", type=int, default=0, help="of sampling")
    add_encoder_option(options)
    args = options.parse_args(argv)
    if (args.encoder or args.door) and not args.memory:
        what = "--encoder" if args.encoder else "--door"
        options.error(f"{what} is of a memory: give --memory too")
    from lm.generation.samplers import Greedy, Sample

    sampler = Sample(args.temperature) if args.temperature else Greedy()
    from retrieval.reading.conversation import Conversation, converse
    from retrieval.reading.reader import door_of

    door = door_of(args.model, args.door)  # before anything is loaded
    memory = open_memory(args.memory, args.encoder, reader=args.model) if args.memory else None
    made = Conversation.of(
        args.model, memory, args.k, args.max_new_tokens, sampler, args.system, args.seed, door
    )
    converse(made, COMMANDS)


if __name__ == "__main__":
    sys.exit(main())
