"""Edit one fact of a memory, delete another, undo both, and ask after each; write edits.json.

python -m launch.quickstart.edits --memory=DIR --reader=MODEL --answers=answers.jsonl \
    --output=edits.json
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from launch.errors import LaunchError, one_line
from launch.quickstart.passages import write
from lm.weights.loading import load
from retrieval.memory import Memory
from retrieval.reading.answering import Reader, answer

ELSEWHERE = (
    "Norway, Europe",
    "Portugal, Europe",
)  # new place of the edited city; the second if the city is in the first

REASON = "quickstart, to be undone"


def pick(answers: list[dict]) -> tuple[dict, dict]:
    """Choose the two shortest correct open-book answers, if possible with wrong closed-book ones.

    Their first citation is the passage of the question. Raises LaunchError if there are not two.
    """
    right = [
        row
        for row in answers
        if row["open_correct"] and any(hit["id"] == row["passage"] for hit in row["citations"][:1])
    ]
    right.sort(key=lambda row: (row["closed_correct"], len(row["open_book"])))
    if len(right) < 2:
        raise LaunchError(
            f"{len(right)} of {len(answers)} answers are right and cite the passage asked about; "
            "two are needed to edit"
        )
    return right[0], right[1]


def restore(memory: Memory) -> None:
    """Undo changes of an earlier run of this stage that was killed."""
    log = [commit for commit in memory.log() if commit.reason == REASON]
    for _ in range(sum(-1 if commit.action == "undo" else 1 for commit in log)):
        memory.undo(reason=REASON)


def tell(memory: Memory, reader: Reader, edited: dict, deleted: dict) -> list[dict[str, Any]]:
    """Ask both questions before, after an edit, after a deletion, and after undoing both."""
    questions = [edited["question"], deleted["question"]]
    country = edited["answers"][0]
    elsewhere = next(place for place in ELSEWHERE if not place.startswith(country))
    before = memory.get(edited["passage"]).text
    story = []

    def step(name: str, what: str, change) -> None:
        began = time.perf_counter()
        change()
        seconds = time.perf_counter() - began
        print(f"  {what}", flush=True)
        asked = [
            {
                "question": a.question,
                "answer": a.text,
                "citations": [{"id": h.id, "text": h.text} for h in a.citations],
            }
            for a in answer(questions, memory, reader)
        ]
        story.append({"step": name, "what": what, "seconds": seconds, "asked": asked})

    step("before", "Before any change", lambda: None)
    after = re.sub(r"(?<= is a city in )[^.]*", elsewhere, before, count=1)
    step(
        "edit",
        f"Edit {edited['passage']}: now in {elsewhere}",
        lambda: memory.edit(edited["passage"], after, reason=REASON),
    )
    step(
        "delete",
        f"Delete {deleted['passage']}",
        lambda: memory.delete([deleted["passage"]], reason=REASON),
    )
    step("undo", "Undo both", lambda: [memory.undo(reason=REASON) for _ in range(2)])
    return story


@one_line
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.quickstart.edits",
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
    )
    parser.add_argument("--memory", required=True, help="directory of the memory")
    parser.add_argument(
        "--reader", required=True, help="model that answers: directory, hub id, .gguf file or run"
    )
    parser.add_argument(
        "--answers",
        required=True,
        type=Path,
        help="answers.jsonl of retrieval.evaluate, to choose the facts from",
    )
    parser.add_argument("--output", required=True, type=Path, help="the JSON file to write")
    args = parser.parse_args(argv)
    try:
        edited, deleted = pick(
            [json.loads(line) for line in args.answers.read_text(encoding="utf-8").splitlines()]
        )
        memory, reader = Memory.open(args.memory), Reader(*load(args.reader))
        restore(memory)
        story = tell(memory, reader, edited, deleted)
    except (ValueError, OSError) as error:  # an unreadable model or memory
        raise LaunchError(str(error)) from error
    if story[0]["asked"] != story[-1]["asked"]:
        raise LaunchError(
            f"after undoing both changes the answers are not those before: {story[-1]['asked']}; "
            "the memory is at fault"
        )
    log = [
        {
            "version": c.version,
            "action": c.action,
            "passages": len(c.ids),
            "time": c.time,
            "reason": c.reason,
        }
        for c in memory.log()
    ]
    write(args.output, json.dumps({"story": story, "log": log}, ensure_ascii=False, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
