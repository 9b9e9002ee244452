"""The files of an index as a service gives them out: which they are, of what type, and small pictures of them."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from pathlib import Path

from PIL import Image

from saysee.errors import MediaError
from saysee.media.formats import file_kind
from saysee.media.images import load_image
from saysee.media.thumbnails import thumbnail
from saysee.search.index.index import Index
from saysee.search.index.store import Item, Kind
from saysee.search.index.uploads import place_of_upload
from saysee.search.service.refusals import Refusal

THUMBNAIL_SIDE = 320
THUMBNAIL_TYPE = "image/webp"
_THUMBNAIL_QUALITY = 80
_CACHE_BYTES = 48 * 2**20
"""Some 3,000 thumbnails."""

_DAMAGED = "The file of this picture is damaged or gone; bring the index up to date."
_NOUNS: dict[Kind, str] = {"image": "picture", "clip": "clip"}


def row_of(index: Index, kind: Kind, row: int) -> Item:
    """The row of a picture or clip.

    Raises:
        Refusal: there is none of this id and kind.
    """
    item = index.rows([row]).get(row)
    if item is None:
        raise Refusal(404, f"The index has no {_NOUNS[kind]} {row}.")
    if item.kind != kind:
        raise Refusal(404, f"Item {row} is a {_NOUNS[item.kind]}, not a {_NOUNS[kind]}.")
    return item


def file_of(index: Index, item: Item, uploads: Path | None) -> tuple[str, str]:
    """Path and media type of a row's file.

    Raises:
        Refusal: it is gone, cannot be read, or is no longer what was indexed.
    """
    noun = _NOUNS[item.kind]
    if "://" in item.path:
        raise Refusal(404, f"The {noun} {item.id} is an address on the web, not a file of this service.")
    path = place_of_upload(item, uploads) or index.path_of(item)
    if not os.path.isfile(path):
        raise Refusal(410, f"The file of {noun} {item.id} is gone; bring the index up to date.")
    try:
        with open(path, "rb") as file:
            found = file_kind(file)
    except OSError:
        raise Refusal(410, f"The file of {noun} {item.id} cannot be read; see to its permissions.") from None
    if found is None or found.kind != item.kind:
        raise Refusal(410, f"The file of {noun} {item.id} is no {noun} any more; bring the index up to date.")
    return os.fspath(path), found.media_type


def picture_at(path: str) -> Image.Image:
    """A picture of the index, which the limits of clients' files do not concern.

    Raises:
        Refusal: its file cannot be decoded.
    """
    try:
        return load_image(path)
    except MediaError:
        raise Refusal(410, _DAMAGED) from None


class Thumbnails:
    """Small pictures, the last ones kept in memory; for several threads."""

    def __init__(self, most_bytes: int = _CACHE_BYTES) -> None:
        self.most_bytes = most_bytes
        self._kept: OrderedDict[tuple[str, int, int], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def of(self, path: str) -> bytes:
        """A WebP of a picture file, no side longer than ``THUMBNAIL_SIDE``.

        Raises:
            Refusal: the file cannot be decoded.
        """
        key = _state(path)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        picture = thumbnail(path, THUMBNAIL_SIDE)
        if picture is None:
            raise Refusal(410, _DAMAGED)
        made = _encoded(picture)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._bytes += len(made)
                while self._bytes > self.most_bytes:
                    self._bytes -= len(self._kept.popitem(last=False)[1])
        return made


def _state(path: str) -> tuple[str, int, int]:
    """What is another when the file is another."""
    try:
        status = os.stat(path)
    except OSError:
        return path, 0, 0
    return path, status.st_mtime_ns, status.st_size


def _encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=_THUMBNAIL_QUALITY, method=2)
    return buffer.getvalue()
