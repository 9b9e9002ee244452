"""The items of a served index: their files and thumbnails, adding and removing them.

Added files are named by the hash of their content, whatever the client calls them. The row is written last: a kill in
between leaves a file without a row, which the same upload reuses.
"""

import io
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from saysee.errors import MediaError
from saysee.files import write_bytes
from saysee.media.formats import Kind, file_kind
from saysee.media.metadata import EXIF_KEYS
from saysee.media.web import ImageServer
from saysee.search.index.filters import Filter
from saysee.search.index.index import Index
from saysee.search.index.ranking import newest
from saysee.search.index.sources import path_from, place_of_upload, root_of
from saysee.search.index.store import Item, Tables
from saysee.search.service.errors import RequestError, request_errors
from saysee.search.service.schemas import NAME_KEY
from saysee.search.service.thumbnails import Size, Thumbnails

T = TypeVar("T")

_NAME_CHARACTERS = 200  # of the name that a client gave to a file


class Items:
    """The rows of an index and their files; one change at a time.

    Added files go to the folder ``uploads``, which the first one creates; None if none can be added. All methods raise
    RequestError for a row that does not exist, a file that is gone or unreadable, an index that cannot be written, and
    SaySeeError for an index that cannot be read.
    """

    def __init__(self, index: Index, uploads: Path | None, images: ImageServer | None = None) -> None:
        self.index, self.uploads, self.images = index, uploads, images
        self.thumbnails = Thumbnails(index.store.folder)
        self._lock = threading.Lock()

    def file(self, kind: Kind, row: int) -> tuple[str | bytes, str]:
        """Path, or content from another server, and media type of an image or clip."""
        item = self._item(row, kind)
        if "://" not in item.path:
            return self._path(item)
        with self._fetching(item) as fetch:
            content = fetch(item.path)
        found = file_kind(io.BytesIO(content))
        return content, found.media_type if found else ""

    def _item(self, row: int, kind: Kind | None = None) -> Item:
        item = self.index.rows([row]).get(row)
        if item is None:
            raise RequestError(404, "no-such-item", f"The index has no {kind or 'item'} {row}.")
        if kind not in (None, item.kind):
            raise RequestError(404, "no-such-item", f"Item {row} of the index is of kind {item.kind}, not {kind}.")
        return item

    @contextmanager
    def _fetching(self, item: Item) -> Iterator[Callable[[str], bytes]]:
        """What fetches an image of the other server; its errors become a RequestError."""
        if item.kind != "image" or self.images is None or not self.images.has(item.path):
            message = f"The {item.kind} {item.id} is a web address, not a file of this service."
            raise RequestError(404, "no-such-file", message)
        try:
            yield self.images.fetch
        except MediaError as error:
            if error.code == "missing":
                raise _file_gone(item.kind, item.id, "missing") from None
            raise RequestError(503, "image-unavailable", str(error), 10) from None

    def _path(self, item: Item) -> tuple[str, str]:
        kind, row = item.kind, item.id
        path = place_of_upload(item, self.uploads) or self.index.path_of(item)
        if not os.path.isfile(path):  # opening a pipe would wait
            raise _file_gone(kind, row, "missing")
        try:
            with open(path, "rb") as file:
                found = file_kind(file)
        except OSError as error:
            raise _file_gone(kind, row, error.strerror or "unreadable") from None
        if found is None or found.kind != kind:
            raise _file_gone(kind, row, "changed")
        return os.fspath(path), found.media_type

    def loaded(self, kind: Kind, row: int, load: Callable[[str | bytes], T]) -> T:
        """What a function makes of the file of a row; the limits of clients' files do not apply to it."""
        try:
            return load(self.file(kind, row)[0])
        except MediaError as error:
            raise _file_gone(kind, row, error.code) from None

    def small(self, row: int, size: Size) -> bytes:
        """The image of a row in a size of :data:`saysee.search.service.thumbnails.SIDES`."""
        item = self._item(row, "image")
        if "://" in item.path:
            with self._fetching(item) as fetch:
                return self.thumbnails.get(row, item.path, size, fetch)
        try:
            return self.thumbnails.get(row, self._path(item)[0], size)
        except (OSError, MediaError):
            raise _file_gone("image", row, "damaged") from None

    def newest(self, kind: Kind, k: int, offset: int, filters: Sequence[Filter]) -> list[Item]:
        """The rows of a kind for which all filters hold, those of the newest files first."""
        with self.index.store.reading() as tables:
            return newest(tables, kind, k, offset, filters)

    @contextmanager
    def _writing(self) -> Iterator[Tables]:
        place = self.index.place
        try:
            with self._lock, request_errors(409, "index-busy", place, 5), self.index.store.writing() as writer:
                yield writer
        except OSError as error:
            message = f"The file cannot be written ({error.strerror or error}); see the server's disk."
            raise RequestError(409, "storage-failed", message, 60) from None

    def find(self, kind: Kind, content: str, metadata: dict[str, Any] | None) -> Item | None:
        """The row with the fingerprint ``content``, if any has a file; metadata, if given, replaces all but EXIF."""
        with self._writing() as writer:
            item = writer.row_with(kind, content)
            if item is not None and "://" not in item.path:
                try:
                    self._path(item)
                except RequestError:  # its file is gone
                    return None
            if item is not None and metadata is not None:
                kept = {key: item.metadata[key] for key in (NAME_KEY, *EXIF_KEYS) if key in item.metadata}
                item.metadata = kept | metadata
                writer.refresh([item])
            return item

    def add(
        self, kind: Kind, file: bytes, name: str, vector: NDArray[np.float32], metadata: dict[str, Any] | None
    ) -> Item:
        """Writes a file and its row; ``name`` is the fingerprint of the content with the suffix of its format."""
        with self._writing() as writer:
            with request_errors(409, "other-model", self.index.place):  # another process may have made the index anew
                writer.existing_about().check(self.index.encoder, self.index.place, kind)
            assert self.uploads is not None  # a writable service has one
            self.uploads.mkdir(parents=True, exist_ok=True)
            path = self.uploads / name
            write_bytes(path, file)
            root = root_of(self.index.about, self.index.store.folder, None)
            # Without a modification time, the next update reads the content once, as that of any new file.
            item = Item(
                kind,
                path_from(root, path),
                size=len(file),
                hash=Path(name).stem,
                metadata=metadata or {},
                encoded_by=self.index.encoder.fingerprint(kind),
            )
            with writer.transaction():
                writer.put([item], vector[None])
            return item

    def remove(self, row: int) -> None:
        """Removes a row, and its file if it was added here; the user's own files are kept."""
        with self._writing() as writer:
            item = self._item(row)
            writer.remove([item])
            self.thumbnails.remove(row)
            if (file := place_of_upload(item, self.uploads)) is not None:
                file.unlink(missing_ok=True)


def client_name(name: str | None) -> dict[str, str]:
    """The name that a client gave to a file as metadata; empty without one. No part of it becomes a path."""
    last = re.split(r"[/\\]", name or "")[-1]
    shown = "".join(character for character in last if character.isprintable())[:_NAME_CHARACTERS].strip()
    return {NAME_KEY: shown} if shown else {}


def _file_gone(kind: Kind, row: int, why: str) -> RequestError:
    message = f"The file of {kind} {row} cannot be used any more ({why}); update the index with 'saysee index'."
    return RequestError(410, "file-gone", message)
