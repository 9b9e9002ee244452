"""Errors of the HTTP service: a status, a code for programs and one line for people."""

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from saysee.errors import SaySeeError


class RequestError(HTTPException):
    """A request that cannot be answered; ``code`` and ``detail`` as in :class:`.schemas.ErrorAnswer`."""

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, message, headers)
        self.code = code

    def response(self, scope: Scope) -> JSONResponse:
        """The answer that the client of a request gets."""
        answer = {"code": self.code, "detail": self.detail, "request_id": scope["state"]["request_id"]}
        return JSONResponse(answer, self.status_code, self.headers)


@contextmanager
def request_errors(
    status: int = 422, code: str = "", place: str = "", retry_after: int | None = None
) -> Iterator[None]:
    """Turns a SaySeeError into a :class:`RequestError`, as :func:`request_error`."""
    try:
        yield
    except SaySeeError as error:
        raise request_error(error, status, code, place, retry_after) from None


def request_error(
    error: SaySeeError, status: int = 422, code: str = "", place: str = "", retry_after: int | None = None
) -> RequestError:
    """The error that a client gets, by default about its file and with the error's own code.

    The path of the index, ``place``, is left out: clients need not know it.
    """
    status = 413 if not code and error.code in ("too-large", "too-long") else status
    message = " ".join(str(error).split())
    if place:
        message = message.removeprefix(f"{place}: ").replace(place, "INDEX")
    return RequestError(status, code or error.code, message, retry_after)
