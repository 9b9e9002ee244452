"""An index in a folder: an SQLite file, and faiss files made from it.

Every batch is one transaction, flushed to the disk, in write-ahead mode: a kill loses the batch in flight, and readers
go on with what was there before it. One writer at a time holds a lock; a second is refused with the first one's name.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from saysee.errors import SaySeeError
from saysee.files import write_text
from saysee.search.index import nearest as fast_copy
from saysee.search.index.filters import Filter
from saysee.search.index.sqlite_tables import (
    SCHEMA,
    UNWRITABLE,
    blocks,
    connected,
    count,
    from_blobs,
    items_of,
    read_about,
    stale,
    stamp,
    to_blobs,
    told,
    vectors_of,
)
from saysee.search.index.store import (
    KINDS,
    SPARE,
    STALE,
    UNIT_TOLERANCE,
    WHERE_SECONDS,
    About,
    Found,
    Item,
    Kind,
    Store,
    Vectors,
    Writer,
    condition_error,
    ranked,
)

ITEMS_FILE = "items.sqlite"
_COLUMNS = "kind, path, size, mtime_ns, hash, metadata, id, encoded_by"
_STEPS_BETWEEN_CHECKS = 10_000
"""Instructions of SQLite between two looks at the clock."""
_LOCK_FILE, _HOLDER_FILE = "writer.lock", "writer.json"
_BEGUN = (_LOCK_FILE, f"{_LOCK_FILE}-journal", _HOLDER_FILE, f".writing-{_HOLDER_FILE}")
"""What a writer leaves that is killed before the index is begun."""


class SqliteStore(Store):
    """The folder of an index.

    Args:
        folder: the index.
    """

    folder: Path

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, os.fspath(folder)
        self.file = folder / ITEMS_FILE
        self._searchers: dict[Kind, fast_copy.Searcher] = {}

    # ------------------------------------------------------------------ reading

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that cannot write, within one transaction: all it reads is of one moment.

        Raises:
            SaySeeError: there is no index, or it is damaged.
        """
        if not self.file.is_file():
            raise SaySeeError(f"{self.folder}: no index there; make one with 'saysee index MODEL FOLDER --to INDEX'")
        with told(self.folder), connected(self.file, read_only=True) as connection:
            connection.execute("BEGIN")
            yield connection

    def about(self) -> About:
        """See :meth:`Store.about`."""
        with self.reading() as connection:
            return self._read_about(connection)

    def _read_about(self, connection: sqlite3.Connection) -> About:
        found = read_about(connection, self.folder)
        if found is None:
            raise SaySeeError(f"{self.folder}: the index was never begun; give 'saysee index' again")
        return found

    def counts(self) -> dict[Kind, int]:
        """See :meth:`Store.counts`."""
        with self.reading() as connection:
            return {kind: count(connection, kind) for kind in KINDS}

    def rows(self, ids: Sequence[int]) -> dict[int, Item]:
        """See :meth:`Store.rows`."""
        with self.reading() as connection:
            return items_of(connection, ids)

    def nearest(
        self, queries: Vectors, kind: Kind, k: int, where: str | None = None, filters: Sequence[Filter] = ()
    ) -> list[list[Found]]:
        """See :meth:`Store.nearest`."""
        allowed = None
        if where is not None or filters:
            with self.reading() as connection:
                allowed = _chosen_ids(connection, kind, where, filters)
        searcher = None if allowed is not None and len(allowed) <= fast_copy.MEMORY_ROWS else self.searcher(kind)
        with self.reading() as connection:
            about = self._read_about(connection)
            if searcher is None:
                assert allowed is not None
                _, ids, vectors = _present(connection, about, allowed)
                found = fast_copy.best_rows(queries, ids, vectors, k)
            else:
                found = searcher.search(queries, SPARE * k, allowed)
            # Rows that have left since the fast copy was made are passed over.
            candidates = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
            return ranked(queries, found, *_present(connection, about, candidates), k)

    def searcher(self, kind: Kind) -> fast_copy.Searcher:
        """What searches a kind as it is now; a missing or stale fast copy is made, where that can be."""
        with self.reading() as connection:
            known = self._searchers.get(kind)
            if known is not None and known.stamp == stamp(connection, kind):
                return known
            found = fast_copy.load(self.folder, self._read_about(connection), connection, kind)
        if found is None:
            found = self._made(kind)
        self._searchers[kind] = found
        return found

    def _made(self, kind: Kind) -> fast_copy.Searcher:
        try:
            with self.writing() as writer:
                writer.make_ready(self.about())
        except SaySeeError:  # another process writes just now, or this one may not: the truth itself is searched
            pass
        with self.reading() as connection:
            about = self._read_about(connection)
            return fast_copy.load(self.folder, about, connection, kind) or fast_copy.in_memory(about, connection, kind)

    # ------------------------------------------------------------------ writing

    @contextmanager
    def writing(self) -> Iterator[SqliteWriter]:
        """The one writer; see :meth:`Store.writing`.

        Raises:
            SaySeeError: another process writes, the folder holds something else or cannot be written, the disk is full.
        """
        self._make_folder()
        with told(self.folder), connected(self.folder / _LOCK_FILE) as lock:
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
            with connected(self.file) as connection:
                yield SqliteWriter(self.folder, connection)

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            strangers = [path for path in self.folder.iterdir() if path.name not in _BEGUN]
        except OSError as error:
            raise SaySeeError(UNWRITABLE.format(self.folder, error.strerror or error)) from None
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

    # ------------------------------------------------------------------ upkeep

    def check(self) -> list[str]:
        """See :meth:`Store.check`."""
        problems = []
        with self.reading() as connection:
            about = self._read_about(connection)
            for (line,) in connection.execute("PRAGMA integrity_check"):
                if line != "ok":
                    problems.append(f"{self.folder}: {line}; make the index anew, or bring back a copy")
            for kind in KINDS:
                read = 0
                for ids, vectors in blocks(connection, about, kind):
                    read += len(ids)
                    lengths = np.linalg.norm(vectors, axis=1)
                    bad = ids[~(np.abs(lengths - 1) < UNIT_TOLERANCE)]
                    problems += [f"{self.folder}: the vector of row {row} is damaged; index anew" for row in bad]
                if read != count(connection, kind):
                    problems.append(
                        f"{self.folder}: {count(connection, kind) - read} {kind}s have no vector; index anew"
                    )
                if others := stale(connection, about, kind):
                    problems.append(STALE.format(self.folder, others, kind))
                if (damage := fast_copy.damage(self.folder, connection, kind)) is not None:
                    problems.append(f"{self.folder}: {damage}; run 'saysee index --compact {self.folder}'")
        return problems

    def compact(self) -> tuple[int, int]:
        """See :meth:`Store.compact`."""
        about, before = self.about(), self._bytes()
        with self.writing() as writer:
            with writer.transaction():  # a damaged copy must not be taken for a good one
                for kind in KINDS:
                    if fast_copy.damage(self.folder, writer.connection, kind) is not None:
                        writer.touch([kind])
            writer.connection.execute("VACUUM")
            writer.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            writer.make_ready(about)
        return before, self._bytes()

    def _bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())


class SqliteWriter(Writer):
    """The connection of the one writer."""

    folder: Path

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder, self.place, self.connection = folder, os.fspath(folder), connection
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a batch that was told as finished survives a power cut
        connection.execute("PRAGMA foreign_keys = ON")

    @property
    def about(self) -> About | None:
        """See :attr:`Writer.about`."""
        return read_about(self.connection, self.folder)

    @property
    def _about(self) -> About:
        about = self.about
        assert about is not None, "set_about comes before rows"
        return about

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """See :meth:`Writer.transaction`."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            raise

    def set_about(self, about: About) -> None:
        """See :meth:`Writer.set_about`."""
        with self.transaction():
            if read_about(self.connection, self.folder) is None:
                for statement in SCHEMA.split(";"):
                    self.connection.execute(statement)
                self.touch(KINDS)
            self.connection.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", about.to_rows())

    def note(self, name: str, value: Any) -> None:
        """Keeps a value by name, in one transaction."""
        with self.transaction():
            self.connection.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (name, json.dumps(value)))

    def touch(self, kinds: Iterable[Kind]) -> None:
        """Gives these kinds a new stamp, so that a fast copy made before no longer fits."""
        values = [(f"stamp_{kind}", json.dumps(secrets.token_hex(8))) for kind in kinds]
        self.connection.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", values)

    def known(self) -> dict[tuple[Kind, str], Item]:
        """See :meth:`Writer.known`."""
        found = {}
        for row in self.connection.execute(f"SELECT {_COLUMNS} FROM items"):
            item = _item(row)
            found[item.kind, item.path] = item
        return found

    def counts(self) -> dict[Kind, int]:
        """See :meth:`Writer.counts`."""
        return {kind: count(self.connection, kind) for kind in KINDS}

    def put(self, items: Sequence[Item], vectors: Vectors) -> None:
        """See :meth:`Writer.put`."""
        about = self._about
        for item, vector in zip(items, to_blobs(vectors, about), strict=True):
            item.encoded_by = item.encoded_by or about.fingerprints[item.kind]
            row = (*item.folder_and_name, item.size, item.mtime_ns, item.hash, _to_json(item.metadata))
            cursor = self.connection.execute(
                "INSERT INTO items (folder, name, size, mtime_ns, hash, metadata, kind, path, encoded_by) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (kind, path) DO UPDATE SET size = excluded.size, "
                "mtime_ns = excluded.mtime_ns, hash = excluded.hash, metadata = excluded.metadata, "
                "encoded_by = excluded.encoded_by RETURNING id",
                (*row, item.kind, item.path, item.encoded_by),
            )
            (item.id,) = cursor.fetchone()
            self.connection.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?)", (item.id, vector))
        self.touch({item.kind for item in items})

    def refresh(self, items: Iterable[Item]) -> list[Item]:
        """See :meth:`Writer.refresh`."""
        with self.transaction():
            for item in items:
                self.connection.execute(
                    "UPDATE items SET path = ?, folder = ?, name = ?, size = ?, mtime_ns = ?, metadata = ? "
                    "WHERE id = ?",
                    (item.path, *item.folder_and_name, item.size, item.mtime_ns, _to_json(item.metadata), item.id),
                )
        return []  # nobody else can have taken one out

    def remove(self, items: Sequence[Item]) -> None:
        """See :meth:`Writer.remove`."""
        if items:
            with self.transaction():
                self.connection.executemany("DELETE FROM items WHERE id = ?", [(item.id,) for item in items])
                self.touch({item.kind for item in items})

    def item_of(self, kind: Kind, content: str) -> Item | None:
        """See :meth:`Writer.item_of`."""
        row = self.connection.execute(
            f"SELECT {_COLUMNS} FROM items WHERE kind = ? AND hash = ? ORDER BY id LIMIT 1", (kind, content)
        ).fetchone()
        return None if row is None else _item(row)

    def vector_of(self, kind: Kind, content: str, encoded_by: str) -> Vectors | None:
        """See :meth:`Writer.vector_of`."""
        row = self.connection.execute(
            "SELECT vector FROM vectors JOIN items ON id = item WHERE kind = ? AND hash = ? AND encoded_by = ? LIMIT 1",
            (kind, content, encoded_by),
        ).fetchone()
        return None if row is None else np.asarray(from_blobs([row[0]], self._about)[0])

    def make_ready(self, about: About) -> dict[Kind, str]:
        """See :meth:`Writer.make_ready`."""
        return fast_copy.write_all(self.folder, self.connection, about, self.note)


def _chosen_ids(
    connection: sqlite3.Connection, kind: Kind, where: str | None, filters: Sequence[Filter]
) -> NDArray[np.int64]:
    """The ids [N] of a kind for which the condition and all filters hold, ascending.

    The condition is the user's own SQL: the connection only reads, and cannot load code or open other files.

    Raises:
        SaySeeError: SQLite refuses the condition, or it takes too long.
    """
    conditions = ["kind = ?"]
    for number, one in enumerate(filters):
        matches = one.matches if one.is_column else partial(_matches_metadata, one)
        connection.create_function(f"filter_{number}", 1, matches, deterministic=True)
        conditions.append(f"filter_{number}({one.name if one.is_column else 'metadata'})")
    if where is not None:
        conditions.append(f"({where}\n)")
    sql = f"SELECT id FROM items WHERE {' AND '.join(conditions)} ORDER BY id"
    if where is None:
        return np.fromiter((row[0] for row in connection.execute(sql, (kind,))), np.int64)
    end = time.monotonic() + WHERE_SECONDS
    connection.execute("PRAGMA query_only = ON")
    connection.set_authorizer(_allow_reading)
    connection.set_progress_handler(lambda: time.monotonic() > end, _STEPS_BETWEEN_CHECKS)
    try:
        return np.fromiter((row[0] for row in connection.execute(sql, (kind,))), np.int64)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        reason = f"it takes over {WHERE_SECONDS:g} s" if str(error) == "interrupted" else str(error)
        raise condition_error(where, reason) from None
    finally:
        connection.set_progress_handler(None, 0)
        connection.set_authorizer(lambda *_: sqlite3.SQLITE_OK)  # Python 3.10 cannot remove an authorizer


def _allow_reading(action: int, _: str | None, name: str | None, *__: str | None) -> int:
    reading = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE)
    calling = action == sqlite3.SQLITE_FUNCTION and str(name).lower() != "load_extension"
    return sqlite3.SQLITE_OK if reading or calling else sqlite3.SQLITE_DENY


def _matches_metadata(one: Filter, metadata: str) -> bool:
    values = json.loads(metadata)
    return any(one.matches(value) for key, value in values.items() if normalize("NFC", key) == one.name)


def _present(
    connection: sqlite3.Connection, about: About, ids: NDArray[np.int64]
) -> tuple[dict[int, Item], NDArray[np.int64], Vectors]:
    """The rows of those of the ids that are still there, these ids, and their vectors."""
    items = items_of(connection, ids.tolist())
    there = np.array([item for item in ids.tolist() if item in items], np.int64)
    return items, there, vectors_of(connection, about, there.tolist())


def _item(row: tuple[Any, ...]) -> Item:
    kind, path, size, mtime_ns, content, metadata, number, encoded_by = row
    return Item(kind, path, size, mtime_ns, content, json.loads(metadata), number, encoded_by)


def _to_json(metadata: dict[str, Any]) -> str:
    return json.dumps(metadata, ensure_ascii=False, sort_keys=True)
