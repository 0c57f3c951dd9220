"""Documents from files, and what is said about files that hold none."""

import json

import pytest

from lm.data import sources
from lm.data.sources import DataError


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
        ('{"text": "a"', "line 2: not JSON"),
        ('["a"]', "line 2: no field 'text'"),
        ('{"body": "a"}', "line 2: no field 'text'; it has 'body'"),
        ('{"text": 3}', "line 2: field 'text' is int"),
        ("[" * 100_000, "line 2: not JSON"),
    ],
)
def test_a_bad_line_is_not_named(tmp_path, line, said):
    (tmp_path / "x.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=said) as error:
        list(sources.documents([str(tmp_path / "x.jsonl")]))
    assert "x.jsonl" in str(error.value)


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
