"""Ranking metrics with trec_eval's formulas, and readers of BEIR's files (Thakur et al. 2021)."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lm.data.read import sources
from retrieval.errors import RetrievalError

Judgements = Mapping[str, float]  # document -> relevance; 0 and below is not relevant


def recall(ranked: Sequence[str], judged: Judgements, k: int) -> float:
    """Return the fraction of the relevant documents among the first k."""
    relevant = {id for id, grade in judged.items() if grade > 0}
    return len(relevant.intersection(ranked[:k])) / len(relevant)


def ndcg(ranked: Sequence[str], judged: Judgements, k: int) -> float:
    """Normalised discounted cumulative gain of the first k.

    The sum of relevance / log2(rank + 1), divided by that of the ideal order.
    """
    gain = lambda grades: math.fsum(
        grade / math.log2(rank + 1) for rank, grade in enumerate(grades[:k], start=1) if grade > 0
    )
    return gain([judged.get(id, 0.0) for id in ranked]) / gain(
        sorted(judged.values(), reverse=True)
    )


def average_precision(ranked: Sequence[str], judged: Judgements) -> float:
    """Mean over relevant documents of the precision at their rank; 0 if not found."""
    ranks = [rank for rank, id in enumerate(ranked, start=1) if judged.get(id, 0.0) > 0]
    return math.fsum(found / rank for found, rank in enumerate(ranks, start=1)) / sum(
        grade > 0 for grade in judged.values()
    )


def reciprocal_rank(ranked: Sequence[str], judged: Judgements) -> float:
    """1 / the rank of the first relevant document; 0 if none is found."""
    return next(
        (1 / rank for rank, id in enumerate(ranked, start=1) if judged.get(id, 0.0) > 0), 0.0
    )


def corpus(folder: Path) -> Path:
    """The file of documents in a BEIR folder. Raises RetrievalError if there is none."""
    names = ("corpus.jsonl", "corpus.jsonl.gz")
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        what = "holds no corpus.jsonl" if folder.is_dir() else "is no folder"
        raise RetrievalError(
            f"--beir={folder} {what}: expected a folder of BEIR's layout, with corpus.jsonl, "
            "queries.jsonl and qrels/test.tsv"
        )
    return found


def read_queries(path: Path) -> dict[str, str]:
    """Read id -> text from JSON lines with _id (or id) and text (or question).

    Raises RetrievalError naming an invalid line.
    """
    if not path.is_file():
        raise RetrievalError(f"{path} is no file: expected JSON lines with _id and text")
    queries = {}
    for where, row in sources.records([str(path)]):
        id, text = row.get("_id", row.get("id")), row.get("text", row.get("question"))
        if id is None or not isinstance(text, str) or not text.strip():
            raise RetrievalError(
                f"{where}: expected an object with _id and text; it has {', '.join(map(repr, row))}"
            )
        queries[str(id)] = text
    return queries


def read_qrels(path: Path) -> dict[str, dict[str, float]]:
    """Read query -> document -> relevance.

    Accepts BEIR's TSV (query-id, corpus-id, score, with a header) and TREC's format (query 0
    document score). Raises RetrievalError naming an invalid line.
    """
    if not path.is_file():
        raise RetrievalError(
            f"{path} is no file: expected lines of query-id, corpus-id and score, divided by tabs"
        )
    judged: dict[str, dict[str, float]] = {}
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for number, cells in enumerate(
            csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), start=1
        ):
            cells = cells[0].split() if len(cells) == 1 else cells
            if not cells or (number == 1 and cells[-1] == "score"):
                continue
            try:
                query, document, grade = (
                    (cells[0], cells[2], cells[3]) if len(cells) == 4 else cells
                )
                judged.setdefault(query, {})[document] = float(grade)
            except ValueError:
                raise RetrievalError(
                    f"{path}, line {number}: expected query-id, corpus-id and score; it has "
                    f"{cells!r}"
                ) from None
    return judged
