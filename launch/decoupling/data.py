"""Write the files of the study configs/studies/decoupling.py.

python -m launch.decoupling.data --output=DIR --general=FILES --domain=FILES [--facts=FILE]
    [--pairs=FILES] [--instruct=FILES --held-out=GLOBS] [--samples-dir=DIR]

pretrain.jsonl is general text and sentences of facts, domain.jsonl text of a second domain; of
both, one part in ten is held out in general-test.jsonl and domain-test.jsonl. preference.jsonl has
the prompts of instruct.jsonl, each with the right answer and that of another row of its task.
facts.jsonl, pairs.jsonl and instruct-test.jsonl are probes. passages.jsonl is for a memory,
store.jsonl for a datastore and dev.jsonl for tuning it: all facts, and the training text of the
second domain.
"""

import argparse
import fnmatch
import itertools
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.decoupling import facts as of_facts
from launch.errors import LaunchError, one_line
from launch.quickstart.passages import json_lines, write
from lm.data.read import sources
from lm.data.read.sources import DataError
from lm.data.samples import fetch

WORDS = 64  # of a window of text
LONGEST = 400, 60  # characters of a prompt and of an answer of instruct data
NOUNS = (("dog", "dogs"), ("child", "children"), ("river", "rivers"), ("king", "kings"))
VERBS = (("sleeps", "sleep"), ("was", "were"), ("has", "have"), ("goes", "go"))


def windows(files: str) -> list[str]:
    """Windows of WORDS words of the documents of files, in order. Raises LaunchError."""
    found = []
    for text in sources.documents(sources.find_files(files)):
        words = text.split(" ")
        found += [" ".join(words[at : at + WORDS]) for at in range(0, len(words), WORDS)]
    found = [text for text in found if len(text.split()) >= WORDS // 2]
    if len(found) < 20:
        raise LaunchError(f"{files}: {len(found)} windows of {WORDS} words; expected at least 20")
    return found


def split(texts: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Parts for training, for tests and for dev: blocks of eight, one and one in ten."""
    size = max(1, len(texts) // 100)
    blocks = [texts[at : at + size] for at in range(0, len(texts), size)]
    part = lambda wanted: [t for n, b in enumerate(blocks) if n % 10 in wanted for t in b]
    return part(range(8)), part((8,)), part((9,))


def row(text: str, share: float = 0.5) -> dict:
    """Prompt and completion of a text, whose words are divided at `share`."""
    words = text.split(" ")
    at = min(max(1, round(share * len(words))), len(words) - 1)
    before, after = " ".join(words[:at]), " ".join(words[at:])
    return {"prompt": before, "completion": after, "text": f"{before} {after}"}


def usable(rows: Sequence[dict]) -> list[dict]:
    return [each for each in rows if each["prompt"].strip() and each["completion"].strip()]


def agreement() -> Iterator[dict]:
    """Minimal pairs of number agreement, where no files of them are given."""
    for (one, many), (first, other) in itertools.product(NOUNS, VERBS):
        for noun, good, bad, uid in ((one, first, other, "one"), (many, other, first, "many")):
            for start in ("The", "My", "Every day the"):
                yield {
                    "sentence_good": f"{start} {noun} {good} there.",
                    "sentence_bad": f"{start} {noun} {bad} there.",
                    "UID": uid,
                }


def pairs(files: str, per_file: int, rng: random.Random) -> Iterator[dict]:
    """Some rows of every file."""
    for file in sources.find_files(files):
        each = [row.value for row in sources.rows(file) if isinstance(row.value, dict)]
        for value in rng.sample(each, min(per_file, len(each))):
            names = ("sentence_good", "sentence_bad", "UID")
            yield {name: value[name] for name in names if name in value}


def instructions(
    files: str, held_out: str, most: int, rng: random.Random
) -> tuple[list[dict], list[dict]]:
    """Rows for training and for tests: whole tasks are held out. A task is a file or a field."""
    by_task: dict[str, list[dict]] = {}
    for file in sources.find_files(files):
        for read in sources.rows(file):
            found = _instruction(read.value if isinstance(read.value, dict) else {})
            if found:
                found["task"] = found["task"] or Path(file).stem
                by_task.setdefault(found["task"], []).append(found)
    globs = [glob.strip() for glob in held_out.split(",") if glob.strip()]
    train: list[dict] = []
    test: list[dict] = []
    for task, each in sorted(by_task.items()):
        held = any(fnmatch.fnmatch(task, glob) for glob in globs)
        (test if held else train).extend(rng.sample(each, min(most, len(each))))
    if not train or not test:
        raise LaunchError(
            f"--held-out={held_out}: {len(test)} rows to test with and {len(train)} to train on, "
            f"of the tasks {', '.join(sorted(by_task)[:8])} ...; expected some of both"
        )
    rng.shuffle(train)
    return train, test


def preferences(rows: Sequence[dict], rng: random.Random) -> Iterator[dict]:
    """Rows with their answer and a wrong one, that of another row of the task."""
    answers: dict[str, list[str]] = {}
    for each in rows:
        answers.setdefault(each["task"], []).append(each["completion"])
    for each in rows:
        right = each["completion"]
        wrong = [answer for answer in answers[each["task"]] if answer != right]
        if wrong:
            yield {"prompt": each["prompt"], "chosen": right, "rejected": rng.choice(wrong)}


def _instruction(value: dict) -> dict | None:
    """Prompt, completion and task of a row; None for one that is too long or something else."""
    prompt, answer = value.get("prompt"), value.get("completion")
    if prompt is None and "instruction" in value:
        prompt, answer = "\n".join((value["instruction"], value.get("input", ""))), value["output"]
    if not isinstance(prompt, str) or not isinstance(answer, str):
        return None
    prompt, answer = prompt.strip(), answer.removesuffix("<|endoftext|>").strip()
    if not prompt or not answer or len(prompt) > LONGEST[0] or len(answer) > LONGEST[1]:
        return None
    task = value.get("task") or value.get("instruction") or ""
    return {"prompt": prompt + "\n", "completion": answer, "task": task}


def make(args) -> dict[str, list[dict]]:
    """File name -> rows."""
    rng = random.Random(args.seed)
    if args.facts:
        facts = of_facts.read(args.facts)
    else:
        try:
            places = (fetch(name, args.samples_dir) for name in ("geonames", "elements"))
            facts = of_facts.of_samples(*places, args.most_facts)
        except DataError as error:
            raise LaunchError(str(error)) from error
    placed = of_facts.place(facts, args.most_sentences)
    old, old_test, old_dev = split(windows(args.general))
    new, new_test, new_dev = split(windows(args.domain))
    told = list(of_facts.documents(placed, rng))
    general = [
        row(text, rng.uniform(0.2, 0.8))
        for text in rng.sample(old, min(args.general_texts, len(old)))
    ]
    mixed = usable([*general, *told])
    rng.shuffle(mixed)
    train, test = instructions(args.instruct, args.held_out, args.per_task, rng)
    kept = rng.sample(new, min(args.memory_texts, len(new)))
    spread = lambda texts, most: [row(text) for text in rng.sample(texts, min(most, len(texts)))]
    dev = spread(old_dev, args.tests // 2) + spread(new_dev, args.tests // 2)
    asked = rng.sample(facts, min(args.tests, len(facts)))
    dev += [dict(zip(("prompt", "completion"), fact.sentence(2), strict=True)) for fact in asked]
    chosen = pairs(args.pairs, args.per_file, rng) if args.pairs else agreement()
    return {
        "pretrain": mixed,
        "domain": usable([row(text, rng.uniform(0.2, 0.8)) for text in new]),
        "instruct": train,
        "preference": list(preferences(train, random.Random(args.seed))),
        "facts": list(of_facts.probes(placed, args.per_group, args.candidates, rng)),
        "general-test": usable(spread(old_test, args.tests)),
        "domain-test": usable(spread(new_test, args.tests)),
        "pairs": list(chosen),
        "instruct-test": rng.sample(test, min(args.tests, len(test))),
        "passages": [
            *of_facts.passages(facts),
            *({"id": f"domain-{n}", "text": text} for n, text in enumerate(kept)),
        ],
        "store": usable([*of_facts.entries(facts), *map(row, kept)]),
        "dev": usable(dev),
    }


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launch.decoupling.data",
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
    )
    text: dict[str, Any] = dict(required=True, metavar="FILES")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="of the files")
    parser.add_argument("--general", help="text to pretrain on", **text)
    parser.add_argument("--domain", help="text of the second domain", **text)
    parser.add_argument("--instruct", help="prompts with completions, or Alpaca's", **text)
    parser.add_argument("--held-out", default="", metavar="GLOBS", help="tasks for tests")
    parser.add_argument(
        "--facts", type=Path, metavar="FILE", help="JSONL: relation, subject, answer, popularity"
    )
    parser.add_argument("--samples-dir", help="of GeoNames and mendeleev (default: the cache)")
    parser.add_argument("--pairs", default="", metavar="FILES", help="BLiMP's, or like them")
    for name, default, about in (
        ("general-texts", 1200, "texts of general text to train on"),
        ("most-facts", 120, "facts of a relation"),
        ("most-sentences", 64, "sentences about the most popular fact"),
        ("per-group", 40, "facts to probe in each third"),
        ("candidates", 10, "answers to rank"),
        ("per-file", 6, "minimal pairs of each file"),
        ("per-task", 200, "rows of each instruct task"),
        ("tests", 48, "rows of each other probe"),
        ("memory-texts", 300, "texts of the second domain in the memory"),
        ("seed", 0, "of all choices"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{about} ({default})")
    args = parser.parse_args(argv)
    for name, least in (("candidates", 2), ("per-group", 1), ("tests", 2), ("most-sentences", 1)):
        if getattr(args, name.replace("-", "_")) < least:
            value = getattr(args, name.replace("-", "_"))
            parser.error(f"--{name}={value}: expected at least {least}")
    return args


@one_line
def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    try:
        made = make(args)
    except (DataError, OSError, json.JSONDecodeError) as error:
        raise LaunchError(str(error)) from error
    for name, rows in made.items():
        write(args.output / f"{name}.jsonl", json_lines(rows))
    print(", ".join(f"{name} {len(rows):,}" for name, rows in made.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
