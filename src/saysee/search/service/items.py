"""Adding pictures and clips to an index that is being served, and taking them out.

Files are written under the hash of their content, whatever the client calls them. The row is written last: a kill in
between leaves a file without a row, which the same upload takes up again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saysee.errors import SaySeeError
from saysee.files import flush
from saysee.search.index.index import Index
from saysee.search.index.sources import root_of
from saysee.search.index.store import Item, Kind
from saysee.search.index.uploads import path_from, place_of_upload
from saysee.search.service.refusals import Refusal, told

METADATA_BYTES = 16 * 2**10


class Items:
    """The rows of an index, to be changed by clients; one change at a time.

    Args:
        index: which.
        uploads: folder of added files, made at the first one; None where nothing can be added.
    """

    def __init__(self, index: Index, uploads: Path | None) -> None:
        self.index, self.uploads = index, uploads
        self._one_at_a_time = threading.Lock()

    def find(self, kind: Kind, content: str, metadata: dict[str, Any] | None) -> Item | None:
        """The row that has this content already, with its metadata replaced where some is given.

        Raises:
            Refusal: another process writes the index, or it cannot be written.
        """
        with self._one_at_a_time, _told(self.index.place), self.index.store.writing() as writer:
            item = writer.item_of(kind, content)
            if item is not None and metadata is not None:
                item.metadata = metadata
                writer.refresh([item])
            return item

    def add(
        self, kind: Kind, file: bytes, name: str, vector: NDArray[np.float32], metadata: dict[str, Any] | None
    ) -> Item:
        """Writes a file and its row.

        Args:
            kind: picture or clip.
            file: its content.
            name: hash of the content with the suffix of its format.
            vector: of the model [D].
            metadata: further columns.

        Raises:
            Refusal: another process writes the index, or it cannot be written.
        """
        with self._one_at_a_time, _told(self.index.place), self.index.store.writing() as writer:
            assert self.uploads is not None  # a service that may write has one
            path = self.uploads / name
            _write(path, file)
            root = root_of(self.index.about, self.index.store.folder, None)
            # No time of change: the next update looks at its content once, as at any file that is fresh.
            item = Item(
                kind,
                path_from(root, path),
                size=len(file),
                hash=Path(name).stem,
                metadata=metadata or {},
                encoded_by=self.index.encoder.fingerprints[kind],
            )
            with writer.transaction():
                writer.put([item], vector[None])
            return item

    def remove(self, row: int) -> None:
        """Takes a row out, and removes its file if it was added here: files of the user's own are left alone.

        Raises:
            Refusal: there is no such row; another process writes the index, or it cannot be written.
        """
        with self._one_at_a_time, _told(self.index.place), self.index.store.writing() as writer:
            item = self.index.rows([row]).get(row)
            if item is None:
                raise Refusal(404, f"The index has no item {row}.")
            writer.remove([item])
            file = place_of_upload(item, self.uploads)
            if file is not None:
                file.unlink(missing_ok=True)


def read_metadata(text: str) -> dict[str, Any]:
    """Metadata as a client sends it: a JSON object.

    Raises:
        Refusal: it is none, or too large.
    """
    if len(text.encode("utf-8", "replace")) > METADATA_BYTES:
        raise Refusal(413, f"The metadata is over the limit of {METADATA_BYTES:,} bytes; send less.")
    try:
        values = json.loads(text, parse_constant=_no_constant)
        json.dumps(values, ensure_ascii=False, allow_nan=False).encode()  # half a surrogate pair cannot be kept
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise Refusal(422, 'The metadata is not a JSON object; send one such as {"album": "holiday"}.')
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".writing-{path.name}")
    with scratch.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    flush(path.parent)


@contextmanager
def _told(place: str) -> Iterator[None]:
    """Within, what keeps the index or the folder from being written is told to the client."""
    try:
        yield
    except SaySeeError as error:
        raise Refusal(409, f"The index cannot be written now: {told(error, place)}", 5) from None
    except OSError as error:
        raise Refusal(
            409, f"The file cannot be kept ({error.strerror or error}); tell whoever runs this.", 60
        ) from None
