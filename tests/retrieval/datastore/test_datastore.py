"""Token datastore: what it holds, versions, what it refuses."""

import numpy as np
import pytest

from retrieval.datastore import datastore, rows
from retrieval.datastore.datastore import Datastore
from retrieval.datastore.identity import Identity
from retrieval.datastore.projection import Projection, on_sphere, query_on_sphere
from retrieval.errors import RetrievalError
from retrieval.filters import EVERY_GROUP
from retrieval.passages import Passage
from tests.retrieval.datastore.stores import TEXTS, built, memory, observer, tokens_of

QUERIES = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def gpt2():
    return observer()


def text(observed, tokens):
    return observed.tokenizer.decode(tokens[:-1])


def test_the_cosine_on_the_sphere_orders_keys_by_distance():
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(200, 8)) * rng.uniform(0.1, 3, (200, 1)) + 1
    radius = np.linalg.norm(keys, axis=1).max()
    lifted = on_sphere(keys, radius)
    np.testing.assert_allclose(np.linalg.norm(lifted, axis=1), 1, atol=1e-6)
    for query in rng.normal(size=(20, 8)):
        near = np.argsort(np.square(keys - query).sum(axis=1))
        cosines = lifted @ query_on_sphere(query[None], radius)[0]
        assert (np.diff(cosines[near]) < 1e-6).all()


def test_all_components_keep_distances_and_few_keep_the_most():
    rng = np.random.default_rng(0)
    sample = rng.normal(size=(300, 6)) * [5, 4, 0.1, 3, 0.1, 0.1] + 2
    whole, part = Projection.fit(sample, 6), Projection.fit(sample, 3)
    apart = lambda x: np.square(x[:20, None] - x[None, :20]).sum(axis=-1)
    np.testing.assert_allclose(apart(whole(sample)), apart(sample), atol=1e-3)
    np.testing.assert_allclose(apart(part(sample)), apart(sample), atol=0.9)
    assert part.width == 3
    with pytest.raises(RetrievalError, match="pca=7: expected 1 to 6"):
        Projection.fit(sample, 7)
    with pytest.raises(RetrievalError, match="beyond float16"):
        part.stored(sample * 1e9)


@pytest.mark.parametrize("index", ["exact", "scann"])
def test_it_holds_every_token_of_every_passage_and_follows_changes(tmp_path, gpt2, index):
    made = memory(tmp_path / "memory")
    store = built(tmp_path / "store", made, gpt2, index=index)
    said = lambda: {id: text(gpt2, tokens) for id, tokens in tokens_of(store.snapshot()).items()}
    assert said() == TEXTS and len(store) == sum(map(len, TEXTS.values())) + 4
    before = store.snapshot()
    found = before.search(QUERIES, 7)

    made.delete(["b"])
    made.edit("c", text="a fox sat on a log")
    live = tokens_of(store.snapshot(made))  # before it is updated
    assert set(live) == {"a", "d"} and set(said()) == set(TEXTS)
    done = store.update(made, gpt2)
    assert (done.version, done.passages, done.removed, done.entries) == (2, 1, 2, 19)
    expected = {"a": TEXTS["a"], "c": "a fox sat on a log", "d": TEXTS["d"]}
    assert said() == expected and tokens_of(store.snapshot(made)) == tokens_of(store.snapshot())
    assert store.update(made, gpt2).version == 2  # nothing changed

    again = Datastore(tmp_path / "store")
    assert tokens_of(again.snapshot()) == tokens_of(store.snapshot())
    mine, theirs = again.snapshot().search(QUERIES, 7), store.snapshot().search(QUERIES, 7)
    np.testing.assert_array_equal(mine.distances, theirs.distances)
    old = before.search(QUERIES, 7)  # a snapshot stays as it was
    np.testing.assert_array_equal(old.distances, found.distances)
    np.testing.assert_array_equal(old.values, found.values)

    made.undo()
    store.update(made, gpt2)
    assert said() == expected | {"c": TEXTS["c"]}
    assert tokens_of(again.snapshot()) == tokens_of(store.snapshot())  # another handle sees it


def test_segments_are_divided_and_rewritten_when_there_are_many(tmp_path, gpt2, monkeypatch):
    made = memory(tmp_path / "memory")
    monkeypatch.setattr(rows, "PASSAGES", 1)
    divided = built(tmp_path / "divided", made, gpt2, index="exact", segment=30)
    store = built(tmp_path / "store", made, gpt2, index="exact")
    parts = divided.snapshot().parts
    assert len(parts) > 1 and len(store.snapshot().parts) == 1
    found, other = (one.snapshot().search(QUERIES, 9) for one in (store, divided))
    np.testing.assert_allclose(found.distances, other.distances, rtol=1e-6)

    monkeypatch.setattr(datastore, "MANY", 2)
    said = lambda: {id: text(gpt2, tokens) for id, tokens in tokens_of(store.snapshot()).items()}
    texts = dict(TEXTS)
    for turn in range(5):
        texts[f"new-{turn}"] = f"number {turn} came in"
        made.add([Passage(f"new-{turn}", texts[f"new-{turn}"])])
        if turn == 3:
            made.delete(["a", "b"])
            del texts["a"], texts["b"]
        store.update(made, gpt2)
        assert said() == texts
        folders = {path.name for path in (tmp_path / "store/segments").iterdir()}
        assert len(folders) <= 2
        assert {one.name for one, _ in store.snapshot().parts} == folders


def test_long_passages_are_read_in_windows_and_counted(tmp_path, gpt2):
    made = memory(tmp_path / "memory", {"long": "the same words " * 9, "short": "the end"})
    store, done = Datastore.build(tmp_path / "store", made, gpt2)
    assert done.split == 1
    assert text(gpt2, tokens_of(store.snapshot())["long"]) == "the same words " * 9


def test_passages_of_other_groups_are_not_there(tmp_path, gpt2):
    made = memory(tmp_path / "memory", access="staff")
    made.add([Passage("open", "all may read this")])
    store = built(tmp_path / "store", made, gpt2, index="exact")
    assert set(tokens_of(store.snapshot())) == {"open"}
    assert set(tokens_of(store.snapshot(groups=["staff"]))) == {*TEXTS, "open"}
    assert len(store.snapshot(groups=EVERY_GROUP)) == len(store)


def test_what_was_not_made_with_it_is_named(tmp_path, gpt2):
    made = memory(tmp_path / "memory")
    store = built(tmp_path / "store", made, gpt2, index="exact", pca=4)
    store.check(gpt2.identity)
    other = observer(seed=1).identity
    with pytest.raises(RetrievalError, match=r"keys of the model .* use the model it was built"):
        store.check(other)
    with pytest.raises(RetrievalError, match="keys of the tap ffn_input, and this is the tap hid"):
        store.check(observer(tap="hidden").identity)
    mine = gpt2.identity
    with pytest.raises(RetrievalError, match="tokens of the tokenizer"):
        store.check(Identity(mine.model, "0" * 16, mine.tap, mine.width))
    with pytest.raises(RetrievalError, match="keys of the model"):
        store.update(made, observer(seed=1))
    with pytest.raises(RetrievalError, match=r"k=1000: the datastore holds \d+ entries"):
        store.snapshot().search(QUERIES, 1000)
    with pytest.raises(RetrievalError, match="k=0: expected"):
        store.snapshot().search(QUERIES, 0)
    with pytest.raises(RetrievalError, match="of another memory"):
        store.snapshot(memory(tmp_path / "another"))
    with pytest.raises(RetrievalError, match="in use"):
        built(tmp_path / "store", made, gpt2)
    with pytest.raises(RetrievalError, match="holds no datastore"):
        Datastore(tmp_path / "memory")
    with pytest.raises(RetrievalError, match="index='hnsw'"):
        built(tmp_path / "new", made, gpt2, index="hnsw")
    values = next((tmp_path / "store/segments").iterdir()) / "values"
    values.write_bytes(values.read_bytes()[:-4])
    with pytest.raises(RetrievalError, match=r"values has \d+ bytes, expected \d+"):
        Datastore(tmp_path / "store")


def test_layers_may_be_stored_in_any_way(gpt2):
    import dataclasses

    from lm.models import separate

    model, params = separate(gpt2.model, gpt2.params)
    assert dataclasses.replace(gpt2, model=model, params=params).identity == gpt2.identity
