"""The explorer in a real browser: a server thread, and installed Chromium driven by playwright."""

import contextlib
import shutil
import socket
import threading

TOKEN = "a-token-of-the-tests"
PATIENCE = 90_000  # milliseconds, for a busy machine
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str | None:
    """Return the path of a Chromium, if there is one."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextlib.contextmanager
def served(memory, reader, hook=None):
    """Serve the explorer on a free port; yield the address that grants access."""
    import uvicorn

    from retrieval.explorer.app import make_app

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(memory, reader, TOKEN, hook=hook),
                log_config=None,
                log_level="warning",
                lifespan="off",
            )
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/?token={TOKEN}"
        finally:
            server.should_exit = True
            thread.join(10)


@contextlib.contextmanager
def headless():
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"], timeout=PATIENCE
        )
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def page(browser, address: str, **options):
    """Open an address in a fresh session; fail on a script error or a request elsewhere."""
    opened, wrong = browser.new_page(**options), []
    try:
        opened.set_default_timeout(PATIENCE)
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on(
            "console",
            lambda message: wrong.append(message.text) if message.type == "error" else None,
        )
        opened.goto(address)
        yield opened
        assert not wrong, wrong
    finally:
        opened.close()
