"""The service over HTTP: its addresses, what each takes and answers, and the page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi import Path as PathField
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from saysee.search.service.answers import AboutAnswer, AttentionAnswer, HealthAnswer, ItemAnswer, SearchAnswer
from saysee.search.service.core import DEFAULT_K, Service
from saysee.search.service.files import THUMBNAIL_SIDE, THUMBNAIL_TYPE
from saysee.search.service.forms import Field, body_of, read_form
from saysee.search.service.guard import Guard
from saysee.search.service.metrics import Counted
from saysee.search.service.refusals import CLIENT_LEFT, ClientLeft, Refusal, documented
from saysee.version import __version__

T = TypeVar("T")

PAGE = Path(__file__).parents[1] / "page"
_PAGE_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}
Row = Annotated[int, PathField(ge=1, le=2**63 - 1, description="id of a hit")]

_ATTENTION_FORM = {
    "audio": Field("a sound file", file=True, required=True),
    "id": Field("the id of a picture", required=True, schema={"type": "integer", "minimum": 1, "maximum": 2**63 - 1}),
}
_ITEM_FORM = {
    "file": Field("a picture or a sound file", file=True, required=True),
    "metadata": Field("further columns, a JSON object"),
}
_FORM_REFUSALS = (400, 403, 408, 413, 415, 422, 503)


def make_app(service: Service) -> FastAPI:
    """The application of a service; it closes the service when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPIOffline(
        redoc_url=None,
        redirect_slashes=False,
        title="SaySee",
        version=__version__,
        description="Search pictures by speaking, and speech by showing.",
        lifespan=lifespan,
        dependencies=[Depends(HTTPBearer(auto_error=False))] if service.settings.token else [],
    )
    _add_errors(app)
    _add_page(app)
    _add_questions(app, service)
    _add_files(app, service)
    _add_changes(app, service)
    app.add_middleware(Guard, token=service.settings.token)  # the innermost first
    app.add_middleware(Counted, metrics=service.metrics)
    return app


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _page_file("index.html")

    @app.get("/page/{file}", include_in_schema=False)
    async def page_file(file: str) -> Response:
        return _page_file(file)


def _page_file(name: str) -> Response:
    kind = _PAGE_TYPES.get(Path(name).suffix)
    if kind is None or name not in {path.name for path in PAGE.iterdir()}:
        raise HTTPException(404)
    return FileResponse(PAGE / name, media_type=kind, headers={"Cache-Control": "no-cache"})


def _add_questions(app: FastAPI, service: Service) -> None:
    limits = service.settings.limits
    search_form = {
        "audio": Field("a sound file, as a query by speech", file=True),
        "image": Field("a picture file, as a query", file=True),
        "text": Field("a query in writing", schema={"type": "string", "minLength": 1, "maxLength": limits.text}),
        "vector": Field("the vector of a former query's answer"),
        "k": Field(
            "most hits",
            schema={"type": "integer", "minimum": 1, "maximum": limits.k, "default": min(DEFAULT_K, limits.k)},
        ),
        "kind": Field(
            "what to find; for pictures clips if there are any, else pictures", schema={"enum": ["image", "clip"]}
        ),
    }

    @app.get("/about", summary="What is served")
    async def about() -> AboutAnswer:
        return AboutAnswer(**await service.in_thread(service.about))

    @app.get("/health", summary="Whether it is ready")
    async def health() -> HealthAnswer:
        return HealthAnswer()

    @app.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(await service.in_thread(service.figures), media_type=CONTENT_TYPE_LATEST)

    @app.post(
        "/search",
        summary="Search by exactly one of audio, image, text and vector",
        responses=documented(409, *_FORM_REFUSALS),
        openapi_extra=body_of(search_form),
        response_model=SearchAnswer,
    )
    async def search(request: Request) -> JSONResponse:
        start = time.perf_counter()
        with service.places.taking() as place:
            fields = await read_form(request, search_form, place, service.settings)
            answer = await _unless_left(request, service.search(fields))
        return JSONResponse({**answer, "milliseconds": round(1_000 * (time.perf_counter() - start), 3)})

    @app.post(
        "/attention",
        summary="Which regions of a picture each moment of speech attends to",
        responses=documented(404, 410, *_FORM_REFUSALS),
        openapi_extra=body_of(_ATTENTION_FORM),
        response_model=AttentionAnswer,
    )
    async def attention(request: Request) -> JSONResponse:
        with service.places.taking() as place:
            fields = await read_form(request, _ATTENTION_FORM, place, service.settings)
            answer = await _unless_left(request, service.attend(fields))
        return JSONResponse(answer)


def _add_files(app: FastAPI, service: Service) -> None:
    refusals = documented(404, 410, 422)
    cached = {"Cache-Control": "private, max-age=300"}

    def content(kind: str) -> dict[int | str, dict[str, Any]]:
        binary = {"schema": {"type": "string", "format": "binary"}}
        return {**refusals, 200: {"description": "The file", "content": {kind: binary}}}

    @app.get("/images/{id}", summary="A picture", response_class=FileResponse, responses=content("image/*"))
    async def image(id: Row) -> Response:
        path, kind = await service.in_thread(service.file, "image", id)
        return FileResponse(path, media_type=kind, headers=cached)

    @app.get(
        "/images/{id}/thumbnail",
        summary=f"A picture, no side longer than {THUMBNAIL_SIDE}",
        response_class=Response,
        responses=content(THUMBNAIL_TYPE),
    )
    async def thumbnail(id: Row, request: Request) -> Response:
        small = await _unless_left(request, service.in_thread(service.thumbnail, id))
        return Response(small, media_type=THUMBNAIL_TYPE, headers=cached)

    @app.get("/clips/{id}", summary="A clip", response_class=FileResponse, responses=content("audio/*"))
    async def clip(id: Row) -> Response:
        path, kind = await service.in_thread(service.file, "clip", id)
        return FileResponse(path, media_type=kind, headers=cached)


def _add_changes(app: FastAPI, service: Service) -> None:
    def check_writable() -> None:
        if not service.settings.write:
            raise Refusal(403, "This service is read-only; start it with --write to add and remove items.")

    @app.post(
        "/items",
        summary="Add a picture or clip; one that is there already is not added again",
        status_code=201,
        responses={**documented(409, *_FORM_REFUSALS), 200: {"model": ItemAnswer, "description": "It was there"}},
        openapi_extra=body_of(_ITEM_FORM),
        response_model=ItemAnswer,
    )
    async def add(request: Request) -> JSONResponse:
        check_writable()
        with service.places.taking() as place:
            fields = await read_form(request, _ITEM_FORM, place, service.settings)
            answer, new = await _unless_left(request, service.add(fields))
        return JSONResponse(answer, 201 if new else 200)

    @app.delete("/items/{id}", summary="Take an item out", status_code=204, responses=documented(403, 404, 409, 422))
    async def remove(id: Row) -> Response:
        check_writable()
        await service.in_thread(service.items.remove, id)
        return Response(status_code=204)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Refusal)
    async def refusal(_: Request, error: Refusal) -> Response:
        return error.response()

    @app.exception_handler(ClientDisconnect)
    @app.exception_handler(ClientLeft)
    async def left(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_LEFT)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return Refusal(422, f"{first['loc'][-1]}: {first['msg']}.").response()

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "other methods")
            response = Refusal(405, f"This address takes {allowed} only.").response()
        else:
            response = Refusal(
                error.status_code, "There is nothing at this address; /docs lists what there is."
            ).response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def ours(_: Request, __: Exception) -> Response:
        return Refusal(500, "The service failed; whoever runs it finds the reason in its output.").response()


async def _unless_left(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is broken off when the client closes its connection.

    Raises:
        ClientLeft: it did.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
