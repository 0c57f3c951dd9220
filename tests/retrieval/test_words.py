"""Words in other Unicode forms: equivalent spellings match, and different numbers do not."""

import unicodedata

import pytest

from retrieval import Filter, Memory, Passage
from retrieval.ingest.duplicates import digest
from retrieval.store import lexical
from retrieval.store.words import asked, words
from tests.retrieval.toy import encode

NFD = lambda text: unicodedata.normalize("NFD", text)
SAME = [
    ("Genève", NFD("Genève")),
    ("한국어", NFD("한국어")),
    ("Θεσσαλονίκη", "ΘΕΣΣΑΛΟΝΙΚΗ"),
    ("δρόμος", "ΔΡΟΜΟΣ"),
    ("İzmir", "izmir"),
    ("Iğdır", "ığdir"),
    ("مُحَمَّد", "محمد"),
    ("كــتاب", "كتاب"),
    ("إبراهيم", "ابراهيم"),
    ("مدرسة", "مدرسه"),
    ("کتابی", "كتابي"),
    ("יְרוּשָׁלַיִם", "ירושלים"),
    ("Wasser\u00adkraft\u00adwerk", "wasserkraftwerk"),
    ("می\u200cروند", "میروند"),
    ("می\u200cدانند", "می دانند"),
    ("white\u200bspace", "whitespace"),
    ("wo\u2060rd\ufeffjoin", "wordjoin"),
    ("ﾊﾟﾘ", "パリ"),
    ("ＴＯＫＹＯ２０", "tokyo20"),
    ("dm²", "dm2"),
    ("m^3", "m³"),
    ("H₂S", "h2s"),
    ("oﬃce", "office"),
    ("Gießen", "GIESSEN"),
    ("L’Hôpital", "l'hopital"),
    ("п’яний", "п\u02bcяний"),
    ("Ångström\u00a0unit", "angstrom unit"),
    ("Nguyễn", NFD("nguyễn")),
    ("Đồng", "dong"),
    ("Łódź", "lodz"),
    ("Ærø", "aero"),
    ("зелёный", "зеленый"),
    ("١٩٨٧", "1987"),
    ("१९४८", "1948"),
    ("７,１２３", "7123"),
    ("12\u202f345", "12,345"),
    ("3,00,000", "300000"),
    ("हिंदुस्तान", NFD("हिंदुस्तान")),
    ("ﻼ", "لا"),
    ("Ⅷ", "viii"),
    ("㎏", "kg"),
]
OTHER = [
    ("10⁷", "107"),
    ("2½", "212"),
    ("8,0001", "80001"),
    ("1.5", "15"),
    ("мой", "мои"),
    ("はは", "ばば"),
    ("ठीक", "ठक"),
    ("5¹", "51"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """query -> ids, in a memory with a passage for every form beside others."""
    memory = Memory.create(tmp_path_factory.mktemp("words") / "m", encode)
    texts = {
        f"{i}{side}": text
        for i, pair in enumerate(SAME)
        for side, text in zip("ab", pair, strict=True)
    }
    memory.add([Passage(id, f"filler {text} filler") for id, text in texts.items()])
    return lambda query: {hit.id for hit in memory.search(query, len(texts), mode="lexical")[0]}


@pytest.mark.parametrize("number", range(len(SAME)), ids=[f"{a}-{b}" for a, b in SAME])
def test_each_form_of_a_word_finds_the_other(found, number):
    for query in SAME[number]:
        assert {f"{number}a", f"{number}b"} <= found(query)


@pytest.mark.parametrize("one, other", OTHER)
def test_other_numbers_and_letters_stay_others(one, other):
    assert (
        words(one) != words(other)
        and not set(asked(other)) <= set(words(one))
        and digest(one) != digest(other)
    )


@pytest.mark.parametrize(
    "text, query",
    [
        ("東京は日本の首都です。", "首都"),
        ("猫が好きです", "猫"),
        ("서울은 강가에 있다", "서울"),
        ("ฉันรักแมวมาก", "แมว"),
        ("我们住在意大利北部", "意大利"),
        ("ខ្ញុំស្រលាញ់ភ្នំពេញ", "ភ្នំពេញ"),
        ("iPhone15を買う", "iphone15"),
    ],
)
def test_a_word_within_a_text_without_spaces_is_found(tmp_path, text, query):
    memory = Memory.create(tmp_path / "m", encode)
    memory.add([Passage("a", text), Passage("b", "something else, 京都 제주 มกราคม 法国")])
    assert [hit.id for hit in memory.search(query, 1, mode="lexical")[0]] == ["a"]


def test_duplicates_and_tags_know_other_forms(memory):
    assert (
        digest("Die Über\u00adsicht ｋｍ ﬁn 7,000")
        == digest(NFD("die  übersicht km fin 7000"))
        != digest("die ubersicht km fin 7000")
    )
    memory.add([Passage("nfc", "x", tags=("Genève",)), Passage("nfd", "y", tags=(NFD("Genève"),))])
    for tag in ("Genève", NFD("Genève")):
        assert {hit.id for hit in memory.search("x", 9, where=Filter(all_tags=(tag,)))[0]} == {
            "nfc",
            "nfd",
        }


def test_a_word_index_of_format_2_is_searched_and_rebuilt_by_the_next_change(tmp_path, monkeypatch):
    monkeypatch.setattr(lexical, "KEPT_FROM", 1)
    memory = Memory.create(tmp_path / "m", encode)
    memory.add([Passage("a", "Genève"), Passage("b", "Bern")])
    dataset = memory._store._dataset  # as format 2 wrote it
    dataset.drop_columns(["terms"])
    dataset.add_columns({"words": "text"})
    dataset.create_scalar_index("words", "INVERTED", name="words_idx")
    dataset.update_schema_metadata({"openbook.format": "2"})
    memory = Memory.open(tmp_path / "m", encode)
    version, ids = (
        memory.version,
        lambda memory: [hit.id for hit in memory.search(NFD("GENÈVE"), mode="lexical")[0]],
    )
    assert ids(memory) == ["a"]
    memory.edit("b", "Bern, Genève")
    assert sorted(ids(memory)) == ["a", "b"] and lexical.indexes(memory._store._dataset) == {
        lexical.INDEX
    }
    assert "words" not in memory._store._dataset.schema.names and ids(memory.as_of(version)) == [
        "a"
    ]
    memory.undo()
    assert ids(memory) == ["a"] and memory.verify() == []
