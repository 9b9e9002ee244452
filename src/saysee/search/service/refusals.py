"""Refusals: what a client did wrong, as a status and one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi.responses import JSONResponse

from saysee.errors import MediaError, SaySeeError

CLIENT_LEFT = 499
"""What nginx writes for a client that left before it was answered; nobody receives it."""


class Refusal(Exception):
    """A request that is refused.

    Attributes:
        status: of HTTP.
        detail: one sentence.
        retry_after: seconds after which the same request may succeed; None where it will not.
    """

    def __init__(self, status: int, detail: str, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after = status, detail, retry_after

    def response(self) -> JSONResponse:
        """The answer."""
        headers: dict[str, str] = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse({"detail": self.detail}, self.status, headers)


class ClientLeft(Exception):
    """The client closed its connection before it was answered."""


@contextmanager
def refusing() -> Iterator[None]:
    """Within, what is wrong with a file is the client's mistake: over a limit, or not to be used."""
    try:
        yield
    except MediaError as error:
        raise Refusal(413 if error.code in ("too-large", "too-long") else 422, told(error)) from None
    except SaySeeError as error:
        raise Refusal(422, told(error)) from None


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of refusals."""
    meanings = {
        400: "The request cannot be read",
        401: "The token is missing or wrong",
        403: "Not allowed",
        404: "There is none",
        408: "The request took too long to arrive",
        409: "The index cannot be written, or was made by another model",
        410: "Its file is gone",
        413: "Over a limit of size or length",
        415: "The body is no multipart form",
        422: "A field or a file cannot be used",
        503: "The service is busy; Retry-After says when to come back",
    }
    detail = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
    return {
        status: {"description": meanings[status], "content": {"application/json": {"schema": detail}}}
        for status in statuses
    }


def told(error: Exception, place: str = "") -> str:
    """An error as one line, without the place of the index on this machine, which is no client's business."""
    line = " ".join(str(error).split())
    return line.removeprefix(f"{place}: ")
