"""Hard negatives: what is kept, what is drawn at random, and what the task reads of it."""

import json

import pytest

from lm.data.records import labels as labelled
from retrieval import mine_negatives


@pytest.fixture
def mined(tmp_path, memory, monkeypatch, capsys):
    """Run the command on pairs with the fixture's memory: (code, rows or None, captured)."""
    monkeypatch.setattr(mine_negatives, "open_memory", lambda path, encoder: memory)

    def run(pairs, *options, output="out.jsonl"):
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
        at = tmp_path / output
        code = mine_negatives.main(
            [
                "--memory=m",
                f"--pairs={tmp_path}/pairs.jsonl",
                f"--output={at}",
                *options,
            ]
        )
        rows = [json.loads(line) for line in at.read_text().splitlines()] if at.exists() else None
        return code, rows, capsys.readouterr()

    return run


ASKED = {
    "question": "in which land lies town3",
    "context": "town3 lies in land3",
    "answers": {"text": ["land3"], "answer_start": [14]},
}


def test_a_passage_with_the_answer_or_the_positive_itself_is_a_negative(mined, memory):
    memory.edit("p4", text="town4 lies near land3")
    code, rows, _ = mined([ASKED], "-n", "8")
    assert code == 0 and rows is not None
    (row,) = rows
    assert (row["text"], row["positive"]) == (ASKED["question"], ASKED["context"])
    assert len(set(row["negatives"])) == 8
    assert not any("land3" in text for text in row["negatives"])
    assert all(text.startswith("town") and ". town" in text for text in row["negatives"])
    record = labelled.group(row, "here", "text", "positive", "negatives", 8)
    assert record.texts == (row["text"], row["positive"], *row["negatives"])


def test_the_best_match_by_words_comes_later(mined):
    pairs = [ASKED | {"question": "does town7 lie beside town3"}]
    _, rows, _ = mined(pairs)
    assert rows[0]["negatives"] == ["town7. town7 lies in land7"]


def test_too_few_passages_are_not_made_up_for_at_random(mined, capsys):
    pairs = [ASKED | {"question": "town7"}]  # one passage has this word
    code, rows, said = mined(pairs, "-n", "3", "--depth=3")
    assert code == 0 and len(rows[0]["negatives"]) == 3
    assert rows[0]["negatives"][0].startswith("town7") and "2 negatives were drawn" in said.out
    again = mined(pairs, "-n", "3", "--depth=3", output="again.jsonl")[1]
    assert again == rows


@pytest.mark.parametrize(
    "pairs, options, said",
    [
        ([{"question": "", "context": "x"}], (), "line 1: .*'question' is ''"),
        ([{"question": "a"}], (), "'context' is None"),
        ([ASKED], ("-n", "0"), "-n 0"),
        (
            [ASKED],
            (
                "-n",
                "10",
            ),
            "no question has 10 passages",
        ),
        ([ASKED], ("-n", "9", "--depth=3"), "--depth=3"),
    ],
)
def test_bad_pairs_or_options_write_a_file(mined, pairs, options, said):
    try:
        code, rows, captured = mined(pairs, *options)
    except SystemExit as stopped:
        code, rows, captured = stopped.code, None, None
    assert code == 2 and not rows
    if captured is not None:
        import re

        assert re.search(said, captured.err)


def test_an_output_that_exists_is_replaced_unasked(mined, tmp_path):
    (tmp_path / "out.jsonl").write_text('{"kept": 1}\n')
    code, rows, said = mined([ASKED])
    assert code == 2 and rows == [{"kept": 1}] and "exists" in said.err
    assert mined([ASKED], "--replace")[1] != rows
