"""Ranking: from queries to the best passages, by vectors, by words or by both.

    allowed passages -> candidates, dense | lexical -> fusion
        -> reranking -> maximal marginal relevance -> k hits

Everything up to fusion sees one version of a memory: its index, table and filter columns.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence

import numpy as np

from retrieval.errors import RetrievalError
from retrieval.filters import Allowed, Filter, checked_groups, readable
from retrieval.index.index import Index
from retrieval.index.vectors import check_k, unit_rows
from retrieval.passages import (
    MAX_TEXT_CHARACTERS,
    Hit,
    Passage,
    check_unicode,
    items,
    listed,
    titled,
)
from retrieval.store.store import Store

RRF_K = 60  # Cormack, Clarke & Buettcher 2009, section 2
DEPTH = 100  # candidates to fuse, rerank or diversify, or 4 k where that is more
FEW = 2_000  # allowed passages; up to this many are compared exhaustively
WIDEST = 16_384  # most passages retrieved to find allowed ones, before an exhaustive comparison

Found = tuple[list[str], np.ndarray]  # ids, best first, and their scores, float32
Rerank = Callable[[str, list[str]], Sequence[float]]  # query, N texts -> N scores, higher is better


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of `Memory.search`. Raises RetrievalError for invalid ones."""

    texts: Sequence[str]
    k: int
    mode: str = "dense"
    where: Filter | None = None
    groups: Collection[str] = ()
    diversity: float = 0.0
    rerank: Rerank | None = None

    def __post_init__(self):
        texts = (
            [self.texts]
            if isinstance(self.texts, str)
            else items(self.texts, "a list of texts to search for")
        )
        object.__setattr__(self, "texts", texts)
        object.__setattr__(self, "k", check_k(self.k))
        object.__setattr__(self, "groups", checked_groups(self.groups))
        for number, text in enumerate(self.texts):
            if not isinstance(text, str) or not text.strip():
                raise RetrievalError(f"query {number} is {text!r}: expected a text to search for")
            check_unicode(f"query {number}", text)
            if len(text) > MAX_TEXT_CHARACTERS:
                raise RetrievalError(
                    f"query {number} has {len(text):,} characters: at most "
                    f"{MAX_TEXT_CHARACTERS:,} are searched for"
                )
        if self.rerank is not None and not callable(self.rerank):
            raise RetrievalError(
                f"rerank={self.rerank!r}: expected a function of a text and its candidates"
            )
        if not isinstance(self.mode, str) or self.mode not in MODES:
            raise RetrievalError(f"mode={self.mode!r}: expected one of {', '.join(MODES)}")
        if self.where is not None and not isinstance(self.where, Filter):
            raise RetrievalError(f"where={self.where!r}: expected a retrieval.Filter")
        if (
            isinstance(self.diversity, bool)
            or not isinstance(self.diversity, int | float)
            or not 0 <= self.diversity <= 1
        ):
            raise RetrievalError(
                f"diversity={self.diversity!r}: expected a number from 0, relevance alone, to 1"
            )

    @property
    def compares(self) -> bool:
        """Whether vectors are compared, so that queries must be encoded."""
        return self.mode != "lexical"

    @property
    def candidates(self) -> int:
        return max(DEPTH, 4 * self.k) if self.diversity or self.rerank is not None else self.k


@dataclasses.dataclass(frozen=True)
class View:
    """One version of a memory, and the queries put to it.

    queries: unit rows [Q, dim]. Queries and index are None in lexical mode.
    """

    store: Store
    index: Index | None
    texts: Sequence[str]
    queries: np.ndarray | None


def find(
    view: View, request: Request, allowed: Allowed | None
) -> list[tuple[list[Hit], np.ndarray | None]]:
    """Return the candidates of each query, best first, and their vectors if diversifying.

    Vectors are unit rows.
    """
    ranked = rank(view, request.mode, request.candidates, allowed)
    wanted = {id for ids, _ in ranked for id in ids}
    passages = view.store.get(wanted)
    if lost := sorted(wanted.difference(passages)):
        raise RetrievalError(
            f"the table of {view.store.path} does not find {listed(lost)}: `verify` says what is "
            "damaged"
        )
    vectors: dict[str, np.ndarray] = {}
    if request.diversity and passages:
        rows, ids = view.store.vectors(passages)
        vectors = dict(zip(ids, unit_rows(rows, view.store.dim), strict=True))
    found = []
    for ids, scores in ranked:
        hits = [_hit(*passages[id], score) for id, score in zip(ids, scores, strict=True)]
        # Access is checked again on what is returned.
        hits = [hit for hit in hits if readable(hit.access, request.groups)]
        found.append(
            (hits, np.stack([vectors[hit.id] for hit in hits]) if vectors and hits else None)
        )
    return found


def choose(text: str, hits: list[Hit], vectors: np.ndarray | None, request: Request) -> list[Hit]:
    """Select the k hits of one query among its candidates, best first.

    After reranking, scores are the reranker's.
    """
    order, relevance = list(range(len(hits))), np.array([hit.score for hit in hits], np.float32)
    if request.rerank is not None and hits:
        relevance = np.asarray(
            request.rerank(text, [titled(hit.title, hit.text) for hit in hits]), np.float32
        )
        if relevance.shape != (len(hits),) or not np.isfinite(relevance).all():
            raise RetrievalError(
                f"the reranker gave {relevance.shape} scores for {len(hits)} passages; expected "
                "a finite one for each"
            )
        order = np.argsort(-relevance, kind="stable").tolist()
    if vectors is not None:
        cosine = request.mode == "dense" and request.rerank is None
        # Scores other than cosines are scaled to be comparable with cosines.
        scale = 1.0 if cosine else max(float(np.abs(relevance).max()), 1e-12)
        order = [
            order[i]
            for i in diversify(
                relevance[order] / scale, vectors[order], request.k, request.diversity
            )
        ]
    return [dataclasses.replace(hits[i], score=float(relevance[i])) for i in order[: request.k]]


def dense(view: View, chosen: list[int], n: int) -> list[Found]:
    """Return the n nearest passages of each chosen query, and their cosines."""
    assert view.index is not None and view.queries is not None
    return list(zip(*view.index.search(view.queries[chosen], n), strict=True))


def dense_among(view: View, chosen: list[int], n: int, allowed: Allowed) -> list[Found]:
    """Like `dense` among the allowed passages, all of which are compared."""
    assert view.queries is not None
    vectors, ids = view.store.vectors(allowed.ids() if len(allowed) <= FEW else None)
    keep = [row for row, id in enumerate(ids) if id in allowed]
    scores_QN = view.queries[chosen] @ unit_rows(vectors[keep], view.store.dim).T
    best = np.argsort(-scores_QN, axis=1, kind="stable")[:, :n]
    return [
        ([ids[keep[row]] for row in rows], scores[rows])
        for rows, scores in zip(best, scores_QN, strict=True)
    ]


def lexical(view: View, chosen: list[int], n: int) -> list[Found]:
    """Return the n best passages of each chosen query by BM25.

    A passage must share a word with the query.
    """
    return [view.store.lexical(view.texts[query], n) for query in chosen]


def lexical_among(view: View, chosen: list[int], n: int, allowed: Allowed) -> list[Found]:
    if len(allowed) <= FEW:
        return [view.store.lexical(view.texts[query], n, allowed.ids()) for query in chosen]
    return [_kept(found, allowed, n) for found in lexical(view, chosen, max(1, len(view.store)))]


Ranker = tuple[Callable[..., list[Found]], Callable[..., list[Found]]]
MODES: dict[str, tuple[Ranker, ...]] = {
    "dense": ((dense, dense_among),),
    "lexical": ((lexical, lexical_among),),
    "hybrid": ((dense, dense_among), (lexical, lexical_among)),
}


def rank(view: View, mode: str, n: int, allowed: Allowed | None) -> list[Found]:
    """Return the min(n, allowed) best passages of each query, and their scores.

    In mode lexical a passage must share a word with the query. A score is a cosine (dense), BM25
    (lexical) or the sum of reciprocal ranks (hybrid).
    """
    if len(MODES[mode]) == 1:
        return among(view, MODES[mode][0], n, allowed)
    rankings = [among(view, ranker, max(n, DEPTH), allowed) for ranker in MODES[mode]]
    fused = [fuse([ids for ids, _ in query]) for query in zip(*rankings, strict=True)]
    return [(ids[:n], scores[:n]) for ids, scores in fused]


def among(view: View, ranker: Ranker, n: int, allowed: Allowed | None) -> list[Found]:
    """Return the n best of the allowed passages (None: all) of each query.

    If few are allowed, all of these are compared. Else more than n are retrieved, doubling each
    time, until n of them are allowed.
    """
    search, exactly = ranker
    left = list(range(len(view.texts)))
    if allowed is None:
        return search(view, left, n)
    if not len(allowed):
        return [([], np.zeros(0, np.float32)) for _ in left]
    if len(allowed) <= FEW:
        return exactly(view, left, n, allowed)
    size, found = len(view.store), {}
    wide = 2 * n * size // len(allowed)
    while left and wide < min(WIDEST, size):
        kept = {
            query: _kept(some, allowed, n)
            for query, some in zip(left, search(view, left, wide), strict=True)
        }
        found |= {query: some for query, some in kept.items() if len(some[0]) == n}
        left, wide = [query for query in left if query not in found], 2 * wide
    found |= dict(zip(left, exactly(view, left, n, allowed), strict=True)) if left else {}
    return [found[query] for query in range(len(view.texts))]


def _kept(found: Found, allowed: Allowed, n: int) -> Found:
    keep = [row for row, id in enumerate(found[0]) if id in allowed][:n]
    return [found[0][row] for row in keep], found[1][keep]


def fuse(rankings: Sequence[Sequence[str]]) -> Found:
    """Reciprocal rank fusion: the score of an id is the sum of 1 / (60 + rank), ranks from 1."""
    scores: dict[str, float] = {}
    for ranking in rankings:
        for place, id in enumerate(ranking, start=1):
            scores[id] = scores.get(id, 0.0) + 1 / (RRF_K + place)
    ids = sorted(scores, key=lambda id: -scores[id])  # stable: ties follow the first ranking
    return ids, np.array([scores[id] for id in ids], np.float32)


def diversify(relevance: np.ndarray, vectors: np.ndarray, k: int, diversity: float) -> list[int]:
    """Maximal marginal relevance (Carbonell & Goldstein 1998): select k positions greedily.

    relevance [N]; vectors: unit rows [N, D]. The next position maximises (1 - diversity) *
    relevance - diversity * its largest cosine to those selected. Diversity 0 keeps the order of
    relevance.
    """
    closest = np.zeros(len(relevance), np.float32)
    left, chosen = np.ones(len(relevance), bool), []
    while left.any() and len(chosen) < k:
        value = (1 - diversity) * relevance - diversity * closest
        best = int(np.argmax(np.where(left, value, -np.inf)))
        similarity = vectors @ vectors[best]
        closest = np.maximum(closest, similarity) if chosen else similarity
        left[best] = False
        chosen.append(best)
    return chosen


def _hit(passage: Passage, version: int, score: float) -> Hit:
    fields = {field.name: getattr(passage, field.name) for field in dataclasses.fields(passage)}
    return Hit(**fields, score=float(score), version=version)
