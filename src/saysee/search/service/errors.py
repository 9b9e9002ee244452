"""Errors of the HTTP service: a status, a code for programs and one line for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from saysee.errors import MediaError, SaySeeError

CLIENT_LEFT = 499  # as nginx logs it; nobody receives it


class RequestError(HTTPException):
    """A request that cannot be answered.

    Attributes:
        status_code: of HTTP.
        code: what went wrong, for programs: kebab-case, stable across releases.
        detail: one line for people.
    """

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, message, headers)
        self.code = code

    def response(self) -> JSONResponse:
        """The answer that the client gets."""
        return JSONResponse({"code": self.code, "detail": self.detail}, self.status_code, self.headers)


def client_left() -> RequestError:
    """The error that ends a request whose client has closed its connection."""
    return RequestError(CLIENT_LEFT, "client-left", "The client closed the connection.")


@contextmanager
def index_errors(status: int, code: str, place: str = "", retry_after: int | None = None) -> Iterator[None]:
    """Turns a SaySeeError about the index at ``place`` into a :class:`RequestError`."""
    try:
        yield
    except SaySeeError as error:
        raise RequestError(status, code, one_line(error, place), retry_after) from None


@contextmanager
def client_errors() -> Iterator[None]:
    """Turns a SaySeeError about a client's file into a :class:`RequestError` with the same code."""
    try:
        yield
    except MediaError as error:
        raise RequestError(
            413 if error.code in ("too-large", "too-long") else 422, error.code, one_line(error)
        ) from None
    except SaySeeError as error:
        raise RequestError(422, error.code, one_line(error)) from None


def one_line(error: Exception, place: str = "") -> str:
    """An error's message without the path of the index, which clients need not know."""
    return " ".join(str(error).split()).removeprefix(f"{place}: ")
