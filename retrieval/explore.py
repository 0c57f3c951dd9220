"""A memory in the browser: python -m retrieval.explore --memory=DIR [--reader=PATH]"""

import json
import secrets
import socket
import sys
import webbrowser

from retrieval.cli import add_encoder_option, entry_point, open_memory, parser
from retrieval.errors import RetrievalError

HOST = "127.0.0.1"


@entry_point
def main(argv=None):
    options = parser(
        "retrieval.explore",
        "Ask, look around, change and undo in the browser. Serves this machine only, to who has the address it prints; Ctrl-C ends it.",
    )
    options.add_argument("--reader", metavar="PATH", help="directory, hub id or .gguf file of a causal language model that answers")
    options.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    options.add_argument("--open", action="store_true", help="open the page in the browser")
    add_encoder_option(options)
    args = options.parse_args(argv)
    if not 0 <= args.port < 2**16:
        options.error(f"--port={args.port}: expected 0 to {2**16 - 1}")
    try:
        import uvicorn

        from retrieval.explorer.app import make_app
    except ImportError as error:
        raise RetrievalError(f"the explorer needs {error.name}, which is not installed: pip install 'openbook[explore]'") from None
    memory = open_memory(args.memory, args.encoder)
    from retrieval import Reader

    reader, token = Reader.from_hf(args.reader) if args.reader else None, secrets.token_urlsafe(32)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, args.port))
        except OSError as error:
            raise RetrievalError(
                f"--port={args.port} cannot be listened on ({error.strerror}): take another, or 0 for a free one"
            ) from None
        listener.listen(128)  # who has the address can connect from now on, and waits until the page is there
        url = f"http://{HOST}:{listener.getsockname()[1]}/?token={token}"
        print(json.dumps({"url": url}) if args.json else f"{args.memory} is at {url}", flush=True)
        if args.open:
            webbrowser.open(url)
        app = make_app(memory, reader, token)
        config = uvicorn.Config(
            app, lifespan="off", server_header=False,
            access_log=False, log_config=None, log_level="warning",  # an access log would hold the token
        )  # fmt: skip
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            app.state.explorer.close()


if __name__ == "__main__":
    sys.exit(main())
