"""Access control of the explorer: this machine only, a secret token, same-origin changes.

Any page in the user's browser can send requests to 127.0.0.1, and by DNS rebinding even read the
responses, so being local is not enough. The Host header must name this machine, every request must
carry the token, and a change must come from the explorer's own page.
"""

import hmac
import html
from collections.abc import Mapping
from urllib.parse import parse_qs, parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from retrieval.errors import RetrievalError

HOSTS = ("127.0.0.1", "localhost", "[::1]")
MAX_BODY = 10 * 2**20  # bytes of a form: a passage of a million escaped characters
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors "
    "'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer, forms are sent with origin "null"
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware that checks host, token and origin.

    The first visit, /?token=..., exchanges the token for a cookie. Scripts send it as
    "Authorization: Bearer".
    """

    def __init__(self, app: ASGIApp, token: str):
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)

        async def send_guarded(message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await (refusal or self.app)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope):
        """Return a response that refuses or redirects, or None if the request may pass."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
            return PlainTextResponse("This address is not the explorer's.", 421)
        cookie = f"openbook_{scope['server'][1]}"
        query = scope["query_string"].decode("latin-1")
        if scope["method"] == "GET" and self._is_token(parse_qs(query).get("token", [""])[0]):
            rest = urlencode([(name, value) for name, value in parse_qsl(query) if name != "token"])
            place = "/" + scope["path"].lstrip("/") + (f"?{rest}" if rest else "")
            # From the page of --open: a redirect would stay cross-site and not send the cookie.
            if headers.get("sec-fetch-site") == "cross-site":
                entered = HTMLResponse(
                    '<!doctype html><meta http-equiv="refresh" '
                    f'content="0; url={html.escape(place)}">'
                )
            else:
                entered = RedirectResponse(place, 303)
            entered.set_cookie(cookie, self.token, httponly=True, samesite="strict")
            return entered
        by_header = self._is_token(headers.get("authorization", "").removeprefix("Bearer "))
        if not by_header and not self._is_token(
            cookie_parser(headers.get("cookie", "")).get(cookie, "")
        ):
            return PlainTextResponse(
                "Open the address that python -m retrieval.explore printed.", 401
            )
        if (
            scope["method"] == "POST"
            and not by_header
            and headers.get("origin") != f"http://{host}"
        ):
            return PlainTextResponse("A change must come from the explorer's own page.", 403)
        return None

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())


async def read_form(request: Request) -> Mapping[str, str]:
    """Return the fields of a posted form, with "\\n" line ends.

    Raises RetrievalError when it is over 10 MB.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise RetrievalError(
                f"the form is over {MAX_BODY // 2**20} MB: make the passage shorter"
            )
    try:
        fields = parse_qsl(
            body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=20
        )
    except ValueError:
        raise RetrievalError(
            "the form has more than 20 fields: send those of the explorer's own page"
        ) from None
    return {name: value.replace("\r\n", "\n") for name, value in fields}
