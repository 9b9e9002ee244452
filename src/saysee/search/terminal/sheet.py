"""Results as one self-contained HTML file: the queries and their hits, to see and to play."""

import base64
import functools
import io
import os
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from saysee.errors import MediaError, SaySeeError
from saysee.files import write_text
from saysee.media.audio import SAMPLE_RATE, load_audio
from saysee.media.images import load_thumbnail
from saysee.search.terminal.queries import SearchResults

MAX_QUERIES = 200  # queries on one sheet: with ten images each it takes some 20 MB, which browsers still open at once
_SIDE = 320  # pixels of an image
_PAGE = Path(__file__).parents[1] / "page"


def write_sheet(results: SearchResults, path: str | os.PathLike[str] | None = None) -> Path:
    """Writes a sheet atomically, without a path in a new temporary folder, and returns its absolute path."""
    place = Path(tempfile.mkdtemp(prefix="saysee-")) / "search.html" if path is None else Path(path).absolute()
    environment = Environment(loader=PackageLoader("saysee", "search"), autoescape=select_autoescape())
    # The style sheets are those of the page of ``saysee serve``, so that both look alike.
    environment.filters["css"] = lambda name: Markup((_PAGE / name).read_text(encoding="utf-8"))
    environment.globals.update(media_url=functools.cache(_media_url), audio_url=audio_url, name=_name, link=_link)
    text = environment.get_template("terminal/sheet.html").render(
        results=results.results[:MAX_QUERIES],
        omitted=max(0, len(results.results) - MAX_QUERIES),
        skipped=results.skipped,
    )
    try:
        write_text(place, text.encode(errors="replace").decode())  # names that are not valid Unicode
    except OSError as error:
        raise SaySeeError(
            f"{place}: the sheet cannot be written ({error.strerror}); name another file with --sheet"
        ) from None
    return place


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1] if _is_web(path) else os.path.basename(path)


def _link(path: str) -> str | None:
    """The address of a file or web page; None for schemes that may run scripts."""
    if _is_web(path):
        return path if path.startswith(("http://", "https://")) else None
    return Path(path).as_uri()


def _is_web(path: str) -> bool:
    return "://" in path


def _media_url(kind: str, path: str) -> str | None:
    """A file's content as a data URL; None if it cannot be read."""
    try:
        if _is_web(path):
            return None
        return image_url(load_thumbnail(path, _SIDE)) if kind == "image" else audio_url(load_audio(path))
    except MediaError:
        return None


def image_url(image: Image.Image) -> str:
    """An image as a data URL of a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return data_url(buffer.getvalue(), "image/jpeg")


def audio_url(samples: NDArray[np.float32]) -> str:
    """As MP3, which every browser plays, in a fifth of the size of the samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="MP3")
    return data_url(buffer.getvalue(), "audio/mpeg")


def data_url(content: bytes, media_type: str) -> str:
    """A file's content as an address."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
