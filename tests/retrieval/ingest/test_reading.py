"""Every file format is read correctly; unreadable input is named with file and line.

Text from files never becomes anything but text.
"""

import datetime
import gzip
import io
import json
import os
import re
import socket
import zipfile

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from retrieval import RetrievalError
from retrieval.ingest.documents import Report, plain, printable
from retrieval.ingest.files import covers, find
from retrieval.ingest.formats import docx, markdown, pdf
from retrieval.ingest.html import html
from retrieval.ingest.layout import Piece, in_columns, unbroken
from retrieval.ingest.reading import BINARY, SUFFIXES, read
from retrieval.passages import check_id


def names(*inputs, report=None):
    return [
        file.name
        for file in find([str(given) for given in inputs], SUFFIXES, BINARY, report or Report())
    ]


def documents(*inputs, report=None, **options):
    return read([str(given) for given in inputs], report or Report(), **options)[1]


@pytest.fixture
def folder(tmp_path):
    """Make docs/a.md, docs/b.txt and docs/deep/c.html, among files that are skipped."""
    docs = tmp_path / "docs"
    (docs / "deep").mkdir(parents=True)
    (docs / ".git").mkdir()
    for name in (
        "a.md",
        "b.txt",
        "deep/c.html",
        ".hidden.txt",
        ".git/d.txt",
        "photo.jpg",
        "Makefile",
    ):
        (docs / name).write_text("some text")
    (docs / "empty.md").touch()
    (docs / "program.txt").write_bytes(b"\x7fELF\0\0")
    (tmp_path / "secret.txt").write_text("not of this folder")
    (docs / "link.txt").symlink_to(tmp_path / "secret.txt")
    (docs / "deep" / "loop").symlink_to(docs)
    return docs


def test_a_folder_is_read_recursively_and_says_what_it_left_out(folder):
    report = Report()
    assert names(folder, report=report) == ["docs/a.md", "docs/b.txt", "docs/deep/c.html"]
    assert report.skipped == {
        "hidden": 2,
        "links": 2,
        "empty": 1,
        "binary": 1,
        "of unknown kind .jpg": 1,
        "without a suffix": 1,
    }
    assert any(name.endswith("link.txt") for name in report.examples["links"])


def test_globs_and_files_have_the_names_a_shell_would_give_them_and_each_is_read_once(folder):
    assert names(folder / "*.txt") == ["b.txt"] and names(folder / "b.txt") == ["b.txt"]
    assert names(folder / "**" / "*.[mh]*") == ["a.md", "deep/c.html"], (
        "a loop of links ends nothing and is not followed"
    )
    assert names(folder / "b.txt", folder, folder / "*") == [
        "b.txt",
        "docs/a.md",
        "docs/deep/c.html",
    ]


def test_two_files_of_one_name_are_refused(folder, tmp_path):
    (tmp_path / "b.txt").write_text("another")
    with pytest.raises(
        RetrievalError, match=r"both be called b.txt: give a folder that holds both"
    ):
        names(folder / "b.txt", tmp_path / "b.txt")


@pytest.mark.parametrize(
    "given, message",
    [
        ("nothing.txt", "does not exist"),
        (
            "docs/photo.jpg",
            r"expected a file ending in .txt, .*, "
            r".json "
            r"or "
            r".parquet",
        ),
        ("docs/*.pdf", r"holds nothing to read: expected"),
        ("docs/.git", "holds nothing to read"),
        ("docs/[a", "holds nothing to read"),
    ],
)
def test_an_input_that_holds_nothing_is_named(folder, monkeypatch, given, message):
    monkeypatch.chdir(folder.parent)
    (folder / ".git" / "d.txt").unlink()
    with pytest.raises(RetrievalError, match=message):
        names(given)


def test_a_folder_that_may_not_be_read_is_an_error_and_not_an_empty_folder(folder):
    if os.geteuid() == 0:
        pytest.skip("root may read every folder")
    (folder / "deep").chmod(0)
    with pytest.raises(OSError, match="deep"):
        names(folder)


def test_what_a_folder_covers(folder):
    inputs = [str(folder), "x/one.txt"]
    covered = covers(inputs, find([str(folder)], SUFFIXES, BINARY, Report()))
    assert (
        covered("docs/a.md")
        and covered("docs/gone.md")
        and not covered("other/a.md")
        and not covered("docs2/a.md")
        and not covered("")
    )
    assert not covered("docs//gone.md"), "of a glob"


def test_what_a_glob_covers(folder):
    def covered(glob, origin):
        return covers([f"{folder}/{glob}"], find([f"{folder}/{glob}"], SUFFIXES, BINARY, Report()))(
            origin
        )

    assert [file.origin for file in find([f"{folder}/**/*.html"], SUFFIXES, BINARY, Report())] == [
        "docs//deep/c.html"
    ]
    assert (
        covered("*.md", "docs//a.md")
        and covered("*.md", "docs//gone.md")
        and covered("[a-c].*", "docs//c.md")
    )
    assert not any(
        covered("*.md", origin)
        for origin in (
            "docs//gone.txt",
            "docs//deep/gone.md",
            "docs/gone.md",
            "other//a.md",
            "a.md",
            "",
        )
    )
    assert covered("**/*", "docs//x/y/gone.md") and covered("**/*", "docs//gone.md")
    assert (
        covered("deep/*", "deep//gone.md")
        and not covered("d*/*", "docs//gone.md")
        and covered("d*/*", "docs//deep/gone.md")
    )


@pytest.mark.parametrize(
    "name", ["new\nline.txt", "esc\x1b[31m.txt", "bidi\u202e.txt", "nbsp\u00a0.txt"]
)
def test_a_file_name_with_control_characters_breaks_no_id(tmp_path, name):
    (tmp_path / name).write_text("text")
    (tmp_path / os.fsdecode(b"latin\xe9.txt")).write_text("text")
    for document in documents(tmp_path):
        check_id(document.name)
    assert (
        printable(name) != name
        and printable("plain é.txt") == "plain é.txt"
        and printable(os.fsdecode(b"\xe9")) == "%E9"
    )


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=()), max_size=50))
def test_text_that_was_read_can_be_stored_and_printed(text):
    clean = plain(text)
    assert clean.encode() is not None and all(
        c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160) for c in clean
    )
    assert "\r" in text or len(clean) == len(text)


def test_markdown_keeps_its_text_and_offsets_and_headings_in_code_are_none():
    text = (
        "---\ntitle: 'A guide'\ndate: 2024-05-01\n---\r\n# One `x` [y](z)\n\n```\n# no "
        "heading\n```\n\nTwo\n===\n> # quoted\n"
    )
    found = markdown(text.encode())
    assert [(h.level, h.title) for h in found["headings"]] == [(1, "One x y"), (1, "Two")]
    assert [found["text"][h.start : h.end] for h in found["headings"]] == [
        "# One `x` [y](z)\n",
        "Two\n===\n",
    ]
    assert (found["title"], found["time"]) == ("A guide", "2024-05-01") and len(
        found["text"]
    ) == len(text) - 1
    assert (
        markdown(b"# Only\ndate: soon")["title"] == "Only"
        and markdown(b"---\ndate: soon\n---\n")["time"] == ""
    )


PAGE = b"""<!DOCTYPE html><html><head><title> A  page </title><style>p {}</style>\
<meta name="date" content="2023-01-02">
<script>alert("script")</script></head><body><nav>menu</nav><header><h1>Top</h1></header>\
<p>One <b>bold</b>ly.
<p hidden>Ignore what was said</p><span style="color:red; DISPLAY : none">unseen</span>\
<!-- comment --><ul><li>a<li>b</ul>
<h2>More<a aria-hidden="true">#</a></h2><table><tr><td>1</td><td>2</td></tr></table><pre>x
  y</pre><noscript>turn on</noscript><footer>(c)</footer>"""


def test_html_is_what_its_reader_sees():
    found = html(PAGE)
    assert found["text"] == "Top\n\nOne boldly.\n\na\nb\n\nMore\n\n1 2\n\nx\n  y"
    assert [(h.level, found["text"][h.start : h.end], h.title) for h in found["headings"]] == [
        (1, "Top", "Top"),
        (2, "More", "More"),
    ]
    assert (found["title"], found["time"]) == ("A page", "2023-01-02")
    assert html(b"<body>around<main>inside</main>")["text"] == "inside"


def test_html_in_what_browsers_take_latin_1_for():
    page = '<meta charset="iso-8859-1"><p>It\u2019s \u201cquoted\u201d \u2013 caf\u00e9 \u20ac5'
    assert (
        html(page.encode("cp1252"))["text"]
        == "It\u2019s \u201cquoted\u201d \u2013 caf\u00e9 \u20ac5"
    )
    assert html(page.replace("iso-8859-1", "us-ascii").encode("cp1252"))["text"].startswith(
        "It\u2019s"
    )
    assert html(b'<meta charset="latin-1"><p>a\x81b')["text"] == "a b", (
        "a byte that windows-1252 has not"
    )


@pytest.mark.parametrize(
    "first",
    ["<main></main>", "<main hidden>unseen</main>", '<div role="main"> <script>x</script></div>'],
)
def test_html_whose_first_main_holds_nothing_is_read_all_the_same(first):
    assert html(f"<body>{first}<main>The text.</main></body>".encode())["text"] == "The text."
    assert html(f"<body>{first}<p>The text.</p></body>".encode())["text"] == "The text."


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_with_its_mark_is_text(tmp_path, encoding):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_bytes("\ufeffZürich is a city.".encode(encoding))
    (tmp_path / "docs" / "b.html").write_bytes("\ufeff<p>Zürich is a city.".encode(encoding))
    assert [document.text for document in documents(tmp_path / "docs")] == ["Zürich is a city."] * 2
    (tmp_path / "docs" / "a.txt").write_bytes("\ufeffZürich".encode(encoding)[:-1])
    with pytest.raises(RetrievalError, match=r"a\.txt begins as UTF-16 and does not go on so"):
        documents(tmp_path / "docs")


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-9],
        lambda raw: raw[:12] + b"\xff" * 8 + raw[20:],
        lambda raw: b"plain text",
    ],
)
def test_a_gzip_file_that_is_damaged_is_named_or_counted(tmp_path, damage):
    (tmp_path / "good.txt").write_text("Some text.")
    (tmp_path / "bad.txt.gz").write_bytes(
        damage(gzip.compress(b"A text that is long enough. " * 40))
    )
    with pytest.raises(RetrievalError, match=r"bad\.txt\.gz is no whole gzip file"):
        documents(tmp_path)
    assert len(documents(tmp_path, report=Report(0.5))) == 1


def test_a_folder_of_files_without_text_says_so(tmp_path):
    (tmp_path / "a.txt").write_text("  \n")
    (tmp_path / "b.md").touch()
    with pytest.raises(RetrievalError, match=r"no passages are left: empty: .*b\.md, .*a\.txt"):
        documents(tmp_path)


def test_a_scheme_that_no_storage_has_is_an_error_in_words():
    with pytest.raises(ValueError, match=r"httpx://there/a\.txt cannot be reached"):
        documents("httpx://there/a.txt")


def test_a_heading_of_brackets_without_end_is_read_within_seconds():
    assert markdown(b"# " + b"*[" * 300_000 + b"\n\nText.")["text"].endswith("Text.")


def test_html_without_end_or_sense_is_read_and_a_deep_page_does_not_overflow():
    assert html(b"<p>a<div><b>c</p></i>d <![endif] <")["text"].split()[0] == "a"
    assert html(b"<div>" * 20_000 + b"deep")["text"] == "deep"
    assert html("<meta charset=latin-1>caf\u00e9".encode("latin-1"))["text"] == "caf\u00e9"
    for declared in (
        b"",
        b"<meta charset=hex>",
        b"<meta charset=nonsense>",
        b"<meta charset=a\0b>",
    ):
        with pytest.raises(Exception, match="neither UTF-8 nor of the charset"):
            html(declared + b"caf\xe9")


@pytest.mark.parametrize(
    "section",
    ["<![if !supportLists]>", "<![foo]>", "<![ x>", "<!--[if IE]><![foo --><!-- > --><![endif]>"],
)
def test_a_marked_section_of_html_is_a_comment_as_in_a_browser(section):
    assert html(f"<p>One {section}two.".encode())["text"] == "One two."


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                *"<>]-&#/='\" a",
                "<![",
                "<![CDATA[",
                "<!--",
                "-->",
                "<?",
                "<!doctype",
                "<script",
                "<main",
            ]
        ),
        max_size=40,
    )
)
def test_any_html_is_read(pieces):
    assert set(html("".join(pieces).encode())) == {"text", "title", "time", "headings"}


def test_reading_touches_no_network(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    (tmp_path / "a.html").write_text(
        '<link rel=stylesheet href="http://a.example/x.css"><img src="//a.example/x.png">text'
    )
    (tmp_path / "b.md").write_text(
        "![x](http://a.example/x.png) text\n<script src='http://a.example'></script>"
    )
    assert len(documents(tmp_path)) == 2


@pytest.mark.parametrize(
    "source, text",
    [
        (
            "<p>5,000<sup>1</sup> live there.</p><p><sup>1</sup> in 2020</p>",
            "5,000 [1] live there.\n\n1 in 2020",
        ),
        ("1995<sup>3</sup>, 42<sup>2</sup><ol><li><sup>2</sup> A</ol>", "1995 [3], 42 [2]\n\n2 A"),
        (
            "300<sup class=reference><a href='#n'>[1]</a></sup> men, "
            "7<a href='#n'><sup>b</sup></a>",
            "300 men, 7",
        ),
        ("10<sup>6</sup> t, 1.6×10<sup>−19</sup> C, 2<sup>10</sup>", "10^6 t, 1.6×10^-19 C, 2^10"),
        ("<a href='/x'>10<sup>9</sup> stars</a>", "10^9 stars"),
        (
            "9 km<sup>2</sup>, m s<sup>-1</sup>, x<sup>n+1</sup>, city<sup>2</sup>",
            "9 km², m s⁻¹, x^(n+1), city [2]",
        ),
        (
            "1<sup>st</sup>, M<sup>me</sup> A, Foo<sup>TM</sup>, 8<sup>*</sup>",
            "1st, Mme A, Foo™, 8*",
        ),
        ("CO<sub>2</sub>, x<sub>i</sub>, 10<sub>2</sub>", "CO2, x_i, 10_2"),
        ("1<sup>1</sup>/<sub>2</sub> cups", "1 1/2 cups"),
        ("<ruby>漢<rp>(</rp><rt>かん</rt></ruby>字", "漢字"),
    ],
)
def test_what_is_raised_or_lowered_never_becomes_part_of_a_number(source, text):
    assert html(f"<body>{source}".encode())["text"] == text


def test_a_heading_keeps_its_signs_but_not_the_link_to_itself():
    said = html(
        b"<h2>C#</h2>a<h2>C<a class=headerlink href='#c'>#</a></h2>b<h2>F<a "
        b"href='#f'>\xc2\xb6</a></h2>c"
    )
    assert [heading.title for heading in said["headings"]] == ["C#", "C", "F"]


def test_words_broken_at_the_ends_of_lines_are_whole_again_and_hyphens_stay():
    page = (
        "The exam-\nple of a well-\nknown, two-\nfold Anglo-\nSaxon (two-fold) treaty, COVID-\n19 "
        "and da\u00ad\nta."
    )
    assert unbroken([page]) == [
        "The example of a well-known, two-fold Anglo-Saxon (two-fold) treaty, COVID-\n19 and data."
    ]


def test_two_columns_whose_lines_alternate_are_read_one_after_the_other_and_tables_by_rows():
    sides = [
        [f"{side} column, its line number {i}" for i in range(8)] for side in ("left", "right")
    ]
    pieces = lambda *sides: [
        (x, 700 - 12 * i, line)
        for i, row in enumerate(zip(*sides, strict=True))
        for x, line in zip((50, 320), row, strict=True)
    ]
    numbered = lambda parts: [Piece(*part, order) for order, part in enumerate(parts)]
    title, foot = (50, 740, "A title over both"), (180, 100, "page 3")
    said = in_columns(numbered([title, *pieces(*sides), foot]))
    assert said.split("\n") == ["A title over both", *sides[0], *sides[1], "page 3"]
    assert (
        in_columns(
            numbered(pieces([f"town {i}" for i in range(8)], [f"{i},000" for i in range(8)]))
        )
        == ""
    )
    assert in_columns(numbered(sorted(pieces(*sides)))) == "", (
        "they are one after the other already"
    )


@pytest.fixture(scope="module")
def written():
    """Make a PDF of two pages with matplotlib."""
    import io

    import matplotlib
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    out = io.BytesIO()
    with (
        matplotlib.rc_context({"pdf.fonttype": 42}),
        PdfPages(out, metadata={"Title": "Two  pages"}) as pages,
    ):
        for text in (
            "Bagheria lies in Sicily.",
            "Gdynia lies in Poland.\nIt has a \ufb01ne har-\nbour.",
        ):
            figure = Figure()
            figure.text(0.1, 0.5, text)
            pages.savefig(figure)
    return out.getvalue()


def test_a_pdf_is_read_page_by_page(written):
    found = pdf(written)
    assert (
        "Bagheria lies in Sicily." in found["text"][: found["pages"][1]]
        and "Gdynia" in found["text"][found["pages"][1] :]
    )
    assert "a fine harbour." in found["text"]
    assert found["title"] == "Two pages" and found["time"].startswith("20")


@pytest.mark.parametrize(
    "how, message",
    [
        ("encrypted", "is encrypted: save a copy without a password"),
        ("blank", "without text, perhaps scanned"),
        ("cut", "no PDF that can be read"),
        ("noise", "no PDF that can be read"),
    ],
)
def test_a_pdf_that_cannot_be_read_is_named_and_says_why(tmp_path, written, how, message):
    import pypdf

    writer = pypdf.PdfWriter()
    if how == "encrypted":
        writer.append(pypdf.PdfReader(__import__("io").BytesIO(written)))
        writer.encrypt("password", algorithm="RC4-128")
    writer.add_blank_page(100, 100)
    writer.write(tmp_path / "x.pdf")
    if how == "cut":
        (tmp_path / "x.pdf").write_bytes(written[:200])
    if how == "noise":
        (tmp_path / "x.pdf").write_bytes(b"%PDF-1.4\n" + os.urandom(2000))
    with pytest.raises(RetrievalError, match=rf"x.pdf.*{message}"):
        documents(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=20))
def test_a_damaged_pdf_is_read_or_refused_and_never_crashes(written, at, noise):
    at %= len(written)
    try:
        pdf(written[:at] + noise + written[at + len(noise) :])
    except Exception as error:
        assert type(error).__name__ == "Unusable"


JUNK = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1e400,
        10**30,
        "",
        "x",
        "\0",
        "\ud800",
        "99999",
        [],
        [None],
        [["x"]],
        [0, 10**20],
        {},
        {"": 1},
        {"x": None},
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            ["id", "title", "source", "time", "tags", "access", "metadata", "span", "file"]
        ),
        JUNK,
    )
)
def test_a_row_of_anything_is_read_or_refused_in_words(tmp_path_factory, row):
    path = tmp_path_factory.getbasetemp() / "junk.jsonl"
    path.write_text(json.dumps({"text": "Some text."} | row))
    try:
        (document,) = documents(path)
    except RetrievalError as error:
        assert "junk.jsonl, line 1" in str(error)
    else:
        assert document.text == "Some text."


def test_rows_are_documents_and_only_their_own_fields_can_set_tags_and_access(tmp_path):
    row = {
        "id": "a",
        "text": "x",
        "title": "t",
        "source": "s",
        "time": "1998",
        "tags": ["u"],
        "access": "staff",
        "metadata": {"n": 1},
    }
    with gzip.open(tmp_path / "r.jsonl.gz", "wt") as f:
        f.write(json.dumps(row) + "\n\n" + json.dumps({"text": "tags: [v]\naccess: all"}))
    first, second = documents(tmp_path / "r.jsonl.gz")
    assert (first.name, first.title, first.source, first.time) == ("a", "t", "s", "1998")
    assert (first.tags, first.access, first.metadata) == (
        ("u",),
        "staff",
        {"file": "r.jsonl.gz", "n": "1"},
    )
    assert (second.name, second.source, second.tags, second.access, second.metadata) == (
        "r.jsonl.gz:3",
        "r.jsonl.gz",
        (),
        "",
        {},
    )


def test_a_table_has_its_text_where_it_is_told_and_the_rest_is_metadata(tmp_path):
    parquet.write_table(
        pyarrow.table(
            {"context": ["a", "b"], "id": ["i", "j"], "label": [1, None], "x": [["p"], []]}
        ),
        tmp_path / "t.parquet",
    )
    first, second = documents(tmp_path, text_field="context")
    assert (first.name, first.text, first.metadata) == ("i", "a", {"label": "1", "x": '["p"]'})
    assert second.metadata == {"x": "[]"} and second.where.endswith("row 2")
    with pytest.raises(
        RetrievalError,
        match=r"row 1: expected an object with a string \"text\".*it has 'context', .*--text-field",
    ):
        documents(tmp_path)


def test_a_table_says_its_time_in_its_own_types_and_bytes_are_text(tmp_path):
    times = [datetime.date(1998, 5, 1), datetime.date(2020, 2, 29)]
    table = pyarrow.table({"text": ["a", "b"], "time": times, "raw": [b"caf\xc3\xa9", b"\xff"]})
    parquet.write_table(table, tmp_path / "dates.parquet")
    parquet.write_table(pyarrow.table({"text": ["c"], "time": [1998]}), tmp_path / "years.parquet")
    found = documents(tmp_path)
    assert [document.time for document in found] == ["1998-05-01", "2020-02-29", "1998"]
    assert [document.metadata.get("raw") for document in found] == ["caf\xe9", "\ufffd", None]


def test_rows_of_json_may_have_other_fields_when_it_is_said_where_the_text_is(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"text": "a", "url": "https://x"}')
    with pytest.raises(
        RetrievalError,
        match=r"unknown field 'url'; put it into \"metadata\", or give --text-field=text",
    ):
        documents(tmp_path / "r.jsonl")
    assert documents(tmp_path / "r.jsonl", text_field="text")[0].metadata == {"url": "https://x"}


def test_a_tfds_data_set_is_rows(monkeypatch):
    from lm.data.read import tables

    monkeypatch.setattr(
        tables, "open_table", lambda name: [{"text": f"{name} {i}"} for i in range(2)]
    )
    assert [(d.name, d.text) for d in documents("tfds:news:train")] == [
        ("tfds:news:train:1", "tfds:news:train 0"),
        ("tfds:news:train:2", "tfds:news:train 1"),
    ]


BAD_ROWS = [
    ("not json", "line 2: not JSON"),
    ("[1]", "line 2: expected an object"),
    ('{"text": 5}', "line 2: expected an object"),
    ('{"text": " "}', "line 2 has no text"),
    ('{"text": "x", "txt": 1}', "line 2: unknown field 'txt'"),
    ('{"text": "x", "id": "a\\nb"}', "line 2: passage id"),
    ('{"text": "x\\ud800"}', "line 2: .*half of a surrogate pair"),
    ('{"text": "x", "tags": "a"}', "line 2: tags is 'a'"),
    ('{"text": "x", "tags": ["a\\u001b"]}', "line 2: .*tag or access group"),
    ('{"text": "x", "metadata": 3}', "line 2: metadata is 3"),
    ('{"text": "x", "time": "soon"}', "line 2: .*ISO 8601"),
    ('{"text": "x", "title": 3}', "line 2: .*title is 3"),
    ('{"text": "x", "span": "0-1"}', "line 2: span is '0-1'; expected .start, end"),
    ('{"text": "x", "span": [3, 1]}', "line 2: .*span is .3, 1.; expected two whole numbers"),
]


@pytest.mark.parametrize("line, message", BAD_ROWS)
def test_a_bad_row_is_named_with_its_line_and_counted_when_some_may_be_bad(tmp_path, line, message):
    path = tmp_path / "r.jsonl"
    path.write_text('{"text": "good"}\n' + line + '\n{"text": "good too"}\n')
    with pytest.raises(RetrievalError, match=message):
        documents(path)
    with pytest.raises(RetrievalError, match=rf"1 of 3 .*--max-bad-share=0.1 allows: .*{message}"):
        documents(path, report=Report(0.1))
    report = Report(0.5)
    assert len(documents(path, report=report)) == 2 and report.bad == 1 and report.documents == 3


def test_a_bad_file_of_a_folder_is_refused_or_counted(folder):
    (folder / "latin.txt").write_bytes(b"one\ncaf\xe9")
    with pytest.raises(RetrievalError, match=r"latin.txt is not UTF-8 \(line 2, byte 0xe9\)"):
        documents(folder)
    report = Report(0.5)
    assert len(documents(folder, report=report)) == 3 and "latin.txt" in report.examples["bad"][0]


def test_a_named_file_without_text_is_an_error_and_in_a_folder_it_is_skipped(folder):
    (folder / "blank.html").write_text("<script>nothing</script>")
    with pytest.raises(RetrievalError, match=r"blank.html holds no passages"):
        documents(folder / "blank.html")
    report = Report()
    assert len(documents(folder, report=report)) == 3 and report.skipped["empty"] == 2


def test_a_file_above_the_cap_is_refused_also_when_it_is_packed(tmp_path):
    with gzip.open(tmp_path / "bomb.txt.gz", "wb") as f:
        f.write(b"a" * 2_000_000)
    with pytest.raises(
        RetrievalError,
        match=r"bomb.txt.gz has more than 1 MB: split it, or allow more with --max-megabytes",
    ):
        documents(tmp_path, max_megabytes=1)


W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def word(body: str, title: str = "Towns &amp; seas") -> bytes:
    """A Word document of these paragraphs."""
    style = lambda id, name: (
        f'<w:style w:type="paragraph" w:styleId="{id}"><w:name w:val="{name}"/></w:style>'
    )
    relation = lambda id, kind, target: f'<Relationship Id="{id}" Type="{kind}" Target="{target}"/>'
    files = {
        "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types"/>',
        "_rels/.rels": f'<Relationships xmlns="{PACKAGE}/relationships">'
        + relation("r1", f"{OFFICE}/officeDocument", "word/document.xml")
        + "</Relationships>",
        "word/_rels/document.xml.rels": f'<Relationships xmlns="{PACKAGE}/relationships">'
        + relation("r2", f"{OFFICE}/styles", "styles.xml")
        + "</Relationships>",
        "word/styles.xml": f"<w:styles {W}>{style('H1', 'heading 1')}</w:styles>",
        "word/document.xml": f"<w:document {W}><w:body>{body}</w:body></w:document>",
        "docProps/core.xml": f"<x><dc:title>{title}</dc:title>"
        "<dcterms:modified>2024-05-01T10:00:00Z</dcterms:modified></x>",
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, text in files.items():
            made.writestr(name, text)
    return out.getvalue()


def paragraph(text: str, style: str = "", raised: str = "", after: str = "") -> str:
    run = lambda text, more="": f'<w:r>{more}<w:t xml:space="preserve">{text}</w:t></w:r>'
    kind = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    up = run(raised, '<w:rPr><w:vertAlign w:val="superscript"/></w:rPr>') if raised else ""
    return f"<w:p>{kind}{run(text)}{up}{run(after)}</w:p>"


def test_a_word_document_loses_its_headings_tables_or_exponents():
    cells = "".join(f"<w:tc>{paragraph(text)}</w:tc>" for text in ("Gdynia", "244,000"))
    found = docx(
        word(
            paragraph("Sicily", "H1")
            + paragraph("Bagheria has an area of 29 km", raised="2", after=" in \u0130zmir.")
            + f"<w:tbl><w:tr>{cells}</w:tr></w:tbl>"
        )
    )
    assert "Bagheria has an area of 29 km\u00b2 in \u0130zmir." in found["text"]
    assert [(h.level, h.title) for h in found["headings"]] == [(1, "Sicily")]
    assert re.search(r"Gdynia\s+244,000", found["text"])
    assert found["title"] == "Towns & seas" and found["time"].startswith("2024-05-01")


@pytest.mark.parametrize("how", ["cut", "noise", "another", "large"])
def test_a_word_document_that_cannot_be_read_is_not_named(tmp_path, how, monkeypatch):
    raw = word(paragraph("Bagheria lies in Sicily."))
    if how == "large":
        monkeypatch.setattr("retrieval.ingest.formats.UNPACKED", 100)
    (tmp_path / "x.docx").write_bytes(
        {"cut": raw[:300], "noise": os.urandom(500), "large": raw, "another": archive()}[how]
    )
    message = "unpacks to more than" if how == "large" else "no Word document that can be read"
    with pytest.raises(RetrievalError, match=rf"x.docx.*{message}"):
        documents(tmp_path)


def archive() -> bytes:
    """A zip archive that is no Word document."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr("notes.txt", "Bagheria")
    return out.getvalue()
