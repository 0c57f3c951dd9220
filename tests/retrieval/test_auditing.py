"""The deletion audit: what is left out is what a deletion would leave out, and each verdict is given where it is true."""

import pytest

from retrieval import Memory, Passage, RetrievalError
from retrieval.auditing import VERDICTS, Without, audit
from tests.retrieval.readers import Copier
from tests.retrieval.toy import encode

FACTS = {
    "oslo": "Oslo lies in Norway.", "oslo2": "The harbour town Oslo lies in Norway.", "rome": "Rome lies in Italy.",
    "lima": "Lima lies in Peru.", "rest": "Nothing of note.",
}  # fmt: skip


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


@pytest.mark.parametrize("question, ids, weights, verdict", [
    ("Rome lies in which land?", ["rome"], {}, "forgotten"),
    ("Rome lies in which land?", ["rome"], {"Rome": "Italy"}, "leak"),
    ("Oslo lies in which land?", ["oslo"], {}, "elsewhere"),
    ("Oslo lies in which land?", ["oslo", "oslo2"], {}, "forgotten"),
    ("Lima lies in which land?", ["rome"], {}, "elsewhere"),
    ("Bonn lies in which land?", ["rome"], {}, "unanswered"),
])  # fmt: skip
def test_a_verdict_says_where_the_answer_still_comes_from(facts, question, ids, weights, verdict):
    gold = {"Rome": "Italy", "Oslo": "Norway", "Lima": "Peru", "Bonn": "Germany"}[question.split()[0]]
    done = audit([question], ids, facts, Copier(weights), [gold])[0]
    assert done.verdict == verdict in VERDICTS and len(facts) == len(FACTS) and facts.version == 2
    assert (verdict != "elsewhere") or all(gold in hit.text and hit.id not in ids for hit in done.citations)


def test_a_reader_that_answers_without_a_source_when_it_sees_any_passage_is_an_artifact(facts):
    done = audit(["Rome lies in which land?"], ["rome"], facts, Copier({}, guess="Italy"))[0]
    assert (done.verdict, done.full, done.deleted, done.names) == ("artifact", "Italy", "Italy", ("Italy",))
    assert [hit.id for hit in done.full_citations] == ["rome"]


def test_a_passage_of_an_access_group_counts_as_a_source(facts):
    facts.add([Passage("secret", "Oslo lies in Norway too.", access="board")])
    done = audit(["Oslo lies in which land?"], ["oslo", "oslo2"], facts, Copier({}), ["Norway"])[0]
    assert done.verdict == "elsewhere" and [hit.id for hit in done.citations] == ["secret"]


def test_an_unknown_passage_or_none_is_refused_before_the_reader_runs(facts):
    for ids, message in ((["rome", "bonn"], "'bonn'"), ([], "no passages")):
        with pytest.raises(RetrievalError, match=message):
            audit(["Rome?"], ids, facts, None)
