"""Evaluation of label heads: on packed rows during training, and on labelled files.

For files it also gives a prediction for every record.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import tasks
from lm.batch import Batch
from lm.data import batches
from lm.data.encode.labels import Encoded, Shape
from lm.data.packed import Packed
from lm.data.records import labels as labelled
from lm.data.records.labels import Group, Question, Text, Words
from lm.distributed import sharding
from lm.distributed.sharding import ACTIVATIONS, Rules
from lm.evaluation import predictions
from lm.evaluation.command_line import LABELS
from lm.losses import Term
from lm.models import inputs
from lm.models.config import ConfigError, nearest
from lm.phases import phase
from lm.tasks.labels import LabelTask
from lm.weights.loading import load, run_config

ON_ENCODER = "train its encoder: a run of that task with init_from set to this model"


def make_evaluator(
    model, mesh, batch_size: int, loss, *, activations: Rules = ACTIVATIONS, transform=None
):
    """Build a function (params, packed, max_rows=0) -> {"loss", and the loss's metrics}.

    They are means over the rows, or tokens, with labels. loss, transform: a task's. Rows are read
    in order; max_rows 0 = all.
    """
    run = jax.jit(
        lambda params, batch: loss(model, params, batch), out_shardings=sharding.replicated(mesh)
    )

    def evaluate(params, packed: Packed, max_rows: int = 0) -> dict[str, float]:
        rows = sharding.batch_sharding(mesh, (batch_size, packed.length), activations)
        total: dict[str, float] = defaultdict(float)
        weight: dict[str, float] = defaultdict(float)
        with sharding.activate(mesh, activations):
            for _, batch in batches.in_order(
                packed, batch_size, rows, max_rows or None, transform, config=model.config
            ):
                found = jax.device_get(run(params, batch))
                for name, value in (found.terms | found.metrics).items():
                    if not isinstance(value, Term):
                        value = Term(value, found.first.weight)
                    total[name] += float(value.sum)
                    weight[name] += float(value.weight)
        return {name: value / (weight[name] or 1.0) for name, value in total.items()}

    return evaluate


@phase("evaluating")
def of_labels(args) -> tuple[dict, str]:
    """Evaluate a model on the labelled files of `args.data`: return (numbers, report).

    Raises ValueError or OSError.
    """
    kind = tasks.TASKS.get(args.task)
    if kind is None or not issubclass(kind, LabelTask):
        raise ValueError(
            f"--task={args.task!r} is unknown{nearest(args.task, LABELS)}; one of "
            f"{', '.join(LABELS)}"
        )
    model, params, tokenizer = load(args.model, args.dtype, args.quantize)
    c = model.config
    if c.head != kind.head:
        raise ConfigError(
            f"--task={args.task} needs a model with head={kind.head!r}, "
            f"and this {c.family} has {c.head!r}"
        )
    if c.encoder_layers:
        raise ConfigError(
            f"--task={args.task}: the head of {args.model} is on the decoder of this {c.family} "
            f"model; {ON_ENCODER}"
        )
    task, shape, names = reading(args, c)
    records = task.read(args.data, names)
    rows = list(task.encode(records, tokenizer, shape, names))
    score = {
        Text: predictions.of_classes if names else predictions.of_values,
        Words: predictions.of_tags,
        Question: predictions.of_answers,
        Group: predictions.of_vectors,
    }[type(records[0])]
    numbers, said, found = score(
        records, rows, outputs(model, params, rows, shape, args.batch_size, tokenizer), names
    )
    cut = sum(row.cut > 0 for row in rows)
    numbers = {
        "model": args.model,
        "data": args.data,
        "task": args.task,
        "length": shape.length,
        "records": len(records),
        "cut": cut,
        **numbers,
    }
    if args.predictions:
        path = pathlib.Path(args.predictions)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found),
            encoding="utf-8",
        )
    return numbers, said + (f"\n{cut} texts were cut to {shape.length} tokens" if cut else "")


def label(args, bar) -> tuple[list[dict], int]:
    """Label the texts of `args.data`: return (records for lm.label, number of truncated texts).

    `bar(total)` shows the progress. Raises ValueError, ConfigError or DataError for a model that
    classifies neither texts nor tokens, and for a file without texts.
    """
    model, params, tokenizer = load(args.model, args.dtype)
    c = model.config
    named = {"sequence_classification": "classification", "token_classification": c.head}
    if c.head in named and c.encoder_layers:
        raise ConfigError(
            f"the labels of {args.model} are read from the decoder of this {c.family} model; "
            f"{ON_ENCODER}"
        )
    if c.head not in named:
        raise ConfigError(
            f"{args.model} is a {c.family} model with head={c.head!r}: "
            "one with sequence_classification labels texts, one with token_classification words"
        )
    args = argparse.Namespace(**vars(args) | {"task": named[c.head]})
    task, shape, names = reading(args, c)
    words, pair = args.task == "token_classification", getattr(task, "pair_field", "")
    if words and args.pair_field:
        raise ConfigError(
            f"--pair-field={args.pair_field!r}: {args.model} tags the words of one text; leave it "
            "out"
        )
    texts = labelled.unlabelled(args.data, task.field, pair, words)
    records, ids = zip(*texts, strict=True)
    rows = list(task.encode(records, tokenizer, shape, names))
    with bar(len(rows)) as done:
        given = outputs(model, params, rows, shape, args.batch_size, tokenizer, done)
    found: list[dict] = [{} if number is None else {"id": number} for number in ids]
    if words:
        tagged = _tagged(records, rows, given, names)
        return [a | b for a, b in zip(found, tagged, strict=True)], sum(r.cut > 0 for r in rows)
    for row, record, logits in zip(found, records, given, strict=True):
        row |= {"text": record.text} | ({"pair": record.pair} if pair else {})
        best, chance = _best(logits)
        row |= (
            {"label": names[best], "probability": chance} if names else {"value": float(logits[0])}
        )
    return found, sum(row.cut > 0 for row in rows)


def _best(logits: np.ndarray) -> tuple[int, float]:
    best = int(logits.argmax())
    return best, float(np.exp(logits[best] - np.logaddexp.reduce(logits)))


def _tagged(records, rows, given, names) -> list[dict]:
    """Return words, tags and probabilities per record; None for a word without any token."""
    found: list[dict] = []
    for record in records:
        nothing = [None] * len(record.words)
        found.append({"words": [*record.words], "tags": nothing, "probabilities": [*nothing]})
    for row, logits in zip(rows, given, strict=True):
        of = found[row.document]
        for word, at in zip(row.words, np.flatnonzero(row.weights), strict=True):
            best, of["probabilities"][word] = _best(logits[at])
            of["tags"][word] = names[best]
    return found


def reading(args, c) -> tuple[Any, Shape, tuple[str, ...]]:
    """Return the task, the layout of rows, and the label names.

    The names are () for regression. What `args` leaves open is as in the run's training. Raises
    ValueError for a length that the model cannot read.
    """
    found = run_config(args.model)
    trained = found if found.get("task", {}).get("name") == args.task else {}
    kind: Any = tasks.class_of(args.task)
    options = ("field", "pair_field", "label_field", "stride")
    given = {name: getattr(args, name) for name in options if getattr(args, name, None)}
    fields = vars(kind()) | trained.get("task", {}) | given
    if "regression" in fields:
        fields["regression"] = c.n_labels == 1
    task = tasks.made(kind, {name: fields[name] for name in vars(kind())})
    length = (
        args.length
        or trained.get("length", 0) // task.texts
        or min(c.max_length, task.usual_length)
    )
    if not 1 <= length <= c.max_length:
        raise ValueError(
            f"--length={length}: expected 1 to {c.max_length}, the longest this model can read"
        )
    task = task.evaluated(length)
    # The texts of a group are encoded one by one.
    return task, dataclasses.replace(task.shape(length, c), texts=1), task.names(c)


def outputs(
    model,
    params: dict,
    rows: Sequence[Encoded],
    shape: Shape,
    batch_size: int = 8,
    tokenizer=None,
    on_batch=None,
) -> list[np.ndarray]:
    """Compute the logits of every row: float32 [N] for a text, [n, N] for n tokens, or its vector.

    Raises ConfigError, before computing, for ids that the model has no embedding for; `tokenizer`
    names them. `on_batch(number)` is called as rows are done.
    """
    inputs.check_ids(model.config, [row.ids for row in rows], tokenizer, "text")
    found: list[np.ndarray] = []
    for start in range(0, len(rows), batch_size):
        members = rows[start : start + batch_size]
        tokens, segments, types = np.zeros((3, batch_size, shape.length), np.int32)
        for i, row in enumerate(members):
            n = len(row.ids)
            tokens[i, :n], segments[i, :n], types[i, :n] = row.ids, 1, row.types
        batch = Batch.of(tokens, segments, types=types if shape.types else None)
        inputs.check(model.config, batch)
        logits = np.asarray(_logits(model, params, batch))
        found += [
            x if x.ndim == 1 else x[: len(row.ids)] for x, row in zip(logits, members, strict=False)
        ]
        if on_batch is not None:
            on_batch(len(members))
    return found


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, batch):
    out = model.apply({"params": params}, batch)
    return (out.pooled if model.config.head == "embedding" else out.logits).astype(jnp.float32)
