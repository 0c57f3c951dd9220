"""Access control: nothing leaks to another group, in any mode, at any time."""

import random

import numpy as np
import pytest

from retrieval import EVERY_GROUP, Filter, Memory, Passage
from retrieval.search import ranking
from retrieval.store.filter_columns import FilterColumns
from tests.retrieval.toy import encode

MODES = ("dense", "lexical", "hybrid")
GROUPS = ("staff", "staff2", "board", "law", "x' OR 1=1")
WORDS = ("secret", "plan", "ship", "town", "sea", "budget")


def filled(path, number=200, seed=0):
    rng = random.Random(seed)
    memory = Memory.create(path, encode)
    texts = [" ".join(rng.choices(WORDS, k=4)) + f" n{i}" for i in range(number)]
    memory.add(
        [Passage(f"p{i}", texts[i], access=rng.choice(("", *GROUPS))) for i in range(number)]
    )
    return memory


def access_of(memory):
    table = memory._store.columns(["id", "access"])
    return dict(zip(table["id"].to_pylist(), table["access"].to_pylist(), strict=True))


@pytest.mark.parametrize("few", [2_000, 0], ids=["one by one", "widening"])
@pytest.mark.parametrize("pairs", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_pairs_of_group_and_query_leak_nothing_and_all_k_come(
    tmp_path, monkeypatch, few, pairs
):
    monkeypatch.setattr(ranking, "FEW", few)
    memory, rng = filled(tmp_path / "m"), random.Random(1)
    access = access_of(memory)
    for number in range(pairs // 20):
        groups = rng.sample(GROUPS, rng.randrange(3))
        readable = {id for id, group in access.items() if group in ("", *groups)}
        queries = [" ".join(rng.choices(WORDS, k=2)) + f" n{rng.randrange(200)}" for _ in range(20)]
        mode = MODES[number % 3]
        for hits in memory.search(queries, 5, mode=mode, groups=groups):
            assert {hit.id for hit in hits} <= readable and len(hits) == 5


@pytest.mark.parametrize("mode", MODES)
def test_what_is_revoked_is_not_found_by_the_next_query_nor_in_the_past(tmp_path, mode):
    memory = filled(tmp_path / "m", 20)
    memory.add(
        [
            Passage("a", "zebra one"),
            Passage("b", "zebra two", access="staff"),
            Passage("c", "zebra three"),
        ]
    )
    version, other = memory.version, Memory.open(tmp_path / "m", encode)
    past = memory.as_of(version)
    seen = lambda memory, *groups: (
        {hit.id for hit in memory.search("zebra one two three", 99, mode=mode, groups=groups)[0]}
        & {*"abc"}
    )
    assert seen(memory) == seen(past) == seen(other) == {"a", "c"} and seen(memory, "staff") == {
        "a",
        "b",
        "c",
    }
    memory.edit("a", access="staff")
    assert seen(memory) == seen(past) == seen(other) == seen(memory.as_of(version)) == {"c"}
    assert seen(memory, "staff") == seen(past, "staff") == {"a", "b", "c"}
    memory.edit("b", access="board")
    assert seen(memory, "staff") == {"a", "c"} == seen(past, "staff") and seen(
        past, "staff", "board"
    ) == {"a", "b", "c"}
    memory.delete(["a"])
    assert seen(past) == {"c"} == seen(memory.as_of(version)), (
        "deleting a passage does not publish it"
    )
    memory.delete(["c"])
    assert seen(memory) == set() and seen(past) == {"c"}, (
        "a public passage that was deleted can be read in the past"
    )
    memory.undo()
    memory.undo()
    memory.undo()
    memory.undo()
    assert seen(memory) == seen(past) == {"a", "c"}


def test_a_group_is_a_whole_name_and_the_owner_sees_all(tmp_path):
    memory = filled(tmp_path / "m", 60)
    access = access_of(memory)
    for groups in ("staff", ("staff",), {"staff"}):
        found = {hit.access for hit in memory.search("secret plan", 60, groups=groups)[0]}
        assert found == {"", "staff"}
    assert len(memory.search("secret", 60, groups=EVERY_GROUP)[0]) == len(access)
    assert {
        hit.access for hit in memory.search("secret", 60, groups=("x' OR 1=1",), mode="hybrid")[0]
    } == {"", "x' OR 1=1"}
    assert memory.search("secret", 60, where=Filter(any_tags="t"), groups=EVERY_GROUP) == [[]]


def test_facts_that_follow_changes_equal_facts_read_anew(tmp_path):
    memory, rng = filled(tmp_path / "m", 40), random.Random(3)
    kept, other = FilterColumns(memory._store), Memory.open(tmp_path / "m", encode)
    for step in range(40):
        ids = sorted(memory._store.ids())
        if step % 5 == 4:
            memory.delete(rng.sample(ids, 3))
        elif step % 5 == 3:
            memory.undo()
        elif step % 5 == 2:
            memory.add(
                [
                    Passage(
                        f"n{step}.{i}",
                        "new",
                        access=rng.choice(("", "board")),
                        tags=("t",),
                        time="1999",
                    )
                    for i in range(4)
                ]
            )
        else:
            id = rng.choice(ids)
            memory.edit(
                id,
                access=rng.choice(GROUPS),
                tags=rng.choice([("t",), ("t", "u"), ()]),
                time=rng.choice(["", "2020"]),
            )
            # Another handle changes the same passage, or another, before the next query.
            for _ in range(rng.randrange(3)):
                other.edit(
                    rng.choice([id, rng.choice(ids)]),
                    access=rng.choice(GROUPS),
                    tags=(),
                    time=rng.choice(["", "1980"]),
                )
            if rng.random() < 0.3:
                memory.edit(id, access=rng.choice(GROUPS))
        len(memory)  # moves to the newest version
        for where in (None, Filter(any_tags="t"), Filter(after="2000")):
            for groups in ((), ("board",), EVERY_GROUP):
                new = FilterColumns(memory._store).allowed(where, groups)
                for mine in (
                    kept.allowed(where, groups),
                    memory._handle.facts.allowed(where, groups),
                ):
                    assert (mine is None) == (new is None) and (
                        mine is None or sorted(mine.ids()) == sorted(new.ids())
                    )
                    assert mine is None or all((id in mine) == (id in new) for id in ids)


def test_what_a_memory_wrote_itself_it_need_not_read_to_know_who_may_read_it(tmp_path, monkeypatch):
    memory = filled(tmp_path / "m", 40)
    memory.search("secret", 1)
    monkeypatch.setattr(memory._store, "columns", lambda *args: pytest.fail("read from the table"))
    seen = lambda *groups: (
        {hit.id for hit in memory.search("zebra", 40, groups=groups)[0]} & {"p1", "new"}
    )
    memory.edit("p1", "zebra", access="staff")
    assert seen() == set() and seen("staff") == {"p1"}
    memory.add([Passage("new", "zebra too")])
    assert seen() == {"new"} and seen("staff") == {"new", "p1"}


def test_many_times_are_parsed_once(tmp_path):
    memory = Memory.create(tmp_path / "m", encode)
    memory.add([Passage(f"p{i}", "x", time=f"{1900 + i}-03-01T10:00:00+02:00") for i in range(100)])
    facts = FilterColumns(memory._store)
    assert (
        len(facts.allowed(Filter(after="1950-03-01T08:00", before="1960-03-01T07:59Z"), ())) == 10
    )
    before = facts._moments
    assert (
        np.shares_memory(before, facts._moments)
        and len(facts.allowed(Filter(after="1999"), ())) == 1
    )
