"""retrieval.evaluate scores its questions and rejects bad question files before loading a model."""

import json

import pytest

from retrieval import Answer, Hit, RetrievalError, evaluate
from retrieval.reading import answering, reader


def test_a_row_keeps_its_fields_and_gains_both_answers_and_the_citations():
    hit = Hit("p", "Bagheria is in Italy.", "", "", 0.9, 2)
    row = evaluate.score(
        {"question": "Where?", "answers": ["Italy"], "bin": 3},
        Answer("Where?", "Italy.", (hit,), "In Spain, not France"),
    )
    assert row["bin"] == 3 and (
        row["closed_correct"],
        row["open_correct"],
        row["open_exact"],
        row["closed_exact"],
    ) == (
        False,
        True,
        True,
        False,
    )
    assert row["citations"][0]["id"] == "p" and row["citations"][0]["score"] == 0.9


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"question": "Where?"}',
        '{"question": "Where?", "answers": []}',
        '{"question": "Where?", "answers": "Italy"}',
        '{"question": "Where?", "answers": [1]}',
        '{"question": "Where?", "answers": ["a"], "others": "b"}',
        '{"question": 1, "answers": ["a"]}',
        '{"question": "\xff"}',
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path, line):
    (tmp_path / "q.jsonl").write_text(
        '{"question": "Where?", "answers": ["a"]}\n' + line + "\n", encoding="latin-1"
    )
    with pytest.raises(ValueError, match=r"q\.jsonl, line 2"):
        evaluate.read_questions(tmp_path / "q.jsonl")


def test_a_question_may_hold_any_character_that_splits_lines_elsewhere(tmp_path):
    rows = [{"question": "One\u2028or\x0btwo\x85lines?", "answers": ["one"]}]
    (tmp_path / "q.jsonl").write_text(json.dumps(rows[0], ensure_ascii=False), encoding="utf-8")
    assert evaluate.read_questions(tmp_path / "q.jsonl") == rows


def test_an_empty_question_file_is_an_error(tmp_path, capsys):
    with pytest.raises(RetrievalError, match=r"--questions=.*none\.jsonl is no file"):
        evaluate.read_questions(tmp_path / "none.jsonl")
    (tmp_path / "q.jsonl").write_text("")
    assert (
        evaluate.main(
            [
                f"--memory={tmp_path}",
                "--reader=none",
                f"--questions={tmp_path}/q.jsonl",
                f"--output={tmp_path}/a",
            ]
        )
        == 2
    )
    assert "holds no questions" in capsys.readouterr().err
    (tmp_path / "q.jsonl").write_text('{"question": "Where?", "answers": ["a"]}')
    assert (
        evaluate.main(
            [
                f"--memory={tmp_path}",
                "--reader=none",
                f"--questions={tmp_path}/q.jsonl",
                f"--output={tmp_path}",
            ]
        )
        == 2
    )
    assert "is a folder" in capsys.readouterr().err, "before a model is loaded"


def test_the_command_writes_a_row_a_question_and_says_how_many_were_right(
    tmp_path, monkeypatch, capsys
):
    def fake_answer(questions, memory, model, k, max_new_tokens, on_batch, door, **_):
        assert (memory, model, k, max_new_tokens, door) == ("memory", "model", 2, 8, "door")
        on_batch(4)
        return [Answer(q, "In Italy", (), "In Spain", known=q == "A?") for q in questions]

    monkeypatch.setattr(answering, "answer", fake_answer)
    monkeypatch.setattr(reader, "door_of", lambda path, asked: "door")
    monkeypatch.setattr(reader, "load_reader", lambda path, door: "model")
    monkeypatch.setattr(evaluate, "open_memory", lambda *_, **__: "memory")
    (tmp_path / "q.jsonl").write_text(
        "".join(
            json.dumps({"question": q, "answers": [a]}) + "\n"
            for q, a in (("A?", "Italy"), ("B?", "Spain"))
        )
    )
    arguments = [
        f"--memory={tmp_path}",
        "--reader=x",
        f"--questions={tmp_path}/q.jsonl",
        f"--output={tmp_path}/a.jsonl",
        "-k=2",
    ]
    assert evaluate.main([*arguments, "--max-new-tokens=8"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(r["closed_correct"], r["open_correct"]) for r in rows] == [
        (False, True),
        (True, False),
    ]
    assert [row["known"] for row in rows] == [True, False]
    said, progress = capsys.readouterr()
    assert "says that it knows: 1/2, 50.0%; 1 of these are right" in said
    assert (
        "closed-book: 1/2 right" in said
        and "open-book: 1/2 right" in said
        and "4/4 answers" in progress
    )
    assert evaluate.main([*arguments, "--max-new-tokens=8", "--json"]) == 0
    closed, opened = map(json.loads, capsys.readouterr().out.splitlines())
    assert "known" not in closed and (
        opened["known"],
        opened["known_right"],
        opened["questions"],
    ) == (1, 1, 2)
