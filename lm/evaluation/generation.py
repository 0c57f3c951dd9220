"""Evaluation of generated answers to instruct data, with the prompts used in training."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm.data import templates
from lm.data.encode.encoding import Encoder
from lm.data.read.sources import DataError
from lm.data.records.examples import Example, Record
from lm.data.records.turns import THINK, without_reasoning
from lm.data.templates import Template
from lm.evaluation import scores
from lm.evaluation.corpus import Statistics
from lm.generation import Beams, GenerationError, Greedy, generate
from lm.generation.text import decoded
from lm.models import LanguageModel, inputs
from lm.models.config import ModelConfig

METRICS = "exact_match,f1,rouge_l"


@dataclasses.dataclass(frozen=True)
class Question:
    """One prompt. ids: input of generation. text: the same for display.

    references: the right answers, without reasoning.
    shortened: number of tokens removed so that it fits.
    """

    ids: list[int]
    text: str
    record: Record
    references: tuple[str, ...]
    shortened: int = 0


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer.

    stopped: whether the model ended it, not the budget. reasoning: what it wrote in <think> first.
    """

    text: str
    stopped: bool
    reasoning: str = ""


def room(config: ModelConfig, max_new_tokens: int) -> int:
    """Tokens that a prompt may have."""
    return config.max_length - (0 if config.encoder_layers else max_new_tokens)


def questions(
    records: Sequence[Record],
    template: Template,
    model: LanguageModel,
    tokenizer,
    max_new_tokens: int,
) -> list[Question]:
    """Build the prompts of the records.

    A prompt that is too long loses tokens at the beginning of its text. Raises DataError for a
    record without a reference in text, GenerationError when the budget leaves no room for any
    prompt.
    """
    c = model.config
    if c.head not in ("causal_lm", "seq2seq_lm"):
        raise GenerationError(
            f"a {c.family} model with head={c.head!r} does not generate text; "
            "expected causal_lm or seq2seq_lm"
        )
    encoder = Encoder(tokenizer, c.decoder_start_token_id if c.encoder_layers else None)
    free = room(c, max_new_tokens)
    head, tail = len(encoder.prefix), len(encoder.suffix) if c.encoder_layers else 0
    if free <= head + tail:
        raise GenerationError(
            f"max_new_tokens={max_new_tokens} leaves {free} of the model's {c.max_length} tokens "
            "for a prompt: lower it"
        )
    found = []
    for number, record in enumerate(records):
        example = template.prompt(record, number)
        references = _references(record, example, number)
        ids = encoder.prompt(example)
        if said := inputs.outside(c, ids, tokenizer):
            raise GenerationError(f"{record.source or f'record {number}'}: its prompt holds {said}")
        over = max(0, len(ids) - free)
        start = head if ids[:head] == encoder.prefix else 0
        kept = [*ids[:start], *ids[start + over :]]
        text = "".join(segment.text for segment in example.prompt)
        found.append(Question(kept, text, record, references, over + example.cut))
    return found


def answers(
    model: LanguageModel,
    params: dict,
    tokenizer,
    asked: Sequence[Question],
    max_new_tokens: int,
    template: Template,
    *,
    batch_size: int = 16,
    on_batch: Callable[[int], None] | None = None,
    beams: int = 1,
    length_penalty: float = 1.0,
) -> list[Answer]:
    """Generate the model's answer to each question: greedy, or by a search with several beams.

    It ends at the template's stop token, an end-of-text token, or the budget.
    """
    stop = {*model.config.eos_token_ids, templates.stop_id(template, tokenizer)}
    found = generate(
        model,
        params,
        [question.ids for question in asked],
        max_new_tokens,
        Beams(beams, length_penalty) if beams > 1 else Greedy(),
        stop_tokens=sorted(stop),
        batch_size=beams * batch_size,
        on_batch=on_batch,
    )
    # a forced last token (BART) is not chosen by the model
    full = max_new_tokens - (model.config.forced_eos_token_id in stop)
    given = []
    for question, ids in zip(asked, found, strict=True):
        opened = question.text.rstrip().endswith(THINK[0])
        reasoning, text = without_reasoning(decoded(tokenizer, ids).strip(), opened)
        given.append(Answer(text.strip(), len(ids) < full, reasoning.strip()))
    return given


def unscored(records: Sequence[Record]) -> dict[str, int]:
    """Return field -> number of references that have it beside their text, which is not scored."""
    turns = [record.turns[-1] for record in records if record.turns]
    return dict(collections.Counter(name for turn in turns for name in turn.fields))


def _references(record: Record, example: Example, number: int) -> tuple[str, ...]:
    where = record.source or f"record {number}"
    if record.turns and record.turns[-1].fields.get("tool_calls"):
        raise DataError(
            f"{where}: the reference makes tool calls ('tool_calls'), and only texts are compared; "
            "remove the record, or cut the conversation at an answer in text"
        )
    found = tuple(text for said in example.references if (text := without_reasoning(said)[1]))
    if not found:
        raise DataError(f"{where}: there is no answer to score against")
    return found


def scored(
    asked: Sequence[Question],
    given: Sequence[Answer],
    metrics: Mapping[str, scores.Metric],
) -> dict[str, Any]:
    """Score each answer, as scores.score does; stop_rate is 1 where the model ended it."""
    found = scores.score(
        [answer.text for answer in given], [question.references for question in asked], metrics
    )
    return found | {"stop_rate": np.array([answer.stopped for answer in given], np.float64)}


def each(found: Mapping[str, scores.Values]) -> dict[str, np.ndarray]:
    """The metrics that every answer has a score of, without stop_rate."""
    return {
        name: values
        for name, values in found.items()
        if name != "stop_rate" and not isinstance(values, Statistics)
    }


def by_category(
    asked: Sequence[Question], found: Mapping[str, scores.Values]
) -> list[scores.Scored]:
    """Mean scores per task category, as in Wang et al. 2022's script; [] without categories."""
    rows = [row for row, question in enumerate(asked) if question.record.category]
    if not rows:
        return []
    of = [asked[row].record for row in rows]
    within = {name: values[rows] for name, values in found.items()}
    return scores.table(
        within, [record.category for record in of], clusters=[record.task for record in of]
    )[1:]


def baselines(
    asked: Sequence[Question], metrics: Mapping[str, scores.Metric], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Scores of two trivial baselines: copying the input, and copying a demonstration's answer."""
    inputs = scores.copy_input(
        [question.record.input or question.record.instruction for question in asked]
    )
    drawn = scores.copy_demonstration(
        [[shown.output for shown in question.record.positive] for question in asked], seed
    )
    references = [question.references for question in asked]
    return {
        name: scores.score(given, references, metrics)
        for name, given in (("copy input", inputs), ("copy demonstration", drawn))
    }


def write_answers(
    path: pathlib.Path,
    asked: Sequence[Question],
    given: Sequence[Answer],
    found: Mapping[str, scores.Values],
) -> None:
    """Write one JSON object per line: task, prompt, answer, references, reasoning if any, stopped
    and scores, without those of the corpus."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for number, (question, answer) in enumerate(zip(asked, given, strict=True)):
            row: dict[str, Any] = {
                "task": question.record.task,
                "prompt": question.text,
                "answer": answer.text,
                "references": question.references,
            }
            row |= {"reasoning": answer.reasoning} if answer.reasoning else {}
            row |= {"stopped": answer.stopped} | {
                name: float(values[number]) for name, values in each(found).items()
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def spread(records: Sequence[Any], most: int) -> list[Any]:
    """Select at most `most` records, evenly spaced and deterministic; 0 = all."""
    if not most or most >= len(records):
        return list(records)
    return [records[i] for i in np.linspace(0, len(records) - 1, most).round().astype(int)]
