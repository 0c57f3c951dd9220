"""Files as users have them: compressed, other encodings, tables, odd names. Errors name them."""

import bz2
import gzip
import hashlib
import json
import lzma
import os

import ml_collections
import pyarrow
import pytest

from lm.data.encode import plain_text
from lm.data.read import files, sources, tables
from lm.data.read.sources import DataError
from lm.data.records import reading as records
from lm.data.records.labels import read
from lm.data.records.reading import Reading
from lm.data.tokenizers import bytes_only
from lm.models.config import ConfigError
from lm.tasks import Classification
from lm.training import settings, setup
from tests.lm.training import runs

ROWS = [{"text": "a hut"}, {"text": "über den Bach"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
TEXTS = [row["text"] for row in ROWS]
PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda raw: pyarrow.compress(raw, codec="zstd", asbytes=True),
}


def documents(path, content, **options):
    path.write_bytes(content)
    return list(sources.documents([str(path)], **options))


@pytest.mark.parametrize("packed", ["", *PACK])
def test_a_file_of_records_is_learned_as_prose(tmp_path, packed):
    pack = PACK.get(packed, bytes)
    table = "n,text\n1,a hut\n2,über den Bach\n".encode()
    kinds = {
        ".jsonl": LINES,
        ".jsonlines": LINES,
        ".ndjson": LINES,
        ".JSONL": LINES,
        ".csv": table,
        ".tsv": table.replace(b",", b"\t"),
    }
    for kind, content in kinds.items():
        for encoded in (
            content,
            b"\xef\xbb\xbf" + content,
            content.decode().encode("utf-16"),
            content.replace(b"\n", b"\r\n"),
        ):
            assert documents(tmp_path / f"x{kind}{packed}", pack(encoded)) == TEXTS, kind
    assert documents(tmp_path / f"x.txt{packed}", pack(b"one")) == ["one"]
    twice = pack(LINES) + pack(b"\xef\xbb\xbf" + LINES)
    assert documents(tmp_path / f"x.jsonl{packed}", twice) == TEXTS * 2
    if packed:
        with pytest.raises(DataError, match=rf"x.jsonl\{packed}: not a whole .* file"):
            documents(tmp_path / f"x.jsonl{packed}", pack(LINES * 999)[:-9])


def test_a_text_keeps_windows_line_ends_and_marks(tmp_path):
    windows = (
        b"\xef\xbb\xbfOne, and\r\nmore.\r\n\r\nTwo.\r\n\xef\xbb\xbfThree, from\r\nanother file."
    )
    wanted = ["One, and\nmore.", "Two.\nThree, from\nanother file."]
    assert documents(tmp_path / "x.txt", windows, separator="\n\n") == wanted
    for encoding in ("utf-16", "utf-32"):
        assert (
            documents(
                tmp_path / "x.txt", windows.decode("utf-8-sig").encode(encoding), separator="\\n\\n"
            )
            == wanted
        )


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"\n\n", "\n\n"),
        ("\n\n", "\n\n"),
        (r"\n---\n", "\n---\n"),
        (r"\t", "\t"),
        (r"\\n", r"\n"),
        (r"\x1e", "\x1e"),
        (r"\u00a7", "§"),
        (r"\r\n\r\n", "\n\n"),
        ("|", "|"),
        (r"\section", r"\section"),
    ],
)
def test_a_separator_typed_in_a_shell_stays_a_backslash(tmp_path, typed, meant):
    assert documents(tmp_path / "x.txt", f"one{meant}two".encode(), separator=typed) == [
        "one",
        "two",
    ]


def test_a_separator_that_never_occurs_is_not_named(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("one\ntwo")
    for _ in range(2):  # the second time from the cache
        packed = plain_text.pack_files(
            f"{tmp_path}/a.txt", bytes_only(), 16, tmp_path / "cache", separator=r"\n\n"
        )
        assert packed.counts == {r"text files without the separator '\n\n'": 1}
    assert r"the separator '\n\n' occurs in none of the 1 text files" in caplog.text
    (tmp_path / "b.txt").write_text("one\n\ntwo")
    assert (
        plain_text.pack_files(
            f"{tmp_path}/*.txt", bytes_only(), 16, tmp_path / "cache", separator=r"\n\n"
        ).counts
        == {}
    )
    (tmp_path / "x.jsonl").write_bytes(LINES)
    list(sources.documents([f"{tmp_path}/x.jsonl"], separator="|"))
    assert "the separator '|' is for text files, and none was read" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "x.txt",
            "ein grüner Bär".encode("utf-16-le"),
            r"looks like UTF-16LE without a byte order mark.*iconv -f UTF-16LE",
        ),
        (
            "x.jsonl",
            LINES.decode().encode("utf-16-be"),
            r"looks like UTF-16BE without a byte order mark",
        ),
        (
            "x.txt",
            "eins\nzwei grün".encode("latin-1"),
            r"line 2: byte 0xfc is not UTF-8.*iconv -f WINDOWS-1252",
        ),
        ("x.jsonl", '{"text": "grün"}\n'.encode("latin-1"), r"line 1: byte 0xfc is not UTF-8"),
        ("x.csv", "text\ngrün\n".encode("latin-1"), r"line \d: byte 0xfc is not UTF-8"),
        ("x.txt", b"\x7fELF\x00\x01\x02", "holds zero bytes"),
        ("x.txt", b"%PDF-1.4 ...", "no text, whatever its name says: convert it to text first"),
        ("x.txt", gzip.compress(b"one", mtime=0), "rename it to end in .gz"),
        ("x.txt", b"PK\x03\x04...", "unpack it"),
        ("x", b"PAR1...", "rename it to .parquet"),
        ("x.pdf", b"...", ".pdf files are not read: convert it to text first"),
        ("x.docx", b"...", ".docx files are not read"),
        ("x.html", b"<p>one</p>", ".html files are not read: .*rename it to .txt"),
        ("x.arrow", b"...", r".arrow files are not read: save it as Parquet or JSONL"),
        ("x.xlsx", b"...", "save the sheet as .csv"),
        ("x.tar.gz", b"...", ".tar files are not read: unpack it"),
        (
            "x.jsonl.1",
            LINES,
            r"holds a JSON object a line \(.jsonl\), to be learned as prose; rename it",
        ),
        ("x", json.dumps(ROWS, indent=1).encode(), r"holds JSON \(.json\), to"),
        ("x.json", b'{"body": "one"}', "no field 'text'; it has 'body'"),
        ("x.csv", b"id,id\n1,2\n", "two columns have the same name"),
        ("x.csv", b"id,text\n1\n", "line 2: expected 2 columns"),
        ("x.csv", b'id,text\n1,"open', "cannot be read as a table"),
        ("x.csv", b"id,body\n1,one\n", "line 2: no field 'text'; it has 'id', 'body'"),
    ],
)
def test_a_file_that_cannot_be_read_is_learned_as_prose(tmp_path, name, content, said):
    with pytest.raises(DataError, match=said) as error:
        documents(tmp_path / name, content)
    assert name in str(error.value)


def test_prose_that_begins_like_json_is_refused(tmp_path, caplog):
    for text in ("[1] A footnote.\nMore.", "{a hut}\nby the brook", "[Chorus]\nla", "{ 'a': 1 }"):
        assert (
            documents(tmp_path / "x.txt", text.encode())
            == documents(tmp_path / "x", text.encode())
            == [text]
        )
    assert not caplog.text
    documents(tmp_path / "x.txt", LINES)
    assert "holds a JSON object a line" in caplog.text


@pytest.mark.parametrize(
    "name",
    ["a[1].txt", "a,b.txt", "a*.txt", "what?.txt", "a, b[0].txt", "[x]/a.txt", "[x],*/b,c.txt"],
)
def test_a_name_that_exists_is_taken_for_a_glob(tmp_path, name):
    path = tmp_path / "d" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("this")
    for other in ("a1.txt", "ab.txt", "b.txt"):
        (tmp_path / "d" / other).write_text("other")
    assert files.find_files(f"{path}") == [str(path)]
    assert files.find_files(f"{tmp_path}/d/b.txt, {path} ,{tmp_path}/d/a1.txt") == [
        f"{tmp_path}/d/b.txt",
        str(path),
        f"{tmp_path}/d/a1.txt",
    ]
    if path.parent.name != "d":
        assert files.find_files(f"{path.parent}/*.txt") == [str(path)]
    rows = path.with_suffix(".jsonl")
    rows.write_text('{"instruction": "a", "output": "b"}\n')
    assert records.find(str(rows))[0] == [str(rows)]
    assert [r.source for r in records.read(f"{rows}", Reading()).records] == [f"{rows}, line 1"]
    assert records.find(f"{path.parent}")[0] == [str(rows)]


def test_a_glob_finds_other_files_than_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt"):
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        (tmp_path / name).write_text(name)
    assert files.find_files("*.txt") == ["a.txt", "b.txt"]
    assert files.find_files("[ab].txt,sub/*.txt") == ["a.txt", "b.txt", "sub/c.txt"]
    assert files.find_files("**/*.txt") == ["a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt"]
    assert files.find_files(f"{tmp_path}/s*/**/d.txt") == [f"{tmp_path}/sub/deep/d.txt"]
    assert files.find_files("./?.txt") == ["./a.txt", "./b.txt"]


def test_a_folder_of_texts_is_no_data(tmp_path):
    for name in ("b.txt", "a.md", "c.jsonl", "d.txt.gz", "e.csv", "f.png", ".hidden.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "sub").mkdir()
    assert [os.path.basename(f) for f in files.find_files(str(tmp_path))] == [
        "a.md",
        "b.txt",
        "c.jsonl",
        "d.txt.gz",
        "e.csv",
    ]
    with pytest.raises(DataError, match=r"the folder .*sub holds no file ending in .txt, .*\*\*"):
        files.find_files(f"{tmp_path}/sub")


def test_tables_and_packed_lines_are_not_read_elsewhere(tmp_path):
    (tmp_path / "x.csv").write_text('instruction,output\n"Say ""a"",\nplease",b\n')
    (record,) = records.read(f"{tmp_path}/x.csv", Reading()).records
    assert (record.instruction, record.output) == ('Say "a",\nplease', "b")
    (tmp_path / "y.csv.zst").write_bytes(PACK[".zst"](b"text,label\na,0\nb,1\n"))
    assert [text.text for text in read(f"{tmp_path}/y.csv.zst", Classification().record)] == [
        "a",
        "b",
    ]
    (tmp_path / "x.jsonl.zst").write_bytes(PACK[".zst"](LINES))
    with pytest.raises(DataError, match="packed or remote"):
        tables.open_table(f"{tmp_path}/x.jsonl.zst")


def test_the_share_that_is_held_out_moves_or_is_trained(tmp_path):
    tokenizer, share = bytes_only(), 0.2

    def texts(packed):
        rows = [
            packed.targets[row][packed.segments[row] == segment]
            for row, segment in zip(packed.piece_row, packed.piece_segment, strict=True)
        ]
        return {tokenizer.decode(ids, skip_special_tokens=True) for ids in rows}

    def sides(pattern):
        given = dict(cache=tmp_path / "cache", separator="|", share=share)
        return [
            plain_text.pack_files(pattern, tokenizer, 32, held_out=held, **given)
            for held in (False, True)
        ]

    every = [f"The number {n} of them." for n in range(200)]
    (tmp_path / "a.txt").write_text("|".join(every[:150]))
    wanted = {
        text
        for text in every
        if int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 2**64 < share
    }
    trained, held = sides(f"{tmp_path}/a.txt")
    assert texts(held) == wanted & {*every[:150]} and texts(trained) == {*every[:150]} - wanted
    assert 15 < len(texts(held)) < 45 and trained.counts == {"documents_held_out": len(texts(held))}
    (tmp_path / "b.txt").write_text("|".join([*every[150:], every[0]]))
    more, more_held = sides(f"{tmp_path}/*.txt")
    assert texts(more_held) == wanted and texts(more) == {*every} - wanted
    with pytest.raises(DataError, match=r"data.holdout_share=0.2 holds out \w+ of the 1 documents"):
        (tmp_path / "c.txt").write_text("one")
        sides(f"{tmp_path}/c.txt")

    rows = [{"instruction": text, "output": "yes"} for text in every]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept, out = (
        records.read(f"{tmp_path}/x.jsonl", Reading(holdout=share), part).records
        for part in ("train", "holdout")
    )
    assert len(kept) + len(out) == 200 and 20 < len(out) < 60
    assert not {record.instruction for record in kept} & {record.instruction for record in out}


def test_a_held_out_share_is_not_evaluated(tmp_path):
    (tmp_path / "a.txt").write_text("|".join(f"The number {n} of them." for n in range(60)))
    changes = {"data.files": f"{tmp_path}/a.txt", "task.separator": "|", "data.holdout_share": 0.2}
    config = runs.config(tmp_path, **changes)
    reader = setup.reader(config, tmp_path / "run")
    rows = setup.evaluation_data(config, reader)
    trained = setup.training_data(config, reader)
    assert [*rows] == ["holdout"] and len(rows["holdout"].document_bytes) + len(
        trained.document_bytes
    ) == 60
    for wrong, said in (
        ({"data": {"holdout_share": 1.0}}, "from 0 to below 1"),
        ({"eval": {"data": {"holdout": "x"}}}, "another name"),
    ):
        broken = runs.config(tmp_path, **changes)
        with broken.unlocked():
            broken.update(ml_collections.ConfigDict(wrong))
        with pytest.raises(ConfigError, match=said):
            settings.check(broken, 8)
