import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from retrieval import (
    Memory,
    Passage,
    ask,
    audit,
    build,
    edit,
    evaluate,
    explore,
    log,
    stats,
    undo,
    verify,
)
from retrieval.search import __main__ as search
from tests.retrieval.models import save_encoder, save_reader
from tests.retrieval.toy import encode

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("compiled_once")  # every command loads the same models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_encoder(folder / "encoder")
    save_reader(folder / "reader")
    return folder


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {
            "id": f"r{i}",
            "text": f"town {i} is in land {i}",
            "title": f"town {i}",
            "metadata": {"n": i},
        }
        for i in range(5)
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return path


@pytest.fixture
def built(tmp_path, models, rows):
    assert (
        build.main(
            [f"--memory={tmp_path / 'm'}", f"--encoder={models / 'encoder'}", f"--input={rows}"]
        )
        == 0
    )
    return tmp_path / "m"


def said(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_build_search_edit_delete_undo_and_log_by_command(built, capsys):
    capsys.readouterr()
    at = f"--memory={built}"
    assert search.main([at, "--json", "-k", "2", "town 3. town 3 is in land 3"]) == 0
    assert said(capsys)[0]["hits"][0]["id"] == "r3"
    assert (
        edit.main(
            [
                at,
                "--edit",
                "r3",
                "--text",
                "town 3 moved",
                "--author",
                "Ada",
                "--reason",
                "news",
                "--json",
            ]
        )
        == 0
    )
    assert edit.main([at, "--delete", "r1", "r2", "--json"]) == 0
    assert undo.main([at, "--json"]) == 0
    assert [(c["version"], c["action"]) for c in said(capsys)] == [
        (3, "edit"),
        (4, "delete"),
        (5, "undo"),
    ]
    assert search.main([at, "--json", "-k", "1", "town 3 moved"]) == 0
    assert (
        search.main([at, "--json", "-k", "1", "--as-of", "2", "town 3. town 3 is in land 3"]) == 0
    )
    assert [found["hits"][0]["text"] for found in said(capsys)] == [
        "town 3 moved",
        "town 3 is in land 3",
    ]
    assert log.main([at]) == 0
    printed = capsys.readouterr().out
    assert "Ada" in printed and "news" in printed and "undo of version 4" in printed
    assert (
        log.main([at, "--id", "r3", "--json"]) == 0
        and log.main([at, "--diff", "2", "4", "--json"]) == 0
    )
    *history, diff = said(capsys)
    assert [(c["version"], c["passage"]["text"]) for c in history] == [
        (2, "town 3 is in land 3"),
        (3, "town 3 moved"),
    ]
    assert diff == {"added": [], "edited": ["r3"], "deleted": ["r1", "r2"]}
    assert log.main([at, "--id", "r1"]) == 0 and "(deleted)" in capsys.readouterr().out
    assert stats.main([at]) == 0 and stats.main([at, "--json"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert (
        any(line.split() == ["passages", "5"] for line in table)
        and json.loads(last)["passages"] == 5
    )
    assert (
        search.main([at, "--as-of", "1", "town"]) == 0
        and "nothing that can be read" in capsys.readouterr().out
    )


@pytest.mark.parametrize("in_json", [[], ["--json"]], ids=["text", "json"])
def test_every_command_takes_a_memory_that_was_emptied(built, models, tmp_path, in_json, capsys):
    at, reader = (
        [f"--memory={built}", *in_json],
        [f"--reader={models / 'reader'}", "--max-new-tokens=2"],
    )
    assert edit.main([*at, "--delete", *Memory.open(built).ids()]) == 0
    (tmp_path / "asked.jsonl").write_text('{"question": "Where is town 1?", "answers": ["land 1"]}')
    for command, options in {
        search: ["town 1"],
        stats: [],
        verify: [],
        log: [],
        ask: [*reader, "Where is town 1?"],
        evaluate: [
            *reader,
            f"--questions={tmp_path / 'asked.jsonl'}",
            f"--output={tmp_path / 'answers.jsonl'}",
        ],
    }.items():
        capsys.readouterr()
        assert command.main([*at, *options]) == 0, command
        assert said(capsys) if in_json else capsys.readouterr().out, command
    assert (
        audit.main([*at, *reader, "Where is town 1?", "--ids", "r1"]) == 2
        and "r1" in capsys.readouterr().err
    )
    assert undo.main(at) == 0 and len(Memory.open(built)) == 5


def test_access_tags_time_and_source_are_changed_by_command_and_what_is_revoked_is_gone(
    built, capsys
):
    at = f"--memory={built}"
    assert (
        edit.main(
            [
                at,
                "--edit",
                "r3",
                "--access=staff",
                "--tag=a",
                "--tag=b",
                "--time=1998",
                "--source=an atlas",
            ]
        )
        == 0
    )
    changed = Memory.open(built).get("r3")
    assert (changed.access, changed.tags, changed.time, changed.source) == (
        "staff",
        ("a", "b"),
        "1998",
        "an atlas",
    )
    capsys.readouterr()
    assert (
        search.main([at, "--json", "-k", "1", "town 3. town 3 is in land 3"]) == 0
        and said(capsys)[0]["hits"][0]["id"] != "r3"
    )
    assert (
        edit.main([at, "--edit", "r3", "--access="]) == 0
        and Memory.open(built).get("r3").access == ""
    )
    for wrong in ([at, "--edit", "r3"], [at, "--delete", "r3", "--access=x"]):
        with pytest.raises(SystemExit):
            edit.main(wrong)
    assert (
        log.main([at, "--id", "nobody"]) == 2
        and "no passage 'nobody' was ever in" in capsys.readouterr().err
    )


def test_a_build_that_replaces_leaves_only_the_new_passages_and_can_be_searched_where_it_lies(
    built, models, tmp_path, capsys
):
    (tmp_path / "new.jsonl").write_text(json.dumps({"id": "r3", "text": "town 3 moved"}) + "\n")
    again = [
        f"--memory={built}",
        f"--encoder={models / 'encoder'}",
        f"--input={tmp_path / 'new.jsonl'}",
        "--replace",
    ]
    assert build.main(again) == 0 and build.main(again) == 0
    capsys.readouterr()
    assert search.main([f"--memory={built}", "--json", "-k", "9", "town"]) == 0
    assert [(hit["id"], hit["text"]) for hit in said(capsys)[0]["hits"]] == [("r3", "town 3 moved")]
    assert not list(tmp_path.glob(".*building"))


def test_a_folder_that_holds_something_else_is_never_replaced(models, rows, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert (
        build.main(
            [
                f"--memory={tmp_path / 'mine'}",
                f"--encoder={models / 'encoder'}",
                f"--input={rows}",
                "--replace",
            ]
        )
        == 2
    )
    assert "not empty" in capsys.readouterr().err and (tmp_path / "mine" / "thesis.txt").exists()


def test_a_replacement_that_fails_leaves_the_memory_that_was_there(built, models, tmp_path, capsys):
    assert (
        build.main(
            [
                f"--memory={built}",
                f"--encoder={tmp_path / 'none'}",
                f"--input={tmp_path / 'rows.jsonl'}",
                "--replace",
            ]
        )
        == 2
    )
    assert len(Memory.open(built)) == 5


def test_a_second_build_adds_and_paragraphs_become_passages(built, tmp_path, capsys):
    text = tmp_path / "notes.txt"
    text.write_text("\ufefffirst line\nof one paragraph\n\n \t\nsecond\n")
    assert build.main([f"--memory={built}", f"--input={text}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["size"] == 7
    memory = Memory.open(built)
    assert (
        memory.get("notes.txt:1").text == "first line of one paragraph"
        and memory.get("notes.txt:2").source == "notes.txt"
    )


def test_ask_prints_both_answers_and_what_was_cited(built, models, capsys):
    from retrieval import ask

    capsys.readouterr()
    assert (
        ask.main(
            [
                f"--memory={built}",
                f"--reader={models / 'reader'}",
                "--json",
                "--max-new-tokens=3",
                "where is town 3",
            ]
        )
        == 0
    )
    given = said(capsys)[0]
    assert (
        given["citations"] and given["citations"][0]["version"] == 2 and "closed_book_text" in given
    )
    assert len(given["sentences"]) == len(given["citations"]) and isinstance(given["known"], bool)
    asked = [
        f"--memory={built}",
        f"--reader={models / 'reader'}",
        "--max-new-tokens=3",
        "--floor=1.1",
        "where is town 3",
    ]
    assert ask.main(asked) == 0
    assert "open-book:   does not know (the reader's words" in capsys.readouterr().out
    assert (
        ask.main([*asked, "--tag=none"]) == 0
        and "does not know (nothing in the memory can be read" in capsys.readouterr().out
    )


def test_search_by_words_by_tag_by_time_and_for_a_group(built, capsys):
    memory = Memory.open(built)
    memory.add(
        [
            Passage("a", "an owl", tags=("bird",), time="1998"),
            Passage("b", "a hidden owl", tags=("night",), time="2005", access="board"),
        ]
    )
    capsys.readouterr()
    found = lambda *options: [
        search.main([f"--memory={built}", "--json", "-k=9", *options]),
        {h["id"] for h in said(capsys)[0]["hits"]},
    ]
    assert found("owl", "--mode=lexical") == [0, {"a"}] and found("town", "--mode=hybrid")[1] == {
        "a",
        "r0",
        "r1",
        "r2",
        "r3",
        "r4",
    }
    assert found("x", "--tag=bird") == [0, {"a"}] == found("x", "--before=2000") and found(
        "x", "--tag=bird", "--tag=night"
    ) == [0, set()]
    assert (
        found("x", "--after=2000", "--group=board")
        == [0, {"b"}]
        == found("owl", "--tag=night", "--every-group")
    )
    assert (
        search.main([f"--memory={built}", "x", "--tag=fish"]) == 0
        and "nothing" in capsys.readouterr().out
    )
    assert (
        search.main([f"--memory={built}", "x", "--after=soon"]) == 2
        and "'soon'" in capsys.readouterr().err
    )


def test_text_from_a_memory_reaches_the_terminal_as_text_and_forges_no_line(built, models, capsys):
    from retrieval import ask

    hostile = (
        "an owl\x1b[2J\x1b]0;title\x07\r\n  0.999  r1  forged\u2028\x9b31m\u202e{{ 7 * 7 }} "
        "{workdir}"
    )
    safe = "an owl\\x1b[2J\\x1b]0;title\\x07 0.999 r1 forged \\x9b31m\\u202e{{ 7 * 7 }} {workdir}"
    memory = Memory.open(built)
    memory.add(
        [Passage("a", hostile, title=hostile, tags=("owl",))], author=hostile, reason=hostile
    )
    at, reader = f"--memory={built}", [f"--reader={models / 'reader'}", "--max-new-tokens=2"]
    commands = (
        lambda *json: search.main([at, *json, "--tag=owl", hostile]),
        lambda *json: log.main([at, *json]),
        lambda *json: log.main([at, *json, "--id=a"]),
        lambda *json: ask.main([at, *json, *reader, "-k=1", "--tag=owl", "an owl"]),
        lambda *json: audit.main([at, *json, *reader, hostile, "--ids", "a"]),
        lambda *json: stats.main([at, *json]),
        lambda *json: edit.main(
            [at, *json, "--edit=a", "--text", hostile, "--author", hostile, "--reason", hostile]
        ),
    )
    capsys.readouterr()
    for command, lines in zip(commands, (2, 3, 2, None, 5, None, 1), strict=True):
        assert command() == 0
        printed = capsys.readouterr().out
        assert all(c.isprintable() or c == "\n" for c in printed), printed
        assert lines in (None, printed.count("\n")) and (safe in printed or lines is None)
        assert command("--json") == 0
        printed = capsys.readouterr().out
        assert all(c.isprintable() or c == "\n" for c in printed) and [
            json.loads(line) for line in printed.splitlines()
        ]
    assert edit.main([at, "--delete", hostile]) == 2
    assert all(c.isprintable() or c == "\n" for c in capsys.readouterr().err)
    assert Memory.open(built).get("a").text == hostile


def test_an_audit_by_command_says_where_the_answer_comes_from_and_deletes_nothing(
    built, models, capsys
):
    capsys.readouterr()
    asked = [
        f"--memory={built}",
        f"--reader={models / 'reader'}",
        "--max-new-tokens=3",
        "where is town 3",
        "--ids",
        "r3",
        "r1",
    ]
    assert audit.main([*asked, "--json"]) == 0 and audit.main(asked) == 0
    done, *lines = capsys.readouterr().out.splitlines()
    assert json.loads(done)["verdict"] in lines[1] and "closed-book:" in lines[-1]
    assert len(Memory.open(built)) == 5
    assert audit.main([*asked, "r9"]) == 2 and "'r9'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "holds no passages"),
        ("not json\n", "line 1: not JSON"),
        ('{"id": "a", "text": "ok"}\n[1]\n', 'line 2: expected an object with a string "text"'),
        ('{"id": "a", "text": " "}', "line 1 has no text"),
        ('{"id": "a", "txt": "x", "text": "y"}', "unknown field 'txt'"),
        ('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}', "given twice"),
    ],
)
def test_a_bad_file_is_one_line_on_stderr_and_no_memory_is_made(
    tmp_path, models, capsys, content, message
):
    (tmp_path / "bad.jsonl").write_text(content)
    assert (
        build.main(
            [
                f"--memory={tmp_path / 'm'}",
                f"--encoder={models / 'encoder'}",
                f"--input={tmp_path / 'bad.jsonl'}",
            ]
        )
        == 2
    )
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--input=missing.jsonl", "--encoder=x"], "does not exist"),
        (["--input=table.dat", "--encoder=x"], "table.dat: expected a file ending in .txt, "),
        (["--input=latin.txt", "--encoder=x"], "not UTF-8"),
        (["--input=ok.txt"], "--encoder=PATH"),
        (["--input=ok.txt", "--encoder=nobody/no-such-model"], "nobody/no-such-model"),
    ],
)
def test_wrong_arguments_are_one_line_on_stderr(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ok.txt").write_text("text")
    (tmp_path / "table.dat").write_text("a,b")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert build.main(["--memory=m", *arguments]) == 2
    captured = capsys.readouterr()
    assert (
        message in captured.err and captured.err.count("\n") == 1 and not (tmp_path / "m").exists()
    )


def test_a_folder_that_is_no_memory_and_unknown_ids_are_one_line(tmp_path, built, capsys):
    assert search.main([f"--memory={tmp_path / 'nothing'}", "x"]) == 2
    assert edit.main([f"--memory={built}", "--delete", "zz"]) == 2
    assert search.main([f"--memory={built}", "-k", "0", "x"]) == 2
    err = capsys.readouterr().err
    assert "does not exist" in err and "'zz'" in err and "k=0" in err and "Traceback" not in err


@pytest.mark.parametrize("command", [audit, build, edit, explore, log, search, stats, undo, verify])
def test_a_wrong_option_is_one_line_and_help_shows_only_defaults_that_there_are(command, capsys):
    with pytest.raises(SystemExit) as exit:
        command.main(["--memory=m", "--nonsense=1"])
    line = capsys.readouterr().err
    assert (
        exit.value.code == 2
        and line.startswith("error: ")
        and line.count("\n") == 1
        and "--help" in line
    )
    with pytest.raises(SystemExit) as exit:
        command.main(["--help"])
    shown = capsys.readouterr().out
    assert exit.value.code == 0 and not any(
        f"(default: {none})" in shown for none in (None, False, [], "")
    )
    assert command is not build or ("(default: 0)" in shown and "(default: auto)" in shown)


def test_edit_without_its_text_is_refused_by_the_parser(tmp_path, capsys):
    for arguments in (
        ["--edit=a"],
        ["--text=a", "--delete", "b"],
        ["--title=a", "--delete", "b"],
        [],
    ):
        with pytest.raises(SystemExit) as exit:
            edit.main([f"--memory={tmp_path}", *arguments])
        assert exit.value.code == 2


def test_verify_says_what_is_damaged_and_ends_with_1(built, capsys):
    assert (
        verify.main([f"--memory={built}"]) == 0
        and "5 passages in version 2, all sound" in capsys.readouterr().out
    )
    data = next((built / "passages.lance" / "data").iterdir())
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert verify.main([f"--memory={built}", "--json"]) == 1
    assert data.name in said(capsys)[0]["problems"][0]


def test_verify_names_the_file_that_keeps_a_memory_from_being_opened(built, capsys):
    newest = min((built / "passages.lance" / "_versions").glob("*.manifest"))
    newest.write_bytes(newest.read_bytes()[:-20])
    assert stats.main([f"--memory={built}"]) != 0
    error = capsys.readouterr().err
    assert "`verify` says what is damaged" in error and ".rs" not in error
    assert (
        verify.main([f"--memory={built}"]) == 1
        and f"{newest} differs from its checksum" in capsys.readouterr().out
    )


def test_an_object_store_is_named_by_its_uri(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    uri = f"file-object-store://{tmp_path}/m"
    Memory.create(uri, encode).add([Passage("a", "text")])
    assert log.main([f"--memory={uri}"]) == 0 and "add" in capsys.readouterr().out


def test_a_replacement_on_an_object_store_is_refused_and_the_remedy_it_names_works(
    tmp_path, models, rows, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build_there = [
        f"--memory=file-object-store://{tmp_path}/m",
        f"--encoder={models / 'encoder'}",
        f"--input={rows}",
    ]
    assert build.main(build_there) == 0
    rows.write_text(json.dumps({"id": "r3", "text": "town 3 moved"}) + "\n")
    assert build.main([*build_there, "--replace"]) == 2
    said = capsys.readouterr().err
    assert (
        "give --sync" in said
        and said.count("\n") == 1
        and len(Memory.open(f"file-object-store://{tmp_path}/m")) == 5
    )
    assert build.main([*build_there, "--sync"]) == 0
    memory = Memory.open(f"file-object-store://{tmp_path}/m")
    assert len(memory) == 1 and memory.get("r3").text == "town 3 moved"


def test_the_explorer_opens_a_private_page_that_leads_to_its_address(built, monkeypatch, capsys):
    pytest.importorskip("uvicorn")
    opened = []

    def run(self, sockets):
        page = Path(opened[0].removeprefix("file://"))
        opened.extend(
            [page.read_text(), page.stat().st_mode & 0o777, page.parent.stat().st_mode & 0o777]
        )

    monkeypatch.setattr("uvicorn.Server.run", run)
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert explore.main([f"--memory={built}", "--json", "--open"]) == 0
    url, (page, text, *modes) = json.loads(capsys.readouterr().out)["url"], opened
    assert (
        url.partition("token=")[2] not in page and f"url={url}" in text and modes == [0o600, 0o700]
    )
    assert not Path(page.removeprefix("file://")).exists()


def test_an_unfinished_post_does_not_hold_up_ctrl_c(built, monkeypatch, capsys, caplog):
    app = pytest.importorskip("retrieval.explorer.app")
    begun, read = threading.Event(), app.read_form

    async def reading(request):
        begun.set()
        return await read(request)

    def visit():
        with socket.create_connection(("127.0.0.1", port)) as visitor:
            head = (
                f"POST /undo HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer "
                "secret\r\nContent-Length: 99\r\n\r\nv"
            )
            visitor.sendall(head.encode())
            assert begun.wait(60)
            os.kill(os.getpid(), signal.SIGINT)
            while visitor.recv(4096):
                pass

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(app, "read_form", reading)
    monkeypatch.setattr("secrets.token_urlsafe", lambda size: "secret")
    listen, visitors = socket.socket.listen, []

    def listening(self, *count):
        listen(self, *count)
        visitors.append(threading.Thread(target=visit))
        visitors[0].start()

    monkeypatch.setattr(socket.socket, "listen", listening)
    began = time.monotonic()
    assert explore.main([f"--memory={built}", f"--port={port}"]) == 130
    visitors[0].join()
    assert (
        time.monotonic() - began < 30 and "Traceback" not in capsys.readouterr().err + caplog.text
    )


def test_the_explorer_prints_the_only_address_that_lets_in(built, monkeypatch, capsys):
    uvicorn, client = pytest.importorskip("uvicorn"), pytest.importorskip("starlette.testclient")
    seen = []

    def serve(server, sockets):
        address = json.loads(capsys.readouterr().out.splitlines()[-1])["url"]
        host, port = sockets[0].getsockname()
        assert host == "127.0.0.1" and address.startswith(f"http://127.0.0.1:{port}/?token=")
        browser = client.TestClient(server.config.app, base_url=f"http://127.0.0.1:{port}")
        seen.extend(browser.get(address[:-end] if end else address).status_code for end in (1, 0))
        assert browser.get("/search?q=town 3").status_code == 200

    monkeypatch.setattr(uvicorn.Server, "run", serve)
    assert explore.main([f"--memory={built}", "--json"]) == 0 and seen == [401, 200]
    with pytest.raises(SystemExit):
        explore.main([f"--memory={built}", "--port=99999"])


def test_importing_the_room_and_asking_for_help_load_nothing_heavy():
    modules = ", ".join(
        f"retrieval.{name}" for name in ("ask", "build", "explore", "audit", "verify")
    )
    heavy = "{'jax', 'lance', 'transformers', 'scann', 'starlette'}"
    code = f"import sys, retrieval, {modules}; sys.exit(len({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_search_by_words_with_filters_and_groups_by_command(built, capsys):
    memory = Memory.open(built)
    memory.edit("r1", tags=("town", "sea"), time="2020", access="staff")
    memory.edit("r2", tags=("town",), time="2021")
    capsys.readouterr()
    asked = [
        f"--memory={built}",
        "--json",
        "--mode=lexical",
        "--tag=town",
        "--after=2020",
        "town land",
    ]
    assert search.main(asked) == 0 and search.main([*asked, "--group=staff"]) == 0
    assert search.main([*asked, "--group=staff", "--tag=sea", "--before=2020-06"]) == 0
    assert [sorted(hit["id"] for hit in found["hits"]) for found in said(capsys)] == [
        ["r2"],
        ["r1", "r2"],
        ["r1"],
    ]
    assert search.main([*asked, "--before=soon"]) == 2 and "ISO 8601" in capsys.readouterr().err


def test_output_that_nobody_reads_to_its_end_is_no_error(built):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "retrieval.log", f"--memory={built}"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    said = [line for line in done.stderr.splitlines() if not line.startswith("opening memory")]
    assert (done.returncode, said) == (141, []), "a slow machine may say what it waits for"


def test_a_port_in_use_is_named(built, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert explore.main([f"--memory={built}", f"--port={port}"]) == 2
    assert (
        f"--port={port} cannot be listened on (Address already in use)" in capsys.readouterr().err
    )
