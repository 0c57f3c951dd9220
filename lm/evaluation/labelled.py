"""Evaluation of label heads: on packed rows during training, and on labelled files.

For files it also gives a prediction for every record.
"""

import argparse
import functools
import json
import pathlib
from collections import defaultdict
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lm.batch import Batch
from lm.data import batches, label_rows, labelled
from lm.data.label_rows import Encoded, Shape
from lm.data.labelled import (
    CLASSIFICATION,
    CONTRASTIVE,
    HEADS,
    QUESTIONS,
    TASKS,
    TOKENS,
    Fields,
    class_names,
)
from lm.data.packing import Packed
from lm.distributed import sharding
from lm.distributed.sharding import ACTIVATIONS, Rules
from lm.evaluation import predictions
from lm.loading import load, run_config
from lm.models import inputs
from lm.models.config import ConfigError, nearest
from lm.phases import phase


def make_evaluator(model, mesh, batch_size: int, loss, *, activations: Rules = ACTIVATIONS):
    """Build a function (params, packed, max_rows=0) -> {"loss", and the loss's metrics}.

    They are means over the rows, or tokens, with labels. loss: an objective's. Rows are read in
    order; max_rows 0 = all.
    """
    run = jax.jit(
        lambda params, batch: loss(model, params, batch), out_shardings=sharding.replicated(mesh)
    )

    def evaluate(params, packed: Packed, max_rows: int = 0) -> dict[str, float]:
        rows = sharding.batch_sharding(mesh, (batch_size, packed.length), activations)
        total: dict[str, float] = defaultdict(float)
        weight = 0.0
        with sharding.activate(mesh, activations):
            for _, batch in batches.in_order(
                packed, batch_size, rows, max_rows or None, config=model.config
            ):
                found = jax.device_get(run(params, batch))
                weight += float(found.weight)
                for name, value in {"loss": found.sum, **found.metrics}.items():
                    total[name] += float(value)
        return {name: value / weight for name, value in total.items()}

    return evaluate


@phase("evaluating")
def of_labels(args) -> tuple[dict, str]:
    """Evaluate a model on the labelled files of `args.data`: return (numbers, report).

    Raises ValueError or OSError.
    """
    if args.task not in TASKS:
        raise ValueError(
            f"--task={args.task!r} is unknown{nearest(args.task, TASKS)}; one of {', '.join(TASKS)}"
        )
    model, params, tokenizer = load(args.model, args.dtype)
    c = model.config
    if c.head != HEADS[args.task]:
        raise ConfigError(
            f"--task={args.task} needs a model with head={HEADS[args.task]!r}, "
            f"and this {c.family} has {c.head!r}"
        )
    if c.encoder_layers:
        raise ConfigError(
            f"--task={args.task} is for models without an encoder beside a decoder, "
            f"and this {c.family} model has one"
        )
    fields, shape, names = reading(args, c)
    records = labelled.read(args.data, fields, names=names)
    rows = list(label_rows.encode(records, tokenizer, args.task, shape, names))
    score = {
        CLASSIFICATION: predictions.of_values if fields.regression else predictions.of_classes,
        TOKENS: predictions.of_tags,
        QUESTIONS: predictions.of_answers,
        CONTRASTIVE: predictions.of_vectors,
    }[args.task]
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
    task = {HEADS[name]: name for name in (CLASSIFICATION, TOKENS)}.get(c.head)
    if task is None or c.encoder_layers:
        raise ConfigError(
            f"{args.model} is a {c.family} model with head={c.head!r}: "
            "one with sequence_classification labels texts, one with token_classification words"
        )
    args = argparse.Namespace(**vars(args) | {"task": task})
    fields, shape, names = reading(args, c)
    if task == TOKENS and fields.pair:
        raise ConfigError(
            f"--pair-field={fields.pair!r}: {args.model} tags the words of one text; leave it out"
        )
    texts = labelled.unlabelled(args.data, fields.text, fields.pair, task == TOKENS)
    records, ids = zip(*texts, strict=True)
    rows = list(label_rows.encode(records, tokenizer, task, shape, names))
    with bar(len(rows)) as done:
        given = outputs(model, params, rows, shape, args.batch_size, tokenizer, done)
    found: list[dict] = [{} if number is None else {"id": number} for number in ids]
    if task == TOKENS:
        tagged = _tagged(records, rows, given, names)
        return [a | b for a, b in zip(found, tagged, strict=True)], sum(r.cut > 0 for r in rows)
    for row, record, logits in zip(found, records, given, strict=True):
        row |= {"text": record.text} | ({"pair": record.pair} if fields.pair else {})
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


def reading(args, c) -> tuple[Fields, Shape, tuple[str, ...]]:
    """Return the record fields to read, the layout of rows, and the label names.

    The names are () for regression. What `args` leaves open is as in the run's training. Raises
    ValueError for a length that the model cannot read.
    """
    trained = _trained(args.model, args.task)
    data = trained.get("data", {})
    value = args.task == CLASSIFICATION and c.n_labels == 1
    text, pair, label = (
        given or data.get(name, "")
        for given, name in (
            (args.field, "field"),
            (args.pair_field, "pair_field"),
            (args.label_field, "label_field"),
        )
    )
    negatives = trained.get("objective", {}).get(CONTRASTIVE, {}).get("negatives", 0)
    fields = Fields(
        args.task, text or "text", pair, label, value, data.get("negatives_field", ""), negatives
    )
    texts = 2 + negatives if args.task == CONTRASTIVE else 1  # texts that share a row in training
    length = (
        args.length
        or trained.get("length", 0) // texts
        or min(c.max_length, 384 if args.task == QUESTIONS else 512)
    )
    if not 1 <= length <= c.max_length:
        raise ValueError(
            f"--length={length}: expected 1 to {c.max_length}, the longest this model can read"
        )
    stride = args.stride or data.get("stride", 0) or (length // 3 if args.task == QUESTIONS else 0)
    pairs = bool(pair) or args.task == QUESTIONS
    shape = Shape(length, pairs and c.type_vocab_size > 1, bool(pair), stride, framed=not c.causal)
    shape = Shape(length, framed=False) if args.task == CONTRASTIVE else shape
    return fields, shape, () if value else class_names(c)


def _trained(path: str, task: str) -> dict:
    """Config of a run that was trained for the same task, or {}."""
    found = run_config(path)
    return found if found.get("objective", {}).get("name") == task else {}


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
