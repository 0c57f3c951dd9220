"""Explore a memory in the browser: python -m retrieval.explore --memory=DIR [--reader=PATH]"""

import asyncio
import contextlib
import html
import json
import logging
import os
import secrets
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Generator

from retrieval.cli import (
    READER,
    add_door_option,
    add_encoder_option,
    entry_point,
    open_memory,
    parser,
)
from retrieval.errors import RetrievalError

HOST = "127.0.0.1"
PATIENCE = 1  # seconds that Ctrl-C waits for running requests


@entry_point
def main(argv=None):
    options = parser(
        "retrieval.explore",
        "Ask, look around, change and undo in the browser. Serves this machine only, to who has "
        "the address it prints; Ctrl-C ends it.",
    )
    options.add_argument(
        "--reader",
        metavar="PATH",
        help=f"{READER}, which answers",
    )
    add_door_option(options)
    options.add_argument(
        "--datastore",
        metavar="DIR",
        help="token datastore of the memory: also answer with it mixed in (kNN-LM), every token "
        "coloured by its source",
    )
    options.add_argument(
        "--port", type=int, default=0, help="port to listen on; 0 takes a free one"
    )
    options.add_argument("--open", action="store_true", help="open the page in the browser")
    add_encoder_option(options)
    args = options.parse_args(argv)
    if not 0 <= args.port < 2**16:
        options.error(f"--port={args.port}: expected 0 to {2**16 - 1}")
    if args.datastore and not args.reader:
        options.error(f"--datastore={args.datastore} is mixed into a reader: give --reader too")
    try:
        import uvicorn

        from retrieval.explorer.app import make_app
    except ImportError as error:
        raise RetrievalError(
            f"the explorer needs {error.name}, which is not installed: pip install "
            "'openbook[explore]'"
        ) from None
    from retrieval.filters import EVERY_GROUP
    from retrieval.reading.explaining import hook_of
    from retrieval.reading.reader import door_of, load_reader

    door = door_of(args.reader, args.door) if args.reader else None
    memory = open_memory(args.memory, args.encoder, reader=args.reader or "")
    reader, token = load_reader(args.reader, door) if door else None, secrets.token_urlsafe(32)
    store = args.datastore
    hook = hook_of(store, reader, memory, EVERY_GROUP) if store and reader else None
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, args.port))
        except OSError as error:
            raise RetrievalError(
                f"--port={args.port} cannot be listened on ({error.strerror}): take another, or "
                "0 for a free one"
            ) from None
        listener.listen(128)  # connections are accepted from now on and wait for the app
        url = f"http://{HOST}:{listener.getsockname()[1]}/?token={token}"
        print(json.dumps({"url": url}) if args.json else f"{args.memory} is at {url}", flush=True)
        app = make_app(memory, reader, token, door, hook)
        config = uvicorn.Config(
            app,
            lifespan="off",
            server_header=False,
            access_log=False,  # it would contain the token
            log_config=None,
            log_level="warning",
            timeout_graceful_shutdown=PATIENCE,
        )
        logging.getLogger("uvicorn.error").addFilter(_is_worth_saying)
        try:
            with _redirect(url) if args.open else contextlib.nullcontext() as page:
                if page:
                    webbrowser.open(page)
                uvicorn.Server(config).run(sockets=[listener])
        finally:
            app.state.explorer.close()


@contextlib.contextmanager
def _redirect(url: str) -> Generator[str]:
    """Yield the file:// address of a page that leads to `url`.

    Only this user can read the page; a browser's command line would be visible to others.
    """
    with tempfile.TemporaryDirectory(prefix="openbook-") as folder:  # of mode 0700
        page = os.path.join(folder, "explorer.html")
        with open(os.open(page, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(
                f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(url)}">'
                "<title>Openbook</title>"
            )
        yield f"file://{page}"


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Filter out log records of requests cut off at shutdown."""
    cancelled = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cancelled and "graceful shutdown" not in str(record.msg)


if __name__ == "__main__":
    sys.exit(main())
