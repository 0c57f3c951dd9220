"""Evaluation on Super-NaturalInstructions (Wang et al. 2022, arXiv 2204.07705, section 6).

A model is asked in Tk-Instruct's encodings and compared with two baselines that need no model. As
in the paper, the first 100 instances of each task are asked, prompts have at most 1,024 tokens, and
scores are means over all instances.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm.data import templates
from lm.data.read.sources import DataError
from lm.data.records import reading as records
from lm.data.records.examples import Record
from lm.data.records.reading import Reading
from lm.data.templates import Template
from lm.evaluation import answer_file, generation, scores, words
from lm.evaluation.generation import Answer, Question
from lm.evaluation.progress import bar
from lm.models.config import ConfigError, nearest
from lm.phases import phase
from lm.weights.loading import kept_template, load

TEMPLATE = "tk_instruct"
ENCODINGS = {"def": 0, "def-pos": 2}  # name -> positive examples after the task's definition
LONGEST = 1024  # tokens of a prompt
PER_TASK = 100
METRICS = "rouge_l,exact_match"
CLASSIFICATION = (  # categories whose metric is exact match in the script of the paper
    "textual entailment",
    "cause effect classification",
    "coreference resolution",
    "dialogue act recognition",
    "answerability classification",
    "word analogy",
)
BAD_SHARE = 0.01  # of instances without an input or output, which are left out and counted
AT_ONCE = 16  # batches between two writes to the file of answers
NONE = "no category"
INPUT, DEMONSTRATION = "copy input", "copy demonstration"

Metrics = Mapping[str, scores.Metric]


@dataclasses.dataclass(frozen=True)
class System:
    """Scores of a model in one encoding, or of a baseline.

    scores: metric -> float [N], in the order of the records. about: further numbers for the JSON.
    """

    name: str
    scores: Mapping[str, np.ndarray]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@phase("evaluating")
def of_superni(args) -> tuple[dict, str]:
    """Evaluate a model, if `args.model` is set, and the baselines: return (numbers, report).

    Raises ValueError or OSError.
    """
    notes: list[str] = []

    def warn(text: str) -> None:
        notes.append(text)
        print(f"warning: {text}", file=sys.stderr)

    metrics = scores.chosen(METRICS, words.tokenize_of(args.rouge_tokenizer))
    encodings = chosen(args.encodings) if args.model else []
    cap = PER_TASK if args.cap is None else args.cap
    read = records.read(
        args.superni, Reading("superni", cap=cap, max_bad_share=BAD_SHARE), part="all"
    )
    bare = sorted({record.task for record in read.records if not record.positive})
    if bare and any(ENCODINGS[name] for name in encodings):
        raise DataError(
            f"{len(bare)} tasks have no positive example, such as {bare[0]}, and the encoding "
            "'def-pos' shows two: choose --encodings=def, or leave these tasks out"
        )
    for text in (*read.warnings, *records.notes(read, {})):
        warn(text)
    if bare:
        warn(
            f"{len(bare)} tasks have no positive example, such as {bare[0]}: the baseline "
            f"{DEMONSTRATION!r} is left out"
        )
    references = [record.references for record in read.records]
    if doubt := words.doubt(references, [*metrics], args.rouge_tokenizer):
        warn(doubt)
    systems = _of_model(args, read.records, encodings, metrics, warn) if args.model else []
    systems += baselines(read.records, metrics)
    tasks = [record.task for record in read.records]
    kinds = [record.category or NONE for record in read.records]
    lines = {s.name: scores.table(s.scores, kinds, clusters=tasks) for s in systems}
    track = _track(args.superni)
    numbers = {
        "model": args.model,
        "superni": args.superni,
        "track": track,
        "tasks": len(set(tasks)),
        "answers": len(tasks),
        "per_task": cap,
        "max_new_tokens": args.max_new_tokens,
        "rouge_tokenizer": args.rouge_tokenizer,
        "systems": {
            system.name: {
                **system.about,
                "all": scores.numbers(lines[system.name][0]),
                "categories": {x.name: scores.numbers(x) for x in lines[system.name][1:]},
                "tasks": _means(system, tasks),
            }
            for system in systems
        },
        "category_metrics": {kind: metric_of(kind) for kind in sorted(set(kinds))},
        "warnings": notes,
    }
    overall = [dataclasses.replace(found[0], name=name) for name, found in lines.items()]
    title = f"Super-NaturalInstructions{f', {track} track' if track else ''}: "
    title += f"{len(set(tasks)):,} tasks, {len(tasks):,} instances; greedy, at most "
    title += f"{args.max_new_tokens} tokens; 95 % intervals, whole tasks drawn again"
    by_kind = f"\n\nby category\n\n{_by_kind(lines)}" if set(kinds) != {NONE} else ""
    return numbers, f"{title}\n\n{scores.formatted(overall)}{by_kind}"


def chosen(names: str) -> list[str]:
    """Encodings of comma-separated names; all if it is empty. Raises ConfigError."""
    found = [name.strip() for name in names.split(",")] if names else [*ENCODINGS]
    for name in found:
        if name not in ENCODINGS:
            raise ConfigError(
                f"--encodings={names}: {name!r} is unknown{nearest(name, ENCODINGS)}; expected "
                f"{' or '.join(ENCODINGS)}, or both with a comma"
            )
    return list(dict.fromkeys(found))


def baselines(asked: Sequence[Record], metrics: Metrics) -> list[System]:
    """Copy the input, and the output of the first positive example, as in run_heuristics.py.

    The second is left out if a task has no positive example.
    """
    given = {INPUT: [record.input for record in asked]}
    if all(record.positive for record in asked):
        given[DEMONSTRATION] = [record.positive[0].output for record in asked]
    references = [record.references for record in asked]
    return [System(name, scores.score(texts, references, metrics)) for name, texts in given.items()]


def metric_of(category: str) -> str:
    """Metric that the script of the paper prints for a category."""
    return "exact_match" if category.lower() in CLASSIFICATION else "rouge_l"


def _of_model(
    args,
    asked: Sequence[Record],
    encodings: Sequence[str],
    metrics: Metrics,
    warn: Callable[[str], None],
) -> list[System]:
    """Answer in every encoding."""
    model, params, tokenizer = load(args.model, args.dtype, args.quantize)
    kept = kept_template(args.model)
    if kept and kept["name"] != TEMPLATE:
        warn(
            f"{args.model} was trained with the template {kept['name']!r}, and is asked with "
            f"{TEMPLATE!r}"
        )
    room = generation.room(model.config, args.max_new_tokens)
    if 0 < room < LONGEST:
        warn(f"the model has room for {room:,} tokens of a prompt, and the paper gives {LONGEST:,}")
    used, questions, about = {}, {}, {}
    for name in encodings:
        used[name] = templates.get(
            TEMPLATE, tokenizer, positive=ENCODINGS[name], max_prompt=max(1, min(LONGEST, room))
        )
        questions[name] = generation.questions(
            asked, used[name], model, tokenizer, args.max_new_tokens
        )
        about[name] = _fit(name, questions[name], warn)
    rows = _answered(args, (model, params, tokenizer), used, questions, metrics)
    found = []
    for name in encodings:
        mine = [rows[name, question.text] for question in questions[name]]
        given = [Answer(row["answer"], row["stopped"]) for row in mine]
        found.append(System(name, generation.scored(questions[name], given, metrics), about[name]))
    return found


def _answered(
    args, loaded, used: Mapping[str, Template], questions: Mapping[str, list], metrics: Metrics
) -> dict[tuple[str, str], dict[str, Any]]:
    """(encoding, prompt) -> row of the answers' file, which is read first and added to."""
    model, params, tokenizer = loaded
    path = pathlib.Path(args.answers) if args.answers else None
    mark = answer_file.fingerprint(model, params, args.max_new_tokens) if path else ""
    earlier = answer_file.read(path, mark) if path else []
    rows: dict[tuple[str, str], dict[str, Any]] = {
        (row["encoding"], row["prompt"]): row for row in earlier
    }
    todo = {
        name: [question for question in asked if (name, question.text) not in rows]
        for name, asked in questions.items()
    }
    total, missing = sum(map(len, questions.values())), sum(map(len, todo.values()))
    if missing < total:
        print(f"{total - missing:,} of {total:,} answers are read from {path}", file=sys.stderr)
    size = AT_ONCE * args.batch_size
    with bar(missing, "answers") as done:
        for name, asked in todo.items():
            ordered = sorted(asked, key=lambda question: len(question.ids))  # to batch equal ones
            for part in (ordered[at : at + size] for at in range(0, len(ordered), size)):
                given = generation.answers(
                    model,
                    params,
                    tokenizer,
                    part,
                    args.max_new_tokens,
                    used[name],
                    batch_size=args.batch_size,
                    on_batch=done,
                )
                found = generation.scored(part, given, metrics)
                new = [
                    {"model": args.model, "fingerprint": mark, "encoding": name}
                    | _row(question, answer, {m: float(found[m][i]) for m in metrics})
                    for i, (question, answer) in enumerate(zip(part, given, strict=True))
                ]
                rows |= {(name, row["prompt"]): row for row in new}
                if path:
                    answer_file.append(path, new)
    return rows


def _row(question: Question, answer: Answer, scored: Mapping[str, float]) -> dict[str, Any]:
    return {
        "task": question.record.task,
        "category": question.record.category,
        "instance": question.record.source,
        "prompt": question.text,
        "answer": answer.text,
        "references": question.references,
        **({"reasoning": answer.reasoning} if answer.reasoning else {}),
        "stopped": answer.stopped,
        **scored,
    }


def _fit(name: str, asked: Sequence[Question], warn: Callable[[str], None]) -> dict[str, int]:
    """Count the prompts that did not fit, and warn of them."""

    def incomplete(question: Question) -> bool:
        last = min(ENCODINGS[name], len(question.record.positive))
        return last > 0 and f" Positive Example {last} -\nInput: " not in question.text

    cut = sum(question.shortened > 0 for question in asked)
    fewer = sum(map(incomplete, asked))
    of = f"of {len(asked):,} prompts"
    if cut:
        warn(f"{name}: {cut:,} {of} are cut at their end, which is the input's")
    if fewer:
        warn(
            f"{name}: {fewer:,} {of} show fewer than {ENCODINGS[name]} examples, for which they "
            "have no room"
        )
    return {
        "positive_examples": ENCODINGS[name],
        "cut_prompts": cut,
        "prompts_with_fewer_examples": fewer,
    }


def _means(system: System, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Task -> metric -> 100 times the mean."""
    rows = {task: np.flatnonzero(np.asarray(tasks) == task) for task in sorted(set(tasks))}
    return {
        task: {metric: 100 * float(x[at].mean()) for metric, x in system.scores.items()}
        for task, at in rows.items()
    }


def _by_kind(lines: Mapping[str, Sequence[scores.Scored]]) -> str:
    """Table of the categories, each with its metric and a column per system."""
    rows = [["", "answers", "metric", *lines]]
    for found in zip(*(system[1:] for system in lines.values()), strict=True):
        metric = metric_of(found[0].name)
        cells = [scores.cell(line.scores[metric], line.intervals[metric]) for line in found]
        rows.append([found[0].name, f"{found[0].answers:,}", metric, *cells])
    return scores.markdown(rows)


def _track(patterns: str) -> str:
    """Folder of a split's list, such as "default" or "xlingual"; "" for other data."""
    return pathlib.Path(patterns).resolve().parent.name if patterns.endswith(".txt") else ""
