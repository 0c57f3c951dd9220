import json
import sys
import threading

import numpy as np
import pytest

from retrieval import ExactIndex, RetrievalError, ScannIndex
from retrieval.index import approximate, exact, scann_searcher, tuning

BOTH = pytest.mark.parametrize("kind", [ScannIndex, ExactIndex])


def clustered(n, dim=64, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(200, dim))
    return (centres[rng.integers(0, 200, n)] + 0.7 * rng.normal(size=(n, dim))).astype(np.float32)


def names(n, start=0):
    return [f"v{i}" for i in range(start, start + n)]


def brute_force(vectors, queries, k):
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    scores = unit(queries) @ unit(vectors).T
    best = np.argsort(-scores, axis=1)[:, :k]
    return [[f"v{i}" for i in row] for row in best], np.take_along_axis(scores, best, 1)


def recall(found, right):
    return np.mean([len(set(f) & set(r)) / len(r) for f, r in zip(found, right, strict=True)])


@pytest.mark.parametrize("size, k", [(5_000, 10), (50_000, 10), (50_000, 500)])
def test_scann_finds_at_least_95_percent_of_the_nearest(size, k):
    vectors, queries = clustered(size), clustered(50, seed=1)
    index = ScannIndex.build(vectors, names(size))
    found, scores = index.search(queries, k)
    right, right_scores = brute_force(vectors, queries, k)
    assert all(len(row) == k for row in found)
    assert recall(found, right) >= 0.95
    assert np.allclose([row[0] for row in scores], right_scores[:, 0], atol=1e-5)


def test_partitions_find_at_least_95_percent_and_none_that_is_not_there(monkeypatch):
    monkeypatch.setattr(tuning, "BRUTE_FORCE_BELOW", 1_000)
    monkeypatch.setattr(tuning, "PARTITIONS_FROM", 5_000)
    vectors, queries = clustered(8_000), clustered(200, seed=1)
    index = ScannIndex.build(vectors, names(8_000))
    assert recall(index.search(queries, 10)[0], brute_force(vectors, queries, 10)[0]) >= 0.95
    found, scores = index.search(queries, 8_000)  # more than the searched partitions hold
    for ids, row in zip(found, scores, strict=True):
        assert len(set(ids)) == len(ids) == len(row) and np.isfinite(row).all()


def test_recall_holds_when_the_index_grows_from_brute_force_through_quantised_to_partitioned(
    monkeypatch,
):
    monkeypatch.setattr(tuning, "BRUTE_FORCE_BELOW", 1_000)
    monkeypatch.setattr(tuning, "PARTITIONS_FROM", 4_000)
    vectors, queries = clustered(6_000), clustered(50, seed=1)
    vectors[3_000:] += 2.0  # drift
    index = ScannIndex.build(vectors[:100], names(100))
    for start in range(100, 6_000, 590):
        index.upsert(vectors[start : start + 590], names(len(vectors[start : start + 590]), start))
        assert (
            recall(
                index.search(queries, 10)[0], brute_force(vectors[: start + 590], queries, 10)[0]
            )
            >= 0.95
        )
    gone = names(5_500)
    index.delete(gone)
    found, _ = index.search(queries, 10)
    assert not set(gone) & {id for row in found for id in row} and len(index) == 500


@pytest.mark.parametrize("size", [1, 7, 1023, 1025])
def test_exact_equals_brute_force(size):
    vectors, queries = clustered(size), clustered(9, seed=1)
    found, scores = ExactIndex.build(vectors, names(size)).search(queries, 5)
    right, right_scores = brute_force(vectors, queries, 5)
    assert found == right
    assert np.allclose(scores, right_scores, atol=1e-5)


def test_exact_does_not_compile_again_for_every_size():
    index = ExactIndex.build(clustered(10), names(10))
    index.search(clustered(1), 3)
    before = exact._jitted_top_k._cache_size()
    for i in range(20):
        index.upsert(clustered(5, seed=i), names(5, 10 + 5 * i))
        index.search(clustered(1), 1 + i % 10)
    assert exact._jitted_top_k._cache_size() == before


@BOTH
def test_random_changes_agree_with_a_dict(kind, rng):
    held, index, fresh = {}, kind.build(np.zeros((0, 8), np.float32), []), 0
    for _ in range(60):
        if held and rng.random() < 0.4:
            gone = list(
                rng.choice(
                    sorted(held), size=min(len(held), int(rng.integers(1, 6))), replace=False
                )
            )
            index.delete(gone)
            held = {id: v for id, v in held.items() if id not in gone}
        else:
            some = (
                list(rng.choice(sorted(held), size=min(len(held), 2), replace=False))
                if held
                else []
            )
            ids = some + names(int(rng.integers(1, 5)), fresh)
            fresh += 5
            new = rng.normal(size=(len(ids), 8)).astype(np.float32)
            index.upsert(new, ids)
            held |= dict(zip(ids, new, strict=True))
        assert len(index) == len(held)
        if held:
            ids = sorted(held)
            found, scores = index.search(np.stack([held[id] for id in ids]), 1)
            assert [row[0] for row in found] == ids, "each vector is its own nearest"
            assert np.allclose(np.concatenate(scores), 1, atol=1e-5)


@BOTH
def test_whole_numbers_are_answered_as_arrays_of_what_texts_would_be(
    kind, rng, monkeypatch, tmp_path
):
    monkeypatch.setattr(tuning, "BRUTE_FORCE_BELOW", 300)
    monkeypatch.setattr(tuning, "PARTITIONS_FROM", 600)
    vectors = clustered(1_000)
    number = np.concatenate([rng.permutation(1_000 - 2), [-(2**63), 2**63 - 1]])
    thorough = [tuning.Tuning(leaves_searched=1_000, reorder=1_000)] if kind is ScannIndex else []
    texts = kind.build(vectors[:500], list(map(str, number[:500])), *thorough)
    numbers = kind.build(vectors[:500], number[:500].astype(np.int64), *thorough)
    held = set(number[:500].tolist())

    def same(numbers):
        queries = clustered(7, seed=1)
        for count, k in ((0, 3), (1, 3), (7, 3), (7, len(held) + 1)):
            (ids, scores), (named, right) = (
                numbers.search(queries[:count], k),
                texts.search(queries[:count], k),
            )
            assert (
                ids.dtype == np.int64
                and scores.dtype == np.float32
                and ids.shape == scores.shape == (count, min(k, len(held)))
            )
            assert [list(map(str, row)) for row in ids.tolist()] == named
            assert np.allclose(scores, np.reshape(right, scores.shape), atol=1e-6)
            assert held.issuperset(ids.ravel().tolist())
        assert numbers.numbers and not texts.numbers and len(numbers) == len(texts) == len(held)
        assert number[0] in numbers and 12_345 not in numbers and "7" not in numbers

    same(numbers)
    # Replace some rows, then grow; integer ids may be a list once the index exists.
    for start in (400, 700):
        part = number[start : start + 300]
        numbers.upsert(vectors[start : start + 300], part.tolist())
        texts.upsert(vectors[start : start + 300], list(map(str, part)))
        held.update(part.tolist())
        same(numbers)
    gone = rng.choice(number[1:], 200, replace=False)
    numbers.delete(gone)
    texts.delete(list(map(str, gone)))
    held -= set(gone.tolist())
    same(numbers)
    numbers.save(tmp_path)
    same(kind.load(tmp_path)[0])
    for wrong in (
        ["7"],
        [7.0],
        [True],
        [2**63],
        np.array(7),
        np.zeros((1, 1), int),
        [[7]],
        np.array([7.0]),
        "7",
        [None],
    ):
        with pytest.raises(RetrievalError, match="id"):
            numbers.upsert(vectors[:1], wrong)
    for wrong in ([7], np.array([7]), np.array("7")):
        with pytest.raises(RetrievalError, match="id"):
            texts.upsert(vectors[:1], wrong)
    with pytest.raises(RetrievalError, match="given twice: 5"):
        kind.build(vectors[:3], np.array([5, 6, 5]))
    with pytest.raises(RetrievalError, match="not in the index: 12345"):
        numbers.delete([int(number[0]), 12_345])
    same(numbers)
    empty = kind.build(np.zeros((0, 64), np.float32), np.zeros(0, np.uint8))
    assert empty.numbers and empty.search(vectors[:2], 3)[0].shape == (2, 0)
    empty.upsert(vectors[:2], [3, 4])
    assert empty.search(vectors[:2], 1)[0].tolist() == [[3], [4]]


@BOTH
@pytest.mark.parametrize("size, k", [(0, 5), (1, 5), (5, 6), (5, 10_000)])
def test_no_id_is_returned_that_is_not_there(kind, size, k):
    index = kind.build(clustered(size), names(size))
    found, scores = index.search(clustered(3, seed=1), k)
    assert [sorted(row) for row in found] == [names(size)] * 3
    assert all(np.isfinite(row).all() and len(row) == size for row in scores)
    assert index.search(np.zeros((0, 64), np.float32), 3) == ([], [])


def broken(kind):
    vectors = clustered(3)
    vectors[1] = {"nan": np.nan, "infinity": np.inf, "zeros": 0.0}[kind]
    return vectors


@BOTH
@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.upsert(broken("nan"), names(3, 100)),
        lambda index: index.upsert(broken("infinity"), names(3, 100)),
        lambda index: index.upsert(broken("zeros"), names(3, 100)),
        lambda index: index.upsert(clustered(2), ["x", "x"]),
        lambda index: index.upsert(clustered(2), ["x"]),
        lambda index: index.upsert(clustered(2, dim=63), ["x", "y"]),
        lambda index: index.upsert(clustered(1)[0], ["x"]),
        lambda index: index.upsert([["a"]], ["x"]),
        lambda index: index.upsert(clustered(1), [7]),
        lambda index: index.upsert(clustered(1), 7),
        lambda index: index.upsert(clustered(1), "x"),
        lambda index: index.upsert(clustered(1) * 1e-22, ["x"]),
        lambda index: index.upsert(clustered(1) * 1j, ["x"]),
        lambda index: index.delete(None),
        lambda index: index.delete(["v0", "unknown"]),
        lambda index: index.delete(["v0", "v0"]),
        lambda index: index.search(broken("nan"), 3),
        lambda index: index.search(clustered(2, dim=63), 3),
        lambda index: index.search(clustered(2), 0),
        lambda index: index.search(clustered(2), -1),
    ],
)
def test_bad_input_is_refused_and_the_index_is_as_before(kind, change):
    index, queries = kind.build(clustered(20), names(20)), clustered(4, seed=1)
    before = index.search(queries, 20)
    with pytest.raises(RetrievalError):
        change(index)
    after = index.search(queries, 20)
    assert after[0] == before[0] and np.array_equal(after[1], before[1]) and len(index) == 20


@BOTH
def test_a_nan_at_build_is_an_error_and_not_the_end_of_the_process(kind):
    with pytest.raises(RetrievalError, match="row 1"):
        kind.build(broken("nan"), names(3))


@BOTH
def test_a_saved_index_moves_with_its_folder_and_can_be_changed_after_loading(kind, tmp_path):
    index = kind.build(clustered(50), names(50))
    index.delete(["v3"])
    index.save(tmp_path / "a", store_version=7)
    index.save(tmp_path / "a", store_version=8)  # over itself
    (tmp_path / "a").rename(tmp_path / "b")
    loaded, manifest = kind.load(tmp_path / "b")
    assert manifest["store_version"] == 8 and manifest["count"] == 49
    loaded.upsert(clustered(1, seed=5), ["v3"])
    loaded.delete(["v4"])
    queries = clustered(5, seed=1)
    expected = kind.build(clustered(50), names(50))
    expected.upsert(clustered(1, seed=5), ["v3"])
    expected.delete(["v4"])
    assert loaded.search(queries, 10)[0] == expected.search(queries, 10)[0]
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/*")) == ["b/000002"], (
        "nothing is left lying about"
    )
    assert not list(tmp_path.rglob("*.pkl"))


@BOTH
def test_every_flipped_byte_truncation_or_missing_file_is_found_at_loading(kind, tmp_path, rng):
    kind.build(clustered(50), names(50)).save(tmp_path / "i", store_version=1)
    files = list((tmp_path / "i" / "000001").iterdir())
    assert len(files) >= 3
    for path in files:
        good = path.read_bytes()
        at = int(rng.integers(len(good)))
        for bad in (good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :], good[:-1], b""):
            path.write_bytes(bad)
            with pytest.raises(RetrievalError):
                kind.load(tmp_path / "i")
        path.unlink()
        with pytest.raises(RetrievalError):
            kind.load(tmp_path / "i")
        path.write_bytes(good)
    kind.load(tmp_path / "i")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"kind": "scann"}',
        '{"kind": "scann", "files": {}}',
        '{"kind": "scann", "files": 3}',
    ],
)
def test_a_manifest_that_is_none_is_an_error_in_words(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(RetrievalError):
        ScannIndex.load(tmp_path)


def test_a_pickle_planted_with_a_matching_manifest_is_not_read(tmp_path):
    import hashlib

    ScannIndex.build(clustered(5), names(5)).save(tmp_path / "i")
    owned = tmp_path / "owned"
    planted = f"cos\nsystem\n(S'touch {owned}'\ntR.".encode()
    (tmp_path / "i" / "000001" / "scann_docids.pkl").write_bytes(planted)
    with pytest.raises(RetrievalError, match="does not hold the files"):
        ScannIndex.load(tmp_path / "i")
    manifest = json.loads((tmp_path / "i" / "000001" / "manifest.json").read_text())
    manifest["files"]["scann_docids.pkl"] = {
        "sha256": hashlib.sha256(planted).hexdigest(),
        "bytes": len(planted),
    }
    del manifest["sha256"]
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (tmp_path / "i" / "000001" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RetrievalError, match="pickle"):
        ScannIndex.load(tmp_path / "i")
    assert not owned.exists()


def test_without_scann_the_default_is_exact_and_scann_says_why(monkeypatch):
    assert approximate.default_index() is ScannIndex
    monkeypatch.setitem(sys.modules, scann_searcher.SCANN, None)
    assert approximate.default_index() is ExactIndex
    with pytest.raises(RetrievalError, match=r"Linux.*ExactIndex"):
        ScannIndex.build(clustered(3), names(3))


@BOTH
def test_searches_during_changes_never_see_half_of_one(kind):
    """One writer inserts and deletes a pair together; a reader must never see one of the two."""
    pair, index = clustered(2, seed=3), kind.build(clustered(30), names(30))
    torn, stop = [], threading.Event()

    def read():
        while not stop.is_set():
            found, _ = index.search(pair, 40)
            for row in found:
                if ("x" in row) != ("y" in row) or len(set(row)) != len(row):
                    torn.append(row)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(60):
        index.upsert(pair, ["x", "y"])
        index.delete(["x", "y"])
    stop.set()
    for reader in readers:
        reader.join()
    assert not torn
