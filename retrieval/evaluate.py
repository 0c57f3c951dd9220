"""Answer a file of questions closed-book and open-book, score both, and write a row per question.

    python -m retrieval.evaluate --memory=DIR --reader=MODEL \\
        --questions=questions.jsonl --output=answers.jsonl

The input has a JSON object per line: "question", "answers" (list of right names) and optionally
"others" (wrong names that contain a right one). An output row has all fields of its question and:

- "closed_book", "open_book": the answers' texts
- "closed_correct", "open_correct", "closed_exact", "open_exact": see lm/evaluation/accuracy.py
- "closed_f1", "open_f1": SQuAD's F1 of shared words
- "known": whether the memory supports the open-book answer
- "retrieved": whether passages were looked for, which --when decides; if not, the open-book answer
  is the closed-book one
- "measure": with --when, what was compared with its threshold
- "citations": the passages read, best first
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lm.data.read import sources
from lm.evaluation.accuracy import contains, exact, wilson
from lm.evaluation.scores import f1
from retrieval.cli import (
    READER,
    add_door_option,
    add_encoder_option,
    add_when_options,
    entry_point,
    open_memory,
    parser,
)
from retrieval.errors import RetrievalError
from retrieval.reading import breakdown


def read_questions(path: Path) -> list[dict]:
    """Return the rows of a question file.

    Raises RetrievalError or DataError naming an invalid line.
    """
    if not path.is_file():
        raise RetrievalError(
            f"--questions={path} is no file: expected one of JSON lines with question and answers"
        )
    names = lambda given: isinstance(given, list) and all(isinstance(name, str) for name in given)
    rows = []
    for where, row in sources.records([str(path)]):
        if (
            not isinstance(row.get("question"), str)
            or not names(row.get("answers"))
            or not row["answers"]
        ):
            raise RetrievalError(
                f"{where}: expected an object with 'question', a text, and 'answers', a list of "
                "names that is not empty"
            )
        if not names(row.get("others", [])):
            raise RetrievalError(f"{where}: others is {row['others']!r}; expected a list of names")
        rows.append(row)
    if not rows:
        raise RetrievalError(f"{path} holds no questions; expected a JSON object a line")
    return rows


def score(row: dict, answered) -> dict:
    """Return the question's row with both answers, their scores and the citations.

    answered: a retrieval.Answer.
    """
    names, others = row["answers"], row.get("others", ())
    closed, opened = answered.closed_book_text, answered.text
    return {
        **row,
        "closed_book": closed,
        "open_book": opened,
        "closed_correct": contains(closed, names, others),
        "open_correct": contains(opened, names, others),
        "closed_exact": exact(closed, names),
        "open_exact": exact(opened, names),
        "closed_f1": max(f1(closed, name) for name in names),
        "open_f1": max(f1(opened, name) for name in names),
        "known": answered.known,
        "retrieved": answered.retrieved,
        **({} if answered.measure is None else {"measure": answered.measure}),
        "citations": [dataclasses.asdict(hit) for hit in answered.citations],
    }


def progress(total: int) -> Callable[[int], None]:
    """Return a callback that counts finished answers and reports every tenth of `total`.

    The report includes the time left.
    """
    began, done, shown = time.monotonic(), 0, 0

    def tell(number: int) -> None:
        nonlocal done, shown
        done += number
        if done * 10 // total > shown or done == total:
            shown, spent = done * 10 // total, time.monotonic() - began
            print(
                f"  {done}/{total} answers, {spent:.0f} s, about "
                f"{spent / done * (total - done):.0f} s left",
                file=sys.stderr,
            )

    return tell


@entry_point
def main(argv=None):
    options = parser(
        "retrieval.evaluate",
        "Ask a file of questions closed-book and open-book, score both, write a row a question.",
    )
    options.add_argument(
        "--reader",
        required=True,
        metavar="PATH",
        help=READER,
    )
    add_door_option(options)
    options.add_argument(
        "--questions",
        required=True,
        type=Path,
        metavar="FILE",
        help="JSON lines with question and answers",
    )
    options.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="JSON lines to write"
    )
    options.add_argument("-k", type=int, default=3, help="passages to retrieve for each question")
    options.add_argument(
        "--max-new-tokens", type=int, default=24, help="length of an answer, in tokens"
    )
    options.add_argument(
        "--by",
        default="",
        metavar="FIELD",
        help="a number of the questions, such as their popularity: score each third of them apart",
    )
    add_when_options(options)
    add_encoder_option(options)
    args = options.parse_args(argv)
    rows = read_questions(args.questions)
    if args.by:
        breakdown.numbers(rows, args.by)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.output.is_dir():
        raise RetrievalError(
            f"--output={args.output} is a folder: expected the name of a file to write"
        )
    from retrieval.reading.answering import FLOOR, answer
    from retrieval.reading.reader import door_of, load_reader
    from retrieval.reading.when import when_named

    when = when_named(args.when)
    door = door_of(args.reader, args.door)
    memory = open_memory(args.memory, args.encoder, reader=args.reader)
    reader = load_reader(args.reader, door)
    answered = answer(
        [row["question"] for row in rows],
        memory,
        reader,
        args.k,
        args.max_new_tokens,
        on_batch=progress(2 * len(rows)),
        floor=FLOOR if args.floor is None else args.floor,
        door=door,
        when=when,
        records=rows,
    )
    scored = [score(row, one) for row, one in zip(rows, answered, strict=True)]
    temporary = args.output.with_name(f".{args.output.name}.{os.getpid()}")
    temporary.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in scored), encoding="utf-8"
    )
    temporary.replace(args.output)
    for book in ("closed", "open"):
        right, exactly = (
            sum(row[f"{book}_{how}"] for row in scored) for how in ("correct", "exact")
        )
        f1_mean = sum(row[f"{book}_f1"] for row in scored) / len(scored)
        low, high = wilson(right, len(scored))
        known = [row for row in scored if row["known"]] if book == "open" else []
        if args.json:
            facts = {
                "book": book,
                "questions": len(scored),
                "right": right,
                "exact": exactly,
                "f1": f1_mean,
                "interval_95": [low, high],
            }
            skipped = sum(not row["retrieved"] for row in scored)
            knows: dict = (
                {
                    "known": len(known),
                    "known_right": sum(row["open_correct"] for row in known),
                    "skipped": skipped / len(scored),
                }
                if book == "open"
                else {}
            )
            print(json.dumps(facts | knows))
        else:
            share = f"{right / len(scored):.1%} (95 % interval {low:.1%} to {high:.1%})"
            print(
                f"{book}-book: {right}/{len(scored)} right, {share}, {exactly} exact "
                f"({exactly / len(scored):.1%}), F1 {f1_mean:.3f}"
            )
    apart = breakdown.by(scored, args.by) if args.by else []
    swept = breakdown.sweep(scored, when.below) if when else []
    if args.json:
        for told in (*apart, *swept):
            print(json.dumps(told))
    else:
        right = sum(row["open_correct"] for row in known)
        print(
            f"  says that it knows: {len(known)}/{len(scored)}, {len(known) / len(scored):.1%}; "
            f"{right} of these are right"
        )
        if skipped := [row for row in scored if not row["retrieved"]]:
            right = sum(row["open_correct"] for row in skipped)
            print(
                f"  answered from the weights, --when={args.when}: {len(skipped)}/{len(scored)}, "
                f"{len(skipped) / len(scored):.1%}; {right} of these are right"
            )
        if apart:
            print(breakdown.by_table(apart))
        if swept:
            print(breakdown.sweep_table(swept))


if __name__ == "__main__":
    sys.exit(main())
