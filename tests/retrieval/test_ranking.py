"""Fusion and diversity against their formulas; filters against filtering all scores afterwards."""

import itertools
import math

import numpy as np
import pytest

from retrieval import EVERY_GROUP, Filter, Memory, Passage, RetrievalError
from retrieval.index.vectors import unit_rows
from retrieval.search import ranking
from tests.retrieval.toy import encode

MODES = ("dense", "lexical", "hybrid")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Return 300 passages over six words, with tags, times and no access group; read only."""
    rng = np.random.default_rng(0)
    memory = Memory.create(tmp_path_factory.mktemp("many") / "m", encode)
    texts = [
        " ".join(rng.choice(["red", "green", "blue", "ship", "town", "sea"], 5)) + f" n{i}"
        for i in range(300)
    ]
    tags = [tuple(sorted({f"t{i % 3}", f"u{i % 7}"})) for i in range(300)]
    times = [
        "" if i % 10 == 0 else f"20{i % 20:02}-0{1 + i % 9}-11T0{i % 10}:00" for i in range(300)
    ]
    memory.add([Passage(f"p{i}", texts[i], tags=tags[i], time=times[i]) for i in range(300)])
    return memory


def passages(memory):
    return {id: passage for id, (passage, _) in memory._store.get(memory._store.ids()).items()}


def test_fusion_is_the_sum_of_reciprocal_ranks():
    rankings = [["a", "b", "c", "d"], ["c", "a", "e"]]
    ids, scores = ranking.fuse(rankings)
    expected = {"a": 1 / 61 + 1 / 62, "b": 1 / 62, "c": 1 / 63 + 1 / 61, "d": 1 / 64, "e": 1 / 63}
    assert ids == sorted(expected, key=lambda id: -expected[id])
    assert scores == pytest.approx([expected[id] for id in ids])
    assert ranking.fuse([["x", "y"], ["y", "x"]])[0] == ["x", "y"], (
        "of equals, the first ranking's first"
    )


def marginal_relevance(i, chosen, relevance, vectors, diversity):
    """Carbonell & Goldstein 1998: l Sim1(D, Q) - (1 - l) max Sim2(D, Dj), l = 1 - diversity."""
    return (1 - diversity) * relevance[i] - diversity * max(
        (float(vectors[i] @ vectors[j]) for j in chosen), default=0.0
    )


@pytest.mark.parametrize("diversity", [0.0, 0.3, 0.7, 1.0])
def test_diversity_takes_what_the_formula_says_step_by_step(rng, diversity):
    vectors = unit_rows(rng.normal(size=(12, 4)), 4)
    relevance = rng.random(12).astype(np.float32)
    relevance[0] = 1
    chosen: list[int] = []
    while len(chosen) < 6:
        value = [
            -np.inf if i in chosen else marginal_relevance(i, chosen, relevance, vectors, diversity)
            for i in range(12)
        ]
        chosen.append(int(np.argmax(value)))
    assert ranking.diversify(relevance, vectors, 6, diversity) == chosen
    assert sorted(ranking.diversify(relevance, vectors, 99, diversity)) == list(range(12))
    assert ranking.diversify(relevance[:0], vectors[:0], 3, diversity) == []


def test_diversity_keeps_copies_out(memory):
    memory.add([Passage(f"copy{i}", "town1 lies in land1", title="town1") for i in range(20)])
    assert len({hit.text for hit in memory.search("town1 lies", 4)[0]}) == 1
    for mode in MODES:
        assert (
            len({hit.text for hit in memory.search("town1 lies", 4, mode=mode, diversity=0.6)[0]})
            > 1
        ), mode


FILTERS = [
    Filter(any_tags=("t0",)),
    Filter(any_tags=("t0", "u3"), all_tags=("u3", "t1")),
    Filter(all_tags=("u5",), after="2005", before="2012-06"),
    Filter(after="2015-03-11T09:00+00:00"),
    Filter(before="2001"),
    Filter(any_tags="nowhere"),
]


def passes(passage, where):
    """An independent filter: compares time strings, whose order is that of the times here."""
    in_time = (
        bool(passage.time)
        and (where.after or "0") <= passage.time
        and passage.time < (where.before or "9")
    )
    return (
        set(where.all_tags) <= set(passage.tags)
        and (not where.any_tags or bool(set(where.any_tags) & set(passage.tags)))
        and (in_time or not (where.after or where.before))
    )


@pytest.mark.parametrize(
    "few, widest",
    [(2_000, 16_384), (0, 16_384), (0, 0)],
    ids=["one by one", "widening", "all after all"],
)
def test_filtered_results_are_those_of_filtering_everything_and_k_still_come(
    many, monkeypatch, few, widest
):
    monkeypatch.setattr(ranking, "FEW", few)
    monkeypatch.setattr(ranking, "WIDEST", widest)
    everything = passages(many)
    for where, mode in itertools.product(FILTERS, ("dense", "lexical")):
        queries = ["red ship n7", "blue sea", "green"]
        for whole, some in zip(
            many.search(queries, 300, mode=mode),
            many.search(queries, 7, mode=mode, where=where),
            strict=True,
        ):
            expected = [hit for hit in whole if passes(everything[hit.id], where)][:7]
            assert len(some) == len(expected)
            assert [hit.score for hit in some] == pytest.approx(
                [hit.score for hit in expected], abs=2e-3
            )
            assert all(passes(everything[hit.id], where) for hit in some)
    for where in FILTERS:
        matching = sum(passes(passage, where) for passage in everything.values())
        assert len(many.search("red", 40, mode="hybrid", where=where)[0]) == min(40, matching)


def test_hybrid_is_the_fusion_of_the_two_rankings(many):
    query = "red ship n7"
    lists = [
        [hit.id for hit in many.search(query, ranking.DEPTH, mode=mode)[0]]
        for mode in ("dense", "lexical")
    ]
    ids, scores = ranking.fuse(lists)
    hits = many.search(query, 10, mode="hybrid")[0]
    assert [hit.score for hit in hits] == pytest.approx(list(scores[:10])) and [
        hit.id for hit in hits
    ] == ids[:10]


def test_a_reranker_orders_the_candidates_and_gives_the_scores(many):
    asked = []

    def by_number(query, texts):
        asked.append((query, len(texts)))
        return [float(text.split(" n")[1]) for text in texts]

    hits = many.search(["red", "blue"], 3, rerank=by_number)
    assert asked == [("red", 100), ("blue", 100)]
    for found in hits:
        assert [hit.score for hit in found] == sorted(
            (float(hit.id[1:]) for hit in found), reverse=True
        )
    with pytest.raises(RetrievalError, match="a finite one for each"):
        many.search("red", rerank=lambda query, texts: [math.nan] * len(texts))
    diverse = many.search("red", 3, rerank=by_number, diversity=0.5)[0]
    assert diverse[0].id == many.search("red", 1, rerank=by_number)[0][0].id


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(mode="magic"), "dense, lexical, hybrid"),
        (dict(diversity=1.5), "from 0, relevance alone, to 1"),
        (dict(diversity=math.nan), "diversity=nan"),
        (dict(where="town"), "retrieval.Filter"),
        (dict(groups=[""]), "names of access groups"),
        (dict(groups=[3]), "names of access groups"),
        (dict(k=0), "k=0"),
    ],
)
def test_what_cannot_be_asked_is_said_in_words(many, options, message):
    with pytest.raises(RetrievalError, match=message):
        many.search("red", **options)
    with pytest.raises(RetrievalError, match="ISO 8601"):
        Filter(after="soon")
    with pytest.raises(RetrievalError, match="not valid Unicode"):
        many.search("\ud800", mode="lexical")


def test_an_empty_memory_and_no_queries_give_nothing_in_every_mode(tmp_path):
    memory = Memory.create(tmp_path / "m", encode)
    for mode in MODES:
        assert (
            memory.search(["x", "y"], mode=mode, diversity=0.5) == [[], []]
            and memory.search([], mode=mode) == []
        )


def test_searching_by_words_needs_no_encoder(many):
    def broken(texts):
        raise AssertionError("the encoder was called")

    with_none = Memory(many._store, broken)
    assert with_none.search("red n7", 1, mode="lexical", groups=EVERY_GROUP)[0][0].id == "p7"
