"""The explorer in headless Chromium: ask, edit, ask again, undo, past versions.

Also by keyboard, without a script and on a phone.
"""

import pytest

from retrieval import Memory, Passage
from retrieval.doors.knn import Source
from retrieval.explorer import answers as explorer_answers
from retrieval.reading.explaining import Explained, Told
from tests.retrieval.browser import chromium, headless, page, served
from tests.retrieval.readers import Copier
from tests.retrieval.toy import encode

pytest.importorskip("starlette")
pytest.importorskip("playwright")
pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no Chromium on this machine: apt install chromium"
)

QUESTION = "Rome lies in which land?"
PHONE = {"viewport": {"width": 400, "height": 800}}


@pytest.fixture(scope="module")
def chrome():
    with headless() as browser:
        yield browser


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    memory = Memory.create(tmp_path_factory.mktemp("explorer") / "towns", encode)
    facts = {"Rome": "Italy", "Oslo": "Norway", "Lima": "Peru", "L" + "o" * 90 + "ng": "Wales"}
    memory.add(
        Passage(town.lower(), f"{town} lies in {land}.", title=town, tags=(land,))
        for town, land in facts.items()
    )
    with served(memory, Copier({"Rome": "Spain"})) as address:
        yield memory, address


def told(questions, *_):
    """An answer whose first token comes from a passage."""
    sources = (Source("rome", 3, 7, 0.4),)
    return [Explained(questions[0], "It", (Told("It", 0.5, 0.4, sources), Told(" is", 0.9, 0, ())))]


def test_a_token_shows_its_sources_and_opens_its_passage(chrome, tmp_path, monkeypatch):
    memory = Memory.create(tmp_path / "m", encode)
    memory.add([Passage("rome", "Rome lies in Italy.", title="Rome")])
    monkeypatch.setattr(explorer_answers, "explained", told)
    hook = type("Hook", (), {"memory": memory})()
    with served(memory, Copier({}), hook) as address, page(chrome, address) as browser:
        ask(browser)
        token = browser.locator(".token")
        assert token.count() == 1 and token.inner_text() == "It"
        assert "rome, token 3: 0.400" in token.get_attribute("title")
        shade = lambda of: browser.evaluate("e => getComputedStyle(e).backgroundColor", of)
        before = shade(token.element_handle())
        assert before != "rgba(0, 0, 0, 0)"
        token.hover()
        assert shade(token.element_handle()) != before
        token.click()
        assert browser.locator(".text").inner_text() == "Rome lies in Italy."


def answers(browser):
    browser.locator(".book").first.wait_for()
    return browser.locator(".answer").all_inner_texts()


def ask(browser, question=QUESTION):
    browser.get_by_role("searchbox").fill(question)
    browser.get_by_role("button", name="Ask", exact=True).click()
    return answers(browser)


def edit(browser, text):
    """Edit the first citation of an answer and save it."""
    browser.locator(".card").first.click()
    browser.get_by_label("Text").fill(text)
    browser.get_by_role("button", name="Save and ask again").click()
    return answers(browser)


@pytest.mark.parametrize(
    "options", [PHONE, {"java_script_enabled": False}], ids=["phone", "no script"]
)
def test_ask_edit_ask_again_undo_and_time_travel(chrome, explorer, options):
    memory, address = explorer
    before = memory.version
    with page(chrome, address, **options) as browser:
        assert "token" not in browser.url
        assert (
            ask(browser) == ["Italy", "Spain"]
            and browser.locator("mark").inner_text() == "Rome lies in Italy."
        )
        assert edit(browser, "Rome lies in Norway.") == ["Norway", "Spain"]
        assert (
            browser.locator(".before del").inner_text() == "Italy"
            and memory.get("rome").text == "Rome lies in Norway."
        )
        browser.get_by_role("button", name="Undo").click()
        assert answers(browser) == ["Italy", "Spain"] and memory.version == before + 2
        browser.get_by_role("link", name="History").click()
        browser.get_by_role("link", name=f"Version {before + 1}", exact=True).click()
        assert (
            "read-only" in browser.locator(".banner").inner_text()
            and browser.locator("form[method=post]").count() == 0
        )
        browser.get_by_role("link", name="Ask", exact=True).click()
        assert ask(browser) == ["Norway", "Spain"]
        browser.locator(".card").first.click()
        assert (
            browser.locator(".text").inner_text() == "Rome lies in Norway."
            and browser.locator("textarea").count() == 0
        )
        browser.get_by_role("link", name="Back to now").click()
        assert browser.locator(".text").inner_text() == "Rome lies in Italy."


def test_the_slider_travels_and_everything_can_be_reached_by_keyboard(chrome, explorer):
    memory, address = explorer
    with page(chrome, address) as browser:
        # Autofocus comes only once the page is drawn; keys typed sooner are lost.
        browser.locator("[name=q]:focus").wait_for()
        browser.keyboard.type(QUESTION)
        browser.keyboard.press("Enter")
        assert answers(browser) == ["Italy", "Spain"]
        # The slider needs the script, which may run after the answers are shown.
        browser.locator("html.scripted input[type=range]").focus()
        browser.keyboard.press("Home")
        browser.locator(".banner").wait_for()
        assert (
            f"Version 1 of {memory.version}" in browser.locator(".banner").inner_text()
            and answers(browser)[0] == "Does not know"
        )
        browser.locator("body").press("Tab")
        names = []
        for _ in range(12):
            names.append(
                browser.evaluate(
                    "document.activeElement.textContent.trim() || document.activeElement.name"
                )
            )
            browser.keyboard.press("Tab")
        assert {"Ask", "Search", "Map", "History", "at", "q", "Back to now"} <= set(names)


def test_the_map_names_a_point_under_the_mouse_and_opens_it(chrome, explorer):
    _, address = explorer
    with page(chrome, address) as browser:
        browser.get_by_role("link", name="Map").click()
        point = browser.locator(".map > svg circle", has_text="Lima")
        point.hover()
        assert browser.locator("#tip").inner_text() == "Lima"
        point.click()
        assert browser.locator("h1").inner_text() == "Lima"


def test_no_page_scrolls_sideways_on_a_phone(chrome, explorer):
    _, address = explorer
    with page(chrome, address, **PHONE) as browser:
        long = "l" + "o" * 90 + "ng"
        for place in (
            "",
            "?q=" + QUESTION,
            "search?q=" + long,
            "passage?id=" + long,
            "map?q=" + long,
            "history",
        ):
            browser.goto(f"{address.partition('?')[0]}{place}")
            wide = browser.evaluate("document.documentElement.scrollWidth")
            assert wide <= 400, f"/{place} is {wide} pixels wide"
