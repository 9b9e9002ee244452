"""The SQLite file of an index: its layout, connections to it, and what is read over one."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from saysee.errors import SaySeeError
from saysee.search.index.store import About, Item, Kind, Vectors

PATIENCE_SECONDS = 30.0
"""How long a reader or writer waits for another's short transaction."""
_NAMES_AT_ONCE = 500
"""Parameters in one statement; SQLite before 3.32 takes 999 at most."""

UNWRITABLE = "{}: the index cannot be written ({}); change its permissions, or name another place by --to"
_FULL = "{}: the disk is full; make room and give the command again, it goes on"

SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('image', 'clip')),
    path TEXT NOT NULL,
    folder TEXT NOT NULL,
    name TEXT NOT NULL,
    size INTEGER,
    mtime_ns INTEGER,
    hash TEXT,
    encoded_by TEXT NOT NULL,
    metadata TEXT NOT NULL,
    UNIQUE (kind, path)
);
CREATE INDEX items_by_hash ON items (kind, hash);
CREATE TABLE vectors (
    item INTEGER PRIMARY KEY REFERENCES items (id) ON DELETE CASCADE,
    vector BLOB NOT NULL
);
"""


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Tells what SQLite refuses, a full disk or a folder that is read-only in one line.

    Raises:
        SaySeeError: so it is.
    """
    try:
        yield
    except sqlite3.Error as error:
        _refuse(folder, error)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise SaySeeError(_FULL.format(folder)) from None
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise SaySeeError(UNWRITABLE.format(folder, error.strerror)) from None
        raise


def _refuse(folder: Path, error: sqlite3.Error) -> NoReturn:
    text = str(error)
    if "is full" in text:
        raise SaySeeError(_FULL.format(folder)) from None
    if "readonly" in text or "unable to open" in text:
        raise SaySeeError(UNWRITABLE.format(folder, text)) from None
    if "disk I/O" in text:
        raise SaySeeError(f"{folder}: the disk fails ({text}); see to it and give the command again") from None
    if "locked" in text:
        raise SaySeeError(f"{folder}: the index is busy ({text}); try again") from None
    raise SaySeeError(f"{folder}: the index is damaged ({text}); make it anew, or bring back a copy") from None


@contextmanager
def connected(file: Path, read_only: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection without transactions of its own."""
    place = file.absolute().as_uri()
    if read_only:
        # Beside a WAL file SQLite must be able to write even to read; without one, a folder that is read-only holds a
        # file that nobody is changing.
        sealed = not os.access(file.parent, os.W_OK) and not file.with_name(f"{file.name}-wal").exists()
        place += "?immutable=1" if sealed else "?mode=ro"
    connection = sqlite3.connect(place, timeout=PATIENCE_SECONDS, isolation_level=None, uri=True)
    try:
        yield connection
    finally:
        connection.close()


def read_about(connection: sqlite3.Connection, folder: Path) -> About | None:
    """What holds for the index; None for one that was never begun.

    Raises:
        SaySeeError: an older or newer release wrote it.
    """
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'about'").fetchone():
        return None
    return About.from_rows(connection.execute("SELECT name, value FROM about"), str(folder))


def stamp(connection: sqlite3.Connection, kind: Kind) -> str:
    """What changes whenever a vector of the kind is added, changed or removed."""
    return str(noted(connection, f"stamp_{kind}"))


def noted(connection: sqlite3.Connection, name: str) -> Any:
    """A value kept by name; None where there is none."""
    row = connection.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
    return None if row is None else json.loads(row[0])


def count(connection: sqlite3.Connection, kind: Kind) -> int:
    """Rows of a kind."""
    return int(connection.execute("SELECT count(*) FROM items WHERE kind = ?", (kind,)).fetchone()[0])


def stale(connection: sqlite3.Connection, about: About, kind: Kind) -> int:
    """Rows of a kind that another model encoded than the index's."""
    sql = "SELECT count(*) FROM items WHERE kind = ? AND encoded_by != ?"
    return int(connection.execute(sql, (kind, about.fingerprints[kind])).fetchone()[0])


def ids_of(connection: sqlite3.Connection, kind: Kind) -> NDArray[np.int64]:
    """The ids of a kind [N], ascending."""
    rows = connection.execute("SELECT id FROM items WHERE kind = ? ORDER BY id", (kind,))
    return np.fromiter((row[0] for row in rows), np.int64)


def blocks(
    connection: sqlite3.Connection, about: About, kind: Kind, size: int = 65_536
) -> Iterator[tuple[NDArray[np.int64], Vectors]]:
    """Ids [n] and vectors [n, D] of a kind in runs of up to ``size``, by ascending id."""
    cursor = connection.execute(
        "SELECT id, vector FROM items JOIN vectors ON item = id WHERE kind = ? ORDER BY id", (kind,)
    )
    while rows := cursor.fetchmany(size):
        yield np.array([row[0] for row in rows], np.int64), from_blobs([row[1] for row in rows], about)


def vectors_of(connection: sqlite3.Connection, about: About, ids: Sequence[int]) -> Vectors:
    """The vectors [N, D] of ids, in their order; all must be there."""
    found: dict[int, bytes] = {}
    for names in _runs(ids):
        marks = ", ".join("?" * len(names))
        found |= dict(connection.execute(f"SELECT item, vector FROM vectors WHERE item IN ({marks})", names))
    return from_blobs([found[item] for item in ids], about)


def items_of(connection: sqlite3.Connection, ids: Sequence[int]) -> dict[int, Item]:
    """The rows of ids."""
    found: dict[int, Item] = {}
    for names in _runs(ids):
        marks = ", ".join("?" * len(names))
        rows = connection.execute(f"SELECT id, kind, path, hash, metadata FROM items WHERE id IN ({marks})", names)
        found |= {row[0]: Item(row[1], row[2], None, None, row[3], json.loads(row[4]), row[0]) for row in rows}
    return found


def to_blobs(vectors: NDArray[Any], about: About) -> list[bytes]:
    """Vectors [N, D] as they are kept: little-endian, of the index's precision."""
    kept = np.ascontiguousarray(vectors, dtype=np.dtype(about.precision).newbyteorder("<"))
    return [row.tobytes() for row in kept]


def from_blobs(blobs: Sequence[bytes], about: About) -> Vectors:
    """Vectors [N, D] from what is kept.

    Raises:
        sqlite3.DatabaseError: one has another length.
    """
    kind = np.dtype(about.precision).newbyteorder("<")
    if any(len(blob) != kind.itemsize * about.dimension for blob in blobs):
        raise sqlite3.DatabaseError("a vector has another length than the index's")
    return np.frombuffer(b"".join(blobs), kind).reshape(len(blobs), about.dimension).astype(np.float32)


def _runs(ids: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(ids), _NAMES_AT_ONCE):
        yield [int(item) for item in ids[start : start + _NAMES_AT_ONCE]]
