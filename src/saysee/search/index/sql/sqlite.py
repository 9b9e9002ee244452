"""An index in a folder: an SQLite file, and faiss files made from it.

Every batch is one transaction, flushed to the disk, in write-ahead mode: a kill loses the batch in progress, and
readers continue with what was there before it. One writer at a time holds a lock; a second is refused with the first
one's process id.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from saysee.errors import SaySeeError
from saysee.files import write_text
from saysee.media.formats import Kind
from saysee.search.index.about import About
from saysee.search.index.exact import best_rows
from saysee.search.index.filters import Filters, compose_condition
from saysee.search.index.ranking import ranked
from saysee.search.index.sql import fast_copy
from saysee.search.index.sql.tables import SqlTables
from saysee.search.index.store import (
    KINDS,
    UNIT_TOLERANCE,
    WHERE_SECONDS,
    Hits,
    Ids,
    Store,
    Vectors,
    condition_error,
    no_index,
)

logger = logging.getLogger(__name__)

ITEMS_FILE = "items.sqlite"
_OUTDATED = "CREATE TABLE IF NOT EXISTS outdated (number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT, item INTEGER)"
"""Rows that were added, changed or removed since the fast copy of their kind was made, if there is one."""
_PATIENCE_SECONDS = 30.0  # how long a reader or writer waits for another's short transaction
_STEPS_BETWEEN_CHECKS = 10_000  # instructions of SQLite between two looks at the clock
_LOCK_FILE, _HOLDER_FILE = "writer.lock", "writer.json"
_BEGUN = (_LOCK_FILE, f"{_LOCK_FILE}-journal", _HOLDER_FILE, f".writing-{_HOLDER_FILE}")
"""Files of a writer that was killed before the index was begun."""
_UNWRITABLE = "{}: the index cannot be written ({}); change its permissions, or name another place by --to"
_FULL = "{}: the disk is full; free some space and run the command again, it resumes"
_REASONS = (
    ("is full", _FULL),
    ("readonly", _UNWRITABLE),
    ("unable to open", _UNWRITABLE),
    ("disk I/O", "{}: the disk reports an error ({}); check it and run the command again"),
    ("out of memory", "{}: {}; free some memory and try again"),
    ("locked", "{}: the index is busy ({}); try again"),
    ("", "{}: the index is damaged ({}); create it again, or restore a copy"),
)
"""Parts of SQLite's messages, and what to say of them."""

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


class SqliteStore(Store):
    """The folder of an index."""

    folder: Path
    many_writers = False

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, os.fspath(folder)
        self.file = folder / ITEMS_FILE
        self._searchers: dict[Kind, fast_copy.Searcher] = {}
        self._renewing = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[SqliteTables]:
        if not self.file.is_file():
            raise no_index(self.place)
        with _errors_in_one_line(self.folder), _connected(self.file, read_only=True) as connection:
            connection.execute("BEGIN")
            yield SqliteTables(self.folder, connection)

    @contextmanager
    def writing(self) -> Iterator[SqliteTables]:
        """The one writer; see :meth:`Store.writing`."""
        self._make_folder()
        with _errors_in_one_line(self.folder), _connected(self.folder / _LOCK_FILE) as lock:
            try:
                lock.execute("PRAGMA busy_timeout = 0")
                lock.execute("PRAGMA journal_mode = MEMORY")  # nothing is written, so that a kill leaves nothing behind
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
                raise SaySeeError(
                    f"{self.folder}: {self._holder()} is writing this index; wait for it, or stop it"
                ) from None
            write_text(self.folder / _HOLDER_FILE, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            with _connected(self.file) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")  # a committed batch survives a power cut
                connection.execute("PRAGMA foreign_keys = ON")
                yield SqliteTables(self.folder, connection)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            others = [path for path in self.folder.iterdir() if path.name not in _BEGUN]
        except OSError as error:
            raise SaySeeError(_UNWRITABLE.format(self.folder, error.strerror or error)) from None
        if others and not self.file.exists():
            raise SaySeeError(
                f"{self.folder}: holds other files ({others[0].name}) and no index; name a new folder by --to"
            )

    def _holder(self) -> str:
        try:
            holder = json.loads((self.folder / _HOLDER_FILE).read_text(encoding="utf-8"))
            return f"process {int(holder['pid'])} on {holder['host']}"
        except (OSError, ValueError, KeyError, TypeError):  # it has only just begun
            return "another process"

    def nearest(
        self, queries: Vectors, kind: Kind, k: int, where: str | None = None, filters: Filters = (), offset: int = 0
    ) -> Hits:
        allowed = None
        if where is not None or filters:
            with self.reading() as tables:
                allowed = _chosen_ids(tables, kind, where, filters)
                if len(allowed) <= fast_copy.MEMORY_ROWS:
                    chosen = partial(best_rows, queries, *tables.vectors_of(allowed.tolist()))
                    return ranked(tables, queries, chosen, k, offset)
        searcher = self.searcher(kind)
        with self.reading() as tables:
            return ranked(tables, queries, lambda depth: searcher.search(queries, depth, allowed), k, offset)

    def searcher(self, kind: Kind) -> fast_copy.Searcher:
        """Searches the current rows of a kind; a missing or stale fast copy is built, where that is possible.

        One that many rows have outdated is renewed in the background.
        """
        with self.reading() as tables:
            known = self._searchers.get(kind)
            if known is not None and known.stamp == fast_copy.current_stamp(tables, kind):
                return known
            found = fast_copy.load(tables, kind, known)
        if found is None:
            with suppress(SaySeeError), self.writing() as tables:
                tables.make_ready()
            with self.reading() as tables:  # where another process is writing, or this one may not, from memory
                found = fast_copy.load(tables, kind) or fast_copy.in_memory(tables, kind)
        if found.is_worn and self._renewing.acquire(blocking=False):
            threading.Thread(target=self._renew, args=(kind,), name="saysee-renewing", daemon=True).start()
        self._searchers[kind] = found
        return found

    def _renew(self, kind: Kind) -> None:
        """Renews the fast copy of a kind, while others search and write."""
        try:
            with self.reading() as tables:
                copy = fast_copy.build(tables, kind)
            with _errors_in_one_line(self.folder), _connected(self.file) as connection:
                fast_copy.publish(SqliteTables(self.folder, connection), kind, copy)
        except (SaySeeError, OSError) as error:
            logger.warning("%s", error)
        finally:
            self._renewing.release()


class SqliteTables(SqlTables):
    """A connection to the SQLite file."""

    folder: Path
    connection: sqlite3.Connection
    with_vectors = "items JOIN vectors ON item = id"
    _among = "id IN (SELECT value FROM json_each(?))"
    _vector_column = ()
    make_ready, copy_problem = fast_copy.write_all, fast_copy.damage

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        super().__init__(os.fspath(folder), folder)
        self.connection = connection

    def execute(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self.connection.execute(sql, values)

    def to_vectors(self, values: Sequence[bytes]) -> Vectors:
        dimension, stored = self.existing_about().dimension, self._stored_type()
        if any(len(value) != stored.itemsize * dimension for value in values):
            raise sqlite3.DatabaseError("a vector has another length than the index's")
        return np.frombuffer(b"".join(values), stored).reshape(len(values), dimension).astype(np.float32)

    def _stored_type(self) -> np.dtype[Any]:
        return np.dtype(self.existing_about().precision).newbyteorder("<")

    def _is_begun(self) -> bool:
        return self.execute("SELECT 1 FROM sqlite_master WHERE name = 'about'").fetchone() is not None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.execute("BEGIN IMMEDIATE")
        with self.connection:  # commits; rolls back after an error
            yield

    def _begin(self, _: About) -> None:
        for statement in _SCHEMA.split(";"):
            self.execute(statement)
        for kind in KINDS:
            fast_copy.replace_stamp(self, kind)

    def touch(self, rows: Iterable[tuple[Kind, int]]) -> None:
        """The rows are searched beside the fast copies, until these are renewed."""
        self.execute(_OUTDATED)
        rows = list(rows)
        self._execute_many("INSERT INTO outdated (kind, item) VALUES (?, ?)", rows)
        for kind in {kind for kind, _ in rows}:
            fast_copy.advance_stamp(self, kind)

    def _insert(self, sql: str, rows: Sequence[Sequence[Any]], vectors: Vectors) -> Iterator[int]:
        stored = np.ascontiguousarray(vectors, dtype=self._stored_type())
        for row, vector in zip(rows, stored, strict=True):
            (number,) = self.execute(sql, row).fetchone()
            self.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?)", (number, vector.tobytes()))
            yield number

    def size_in_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())

    def vacuum(self) -> None:
        with self.transaction():  # a damaged copy must not be taken for a good one
            for kind in KINDS:
                if self.copy_problem(kind) is not None:
                    fast_copy.replace_stamp(self, kind)
        self.execute("VACUUM")
        self.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _damage(self) -> Iterator[str]:
        yield from (line for (line,) in self.execute("PRAGMA integrity_check") if line != "ok")
        for kind, count in self.counts().items():
            read = 0
            for ids, vectors in fast_copy.blocks(self, kind):
                read += len(ids)
                bad = ids[~(np.abs(np.linalg.norm(vectors, axis=1) - 1) < UNIT_TOLERANCE)]
                yield from (f"the vector of row {row} is damaged" for row in bad)
            if read != count:
                yield f"{count - read} {kind}s have no vector"


def _chosen_ids(tables: SqliteTables, kind: Kind, where: str | None, filters: Filters) -> Ids:
    """The ids [N] of a kind for which the condition and all filters hold, ascending.

    The condition is the user's own SQL: the connection only reads, and cannot load code or open other files.
    """
    tables.existing_about()
    connection, conditions = tables.connection, ["kind = ?"]
    for number, one in enumerate(filters):
        matches = one.matches if one.is_column else one.matches_metadata
        connection.create_function(f"filter_{number}", 1, matches, deterministic=True)
        conditions.append(f"filter_{number}({one.name if one.is_column else 'metadata'})")
    end, table = float("inf"), "items"
    if where is not None:
        composed, table = compose_condition(where, "nfc({})", "nfc({})")
        connection.create_function("nfc", 1, lambda text: text and normalize("NFC", text), deterministic=True)
        conditions.append(f"({composed}\n)")  # a line of its own ends a comment in it
        end = time.monotonic() + WHERE_SECONDS
    connection.execute("PRAGMA query_only = ON")
    connection.set_authorizer(_allow_reading)
    connection.set_progress_handler(lambda: time.monotonic() > end, _STEPS_BETWEEN_CHECKS)
    try:
        rows = connection.execute(f"SELECT id FROM {table} WHERE {' AND '.join(conditions)} ORDER BY id", (kind,))
        return np.fromiter((row[0] for row in rows), np.int64)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        if where is None:
            raise
        reason = f"it takes over {WHERE_SECONDS:g} s" if str(error) == "interrupted" else str(error)
        raise condition_error(where, reason) from None
    finally:
        connection.set_progress_handler(None, 0)
        connection.set_authorizer(lambda *_: sqlite3.SQLITE_OK)  # Python 3.10 cannot remove an authorizer


def _allow_reading(action: int, _: str | None, name: str | None, *__: str | None) -> int:
    reading = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE)
    calling = action == sqlite3.SQLITE_FUNCTION and str(name).lower() != "load_extension"
    return sqlite3.SQLITE_OK if reading or calling else sqlite3.SQLITE_DENY


def _connected(file: Path, read_only: bool = False) -> closing[sqlite3.Connection]:
    """A connection in autocommit mode."""
    place = file.absolute().as_uri()
    if read_only:
        # Beside a WAL file SQLite must be able to write even to read; without one, a read-only folder holds a file that
        # nobody is changing.
        sealed = not os.access(file.parent, os.W_OK) and not file.with_name(f"{file.name}-wal").exists()
        place += "?immutable=1" if sealed else "?mode=ro"
    return closing(sqlite3.connect(place, timeout=_PATIENCE_SECONDS, isolation_level=None, uri=True))


@contextmanager
def _errors_in_one_line(folder: Path) -> Iterator[None]:
    """Errors of SQLite, of a full disk and of a read-only folder become a SaySeeError."""
    try:
        yield
    except sqlite3.Error as error:
        text = next(message for part, message in _REASONS if part in str(error))
        raise SaySeeError(text.format(folder, error)) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise SaySeeError(_FULL.format(folder)) from None
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise SaySeeError(_UNWRITABLE.format(folder, error.strerror)) from None
        raise
