"""Random operations through two handles: the memory agrees with a dict of passages."""

import dataclasses
import random

import numpy as np
import pytest

from retrieval import EVERY_GROUP, Filter, Memory, Passage, RetrievalError
from retrieval.filters import readable
from retrieval.passages import moment
from retrieval.search import ranking
from retrieval.store import upkeep
from tests.retrieval.store.test_durability import ENCODERS

WORDS = (
    "sun",
    "moon",
    "land",
    "town",
    "Über",
    "東京",
    "a_b",
    "c-d",
    "100%",
    "'quoted'",
    '"twice"',
    "back\\slash",
)
STEPS = 120
CHANGES = ("add", "add", "edit", "edit", "update", "delete", "undo", "reembed", "reopen")
QUESTIONS = ("search", "search", "search", "travel", "compare", "look")


class Beside:
    """A memory and its expected state.

    Passages by id, now and after each version, and the states that `undo` returns to.
    """

    def __init__(self, path, rng: random.Random):
        self.path, self.rng, self.encoder, self.made = path, rng, 0, 0
        self.now, self.past, self.undoes = {}, {1: ({}, 0)}, []
        Memory.create(path, ENCODERS[0])
        self.open()

    def open(self):
        self.handles = [Memory.open(self.path, ENCODERS[self.encoder]) for _ in range(2)]

    def step(self):
        memory, action = self.rng.choice(self.handles), self.rng.choice(CHANGES + QUESTIONS)
        if self.now or action in ("add", "undo", "reopen"):
            before = dict(self.now)
            getattr(self, action)(memory)
            if action in ("add", "edit", "update", "delete"):
                self.undoes.append(before)
            assert len(self.handles[0]) == len(self.handles[1]) == len(self.now)
            self.past[self.handles[0].version] = dict(self.now), self.encoder

    def text(self):
        return " ".join(self.rng.choices(WORDS, k=self.rng.randint(1, 6)))

    def passage(self, id):
        pick = self.rng.choice
        return Passage(
            id,
            f"{self.text()} {self.made}",
            pick(["", "a title"]),
            tags=tuple(self.rng.sample(["x", "y", "ü"], self.rng.randint(0, 3))),
            access=pick(["", "", "g1", "g2"]),
            time=pick(["", "2020-01-01", "2021-05-05T12:00:00+02:00", "2022"]),
        )

    def some(self):
        return self.rng.sample(sorted(self.now), min(len(self.now), self.rng.randint(1, 3)))

    def add(self, memory):
        self.made += 1
        new = [self.passage(f"p'{self.made} é/{i}%") for i in range(self.rng.randint(1, 4))]
        if self.now:
            with pytest.raises(RetrievalError, match="already in the memory"):
                memory.add([*new, self.passage(self.some()[0])])
        memory.add(new)
        self.now |= {passage.id: passage for passage in new}

    def edit(self, memory):
        id, field = self.some()[0], self.rng.choice(["text", "tags", "access", "time"])
        self.made += 1
        value = getattr(self.passage(id), field)
        memory.edit(id, **{field: value})
        self.now[id] = dataclasses.replace(self.now[id], **{field: value})

    def update(self, memory):
        self.made += 1
        new = [self.passage(id) for id in self.some()]
        memory.update(new)
        self.now |= {passage.id: passage for passage in new}

    def delete(self, memory):
        gone = self.some()
        memory.delete(gone)
        self.now = {id: passage for id, passage in self.now.items() if id not in gone}

    def undo(self, memory):
        if self.undoes:
            memory.undo()
            self.now = self.undoes.pop()
        else:
            with pytest.raises(RetrievalError, match="undo"):
                memory.undo()

    def reembed(self, memory):
        if self.rng.random() < 0.3:
            self.encoder = 1 - self.encoder
            memory.reembed(ENCODERS[self.encoder])
            self.undoes = []
            self.open()

    def reopen(self, memory):
        self.handles[self.rng.randrange(2)] = Memory.open(self.path, ENCODERS[self.encoder])

    def search(self, memory):
        text, k, mode = (
            self.text(),
            self.rng.choice([1, 3, 100]),
            self.rng.choice(["dense", "dense", "lexical", "hybrid"]),
        )
        groups = self.rng.choice([[], ["g1"], ["g1", "g2"], EVERY_GROUP])
        where = self.rng.choice(
            [
                None,
                Filter(any_tags=("x", "ü")),
                Filter(all_tags=("x", "y")),
                Filter(after="2021"),
                Filter(before="2021"),
            ]
        )
        hits = memory.search([text], k, mode=mode, where=where, groups=groups)[0]
        right = {
            id: passage
            for id, passage in self.now.items()
            if readable(passage.access, groups) and (not where or passes(where, passage))
        }
        assert len({hit.id for hit in hits}) == len(hits) and (
            mode == "lexical" or len(hits) == min(k, len(right))
        )
        assert all(same(hit, right[hit.id]) for hit in hits)
        if mode == "dense" and right:
            rows = [
                unit(ENCODERS[self.encoder]([passage.searchable]))[0] for passage in right.values()
            ]
            best = np.sort(rows @ unit(ENCODERS[self.encoder]([text]))[0])[::-1][:k]
            assert np.allclose([hit.score for hit in hits], best, atol=2e-3)

    def travel(self, memory):
        version = self.rng.choice(sorted(self.past))
        (then, encoder), groups = self.past[version], self.rng.choice([["g1"], EVERY_GROUP])
        past = memory.as_of(version, ENCODERS[encoder])
        hits = past.search([self.text()], 1000, groups=groups)[0]
        assert sorted(past.ids()) == sorted(then) and all(same(hit, then[hit.id]) for hit in hits)
        held = {hit.id for hit in hits}
        if groups is EVERY_GROUP:
            assert held == then.keys()
        else:  # neither what was of another group then, nor what is now
            assert all(readable(then[id].access, groups) for id in held)
            assert all(readable(self.now[id].access, groups) for id in held & self.now.keys())

    def compare(self, memory):
        a, b = sorted(self.rng.choices(sorted(self.past), k=2))
        diff, before, after = memory.diff(a, b), self.past[a][0], self.past[b][0]
        assert (
            set(diff.added) == after.keys() - before.keys()
            and set(diff.deleted) == before.keys() - after.keys()
        )
        assert {id for id in before.keys() & after.keys() if before[id] != after[id]} <= set(
            diff.edited
        )

    def look(self, memory):
        id = self.some()[0]
        assert memory.get(id) == self.now[id] == memory.history(id)[-1][1] and sorted(
            memory.ids()
        ) == sorted(self.now)


def passes(where, passage):
    timely = lambda bound, earlier: (
        not bound or (passage.time and (moment(passage.time) < moment(bound)) == earlier)
    )
    tagged = set(where.all_tags) <= set(passage.tags) and (
        not where.any_tags or set(where.any_tags) & set(passage.tags)
    )
    return tagged and timely(where.after, False) and timely(where.before, True)


def same(hit, passage):
    return all(
        getattr(hit, field.name) == getattr(passage, field.name)
        for field in dataclasses.fields(Passage)
        if field.name != "origin"
    )


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(
    "seed", [1, 2, 3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 44))]
)
def test_a_memory_says_what_a_dict_says(tmp_path, monkeypatch, seed):
    rng = random.Random(seed)
    monkeypatch.setattr(upkeep, "UPKEEP", ((3, 8), (6, 1000)))
    monkeypatch.setattr(upkeep, "SCALAR_INDEX_FROM", rng.choice([20, 20_000]))
    monkeypatch.setattr("retrieval.search.live_index.SAVE_AFTER", rng.choice([0, 0.1]))
    monkeypatch.setattr(ranking, "FEW", rng.choice([0, 3, 2_000]))
    beside = Beside(tmp_path / "m", rng)
    for _ in range(STEPS):
        beside.step()
    assert beside.handles[0].verify() == []
