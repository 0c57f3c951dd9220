"""Predictions of label heads and their scores, a function for each kind of label.

Each returns (numbers, report, one prediction a record) from the records, their encoded rows, the
model's outputs and the label names.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.data.records import labels as labelled
from lm.evaluation import labels, scores
from lm.evaluation.accuracy import wilson


def of_classes(records, rows, given, names) -> tuple[dict, str, list[dict]]:
    """Score the class of each text."""
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
    return numbers_of(found, names), worded(found, names, "texts"), predictions


def of_values(records, rows, given, names) -> tuple[dict, str, list[dict]]:
    """Score the value of each text."""
    values, wanted = [float(x[0]) for x in given], [float(record.label) for record in records]
    numbers = numbers_of_values(values, wanted)
    return (
        numbers,
        worded_values(numbers, len(values)),
        [
            {"text": r.text, "label": w, "predicted": v}
            for r, w, v in zip(records, wanted, values, strict=True)
        ],
    )


def numbers_of_values(given, wanted) -> dict[str, float | None]:
    """Scores of values; a correlation of a constant is None."""
    pearson, spearman = labels.correlated(given, wanted)
    return {
        "mean_squared_error": float(np.mean(np.square(np.subtract(given, wanted)))),
        "pearson": _finite(pearson),
        "spearman": _finite(spearman),
    }


def worded_values(numbers: Mapping[str, float | None], texts: int) -> str:
    """Scores of values in words."""
    pearson, spearman = (
        "undefined" if numbers[name] is None else f"{numbers[name]:.3f}"
        for name in ("pearson", "spearman")
    )
    error = numbers["mean_squared_error"]
    return (
        f"mean squared error {error:.4f}, Pearson {pearson}, Spearman {spearman} over "
        f"{texts:,} texts"
    )


def of_tags(records, rows, given, names) -> tuple[dict, str, list[dict]]:
    """Score the tag of each word, and whole entities for BIO tags."""
    said_of: list[list[int]] = [[] for _ in records]
    wanted_of: list[list[int]] = [[] for _ in records]
    for row, logits in zip(rows, given, strict=True):
        at = np.flatnonzero(row.weights)
        said_of[row.document] += logits[at].argmax(-1).tolist()
        wanted_of[row.document] += [row.targets[i] for i in at]
    outside = [names.index("O")] if "O" in names else []
    found = labels.classified(np.concatenate(said_of), np.concatenate(wanted_of), without=outside)
    numbers, said = numbers_of(found, names), worded(found, names, "words")
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


def of_answers(records, rows, given, names) -> tuple[dict, str, list[dict]]:
    """Score the answer to each question, the best span of all its windows."""
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


def of_vectors(records, rows, given, names) -> tuple[dict, str, list[dict]]:
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


def numbers_of(found: labels.Classified, names: Sequence[str]) -> dict[str, Any]:
    """Scores of classes for JSON."""
    return {
        "accuracy": found.accuracy,
        "accuracy_interval": list(found.interval),
        "macro_f1": found.macro_f1,
        "micro_f1": found.micro_f1,
        "f1": {names[label]: value for label, value in found.per_class.items()},
        "matthews": found.matthews,
    }


def worded(found: labels.Classified, names: Sequence[str], what: str) -> str:
    """Scores of classes in words; with the F1 of the second of two classes."""
    low, high = found.interval
    second = f", F1 of {names[1]} {found.per_class.get(1, 0.0):.4f}" if len(names) == 2 else ""
    return (
        f"accuracy {found.accuracy:.4f} [{low:.4f}, {high:.4f}], macro F1 {found.macro_f1:.4f}"
        f"{second}, Matthews {found.matthews:.4f} over {found.answers:,} {what}"
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
