"""Open-book answers on real questions: python -m tests.benchmarks.open_book_qa --data=xquad.en.json

The paragraphs of a SQuAD file are cut into passages of whole sentences. SmolLM2-135M-Instruct
answers questions about them closed-book and through doors at the input. Prints recall of the
passage with the answer, and exact match, F1 and containment with their 95 % intervals, apart for
questions whose passage was found; with --audit, whether each score comes from the memory. Answers
that are already in --workdir are used again.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np

from lm.data import samples
from lm.evaluation.accuracy import contains, exact, wilson
from lm.evaluation.generation import spread
from lm.evaluation.scores import bootstrap, f1
from retrieval import Encoder, Memory, Passage
from retrieval.doors import running
from retrieval.doors.door import Asked, named
from retrieval.ingest.sentences import sentences
from retrieval.reading.reader import Reader
from retrieval.reading.reliance import reliance

WORDS = 50  # of a passage at most, unless a sentence is longer
DOORS = "in_context", "rag_sequence"
AT = (1, 2, 5)  # of recall
NEW = 16  # tokens of an answer


def cut(text: str) -> list[tuple[int, int]]:
    """Start and end of each passage of a paragraph: consecutive sentences."""
    found: list[tuple[int, int]] = []
    for start, end in sentences(text, 0, len(text)):
        if found and len(text[found[-1][0] : end].split()) <= WORDS:
            found[-1] = found[-1][0], end
        else:
            found.append((start, end))
    return found


def read(path: Path) -> tuple[list[Passage], list[dict]]:
    """Passages, and rows of question, answers and the id of the passage that holds the first.

    An answer across the border of two passages is left out.
    """
    passages, rows = [], []
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        title = article.get("title", "").replace("_", " ")
        for paragraph in article["paragraphs"]:
            text = paragraph["context"]
            spans = {f"p{len(passages) + at}": span for at, span in enumerate(cut(text))}
            passages += [Passage(id, text[a:b], title=title) for id, (a, b) in spans.items()]
            for asked in paragraph["qas"]:
                first = asked["answers"][0]
                begin, end = first["answer_start"], first["answer_start"] + len(first["text"])
                names = [*dict.fromkeys(answer["text"] for answer in asked["answers"])]
                rows += [
                    {"question": asked["question"], "answers": names, "passage": id}
                    for id, (a, b) in spans.items()
                    if a <= begin and end <= b
                ]
    return passages, rows


def recall(memory: Memory, rows: list[dict]) -> dict[int, float]:
    """k -> share of questions whose passage is among the best k."""
    found = memory.search([row["question"] for row in rows], max(AT))
    ids = [[hit.id for hit in hits] for hits in found]
    return {
        k: float(np.mean([row["passage"] in of[:k] for row, of in zip(rows, ids, strict=True)]))
        for k in AT
    }


def answered(memory: Memory, rows: list[dict], reader, door: str, k: int) -> dict:
    """Answers through a door ("closed-book": without passages), and CPU seconds."""
    start = time.process_time()
    search = lambda texts: memory.search(texts, k)
    questions = [row["question"] for row in rows]
    hits = [()] * len(rows) if door == "closed-book" else search(questions)
    asked = [Asked(question, tuple(of)) for question, of in zip(questions, hits, strict=True)]
    through = named("in_context" if door == "closed-book" else door)
    texts = [one.text for one in running.answers(through, reader, asked, search, NEW)]
    found = [row["passage"] in {hit.id for hit in of} for row, of in zip(rows, hits, strict=True)]
    return {"texts": texts, "found": found, "cpu_seconds": time.process_time() - start}


def line(name: str, rows: list[dict], got: dict) -> str:
    """Row of the table."""
    texts, names = got["texts"], [row["answers"] for row in rows]
    pairs = list(zip(texts, names, strict=True))
    cells = [name]
    for score in (exact, contains):
        right = sum(score(*pair) for pair in pairs)
        low, high = wilson(right, len(pairs))
        cells.append(f"{right / len(pairs):.1%} ({low:.1%} to {high:.1%})")
    overlap = np.array([max(f1(text, name) for name in of) for text, of in pairs])
    low, high = bootstrap(overlap)
    cells.insert(2, f"{overlap.mean():.3f} ({low:.3f} to {high:.3f})")
    for was in (True, False):
        part = [
            contains(*pair) for pair, seen in zip(pairs, got["found"], strict=True) if seen is was
        ]
        cells.append(f"{np.mean(part):.1%} of {len(part)}" if part else "–")
    return "| " + " | ".join([*cells, f"{got['cpu_seconds']:.0f}"]) + " |"


HEAD = (
    "| | exact match | F1 | contains the answer | the same, passage found | not found | CPU s |\n"
    "|---|---|---|---|---|---|---|"
)


def kept(file: Path, make):
    """What `make` finds, or found before."""
    if not file.exists():
        file.write_text(json.dumps(make()), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def audited(memory: Memory, rows: list[dict], reader, door: str, k: int) -> dict:
    """The conditions of the audit, and CPU seconds."""
    start = time.process_time()
    conditions = reliance(rows, memory, reader, named(door), k, NEW)
    each = [dataclasses.asdict(one) for one in conditions]
    return {"conditions": each, "cpu_seconds": time.process_time() - start}


def main(argv=None) -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--data", required=True, type=Path, help="SQuAD's JSON")
    options.add_argument("--workdir", type=Path, default=Path("runs/open_book_qa"))
    options.add_argument("--reader", default="", help="default: SmolLM2 of lm.data.samples")
    options.add_argument("--encoder", default="", help="default: MiniLM of lm.data.samples")
    options.add_argument("--questions", type=int, default=100, help="evenly spaced; 0 = all")
    options.add_argument("--doors", nargs="*", default=DOORS)
    options.add_argument("--audit", nargs="*", default=[], help="doors whose scores are audited")
    options.add_argument("-k", type=int, default=2, help="passages of a question")
    args = options.parse_args(argv)
    passages, every = read(args.data)
    rows = spread(every, args.questions)
    args.workdir.mkdir(parents=True, exist_ok=True)
    encoder = Encoder.from_hf(args.encoder or samples.fetch("minilm"))
    path = args.workdir / "memory"
    if path.exists():
        memory = Memory.open(path, encoder)
    else:
        memory = Memory.create(path, encoder)
        memory.add(passages)
    shares = ", ".join(f"recall@{k} {share:.1%}" for k, share in recall(memory, every).items())
    print(f"{len(passages)} passages; {shares} of {len(every)} questions", flush=True)
    shares = ", ".join(f"recall@{k} {share:.1%}" for k, share in recall(memory, rows).items())
    print(f"{shares} of the {len(rows)} that are asked\n{HEAD}", flush=True)
    reader = Reader.from_hf(args.reader or samples.fetch("smollm2"))
    for door in ("closed-book", *args.doors):
        file = args.workdir / f"{door}-{len(rows)}-{args.k}.json"
        got = kept(file, lambda door=door: answered(memory, rows, reader, door, args.k))
        print(line(door, rows, got), flush=True)
    for door in args.audit:
        file = args.workdir / f"{door}-{len(rows)}-{args.k}-audit.json"
        got = kept(file, lambda door=door: audited(memory, rows, reader, door, args.k))
        print(f"audit of {door}, {got['cpu_seconds']:.0f} CPU s", flush=True)
        for one in got["conditions"]:
            low, high = one["interval"]
            print(
                f"| {one['name']} | {one['right']} of {one['asked']} | {low:.1%} to {high:.1%} | "
                f"{one['changed']} | {one['p']:.3g} | {'yes' if one['moved'] else 'NO'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
