"""Try a deletion without making it, or find out whether a score comes from the memory.

python -m retrieval.audit --memory=DIR --reader=PATH "Where is Bagheria?" --ids bagheria
python -m retrieval.audit --memory=DIR --reader=PATH --questions=questions.jsonl
"""

import dataclasses
import sys
from pathlib import Path

from retrieval.cli import add_encoder_option, add_reader_options, entry_point, open_memory, parser
from retrieval.evaluate import read_questions
from retrieval.sanitising import as_json, shown


@entry_point
def main(argv=None):
    options = parser(
        "retrieval.audit",
        "Ask with the whole memory, without some passages, and without any, and say where a "
        "deleted answer would still come from. Or, with --questions, ask with the true memory, "
        "none, shuffled values, random passages and counterfactual facts, and say whether the "
        "score comes from the memory. Nothing is changed.",
        "Put the questions first: ... 'In which country is Bagheria?' --ids bagheria sicily "
        "--answer Italy",
    )
    options.add_argument("question", nargs="*", help="one or several questions, each in quotes")
    options.add_argument(
        "--ids", nargs="+", default=[], metavar="ID", help="the passages whose deletion is tried"
    )
    options.add_argument(
        "--answer",
        nargs="+",
        default=[],
        metavar="NAME",
        help="what counts as the answer; without it, the answers are compared",
    )
    options.add_argument(
        "--closure",
        action="store_true",
        help="also leave out what may hold the same: near duplicates, passages of the same title, "
        "and, with --answer, passages that hold it and a name of the question",
    )
    options.add_argument(
        "--questions",
        type=Path,
        metavar="FILE",
        help="instead of a deletion: JSON lines with question and answers, as retrieval.evaluate's",
    )
    add_reader_options(options)
    add_encoder_option(options)
    args = options.parse_args(argv)
    if args.questions and (args.question or args.ids or args.answer or args.closure):
        options.error("--questions asks a file: leave out questions, --ids, --answer, --closure")
    if not args.questions and not (args.question and args.ids):
        options.error("expected questions with --ids of a deletion to try, or --questions=FILE")
    rows = read_questions(args.questions) if args.questions else []
    from retrieval import load_reader
    from retrieval.reading.auditing import VERDICTS, audit
    from retrieval.reading.closure import closure
    from retrieval.reading.reader import door_of

    door = door_of(args.reader, args.door)
    memory = open_memory(args.memory, args.encoder, reader=args.reader)
    if rows:
        return _reliance(args, rows, memory, load_reader(args.reader, door), door)

    related = closure(args.ids, memory, args.question, args.answer) if args.closure else []
    for one in related:
        if args.json:
            print(as_json(dataclasses.asdict(one)))
        else:
            print(f"also left out: {shown(one.id)} ({one.reason} of {shown(one.of)})")
    for done in audit(
        args.question,
        [*args.ids, *(one.id for one in related)],
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


def _reliance(args, rows, memory, reader, door) -> None:
    from retrieval.filters import EVERY_GROUP
    from retrieval.reading.answering import View
    from retrieval.reading.reliance import CONDITIONS, reliance

    owned = View(memory, {"groups": EVERY_GROUP})
    for found in reliance(rows, owned, reader, door, args.k, args.max_new_tokens):
        if args.json:
            print(as_json(dataclasses.asdict(found)))
            continue
        low, high = found.interval
        share = f"{found.right / found.asked:.1%}" if found.asked else "none asked"
        does = "is followed" if found.name == "counterfactual" else "falls"
        said = "" if found.name == "true" else f", {does} (p = {found.p:.3g})"
        if not found.moved:
            said = f", DOES NOT MOVE (p = {found.p:.3g})"
        print(
            f"{found.name}: {found.right}/{found.asked} right, {share} (95 % interval {low:.1%} to "
            f"{high:.1%}), {found.changed} answers changed{said}\n  {CONDITIONS[found.name]}"
        )


if __name__ == "__main__":
    sys.exit(main())
