"""Try a deletion without making it.

python -m retrieval.audit --memory=DIR --reader=PATH "Where is Bagheria?" --ids bagheria
"""

import dataclasses
import sys

from retrieval.cli import add_encoder_option, add_reader_options, entry_point, open_memory, parser
from retrieval.sanitising import as_json, shown


@entry_point
def main(argv=None):
    options = parser(
        "retrieval.audit",
        "Ask with the whole memory, without some passages, and without any, and say where a "
        "deleted answer would still come from. Nothing is deleted.",
        "Put the questions first: ... 'In which country is Bagheria?' --ids bagheria sicily "
        "--answer Italy",
    )
    options.add_argument("question", nargs="+", help="one or several questions, each in quotes")
    options.add_argument(
        "--ids", nargs="+", required=True, metavar="ID", help="the passages whose deletion is tried"
    )
    options.add_argument(
        "--answer",
        nargs="+",
        default=[],
        metavar="NAME",
        help="what counts as the answer; without it, the answers are compared",
    )
    add_reader_options(options)
    add_encoder_option(options)
    args = options.parse_args(argv)
    from retrieval import load_reader
    from retrieval.reading.auditing import VERDICTS, audit
    from retrieval.reading.reader import door_of

    door = door_of(args.reader, args.door)
    memory = open_memory(args.memory, args.encoder)

    for done in audit(
        args.question,
        args.ids,
        memory,
        load_reader(args.reader, door),
        args.answer,
        args.k,
        args.max_new_tokens,
        door=door,
    ):
        if args.json:
            print(as_json(dataclasses.asdict(done)))
            continue
        print(f"{shown(done.question)}\n  {done.verdict}: {VERDICTS[done.verdict]}")
        for label, text, hits in (
            ("whole memory", done.full, done.full_citations),
            ("without them", done.deleted, done.citations),
            ("closed-book", done.closed_book, ()),
        ):
            cited = f"  [{', '.join(hit.id for hit in hits)}]" if hits else ""
            print(f"  {label + ':':<14}{shown(text)}{cited}")


if __name__ == "__main__":
    sys.exit(main())
