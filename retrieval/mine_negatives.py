"""Find hard negatives for training a retriever: passages that look right and are not.

python -m retrieval.mine_negatives --memory=DIR --pairs=FILES --output=FILE
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from lm.data.records import labels as labelled
from lm.data.records.turns import BadRecord
from lm.evaluation.scores import normalise_squad
from retrieval.cli import add_encoder_option, entry_point, open_memory, parser
from retrieval.errors import RetrievalError
from retrieval.passages import Hit, Passage, titled
from retrieval.sanitising import as_json
from retrieval.search import MODES

ABOUT = (
    "Write, for every question and its passage, passages of the memory that rank high and hold no "
    "answer (Karpukhin et al. 2020, section 3.2), for the task 'contrastive'."
)
EPILOG = (
    "PAIRS are records with a question and its passage, as JSONL or in SQuAD's nested JSON. "
    "Answers, if there are any, keep passages\nout that contain one. Where too few passages are "
    "found, others are drawn at random. The output has the fields text, positive and\nnegatives: "
    "config.task = tasks.defaults('contrastive', pair_field='positive', "
    "negatives_field='negatives', negatives=N)."
)


def pair(row: Mapping, where: str, question: str, positive: str, answers: str) -> dict:
    """Question, its passage and the answers, of a row. Raises BadRecord."""
    for name in (question, positive):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise BadRecord(f"field {name!r} is {row.get(name)!r:.80}: expected some text")
    found = row.get(answers) or []
    found = found.get("text", []) if isinstance(found, Mapping) else found
    found = [found] if isinstance(found, str) else found
    texts = [one.get("text", "") if isinstance(one, Mapping) else one for one in found]
    return {
        "text": row[question],
        "positive": row[positive],
        "answers": [text for text in texts if isinstance(text, str) and text.strip()],
    }


def negatives(found: Mapping, passages: Sequence[Hit | Passage], n: int) -> list[str]:
    """At most n texts of passages, in order: not the positive, and without an answer.

    A passage is the positive also where one of the two texts contains the other.
    """
    words = lambda text: f" {normalise_squad(text)} "
    own, answers = words(found["positive"]), [words(answer) for answer in found["answers"]]
    kept: dict[str, str] = {}
    for passage in passages:
        text = words(titled(passage.title, passage.text))
        same = text.strip() in own or own.strip() in text
        if not same and not any(answer in text for answer in answers if answer.strip()):
            kept.setdefault(text, titled(passage.title, passage.text))
    return list(kept.values())[:n]


@entry_point
def main(argv=None):
    options = parser("retrieval.mine_negatives", ABOUT, EPILOG)
    options.add_argument("--pairs", required=True, metavar="FILES", help="files or globs")
    options.add_argument("--output", required=True, type=Path, metavar="FILE", help="JSON lines")
    options.add_argument("--replace", action="store_true", help="replace the output if it exists")
    options.add_argument("--question-field", default="question", help="field of the question")
    options.add_argument("--positive-field", default="context", help="field of its passage")
    options.add_argument("--answers-field", default="answers", help="field of its answers, if any")
    options.add_argument("-n", type=int, default=1, help="negatives of a question")
    options.add_argument("--depth", type=int, default=50, help="passages that are looked at")
    options.add_argument(
        "--mode", choices=MODES, default="lexical", help="by words (BM25), by vectors, or both"
    )
    options.add_argument("--seed", type=int, default=0, help="of passages drawn at random")
    add_encoder_option(options)
    args = options.parse_args(argv)
    if args.n < 1 or args.depth < args.n:
        options.error(
            f"-n {args.n}, --depth={args.depth}: expected at least 1, and a depth of no fewer"
        )
    if args.output.exists() and not args.replace:
        raise RetrievalError(f"{args.output} exists: give another --output, or --replace")
    fields = (args.question_field, args.positive_field, args.answers_field)
    make = partial(pair, **dict(zip(("question", "positive", "answers"), fields, strict=True)))
    pairs = labelled.read(args.pairs, make)
    memory = open_memory(args.memory, args.encoder)
    if len(memory) < 2:
        raise RetrievalError(f"{args.memory} holds {len(memory)} passages: none can be a negative")
    found = memory.search([one["text"] for one in pairs], args.depth, mode=args.mode)
    ids, rng, drawn, short = memory.ids(), np.random.default_rng(args.seed), 0, 0
    rows = []
    for one, hits in zip(pairs, found, strict=True):
        mined = negatives(one, hits, args.n)
        if len(mined) < args.n:
            some = rng.choice(len(ids), min(len(ids), 4 * args.n), replace=False)
            others = negatives(one, [memory.get(ids[i]) for i in some], 4 * args.n)
            more = [text for text in others if text not in mined]
            drawn += len(more[: args.n - len(mined)])
            mined += more[: args.n - len(mined)]
        short += len(mined) < args.n
        if len(mined) == args.n:
            rows.append({"text": one["text"], "positive": one["positive"], "negatives": mined})
    if not rows:
        raise RetrievalError(f"no question has {args.n} passages without its answer: lower -n")
    written = args.output.with_name(f".{args.output.name}.unfinished")
    written.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    os.replace(written, args.output)
    if args.json:
        print(as_json({"questions": len(rows), "drawn": drawn, "left_out": short}))
        return
    print(
        f"{args.output}: {len(rows):,} questions with {args.n} negatives each; {drawn:,} negatives "
        f"were drawn at random; {short:,} questions with too few were left out"
    )


if __name__ == "__main__":
    sys.exit(main())
