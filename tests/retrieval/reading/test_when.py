"""When to retrieve: the measures, and which questions have passages read for them."""

import json

import numpy as np
import pytest

from retrieval import Passage, answer, evaluate
from retrieval.doors.door import named
from retrieval.doors.in_context import build_prompt
from retrieval.errors import RetrievalError
from retrieval.reading import reader as readers
from retrieval.reading.when import Confidence, Draft, Popularity, drafts, when_named
from tests.retrieval.doors.readers import extractor, next_log_probs, reader
from tests.retrieval.readers import Copier

pytestmark = pytest.mark.usefixtures("compiled_once")
QUESTIONS = ["Where is town3?", "Where does town5 lie, and why?"]


@pytest.fixture(scope="module")
def begun():
    return drafts(named("in_context"), reader("gpt2"), QUESTIONS, 5)


def test_confidence_is_the_likelihood_of_a_token_of_the_closed_book_answer(begun):
    made = reader("gpt2")
    for draft in begun:
        row = build_prompt(made.tokenizer, draft.question, (), 500).tokens
        tokens = [int(token) for token in draft.text.split()]
        each = [next_log_probs(made, row, tokens[:i])[token] for i, token in enumerate(tokens)]
        assert len(tokens) == 5
        assert draft.confidence == pytest.approx(np.exp(np.mean(each)), rel=1e-4)
    assert begun[0].confidence != begun[1].confidence


@pytest.mark.parametrize("door", ["in_context", "replug"])
def test_only_questions_below_the_threshold_read_passages(memory, begun, door):
    made, door = reader("gpt2"), named(door)
    asked = lambda when: answer(QUESTIONS, memory, made, max_new_tokens=5, door=door, when=when)
    both, none = asked(None), asked(Confidence(0.0))
    assert asked(Confidence(1.0)) == both
    for one, alone in zip(none, both, strict=True):
        assert one.text == one.closed_book_text == alone.closed_book_text
        assert one.known and not one.retrieved and not one.citations
    low, high = sorted(draft.confidence for draft in begun)
    mixed = asked(Confidence((low + high) / 2))
    expected = [b if d.confidence == low else n for b, n, d in zip(both, none, begun, strict=True)]
    of = lambda given: [(o.text, [h.id for h in o.citations], o.known, o.retrieved) for o in given]
    assert of(mixed) == of(expected) and {one.retrieved for one in mixed} == {True, False}


def test_popularity_counts_passages_or_is_a_field(memory):
    memory.add(
        [
            Passage("a", "town3 has a mayor", metadata={"n": "7"}),
            Passage("b", "who lives in town3"),
        ]
    )
    asked = [Draft(f"town{i} lies in land{i}", "", 0.0, {"seen": 10 * i}) for i in (3, 5)]
    assert Popularity(below=10).measures(asked, memory) == [3, 1]
    assert Popularity(below=2).measures(asked, memory) == [2, 1]  # it counts no further
    assert Popularity(below=2).read([2, 1]) == [False, True]
    assert Popularity(below=40, field="n").measures(asked, memory) == [3, 5]  # of best passages
    assert Popularity(below=40, field="seen").measures(asked, memory) == [30, 50]
    assert Popularity(below=40, field="seen").read([30, 50]) == [True, False]
    with pytest.raises(RetrievalError, match="best passage have None; expected a number"):
        Popularity(field="views").measures(asked, memory)


@pytest.mark.parametrize(
    "text, said",
    [
        ("confidense", "--when='confidense' is unknown .did you mean 'confidence'"),
        ("confidence,above=1", "'above=1' is no option of confidence"),
        ("confidence,below=1.5", "below=1.5: expected a probability, 0 to 1"),
        ("popularity,below=many", "below='many': expected a number"),
        ("no.such:When", "cannot be used"),
    ],
)
def test_a_wrong_condition_is_named(text, said):
    with pytest.raises(ValueError, match=said):
        when_named(text)
    assert when_named("") is None
    assert when_named("popularity,below=3,field=n") == Popularity(3, "n")


def test_an_encoder_has_no_closed_book_answer_to_judge(memory):
    with pytest.raises(RetrievalError, match="answer spans writes no answer without passages"):
        answer(QUESTIONS, memory, extractor("question_answering"), when=Confidence())
    with pytest.raises(RetrievalError, match="--when: this reader writes no answer"):
        answer(QUESTIONS, memory, Copier({}), when=Confidence())


def test_the_command_reports_the_share_that_was_skipped(memory, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(readers, "door_of", lambda path, asked: named("in_context"))
    monkeypatch.setattr(readers, "load_reader", lambda path, door: reader("gpt2"))
    monkeypatch.setattr(evaluate, "open_memory", lambda *_, **__: memory)
    rows = [{"question": q, "answers": ["a"], "seen": i} for i, q in enumerate(QUESTIONS)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--memory=m", "--reader=r", f"--questions={tmp_path}/q.jsonl"]
    command += [f"--output={tmp_path}/a.jsonl", "--max-new-tokens=5"]
    assert evaluate.main([*command, "--when=popularity,below=1,field=seen"]) == 0
    said, progress = capsys.readouterr()
    assert "--when=popularity,below=1,field=seen: 1/2, 50.0%; 0 of these are right" in said
    assert "4/4 answers" in progress
    written = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["retrieved"] for row in written] == [True, False]
    assert [row["measure"] for row in written] == [0, 1]
    lines = [[*map(str.strip, line.split("|"))][1:3] for line in said.splitlines()]
    assert [line for line in lines if line and line[0] in ("0", "1")] == [
        ["0", "0.0%"],
        ["1", "50.0%"],
    ]
    assert evaluate.main([*command, "--by=seen"]) == 0
    said = capsys.readouterr().out
    assert "| 0 to 0 | 1 " in said and "| 1 to 1 | 1 " in said and "below" not in said
    assert evaluate.main([*command, "--by=views"]) == 2
    assert "--by=views: the question 'Where is town3?' has None" in capsys.readouterr().err
    assert evaluate.main([*command, "--when=confidence,below=2"]) == 2
    assert "expected a probability" in capsys.readouterr().err
