"""Results as one self-contained HTML file: the queries and their hits, to see and to play."""

from __future__ import annotations

import base64
import io
import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import soundfile
from jinja2 import Environment, PackageLoader, select_autoescape
from numpy.typing import NDArray
from PIL import Image

from saysee.errors import MediaError, SaySeeError
from saysee.files import write_text
from saysee.media.audio import SAMPLE_RATE, load_audio
from saysee.media.images import load_image
from saysee.search.index.index import Hit
from saysee.search.terminal.queries import QueryResult, SearchResults

MAX_QUERIES = 200
"""Queries on one sheet: with ten images each it takes some 20 MB, which browsers still open at once."""
_SIDE = 240
_QUALITY = 80


def write_sheet(results: SearchResults, path: str | os.PathLike[str] | None = None) -> Path:
    """Writes a sheet atomically.

    Args:
        results: of :func:`saysee.search.terminal.queries.run_queries`.
        path: of the file; None for a new temporary folder.

    Returns:
        the absolute path of the file.

    Raises:
        SaySeeError: it cannot be written there.
    """
    place = Path(tempfile.mkdtemp(prefix="saysee-")) / "search.html" if path is None else Path(path).absolute()
    environment = Environment(loader=PackageLoader("saysee", "search/terminal"), autoescape=select_autoescape())
    contents = _Contents()
    text = environment.get_template("sheet.html").render(
        queries=[contents.of_query(result) for result in results.results[:MAX_QUERIES]],
        omitted=max(0, len(results.results) - MAX_QUERIES),
        skipped=results.skipped,
    )
    try:
        write_text(place, text)
    except OSError as error:
        raise SaySeeError(
            f"{place}: the sheet cannot be written ({error.strerror}); name another file with --sheet"
        ) from None
    return place


class _Contents:
    """What the sheet shows of files, each read once."""

    def __init__(self) -> None:
        self._urls: dict[tuple[str, str], str | None] = {}

    def of_query(self, result: QueryResult) -> dict[str, Any]:
        if result.recording is not None:
            url: str | None = _audio_url(result.recording)
        else:
            url = None if result.kind == "text" else self._of_file(result.kind, result.name)
        hits = [self._of_hit(hit) for hit in result.hits]
        return {"name": result.name, "kind": result.kind, "url": url, "hits": hits}

    def _of_hit(self, hit: Hit) -> dict[str, Any]:
        is_web = "://" in hit.path
        return {
            "path": hit.path,
            "name": hit.path.rsplit("/", 1)[-1] if is_web else os.path.basename(hit.path),
            "link": _link(hit.path) if is_web else Path(hit.path).as_uri(),
            "kind": hit.kind,
            "score": hit.score,
            "url": None if is_web else self._of_file(hit.kind, hit.path),
        }

    def _of_file(self, kind: str, path: str) -> str | None:
        if (kind, path) not in self._urls:
            try:
                self._urls[kind, path] = _image_url(path) if kind == "image" else _audio_url(load_audio(path))
            except MediaError:
                self._urls[kind, path] = None
        return self._urls[kind, path]


def _link(address: str) -> str | None:
    """A web address that may be followed by a click; None for other schemes, which may run scripts."""
    return address if urlsplit(address).scheme in ("http", "https") else None


def _image_url(path: str) -> str:
    image = load_image(path, at_least=_SIDE)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return _data_url(buffer.getvalue(), "image/jpeg")


def _audio_url(samples: NDArray[np.float32]) -> str:
    """As MP3, which every browser plays, in a fifth of the size of the samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="MP3")
    return _data_url(buffer.getvalue(), "audio/mpeg")


def _data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
