"""Documents read from files, and the errors for files that contain none."""

import gzip
import json
import logging
import subprocess
import sys
import types

import pyarrow
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import parquet

from lm.data.read import sources, tables
from lm.data.read.sources import DataError


def write(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def test_documents_are_lost_reordered_or_doubled(tmp_path):
    write(tmp_path / "b.jsonl", {"text": "two", "n": 1}, {"text": " "}, {"text": "three"})
    (tmp_path / "a.txt").write_text("one\n--\nmore")
    files = sources.find_files(f"{tmp_path}/*.txt, {tmp_path}/*.jsonl,{tmp_path}/a.txt")
    assert list(sources.documents(files)) == ["one\n--\nmore", "two", "three"]
    assert list(sources.documents(files[:1], separator="\n--\n")) == ["one", "more"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            '{"text": "a',
            r"line 2: not JSON \(Invalid control character at character 12\); expected one object "
            r"a line",
        ),
        ('["a"]', "line 2: no field 'text'"),
        ('{"body": "a"}', "line 2: no field 'text'; it has 'body'"),
        ('{"text": 3}', "line 2: field 'text' is int"),
        ("[" * 100_000, "line 2: not JSON"),
        (r'{"text": "a\ud800b"}', r"line 2: '\\ud800' is half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_not_named(tmp_path, line, said):
    (tmp_path / "x.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=said) as error:
        list(sources.documents([str(tmp_path / "x.jsonl")]))
    assert "x.jsonl" in str(error.value)


def test_half_a_character_reaches_the_tokenizer_or_a_whole_one_does_not(tmp_path):
    (tmp_path / "x.json").write_text(r'[{"text": "\ud83d\ude00"}, {"text": "\ud83d"}]')
    found = list(sources.rows(str(tmp_path / "x.json")))
    assert found[0].value == {"text": "\U0001f600"} and not found[0].problem
    assert found[1].where.endswith("entry 2") and "half of a surrogate pair" in found[1].problem


def test_a_file_that_is_not_text_is_read(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"fine\nfine\n\xff\xfe")
    with pytest.raises(DataError, match=r"x.txt, line 3: byte 0xff is not UTF-8"):
        list(sources.documents([str(tmp_path / "x.txt")]))


@pytest.mark.parametrize("patterns", ["", " , ", "nowhere/*.txt"])
def test_no_files_is_not_an_error(patterns):
    with pytest.raises(DataError, match="file"):
        sources.find_files(patterns)


def test_the_hash_does_not_follow_the_content(tmp_path):
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text("same")
    b.write_text("same")
    assert sources.content_hash([str(a)]) == sources.content_hash([str(b)])
    b.write_text("other")
    assert sources.content_hash([str(a)]) != sources.content_hash([str(b)])


RECORDS = [{"text": f"document {i}", "n": i} for i in range(5)]


def stored(folder, kind):
    path = folder / f"x{kind}"
    if kind == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path, row_group_size=2)
    elif kind == ".json":
        path.write_text(json.dumps({"data": RECORDS}))
    elif kind.endswith(".gz"):
        path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in RECORDS).encode()))
    else:
        write(path, *RECORDS)
    return str(path)


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet", ".jsonl.gz"])
def test_records_of_a_format_differ_from_those_written(tmp_path, kind):
    file = stored(tmp_path, kind)
    read = list(sources.records(sources.find_files(f"{tmp_path}/x*")))
    assert [record for _, record in read] == RECORDS
    assert all(
        where.startswith(file + ", ") and where.endswith(f" {i}")
        for i, (where, _) in enumerate(read, 1)
    )
    assert list(sources.documents([file])) == [r["text"] for r in RECORDS]


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet"])
def test_a_record_read_by_number_is_another_one(tmp_path, kind):
    table = tables.open_table(stored(tmp_path, kind))
    assert len(table) == 5 and [table[i] for i in (3, 0, 4, 1)] == [
        RECORDS[i] for i in (3, 0, 4, 1)
    ]
    with pytest.raises(IndexError):
        table[5]


def test_what_cannot_be_read_by_number_is(tmp_path):
    (tmp_path / "x.txt").write_text("text")
    for file in (str(tmp_path / "x.txt"), stored(tmp_path, ".jsonl.gz")):
        with pytest.raises(DataError, match="at random"):
            tables.open_table(file)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (".parquet", "not a Parquet file"),
        (".json", "not JSON"),
        (".jsonl.gz", "not a whole gzip file"),
        (".json.gz", "not a whole gzip file"),
        (".txt.gz", "not a whole gzip file"),
    ],
)
def test_a_damaged_file_ends_in_the_error_of_a_library(tmp_path, kind, said):
    file = stored(tmp_path, kind)
    with open(file, "rb+") as f:
        f.truncate(40)
    with pytest.raises(DataError, match=said) as error:
        list(sources.records([file]))
    assert file in str(error.value)


def test_a_parquet_file_with_a_damaged_page_is_not_named(tmp_path):
    file = stored(tmp_path, ".parquet")
    with open(file, "rb+") as f:
        f.seek(4)
        f.write(bytes(40))
    with pytest.raises(DataError, match=r"x.parquet, from row 1 on: damaged"):
        list(sources.records([file]))


def test_bad_lines_are_left_out_in_silence_or_without_limit(tmp_path, caplog):
    lines = [json.dumps(record) for record in RECORDS] * 20
    lines[7], lines[50] = '{"text": ', '{"n": 1}'
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    files, tally = [str(tmp_path / "x.jsonl")], sources.Tally()
    with caplog.at_level(logging.WARNING):
        assert len(list(sources.documents(files, max_bad_share=0.02, tally=tally))) == 98
    assert (tally.records, tally.bad, tally.bytes) == (
        100,
        2,
        (tmp_path / "x.jsonl").stat().st_size,
    )
    assert (
        "2 of 100 records were left out" in caplog.text
        and "line 8: not JSON" in caplog.text
        and "line 51: no field" in caplog.text
    )
    with pytest.raises(
        DataError,
        match=(
            r"2 of 100 records cannot be used, more than data.max_bad_share=0.01 allows: .*line 8"
        ),
    ):
        list(sources.documents(files, max_bad_share=0.01))
    with pytest.raises(DataError, match=r"^[^ ]*x.jsonl, line 8: not JSON"):
        list(sources.documents(files))


def test_a_bucket_is_not_read(tmp_path, monkeypatch):
    class Bucket(MemoryFileSystem):
        protocol = ("gs", "gcs")

    storage = Bucket()
    monkeypatch.setattr(epath.backend.fsspec_backend, "fs", lambda path: storage)
    for name in ("a/1.jsonl", "a/2.jsonl", "b.txt"):
        epath.Path(f"gs://bucket/{name}").parent.mkdir(parents=True, exist_ok=True)
        epath.Path(f"gs://bucket/{name}").write_text(json.dumps({"text": name}) + "\n")
    try:
        files = sources.find_files("gs://bucket/**/*.jsonl, gs://bucket/?.txt")
        assert files == ["gs://bucket/a/1.jsonl", "gs://bucket/a/2.jsonl", "gs://bucket/b.txt"]
        assert list(sources.documents(files)) == ["a/1.jsonl", "a/2.jsonl", '{"text": "b.txt"}\n']
        before = sources.content_hash(files)
        epath.Path("gs://bucket/b.txt").write_text("changed")
        assert sources.content_hash(files) != before
        with pytest.raises(DataError, match="no file matches"):
            sources.find_files("gs://bucket/none*")
    finally:
        storage.store.clear()


TFDS = """
import sys
import numpy as np
import tensorflow_datasets as tfds

class TinyTexts(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "n": np.int64})
        return tfds.core.DatasetInfo(builder=self, features=features)
    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}
    def _generate_examples(self):
        for i in range(5):
            yield i, {"text": f"document {i}", "n": i}

TinyTexts(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


def test_a_tfds_data_set_needs_tensorflow_or_loses_records(tmp_path):
    """Another process reads it without the builder's code, as a user's would."""
    read = (
        "import json, sys\nfrom lm.data.read import sources, tables\n"
        "name = 'tfds:tiny_texts:train'\n"
        "found = list(sources.records(sources.find_files(name)))\n"
        "out = [[r for _, r in found], len(tables.open_table('tfds:tiny_texts:train[:3]')), "
        "sources.content_hash([name])]\n"
        "for bad in ('tfds:tiny_texts:nowhere', 'tfds:no_such_texts'):\n"
        "    try: list(sources.documents([bad]))\n"
        "    except sources.DataError as e: out.append(str(e))\n"
        "print(json.dumps([*out, 'tensorflow' in sys.modules]))\n"
    )
    env = {"TFDS_DATA_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", TFDS, str(tmp_path)], check=True, capture_output=True)
    said = subprocess.run(
        [sys.executable, "-c", read], check=True, capture_output=True, text=True, env=env
    ).stdout
    records, first, _, split, name, tensorflow = json.loads(said.splitlines()[-1])
    assert sorted(records, key=lambda r: r["n"]) == RECORDS and first == 3 and not tensorflow
    assert (
        "no split 'nowhere'" in split and "it has train" in split and "tfds:no_such_texts" in name
    )


def test_a_hugging_face_data_set_is_not_asked_for_its_split(monkeypatch):
    """A stand-in with one function replaces the library, which is no dependency."""

    class Set(list):
        _fingerprint = "abc"

    asked = []
    module = types.SimpleNamespace(
        load_dataset=lambda name, split: (asked.append((name, split)), Set(RECORDS))[1]
    )
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert (
        list(sources.documents(["hf:someone/texts:test", "hf:someone/texts"]))
        == [r["text"] for r in RECORDS] * 2
    )
    assert asked == [("someone/texts", "test"), ("someone/texts", "train")]
    before = sources.content_hash(["hf:someone/texts"])
    Set._fingerprint = "def"
    assert sources.content_hash(["hf:someone/texts"]) != before
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="needs the package datasets"):
        list(sources.documents(["hf:someone/texts"]))
