"""Small copies of images, computed once and kept on the disk, beside the index.

They lie in one SQLite file, which several processes may use at once; those used longest ago go first when it is full.
Where it cannot be written, they are kept in memory.
"""

import io
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from saysee.media.images import load_thumbnail

Size = Literal["thumbnail", "preview"]
SIDES: dict[Size, int] = {"thumbnail": 320, "preview": 1_600}
"""Longest side of each size, in pixels: of a tile, and of a screen."""
MEDIA_TYPE = "image/webp"
FILE = "thumbnails.sqlite"

_DISK_BYTES = 2 * 2**30  # some 100,000 thumbnails of photos, or 6,000 previews
_MEMORY_BYTES = 128 * 2**20
_USED_SECONDS = 3_600.0  # the time of the last use is as exact as this, to save writing
_FETCHED_SECONDS = 86_400.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS copies (
    id INTEGER, size TEXT, stamp TEXT NOT NULL, used REAL NOT NULL, content BLOB NOT NULL, PRIMARY KEY (id, size)
);
CREATE INDEX IF NOT EXISTS copies_by_use ON copies (used);
"""
# A tenth at a time, so that not every further image has to make room.
_REMOVE_OLDEST = """
DELETE FROM copies WHERE (id, size) IN
    (SELECT id, size FROM copies ORDER BY used LIMIT (SELECT 1 + count(*) / 10 FROM copies))
"""

logger = logging.getLogger(__name__)


class Thumbnails:
    """The small copies of the images of an index, in its folder; without one in memory."""

    def __init__(self, folder: Path | None) -> None:
        self._lock = threading.Lock()
        try:
            self._connection = _open(folder)
        except (sqlite3.Error, OSError) as error:
            logger.warning("%s: cannot be used for thumbnails (%s); they are kept in memory", folder, error)
            folder, self._connection = None, _open(None)
        self._limit = _MEMORY_BYTES if folder is None else _DISK_BYTES

    def get(self, row: int, path: str, size: Size, fetch: Callable[[str], bytes] | None = None) -> bytes:
        """The image of a row, as WebP; computed if there is none of the file as it is now.

        ``path`` is an address if there is ``fetch``, which gives its content; then the copy is kept for a day. Raises
        MediaError or OSError if the file cannot be used.
        """
        if fetch is None:
            status = os.stat(path)
            stamp = f"{status.st_mtime_ns} {status.st_size} {path}"
        else:
            stamp = f"{time.time() // _FETCHED_SECONDS} {path}"
        found = self._find(row, size, stamp)
        if found is None:
            buffer = io.BytesIO()
            load_thumbnail(path if fetch is None else fetch(path), SIDES[size]).save(
                buffer, "WEBP", quality=80, method=2 if size == "thumbnail" else 0
            )
            found = buffer.getvalue()
            self._keep(row, size, stamp, found)
        return found

    def remove(self, row: int) -> None:
        """Removes the copies of a row."""
        try:
            with self._lock, self._connection as connection:
                connection.execute("DELETE FROM copies WHERE id = ?", (row,))
        except sqlite3.Error as error:
            logger.warning("the thumbnail of a removed image cannot be removed (%s)", error)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()

    def _find(self, row: int, size: Size, stamp: str) -> bytes | None:
        try:
            with self._lock, self._connection as connection:
                sql = "SELECT content, used FROM copies WHERE id = ? AND size = ? AND stamp = ?"
                found = connection.execute(sql, (row, size, stamp)).fetchone()
                if found is not None and time.time() - found[1] > _USED_SECONDS:
                    connection.execute("UPDATE copies SET used = ? WHERE id = ? AND size = ?", (time.time(), row, size))
                return None if found is None else bytes(found[0])
        except sqlite3.Error:  # busy, full or damaged: it is computed again
            return None

    def _keep(self, row: int, size: Size, stamp: str, content: bytes) -> None:
        try:
            with self._lock, self._connection as connection:
                values = (row, size, stamp, time.time(), content)
                connection.execute("INSERT OR REPLACE INTO copies VALUES (?, ?, ?, ?, ?)", values)
                while _bytes_used(connection) > self._limit:
                    connection.execute(_REMOVE_OLDEST)
        except sqlite3.Error as error:
            logger.warning("a thumbnail cannot be kept (%s)", error)


def _bytes_used(connection: sqlite3.Connection) -> int:
    """Bytes of the file's pages that are in use: removed copies leave free ones, which later copies take."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def _open(folder: Path | None) -> sqlite3.Connection:
    if folder is None:
        return _connect(":memory:")
    try:
        return _connect(os.fspath(folder / FILE))
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:  # damaged, and nothing that cannot be computed again
        (folder / FILE).unlink()
        return _connect(os.fspath(folder / FILE))


def _connect(place: str) -> sqlite3.Connection:
    connection = sqlite3.connect(place, timeout=5.0, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_SCHEMA)
        connection.execute("PRAGMA user_version = 1")  # which fails where the file can only be read
    except sqlite3.Error:
        connection.close()
        raise
    return connection
