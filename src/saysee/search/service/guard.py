"""Who may send requests: token, Host, Origin and read-only access; and the security headers of every answer.

A service without a token listens on loopback only. There a web page could still reach it through the user's own
browser, so requests that another site caused are rejected: by the Host header, which shows a name that was rebound to
127.0.0.1 (DNS rebinding), and by Origin and Sec-Fetch-Site, which browsers set and scripts cannot. With a token these
checks are not needed: no browser sends it by itself.
"""

import logging
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saysee.search.service.errors import RequestError
from saysee.search.service.settings import is_loopback

logger = logging.getLogger(__name__)

# These need no token: they show nothing of the index.
_OPEN_PATHS = ("/", "/health", "/docs", "/openapi.json")
_OPEN_FOLDERS = ("/page/", "/static-offline-docs/")

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Swagger's page contains an inline script and styles; it shows nothing that a client sent.
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_WITH_TOKEN = "behind a proxy or under another name, start it with --token, and send that"
_FILE_POLICY = "default-src 'none'; sandbox; frame-ancestors 'none'"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
}


class Guard:
    """Rejects forbidden requests before their body is read, adds security headers, and logs internal errors."""

    def __init__(self, app: ASGIApp, token: str | None, write: bool) -> None:
        self.app, self.token, self.write = app, None if token is None else token.encode(), write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection (ASGI)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, started = scope["path"], False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                page = _DOCS_POLICY if path.startswith("/docs") else _PAGE_POLICY
                is_file = path.startswith(("/images/", "/clips/"))
                headers["Content-Security-Policy"] = _FILE_POLICY if is_file else page
                headers.setdefault("Cache-Control", "no-cache" if path.startswith(_OPEN_FOLDERS) else "no-store")
            await send(message)

        try:
            self._check(scope["method"], path, Headers(scope=scope))
            await self.app(scope, receive, send_with_headers)
        except RequestError as error:
            await error.response(scope)(scope, receive, send_with_headers)
        except Exception:
            logger.exception("request %s: internal error", scope["state"]["request_id"])
            if started:
                raise
            failed = RequestError(500, "internal-error", "Internal error; see the server log.")
            await failed.response(scope)(scope, receive, send_with_headers)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        if self.token is None:
            _check_site(method, headers)
        elif path not in _OPEN_PATHS and not path.startswith(_OPEN_FOLDERS):
            scheme, _, sent = headers.get("authorization", "").partition(" ")
            right = secrets.compare_digest(sent.strip().encode("utf-8", "replace"), self.token)
            if scheme.lower() != "bearer" or not right:
                raise RequestError(401, "token-required", "Send the token as 'Authorization: Bearer TOKEN'.")
        if not self.write and method in ("POST", "DELETE") and path.startswith("/items"):
            raise RequestError(403, "read-only", "This service is read-only; start it with --write.")


def _check_site(method: str, headers: Headers) -> None:
    """Rejects what a page of another site caused."""
    host = headers.get("host", "")
    name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]  # without the port
    if not is_loopback(name):
        raise RequestError(
            403, "other-host", f"Without a token, this service answers on localhost only; {_WITH_TOKEN}."
        )
    origin = headers.get("origin")
    same_origin = origin is None or origin.lower() == f"http://{host}".lower()
    # An image or form of another site sends no Origin in some browsers. A link on another site may open the page.
    followed_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
    same_site = headers.get("sec-fetch-site", "none") in ("none", "same-origin") or followed_link
    if not (same_origin and same_site):
        raise RequestError(403, "other-site", f"Pages of other sites may not use this service; {_WITH_TOKEN}.")
