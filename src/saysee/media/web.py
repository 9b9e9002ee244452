"""Images of another web server, such as a photo library's, fetched with a key that no client of SaySee sees."""

import http.client
import io
import os
import time
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from saysee.errors import ConfigError, MediaCode, MediaError
from saysee.media.formats import file_kind
from saysee.media.source import printable, reason

KEY_VARIABLE = "SAYSEE_IMAGES_KEY"
_BYTES, _SECONDS = 32 * 2**20, 10.0  # limits of one image. A choice: a preview of a photo has less than a megabyte.


class _NoRedirects(HTTPRedirectHandler):
    """A redirect is an error: the key would go with it."""

    def redirect_request(self, *_: Any) -> None:
        return None


_open = build_opener(_NoRedirects, ProxyHandler({})).open


class ImageServer:
    """A web server that has images.

    All its addresses start with ``base``, such as http://photos.local:2283; nothing else is fetched. The ``key`` is
    sent as the header ``x-api-key`` of Immich; None is the environment's ``SAYSEE_IMAGES_KEY``, if any.

    Raises ConfigError if the address or the key cannot be used.
    """

    def __init__(self, base: str, key: str | None = None) -> None:
        try:
            parts = urlsplit(base)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        if not good or "@" in parts.netloc or parts.query or parts.fragment or not base.isprintable():
            raise ConfigError(f"--images-from {base!r} is no address of a server; give one such as http://photos:2283")
        self.base = f"{base.rstrip('/')}/"
        key = (os.environ.get(KEY_VARIABLE, "") if key is None else key).strip()
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"{KEY_VARIABLE} has characters that no key has; copy the key again")
        self._headers = {"Accept": "image/*"} | ({"x-api-key": key} if key else {})

    def has(self, address: str) -> bool:
        """Whether an address is of this server."""
        return address.startswith(self.base)

    def fetch(self, address: str) -> bytes:
        """The content of an image.

        Raises MediaError: missing (also where the key may not see it), undecodable (no image), too-large (over 32 MiB),
        unreadable (of another server, no connection, another status, over 10 s).
        """
        name, end, content = printable(address), time.monotonic() + _SECONDS, b""
        if not self.has(address):
            raise MediaError("unreadable", f"{name}: is not of {self.base}; check --images-from")
        request = Request(quote(address, safe="/:?&=%+,;@~[]"), headers=self._headers)
        try:
            with _open(request, timeout=_SECONDS) as response:
                while len(content) <= _BYTES and (piece := response.read1(2**20)):
                    content += piece
                    if time.monotonic() > end:
                        raise TimeoutError(f"it takes over {_SECONDS:g} s")
                if response.length and len(content) <= _BYTES:  # read1 ends without an error where the server does
                    raise http.client.IncompleteRead(content, response.length)
        except HTTPError as error:
            # Immich answers with 400 for an image that is gone or that the key's user may not see.
            code: MediaCode = "missing" if error.code in (400, 404, 410) else "unreadable"
            fix = f"check the key in {KEY_VARIABLE}" if error.code in (401, 403) else "check --images-from"
            raise MediaError(code, f"{name}: cannot be fetched (HTTP {error.code}); {fix}") from None
        except (OSError, http.client.HTTPException) as error:
            why = reason(getattr(error, "reason", None) or error)
            fix = "check the server and --images-from"
            raise MediaError("unreadable", f"{name}: cannot be fetched ({why}); {fix}") from None
        if len(content) > _BYTES:
            raise MediaError("too-large", f"{name}: has over {_BYTES / 2**20:g} MiB; give the address of a preview")
        found = file_kind(io.BytesIO(content))
        if found is None or found.kind != "image":
            raise MediaError("undecodable", f"{name}: the server's answer is no image; check --images-from")
        return content
