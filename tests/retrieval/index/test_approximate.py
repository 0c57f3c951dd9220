"""Misuse of ScaNN 1.4 on every kind of searcher, and recall while the rows change."""

import itertools
import threading
import time
from dataclasses import asdict

import numpy as np
import pytest

from retrieval import RetrievalError, ScannIndex
from retrieval.index import approximate, scann_searcher
from retrieval.index.scann_searcher import Searcher
from retrieval.index.side_buffer import Unproven
from retrieval.index.tuning import FAR, Setting, Tuning, setting_for
from retrieval.index.vectors import unit_rows
from tests.retrieval.index.test_index import broken, brute_force, clustered, names, recall

SIZE = 2_000
EVERY_KIND = pytest.mark.parametrize("kind", ["brute", "quantised", "partitioned"])


def built(kind, size=SIZE, **given):
    """An index that finds everything, so that a wrong answer is a wrong row, not a missed one."""
    return ScannIndex.build(
        clustered(size), names(size), Tuning(kind=kind, **({"recall": 1.0} | given))
    )


def assert_right(index, held, atol=1e-5):
    """Assert that every vector finds itself, by its id and with the exact score.

    No unknown id may be returned.
    """
    index.wait()
    assert len(index) == len(held)
    ids = sorted(held)[:: max(1, len(held) // 100)]
    found, scores = index.search(np.stack([held[id] for id in ids]), 10)
    assert [row[0] for row in found] == ids
    assert np.allclose([row[0] for row in scores], 1, atol=atol)
    assert {id for row in found for id in row} <= held.keys()


@EVERY_KIND
def test_what_ends_plain_scann_or_shifts_its_names_is_refused_and_changes_nothing(kind):
    index, held = built(kind), dict(zip(names(SIZE), clustered(SIZE), strict=True))
    refused = [
        lambda: index.upsert(broken("nan"), names(3, SIZE)),  # SIGSEGV in a tree
        lambda: index.upsert(broken("infinity"), names(3, SIZE)),
        # An exception after the names had grown.
        lambda: index.upsert(clustered(2, dim=63), names(2, SIZE)),
        lambda: index.upsert(clustered(2), ["new", "new"]),  # sizes that differ for ever
        lambda: index.delete(["v0", "unknown"]),  # KeyError, after which every name is wrong
        lambda: index.delete(["v0", "v0"]),
        lambda: index.search(broken("nan"), 3),  # row 0 with a score of NaN
        lambda: ScannIndex.build(broken("nan"), names(3), Tuning(kind=kind)),  # abort
        lambda: ScannIndex.build(
            np.concatenate([clustered(SIZE), broken("nan")]), names(SIZE + 3), Tuning(kind=kind)
        ),
    ]
    for call in refused:
        with pytest.raises(RetrievalError):
            call()
    assert_right(index, held)


@EVERY_KIND
def test_empty_changes_and_no_queries_are_fine(kind):
    index = built(kind)
    index.upsert(np.zeros((0, 64), np.float32), [])  # batch_size=0: SIGFPE
    index.delete([])
    assert index.search(np.zeros((0, 64), np.float32), 3) == ([], [])
    assert_right(index, dict(zip(names(SIZE), clustered(SIZE), strict=True)))


@EVERY_KIND
def test_an_index_keeps_its_own_ids_and_vectors(kind):
    vectors, ids = clustered(SIZE), names(SIZE)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index, kept = ScannIndex.build(vectors, ids, Tuning(kind=kind, recall=1.0)), vectors.copy()
    ids[0], vectors[:] = "changed", 0
    index.delete(["v5"])
    index.upsert(kept[:1], ["new"])
    index.delete(["new"])
    assert ids[5] == "v5"
    assert_right(index, {id: row for id, row in zip(names(SIZE), kept, strict=True) if id != "v5"})


@EVERY_KIND
@pytest.mark.parametrize("k", [1, 150, SIZE - 1, SIZE, 10 * SIZE])
def test_all_that_are_there_come_back_however_few_a_partition_holds(kind, k):
    index = built(kind, **({"leaves_searched": 1, "reorder": 1} if kind != "brute" else {}))
    found, scores = index.search(clustered(3, seed=1), k)
    for ids, row in zip(found, scores, strict=True):
        assert len(set(ids)) == len(ids) == len(row) == min(k, SIZE)
        assert np.isfinite(row).all() and (np.diff(row) <= 1e-6).all()


@EVERY_KIND
def test_an_index_from_which_almost_all_is_deleted_goes_on(kind):
    index, held = built(kind), dict(zip(names(SIZE), clustered(SIZE), strict=True))
    index.delete(names(SIZE - 7))
    held = {id: held[id] for id in names(7, SIZE - 7)}
    assert_right(index, held)
    index.delete(names(7, SIZE - 7))
    index.wait()
    assert index.search(clustered(1), 5)[0] == [[]]
    more = clustered(600, seed=4)
    index.upsert(more, names(600))
    assert_right(index, dict(zip(names(600), more, strict=True)))


@EVERY_KIND
def test_a_query_alone_is_answered_as_among_others(kind):
    index, queries = built(kind), clustered(40, seed=5)
    for left in (SIZE, 100):  # then most partitions hold fewer than k, and there are fewer than 150
        index.delete(names(SIZE - left, left))
        index.wait()
        for k in (1, 10, 150):
            found, scores = index.search(queries, k)
            alone = [index.search(query[None], k) for query in queries]
            assert [len(ids) for (ids,), _ in alone] == [min(k, left)] * 40
            assert k > 10 or [ids for (ids,), _ in alone] == found
            np.testing.assert_allclose([one for _, (one,) in alone], scores, atol=1e-6)


SPILLED = "hashed_dataset_soar.npy"


def test_an_index_with_spilled_rows_is_not_loaded_by_a_scann_that_corrupts_it_at_a_change(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(scann_searcher, "is_core", lambda: True)
    built("partitioned").save(tmp_path)
    assert list(tmp_path.rglob(SPILLED))
    monkeypatch.setattr(scann_searcher, "is_core", lambda: False)
    with pytest.raises(RetrievalError, match=r"built with scann-core.*build the index again"):
        ScannIndex.load(tmp_path)


def test_with_scann_core_rows_are_spilled_and_change_soundly(tmp_path, rng):
    if not scann_searcher.is_core():
        pytest.skip("needs scann-core in place of scann: make test-scann-core")
    index, held = built("partitioned"), dict(zip(names(SIZE), clustered(SIZE), strict=True))
    for turn in range(30):
        gone = rng.permutation(sorted(held))[:40].tolist()
        index.delete(gone[:20])
        rows, ids = clustered(60, seed=100 + turn), [*gone[20:], *names(40, SIZE + 40 * turn)]
        index.upsert(rows, ids)
        held = {id: row for id, row in held.items() if id not in gone[:20]} | dict(
            zip(ids, rows, strict=True)
        )
    assert_right(index, held)
    index.save(tmp_path)
    assert list(tmp_path.rglob(SPILLED))
    assert_right(ScannIndex.load(tmp_path)[0], held)


@EVERY_KIND
def test_a_loaded_index_is_as_the_saved_one(kind, tmp_path):
    index = built(kind, recall=0.99)
    index.delete(["v7"])
    index.save(tmp_path / "i")
    loaded, _ = ScannIndex.load(tmp_path / "i")
    assert loaded.health() == index.health() and index.health()["kind"] == kind
    queries = clustered(20, seed=1)
    assert loaded.search(queries, 10)[0] == index.search(queries, 10)[0]
    loaded.upsert(clustered(1, seed=8), ["v7"])
    held = dict(zip(names(SIZE), clustered(SIZE), strict=True)) | {"v7": clustered(1, seed=8)[0]}
    assert_right(loaded, held)


def test_the_recall_that_was_aimed_at_is_reached_with_no_more_work_than_it_takes():
    vectors, queries = clustered(6_000), clustered(200, seed=1)
    right, work = brute_force(vectors, queries, 10)[0], []
    for target in (0.7, 0.95, 1.0):
        index = ScannIndex.build(vectors, names(6_000), Tuning(kind="partitioned", recall=target))
        health = index.health()
        assert (
            recall(index.search(queries, 10)[0], right) >= target - 0.01
            and health["recall"] >= target == health["target"]
        )
        work.append(health["leaves_searched"])
    assert work[0] < work[1] < work[2] <= health["leaves"]


def test_what_is_given_is_kept():
    health = built("partitioned", leaves=30, leaves_searched=7, reorder=55).health()
    assert (health["leaves"], health["leaves_searched"], health["reorder"]) == (30, 7, 55)
    for wrong in (
        {"kind": "tree"},
        {"leaves": -1},
        {"reorder": 1.5},
        {"recall": 0.0},
        {"recall": 2},
        {"reach": -0.1},
        {"reach": np.nan},
    ):
        with pytest.raises(RetrievalError, match=next(iter(wrong))):
            Tuning(**wrong)


def test_a_query_in_a_crowd_reads_fewer_rows_than_one_between_crowds_and_both_find_their_nearest():
    """The same number of partitions would be too few for one or too many for the other."""
    rng = np.random.default_rng(0)
    apart, mixed = rng.normal(size=(20, 64)), rng.normal(size=(1500, 64))
    crowds = np.repeat(apart, 75, axis=0) + 0.1 * rng.normal(size=(1500, 64))
    vectors = unit_rows(np.concatenate([crowds, mixed]), 64)
    inside, between = (
        np.repeat(apart, 5, axis=0) + 0.05 * rng.normal(size=(100, 64)),
        rng.normal(size=(100, 64)),
    )
    queries = unit_rows(np.concatenate([inside, between]), 64)
    index = ScannIndex.build(vectors, names(3000), Tuning(kind="partitioned", leaves=100))
    width = index._trained.width(10)
    assert width.reach < FAR and index.health()["reach"] == round(width.reach, 4)
    scanned = lambda queries: index._trained._scanned(queries, width.leaves, width.reach)
    assert scanned(queries[:100]) < scanned(queries[100:]) / 2
    found, cosines = index.search(queries, 10)
    assert recall(found, brute_force(vectors, queries, 10)[0]) >= 0.95
    for query, ids, scores in zip(queries, found, cosines, strict=True):
        np.testing.assert_allclose(scores, vectors[[int(id[1:]) for id in ids]] @ query, atol=1e-5)
        np.testing.assert_allclose(index.search(query[None], 10)[1][0], scores, atol=1e-5)


def test_the_farthest_reach_is_every_partition():
    index = built("partitioned", leaves=100)
    assert index._trained._scanned(unit_rows(clustered(20, seed=1), 64), 100, FAR) == SIZE
    assert index._trained._scanned(unit_rows(clustered(20, seed=1), 64), 100, 0.01) < SIZE / 10


def test_an_index_that_was_saved_before_partitions_had_a_reach_is_read_and_finds_the_same(
    tmp_path, monkeypatch
):
    index, queries = built("partitioned", leaves_searched=9), clustered(20, seed=1)
    for module in (approximate, scann_searcher):
        monkeypatch.setattr(
            module,
            "asdict",
            lambda one: {name: value for name, value in asdict(one).items() if name != "reach"},
        )
    index.save(tmp_path / "i")
    loaded, manifest = ScannIndex.load(tmp_path / "i")
    assert "reach" not in manifest["tuning"] | manifest["settings"][0]
    assert loaded.search(queries, 10)[0] == index.search(queries, 10)[0]


def test_more_neighbours_take_more_partitions_and_candidates_and_never_fewer_than_k():
    settings = [Setting(10, 8, 40, 0.97, 0.1), Setting(100, 20, 300, 0.97, 0.2)]
    of = lambda k, given=None: setting_for(
        settings, k, leaves=100, size=5_000, tuning=given or Tuning()
    )
    assert of(1) == of(10) == (8, 40, 0.1) and of(100) == (20, 300, 0.2)
    assert (
        all((np.diff([of(k)[what] for k in (10, 30, 100, 300)]) > 0).all() for what in range(3))
        and of(300).reorder >= 1200
    )
    assert of(5_000).reorder == 5_000 and of(60, Tuning(leaves_searched=3, reorder=50)) == (
        3,
        60,
        FAR,
    )
    assert of(10, Tuning(reach=0.3)) == (8, 40, 0.3) and of(10**8).reach == FAR
    assert setting_for(settings, 10, 100, 5_000, Tuning(), 2.0) == (16, 80, 0.2)


def test_the_more_rows_have_changed_the_more_widely_it_searches_until_the_next_check():
    index = ScannIndex.build(
        clustered(SIZE), names(SIZE), Tuning(kind="partitioned", leaves=100, recall=0.8)
    )
    before = index.health()
    index.upsert(clustered(90, seed=1), names(90, SIZE))
    assert index.health()["changed"] == 90 and index.health()["reorder"] > before["reorder"]
    assert index.health()["leaves_searched"] > before["leaves_searched"]


def drifts(trained, added, step):
    """Train on one distribution, add rows of another in steps, and measure recall at each.

    The lower recall of queries like the newest rows and like the first counts.
    """
    first, later = (
        clustered(trained),
        clustered(added, seed=2) * 0.6
        + 2 * np.random.default_rng(5).normal(size=64).astype(np.float32),
    )
    index, vectors = (
        ScannIndex.build(first, names(trained), Tuning(kind="partitioned")),
        np.concatenate([first, later]),
    )
    for end in range(trained + step, trained + added + 1, step):
        index.upsert(vectors[end - step : end], names(step, end - step))
        near = vectors[end - 100 : end] + 0.05 * clustered(100, seed=end)
        queries = np.concatenate([near, clustered(50, seed=1)])
        right = brute_force(vectors[:end], queries, 10)[0]
        found = index.search(queries, 10)[0]
        yield min(recall(found[:100], right[:100]), recall(found[100:], right[100:]))
    index.wait()
    health = index.health()
    assert health["trained_on"] > trained and health["imbalance"] < 2 and not health["training"]
    yield recall(index.search(queries, 10)[0], right)


@pytest.mark.parametrize("size", [2_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_recall_falls_while_an_index_drifts(size):
    """Nine times as many rows of another distribution in eighteen steps: recall@10 stays 0.95."""
    assert min(drifts(size, 9 * size, size // 2)) >= 0.95


def test_without_a_watch_the_same_drift_costs_recall(monkeypatch):
    monkeypatch.setattr(ScannIndex, "_due", lambda self: "")
    monkeypatch.setattr(scann_searcher.Searcher, "due", lambda self: "")
    with pytest.raises(AssertionError):
        assert min(drifts(2_000, 18_000, 3_000)) >= 0.95


def held_up(monkeypatch):
    """Block trainings until the returned event is set; the other event marks a training's start."""
    begun, go, train = threading.Event(), threading.Event(), scann_searcher.Searcher.on

    def on(*args):
        begun.set()
        assert go.wait(60)
        return train(*args)

    monkeypatch.setattr(scann_searcher.Searcher, "on", on)
    return begun, go


@pytest.mark.parametrize(
    "given",
    [
        {"recall": "x"},
        {"recall": None},
        {"recall": True},
        {"recall": np.float32(0.9)},
        {"reach": "a"},
    ],
)
def test_a_tuning_that_is_no_number_is_refused(given):
    with pytest.raises(RetrievalError, match=f"{next(iter(given))}=.*expected a number"):
        Tuning(**given)


def test_a_tuning_beyond_all_there_is_searches_all():
    index, queries = (
        built("partitioned", leaves_searched=2**40, reorder=2**40),
        clustered(20, seed=1),
    )
    assert index.search(queries, 10)[0] == brute_force(clustered(SIZE), queries, 10)[0]


@EVERY_KIND
def test_vectors_of_one_dimension(kind):
    index = ScannIndex.build(np.repeat([[1.0], [-2.0]], 300, axis=0), names(600), Tuning(kind=kind))
    ids, scores = index.search([[3.0]], 5)
    assert {id in names(300) for id in ids[0]} == {True} and np.allclose(scores[0], 1)


# Another distribution.
OTHER = clustered(700, seed=2) * 0.6 + 2 * np.random.default_rng(5).normal(size=64).astype(
    np.float32
)


def test_rows_of_another_kind_are_found_from_the_first_on():
    """Rows inserted one by one, with checks in between.

    They are too few to be noticed by the checks and would be missed even by their own vectors.
    """
    first = clustered(SIZE)
    index, vectors = (
        ScannIndex.build(first, names(SIZE), Tuning(kind="partitioned", leaves=200)),
        np.concatenate([first, OTHER]),
    )
    missed = 0
    for row in range(SIZE, len(vectors)):
        index.upsert(vectors[row : row + 1], names(1, row))
        index.wait()
        missed += index.search(vectors[row : row + 1], 10)[0][0][0] != f"v{row}"
        if (row - SIZE) % 50 == 20:
            near = vectors[SIZE : row + 1] + 0.05 * clustered(row + 1 - SIZE, seed=row)
            right = brute_force(vectors[: row + 1], near, 10)[0]
            assert recall(index.search(near, 10)[0], right) >= 0.95, row - SIZE
            assert recall([index.search(query[None], 10)[0][0] for query in near], right) >= 0.95, (
                row - SIZE
            )
    assert missed == 0


def test_rows_are_not_proven_while_they_are_few(monkeypatch):
    """Ten of twenty rows may be found where two hundred of their kind are not.

    They stay unproven when a check runs for the sake of queries.
    """
    index = built("partitioned", leaves=200)
    monkeypatch.setattr(index, "_recall_of", lambda probe, own: 1.0)
    index.upsert(OTHER[:21], names(21, SIZE))
    index.search(OTHER[:300], 10)
    index.wait()
    assert index._measured == 300 and len(index._trained.unproven) == 21
    index.upsert(OTHER[21:256], names(235, SIZE + 21))
    index.wait()
    assert len(index._trained.unproven) == 0


def test_rows_found_but_not_surely_are_searched_more_widely_before_they_are_trusted(monkeypatch):
    index, tuned = ScannIndex.build(clustered(SIZE), names(SIZE), Tuning(kind="partitioned")), []
    trained, tune, hardly = (
        index._trained,
        Searcher.tuned,
        itertools.cycle([1, 1, 1, 1, 1, 1, 1, 0.62]),  # mean 0.9525, standard error 0.008
    )
    monkeypatch.setattr(index, "_recall_of", lambda probe, own: 1.0 if tuned else next(hardly))

    def tuned_and_counted(self, others, *how):
        tuned.append(([len(some) for some in others], len(self.unproven)))
        return tune(self, others, *how)

    monkeypatch.setattr(Searcher, "tuned", tuned_and_counted)
    index.upsert(clustered(256, seed=1), names(256, SIZE))
    index.wait()
    assert (
        index._trained is trained and tuned == [([256, 256, 0], 256)] and len(trained.unproven) == 0
    )


def test_to_be_trained_on_is_no_proof_of_rows_too_few_to_be_looked_at():
    index, few, more = built("partitioned"), set(names(100, SIZE)), names(600, SIZE + 100)
    index.upsert(OTHER[:100], sorted(few))
    index.wait()
    index._train()
    assert set(index._trained.unproven.ids()) == few and index.health()["trained_on"] == SIZE + 100
    index.delete(sorted(few)[:10])
    assert set(index._trained.unproven.ids()) == few - set(sorted(few)[:10])
    index.upsert(OTHER[100:], more)
    index.wait()
    assert not set(index._trained.unproven.ids()) & few, "looked at, or trained on with many"
    index._train()
    assert index.search(OTHER[100:], 1)[0] == [[id] for id in more]


def test_unless_they_are_scored_exactly(monkeypatch):
    monkeypatch.setattr(Unproven, "beside", lambda self, queries, k, ids, scores: (ids, scores))
    with pytest.raises(AssertionError):
        test_rows_of_another_kind_are_found_from_the_first_on()


def held_check(monkeypatch):
    """Block checks until the returned event is set; the other event marks a check's start."""
    begun, go, recall_of = threading.Event(), threading.Event(), ScannIndex._recall_of

    def held(*args):
        begun.set()
        assert go.wait(60)
        return recall_of(*args)

    monkeypatch.setattr(ScannIndex, "_recall_of", held)
    return begun, go


@pytest.mark.parametrize(
    "few, all_of_them, looks", [(0.96, 0.90, 256), (0.96, 0.96, 256), (0.99, 0.90, 32)]
)
def test_a_few_probes_that_do_well_by_chance_are_not_believed(monkeypatch, few, all_of_them, looks):
    """A probe's first value is its recall, 0 or 1.

    Of 32 with a mean of 0.97, two standard errors below is 0.91.
    """
    index, found = built("quantised"), np.ones(256, np.float32)
    found[::8][: round(32 * (1 - few))] = 0
    rest = np.flatnonzero(np.arange(256) % 8)[
        : round(256 * (1 - all_of_them)) - round(32 * (1 - few))
    ]
    found[rest] = 0
    asked = []
    monkeypatch.setattr(
        index, "_recall_of", lambda probe, own: asked.append(probe) or float(probe[0, 0])
    )
    seen = found if looks == 256 else found[::8]
    assert index._recall(found[:, None], 0.95) == pytest.approx(
        (seen.mean(), seen.std() / len(seen) ** 0.5)
    )
    assert len(asked) == looks, "each once"


def test_what_is_put_in_while_it_looks_at_itself_is_not_proven_by_that(monkeypatch):
    begun, go = held_check(monkeypatch)
    index = built("partitioned")
    index.upsert(clustered(300, seed=1), names(300, SIZE))
    assert begun.wait(60)
    index.upsert(OTHER[:2], ["v2005", "late"])
    index.delete(["v2010"])
    go.set()
    index.wait()
    assert (
        sorted(index._trained.unproven.ids()) == ["late", "v2005"]
        and index.health()["unproven"] == 2
    )
    assert index.search(OTHER[:2], 1)[0] == [["v2005"], ["late"]]


def test_a_doubt_raised_during_a_self_check_lasts_until_retraining(monkeypatch):
    begun, go = held_check(monkeypatch)
    index, vectors = (
        built("partitioned", leaves_searched=1, reorder=1),
        np.concatenate([clustered(SIZE), clustered(300, seed=1)]),
    )
    index.upsert(vectors[SIZE:], names(300, SIZE))
    assert begun.wait(60)
    index._trained.doubt = "imbalance"
    queries = clustered(50, seed=7)
    assert recall(index.search(queries, 10)[0], brute_force(vectors, queries, 10)[0]) >= 0.99
    go.set()
    index.wait()
    assert index.health()["trained_on"] == SIZE + 300


def test_a_saved_index_knows_what_it_does_not_trust(monkeypatch, tmp_path):
    """Unproven rows and a pending training survive saving.

    The loaded index finds everything and trains.
    """
    index, vectors = (
        ScannIndex.build(clustered(SIZE), names(SIZE), Tuning(kind="partitioned")),
        np.concatenate([clustered(SIZE), OTHER]),
    )
    index.upsert(OTHER[:100], names(100, SIZE))
    index.delete(["v7", f"v{SIZE + 3}"])  # the last rows fill the gaps
    index.save(tmp_path / "unproven")
    loaded, _ = ScannIndex.load(tmp_path / "unproven")
    assert loaded.health() == index.health() and loaded.health()["unproven"] == 99
    kept = [row for row in range(SIZE, SIZE + 100) if row != SIZE + 3]
    assert loaded.search(vectors[kept], 1)[0] == [[f"v{row}"] for row in kept]

    begun, go = held_up(monkeypatch)
    index.upsert(OTHER[100:], names(600, SIZE + 100))
    assert begun.wait(60)
    index.save(tmp_path / "doubt")
    go.set()
    index.wait()
    loaded, manifest = ScannIndex.load(tmp_path / "doubt")
    assert manifest["doubt"] and loaded.search(OTHER[4:], 1)[0] == [
        [f"v{SIZE + row}"] for row in range(4, 700)
    ]
    loaded.wait()
    assert loaded.health()["trained_on"] == SIZE + 698 and not loaded._trained.doubt


def test_an_index_of_which_others_are_asked_than_it_holds_is_tuned_to_them():
    index = ScannIndex.build(clustered(SIZE), names(SIZE), Tuning(kind="partitioned", leaves=400))
    # Between the clusters of the rows.
    queries = np.random.default_rng(1).normal(size=(600, 64)).astype(np.float32)
    right = brute_force(clustered(SIZE), queries, 10)[0]
    assert (
        recall(index.search(queries[:250], 10)[0], right[:250]) < 0.93
        and not index.health()["training"]
    )
    trained, before = index._trained, index._trained.width(10)
    index.search(queries[250:300], 10)
    index.wait()
    assert recall(index.search(queries[:250], 10)[0], right[:250]) >= 0.95
    assert recall(index.search(queries[300:], 10)[0], right[300:]) >= 0.95
    health = index.health()
    assert (
        min(health["recall"], health["query_recall"]) >= 0.95
        and health["trained_on"] == SIZE
        and index._trained is trained
    )
    assert any(now > then for now, then in zip(trained.width(10), before, strict=True))


def test_recall_of_the_latest_queries_is_measured_at_a_steady_pace_and_reported_apart(
    monkeypatch, tmp_path
):
    index = ScannIndex.build(clustered(SIZE), names(SIZE), Tuning(kind="partitioned", leaves=400))
    # Tuning that changes nothing.
    monkeypatch.setattr(Searcher, "tuned", lambda self, *how: self.settings)
    assert index.health()["query_recall"] is None
    like, unlike = (
        clustered(SIZE),
        np.random.default_rng(1).normal(size=(1_024, 64)).astype(np.float32),
    )
    near = recall(index.search(like[:1_024], 10)[0], brute_force(like, like[:1_024], 10)[0])
    index.wait()
    before = index.health()
    assert before["query_recall"] == pytest.approx(near, abs=0.03)
    for start in range(0, 1_024, 256):
        far = recall(
            index.search(unlike[start : start + 256], 10)[0],
            brute_force(like, unlike[start : start + 256], 10)[0],
        )
        index.wait()
        health = index.health()
        assert health["query_recall"] == pytest.approx(far, abs=0.01) and far < 0.93, (
            "of the latest 256, not of the first"
        )
        assert health["recall"] == pytest.approx(before["recall"], abs=0.02), (
            "of the rows, as before"
        )
    index.save(tmp_path / "index")
    assert ScannIndex.load(tmp_path / "index")[0].health()["query_recall"] == health["query_recall"]


def test_an_index_that_was_tuned_to_early_queries_is_tuned_to_later_ones_too():
    index = ScannIndex.build(clustered(SIZE), names(SIZE), Tuning(kind="partitioned", leaves=400))
    index.search(clustered(SIZE)[:1_024], 10)
    index.wait()
    queries = np.random.default_rng(1).normal(size=(600, 64)).astype(np.float32)
    index.search(queries[:300], 10)
    index.wait()
    assert (
        recall(
            index.search(queries[300:], 10)[0], brute_force(clustered(SIZE), queries[300:], 10)[0]
        )
        >= 0.95
    )
    assert index.health()["query_recall"] >= 0.95


def test_measuring_queries_rests_nine_times_as_long_as_it_took_and_catches_up_when_waited_for():
    index, began = built("partitioned"), time.monotonic()
    index.search(clustered(256), 10)
    if watch := index._watch:
        watch.join()
    ended = time.monotonic()
    assert index._measured == 256 and began < index._rest_until <= ended + 9 * (ended - began)
    index._rest_until = float("inf")
    index.search(clustered(256), 10)
    assert index._measured == 256 and not index.health()["training"]
    index.wait()
    assert index._measured == 512


def test_searches_and_changes_go_on_while_a_searcher_is_trained_and_none_is_lost(monkeypatch):
    index, held = built("partitioned"), dict(zip(names(SIZE), clustered(SIZE), strict=True))
    begun, go = held_up(monkeypatch)
    more = clustered(1_200, seed=3)
    index.upsert(more, names(1_200, SIZE))
    held |= dict(zip(names(1_200, SIZE), more, strict=True))
    assert begun.wait(60) and index.health()["training"]
    index.delete(["v3", f"v{SIZE + 5}"])
    late = clustered(2, seed=6)
    index.upsert(late, ["v1", "late"])
    kept = late.copy()
    late[:] = 0
    held = {id: row for id, row in held.items() if id not in ("v3", f"v{SIZE + 5}")} | {
        "v1": kept[0],
        "late": kept[1],
    }
    assert index.search(kept, 1)[0] == [["v1"], ["late"]], "seen at once"
    go.set()
    assert_right(index, held)
    assert index.health()["trained_on"] == SIZE + 1_200 and index.health()["changed"] == 4


def test_a_training_that_fails_is_said_and_the_index_answers_as_before(monkeypatch, caplog):
    index, held = built("partitioned"), dict(zip(names(SIZE), clustered(SIZE), strict=True))

    def on(*args):
        raise MemoryError("none left")

    with monkeypatch.context() as short:
        short.setattr(scann_searcher.Searcher, "on", on)
        more = clustered(1_200, seed=3)
        index.upsert(more, names(1_200, SIZE))
        index.wait()
    held |= dict(zip(names(1_200, SIZE), more, strict=True))
    assert "none left" in caplog.text and index.health()["trained_on"] == SIZE
    assert_right(index, held)
    index.upsert(clustered(2_500, seed=9), names(2_500, SIZE + 1_200))
    index.wait()
    assert index.health()["trained_on"] == SIZE + 1_200 + 2_500, "tried again after as many changes"


def test_the_memory_that_a_build_takes_is_said_before(caplog):
    with caplog.at_level("INFO"):
        built("quantised")
    assert f"a quantised index of {SIZE} x 64 vectors takes 1 MB" in caplog.text
    assert approximate.needed_megabytes(1_000, 128) == (0.512, 1.024)
    kept, most = approximate.needed_megabytes(200_000, 128)
    assert kept < most < 3 * kept
    assert scann_searcher.needed_bytes(200_000, 128, "partitioned") == 200_000 * (128 * 4 + 32 + 8)
    assert scann_searcher.needed_bytes(200_000, 128, "partitioned", spilled=True) == 200_000 * (
        128 * 4 + 2 * (32 + 8)
    )
