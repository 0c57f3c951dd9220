"""The audit of a score tells a reader that uses its memory from one that does not."""

import json

import pytest

from retrieval import Memory, Passage, RetrievalError, ask, audit
from retrieval.cli import add_reader_options, bare_parser
from retrieval.doors.door import named
from retrieval.passages import Hit
from retrieval.reading import reader as readers
from retrieval.reading import reliance
from retrieval.reading.reliance import CONDITIONS
from tests.retrieval.readers import Copier
from tests.retrieval.toy import encode

LANDS = {
    "Oslo": "Norway",
    "Rome": "Italy",
    "Lima": "Peru",
    "Bonn": "Germany",
    "Kyiv": "Ukraine",
    "Doha": "Qatar",
    "Riga": "Latvia",
}
ROWS = [{"question": f"{town} lies in which land?", "answers": [LANDS[town]]} for town in LANDS]


@pytest.fixture
def facts(tmp_path):
    made = Memory.create(tmp_path / "memory", encode)
    made.add([Passage(town, f"{town} lies in {land}.") for town, land in LANDS.items()])
    return made


def test_a_score_that_comes_from_the_memory_moves_with_it(facts):
    found = {c.name: c for c in reliance.reliance(ROWS, facts, Copier({}), k=1)}
    assert [*found] == [*CONDITIONS] and len(facts) == len(LANDS) and facts.version == 2
    assert {name: (c.right, c.asked) for name, c in found.items()} == {
        "true": (7, 7),
        "none": (0, 7),
        "shuffled": (0, 7),
        "random": (0, 7),
        "counterfactual": (7, 7),
    }
    assert all(c.moved for c in found.values()) and found["none"].changed == 7
    assert found["none"].p == pytest.approx(1 / 2**7) and found["true"].changed == 0


def test_a_score_that_comes_from_the_weights_does_not_move(facts):
    class Deaf(Copier):
        def answer(self, prompt):
            return self.weights[next(town for town in LANDS if f"Question: {town}" in prompt)]

    found = {c.name: c for c in reliance.reliance(ROWS, facts, Deaf(LANDS), k=1)}
    assert [c.name for c in found.values() if c.moved] == ["true"]
    assert {name: c.right for name, c in found.items()} == dict.fromkeys(CONDITIONS, 7) | {
        "counterfactual": 0
    }


def test_names_are_exchanged_as_whole_words_and_at_once():
    swaps = reliance.exchanged([["Niger"], ["Nigeria", "Federal Republic"], ["Niger"]], 0)
    assert swaps == {"Niger": "Nigeria", "Nigeria": "Niger", "Federal Republic": "Niger"}
    hit = Hit("a", "Niger borders Nigeria; Nigerians know.", "Niger", "", 0.5, 1)
    (new,) = reliance.rewritten(swaps)([hit])
    assert (new.title, new.text) == ("Nigeria", "Nigeria borders Niger; Nigerians know.")
    assert reliance.exchanged([["a"], ["a"]], 0) == {} and reliance.rewritten({})([hit]) == [hit]


def test_controls_keep_the_scores_of_what_they_replace(facts):
    (true,) = facts.search(["Oslo lies in which land?"], 3)
    for view in reliance.controls(facts).values():
        (hits,) = view.search(["Oslo lies in which land?"], 3)
        assert [hit.score for hit in hits] == [hit.score for hit in true]
        assert all(a.text != b.text for a, b in zip(hits, true, strict=True))


def test_too_few_passages_to_exchange_are_refused(tmp_path):
    memory = Memory.create(tmp_path / "m", encode)
    memory.add([Passage("a", "Oslo lies in Norway.")])
    with pytest.raises(RetrievalError, match="1 questions find 1 passages: expected at least two"):
        reliance.reliance(ROWS[:1], memory, Copier({}))
    with pytest.raises(RetrievalError, match="has 1 passages that everybody may read"):
        reliance.controls(memory)


def test_the_command_flags_what_does_not_move(facts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(readers, "door_of", lambda path, asked: readers.doors.named("in_context"))
    monkeypatch.setattr("retrieval.load_reader", lambda path, door: Copier({}), raising=False)
    monkeypatch.setattr(audit, "open_memory", lambda *_, **__: facts)
    file = tmp_path / "q.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = ["--memory=m", "--reader=r", f"--questions={file}", "-k=1"]
    assert audit.main(command) == 0
    said = capsys.readouterr().out
    assert "true: 7/7 right, 100.0%" in said and "DOES NOT MOVE" not in said
    file.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1]) + "\n")
    assert audit.main([*command, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["moved"] for row in rows] == [True, False, False, False, False]
    for wrong in (["x?", "--ids", "a"], []):
        given = command if wrong else command[:2]
        with pytest.raises(SystemExit):
            audit.main([*given, *wrong])


def test_the_options_of_a_reader_name_the_doors():
    options = bare_parser("x", "y")
    add_reader_options(options)
    assert options.parse_args(["--reader=r", "--door=replug,temperature=2"]).door == (
        "replug,temperature=2"
    )


def test_ask_says_how_much_of_the_passages_was_not_read(tmp_path, monkeypatch, capsys):
    memory = Memory.create(tmp_path / "m", encode)
    memory.add([Passage("a", "Oslo lies in Norway. " + "And more. " * 30)])
    asked = []
    monkeypatch.setattr(readers, "door_of", lambda *given: asked.append(given) or named("replug"))
    monkeypatch.setattr("retrieval.load_reader", lambda path, door: Copier({}), raising=False)
    monkeypatch.setattr(ask, "open_memory", lambda *_, **__: memory)
    command = ["--memory=m", "--reader=r", "--door=replug", "--floor=-1"]
    assert ask.main([*command, "Oslo lies in which land?"]) == 0
    said = capsys.readouterr().out
    assert asked == [("r", "replug")] and "open-book:   Norway" in said
    assert "tokens of the passages did not fit and were not read)" in said
