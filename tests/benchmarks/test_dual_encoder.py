"""The benchmark of a trained dual encoder: what is held out, and its figures."""

import json

import numpy as np
import pytest

from tests.benchmarks import dual_encoder
from tests.benchmarks.open_book_qa import kept
from tests.retrieval.models import save_encoder


def test_a_figure_or_its_change_is_not_that_of_known_ranks():
    found, base = np.array([1, 1 / 2, 1 / 6, 0]), np.array([1, 1, 1, 0])
    cells = dual_encoder.line("name", found, base, [0, 0, 1, 1], "7").split(" | ")
    shown = [cell.partition(" ")[0] for cell in cells[1:7]]
    assert shown == ["0.250", "0.500", "0.417", "-0.500", "-0.250", "-0.333"]
    # Of two articles, those drawn are the first, the second or both.
    assert cells[1] == "0.250 (0.000 to 0.500)" and cells[4] == "-0.500 (-0.500 to -0.500)"


def test_a_training_that_was_stopped_is_kept_as_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr(dual_encoder.loop, "train", lambda c, workdir: 143)
    with pytest.raises(SystemExit, match="143"):
        kept(tmp_path / "run.json", lambda: dual_encoder.trained(None, tmp_path))
    assert not (tmp_path / "run.json").exists()


@pytest.mark.slow
def test_an_encoder_learns_a_question_that_it_is_asked(tmp_path, capsys):
    pytest.importorskip("torch")
    articles = []
    for i in range(6):
        text = f"the river of town {'abcdef'[i]} is wide. it is in land {'uvwxyz'[i]}."
        answers = [{"text": f"land {'uvwxyz'[i]}", "answer_start": text.index("land")}]
        qas = [
            {"question": f"where is town {'abcdef'[i]}, {at}?", "answers": answers}
            for at in range(6)
        ]
        articles.append({"title": f"town {i}", "paragraphs": [{"context": text, "qas": qas}]})
    (tmp_path / "squad.json").write_text(json.dumps({"data": articles}), encoding="utf-8")
    save_encoder(tmp_path / "encoder")
    told = [f"--data={tmp_path / 'squad.json'}", f"--encoder={tmp_path / 'encoder'}"]
    dual_encoder.main([*told, f"--workdir={tmp_path / 'work'}", "--steps=2"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0][2:] for line in lines[1:]] == [
        "BM25",
        "vectors of the start",
        "the same and BM25",
        "in-batch negatives",
        "in-batch negatives, and BM25",
        "a mined negative",
        "a mined negative, and BM25",
    ]
    for seed in range(dual_encoder.PARTS):
        part = tmp_path / f"work/part{seed}"
        rows = [json.loads(line) for line in (part / "mined.jsonl").read_text().splitlines()]
        texts = " ".join(json.dumps(row) for row in rows)
        assert {f"town {i}" in texts for i in (seed, seed + 3)} == {False}
        assert len(rows) == 24
        assert all(
            len(json.loads((part / f"{n}.after.json").read_text())["dense"]) == 12 for n in (0, 1)
        )
