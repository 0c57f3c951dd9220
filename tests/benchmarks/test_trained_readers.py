"""The benchmark of trained readers: its questions, what is held out, and its tables."""

import json

import pytest

from launch.quickstart import world
from tests.benchmarks import trained_readers
from tests.retrieval.models import save_encoder

COUNTRIES = {
    "AA": {"name": "Aland", "continentcode": "EU"},
    "US": {"name": "United States", "continentcode": "NA"},
}


def test_a_question_is_not_answered_by_its_passage():
    cities = [
        world.City(1, "Ruhr", "AA", "AA.1", 90_000, "Europe/Ruhr", 1.0, 2.0),
        world.City(2, "Aland City", "AA", "AA.2", 20_000, "Europe/Ruhr", 1.0, 2.0),
        world.City(3, "Rome", "US", "Georgia", 35_000, "America/New_York", 1.0, 2.0),
    ]
    texts = {f"city-{city.id}": world.city_passage(city, COUNTRIES).text for city in cities}
    rows = trained_readers.facts(cities, COUNTRIES)
    assert [row["passage"] for row in rows] == ["city-1"] * 3 + ["city-3"] * 3
    assert [row["bin"] for row in rows] == [4] * 3 + [2] * 3
    assert all(row["answers"][0] in texts[row["passage"]] for row in rows)
    assert rows[4]["answers"] == ["35,000"] and "USA" in rows[3]["answers"]

    text = (
        "Of the lobsters , the crew of Ruhr caught 1 @,@ 250 in a night of calm weather , "
        "and sold most of them in the market of Aland on the day after that one ."
    )
    passages, rows = trained_readers.made([" = Fishing = ", "", text, "Too short ."], 9)
    assert len(rows) == len(passages) == 1 and passages[0].title == "Fishing"
    assert passages[0].text == trained_readers.plain(text) and "1,250" in passages[0].text
    gone = rows[0]["answers"][0]
    assert gone in {"Ruhr", "1,250", "Aland"} and gone not in rows[0]["question"]
    assert trained_readers.made([text] * 3, 2)[0][-1].id == "t1"
    passages, rows = trained_readers.made([text], 9, clauses=3)
    answers = [row["answers"][0] for row in rows]
    assert sorted(answers) == ["1,250", "Aland", "Ruhr"]
    near = {row["answers"][0]: passage.text for row, passage in zip(rows, passages, strict=True)}
    assert near["1,250"] == "of Ruhr caught 1,250 in a night"


def test_a_table_is_not_of_all_parts(capsys):
    parts = [
        {"texts": ["Rome"], "found": [True], "cpu_seconds": 2},
        {"texts": ["Bonn"], "found": [False], "cpu_seconds": 3},
    ]
    rows = [{"answers": ["Rome"]}, {"answers": ["Bern"]}]
    got = {"fid": trained_readers.joined(parts)}
    trained_readers.report(rows, got, {"first": [0], "second": [1]})
    said = capsys.readouterr().out.splitlines()
    assert said[2].startswith("| fid | 50.0% (") and said[2].endswith(
        "| 100.0% of 1 | 0.0% of 1 | 5 |"
    )
    assert said[3].startswith("| first | fid | 100.0% (") and "| 0.0% (" in said[4]
    one = {"name": "true", "right": 3, "asked": 4, "p": 0.0}
    trained_readers.audits([{"conditions": [one], "cpu_seconds": 1}] * 2)
    assert "| true | 6 of 8 | 40.9% to 92.9% | 0, 0 |" in capsys.readouterr().out  # Wilson


@pytest.mark.slow
def test_a_reader_learns_what_it_is_asked_or_closed_book_with_passages(
    tmp_path, monkeypatch, capsys
):
    pytest.importorskip("torch")
    paragraphs = []
    for i in "abcdef":
        text = f"the river of town {i} is long. Its land is {i}{i}."
        qas = [{"question": f"which land has town {i}?", "answers": []}]
        qas[0]["answers"] = [{"text": f"{i}{i}", "answer_start": text.index(f"{i}{i}")}]
        paragraphs.append({"title": f"town {i}", "paragraphs": [{"context": text, "qas": qas}]})
    (tmp_path / "squad.json").write_text(json.dumps({"data": paragraphs}), encoding="utf-8")
    line = "The crew of Ruhr caught 250 in a night of calm weather and sold most of them in Aland"
    (tmp_path / "text.txt").write_text(f" = Fish = \n{line} for much .\n" * 3, encoding="utf-8")
    save_encoder(tmp_path / "encoder")
    small = dict(d_model=16, n_layers=1, encoder_layers=1, n_heads=2, n_kv_heads=2, d_ff=16)
    monkeypatch.setattr(trained_readers, "SHAPE", trained_readers.SHAPE | small | {"head_dim": 8})
    monkeypatch.setattr(trained_readers, "PARTS", 2)
    monkeypatch.setattr(trained_readers, "BATCH", 8)
    work = tmp_path / "work"
    told = [
        f"--{name}={tmp_path / file}"
        for name, file in (
            ("data", "squad.json"),
            ("text", "text.txt"),
            ("encoder", "encoder"),
            ("workdir", "work"),
        )
    ]
    told += [
        "--only=squad",
        "--clause-steps=1",
        "--text-steps=1",
        "--steps=1",
        "--doors",
        "closed-book",
        "fid",
    ]
    trained_readers.main(told)
    tables = lambda text: [line for line in text.splitlines() if line.startswith("| ")]
    said = capsys.readouterr().out
    assert "3 questions from text, " in said and "9 questions from clauses, " in said
    for part in range(2):
        learned = {
            json.loads(row)["question"]
            for row in (work / f"squad/part{part}/fid.jsonl").read_text().splitlines()
        }
        assert learned == {f"which land has town {i}?" for i in "abcdef"[1 - part :: 2]}
        found = {
            door: json.loads((work / f"squad/part{part}/{door}.answers.json").read_text())["found"]
            for door in ("closed-book", "fid")
        }
        assert found["closed-book"] == [False] * 3 and len(found["fid"]) == 3
        counts = json.loads((work / f"squad/part{part}/fid.audit.json").read_text())["conditions"]
        assert [one["asked"] for one in counts[:4]] == [3] * 4
    before = (work / "squad/part0/fid/metrics.jsonl").stat().st_mtime_ns
    trained_readers.main(told)
    assert tables(capsys.readouterr().out) == tables(said)  # from what was kept
    assert (work / "squad/part0/fid/metrics.jsonl").stat().st_mtime_ns == before
