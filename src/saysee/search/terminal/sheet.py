"""Results as one HTML file that needs nothing beside it: queries to look at or to play, and what was found."""

from __future__ import annotations

import base64
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import soundfile
from jinja2 import Environment, PackageLoader, select_autoescape

from saysee.errors import MediaError, SaySeeError
from saysee.files import write_text
from saysee.media.audio import SAMPLE_RATE, load_audio
from saysee.media.thumbnails import thumbnail
from saysee.search.index.index import Hit
from saysee.search.terminal.queries import Answers, Found

MOST_QUERIES = 200
"""Queries on one sheet; with ten pictures each that is some 20 MB, which browsers still open at once."""
_SIDE = 240
_QUALITY = 80

Key = TypeVar("Key")


def write_sheet(answers: Answers, path: str | os.PathLike[str] | None = None) -> Path:
    """Writes a sheet, whole or not at all.

    Args:
        answers: of :func:`saysee.search.terminal.queries.answer`.
        path: of the file; none for a new folder of the system's temporary one.

    Returns:
        where it lies, absolute.

    Raises:
        SaySeeError: it cannot be written there.
    """
    place = Path(tempfile.mkdtemp(prefix="saysee-")) / "search.html" if path is None else Path(path).absolute()
    environment = Environment(loader=PackageLoader("saysee", "search"), autoescape=select_autoescape())
    text = environment.get_template("sheet.html").render(
        found=_Contents().of(answers.found[:MOST_QUERIES]),
        left_out=max(0, len(answers.found) - MOST_QUERIES),
        refused=answers.refused,
    )
    try:
        write_text(place, text)
    except OSError as error:
        raise SaySeeError(
            f"{place}: the sheet cannot be written ({error.strerror}); name another file by --sheet"
        ) from None
    return place


class _Contents:
    """What the sheet shows of files, each read once."""

    def __init__(self) -> None:
        self._pictures: dict[str, str | None] = {}
        self._sounds: dict[str, str | None] = {}

    def of(self, found: list[Found]) -> list[dict[str, Any]]:
        return [
            {
                "name": one.name,
                "kind": one.kind,
                "content": self._query(one),
                "hits": [self._hit(hit) for hit in one.hits],
            }
            for one in found
        ]

    def _query(self, one: Found) -> str | None:
        if one.recording is not None:
            return _sound_url(one.recording)
        return None if one.kind == "text" else self._file(one.kind, one.name)

    def _hit(self, hit: Hit) -> dict[str, Any]:
        on_web = "://" in hit.path
        return {
            "path": hit.path,
            "name": hit.path.rsplit("/", 1)[-1] if on_web else os.path.basename(hit.path),
            "link": _link(hit.path, on_web),
            "kind": hit.kind,
            "score": hit.score,
            "content": None if on_web else self._file(hit.kind, hit.path),
        }

    def _file(self, kind: str, path: str) -> str | None:
        return _once(self._pictures, path, _picture) if kind == "image" else _once(self._sounds, path, _sound)


def _once(known: dict[Key, str | None], key: Key, make: Callable[[Key], str | None]) -> str | None:
    if key not in known:
        known[key] = make(key)
    return known[key]


def _link(path: str, on_web: bool) -> str | None:
    if not on_web:
        return Path(path).as_uri()
    return path if path.startswith(("http://", "https://")) else None  # no other scheme is to be followed by a click


def _picture(path: str) -> str | None:
    picture = thumbnail(path, _SIDE)
    if picture is None:
        return None
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return _data_url(buffer.getvalue(), "image/jpeg")


def _sound(path: str) -> str | None:
    try:
        return _sound_url(load_audio(path))
    except MediaError:
        return None


def _sound_url(samples: Any) -> str:
    """As MP3, which every browser plays, a fifth of what the samples would take."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="MP3")
    return _data_url(buffer.getvalue(), "audio/mpeg")


def _data_url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
