"""Reading a multipart form within its limits: refused while it arrives, kept in memory, never on disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from saysee.search.service.batching import Place
from saysee.search.service.refusals import Refusal
from saysee.search.service.settings import ServiceSettings

_FIELD_BYTES = 64 * 2**10
"""Of a field that is no file; vectors and metadata are far smaller."""
_BESIDE_BYTES = 4 * _FIELD_BYTES
"""What a body may hold beside its file."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a form, as OpenAPI tells it.

    Attributes:
        about: what it is.
        file: whether it is a file.
        required: whether it must be there.
        schema: of a field that is no file.
    """

    about: str
    file: bool = False
    required: bool = False
    schema: Mapping[str, Any] | None = None

    def to_schema(self) -> dict[str, Any]:
        """In OpenAPI's words."""
        kind = {"type": "string", "format": "binary"} if self.file else dict(self.schema or {"type": "string"})
        return {**kind, "description": self.about}


Form = Mapping[str, Field]


class _Parser(MultiPartParser):
    spool_max_size = 2**62  # what is larger than this would be put on disk


def body_of(form: Form) -> dict[str, Any]:
    """The body of a form for ``openapi_extra``."""
    schema = {
        "type": "object",
        "properties": {name: field.to_schema() for name, field in form.items()},
        "required": [name for name, field in form.items() if field.required],
        "additionalProperties": False,
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


async def read_form(request: Request, form: Form, place: Place, settings: ServiceSettings) -> dict[str, Any]:
    """The fields that a request brings, by name: files as bytes, others as strings.

    Raises:
        Refusal: it is no such form, too large, or too slow.
        starlette.requests.ClientDisconnect: the client left.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise Refusal(415, f"Send a multipart form (multipart/form-data) with {_listed(form)}.")
    body = _within(request, place, settings)
    try:
        parser = _Parser(
            request.headers, body, max_files=len(form) + 1, max_fields=len(form) + 1, max_part_size=_FIELD_BYTES
        )
        parsed = await asyncio.wait_for(parser.parse(), settings.body_seconds)
    except asyncio.TimeoutError:
        raise Refusal(408, f"The request took over {settings.body_seconds:g} s to arrive; send less.") from None
    except MultiPartException as error:
        raise Refusal(400, f"The multipart form cannot be read: {error.message.rstrip('.')}.") from None
    finally:
        await body.aclose()
    fields: dict[str, Any] = {}
    try:
        for name, value in parsed.multi_items():
            _check(form, fields, name, value)
            fields[name] = await value.read() if isinstance(value, UploadFile) else value
    finally:
        await parsed.close()
    missing = [name for name, field in form.items() if field.required and name not in fields]
    if missing:
        raise Refusal(422, f"The field '{missing[0]}' is missing; send {form[missing[0]].about}.")
    return fields


async def _within(request: Request, place: Place, settings: ServiceSettings) -> AsyncGenerator[bytes, None]:
    """The body as it arrives, as long as it keeps within the limit."""
    most = settings.limits.bytes + _BESIDE_BYTES
    told = request.headers.get("content-length", "")
    arrived = int(told) if told.isascii() and told.isdigit() and len(told) < 20 else 0
    if arrived <= most:
        arrived = 0
        async for chunk in request.stream():
            arrived += len(chunk)
            if arrived > most:
                break
            place.hold(len(chunk))
            yield chunk
        else:
            return
    raise Refusal(413, f"The file is over the limit of {settings.limits.bytes:,} bytes; send a smaller one.")


def _check(form: Form, fields: Collection[str], name: str, value: object) -> None:
    field = form.get(name)
    if field is None:
        raise Refusal(422, f"There is no field {name[:40]!r}; the form takes {_listed(form)}.")
    if name in fields:
        raise Refusal(422, f"The field '{name}' is there twice; send it once.")
    if field.file != isinstance(value, UploadFile):
        how = "as a file, with a filename" if field.file else "as a plain field, without a filename"
        raise Refusal(422, f"Send the field '{name}' {how}.")


def _listed(form: Form) -> str:
    return ", ".join(form)
