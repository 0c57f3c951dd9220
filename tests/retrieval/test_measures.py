"""Ranking metrics against trec_eval's formulas; the evaluation and export commands."""

import dataclasses
import json
import math
import random
import sys

import pytest

from retrieval import (
    Filter,
    Memory,
    Passage,
    RetrievalError,
    build,
    cli,
    evaluate_search,
    export,
    measures,
)
from retrieval.ingest import rows
from retrieval.ingest.documents import Report
from retrieval.ingest.files import File
from retrieval.search import __main__ as search
from tests.retrieval.models import save_encoder
from tests.retrieval.toy import encode


def test_measures_are_those_of_trec_eval():
    """Brute force by the definitions of trec_eval.

    See its m_recall.c, m_ndcg_cut.c, m_map.c and m_recip_rank.c.
    """
    rng = random.Random(0)
    for _ in range(200):
        names = [f"d{i}" for i in range(rng.randint(1, 12))]
        judged = {name: float(rng.randint(-1, 3)) for name in names if rng.random() < 0.7} | {
            "relevant": 1.0
        }
        ranked = rng.sample([*names, "relevant"], rng.randint(0, len(names) + 1))
        relevant, k = {name for name, grade in judged.items() if grade > 0}, rng.randint(1, 12)
        assert measures.recall(ranked, judged, k) == pytest.approx(
            sum(id in relevant for id in ranked[:k]) / len(relevant)
        )
        dcg = best = precision = 0.0
        for i in range(k):
            if i < len(ranked) and ranked[i] in relevant:
                dcg += judged[ranked[i]] / math.log2(i + 2)
            if i < len(relevant):
                best += sorted((judged[id] for id in relevant), reverse=True)[i] / math.log2(i + 2)
        assert measures.ndcg(ranked, judged, k) == pytest.approx(dcg / best)
        for i, id in enumerate(ranked):
            if id in relevant:
                precision += sum(other in relevant for other in ranked[: i + 1]) / (i + 1)
        assert measures.average_precision(ranked, judged) == pytest.approx(
            precision / len(relevant)
        )
        first = [i for i, id in enumerate(ranked) if id in relevant]
        assert measures.reciprocal_rank(ranked, judged) == pytest.approx(
            1 / (first[0] + 1) if first else 0
        )


@pytest.fixture
def place(tmp_path, monkeypatch):
    memory = Memory.create(tmp_path / "m", encode)
    texts = {"d1": "sun moon", "d1:2": "moon moon", "d2": "sun", "d3": "stars", "q1": "sun sun"}
    memory.add(
        [Passage(id, text, metadata={"n": id[-1]}, tags=("t",)) for id, text in texts.items()]
    )
    opened = lambda path, encoder, as_of=None: Memory.open(path, encode)
    for command in (evaluate_search, search):
        monkeypatch.setattr(command, "open_memory", opened)
    (tmp_path / "qrels").mkdir()
    (tmp_path / "queries.jsonl").write_text(
        '{"_id": "q1", "text": "sun"}\n{"_id": "q2", "text": "moon stars"}\n{"_id": "q3", '
        '"text": "x"}\n'
    )
    (tmp_path / "qrels/test.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td3\t2\nq2\td1\t1\nq3\td1\t0\n"
    )
    return tmp_path


def test_search_is_measured_over_documents_and_without_the_query_itself(place, capsys):
    arguments = [
        f"--memory={place / 'm'}",
        f"--beir={place}",
        "--mode=lexical",
        "-k",
        "1",
        "2",
        "--depth=9",
        "--json",
    ]
    assert evaluate_search.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    memory = Memory.open(place / "m", encode)
    ranked = []
    for query, own in (("sun", "q1"), ("moon stars", "q2")):
        ids = [hit.id.split(":")[0] for hit in memory.search(query, 9, mode="lexical")[0]]
        ranked.append([id for id in dict.fromkeys(ids) if id != own])
    assert ranked[0] == ["d2", "d1"] and set(ranked[1]) == {"d1", "d3"}
    assert (
        found["queries"] == 2
        and found["recall@1"] == (0 + 0.5) / 2
        and found["recall@2"] == 1.0
        and found["mrr"] == (0.5 + 1) / 2
    )
    assert found["map"] == (0.5 + 1) / 2
    (place / "trec").write_text("q1 0 d1 1\nq2 0 d3 2\nq2 0 d1 1\n")
    assert measures.read_qrels(place / "trec") == {"q1": {"d1": 1.0}, "q2": {"d3": 2.0, "d1": 1.0}}


def test_a_beir_folder_is_built_and_measured_by_one_command(place, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    monkeypatch.setattr(evaluate_search, "open_memory", cli.open_memory)
    save_encoder(tmp_path / "encoder")
    new = [f"--memory={tmp_path / 'new'}", f"--encoder={tmp_path / 'encoder'}", f"--beir={place}"]
    assert evaluate_search.main(new) == 2
    assert "holds no corpus.jsonl: expected a folder of BEIR's layout" in capsys.readouterr().err
    assert build.main([f"--memory={tmp_path / 'x'}", "--beir=none"]) == 2
    assert "--beir=none is no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        build.main([*new, "--id-field=name"])
    assert "leave out --input" in capsys.readouterr().err
    rows = [
        {"_id": "d1", "title": "Day", "text": "sun moon", "metadata": {"url": "u", "year": 1999}},
        {"_id": "d3", "title": "", "text": "stars", "metadata": {}, "lang": "en"},
    ]
    (place / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluate_search.main([*new, "--mode=lexical", "--json", "-k=1"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["queries"] == 2 and '"added": 2' in said.err
    memory = Memory.open(tmp_path / "new")
    assert memory.get("d1").title == "Day" and memory.get("d1").metadata["year"] == "1999"
    assert memory.get("d3").metadata["lang"] == "en"
    assert evaluate_search.main([*new[:1], new[2], "--mode=lexical"]) == 0  # of what is there
    assert "2 queries, lexical" in capsys.readouterr().out


def test_judgements_that_do_not_fit_are_refused(place, capsys):
    at = [f"--memory={place / 'm'}", "--mode=lexical"]
    assert (
        evaluate_search.main([*at, f"--queries={place}/none", f"--qrels={place}/qrels/test.tsv"])
        == 2
    )
    (place / "bad.tsv").write_text("q1\td1\tmuch\n")
    assert (
        evaluate_search.main([*at, f"--queries={place}/queries.jsonl", f"--qrels={place}/bad.tsv"])
        == 2
    )
    (place / "other.tsv").write_text("q1\tother\t1\n")
    assert (
        evaluate_search.main(
            [*at, f"--queries={place}/queries.jsonl", f"--qrels={place}/other.tsv"]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert (
        "none is no file" in said
        and "bad.tsv, line 1" in said
        and "none of the judged documents" in said
    )


def test_metadata_and_a_least_score_filter_a_search(place, capsys):
    memory = Memory.open(place / "m", encode)
    ids = lambda **wanted: {
        hit.id for hit in memory.search("sun", 9, where=Filter(metadata=wanted))[0]
    }
    assert ids(n="1") == {"d1", "q1"} and ids(n="9") == ids(m="1") == set()
    memory.edit("d2", metadata={"n": "1"})
    assert ids(n="1") == {"d1", "d2", "q1"}
    with pytest.raises(RetrievalError, match="expected a dict of strings"):
        Filter(metadata={"n": 1})
    assert (
        search.main([f"--memory={place / 'm'}", "--where", "n=1", "--json", "-k", "9", "sun"]) == 0
    )
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert {hit["id"] for hit in hits} == {"d1", "d2", "q1"}
    least = (hits[0]["score"] + hits[-1]["score"]) / 2
    assert (
        search.main([f"--memory={place / 'm'}", f"--min-score={least}", "--json", "-k", "9", "sun"])
        == 0
    )
    assert all(hit["score"] >= least for hit in json.loads(capsys.readouterr().out)["hits"])


def test_what_is_exported_can_be_built_from_and_holds_the_history(place, capsys):
    memory = Memory.open(place / "m", encode)
    memory.edit("d2", "changed", reason="why")
    memory.delete("d3")
    assert export.main([f"--memory={place / 'm'}"]) == 0
    (place / "out.jsonl").write_text(capsys.readouterr().out)
    read = list(rows.documents(File(str(place / "out.jsonl"), "out.jsonl", ""), Report()))
    assert {d.name: (d.text, d.tags, d.metadata["n"]) for d in read} == {
        id: (memory.get(id).text, ("t",), memory.get(id).metadata["n"]) for id in memory.ids()
    }
    assert export.main([f"--memory={place / 'm'}", "--history"]) == 0
    commits = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(c["action"], len(c["passages"])) for c in commits] == [
        ("create", 0),
        ("add", 5),
        ("edit", 1),
        ("delete", 0),
    ]
    assert commits[2]["passages"][0]["text"] == "changed" and commits[2]["reason"] == "why"


def test_a_passage_as_json_with_its_origin_is_a_row(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps(dataclasses.asdict(Passage("x", "text", origin="old.txt")))
    )
    (document,) = rows.documents(File(str(tmp_path / "a.jsonl"), "a.jsonl", ""), Report())
    assert (document.name, document.text, document.metadata) == ("x", "text", {})


def test_tables_are_rows_and_an_id_field_names_them(tmp_path):
    (tmp_path / "a.csv").write_text('_id,title,body,tags\nx,T,"one, two","a; b"\ny,,three,\n')
    (tmp_path / "b.tsv").write_text("id\ttext\nz\tfour\n")
    read = lambda name, *how: list(
        rows.documents(File(str(tmp_path / name), name, ""), Report(), *how)
    )
    x, y = read("a.csv", "body", "_id")
    assert (x.name, x.text, x.title, x.tags, x.metadata, y.name, y.tags) == (
        "x",
        "one, two",
        "T",
        ("a", "b"),
        {},
        "y",
        (),
    )
    assert [(d.name, d.text) for d in read("b.tsv")] == [("z", "four")]
    with pytest.raises(RetrievalError, match="has no 'key', which --id-field names"):
        read("b.tsv", None, "key")


def test_without_scann_a_memory_is_built_searched_and_changed_on_the_exact_index(
    tmp_path, monkeypatch
):
    for name in ["scann", *(name for name in sys.modules if name.startswith("scann."))]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails, as where it has no wheel
    memory = Memory.create(tmp_path / "m", encode)
    memory.add([Passage(f"p{i}", f"town{i}") for i in range(30)])
    best = lambda text: Memory.open(tmp_path / "m", encode).search(text, 1)[0][0]
    assert (
        best("town7").id == memory.search("town7", 1)[0][0].id == "p7"
        and type(memory._handle.live_index.index).__name__ == "ExactIndex"
    )
    memory.edit("p7", "harbour")
    assert best("harbour").id == "p7"
    memory.delete("p7")
    memory.undo()
    assert best("harbour").id == "p7" and memory.verify() == []
