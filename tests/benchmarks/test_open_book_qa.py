"""The benchmark of open-book answers, with a reader whose answers are known."""

import json

import pytest

from retrieval import Memory
from tests.benchmarks import open_book_qa
from tests.retrieval.readers import Copier
from tests.retrieval.toy import encode


@pytest.fixture
def squad(tmp_path):
    """A paragraph a town, of three passages: two short sentences, and a long one between."""
    articles = []
    for i in range(10):
        text = (
            f"town{i} lies in land{i}. Rain, "
            + "rain " * 60
            + f"falls. The river here is stream{i}."
        )
        asked = [(f"town{i} lies in?", f"land{i}"), ("Which river?", f"stream{i}")]
        qas = [
            {"question": q, "answers": [{"text": a, "answer_start": text.index(a)}] * 2}
            for q, a in asked
        ]
        articles.append(
            {"title": f"town{i}_town{i}", "paragraphs": [{"context": text, "qas": qas}]}
        )
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": articles}), encoding="utf-8")
    return path


def test_a_passage_lacks_its_answer_or_is_too_long(squad):
    passages, rows = open_book_qa.read(squad)
    assert len(passages) == 30 and len(rows) == 20
    texts = {passage.id: passage.text for passage in passages}
    assert all(row["answers"][0] in texts[row["passage"]] for row in rows)
    assert len({row["passage"] for row in rows}) == 20
    assert sum(len(text.split()) <= open_book_qa.WORDS for text in texts.values()) == 20
    assert passages[0].title == "town0 town0"
    assert open_book_qa.cut("One two. Three. " + "Word " * 60 + "end. Four.") == [
        (0, 15),
        (16, 320),
        (321, 326),
    ]


def test_a_score_is_not_that_of_known_answers(squad, tmp_path):
    passages, rows = open_book_qa.read(squad)
    rows = rows[::2]
    memory = Memory.create(tmp_path / "memory", encode)
    memory.add(passages)
    assert open_book_qa.recall(memory, rows) == {1: 1.0, 2: 1.0, 5: 1.0}
    reader = Copier({"town0": "land0"})
    closed = open_book_qa.answered(memory, rows, reader, "closed-book", 1)
    opened = open_book_qa.answered(memory, rows, reader, "in_context", 1)
    assert closed["texts"] == ["land0", *["nowhere"] * 9] and not any(closed["found"])
    assert opened["texts"] == [f"land{i}" for i in range(10)] and all(opened["found"])
    cells = open_book_qa.line("closed-book", rows, closed).split(" | ")
    assert cells[1].startswith("10.0% (1.8% to 40.4%)")  # Wilson, of 1 in 10
    assert cells[2].startswith("0.100 (") and cells[4:6] == ["–", "10.0% of 10"]
    assert "| 100.0% of 10 | – |" in open_book_qa.line("in_context", rows, opened)

    found = open_book_qa.audited(memory, rows, reader, "in_context", 1)["conditions"]
    right = {one["name"]: (one["right"], one["moved"]) for one in found}
    assert right["true"] == (10, True) and right["none"] == (1, True)
    assert right["random"] == (1, True) and right["counterfactual"] == (10, True)
