"""The explorer over HTTP: access control, escaping, and what each page shows and changes."""

import html
import re
import threading
import time

import numpy as np
import pytest

from retrieval import Memory, Passage
from retrieval.doors.in_context import build_prompt
from retrieval.doors.knn import Source
from tests.retrieval.models import byte_tokenizer
from tests.retrieval.readers import Copier
from tests.retrieval.toy import encode

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from retrieval.explorer import answers
from retrieval.explorer.app import make_app
from retrieval.explorer.atlas import atlas, flat
from retrieval.explorer.guard import MAX_BODY
from retrieval.explorer.words import AROUND, changes, coloured, marked
from retrieval.reading.explaining import Explained, Told

TOKEN, HOST = "secret", "http://127.0.0.1"
QUESTION = "Rome lies in which land?"
HOSTILE = (
    "<script>alert(1)</script> {{ 7777 * 7 }} {% include 'x' %} \" ' & </textarea> {workdir} "
    "javascript:alert(1) \x1b[2J\u202e"
)
PAGES = [
    "/",
    "/search",
    "/map",
    "/history",
    "/passage?id=rome",
    f"/?q={QUESTION}",
    f"/progress?q={QUESTION}",
    "/static/style.css",
    "/nothing",
]


@pytest.fixture
def towns(tmp_path):
    made = Memory.create(tmp_path / "towns", encode)
    made.add(
        [
            Passage("rome", "Rome lies in Italy. It is old.", title="Rome", tags=("south",)),
            Passage(
                "oslo",
                "Oslo lies in Norway.",
                title="Oslo",
                tags=("north",),
                source="an atlas",
                span=(3, 23),
                time="1998",
            ),
            Passage(
                "<i>&",
                HOSTILE,
                title=HOSTILE,
                source=HOSTILE,
                metadata={"<b>": HOSTILE},
                tags=("<u>",),
            ),
        ],
        author="<a>",
        reason="<r>",
    )
    return made


def client(memory, reader=None, by_header=True, **options):
    headers = {"authorization": f"Bearer {TOKEN}"} if by_header else {}
    return TestClient(make_app(memory, reader, TOKEN), base_url=HOST, headers=headers, **options)


@pytest.fixture
def browser(towns):
    return client(towns, Copier({"Rome": "Spain"}))


def answered(browser, question=QUESTION, **parameters):
    """Return the page of a question once its answers are ready."""
    for _ in range(200):
        if browser.get("/progress", params={"q": question, **parameters}).json()["finished"]:
            return browser.get("/", params={"q": question, **parameters}).text
        time.sleep(0.02)
    raise AssertionError("no answer came")


def form_of(browser, path, action="/edit"):
    """Return the fields of a page's form, as a browser would send them."""
    page = browser.get(path).text
    form = re.search(rf'<form[^>]*action="{action}".*?</form>', page, re.DOTALL)[0]
    fields = dict(re.findall(r'<input(?: type="hidden")? name="(\w+)"(?: value="([^"]*)")?', form))
    area = re.search(r'<textarea name="(\w+)"[^>]*>\n(.*?)</textarea>', form, re.DOTALL)
    return {
        name: html.unescape(value)
        for name, value in (fields | ({area[1]: area[2]} if area else {})).items()
    }


# Access control


def test_without_the_token_no_route_shows_anything(towns):
    stranger = client(towns, Copier({}), by_header=False, follow_redirects=False)
    for path in PAGES:
        for given in ({}, {"authorization": "Bearer wrong"}, {"cookie": "openbook_80=wrong"}):
            refused = stranger.get(path, headers=given)
            assert refused.status_code == 401 and "Rome" not in refused.text
    assert stranger.get("/?token=wrong").status_code == 401
    for path in ("/edit", "/delete", "/undo"):
        assert stranger.post(path, data={"id": "rome"}).status_code == 401
    assert towns.version == 2


def test_the_first_visit_trades_the_token_for_a_cookie_that_no_script_and_no_other_site_can_use(
    towns,
):
    visitor = client(towns, by_header=False, follow_redirects=False)
    first = visitor.get(f"/search?token={TOKEN}&q=Rome")
    assert first.status_code == 303 and first.headers["location"] == "/search?q=Rome"
    assert {"httponly", "samesite=strict"} <= set(
        first.headers["set-cookie"].lower().replace(" ", "").split(";")
    )
    assert visitor.get("/search?q=Rome").status_code == 200
    from_a_file = client(towns, by_header=False).get(
        f"/search?token={TOKEN}&q=Rome", headers={"sec-fetch-site": "cross-site"}
    )
    assert (
        from_a_file.status_code == 200
        and 'content="0; url=/search?q=Rome"' in from_a_file.text
        and "set-cookie" in from_a_file.headers
    )
    assert (
        visitor.get(f"{HOST}//elsewhere.example/?token={TOKEN}").headers["location"]
        == "/elsewhere.example/"
    )


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80", "", "127.0.0.2"]
)
def test_another_host_name_is_refused_even_with_the_token(towns, host):
    assert client(towns).get("/", headers={"host": host}).status_code == 421


def test_a_form_from_another_page_changes_nothing(towns):
    visitor = client(towns, by_header=False)
    visitor.get(f"/?token={TOKEN}")
    form = form_of(visitor, "/passage?id=rome") | {"text": "Rome sank."}
    for origin in (
        {},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:81"},
    ):
        assert visitor.post("/edit", data=form, headers=origin).status_code == 403
    assert towns.version == 2
    assert (
        visitor.post("/edit", data=form, headers={"origin": HOST}).status_code == 200
        and towns.get("rome").text == "Rome sank."
    )


def test_every_answer_forbids_foreign_content_and_frames(browser):
    for path in PAGES:
        given = browser.get(path)
        policy = given.headers["content-security-policy"]
        assert (
            "default-src 'none'" in policy
            and "frame-ancestors 'none'" in policy
            and "unsafe" not in policy
        )
        assert (
            given.headers["x-content-type-options"] == "nosniff"
            and given.headers["cache-control"] == "no-store"
        )
        assert not re.search(
            r'(src|href|action)="(https?:)?//|<script>|<style| style=| on\w+="', given.text
        )


def test_a_body_that_is_too_large_is_refused(browser, towns):
    assert (
        browser.post("/edit", content=b"text=" + b"x" * MAX_BODY).status_code == 400
        and towns.version == 2
    )


# Escaping


def test_hostile_text_is_shown_and_never_becomes_part_of_a_page(browser):
    pages = [
        "/search?q=alert",
        "/map?q=alert",
        "/history",
        "/passage?id=%3Ci%3E%26",
        "/passage?id=%3Ci%3E%26&at=2",
    ]
    texts = [browser.get(path).text for path in pages]
    for page in [
        *texts,
        answered(browser, "alert 7"),
        browser.get("/passage", params={"id": HOSTILE}).text,
    ]:
        assert not re.search(
            r"<(script>|i>|b>|u>|a>|r>)|54439|</textarea> |(href|src|action)=.javascript", page
        )
        assert "&lt;" in page
    assert form_of(browser, "/passage?id=%3Ci%3E%26")["text"] == HOSTILE


def test_an_edit_without_a_change_keeps_every_character(browser, towns):
    text = "\n\nfirst\r\nsecond\n\n  <end>  "
    towns.edit("rome", text.replace("\r", ""))
    form = form_of(browser, "/passage?id=rome")
    browser.post("/edit", data=form | {"text": form["text"].replace("\n", "\r\n")})
    assert towns.get("rome").text == text.replace("\r", "") and towns.version == 4


# Pages and forms


def test_the_whole_path_ask_edit_ask_again_undo_and_back_in_time(browser, towns):
    page = answered(browser)
    assert '<p class="answer">Italy</p>' in page and '<p class="answer">Spain</p>' in page
    assert "<mark>Rome lies in Italy.</mark> It is old." in page
    form = form_of(browser, f"/passage?id=rome&q={QUESTION}")
    changed = browser.post(
        "/edit", data=form | {"text": "Rome lies in Norway.", "reason": "a test"}
    )
    assert (
        changed.url.params["q"] == QUESTION
        and changed.url.params["did"] == "3"
        and "edit of rome" in changed.text
    )
    page = answered(browser)
    assert (
        '<p class="answer">Norway</p>' in page
        and "<del>Italy</del> in" in page
        and '<p class="answer">Spain</p>' in page
    )
    page = browser.get("/passage?id=rome").text
    assert "<ins>Norway</ins>" in page and "a test" in page and "explorer" in page
    browser.post("/undo", data=form_of(browser, "/history", "/undo"))
    assert '<p class="answer">Italy</p>' in answered(browser)
    assert '<p class="answer">Norway</p>' in answered(browser, at=3)
    assert "Rome lies in Norway." in browser.get("/passage?id=rome&at=3").text
    assert [commit.action for commit in towns.log()] == ["create", "add", "edit", "undo"]


def test_the_owner_sees_every_access_group_and_searches_by_words_too(browser, towns):
    towns.add([Passage("bonn", "Bonn lies in Germany.", access="board")])
    assert '<p class="answer">Germany</p>' in answered(browser, "Bonn lies in which land?")
    page = browser.get("/search?q=Bonn&mode=lexical").text
    assert (
        page.count("<li>") == 1
        and "id=bonn" in page
        and '<option value="lexical" selected>' in page
    )
    assert (
        "id=bonn" in browser.get("/search?q=Bonn&mode=hybrid").text
        and "board" in browser.get("/passage?id=bonn").text
    )
    assert browser.get("/search?q=Bonn&mode=magic").status_code == 400


def test_a_deleted_passage_is_neither_found_nor_known_and_its_history_stays(browser, towns):
    answered(browser)
    form = form_of(browser, f"/passage?id=rome&q={QUESTION}")
    browser.post("/delete", data=form)
    assert "Does not know" in answered(browser) and len(towns) == 2
    page = browser.get("/passage?id=rome").text
    assert (
        "does not hold it" in page
        and "Rome lies in Italy." in page
        and 'action="/edit"' not in page
    )


def test_the_past_has_no_forms_that_change_and_its_links_stay_in_it(browser, towns):
    towns.edit("rome", "Rome sank.")
    for path in ("/passage?id=rome&at=2", "/history?at=2", "/?at=2", "/search?q=Rome&at=2"):
        page = browser.get(path).text
        assert "read-only" in page and 'method="post"' not in page and "Version 2 of 3" in page
    assert "/passage?at=2&amp;id=rome" in browser.get("/search?q=Rome&at=2").text
    assert browser.get("/search?q=Rome&at=1").text.count("<li>") == 0


@pytest.mark.parametrize(
    "path, status, message",
    [
        ("/?at=9", 404, "1 to 2"),
        ("/?at=0", 404, "1 to 2"),
        ("/?at=x", 404, "no version"),
        (f"/?at={'9' * 5000}", 404, "no version"),
        ("/passage?id=none", 404, "no passage"),
        ("/passage", 404, "no passage"),
        ("/nothing", 404, "Not Found"),
        ("/edit", 405, "Method"),
    ],
)
def test_a_wrong_address_is_answered_in_words(browser, path, status, message):
    given = browser.get(path)
    assert given.status_code == status and message in given.text and "Traceback" not in given.text


def test_a_question_that_is_too_long_is_refused_in_words(browser):
    assert "ask a shorter one" in answered(browser, "why " * 6_000)


def test_a_change_of_what_was_changed_meanwhile_is_refused(browser, towns):
    form, latest = form_of(browser, "/passage?id=rome"), form_of(browser, "/history", "/undo")
    towns.edit("rome", "Rome moved.")
    for path, data in (("/edit", form | {"text": "x"}), ("/delete", form), ("/undo", latest)):
        refused = browser.post(path, data=data)
        assert refused.status_code == 409 and "changed since" in refused.text
    assert towns.version == 3 and browser.post("/edit", data={"id": "rome"}).status_code == 400
    assert (
        browser.post("/edit", data=form_of(browser, "/passage?id=rome") | {"text": " "}).status_code
        == 400
        and towns.version == 3
    )


def test_changes_that_meet_are_looked_at_one_after_the_other(towns):
    """Of two tabs that save or undo at the same time, one succeeds and the other must reload."""
    app, rivals = make_app(towns, None, TOKEN), 4
    tabs = [
        TestClient(app, base_url=HOST, headers={"authorization": f"Bearer {TOKEN}"})
        for _ in range(rivals)
    ]

    def at_once(path, data):
        start, codes = threading.Barrier(rivals), []

        def post(tab):
            start.wait()
            codes.append(tab.post(path, data=data, follow_redirects=False).status_code)

        threads = [threading.Thread(target=post, args=[tab]) for tab in tabs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(codes)

    for turn in range(3):
        assert at_once(
            "/edit", form_of(tabs[0], "/passage?id=rome") | {"text": f"Rome, turn {turn}."}
        ) == [303] + [409] * (rivals - 1)
    for _ in range(3):
        assert at_once("/undo", form_of(tabs[0], "/history", "/undo")) == [303] + [409] * (
            rivals - 1
        )
    assert towns.get("rome").text == "Rome lies in Italy. It is old."


def test_an_answer_is_of_the_version_that_was_asked_whatever_changed_while_it_waited(towns):
    free = threading.Event()

    class Slow(Copier):
        def answer(self, prompt):
            assert free.wait(30)
            return super().answer(prompt)

    browser = client(towns, Slow({}))
    browser.get("/", params={"q": "Oslo lies in which land?"})
    browser.get("/", params={"q": QUESTION})
    towns.edit("rome", "Rome lies in Spain.")
    free.set()
    assert '<p class="answer">Spain</p>' in answered(browser)
    assert '<p class="answer">Italy</p>' in answered(browser, at=2)
    browser.app.state.explorer.close()


def test_a_form_of_too_many_fields_is_refused_in_words(browser):
    refused = browser.post("/edit", data={f"f{i}": "x" for i in range(30)})
    assert refused.status_code == 400 and "more than 20 fields" in refused.text


def test_a_slow_reader_holds_up_no_other_page_and_a_failing_one_is_reported_and_tried_again(towns):
    free, room = threading.Event(), threading.Event()

    class Slow(Copier):
        def answer(self, prompt):
            assert free.wait(30)
            if "Oslo" in prompt.partition("Question:")[2] and not room.is_set():
                raise RuntimeError("out of memory")
            return super().answer(prompt)

    browser = client(towns, Slow({}))
    began = time.monotonic()
    assert "data-progress" in browser.get("/", params={"q": QUESTION}).text
    assert browser.get("/progress", params={"q": QUESTION}).json() == {
        "done": 0,
        "of": 2,
        "finished": False,
    }
    assert browser.get("/search?q=Rome").status_code == 200 and time.monotonic() - began < 10
    free.set()
    assert '<p class="answer">Italy</p>' in answered(browser)
    assert "out of memory" in answered(browser, "Oslo lies in which land?")
    room.set()
    assert '<p class="answer">Norway</p>' in answered(browser, "Oslo lies in which land?")
    assert '<p class="answer">Italy</p>' in answered(browser)


def test_without_a_reader_a_question_finds_passages(towns):
    page = client(towns).get("/", params={"q": QUESTION}).text
    assert "/passage?id=rome" in page and "answer" not in page
    assert client(towns).get("/progress", params={"q": QUESTION}).status_code == 404


def test_an_empty_memory_has_every_page(tmp_path):
    browser = client(Memory.create(tmp_path / "m", encode), Copier({"Rome": "Spain"}))
    for path in ("/", "/search?q=Rome", "/map?q=Rome", "/history"):
        assert browser.get(path).status_code == 200
    page = answered(browser)
    assert "Does not know" in page and "The memory is empty" in page


def test_a_memory_of_which_nothing_fits_beside_the_question_is_not_called_empty(browser):
    around = len(build_prompt(byte_tokenizer(), "x", (), 10_000).tokens) - 1
    page = answered(browser, "x" * (10_000 - around))
    assert "None of its 3 passages" in page and "empty" not in page


# Its parts


def test_the_map_shows_the_two_widest_axes_and_always_what_is_asked_for(memory, rng):
    hidden = rng.normal(size=(500, 2)) * [5, 2]
    axes = rng.normal(size=(2, 16))
    vectors = hidden @ axes + rng.normal(size=(500, 16)) * 0.01
    found = flat(vectors)
    fit = np.linalg.lstsq(np.c_[hidden, np.ones(500)], found, rcond=None)
    inside = ((found > 0) & (found < 1)).all(1)
    assert (
        np.abs((np.c_[hidden, np.ones(500)] @ fit[0] - found)[inside]).max() < 0.1
        and inside.mean() > 0.9
    )
    assert flat(np.ones((1, 1))).tolist() == [[0, 0]] and flat(np.zeros((0, 8))).shape == (0, 2)
    drawn = atlas(memory, ["p7", "none"], limit=3)
    assert (
        {"p0", "p7", "p9"} <= {point.passage.id for point in drawn.points}
        and len(drawn.points) <= 4
        and drawn.size == 10
    )
    assert atlas(memory, limit=3) == atlas(memory, limit=3)


def test_passages_and_vectors_for_the_map_belong_together(memory):
    assert sorted(memory.ids()) == [f"p{i}" for i in range(10)]
    passages, vectors = memory.vectors(["p7", "none", "p2"])
    assert sorted(passages) == ["p2", "p7"] and all(
        passage.id == id for id, passage in passages.items()
    )
    expected = encode([passage.searchable for passage in passages.values()])
    assert np.allclose(
        vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-2
    )


def test_a_kind_is_a_tag_where_there_are_tags_and_the_rare_ones_share_a_colour(towns):
    drawn = atlas(towns)
    assert drawn.kinds == ["<u>", "north", "south"]
    assert {point.passage.id: drawn.kinds[point.colour] for point in drawn.points} == {
        "<i>&": "<u>",
        "oslo": "north",
        "rome": "south",
    }


def test_the_words_of_a_change_make_both_texts():
    before, after = "Rome lies in Italy, and is old.", "Rome lies in Norway and is very old."
    parts = changes(before, after)
    assert (
        "".join(text for kind, text in parts if kind != "in") == before
        and "".join(text for kind, text in parts if kind != "out") == after
    )
    assert ("out", "Italy,") in parts and ("in", "Norway") in parts
    assert changes("", "new") == [("same", "new")] and changes("a " * 9_000, "b") == [("same", "b")]


def test_a_marked_sentence_stays_whole_and_what_is_far_from_it_is_cut():
    before, sentence, after = marked("far " * 500 + "Here it is. " + "more " * 500, "Here it is.")
    assert sentence == "Here it is." and before.startswith("… far") and after.endswith("more …")
    assert len(before) < AROUND + 5 and len(after) < AROUND + 5
    assert marked("Here it is.", "Here it is.") == ("", "Here it is.", "")


def test_tokens_are_coloured_by_their_sources_and_hostile_ones_stay_text(towns, monkeypatch):
    source = lambda id, weight: Source(id, 3, 7, weight)
    told = (
        Told(" It", 0.5, 0.4, (source("rome", 0.3), source("<i>&", 0.1))),
        Told(HOSTILE, 0.8, 0.08, (source("<i>&", 0.08),)),
        Told("aly", 0.9, 0.9, (source("rome", 0.9),)),
        Told("!", 0.9, 0.0, ()),
    )
    made = coloured(told)
    assert [(t.passage, t.colour, t.strength) for t in made] == [
        ("rome", 0, 4),
        ("<i>&", 1, 1),
        ("rome", 0, 4),
        ("", 0, 0),
    ]
    assert made[0].said.splitlines() == [
        "probability 0.500, 80% of it from the memory",
        "rome, token 3: 0.300",
        "<i>&, token 3: 0.100",
    ]
    hook = type("Hook", (), {"memory": towns})()
    monkeypatch.setattr(answers, "explained", lambda q, *_: [Explained(q[0], "It", told)])
    app = make_app(towns, Copier({"Rome": "Spain"}), TOKEN, hook=hook)
    asking = TestClient(app, base_url=HOST, headers={"authorization": f"Bearer {TOKEN}"})
    while "data-progress" in (page := asking.get("/", params={"q": QUESTION}).text):
        time.sleep(0.02)
    assert (
        page.count('class="token k') == 3 and 'class="token k0 w4" href="/passage?id=rome' in page
    )
    assert html.escape(HOSTILE, quote=True).partition(" {{")[0].replace("&#x27;", "&#39;") in page
    assert "<script>alert" not in page and "7777 * 7" in page and 'title="probability 0.500' in page
    towns.edit("rome", "Rome lies in Spain.")  # an earlier version has no answer of the datastore
    while "data-progress" in (page := asking.get("/", params={"q": "Oslo?", "at": "2"}).text):
        time.sleep(0.02)
    assert "Token by token" not in page
