import dataclasses
import datetime
import json
import threading

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval import Diff, Memory, Passage, RetrievalError
from retrieval.store.history import History
from retrieval.store.store import Store
from retrieval.verification import problems
from tests.retrieval.toy import encode, state


def vectors(n, dim=4):
    return np.random.default_rng(n).normal(size=(n, dim))


def filled(path, ids="abc"):
    store = Store.create(path, 4, "fingerprint")
    store.add([Passage(id, f"text of {id}") for id in ids], vectors(len(ids)))
    return store


def texts(store):
    return {id: passage.text for id, (passage, _) in store.get(store.ids()).items()}


IDS = [f"p{i}" for i in range(5)]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["add", "edit", "delete", "undo"]),
        st.sets(st.sampled_from(IDS), min_size=1),
    ),
    max_size=12,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(CHANGES)
def test_any_changes_agree_with_a_dict_and_every_version_stays_as_it_was(tmp_path_factory, changes):
    store = Store.create(tmp_path_factory.mktemp("store") / "m", 4, "f")
    past = {1: {}}  # version -> state
    undo_stack = []  # states to go back to
    for number, (action, ids) in enumerate(changes):
        now = dict(past[store.version])
        before = store.version
        allowed = {
            "add": not ids & now.keys(),
            "edit": ids <= now.keys(),
            "delete": ids <= now.keys(),
            "undo": bool(undo_stack),
        }
        new = [Passage(id, f"{id} of step {number}") for id in sorted(ids)]
        run = {
            "add": lambda new=new: store.add(new, vectors(len(new))),
            "edit": lambda new=new: store.edit(new, vectors(len(new))),
            "delete": lambda ids=ids: store.delete(sorted(ids)),
            "undo": store.undo,
        }[action]
        if not allowed[action]:
            with pytest.raises(RetrievalError):
                run()
            assert store.version == before and texts(store) == now
            continue
        commit = run()
        if action == "undo":
            now = undo_stack.pop()
        else:
            undo_stack.append(dict(now))
            now = (
                {k: v for k, v in now.items() if k not in ids}
                if action == "delete"
                else now | {p.id: p.text for p in new}
            )
        past[store.version] = now
        assert texts(store) == now and commit.version == store.version and commit.action == action
    for version, then in past.items():
        assert texts(Store.open(store.path, version)) == then
    assert [c.version for c in store.log()] == sorted(past)


def test_a_second_undo_goes_one_change_further_back_and_not_forward_again(tmp_path):
    store = filled(tmp_path / "m")
    store.edit([Passage("a", "edited")], vectors(1))
    store.delete(["b"])
    store.undo()
    assert texts(store)["a"] == "edited" and "b" in texts(store)
    store.undo()
    assert texts(store)["a"] == "text of a"
    store.add([Passage("d", "new")], vectors(1))
    store.undo()
    store.undo()
    assert texts(store) == {}
    with pytest.raises(RetrievalError, match="no change left to undo"):
        store.undo()


def test_an_undo_names_the_ids_it_changed_and_the_log_says_who_and_why(tmp_path):
    store = filled(tmp_path / "m")
    store.edit([Passage("a", "new")], vectors(1), author="Ada", reason='it\'s "wrong" \U0001f642')
    store.undo()
    log = store.log()
    assert [c.action for c in log] == ["create", "add", "edit", "undo"]
    assert (log[2].author, log[2].reason, log[2].ids) == ("Ada", 'it\'s "wrong" \U0001f642', ("a",))
    assert log[3].ids == ("a",) and "version 3" in log[3].reason
    assert log[1].time <= log[2].time <= log[3].time and log[1].time.endswith("+00:00")


def test_undo_and_log_are_exact_across_upkeep_commits(tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.store.upkeep.UPKEEP", ((3, 5), (3, 10**6)))
    monkeypatch.setattr("retrieval.store.upkeep.SCALAR_INDEX_FROM", 2)
    store = filled(tmp_path / "m")
    states = [texts(store)]
    for step in range(8):
        store.edit([Passage("abc"[step % 3], f"step {step}")], vectors(1))
        states.append(texts(store))
    assert store.version > 10, "the upkeep under test did not run"
    assert len(store.log()) == 10
    for then in reversed(states[:-1]):
        store.undo()
        assert texts(store) == then


def test_two_hundred_small_changes_leave_few_fragments_and_every_file_noted(tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.store.upkeep.UPKEEP", ((4, 8), (6, 32), (8, 1_000)))
    monkeypatch.setattr("retrieval.store.upkeep.SCALAR_INDEX_FROM", 50)
    store = Store.create(tmp_path / "m", 4, "f")
    for number in range(200):
        store.add([Passage(f"p{number}", f"text {number}")], vectors(1))
    assert len(store._dataset.get_fragments()) <= 12 and store._dataset.describe_indices()
    assert texts(store) == {f"p{number}": f"text {number}" for number in range(200)}
    assert problems(store.path) == []
    fresh, no_journal = Store.open(store.path), History(store._dataset)
    assert fresh.log() == no_journal.log() and len(no_journal._read) == store.version
    read = []
    monkeypatch.setattr(
        "retrieval.store.history._record_of", lambda handle, version: read.append(version)
    )
    assert len(Store.open(store.path).log()) == 200 and read == [1], (
        "the journal has every record but the first"
    )
    noted = (store.path / "checksums").read_text()
    files = [path for path in store.path.rglob("*") if path.is_file() and path.parent != store.path]
    assert [path.name for path in files if path.name not in noted] == ["latest_version_hint.json"]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ([Passage("x", "  ")], "has no text"),
        ([Passage("x", "one"), Passage("x", "two")], "given twice"),
        ([Passage("n", "ok"), Passage("a", "again")], "already in the memory: 'a'.*use edit"),
        ([Passage("", "text")], "not usable"),
        ([Passage("x\ny", "text")], "not usable"),
        ([Passage("x" * 600, "text")], "not usable"),
        ([Passage(7, "text")], "not usable"),
        ([Passage("x", "y" * 1_000_001)], "split it"),
        (
            [Passage("x", "text", "y" * 600_000, metadata={"n": "y" * 600_000})],
            "'x' has 1,200,001 characters of title, source and metadata",
        ),
        (
            [Passage("x", "text", tags=tuple(f"{i:0100}" for i in range(10_001)))],
            "'x' has 1,000,100 characters of",
        ),
        ([Passage("x", "half a pair \ud800")], "not valid Unicode"),
        ([Passage("x", "text", metadata={"n": 1})], "metadata"),
        ([Passage("x", "text", time="last week")], "'x': time is 'last week'; expected ISO 8601"),
        ([Passage("x", "text", time="2026-13")], "ISO 8601"),
        ([Passage("x", "text", tags=["news"])], "tags"),
        ([Passage("x", "text", tags=None)], "tags is None"),
        ([Passage("x", "text", tags=("news", 7))], "group '7'"),
        ([Passage("x", "text", tags=("two\nlines",))], "printable"),
        ([Passage("x", "text", tags=("",))], "printable"),
        ([Passage("x", "text", access="g" * 129)], "printable"),
        ([Passage("x", "text", access=None)], "access"),
        ([Passage("x", "text", span=(5, 2))], "span"),
        ([Passage("x", "text", span=(0, 2.0))], "span"),
        (["text"], "expected a retrieval.Passage"),
        ([], "no passages"),
    ],
)
def test_a_passage_that_cannot_be_kept_is_refused_and_nothing_changes(tmp_path, wrong, message):
    store = filled(tmp_path / "m")
    with pytest.raises(RetrievalError, match=message):
        store.add(wrong, vectors(len(wrong)))
    assert store.version == Store.open(store.path).version == 2 and len(store) == 3


@pytest.mark.parametrize(
    "wrong, message",
    [
        (np.ones((2, 4)), r"shape \[2, 4\]; expected \[1, 4\]"),
        (np.ones((1, 5)), r"expected \[1, 4\]"),
        (np.ones(4), r"shape \[4\]"),
        (np.full((1, 4), np.nan), "NaN or infinity"),
        (np.full((1, 4), np.inf), "NaN or infinity"),
        (np.full((1, 4), 1e6), "float16"),
    ],
)
def test_vectors_of_a_wrong_shape_or_not_finite_are_refused_and_nothing_changes(
    tmp_path, wrong, message
):
    store = filled(tmp_path / "m")
    for change, id in ((store.add, "new"), (store.edit, "a")):
        with pytest.raises(RetrievalError, match=message):
            change([Passage(id, "text")], wrong)
    assert store.version == Store.open(store.path).version == 2 and texts(store)["a"] == "text of a"


def test_unknown_ids_are_listed_and_the_known_ones_beside_them_stay(tmp_path):
    store = filled(tmp_path / "m")
    with pytest.raises(RetrievalError, match="'x', 'y'"):
        store.delete(["a", "y", "x"])
    with pytest.raises(RetrievalError, match="'z'"):
        store.edit([Passage("a", "new"), Passage("z", "new")], vectors(2))
    assert texts(store)["a"] == "text of a" and store.version == 2


def test_ids_and_texts_come_back_as_they_went_in(tmp_path):
    odd = ["it's", 'say "hi"', "back\\slash", "☃ snow", "'; DROP TABLE", "%_*", "a,b"]
    store = Store.create(tmp_path / "m", 4, "f")
    more = {
        "span": (0, 7),
        "time": "2026-11-24T10:00:00+01:00",
        "tags": ("odd", "ids, all"),
        "access": "legal",
    }
    passages = [
        Passage(
            id,
            f"line\nof\t{id}\x00",
            title=id,
            source=id,
            metadata={id: id},
            **(more if i % 2 else {}),
        )
        for i, id in enumerate(odd)
    ]
    store.add(passages, vectors(len(odd)))
    assert [store.get([id])[id][0] for id in odd] == passages
    store.delete(odd[:3])
    assert sorted(store.ids()) == sorted(odd[3:])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "without a memory"),
        (lambda path: path.write_text("x"), "is a file"),
    ],
)
def test_what_is_no_memory_is_not_opened_and_not_touched(tmp_path, make, message):
    make(tmp_path / "m")
    with pytest.raises(RetrievalError, match=message):
        Store.open(tmp_path / "m")
    assert not (tmp_path / "m" / "lock").exists()


def test_a_memory_is_not_made_over_another_or_among_other_files(tmp_path):
    filled(tmp_path / "m")
    with pytest.raises(RetrievalError, match="already holds a memory"):
        Store.create(tmp_path / "m", 4, "f")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(RetrievalError, match=r"not empty.*thesis\.txt"):
        Store.create(tmp_path / "full", 4, "f")


def format_1(path):
    """A memory in the format of the first release."""
    text = [
        pa.field(name, pa.string(), nullable=False)
        for name in ("id", "text", "title", "source", "metadata")
    ]
    vector, made = (
        pa.field("vector", pa.list_(pa.float16(), 4), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
    )
    settings = {
        "openbook.format": "1",
        "openbook.encoder": "fingerprint",
        "openbook.encoder_source": "",
        "openbook.dim": "4",
    }
    schema = pa.schema(
        [*text, vector, made, pa.field("version", pa.int64(), nullable=False)], settings
    )
    record = {
        "action": "create",
        "author": "Ada",
        "reason": "",
        "time": "2026-01-01T00:00:00.000+00:00",
        "ids": [],
        "undo_to": None,
    }
    properties = lambda **changes: {"openbook": json.dumps(record | changes)}
    table = str(path / "passages.lance")
    lance.write_dataset(
        schema.empty_table(), table, schema=schema, transaction_properties=properties()
    )
    hash_of_a = "e619d4454eee82aa11b227f380ef4455431caac26f49aee9b2bb81f3f3c991f2"
    rows = {
        "id": ["a"],
        "text": ["old"],
        "title": ["A"],
        "source": [""],
        "metadata": ['{"n": "1"}'],
        "content_hash": [hash_of_a],
    }
    rows |= {
        "vector": pa.FixedSizeListArray.from_arrays(pa.array([1, 0, 0, 0], pa.float16()), 4),
        "version": [2],
    }
    lance.write_dataset(
        pa.table(rows, schema),
        table,
        mode="append",
        transaction_properties=properties(action="add", ids=["a"], undo_to=1),
    )


def test_a_memory_of_format_1_is_read_as_it_is_and_upgraded_by_the_first_change(tmp_path):
    format_1(tmp_path / "m")
    old = Passage("a", "old", "A", metadata={"n": "1"})
    store = Store.open(tmp_path / "m")
    assert store.get(["a"])["a"] == (old, 2) and store.version == 2
    assert store.columns(["id", "tags", "access"]).to_pylist() == [
        {"id": "a", "tags": None, "access": None}
    ]
    new = Passage("b", "new", span=(3, 6), time="2026", tags=("x", "y"), access="staff")
    store.add([new], vectors(1))
    assert store.get(["a", "b"]) == {"a": (old, 2), "b": (new, store.version)}
    assert store.columns(["tags", "span_end"]).to_pylist() == [
        {"tags": None, "span_end": None},
        {"tags": ["x", "y"], "span_end": 6},
    ]
    store.edit([dataclasses.replace(old, access="staff")], vectors(1))
    for _ in range(2):
        store.undo()
    assert store.get(store.ids()) == {"a": (old, 2)} and Store.open(store.path, 2).get(
        ["a", "b"]
    ) == {"a": (old, 2)}
    store.delete(["a"])
    assert len(store) == 0 and [c.action for c in store.log()] == [
        "create",
        "add",
        "add",
        "edit",
        "undo",
        "undo",
        "delete",
    ]


def test_a_memory_of_a_newer_format_asks_for_a_newer_openbook(tmp_path):
    store = filled(tmp_path / "m")
    store._dataset.update_schema_metadata({"openbook.format": "4"})
    with pytest.raises(
        RetrievalError, match=r"format '4', this openbook reads 1 to 3: install a newer"
    ):
        Store.open(store.path)
    with pytest.raises(RetrievalError, match="no columns 'size'; it has id, text"):
        filled(tmp_path / "n").columns(["size"])


@pytest.mark.parametrize("version", [0, -1, 3, 10**9, True, "2", "1999", "yesterday"])
def test_a_version_that_never_was_is_refused(tmp_path, version):
    store = filled(tmp_path / "m")
    message = {
        "1999": "did not exist at 1999-01-01",
        "2": "expected ISO 8601",
        "yesterday": "expected ISO 8601",
    }
    with pytest.raises(RetrievalError, match=message.get(version, "expected a number from 1 to 2")):
        Store.open(store.path, version)


def test_a_moment_stands_for_the_version_that_was_the_newest(tmp_path, monkeypatch):
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, zone=None):
            Clock.minute += 1
            return datetime.datetime(2026, 5, 1, 12, Clock.minute, tzinfo=datetime.UTC)

    Clock.minute = -1
    monkeypatch.setattr("retrieval.store.history.datetime.datetime", Clock)
    store = filled(tmp_path / "m")  # versions 1, 2 of 12:00, 12:01
    monkeypatch.setattr("retrieval.store.upkeep.UPKEEP", ((2, 5), (2, 10**6)))
    for text in ("x", "y"):
        store.edit([Passage("a", text)], vectors(1))
    monkeypatch.undo()
    versions = [commit.version for commit in store.log()]
    assert versions[-1] < store.version, "no upkeep came after the last change"
    for when, expected in [
        ("2026-05-01T12:00:30", 0),
        ("2026-05-01T14:01+02:00", 1),
        ("2026-05-01T12:02:59.9Z", 2),
        ("2027", 3),
    ]:
        assert Store.open(store.path, when).version == versions[expected]
    assert (
        Store.open(store.path, datetime.datetime(2026, 5, 1, 12, 2, tzinfo=datetime.UTC)).version
        == versions[2]
    )


def test_a_diff_is_what_a_comparison_of_both_versions_finds(tmp_path):
    store = filled(tmp_path / "m", ids="abcdef")
    store.edit([Passage("a", "new"), Passage("b", "new")], vectors(2))
    store.edit([Passage("b", "text of b")], vectors(1))  # as it was: no difference
    store.delete(["c", "d"])
    store.add([Passage("c", "again"), Passage("g", "new")], vectors(2))
    store.undo()
    store.add([Passage("d", "text of d"), Passage("h", "new")], vectors(2))
    states = {
        version: texts(Store.open(store.path, version)) for version in range(1, store.version + 1)
    }
    for a, then in states.items():
        for b, now in states.items():
            edited = tuple(sorted(id for id in then.keys() & now.keys() if then[id] != now[id]))
            assert store.diff(a, b) == Diff(
                tuple(sorted(now.keys() - then.keys())),
                edited,
                tuple(sorted(then.keys() - now.keys())),
            )


def test_the_past_of_a_passage_is_every_change_of_it_and_no_other(tmp_path):
    store = filled(tmp_path / "m")
    store.edit([Passage("a", "second")], vectors(1), author="Ada", reason="a typo")
    store.edit([Passage("b", "other")], vectors(1))
    store.delete(["a"])
    store.undo()
    past = store.past_of("a")
    assert [commit.action for commit, _ in past] == ["add", "edit", "delete", "undo"] and past[1][
        0
    ].reason == "a typo"
    assert [passage and passage.text for _, passage in past] == [
        "text of a",
        "second",
        None,
        "second",
    ]
    assert store.past_of("never") == []


def test_the_past_cannot_be_changed(tmp_path):
    past = Store.open(filled(tmp_path / "m").path, 1)
    for change in (
        past.undo,
        lambda: past.delete(["a"]),
        lambda: past.add([Passage("x", "y")], vectors(1)),
    ):
        with pytest.raises(RetrievalError, match="view of the past"):
            change()


def test_a_text_changed_behind_the_store_s_back_is_not_served(tmp_path):
    store = filled(tmp_path / "m")
    store._dataset.update({"text": "'forged'"}, where="id = 'b'")
    store = Store.open(store.path)
    with pytest.raises(RetrievalError, match=r"'b'.*damaged"):
        store.get(["a", "b"])
    assert store.get(["a"])


def test_threads_that_add_at_once_lose_nothing(tmp_path):
    memory = Memory.create(tmp_path / "m", encode)
    memory.add([Passage("seed", "seed")])

    def write(name):
        mine = Memory.open(tmp_path / "m", encode)
        for i in range(5):
            mine.add([Passage(f"{name}{i}", f"{name} {i}")])

    threads = [threading.Thread(target=write, args=(name,)) for name in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(memory) == 16 and len(state(memory)) == 16
    assert json.dumps(sorted(c.version for c in memory.log())) == json.dumps(
        [c.version for c in memory.log()]
    )
    assert memory.search(["z 4"], 1)[0][0].id == "z4"
