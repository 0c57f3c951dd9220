"""The deletion audit leaves out what a deletion would, and each verdict is correct."""

import pytest

from retrieval import Memory, Passage, RetrievalError
from retrieval import audit as command
from retrieval.doors.door import named
from retrieval.reading.auditing import VERDICTS, Without, audit, same_answer
from retrieval.reading.closure import Related, closure
from tests.retrieval.readers import Copier
from tests.retrieval.toy import encode

FACTS = {
    "oslo": "Oslo lies in Norway.",
    "oslo2": "The harbour town Oslo lies in Norway.",
    "rome": "Rome lies in Italy.",
    "lima": "Lima lies in Peru.",
    "rest": "Nothing of note.",
}


@pytest.fixture
def facts(tmp_path):
    made = Memory.create(tmp_path / "memory", encode)
    made.add([Passage(id, text) for id, text in FACTS.items()])
    return made


def test_what_is_found_without_passages_is_what_is_found_after_their_deletion(memory):
    questions, gone = [f"town{i} lies in land{i}" for i in range(10)], ["p3", "p4", "p9"]
    view = Without(memory, gone).search(questions, 4)
    memory.delete(gone)
    assert [[(hit.id, hit.text) for hit in hits] for hits in view] == [
        [(hit.id, hit.text) for hit in hits] for hits in memory.search(questions, 4)
    ]


@pytest.mark.parametrize(
    "question, ids, weights, verdict",
    [
        ("Rome lies in which land?", ["rome"], {}, "forgotten"),
        ("Rome lies in which land?", ["rome"], {"Rome": "Italy"}, "leak"),
        ("Oslo lies in which land?", ["oslo"], {}, "elsewhere"),
        ("Oslo lies in which land?", ["oslo", "oslo2"], {}, "forgotten"),
        ("Lima lies in which land?", ["rome"], {}, "elsewhere"),
        ("Bonn lies in which land?", ["rome"], {}, "unanswered"),
    ],
)
def test_a_verdict_says_where_the_answer_still_comes_from(facts, question, ids, weights, verdict):
    gold = {"Rome": "Italy", "Oslo": "Norway", "Lima": "Peru", "Bonn": "Germany"}[
        question.split()[0]
    ]
    done = audit([question], ids, facts, Copier(weights), [gold])[0]
    assert done.verdict == verdict in VERDICTS and len(facts) == len(FACTS) and facts.version == 2
    assert (verdict != "elsewhere") or all(
        gold in hit.text and hit.id not in ids for hit in done.citations
    )


def test_a_reader_that_answers_without_a_source_when_it_sees_any_passage_is_an_artifact(facts):
    done = audit(["Rome lies in which land?"], ["rome"], facts, Copier({}, guess="Italy"))[0]
    assert (done.verdict, done.full, done.deleted, done.names) == ("artifact", "Italy", "Italy", ())
    assert [hit.id for hit in done.full_citations] == ["rome"]


@pytest.mark.parametrize(
    "question, ids, weights, verdict",
    [
        ("Rome lies in which land?", ["rome"], {}, "forgotten"),
        ("Rome lies in which land?", ["rome"], {"Rome": "Rome lies in Italy, of course."}, "leak"),
        (
            "Rome lies in which land?",
            ["rome"],
            {"Rome": "I do not know whether it is Italy"},
            "forgotten",
        ),
        ("Rome lies in which land?", ["rome"], {"Rome": "Rome lies in Spain"}, "forgotten"),
        ("Oslo lies in which land?", ["oslo"], {}, "elsewhere"),
        ("Bonn lies in which land?", ["rome"], {}, "unanswered"),
        ("Bonn lies in which land?", ["rome"], {"Bonn": "I don't know."}, "unanswered"),
    ],
)
def test_without_names_the_answers_before_and_after_are_compared(
    facts, question, ids, weights, verdict
):
    assert audit([question], ids, facts, Copier(weights))[0].verdict == verdict


def test_weights_that_know_what_the_whole_memory_does_not_say_are_a_leak(facts):
    class Misled(Copier):
        def answer(self, prompt):
            return "Norway" if "[1]" in prompt else "Italy"

    assert (
        audit(["Rome lies in which land?"], ["rome"], facts, Misled({}), ["Italy"])[0].verdict
        == "leak"
    )


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("Paris", "The capital of France is Paris.", True),
        ("Paris, France", "Paris", True),
        ("Paris", "Lyon", False),
        ("1889", "It was built in 1889", True),
        ("1889", "It was built in 1887", False),
        ("Yes", "No", False),
        ("Yes.", "yes", True),
        ("France", "It is in France", True),
        ("", "", False),
        ("unknown", "unknown", False),
        ("パリ", "パリ", True),
    ],
)
def test_which_answers_are_the_same(one, other, same):
    assert (
        same_answer("What is the capital of France?", one, other)
        is same
        is same_answer("What is the capital of France?", other, one)
    )


def test_a_passage_of_an_access_group_counts_as_a_source(facts):
    facts.add([Passage("secret", "Oslo lies in Norway too.", access="board")])
    done = audit(["Oslo lies in which land?"], ["oslo", "oslo2"], facts, Copier({}), ["Norway"])[0]
    assert done.verdict == "elsewhere" and [hit.id for hit in done.citations] == ["secret"]


def test_an_unknown_passage_or_none_is_refused_before_the_reader_runs(facts):
    for ids, message in ((["rome", "bonn"], "'bonn'"), ([], "no passages")):
        with pytest.raises(RetrievalError, match=message):
            audit(["Rome?"], ids, facts, None)


def test_a_closure_finds_near_duplicates_aliases_and_the_same_fact_and_nothing_else(facts):
    long = "Kyiv is a large old city on the river Dnipro with many golden domes and bridges"
    facts.add(
        [
            Passage("kyiv", f"{long} today.", title="Kyiv"),
            Passage("copy", f"{long} now.", title="Kiev", access="board"),
            Passage("alias", "A port.", title="Kiev"),
            Passage("far", "Milan lies in Italy.", title="Milan"),
        ]
    )
    assert closure(["kyiv"], facts) == [
        Related("copy", "kyiv", "near duplicate"),
        Related("alias", "copy", "alias"),
    ]
    question = "In which land lies Oslo?"
    assert closure(["oslo"], facts, [question]) == []
    assert closure(["oslo"], facts, [question], ["Norway"]) == [
        Related("oslo2", question, "same fact")
    ]
    assert closure(["rome"], facts, ["In which land lies Rome?"], ["Italy"]) == []


def test_the_command_leaves_out_the_closure_too(facts, monkeypatch, capsys):
    monkeypatch.setattr("retrieval.reading.reader.door_of", lambda *_: named("in_context"))
    monkeypatch.setattr("retrieval.load_reader", lambda *_: Copier({}), raising=False)
    monkeypatch.setattr(command, "open_memory", lambda *_, **__: facts)
    asked = ["--memory=m", "--reader=r", "Oslo lies near which Oslo?", "--ids", "oslo"]
    for more, verdict in (([], "elsewhere"), (["--closure"], "forgotten")):
        assert command.main([*asked, "--answer", "Norway", *more]) == 0
        said = capsys.readouterr().out
        assert f"  {verdict}: " in said
    assert "also left out: oslo2 (same fact of Oslo lies near which Oslo?)" in said
