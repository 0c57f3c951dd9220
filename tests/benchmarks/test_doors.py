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


def test_a_door_is_compared_with_the_closed_book_of_another_reader(monkeypatch, capsys):
    readers = types.SimpleNamespace(tokenizer=None), types.SimpleNamespace()
    costs = {("in_context", 0): (1, 3), ("replug", 2): (2, 6), ("fid", 2): (1, 20)}

    def cost(reader, door, asked, new, rounds):
        assert reader.stop_tokens == [] and len(asked) == 3
        first, total = costs[door.name, len(asked[0].hits)]
        return (
            (first, total) if reader is readers[0] else (first, 10 if not asked[0].hits else total)
        )

    monkeypatch.setattr(doors.Reader, "from_hf", lambda path: readers[0])
    monkeypatch.setattr(doors, "fusing", lambda tokenizer: readers[1])
    monkeypatch.setattr(doors, "cost", cost)
    monkeypatch.setattr(doors, "prompted", lambda reader, door, asked, new: 30)
    doors.main(["--reader=x", "--doors", "fid", "replug", "--questions=3", "--new=5"])
    lines = [
        [*map(str.strip, line.split("|"))][1:-1] for line in capsys.readouterr().out.split("\n")
    ]
    assert lines[:4] == [
        ["closed-book", "30", "30", "6.0", "1.00"],
        ["replug", "30", "15", "3.0", "2.00"],
        ["closed-book, BART-base", "30", "30", "1.3", "1.00"],
        ["fid", "30", "30", "0.6", "2.00"],
    ]
