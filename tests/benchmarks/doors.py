"""Cost of the doors at the input: python -m tests.benchmarks.doors [--doors replug ...]

SmolLM2-135M answers the same questions closed-book and through each door, with passages of about
150 tokens that are given, so that no search is timed. Prints the tokens of all prompts; how many of
them a CPU second are read until every answer has its first token (prefill); the answers' tokens per
CPU second after it (decoding); and the ratio of the whole CPU time to that of the closed book. CPU
time, as other work on the machine disturbs it less than wall time. Answers do not stop early. RAG-
Sequence decodes an answer to every passage and then scores all of them, which counts as decoding.
Fusion in decoder runs in a model of BART-base's shape with random weights and SmolLM2's tokenizer,
beside the closed book of that model: for its cost alone.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np

import lm
from lm.data import samples
from lm.families import preset
from retrieval.doors import running
from retrieval.doors.door import Asked, named
from retrieval.passages import Hit
from retrieval.reading.reader import Reader

ROOT = Path(__file__).parents[2]
DOORS = "in_context", "in_context,stride=8", "replug", "rag_token", "rag_sequence", "fid"
WORDS = 100  # of a passage


def fusing(tokenizer) -> Reader:
    """A reader of BART-base's shape with random weights."""
    end = tokenizer.eos_token_id
    c = preset("bart", "base", vocab_size=len(tokenizer), decoder_start_token_id=end)
    model = lm.build(c.replace(forced_eos_token_id=None))
    params = model.init(jax.random.key(0), lm.Batch.of([[0]], encoder_tokens=[[0]]))["params"]
    return Reader(model, params, tokenizer)


def passages(count: int) -> list[Hit]:
    """Consecutive pieces of the documentation."""
    words = (ROOT / "docs/memory.md").read_text(encoding="utf-8").split()
    texts = [" ".join(words[at : at + WORDS]) for at in range(0, count * WORDS, WORDS)]
    return [Hit(f"p{at}", text, "Memory", "", 0.5, 0) for at, text in enumerate(texts)]


def prompted(reader, door, asked: list[Asked], new: int) -> int:
    """Tokens of all prompts."""
    room = reader.prompt_tokens(new)
    return sum(len(row) for each in asked for row in door.question(reader, each, room).rows)


def cost(reader, door, asked: list[Asked], new: int, rounds: int) -> tuple[float, float]:
    """Median CPU seconds of one new token and of `new` tokens, for all questions."""
    again = lambda queries: [list(asked[at % len(asked)].hits) for at in range(len(queries))]
    spent: dict[int, list[float]] = {1: [], new: []}
    for _ in range(rounds + 1):  # the first compiles
        for tokens, each in spent.items():
            start = time.process_time()
            running.answers(door, reader, asked, again, tokens)
            each.append(time.process_time() - start)
    return float(np.median(spent[1][1:])), float(np.median(spent[new][1:]))


def main(argv=None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--reader", default="", help="default: SmolLM2 of lm.data.samples")
    options.add_argument("--doors", nargs="+", default=DOORS)
    options.add_argument("--questions", type=int, default=4)
    options.add_argument("-k", type=int, default=2, help="passages of a question")
    options.add_argument("--new", type=int, default=24, help="tokens of an answer")
    options.add_argument("--rounds", type=int, default=1)
    args = options.parse_args(argv)
    hits = passages(args.questions * args.k)
    groups = [hits[at : at + args.k] for at in range(0, len(hits), args.k)]
    given = [Asked("What does a memory hold?", tuple(group)) for group in groups]
    bare = [Asked(each.question) for each in given]
    reader = Reader.from_hf(args.reader or samples.fetch("smollm2"))
    decoders = [name for name in args.doors if "decoder" in named(name).kinds]
    others = [name for name in args.doors if name not in decoders]
    for base, names in (("closed-book", decoders), ("closed-book, BART-base", others)):
        if not names:
            continue
        reader = reader if names is decoders else fusing(reader.tokenizer)
        reader.stop_tokens, whole = [], 0.0
        for name in (base, *names):
            door, asked = ("in_context", bare) if name == base else (name, given)
            first, total = cost(reader, named(door), asked, args.new, args.rounds)
            whole = whole or total
            before = prompted(reader, named(door), asked, args.new)
            after = (args.new - 1) * args.questions
            print(
                f"| {name} | {before} | {before / first:.0f} | {after / (total - first):.1f} | "
                f"{total / whole:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
