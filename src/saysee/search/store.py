"""The truth of an index: one SQLite file with a row and a vector for each picture and clip.

Every batch is one transaction, flushed to the disk, in write-ahead mode: a kill loses the batch in flight, and readers
go on with what was there before it. One writer at a time holds a lock; a second is refused with the first one's name.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from saysee.errors import SaySeeError
from saysee.files import write_text
from saysee.version import __version__

Kind = Literal["image", "clip"]
KINDS: tuple[Kind, ...] = ("image", "clip")
Vectors = NDArray[np.float32]

FORMAT = 1
"""Version of the layout below. A greater one is refused: this release cannot know what it means."""
ITEMS_FILE = "items.sqlite"
_LOCK_FILE, _HOLDER_FILE = "writer.lock", "writer.json"
_BEGUN = (_LOCK_FILE, f"{_LOCK_FILE}-journal", _HOLDER_FILE, f".writing-{_HOLDER_FILE}")
"""What a writer leaves that is killed before the index is begun."""
_PATIENCE_SECONDS = 30.0
"""How long a reader or writer waits for another's short transaction."""
_NAMES_AT_ONCE = 500
"""Parameters in one statement; SQLite before 3.32 takes 999 at most."""

_UNWRITABLE = "{}: the index cannot be written ({}); change its permissions, or name another place by --to"
_FULL = "{}: the disk is full; make room and give the command again, it goes on"

_SCHEMA = """
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
    metadata TEXT NOT NULL,
    UNIQUE (kind, path)
);
CREATE INDEX items_by_hash ON items (kind, hash);
CREATE TABLE vectors (
    item INTEGER PRIMARY KEY REFERENCES items (id) ON DELETE CASCADE,
    vector BLOB NOT NULL
);
"""


@dataclass(frozen=True, slots=True)
class About:
    """What holds for the whole index.

    Attributes:
        model: folder or hub name of the model, as it was last given.
        model_beside: that folder as seen from the index, or None for a hub name.
        fingerprint: of the model's weights and preprocessing.
        dimension: D of the vectors, which are unit vectors.
        precision: "float32" or "float16", how they are kept.
        root: folder that relative paths start from.
        root_beside: the same as seen from the index; None on another drive.
        source: what is indexed below the root: "." for the folder itself, else a manifest's or table's name.
    """

    model: str
    model_beside: str | None
    fingerprint: str
    dimension: int
    precision: str
    root: str
    root_beside: str | None
    source: str
    format: int = FORMAT
    normalisation: str = "unit"
    written_by: str = __version__


@dataclass(slots=True)
class Item:
    """One picture or clip.

    Attributes:
        kind: "image" or "clip".
        path: with forward slashes from the index's root on, or absolute.
        size: in bytes; None where only the vector was given.
        mtime_ns: time of the last change in ns; None where it is too fresh to be trusted, or not known.
        hash: of the content.
        metadata: further columns.
        id: of the row; 0 for one that has none yet.
    """

    kind: Kind
    path: str
    size: int | None = None
    mtime_ns: int | None = None
    hash: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    id: int = 0


class Store:
    """The SQLite file of an index folder. Readers may open it at any time, writers by :meth:`writing`.

    Args:
        folder: the index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / ITEMS_FILE

    # ------------------------------------------------------------------ reading

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that cannot write, within one transaction: all it reads is of one moment.

        Raises:
            SaySeeError: there is no index, or it is damaged.
        """
        if not self.file.is_file():
            raise SaySeeError(f"{self.folder}: no index there; make one with 'saysee index MODEL FOLDER --to INDEX'")
        with told(self.folder), _connected(self.file, read_only=True) as connection:
            connection.execute("BEGIN")
            yield connection

    def about(self) -> About:
        """What holds for the whole index.

        Raises:
            SaySeeError: there is no index, it is damaged, or a newer release wrote it.
        """
        with self.reading() as connection:
            found = _read_about(connection, self.folder)
        if found is None:
            raise SaySeeError(f"{self.folder}: the index was never begun; give 'saysee index' again")
        return found

    # ------------------------------------------------------------------ writing

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """The one writer, for the time of a ``with`` block; the folder is made if it is not there.

        Raises:
            SaySeeError: another process writes, the folder holds something else or cannot be written, the disk is full.
        """
        self._make_folder()
        with told(self.folder), _connected(self.folder / _LOCK_FILE) as lock:
            try:
                lock.execute("PRAGMA busy_timeout = 0")
                lock.execute("PRAGMA journal_mode = MEMORY")  # nothing is written, so a kill need leave nothing behind
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
                raise SaySeeError(
                    f"{self.folder}: {self._holder()} is writing this index; wait for it, or stop it"
                ) from None
            write_text(self.folder / _HOLDER_FILE, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            with _connected(self.file) as connection:
                yield Writer(self.folder, connection)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            strangers = [path for path in self.folder.iterdir() if path.name not in _BEGUN]
        except OSError as error:
            raise SaySeeError(_UNWRITABLE.format(self.folder, error.strerror or error)) from None
        if strangers and not self.file.exists():
            raise SaySeeError(
                f"{self.folder}: holds other files ({strangers[0].name}) and no index; name a new folder by --to"
            )

    def _holder(self) -> str:
        try:
            holder = json.loads((self.folder / _HOLDER_FILE).read_text(encoding="utf-8"))
            return f"process {int(holder['pid'])} on {holder['host']}"
        except (OSError, ValueError, KeyError, TypeError):  # it has only just begun
            return "another process"


class Writer:
    """The connection of the one writer."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder, self.connection = folder, connection
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a batch that was told as finished survives a power cut
        connection.execute("PRAGMA foreign_keys = ON")

    @property
    def about(self) -> About | None:
        """What holds for the index; None for one not yet begun."""
        return _read_about(self.connection, self.folder)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    def set_about(self, about: About) -> None:
        """Begins the index, or changes what may change."""
        with self.transaction():
            if _read_about(self.connection, self.folder) is None:
                for statement in _SCHEMA.split(";"):
                    self.connection.execute(statement)
                self.touch(KINDS)
            values = [(name, json.dumps(getattr(about, name))) for name in About.__dataclass_fields__]
            self.connection.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", values)

    def note(self, name: str, value: Any) -> None:
        """Keeps a value by name, in one transaction."""
        with self.transaction():
            self.connection.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, json.dumps(value)))

    def touch(self, kinds: Iterable[Kind]) -> None:
        """Gives these kinds a new stamp, so that a fast copy made before no longer fits."""
        values = [(f"stamp_{kind}", json.dumps(secrets.token_hex(8))) for kind in kinds]
        self.connection.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", values)

    def known(self) -> dict[tuple[Kind, str], Item]:
        """All rows, by kind and path."""
        found = {}
        for row in self.connection.execute("SELECT id, kind, path, size, mtime_ns, hash, metadata FROM items"):
            item = Item(row[1], row[2], row[3], row[4], row[5], json.loads(row[6]), row[0])
            found[item.kind, item.path] = item
        return found

    def put(self, items: Sequence[Item], vectors: Sequence[bytes]) -> None:
        """Adds rows, or replaces those of the same kind and path; within a transaction."""
        for item, vector in zip(items, vectors, strict=True):
            folder, _, name = item.path.rpartition("/")
            row = (folder, name, item.size, item.mtime_ns, item.hash, _to_json(item.metadata))
            cursor = self.connection.execute(
                "INSERT INTO items (folder, name, size, mtime_ns, hash, metadata, kind, path) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (kind, path) DO UPDATE SET size = excluded.size, "
                "mtime_ns = excluded.mtime_ns, hash = excluded.hash, metadata = excluded.metadata RETURNING id",
                (*row, item.kind, item.path),
            )
            (item.id,) = cursor.fetchone()
            self.connection.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?)", (item.id, vector))
        self.touch({item.kind for item in items})

    def refresh(self, items: Iterable[Item]) -> None:
        """Writes anew what may change about rows (path, size, time, metadata), by their ids; in one transaction."""
        with self.transaction():
            for item in items:
                folder, _, name = item.path.rpartition("/")
                self.connection.execute(
                    "UPDATE items SET path = ?, folder = ?, name = ?, size = ?, mtime_ns = ?, metadata = ? "
                    "WHERE id = ?",
                    (item.path, folder, name, item.size, item.mtime_ns, _to_json(item.metadata), item.id),
                )

    def remove(self, items: Sequence[Item]) -> None:
        """Takes rows and their vectors out, in one transaction."""
        if items:
            with self.transaction():
                self.connection.executemany("DELETE FROM items WHERE id = ?", [(item.id,) for item in items])
                self.touch({item.kind for item in items})

    def vector_of(self, kind: Kind, content: str) -> bytes | None:
        """The vector of any row of this content; None where there is none."""
        row = self.connection.execute(
            "SELECT vector FROM vectors JOIN items ON id = item WHERE kind = ? AND hash = ? LIMIT 1", (kind, content)
        ).fetchone()
        return None if row is None else bytes(row[0])


# ---------------------------------------------------------------------- what readers and the fast copy ask


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
        rows = connection.execute(f"SELECT id, kind, path, metadata FROM items WHERE id IN ({marks})", names)
        found |= {row[0]: Item(row[1], row[2], metadata=json.loads(row[3]), id=row[0]) for row in rows}
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
            raise SaySeeError(_UNWRITABLE.format(folder, error.strerror)) from None
        raise


def _refuse(folder: Path, error: sqlite3.Error) -> NoReturn:
    text = str(error)
    if "is full" in text:
        raise SaySeeError(_FULL.format(folder)) from None
    if "readonly" in text or "unable to open" in text:
        raise SaySeeError(_UNWRITABLE.format(folder, text)) from None
    if "disk I/O" in text:
        raise SaySeeError(f"{folder}: the disk fails ({text}); see to it and give the command again") from None
    if "locked" in text:
        raise SaySeeError(f"{folder}: the index is busy ({text}); try again") from None
    raise SaySeeError(f"{folder}: the index is damaged ({text}); make it anew, or bring back a copy") from None


@contextmanager
def _connected(file: Path, read_only: bool = False) -> Iterator[sqlite3.Connection]:
    place = file.absolute().as_uri()
    if read_only:
        # Beside a WAL file SQLite must be able to write even to read; without one, a folder that is read-only holds a
        # file that nobody is changing.
        sealed = not os.access(file.parent, os.W_OK) and not file.with_name(f"{file.name}-wal").exists()
        place += "?immutable=1" if sealed else "?mode=ro"
    connection = sqlite3.connect(place, timeout=_PATIENCE_SECONDS, isolation_level=None, uri=True)
    try:
        yield connection
    finally:
        connection.close()


def _read_about(connection: sqlite3.Connection, folder: Path) -> About | None:
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'about'").fetchone():
        return None
    values = {name: json.loads(value) for name, value in connection.execute("SELECT name, value FROM about")}
    written = values.get("format")
    if not isinstance(written, int) or written > FORMAT:
        raise SaySeeError(
            f"{folder}: the index has format {written}, and this release knows formats up to {FORMAT}; upgrade SaySee"
        )
    return About(**{name: values[name] for name in About.__dataclass_fields__})


def _runs(ids: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(ids), _NAMES_AT_ONCE):
        yield [int(item) for item in ids[start : start + _NAMES_AT_ONCE]]


def _to_json(metadata: dict[str, Any]) -> str:
    return json.dumps(metadata, ensure_ascii=False, sort_keys=True)
