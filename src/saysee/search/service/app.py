"""The service over HTTP: its routes and its page."""

# Without "from __future__ import annotations": FastAPI reads the annotations of the forms below, which are local.

import asyncio
import mimetypes
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi import Path as PathField
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from saysee.errors import SaySeeError
from saysee.search.index.filters import parse_filters
from saysee.search.index.index import Index
from saysee.search.service import schemas
from saysee.search.service.connections import bind, serve_app
from saysee.search.service.core import Service
from saysee.search.service.errors import RequestError, request_error, request_errors
from saysee.search.service.guard import Guard
from saysee.search.service.records import RecordingMiddleware
from saysee.search.service.requests import FormRoute, unless_left
from saysee.search.service.settings import ServiceSettings
from saysee.search.service.thumbnails import MEDIA_TYPE, SIDES, Size
from saysee.version import __version__

PAGE = Path(__file__).parents[1] / "page"
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request cannot be answered", "model": schemas.ErrorAnswer},
    503: {
        "description": "The service is busy, or its index out of reach; Retry-After has the seconds to wait",
        "model": schemas.ErrorAnswer,
    },
}
_RETRY_SECONDS = 10  # until a client asks again for an index that is out of reach
_CACHED = {"Cache-Control": "private, max-age=300"}

ItemId = Annotated[int, PathField(ge=1, le=schemas.MAX_ID, description="id of an item")]

mimetypes.add_type("text/javascript", ".js")  # Windows may call it text/plain, which browsers do not run


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
        description="Search images by speaking, and speech by showing.",
        lifespan=lifespan,
        dependencies=[Depends(HTTPBearer(auto_error=False))] if service.settings.token else [],
        responses=_ERRORS,
    )
    app.state.service = service
    _add_errors(app)
    _add_reading(app, service)
    forms = APIRouter(route_class=FormRoute)
    _add_forms(forms, service)
    app.include_router(forms)
    app.mount("/page", StaticFiles(directory=PAGE))
    app.add_middleware(Guard, token=service.settings.token, write=service.settings.write)  # the innermost first
    app.add_middleware(RecordingMiddleware, metrics=service.metrics, log=service.access_log)
    return app


def _add_reading(app: FastAPI, service: Service) -> None:
    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/about", summary="What is served")
    def about() -> schemas.AboutAnswer:
        return service.about()

    @app.get("/health", summary="Whether the service is ready")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/images/{id}", summary="An image", response_class=FileResponse)
    def image(id: ItemId) -> Response:
        return _answer(*service.items.file("image", id))

    @app.get("/clips/{id}", summary="A clip", response_class=FileResponse)
    def clip(id: ItemId) -> Response:
        return _answer(*service.items.file("clip", id))

    @app.get("/images/{id}/{size}", summary=f"An image, its longest side at most {SIDES}", response_class=Response)
    async def small(id: ItemId, size: Size, request: Request) -> Response:
        found = await unless_left(request, service.of_image(service.items.small, id, size))
        return Response(found, media_type=MEDIA_TYPE, headers=_CACHED)

    @app.get("/items", summary="Items, those of the newest files first", response_model=schemas.ItemsAnswer)
    def newest(query: Annotated[schemas.ItemsQuery, Query()]) -> JSONResponse:
        with request_errors(422, "invalid-filter"):
            filters = parse_filters(query.filter)
        found = service.items.newest(query.kind, min(query.k, service.settings.limits.k), query.offset, filters)
        return JSONResponse({"items": [schemas.item_answer(item) for item in found]})

    @app.delete("/items/{id}", summary="Remove an item; requires --write", status_code=204)
    def remove(id: ItemId) -> None:
        service.items.remove(id)


def _answer(file: str | bytes, media_type: str) -> Response:
    """A file by its path, or its content."""
    if isinstance(file, bytes):
        return Response(file, media_type=media_type, headers=_CACHED)
    return FileResponse(file, media_type=media_type, headers=_CACHED)


def _add_forms(router: APIRouter, service: Service) -> None:
    limits = service.settings.limits

    class SearchForm(schemas.SearchForm):
        __doc__ = schemas.SearchForm.__doc__
        text: Annotated[str, Field(max_length=limits.text)] | SkipJsonSchema[None] = Field(
            None, description="a written query"
        )
        k: int = Field(min(schemas.DEFAULT_K, limits.k), ge=1, le=limits.k, description="largest number of hits")
        rerank: Annotated[int, Field(ge=1, le=limits.rerank)] | SkipJsonSchema[None] = Field(
            None, description=schemas.SearchForm.model_fields["rerank"].description
        )

    # Answers are not validated again, which would take longer than the search.
    @router.post("/search", summary="Search", response_model=schemas.SearchAnswer)
    async def search(request: Request, form: Annotated[SearchForm, schemas.MULTIPART]) -> JSONResponse:
        start = time.perf_counter()
        answer = await unless_left(request, service.search(form))
        return JSONResponse({**answer, "milliseconds": round(1_000 * (time.perf_counter() - start), 3)})

    @router.post(
        "/attention",
        summary="Which regions of an image each moment of speech attends to",
        response_model=schemas.AttentionAnswer,
    )
    async def attention(request: Request, form: Annotated[schemas.AttentionForm, schemas.MULTIPART]) -> JSONResponse:
        return JSONResponse(await unless_left(request, service.attend(form)))

    @router.post(
        "/items",
        summary="Add an image or clip; requires --write. One that the index already has is not added again",
        status_code=201,
        responses={200: {"model": schemas.ItemAnswer, "description": "The index already has it"}},
        response_model=schemas.ItemAnswer,
    )
    async def add(request: Request, form: Annotated[schemas.ItemForm, schemas.MULTIPART]) -> JSONResponse:
        answer, is_new = await unless_left(request, service.add(form))
        return JSONResponse(answer, 201 if is_new else 200)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def rejected(request: Request, error: RequestError) -> Response:
        return error.response(request.scope)

    @app.exception_handler(SaySeeError)  # those about requests are RequestErrors
    async def unavailable(request: Request, error: SaySeeError) -> Response:
        place = app.state.service.index.place
        return request_error(error, 503, "index-unavailable", place, _RETRY_SECONDS).response(request.scope)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        status, code = (413, "text-too-long") if first["type"] == "string_too_long" else (422, "invalid-field")
        return RequestError(status, code, f"{first['loc'][1]}: {first['msg']}.").response(request.scope)

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> Response:
        code = "wrong-method" if error.status_code == 405 else "no-such-address"
        detail = f"{error.detail}; /docs lists all addresses."
        answer = RequestError(error.status_code, code, detail).response(request.scope)
        answer.headers.update(error.headers or {})
        return answer


def serve(index: Index, settings: ServiceSettings, ready: Callable[[str], None]) -> None:
    """Serves an index until SIGTERM or Ctrl-C, and then finishes the requests in progress.

    The port is bound first, so that a port in use is reported at once; it accepts connections once the model is loaded.
    ``ready`` is called with the address of the service when it answers. Raises SaySeeError if the port cannot be bound,
    or the index or its model cannot be used; KeyboardInterrupt if Ctrl-C ended it.
    """
    with bind(settings) as listener:
        serve_app(make_app(Service(index, settings)), settings, listener, ready)
