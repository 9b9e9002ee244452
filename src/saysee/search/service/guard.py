"""Who may ask: token, Host and Origin; and what every answer carries.

A service without a token listens on loopback only. There a page of the web could reach it through the user's own
browser, so requests that another site caused are refused: by the Host header, which shows a name that was rebound to
127.0.0.1 (DNS rebinding), and by Origin and Sec-Fetch-Site, which browsers set and scripts cannot. With a token none
of this is needed: no browser sends it by itself.
"""

from __future__ import annotations

import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saysee.search.service.refusals import Refusal
from saysee.search.service.settings import is_loopback

OPEN_PATHS = ("/", "/health", "/docs", "/openapi.json")
"""What needs no token, nor shows anything of the index; with all below ``OPEN_FOLDERS``."""
OPEN_FOLDERS = ("/page/", "/static-offline-docs/")

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Swagger's page starts by a script and styles within it; it shows nothing that a client sent.
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILE_POLICY = "default-src 'none'; sandbox; frame-ancestors 'none'"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
}


class Guard:
    """Refuses whoever may not ask, and puts headers of safety on every answer.

    Args:
        app: what answers.
        token: to be shown; None for none.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI says."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers["Content-Security-Policy"] = _policy(path)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._check(scope["method"], path, Headers(scope=scope))
        except Refusal as refusal:
            await refusal.response()(scope, receive, with_headers)
            return
        await self.app(scope, receive, with_headers)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        if self.token is None:
            _check_site(method, headers)
        elif path not in OPEN_PATHS and not path.startswith(OPEN_FOLDERS):
            scheme, _, shown = headers.get("authorization", "").partition(" ")
            right = secrets.compare_digest(shown.strip().encode("utf-8", "replace"), self.token)
            if scheme.lower() != "bearer" or not right:
                raise Refusal(401, "This service asks for its token; send it as 'Authorization: Bearer TOKEN'.")


def _check_site(method: str, headers: Headers) -> None:
    """Refuses what a page of another site caused."""
    host = headers.get("host", "")
    if not is_loopback(_name(host)):
        raise Refusal(403, "This service answers on this machine only; ask it as localhost or 127.0.0.1.")
    origin = headers.get("origin")
    if origin is not None and origin.lower() != f"http://{host}".lower():
        raise Refusal(403, "This service answers its own page only, and the request came from a page of another site.")
    # A picture or form of another site names no origin in every browser; a link to the page from elsewhere may be.
    followed_link = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not followed_link:
        raise Refusal(403, "This service answers its own page only, and the request came from a page of another site.")


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def _policy(path: str) -> str:
    if path.startswith(("/images/", "/clips/")):
        return _FILE_POLICY
    return _DOCS_POLICY if path.startswith("/docs") else _PAGE_POLICY
