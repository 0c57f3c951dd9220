"""The cost benchmark of the doors at the input."""

import types

from retrieval.doors.door import Asked, named
from tests.benchmarks import doors


def test_passages_are_shared_or_rounds_are_not_measured(monkeypatch):
    hits = doors.passages(6)
    assert len({hit.text for hit in hits}) == 6
    asked = [Asked("What?", tuple(hits[:2])), Asked("Why?", tuple(hits[2:4]))]
    seen, clock = [], iter(range(100))

    def answers(door, reader, asked, find, tokens):
        seen.append(tokens)
        assert find(["a", "b"]) == [hits[:2], hits[2:4]]

    monkeypatch.setattr(doors.running, "answers", answers)
    monkeypatch.setattr(doors, "time", types.SimpleNamespace(process_time=lambda: next(clock)))
    assert doors.cost(None, named("in_context"), asked, 8, 2) == (1.0, 1.0)
    assert seen == [1, 8] * 3
