"""Reading a request: within the limits of size, memory and time, until its client leaves."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi.routing import APIRoute
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from saysee.search.service.batching import Place
from saysee.search.service.errors import RequestError
from saysee.search.service.settings import ServiceSettings

T = TypeVar("T")

_UTF8 = (b"utf-8", b"utf8")  # Starlette would take any codec of Python, of which some raise
_MAX_FILES, _MAX_FIELDS = 2, 32
_FIELD_BYTES = 64 * 2**10  # of a field that is not a file; vectors and metadata are far smaller
_OVERHEAD_BYTES = 4 * _FIELD_BYTES  # what a body may contain in addition to its file


class FormRoute(APIRoute):
    """A route with a form: its request has a place from before its body is read until it is answered."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, called with a :class:`LimitedRequest`."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            service = request.app.state.service
            with service.places.taking() as place:
                return await handler(LimitedRequest(request, place, service.settings))

        return handle


class _Parser(MultiPartParser):
    spool_max_size = 2**62  # files stay in memory; a larger one would be written to disk


class LimitedRequest(Request):
    """A request whose multipart form is rejected while it arrives, as soon as it exceeds a limit."""

    def __init__(self, request: Request, place: Place, settings: ServiceSettings) -> None:
        super().__init__(request.scope, request.receive)
        self._place, self._settings = place, settings

    async def form(self, **_: Any) -> FormData:  # type: ignore[override]
        """The fields of the form; RequestError if it is not a multipart form, too large, too slow or incomplete."""
        kind, options = parse_options_header(self.headers.get("content-type"))
        if kind != b"multipart/form-data" or options.get(b"charset", b"utf-8").lower() not in _UTF8:
            raise RequestError(415, "not-a-form", "Send the fields as a multipart form (multipart/form-data) in UTF-8.")
        body, seconds = self.stream(), self._settings.body_seconds
        parser = _Parser(self.headers, body, max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=_FIELD_BYTES)
        arriving = asyncio.ensure_future(parser.parse())
        self._place.give_way = arriving.cancel
        try:
            await asyncio.wait({arriving}, timeout=seconds)
            if not arriving.done() or arriving.cancelled():
                raise RequestError(408, "too-slow", "The request took too long to arrive; send it again, or less.")
            form = arriving.result()
            self._place.begin()
            return form
        except MultiPartException as error:
            raise RequestError(400, "malformed-form", f"The form cannot be read: {error.message}") from None
        except ClientDisconnect:
            raise _client_left() from None
        finally:
            arriving.cancel()
            await asyncio.gather(arriving, return_exceptions=True)
            await body.aclose()

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives, within the limits of bytes and of memory."""
        limit, arrived = self._settings.limits.bytes, 0
        error = RequestError(413, "too-large", f"The file exceeds the limit of {limit:,} bytes; send a smaller one.")
        declared = self.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and len(declared) < 20 and int(declared) > limit + _OVERHEAD_BYTES:
            raise error
        async for chunk in super().stream():
            arrived += len(chunk)
            if arrived > limit + _OVERHEAD_BYTES:
                raise error
            self._place.hold(len(chunk))
            yield chunk


async def unless_left(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled with a RequestError when the client closes its connection."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_leaving(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise _client_left()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _leaving(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _client_left() -> RequestError:
    return RequestError(499, "client-left", "The client closed the connection.")  # a code of nginx; nobody receives it
