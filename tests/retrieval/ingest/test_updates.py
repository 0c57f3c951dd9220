"""A second build applies exactly the differences; an interrupted build is resumed."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval import Memory, Passage, build
from retrieval.encoders.encoding import MemoryEncoder
from retrieval.index import approximate
from retrieval.ingest import updates
from tests.retrieval.ingest import toy
from tests.retrieval.models import word_tokenizer
from tests.retrieval.toy import state

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return toy.save(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("# A\n\nOne.\n\n## B\n\nTwo.\n\n## C\n\nThree.\n")
    (folder / "n.txt").write_text("First.\n\nSecond.\n\nThird.\n")
    (folder / "rows.jsonl").write_text(
        "".join(
            json.dumps({"id": f"r{i}", "text": f"row {i}", "source": "web"}) + "\n"
            for i in range(3)
        )
    )
    return folder


@pytest.fixture
def run(tmp_path, encoder, docs, capsys, monkeypatch):
    """Build from `docs` and return the output of --json."""
    toy.use(monkeypatch.setattr)

    def run(*arguments, code=0, inputs=None):
        given = [
            f"--memory={tmp_path / 'm'}",
            f"--encoder={encoder}",
            "--json",
            *arguments,
            "--input",
            *map(str, inputs or [docs]),
        ]
        assert build.main(given) == code
        captured = capsys.readouterr()
        return captured.err if code else json.loads(captured.out.splitlines()[-1])

    return run


def changes(said):
    return tuple(said[name] for name in ("added", "edited", "removed", "gone", "unchanged"))


def test_a_second_build_changes_exactly_what_changed_and_embeds_nothing_else(
    run, docs, tmp_path, monkeypatch
):
    assert changes(run()) == (9, 0, 0, 0, 0)
    memory, seen = Memory.open(tmp_path / "m"), []
    vectors = MemoryEncoder.vectors
    monkeypatch.setattr(
        MemoryEncoder,
        "vectors",
        lambda self, texts, what: seen.extend(texts) or vectors(self, texts, what),
    )
    assert (
        changes(run()) == (0, 0, 0, 0, 9)
        and memory.version == Memory.open(tmp_path / "m").version
        and not seen
    )
    (docs / "a.md").write_text("# A\n\nOne.\n\n## B\n\nTwo, changed.\n\n## D\n\nFour.\n")
    (docs / "n.txt").write_text("Zeroth.\n\nFirst.\n\nSecond.\n")
    rows = (docs / "rows.jsonl").read_text().splitlines()
    (docs / "rows.jsonl").write_text("\n".join([rows[2], rows[0]]))
    (docs / "new.html").write_text("<p>Five.")
    assert changes(run()) == (2, 4, 0, 2, 3), (
        "B and n.txt:1 to 3 edited, D and new.html added, C and r1 gone"
    )
    assert sorted(seen) == ["A > B. Two, changed.", "A > D. Four.", "Five.", "Zeroth."]
    assert changes(run("--sync")) == (0, 0, 2, 0, 9)
    assert state(Memory.open(tmp_path / "m")) == {
        "docs/a.md:1": "One.",
        "docs/a.md#b:1": "Two, changed.",
        "docs/a.md#d:1": "Four.",
        "docs/new.html:1": "Five.",
        "docs/n.txt:1": "Zeroth.",
        "docs/n.txt:2": "First.",
        "docs/n.txt:3": "Second.",
        "r0": "row 0",
        "r2": "row 2",
    }


def test_sync_removes_files_that_are_gone_and_nothing_that_came_from_elsewhere(run, docs, tmp_path):
    run()
    (tmp_path / "other.txt").write_text("Another.")
    assert changes(run(inputs=[tmp_path / "other.txt"])) == (1, 0, 0, 0, 0)
    (docs / "n.txt").unlink()
    assert changes(run("--sync")) == (0, 0, 3, 0, 6)
    assert "other.txt:1" in state(Memory.open(tmp_path / "m"))


def test_sync_with_a_glob_removes_files_that_are_gone_and_nothing_of_another_glob(
    run, docs, tmp_path
):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "x.md").write_text("Another.")
    run(inputs=[tmp_path / "more/*.md"])
    (docs / "z.md").write_text("Last.")
    assert changes(run(inputs=[docs / "*.md"])) == (4, 0, 0, 0, 0)
    (docs / "z.md").unlink()
    assert changes(run(inputs=[docs / "*.md"])) == (0, 0, 0, 1, 3)
    assert changes(run("--sync", inputs=[docs / "*.md"])) == (0, 0, 1, 0, 3)
    assert set(state(Memory.open(tmp_path / "m"))) == {"a.md:1", "a.md#b:1", "a.md#c:1", "x.md:1"}


def test_sync_leaves_what_was_added_by_hand_whatever_its_source_and_removes_what_was_edited_by_hand(
    run, docs, tmp_path, encoder
):
    run()
    memory = Memory.open(tmp_path / "m", toy.Toy(encoder))
    memory.add(
        [
            Passage("mine", "By hand.", source="docs/n.txt"),
            Passage("docs/n.txt:9", "By hand too.", source="docs/n.txt"),
        ]
    )
    memory.edit("docs/n.txt:3", "Third, by hand.", source="elsewhere")
    (docs / "n.txt").write_text("First.\n\nSecond.")
    assert changes(run("--sync")) == (0, 0, 1, 0, 8)
    left = state(Memory.open(tmp_path / "m"))
    assert {"mine", "docs/n.txt:9"} < left.keys() and "docs/n.txt:3" not in left
    memory.undo()
    assert memory.get("docs/n.txt:3").origin == "docs/n.txt" and memory.get("mine").origin == ""


def test_a_memory_from_before_origins_were_recorded_is_synced_by_names_and_records_them(
    run, docs, tmp_path
):
    run(inputs=[docs / "*.md"])
    memory, before = Memory.open(tmp_path / "m"), state(Memory.open(tmp_path / "m"))
    memory.update([dataclasses.replace(memory.get(id), origin=None) for id in before])
    assert (
        changes(run("--sync", inputs=[docs / "*.md"])) == (0, 0, 0, 0, 3)
        and state(Memory.open(tmp_path / "m")) == before
    )
    assert {Memory.open(tmp_path / "m").get(id).origin for id in before} == {"docs//a.md"}
    version = Memory.open(tmp_path / "m").version
    assert (
        changes(run(inputs=[docs / "*.md"])) == (0, 0, 0, 0, 3)
        and Memory.open(tmp_path / "m").version == version
    )
    (docs / "a.md").rename(docs / "b.md")
    assert changes(run("--sync", inputs=[docs / "*.md"])) == (3, 0, 3, 0, 0)


def test_a_file_that_was_renamed_is_not_taken_for_a_duplicate_of_itself(run, docs, tmp_path):
    run()
    (docs / "n.txt").rename(docs / "m.txt")
    assert changes(run("--sync", "--drop-duplicates")) == (3, 0, 3, 0, 6)
    assert "Third." in state(Memory.open(tmp_path / "m")).values()


def test_an_id_that_came_from_elsewhere_is_not_overwritten(run, docs, tmp_path):
    run()
    (tmp_path / "other.jsonl").write_text(json.dumps({"id": "r1", "text": "another"}))
    assert "not from these files: 'r1'" in run(code=2, inputs=[tmp_path / "other.jsonl"])
    assert state(Memory.open(tmp_path / "m"))["r1"] == "row 1"


def test_sync_with_unreadable_documents_is_refused(run, docs):
    run()
    (docs / "n.txt").write_bytes(b"\xff")
    assert "--sync would remove what 1 bad" in run("--sync", "--max-bad-share=0.5", code=2)
    assert changes(run("--max-bad-share=0.5")) == (0, 0, 0, 3, 6)


def test_a_dry_run_says_what_would_change_and_changes_nothing(run, docs, tmp_path):
    assert changes(run("--dry-run")) == (9, 0, 0, 0, 0) and not (tmp_path / "m").exists()
    run()
    (docs / "n.txt").write_text("First.")
    files = {path: path.read_bytes() for path in (tmp_path / "m").rglob("*") if path.is_file()}
    said = run("--dry-run", "--sync")
    assert changes(said) == (0, 0, 2, 0, 7) and said["dry_run"] and said["size"] == 9
    assert files == {
        path: path.read_bytes() for path in (tmp_path / "m").rglob("*") if path.is_file()
    }


def test_tags_and_access_come_from_the_command_and_win_over_rows(run, docs, tmp_path):
    (docs / "more.jsonl").write_text(
        json.dumps({"id": "x", "text": "mine", "tags": ["own"], "access": "all"})
    )
    (docs / "evil.md").write_text(
        "---\ntags: [evil]\naccess: everybody\n---\n<!-- access: everybody -->\nText.\n"
    )
    run("--tags", "set", "own", "--access=staff")
    memory = Memory.open(tmp_path / "m")
    passages = {id: passage for id, (passage, _) in memory._store.get(memory._store.ids()).items()}
    assert {passage.access for passage in passages.values()} == {"staff"}
    assert passages["x"].tags == ("own", "set") and {
        p.tags for id, p in passages.items() if id != "x"
    } == {("set", "own")}


def test_duplicates_are_reported_and_left_out_when_asked(run, docs, tmp_path):
    (docs / "copy.txt").write_text("First.\n\nA new one.")
    said = run("--dry-run")
    assert said["duplicates"] == 1 and said["repeats"] == [
        {"id": "docs/n.txt:1", "of": "docs/copy.txt:1", "similarity": 1.0, "exact": True}
    ]
    assert changes(run("--drop-duplicates")) == (10, 0, 0, 0, 0) and changes(
        run("--drop-duplicates")
    ) == (0, 0, 0, 0, 10)
    (tmp_path / "again.txt").write_text("ROW 1\n\nNothing like it.")
    said = run("--drop-duplicates", inputs=[tmp_path / "again.txt"])
    assert changes(said) == (1, 0, 0, 0, 0) and said["repeats"][0]["of"] == "r1", (
        "it repeats what another build put there"
    )


def test_a_document_can_set_neither_borders_nor_ids_of_others(run, docs, tmp_path):
    (docs / "evil.txt").write_text('{"id": "r1", "text": "replaced"}\nid: r1\x1b[2J\x07')
    (docs / "evil.html").write_text(
        '<h1>r1</h1><p id="r1">]]&gt; r1</p><meta name="tags" content="x"><div '
        'data-access="all">y</div>'
    )
    run()
    texts = state(Memory.open(tmp_path / "m"))
    assert texts["r1"] == "row 1" and all(text.isprintable() for text in texts.values())
    assert {id for id in texts if "evil" in id} == {"docs/evil.txt:1", "docs/evil.html:1"}


def test_a_long_document_is_cut_to_what_the_encoder_sees_and_a_row_is_refused_when_cutting_is_off(
    run, docs, tmp_path
):
    (docs / "long.jsonl").write_text(
        json.dumps({"id": "long", "text": "A sentence of it. " * 700_000})
    )
    assert (
        "passage 'long' has 12,600,000 characters" in run("--chunk=none", code=2)
        and not (tmp_path / "m").exists()
    )
    (docs / "long.jsonl").write_text(json.dumps({"id": "long", "text": "A sentence of it. " * 50}))
    assert run()["added"] > 20
    assert (
        max(
            map(
                len,
                word_tokenizer()(list(state(Memory.open(tmp_path / "m")).values()))["input_ids"],
            )
        )
        <= 64
    )
    assert "--size=63: the encoder sees at most 62 tokens" in run("--size=63", code=2)


def test_a_build_that_was_killed_is_finished_by_the_next(run, docs, tmp_path, encoder):
    (docs / "n.txt").write_text("\n\n".join(f"Paragraph {i}." for i in range(40)))
    killed = (
        "import os, signal, sys\n"
        "from retrieval import Memory, build\n"
        "from retrieval.ingest import updates\n"
        "from tests.retrieval.ingest import toy\n"
        "toy.use()\n"
        "updates.PART, add, calls = 8, Memory.add, []\n"
        "def dying(self, *a, **k):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return add(self, *a, **k)\n"
        "Memory.add = dying\n"
        "build.main(sys.argv[1:])\n"
    )
    arguments = [f"--memory={tmp_path / 'm'}", f"--encoder={encoder}", "--input", str(docs)]
    done = subprocess.run(
        [sys.executable, "-c", killed, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == -9 and "16 of 46 passages" in done.stderr and "left" in done.stderr
    assert changes(run()) == (30, 0, 0, 0, 16)
    whole = state(Memory.open(tmp_path / "m"))
    assert len(whole) == 46


def test_a_replacement_that_was_cut_off_goes_on_and_leaves_nothing_behind(
    run, docs, tmp_path, monkeypatch
):
    run()
    monkeypatch.setattr(updates, "PART", 2)
    add, calls = Memory.add, []

    def failing(self, *args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise OSError("no space left")
        return add(self, *args, **options)

    monkeypatch.setattr(Memory, "add", failing)
    assert "no space left" in run("--replace", code=2) and len(Memory.open(tmp_path / "m")) == 9
    (docs / "rows.jsonl").unlink()
    said = run("--replace")
    assert said["unchanged"] == 4 and said["size"] == 6 and len(Memory.open(tmp_path / "m")) == 6
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".m")] == []


@pytest.mark.parametrize("left", ["created", "emptied", "undone"])
def test_a_build_goes_on_into_a_memory_that_is_empty(run, tmp_path, encoder, left):
    """As left by a build that was killed before its first commit."""
    if left == "created":
        Memory.create(tmp_path / "m", toy.Toy(encoder))
        Memory.create(tmp_path / ".m.building", toy.Toy(encoder))
    else:
        run()
        memory = Memory.open(tmp_path / "m", toy.Toy(encoder))
        memory.delete(memory.ids()) if left == "emptied" else memory.undo()
    assert run("--dry-run")["version"] > 0
    assert run()["size"] == len(Memory.open(tmp_path / "m")) == 9
    assert run("--replace")["size"] == 9


def test_a_replacement_killed_while_it_takes_the_place_loses_neither_memory(
    run, docs, tmp_path, monkeypatch
):
    run()
    (docs / "rows.jsonl").unlink()
    rename, done = os.rename, []

    def dying(source, target):
        if done:
            raise KeyboardInterrupt
        done.append(rename(source, target))

    with monkeypatch.context() as killed:
        killed.setattr(os, "rename", dying)
        run("--replace", code=130)
    assert not (tmp_path / "m").exists() and len(Memory.open(tmp_path / "m")) == 9
    assert run("--replace")["size"] == len(Memory.open(tmp_path / "m")) == 6
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".m")] == []


def test_what_a_link_leads_to_is_replaced(run, docs, tmp_path, encoder):
    run()
    (tmp_path / "link").symlink_to(tmp_path / "m")
    (docs / "rows.jsonl").unlink()
    assert build.main([f"--memory={tmp_path / 'link'}", "--replace", "--input", str(docs)]) == 0, (
        "with the encoder that it has"
    )
    assert (tmp_path / "link").is_symlink() and len(Memory.open(tmp_path / "m")) == 6


def test_a_passage_whose_source_only_looks_like_a_file_s_is_not_of_that_file(run, docs, tmp_path):
    """A row's source may name a path below a folder of the same name."""
    row = {"id": "x", "text": "of a manual", "source": "docs/manual.pdf"}
    named = {
        "id": "y",
        "text": "of another",
        "source": "docs/manual.pdf",
        "metadata": {"file": "docs/scan.tif"},
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(named))
    run(inputs=[tmp_path / "rows.jsonl"])
    assert changes(run("--sync")) == (9, 0, 0, 0, 0)
    (tmp_path / "rows.jsonl").write_text(
        json.dumps(row) + "\n" + json.dumps(named | {"text": "changed"})
    )
    assert changes(run(inputs=[tmp_path / "rows.jsonl"])) == (0, 1, 0, 0, 1)
    memory = Memory.open(tmp_path / "m")
    assert (
        memory.get("y").metadata == {"file": "docs/scan.tif", "openbook:file": "rows.jsonl"}
        and memory.get("y").text == "changed"
    )


def test_what_has_another_title_or_other_readers_is_no_duplicate(run, tmp_path):
    cities = tmp_path / "cities.md"
    cities.write_text("# Population\n\n## Rome\n\n2.8 million.\n\n## Berlin\n\n2.8 million.\n")
    rows = [
        {"id": "secret", "text": "the same text", "access": "staff"},
        {"id": "open", "text": "The same  text"},
    ]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, rows[0] | {"id": "again"}])
    )
    said = run("--drop-duplicates", inputs=[cities, tmp_path / "rows.jsonl"])
    assert [(repeat["id"], repeat["of"]) for repeat in said["repeats"]] == [("again", "secret")]
    assert set(state(Memory.open(tmp_path / "m"))) == {
        "cities.md#rome:1",
        "cities.md#berlin:1",
        "secret",
        "open",
    }


def test_duplicates_that_were_let_in_are_left_out_later(run, docs, tmp_path):
    (docs / "copy.txt").write_text("First.")
    assert run()["duplicates"] == 1
    assert changes(run("--drop-duplicates")) == (0, 0, 0, 1, 9)
    assert changes(run("--drop-duplicates", "--sync")) == (0, 0, 1, 0, 9)


def test_what_has_moved_is_not_embedded_again(run, docs, tmp_path, monkeypatch):
    run()
    (docs / "n.txt").rename(docs / "m.txt")
    (docs / "m.txt").write_text("Zeroth.\n\n" + (docs / "m.txt").read_text())
    vectors, seen = MemoryEncoder.vectors, []
    with monkeypatch.context() as watched:
        watched.setattr(
            MemoryEncoder,
            "vectors",
            lambda self, texts, what: seen.extend(texts) or vectors(self, texts, what),
        )
        assert changes(run("--sync")) == (4, 0, 3, 0, 6) and seen == ["Zeroth."]
    assert Memory.open(tmp_path / "m").search(["Third."], 1)[0][0].id == "docs/m.txt:4"


def test_ids_given_twice_are_named_with_both_places(run, docs, tmp_path):
    (docs / "more.jsonl").write_text('{"id": "new", "text": "x"}\n{"id": "r1", "text": "y"}\n')
    said = run(code=2)
    assert (
        "rows.jsonl, line 2: the id 'r1' is given twice, first in" in said
        and "more.jsonl, line 2" in said
    )


@pytest.mark.parametrize(
    "option, said",
    [
        ("--max-megabytes=inf", "--max-megabytes=inf: expected"),
        ("--max-megabytes=-1", "--max-megabytes=-1: expected"),
        ("--max-bad-share=nan", "--max-bad-share=nan: expected"),
        ("--max-bad-share=2", "--max-bad-share=2: expected"),
    ],
)
def test_a_number_that_cannot_be_is_refused(option, said, docs, tmp_path, capsys):
    with pytest.raises(SystemExit):
        build.main([f"--memory={tmp_path / 'm'}", option, "--input", str(docs)])
    assert said in capsys.readouterr().err


def test_a_size_of_nothing_is_refused(run):
    assert "size=0: expected at least 8" in run("--size=0", code=2)


def test_a_memory_is_embedded_anew_by_another_encoder(run, tmp_path, encoder, capsys):
    run()
    at = [f"--memory={tmp_path / 'm'}", "--reembed"]
    assert build.main([*at, f"--encoder={encoder}"]) == 2 and "already" in capsys.readouterr().err
    assert (
        build.main([*at, f"--encoder={toy.save(tmp_path / 'other')}", "--author=Ada", "--json"])
        == 0
    )
    said = json.loads(capsys.readouterr().out)
    memory = Memory.open(tmp_path / "m")
    assert (said["size"], said["version"]) == (9, memory.version) and memory.log()[
        -1
    ].author == "Ada"
    assert "was made with the encoder" in run(code=2)


def test_the_memory_an_index_takes_is_said_before_it_is_built(
    run, docs, tmp_path, encoder, capsys, monkeypatch
):
    monkeypatch.setattr(
        approximate, "needed_megabytes", lambda size, dim: (size * dim, 2 * size * dim)
    )
    at = [f"--memory={tmp_path / 'm'}", f"--encoder={encoder}", f"--input={docs}"]
    assert build.main([*at, "--dry-run"]) == build.main(at) == build.main(at) == 0
    dim = Memory.open(tmp_path / "m").stats()["dim"]
    assert (
        capsys.readouterr().err
        == f"the index of 9 passages takes about {9 * dim} MB of memory, {18 * dim} while it is "
        "built\n"
    )


def test_what_was_done_is_said_in_words(run, docs, tmp_path, encoder, capsys):
    (docs / "photo.jpg").write_text("x")
    (docs / "copy.txt").write_text("First.")
    at = [f"--memory={tmp_path / 'm'}", f"--encoder={encoder}", f"--input={docs}"]
    assert build.main(at) == 0
    out = capsys.readouterr().out
    assert (
        "6 documents, 10 passages: 10 added, 0 edited" in out
        and "1 skipped, of unknown kind .jpg" in out
    )
    assert (
        "1 duplicates, 1 exact: 'docs/n.txt:1' repeats 'docs/copy.txt:1'; --drop-duplicates "
        "leaves them out" in out
    )
    (docs / "copy.txt").unlink()
    assert build.main(at) == 0
    assert (
        "1 passages are no longer in their files: 'docs/copy.txt:1'; --sync removes them"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--reembed"],
        ["--reembed", "--input=x", "--encoder=y"],
        ["--replace", "--dry-run", "--input=x"],
        ["--reembed", "--encoder=y", "--sync"],
        ["--reembed", "--encoder=y", "--size=9"],
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        build.main([f"--memory={tmp_path / 'm'}", *arguments])
    assert exit.value.code == 2
