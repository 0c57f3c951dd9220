"""Stages of the quickstart on made-up places: passages, questions, edits, the report."""

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from launch.errors import LaunchError
from launch.quickstart import charts, edits, findings, passages, report, world
from lm.data.read.sources import DataError
from lm.evaluation.accuracy import contains
from retrieval import Answer, Memory, Passage

COUNTRY = {
    "continentcode": "EU",
    "capital": "",
    "population": 0,
    "areakm2": 1.0,
    "currencyname": "",
    "neighbours": "",
}
COUNTRIES = {
    "IT": {
        **COUNTRY,
        "name": "Italy",
        "capital": "Rome",
        "population": 60,
        "currencyname": "Euro",
        "neighbours": "CH",
    },
    "CH": {**COUNTRY, "name": "Switzerland"},
    "GN": {**COUNTRY, "name": "Guinea", "continentcode": "AF"},
    "PG": {**COUNTRY, "name": "Papua New Guinea", "continentcode": "OC"},
    "US": {**COUNTRY, "name": "United States", "continentcode": "NA"},
    "AN": {**COUNTRY, "name": "Netherlands Antilles"},
}


def city(id, name, country, population):
    return world.City(id, name, country, f"{country}.01", population, "Etc/UTC", 38.0789, -13.5)


@pytest.fixture
def geonames(tmp_path):
    rows = [
        ("Bagheria", "IT", 53_149, "15"),
        ("Paris", "US", 24_782, "TX"),
        ("París", "IT", 2_000_000, "01"),
        ("Springfield", "US", 60_000, "OR"),
    ]
    cities = {
        str(i): {
            "geonameid": i,
            "name": name,
            "countrycode": country,
            "population": population,
            "admin1code": region,
            "timezone": "Etc/UTC",
            "latitude": 1.0,
            "longitude": 2.0,
        }
        for i, (name, country, population, region) in enumerate(rows)
    }
    (tmp_path / "cities15000.json").write_text(json.dumps(cities))
    (tmp_path / "countries.json").write_text(json.dumps(COUNTRIES))
    (tmp_path / "us_states.json").write_text(json.dumps({"OR": {"name": "Oregon"}}))
    return tmp_path


def test_a_name_that_two_cities_share_accents_aside_is_never_used(geonames):
    assert [c.name for c in world.read_cities(geonames)] == ["Springfield", "Bagheria"]
    assert [c.region for c in world.read_cities(geonames)] == ["Oregon", "IT.15"]


def test_a_country_that_is_no_more_gets_no_passage(geonames):
    assert "AN" not in world.read_countries(geonames) and "IT" in world.read_countries(geonames)


def test_a_city_passage_says_where_how_many_when_and_at_which_coordinates():
    passage = world.city_passage(city(7, "Bagheria", "IT", 53_149), COUNTRIES)
    assert (
        passage.id == "city-7"
        and passage.title == "Bagheria"
        and "GeoNames" in passage.source
        and "CC-BY" in passage.source
    )
    for part in ("city in Italy, Europe", "IT.01", "53,149", "Etc/UTC", "38.08° N", "13.50° W"):
        assert part in passage.text


def test_a_country_passage_leaves_out_what_is_not_known():
    assert (
        "capital is Rome" in world.country_passage("IT", COUNTRIES).text
        and "Switzerland" in world.country_passage("IT", COUNTRIES).text
    )
    assert (
        "capital" not in world.country_passage("CH", COUNTRIES).text
        and "Population" not in world.country_passage("CH", COUNTRIES).text
    )


def test_cities_are_chosen_evenly_over_the_bins_and_scarce_bins_are_filled_from_the_others():
    many = [
        city(i, f"n{i}", "IT", low)
        for i, low in enumerate(low for low in world.BINS[:-1] for _ in range(20))
    ]
    few = [city(1000 + i, f"f{i}", "IT", 3_000_000) for i in range(3)]
    chosen = world.choose(many + few, 93)
    counts = [sum(world.bin_of(c.population) == i for c in chosen) for i in range(10)]
    assert len(chosen) == len(set(chosen)) == 93 and counts == [10] * 9 + [3]
    assert chosen == world.choose(many + few, 93)


def test_bins_cover_every_population_from_the_first_edge_on():
    assert [world.bin_of(n) for n in (14_999, 15_000, 19_999, 20_000, 2_000_000, 30_000_000)] == [
        -1,
        0,
        0,
        1,
        9,
        9,
    ]
    assert [world.bin_label(i) for i in (0, 8, 9)] == ["15-20k", "800k-2M", "2M+"]


def test_no_question_gives_its_answer_away_and_each_knows_its_passage():
    cities = [city(i, f"Town {i}", "IT", low + 1) for i, low in enumerate(world.BINS)]
    cities += [city(100 + i, f"Italy Town {i}", "IT", low + 1) for i, low in enumerate(world.BINS)]
    rows = world.questions(cities, COUNTRIES, per_bin=1)
    assert [row["bin"] for row in rows] == list(range(10))
    assert all("Italy" not in row["question"] and row["answers"] == ["Italy"] for row in rows)
    assert [row["passage"] for row in rows] == [f"city-{i}" for i in range(10)]


def test_too_few_cities_in_a_bin_is_an_error_in_words():
    with pytest.raises(LaunchError, match=r"bin 0 .* has 0 cities"):
        world.questions([], COUNTRIES, per_bin=1)


@pytest.mark.parametrize(
    "country, text, right",
    [
        ("GN", "It is in Guinea.", True),
        ("GN", "It is in Papua New Guinea.", False),
        ("US", "It is in America.", True),
        ("US", "It is in South America.", False),
    ],
)
def test_a_country_inside_another_name_does_not_count(country, text, right):
    rows = world.questions(
        [city(i, f"Town {i}", country, low) for i, low in enumerate(world.BINS)],
        COUNTRIES,
        per_bin=1,
    )
    assert contains(text, rows[0]["answers"], rows[0]["others"]) is right


def test_the_stage_says_what_is_wrong_in_one_line_when_there_are_too_few_cities(
    geonames, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(passages, "fetch", lambda name, samples_dir: geonames)
    monkeypatch.setattr(world, "element_passages", lambda path: [])
    assert passages.main([f"--workdir={tmp_path}", "--cities=4", "--per-bin=1"]) == 2
    assert (
        "take more cities" in capsys.readouterr().err and not (tmp_path / "passages.jsonl").exists()
    )


def test_what_the_stage_writes_becomes_the_same_passages_of_a_memory(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from retrieval import build
    from tests.retrieval.models import save_encoder

    towns = [
        {"geonameid": i, "name": f"Town {i}", "population": low + 1, "admin1code": "01"}
        for i, low in enumerate(world.BINS)
    ]
    towns = {
        i: {**town, "countrycode": "IT", "timezone": "Etc/UTC", "latitude": 1.0, "longitude": 2.0}
        for i, town in enumerate(towns)
    }
    for name, content in {"cities15000": towns, "countries": COUNTRIES, "us_states": {}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.setattr(passages, "fetch", lambda name, samples_dir: tmp_path)
    monkeypatch.setattr(world, "element_passages", lambda path: [])
    assert passages.main([f"--workdir={tmp_path}", "--cities=10", "--per-bin=1"]) == 0
    save_encoder(tmp_path / "encoder")
    written = tmp_path / "passages.jsonl"
    assert (
        build.main(
            [
                f"--memory={tmp_path / 'm'}",
                f"--encoder={tmp_path / 'encoder'}",
                f"--input={written}",
                "--chunk=none",
            ]
        )
        == 0
    )
    memory, countries = Memory.open(tmp_path / "m"), world.read_countries(tmp_path)
    made = [world.city_passage(c, countries) for c in world.read_cities(tmp_path)]
    for passage in [*made, *(world.country_passage(code, countries) for code in countries)]:
        kept = memory.get(passage.id)
        assert (kept.text, kept.title, kept.source, kept.span) == (
            passage.text,
            passage.title,
            passage.source,
            passage.span,
        )
        assert passage.metadata.items() <= kept.metadata.items()


def test_a_sample_that_cannot_be_had_is_one_line_too(tmp_path, monkeypatch, capsys):
    def no_network(name, samples_dir):
        raise DataError(f"could not download {name}")

    monkeypatch.setattr(passages, "fetch", no_network)
    assert passages.main([f"--workdir={tmp_path}"]) == 2
    assert capsys.readouterr().err == "error: could not download geonames\n"


def letters(texts):
    """An encoder: counts of letter pairs."""
    vectors = np.zeros((len(texts), 512), np.float32)
    for row, text in enumerate(texts):
        for pair in zip(text.lower(), text.lower()[1:], strict=False):
            vectors[row, (ord(pair[0]) * 31 + ord(pair[1])) % 512] += 1
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def reads_aloud(questions, memory, reader):
    """A reader whose answer is the best passage."""
    return [
        Answer(q, hits[0].text, tuple(hits), "")
        for q, hits in zip(questions, memory.search(questions, 2), strict=True)
    ]


@pytest.fixture
def story(tmp_path, monkeypatch):
    monkeypatch.setattr(edits, "answer", reads_aloud)
    memory = Memory.create(tmp_path / "memory", letters)
    memory.add(
        [
            Passage(f"city-{n}", f"{n} is a city in {c}.")
            for n, c in (("Bagheria", "Italy"), ("Zug", "Norway"), ("Kankan", "Guinea"))
        ]
    )
    rows = [
        {"question": f"In which country is {n}?", "answers": [c], "passage": f"city-{n}"}
        for n, c in (("Bagheria", "Italy"), ("Zug", "Norway"))
    ]
    return memory, edits.tell(memory, None, *rows)


def test_the_edit_story_changes_the_answer_takes_the_passage_away_and_brings_both_back(story):
    memory, steps = story
    first, second = ([step["asked"][i] for step in steps] for i in (0, 1))
    assert [step["step"] for step in steps] == ["before", "edit", "delete", "undo"]
    assert ["Italy" in a["answer"] for a in first] == [
        True,
        False,
        False,
        True,
    ] and "Norway" in first[1]["answer"]
    assert ["city-Zug" in [c["id"] for c in a["citations"][:1]] for a in second] == [
        True,
        True,
        False,
        True,
    ]
    assert steps[0]["asked"] == steps[-1]["asked"]
    assert [commit.action for commit in memory.log()] == [
        "create",
        "add",
        "edit",
        "delete",
        "undo",
        "undo",
    ]


def test_what_a_killed_run_left_changed_is_undone_and_the_users_own_changes_are_not(story):
    memory, _ = story
    memory.edit("city-Kankan", "Kankan is a city I know.")
    memory.edit("city-Bagheria", "Bagheria is a city in Norway.", reason=edits.REASON)
    memory.delete(["city-Zug"], reason=edits.REASON)
    edits.restore(memory)
    edits.restore(memory)
    assert memory.get("city-Bagheria").text == "Bagheria is a city in Italy." and memory.get(
        "city-Zug"
    )
    assert memory.get("city-Kankan").text == "Kankan is a city I know."


def row(i, bin, closed, opened, **more):
    hit = {"id": f"city-{i}", "text": "A <b>city</b> | here."}
    return {
        "question": f"In which country is {i}?",
        "answers": ["Italy"],
        "passage": f"city-{i}",
        "bin": bin,
        "closed_book": "No idea",
        "open_book": "<script>alert(1)</script>",
        "closed_correct": closed,
        "open_correct": opened,
        "citations": [hit],
        **more,
    }


def test_facts_to_edit_are_answered_right_from_their_own_passage():
    other = row(3, 5, False, True, citations=[{"id": "city-9", "text": ""}])
    short = row(4, 6, False, True, open_book="Italy")
    chosen = edits.pick(
        [
            row(0, 4, False, False),
            other,
            row(1, 9, False, True),
            row(2, 5, True, True, open_book="It"),
            short,
        ]
    )
    assert [r["passage"] for r in chosen] == ["city-4", "city-1"]
    with pytest.raises(LaunchError, match="1 of 2 answers"):
        edits.pick([other, row(1, 9, False, True)])


@pytest.fixture
def finished(tmp_path):
    """Make a study's directory with made-up results."""
    answers = [row(i, i // 4, i % 4 == 0, i % 4 != 3) for i in range(40)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    (tmp_path / "pretrain").mkdir()
    metrics = [{"step": s, "loss": 5.0 - s / 100} for s in range(0, 100, 10)] + [
        {"step": 90, "eval/x/loss": 1.0}
    ]
    (tmp_path / "pretrain" / "metrics.jsonl").write_text(
        "".join(json.dumps(m) + "\n" for m in metrics)
    )
    (tmp_path / "bits").mkdir()
    (tmp_path / "bits" / "2001.json").write_text(
        json.dumps({"bits_per_byte": 2.5, "bits_per_byte_stderr": None})
    )
    asked = [{"question": "Where?", "answer": "There", "citations": []}]
    steps = [{"step": s, "what": s, "seconds": 0.25, "asked": asked} for s in ("before", "edit")]
    log = {
        "version": 3,
        "action": "edit",
        "passages": 1,
        "time": "2026-01-01",
        "reason": "correction",
    }
    (tmp_path / "edits.json").write_text(json.dumps({"story": steps, "log": [log]}))
    stage = {"about": "it", "seconds": 1.5, "bytes": 1_234_567, "status": "done"}
    (tmp_path / "study.json").write_text(
        json.dumps(
            {"stages": [{**stage, "name": "ask"}, {**stage, "name": "report", "status": "running"}]}
        )
    )
    return tmp_path


def test_the_report_counts_each_bin_with_its_interval(finished):
    found = findings.read(finished)
    assert len(found.bins) == 10 and found.closed[0][0] == 0.25 and found.open[0][0] == 0.75
    low, high = found.open[0][1:]
    assert low == pytest.approx(0.3006, abs=1e-4) and high == pytest.approx(0.9544, abs=1e-4)
    assert (
        found.curve[-1] == (90, 4.1)
        and found.bits == [("2001 on", 2.5, 0.0)]
        and [s[0] for s in found.stages] == ["ask"]
    )


def test_the_report_is_one_page_that_loads_nothing_and_runs_nothing(finished):
    assert report.main([f"--workdir={finished}"]) == 0
    page = (finished / "report.html").read_text()
    assert "<script" not in page and not re.search(r"""(src|href)\s*=|url\(|@import""", page)
    assert (
        "25.0%" in page and "1,234,567" in page and "correction" in page and page.count("<svg") == 2
    )
    text = (finished / "report.md").read_text()
    assert "<script" not in text and "![Accuracy by population" in text and "GeoNames" in text
    assert all(
        len(re.findall(r"(?<!\\)\|", line)) == 5
        for line in text.splitlines()
        if line.startswith("| In which")
    )


def test_every_picture_is_well_formed_has_words_for_it_and_shows_all_bins(finished):
    report.main([f"--workdir={finished}"])
    for name in ("popularity.svg", "training.svg"):
        root = ElementTree.parse(finished / name).getroot()
        tags = [element.tag.rpartition("}")[2] for element in root.iter()]
        assert (
            root.get("role") == "img"
            and root.get("aria-label")
            and "title" in tags
            and "desc" in tags
        )
        if name == "popularity.svg":
            assert tags.count("circle") == 20


@pytest.mark.parametrize("low, high", [(1, 300), (4.95, 7.65), (0.0, 0.0), (0.001, 0.0013), (3, 3)])
def test_an_axis_holds_all_its_values_between_a_few_round_numbers(low, high):
    ticks = charts._ticks(low, high)
    assert (
        ticks[0] <= low
        and ticks[-1] >= high
        and 2 <= len(ticks) <= 10
        and len(set(ticks)) == len(ticks)
    )


def test_mistakes_are_all_shown(finished):
    assert len(findings.mistakes(findings.read(finished).answers)) == 10
    report.main([f"--workdir={finished}"])
    assert "10 of 40, all of them." in (finished / "report.md").read_text()


@pytest.mark.parametrize("name", ["answers.jsonl", "edits.json", "pretrain/metrics.jsonl"])
def test_a_missing_or_broken_file_is_named(finished, name, capsys):
    (finished / name).write_text("{")
    assert report.main([f"--workdir={finished}"]) == 2
    assert name in capsys.readouterr().err
    (finished / name).unlink()
    assert report.main([f"--workdir={finished}"]) == 2
    assert f"{name} does not exist" in capsys.readouterr().err
