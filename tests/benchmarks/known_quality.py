"""Accuracy of `known`: right and wrong answers of a SQuAD file, against BM25's three best passages.

python -m tests.benchmarks.known_quality --data=xquad.en.json [--json]

Right: the answer, alone and in a sentence. Wrong: the answer to a similar question about another
article (both have a digit, or neither), alone, in a sentence and beside the right answer; the
right answer denied; the last words of the question; and the answer to another question about the
same paragraph, which occurs in a passage too. No reader and no cosine floor are involved.
"""

import argparse
import json
import pathlib
import random
import re
import sys
import tempfile

import numpy as np

from lm.evaluation.accuracy import contains
from retrieval import Memory, Passage
from retrieval.reading.answering import is_known

RIGHT = ("right", "right, in a sentence")
APART = "same paragraph"  # reported separately: no comparison of words can see that these are wrong


def read(path: pathlib.Path) -> tuple[list[Passage], list[tuple[str, str, int, int]]]:
    """Read (paragraphs, (question, answer, number of its article, number of its paragraph))."""
    passages, questions = [], []
    for number, article in enumerate(json.loads(path.read_text(encoding="utf-8"))["data"]):
        for paragraph in article["paragraphs"]:
            asked = [
                (one["question"], one["answers"][0]["text"], number, len(passages))
                for one in paragraph["qas"]
            ]
            passages.append(Passage(f"p{len(passages)}", paragraph["context"]))
            questions += asked
    return passages, questions


def answers(
    question: tuple[str, str, int, int], questions: list, rng: random.Random
) -> dict[str, str]:
    """kind -> a right or wrong answer to the question; kinds that do not apply are left out."""
    text, right, article, paragraph = question
    digit = lambda answer: bool(re.search(r"\d", answer))
    apart = lambda answer: not contains(answer, [right]) and not contains(right, [answer])
    far = rng.choice(
        [
            a
            for _, a, other, _ in questions
            if other != article and digit(a) == digit(right) and apart(a)
        ]
    )
    near = [a for _, a, _, place in questions if place == paragraph and apart(a)]
    made = {
        "right": right,
        "right, in a sentence": f"The answer is {right}.",
        "other article": far,
        "other article, in a sentence": f"The answer is {far}.",
        "right beside other article": f"{right}, {far}",
        "right, denied": f"It is not {right}.",
        "last words of the question": " ".join(text.rstrip("? ").split()[-3:]),
    }
    return made | ({APART: rng.choice(near)} if near else {})


def measured(passages: list[Passage], questions: list) -> dict[str, dict[str, int]]:
    """kind -> {"answers": number of answers, "known": how many of them are called known}."""
    rng, counts = random.Random(0), {}
    with tempfile.TemporaryDirectory() as folder:
        memory = Memory.create(
            pathlib.Path(folder) / "memory", lambda texts: np.ones((len(texts), 2), np.float32)
        )
        memory.add(passages)
        found = memory.search([question for question, *_ in questions], 3, mode="lexical")
    for question, shown in zip(questions, found, strict=True):
        for kind, text in answers(question, questions, rng).items():
            count = counts.setdefault(kind, {"answers": 0, "known": 0})
            count["answers"] += 1
            count["known"] += is_known(question[0], text, shown, floor=0.0)
    return counts


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.known_quality", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--data",
        required=True,
        type=pathlib.Path,
        metavar="FILE",
        help="a SQuAD v1.1 file, such as XQuAD's",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    if not args.data.is_file():
        parser.error(f"--data={args.data} is no file: expected a SQuAD v1.1 file")
    counts = measured(*read(args.data))
    total = lambda kinds, name: sum(counts[kind][name] for kind in kinds)
    wrong = [kind for kind in counts if kind not in RIGHT and kind != APART]
    recall, false = (
        total(RIGHT, "known") / total(RIGHT, "answers"),
        total(wrong, "known") / total(wrong, "answers"),
    )
    # Precision assumes as many right answers as wrong ones.
    figures = {
        "recall": recall,
        "false": false,
        "precision": recall / (recall + false),
    }
    if args.json:
        print(json.dumps({"kinds": counts, **figures}))
        return 0
    for kind, count in counts.items():
        print(
            f"{kind:<30} {count['known']:>5} of {count['answers']:>5} known, "
            f"{count['known'] / count['answers']:.1%}"
        )
    print(
        f"recall {recall:.3f}, wrong ones known {false:.3f}, precision at as many wrong as right "
        f"{figures['precision']:.3f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
