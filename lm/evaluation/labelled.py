"""Evaluation of label heads: on packed rows during training, and on labelled files.

For files it also gives a prediction for every record.
"""

import functools
import json
import pathlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

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
from lm.evaluation import labels, scores
from lm.evaluation.accuracy import wilson
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
        CLASSIFICATION: _values if fields.regression else _classes,
        TOKENS: _tags,
        QUESTIONS: _answers,
        CONTRASTIVE: _found,
    }[args.task]
    numbers, said, predictions = score(
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
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in predictions),
            encoding="utf-8",
        )
    return numbers, said + (f"\n{cut} texts were cut to {shape.length} tokens" if cut else "")


def label(args, bar) -> tuple[list[dict], int]:
    """Label the texts of `args.data`: return (records for lm.label, number of truncated texts).

    `bar(total)` shows the progress. Raises ValueError, ConfigError or DataError for a model that
    does not classify texts, and for a file without texts.
    """
    model, params, tokenizer = load(args.model, args.dtype)
    c = model.config
    if c.head != HEADS[CLASSIFICATION] or c.encoder_layers:
        raise ConfigError(
            f"{args.model} is a {c.family} model with head={c.head!r}: "
            "one with sequence_classification labels texts"
        )
    fields, shape, names = reading(args, c)
    records, ids = zip(*labelled.unlabelled(args.data, fields.text, fields.pair), strict=True)
    rows = list(label_rows.encode(records, tokenizer, CLASSIFICATION, shape, names))
    with bar(len(rows)) as done:
        given = outputs(model, params, rows, shape, args.batch_size, tokenizer, done)
    found = []
    for record, number, logits in zip(records, ids, given, strict=True):
        row = {} if number is None else {"id": number}
        row |= {"text": record.text} | ({"pair": record.pair} if fields.pair else {})
        best = int(logits.argmax())
        chance = float(np.exp(logits[best] - np.logaddexp.reduce(logits)))
        found.append(
            row
            | (
                {"label": names[best], "probability": chance}
                if names
                else {"value": float(logits[0])}
            )
        )
    return found, sum(row.cut > 0 for row in rows)


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


def _classes(records, rows, given, names) -> tuple[dict, str, list[dict]]:
    chosen = [int(x.argmax()) for x in given]
    wanted = [labelled.number(record.label, names) for record in records]
    found = labels.classified(chosen, wanted)
    predictions = [
        {
            "text": record.text,
            "label": names[want],
            "predicted": names[got],
            "probability": float(np.exp(x - np.logaddexp.reduce(x))[got]),
        }
        for record, want, got, x in zip(records, wanted, chosen, given, strict=True)
    ]
    return _numbers(found, names), _said(found, "texts"), predictions


def _values(records, rows, given, names) -> tuple[dict, str, list[dict]]:
    values, wanted = [float(x[0]) for x in given], [float(record.label) for record in records]
    pearson, spearman = labels.correlated(values, wanted)
    error = float(np.mean(np.square(np.subtract(values, wanted))))
    numbers = {
        "mean_squared_error": error,
        "pearson": _finite(pearson),
        "spearman": _finite(spearman),
    }
    said = (
        f"mean squared error {error:.4f}, Pearson {pearson:.3f}, Spearman {spearman:.3f} over "
        f"{len(values):,} texts"
    )
    return (
        numbers,
        said,
        [
            {"text": r.text, "label": w, "predicted": v}
            for r, w, v in zip(records, wanted, values, strict=True)
        ],
    )


def _tags(records, rows, given, names) -> tuple[dict, str, list[dict]]:
    said_of: list[list[int]] = [[] for _ in records]
    wanted_of: list[list[int]] = [[] for _ in records]
    for row, logits in zip(rows, given, strict=True):
        at = np.flatnonzero(row.weights)
        said_of[row.document] += logits[at].argmax(-1).tolist()
        wanted_of[row.document] += [row.targets[i] for i in at]
    outside = [names.index("O")] if "O" in names else []
    found = labels.classified(np.concatenate(said_of), np.concatenate(wanted_of), without=outside)
    numbers, said = _numbers(found, names), _said(found, "words")
    spelled = [[[names[i] for i in tags] for tags in side] for side in (wanted_of, said_of)]
    if is_bio(names):
        numbers["entities"] = f1 = entity_f1(*spelled)
        said += (
            f"\nentities: F1 {f1['f1']:.4f}, precision {f1['precision']:.4f}, "
            f"recall {f1['recall']:.4f}"
        )
    return (
        numbers,
        said,
        [
            {"words": list(record.words), "tags": want, "predicted": got}
            for record, want, got in zip(records, *spelled, strict=True)
        ],
    )


def is_bio(names: Sequence[str]) -> bool:
    """Tell whether the tags are O and B-TYPE, I-TYPE of entities."""
    return "O" in names and all(name == "O" or name[:2] in ("B-", "I-") for name in names)


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Extract (type, first, last + 1) of every entity of BIO tags, as conlleval does.

    An I- tag after another type, or after none, also begins an entity.
    """
    found, start, before = set(), 0, ""
    for i, tag in enumerate([*tags, "O"]):
        kind = tag[2:] if tag != "O" else ""
        if before and (kind != before or tag[:2] == "B-"):
            found.add((before, start, i))
        if kind and (kind != before or tag[:2] == "B-"):
            start = i
        before = kind
    return found


def entity_f1(wanted: Sequence[Sequence[str]], given: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute precision, recall and F1 of whole entities over all texts.

    See Tjong Kim Sang and De Meulder 2003, section 2.4.
    """
    pairs = [(entities(a), entities(b)) for a, b in zip(wanted, given, strict=True)]
    right, there, said = (
        sum(len(x) for x in part) for part in zip(*((a & b, a, b) for a, b in pairs), strict=True)
    )
    return {
        "precision": right / said if said else 0.0,
        "recall": right / there if there else 0.0,
        "f1": 2 * right / (there + said) if there + said else 0.0,
    }


def _answers(records, rows, given, names) -> tuple[dict, str, list[dict]]:
    best: dict[int, tuple[float, str]] = {}
    for row, logits in zip(rows, given, strict=True):
        inside = np.zeros(len(row.ids), np.int32)
        inside[row.offset : row.offset + len(row.spans)] = 1
        first, last = labels.best_span(logits[:, 0], logits[:, 1], inside)
        score = float(logits[first, 0] + logits[last, 1])
        text = records[row.document].context[
            row.spans[first - row.offset][0] : row.spans[last - row.offset][1]
        ]
        best[row.document] = max(
            best.get(row.document, (-np.inf, "")), (score, text), key=lambda pair: pair[0]
        )
    texts = [best[i][1] for i in range(len(records))]
    references = [[text for _, text in record.answers] for record in records]
    found = labels.answered(texts, references)
    hits = round(found["exact_match"] * len(texts) / 100)
    low, high = wilson(hits, len(texts))
    numbers = {**found, "exact_match_interval": [100 * low, 100 * high]}
    said = (
        f"exact match {found['exact_match']:.2f} [{100 * low:.1f}, {100 * high:.1f}], "
        f"F1 {found['f1']:.2f} over {len(texts):,} questions"
    )
    if not all(text.isascii() for each in references for text in each):
        said += (
            f"\nby the words of any script: exact match {found['unicode_exact_match']:.2f}, "
            f"F1 {found['unicode_f1']:.2f}"
        )
    each = scores.score(
        texts, references, {"exact_match": scores.squad_exact_match, "f1": scores.f1}
    )
    return (
        numbers,
        said,
        [
            {"id": r.id, "question": r.question, "predicted": texts[i], "answers": references[i]}
            | {name: float(values[i]) for name, values in each.items()}
            for i, r in enumerate(records)
        ],
    )


def _found(records, rows, given, names) -> tuple[dict, str, list[dict]]:
    """Rank each text's positive among all positives and negatives, without other right answers."""
    texts = [text for record in records for text in record.texts]
    unit = np.stack(given) / np.maximum(np.linalg.norm(given, axis=-1, keepdims=True), 1e-12)
    vectors = dict(zip(texts, unit, strict=True))
    others = list(dict.fromkeys(text for record in records for text in record.texts[1:]))
    right = defaultdict(set)
    for record in records:
        right[record.texts[0]] |= {record.texts[0], record.texts[1]}
    matrix, predictions = np.stack([vectors[text] for text in others]), []
    for record in records:
        text, positive = record.texts[:2]
        scores_ = matrix @ vectors[text]
        own = float(scores_[others.index(positive)])
        above = [i for i in np.flatnonzero(scores_ > own) if others[i] not in right[text]]
        best = max(above, key=lambda i: scores_[i], default=others.index(positive))
        predictions.append(
            {"text": text, "positive": positive, "rank": 1 + len(above), "first": others[best]}
        )
    ranks = np.array([row["rank"] for row in predictions])
    low, high = wilson(int((ranks == 1).sum()), len(ranks))
    numbers = {
        "accuracy": float((ranks == 1).mean()),
        "accuracy_interval": [low, high],
        "mrr": float((1 / ranks).mean()),
        "texts": len(others),
    }
    said = (
        f"accuracy {numbers['accuracy']:.4f} [{low:.4f}, {high:.4f}], "
        f"mean reciprocal rank {numbers['mrr']:.4f}"
    )
    return numbers, f"{said} over {len(ranks):,} texts, each among {len(others):,}", predictions


def _numbers(found: labels.Classified, names: Sequence[str]) -> dict[str, Any]:
    return {
        "accuracy": found.accuracy,
        "accuracy_interval": list(found.interval),
        "macro_f1": found.macro_f1,
        "micro_f1": found.micro_f1,
        "f1": {names[label]: value for label, value in found.per_class.items()},
    }


def _said(found: labels.Classified, what: str) -> str:
    low, high = found.interval
    return (
        f"accuracy {found.accuracy:.4f} [{low:.4f}, {high:.4f}], macro F1 {found.macro_f1:.4f} "
        f"over {found.answers:,} {what}"
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
