"""The retrieval benchmark on a few hundred vectors: build, save, load and time every engine."""

import json

import numpy as np
import pytest

from tests.benchmarks import engines, index_jobs, memory_jobs, retrieval, vectors
from tests.benchmarks.engines import ENGINES

ROWS = 700


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A private cache, random vectors and texts, and jobs that run in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(vectors, "QUERIES", 200)
    monkeypatch.setattr(index_jobs, "ALONE", 40)
    drawn = np.random.default_rng(0).normal(size=(ROWS + vectors.QUERIES, 32))
    monkeypatch.setitem(vectors.SETS, "clusters", (ROWS, lambda count: drawn, []))
    monkeypatch.setattr(
        vectors,
        "passages",
        lambda count=None: [
            f"words of passage {number}" for number in range(ROWS + vectors.QUERIES)
        ][:count],
    )
    monkeypatch.setattr(index_jobs, "SECONDS", 0.01)
    monkeypatch.setattr(memory_jobs, "EDITS", 5)
    # Two spinning threads on busy cores take a minute.
    monkeypatch.setattr(engines, "THREADS", 1)
    monkeypatch.setattr(
        retrieval,
        "child",
        lambda job, **arguments: json.loads(json.dumps(retrieval.JOBS[job](**arguments))),
    )
    return tmp_path


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_reaches_the_recall_and_answers_one_query_as_it_answers_many(engine, small):
    if not ENGINES[engine].there():
        pytest.skip(f"{engine} is not installed: pip install 'openbook[bench]'")
    folder = str(small / "clusters")
    retrieval.child("vectors", name="clusters", rows=ROWS, folder=folder)
    facts = retrieval.child("prepare", engine=engine, folder=folder)
    assert min(facts["single_recall"], facts["batched_recall"]) >= index_jobs.RECALL
    again, (asked, nearest) = (
        ENGINES[engine].load(index_jobs.place(folder, engine) / "index"),
        index_jobs.queries(folder),
    )
    setting = tuple(facts["single_setting"])
    one_by_one = [ENGINES[engine].one(again, query, setting) for query in asked[:20]]
    together = ENGINES[engine].many(again, asked[:20], setting)
    assert index_jobs.recall(one_by_one, nearest[:20]) == pytest.approx(
        index_jobs.recall(together, nearest[:20]), abs=0.03
    )


def test_what_a_version_with_other_settings_left_is_made_anew_and_what_this_one_made_is_kept(small):
    folder = str(small / "clusters")
    retrieval.child("vectors", name="clusters", rows=ROWS, folder=folder)
    made = retrieval.child("prepare", engine="ScannIndex", folder=folder)
    assert retrieval.child("prepare", engine="ScannIndex", folder=folder) == made
    facts = index_jobs.place(folder, "ScannIndex") / "facts.json"
    facts.write_text(json.dumps(made | {"single_setting": made["single_setting"][:2]}))
    assert (
        len(retrieval.child("prepare", engine="ScannIndex", folder=folder)["single_setting"]) == 3
    )


def test_the_tables_have_a_row_for_everything_measured(small, capsys):
    retrieval.main(
        [
            "--sets=clusters",
            "--engines",
            "ScannIndex",
            "scann",
            "--encoders",
            "toy encoder, 128",
            "--rounds=2",
            f"--rows={ROWS}",
        ]
    )
    printed = capsys.readouterr().out
    assert all(
        f"\n| {row} " in printed
        for row in ("clusters", "ScannIndex", "scann", "memory", "toy encoder, 128")
    )
    assert "it chose itself: recall@10 1.000" in printed


def test_recall_counts_the_true_neighbours_that_were_found():
    nearest = np.arange(20).reshape(2, 10)
    assert index_jobs.recall([list("0123456789"), range(5, 15)], nearest) == 0.75


def test_vectors_made_in_two_goes_are_those_made_in_one(small, monkeypatch):
    monkeypatch.setattr(vectors, "PART", 4)
    rows = np.random.default_rng(1).normal(size=(10, 3)).astype(np.float16)

    def broken(count):
        def part(start):
            if start == 8:
                raise KeyboardInterrupt
            return rows[start : start + 4]

        return part

    with pytest.raises(KeyboardInterrupt):
        vectors._kept("x", 10, broken, [])
    asked = []
    made = vectors._kept(
        "x", 10, lambda count: lambda start: (asked.append(start), rows[start : start + 4])[1], []
    )
    assert asked == [8] and np.array_equal(made, rows)
