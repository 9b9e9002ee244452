"""What an index holds, and what its two stores share: SQLite in a folder (sqlite.py) and PostgreSQL (postgres.py).

A store opens connections to the same tables: ``about`` (name and JSON value), ``items`` (a row for each image and
clip) and the rows' vectors. The SQL that both databases understand is in :class:`Tables`.
"""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from saysee.errors import SaySeeError
from saysee.media.formats import Kind
from saysee.search.index.about import FORMAT, INDEX_FOLDER, About
from saysee.search.index.filters import NUMBER_COLUMNS, TEXT_COLUMNS, Filters

KINDS: tuple[Kind, ...] = ("image", "clip")
Key = tuple[Kind, str]
Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]

UNIT_TOLERANCE = 0.01  # how far a stored vector's length may be from 1: fp16 is within 0.001
WHERE_SECONDS = 10.0
"""Most time that choosing rows by an SQL condition may take; a choice. A pattern can be written that takes hours."""

_CHANGEABLE = ("path", "folder", "name", "size", "mtime_ns", "metadata")
_WRITTEN = ("kind", "hash", "encoded_by", *_CHANGEABLE)
_SET_ABOUT = "INSERT INTO about VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"


@dataclass(slots=True)
class Item:
    """One image or clip."""

    kind: Kind  # "image" or "clip"
    path: str  # with forward slashes, relative to the index's root, or absolute
    size: int | None = None  # in bytes; None where only the vector was imported
    mtime_ns: int | None = None  # time of the last change in ns; None where it is too recent to be trusted, or unknown
    hash: str | None = None  # of the content
    metadata: dict[str, Any] = field(default_factory=dict)  # further columns
    id: int = 0  # of the row; 0 for one that has none yet
    encoded_by: str = ""  # the fingerprint of what made the vector; empty for one that has none yet
    # of a row that was searched for: how many rows of the index have its content, this one included
    copies: int = field(default=1, compare=False)

    @property
    def key(self) -> Key:
        """Kind and path: no two rows have the same."""
        return self.kind, self.path

    @property
    def content(self) -> tuple[Kind, str | None]:
        """Kind and hash: rows that have the same have the same vector, if the same model made it."""
        return self.kind, self.hash

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Item:
        """From the columns of ``_ITEM``; SQLite has the metadata as text, PostgreSQL as an object."""
        kind, path, size, mtime_ns, content, metadata, *rest = row
        metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
        return cls(kind, path, size, mtime_ns, content, metadata, *rest)

    def changeable(self) -> tuple[Any, ...]:
        """The values of ``_CHANGEABLE``."""
        folder, _, name = self.path.rpartition("/")
        metadata = json.dumps(storable(self.metadata), ensure_ascii=False, sort_keys=True)
        return self.path, folder, name, self.size, self.mtime_ns, metadata


Hits = list[list[tuple[Item, float]]]  # for each query rows with their scores, the best first
_ITEM = ", ".join(column.name for column in fields(Item) if column.compare)


class Tables(ABC):
    """One connection to the tables of an index, to read or write; ``place`` and ``folder`` as in :class:`Store`."""

    with_vectors: ClassVar[str]  # SQL: the rows joined with their vectors
    _among: ClassVar[str]  # SQL: whether an id is in a list, which one parameter gives as JSON
    _vector_column: ClassVar[tuple[str, ...]]
    """The further column of the rows, where they hold their vectors themselves."""

    def __init__(self, place: str, folder: Path | None) -> None:
        self.place, self.folder = place, folder

    @abstractmethod
    def execute(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Runs SQL with ``?`` for each value, and returns the DB-API cursor."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing."""

    @abstractmethod
    def to_vectors(self, values: Sequence[Any]) -> Vectors:
        """Vectors [N, D] from the column ``vector``."""

    @abstractmethod
    def make_ready(self) -> dict[Kind, str]:
        """Brings the fast copies up to date, and returns how each kind that has rows is searched, for people."""

    @abstractmethod
    def size_in_bytes(self) -> int:
        """Size of the index on the disk."""

    @abstractmethod
    def vacuum(self) -> None:
        """Reclaims the disk space of removed rows; a damaged fast copy is no longer up to date."""

    @abstractmethod
    def copy_problem(self, kind: Kind) -> str | None:
        """What is wrong with the fast copy of a kind; None where all is well, or none is needed."""

    @abstractmethod
    def touch(self, rows: Iterable[tuple[Kind, int]]) -> None:
        """Marks the vectors of rows as added, changed or removed, within a transaction."""

    @abstractmethod
    def _damage(self) -> Iterator[str]:
        """What cannot be read, or not be right, of the rows and vectors."""

    @abstractmethod
    def _execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None: ...

    @abstractmethod
    def _is_begun(self) -> bool: ...

    @abstractmethod
    def _begin(self, about: About) -> None:
        """Creates the tables, within a transaction."""

    @abstractmethod
    def _insert(self, sql: str, rows: Sequence[Sequence[Any]], vectors: Vectors) -> Iterable[int]:
        """Runs the SQL, which returns an id, for each row; stores the vectors [N, D]."""

    @cached_property
    def about(self) -> About | None:
        """What holds for the index, as first read or last written here; None for one that was never begun."""
        return self._read_about()

    def _read_about(self) -> About | None:
        if not self._is_begun():
            return None
        values = {name: json.loads(value) for name, value in self.execute("SELECT name, value FROM about")}
        written = values.get("format")
        if written != FORMAT:
            newer = not isinstance(written, int) or written > FORMAT
            fix = "upgrade SaySee" if newer else "create it again at another place with 'saysee index'"
            raise SaySeeError(
                f"{self.place}: the index has format {written}, and this release reads format {FORMAT}; {fix}"
            )
        return About(**{column.name: values[column.name] for column in fields(About)})

    def existing_about(self) -> About:
        """What holds for the index; raises a SaySeeError where there is none, or another format."""
        if self.about is None:
            raise no_index(self.place)
        return self.about

    def set_about(self, about: About) -> None:
        """Begins the index, or changes what may change; in one transaction.

        Raises:
            SaySeeError: another process has changed it since it was read.
        """
        if about == self.about:
            return
        with self.transaction():
            current = self._read_about()
            if current not in (self.about, about):
                raise SaySeeError(f"{self.place}: another process has just changed this index; run the command again")
            if current is None:
                self._begin(about)
            self._execute_many(_SET_ABOUT, [(name, json.dumps(value)) for name, value in asdict(about).items()])
        self.about = about

    def noted(self, name: str) -> Any:
        """A value stored by name; None where there is none."""
        row = self.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def note(self, name: str, value: Any) -> None:
        """Stores a value by name; within a transaction, or as one."""
        self.execute(_SET_ABOUT, (name, json.dumps(value)))

    def counts(self) -> dict[Kind, int]:
        """Rows of each kind."""
        found = dict(self.execute("SELECT kind, count(*) FROM items GROUP BY kind").fetchall())
        return {kind: found.get(kind, 0) for kind in KINDS}

    def rows(self, ids: Iterable[int]) -> dict[int, Item]:
        """The rows of ids, by id; missing ones are skipped."""
        return {item.id: item for item in self.items(f"WHERE {self._among}", json.dumps(list(ids)))}

    def copies(self, ids: Iterable[int]) -> dict[int, int]:
        """For the ids of rows whose content is known, how many rows have that content."""
        same = "SELECT count(*) FROM items AS same WHERE same.kind = items.kind AND same.hash = items.hash"
        sql = f"SELECT id, ({same}) FROM items WHERE hash IS NOT NULL AND {self._among}"
        return dict(self.execute(sql, (json.dumps(list(ids)),)).fetchall())

    def has(self, kind: Kind) -> bool:
        """Whether there is any row of a kind."""
        return self.execute("SELECT 1 FROM items WHERE kind = ? LIMIT 1", (kind,)).fetchone() is not None

    def known(self) -> dict[Key, Item]:
        """All rows, by kind and path."""
        return {item.key: item for item in self.items()}

    def items(self, condition: str = "", *values: Any) -> Iterator[Item]:
        """The rows for which the end of an SQL statement, from WHERE on, holds."""
        return map(Item.from_row, self.execute(f"SELECT {_ITEM} FROM items {condition}", values))

    def vector_of(self, item: Item) -> Vectors | None:
        """The vector [D] of any row of the same content that the same model encoded; None where there is none."""
        sql = f"SELECT vector FROM {self.with_vectors} WHERE kind = ? AND hash = ? AND encoded_by = ? LIMIT 1"
        row = self.execute(sql, (item.kind, item.hash, item.encoded_by)).fetchone()
        return None if row is None else np.asarray(self.to_vectors(row)[0])

    def vectors_of(self, ids: Iterable[int]) -> tuple[Ids, Vectors]:
        """Those of the ids that exist [N], ascending, and their vectors [N, D]."""
        ids, _, vectors = self.contents_of(ids)
        return ids, vectors

    def contents_of(self, ids: Iterable[int]) -> tuple[Ids, list[str | None], Vectors]:
        """:meth:`vectors_of`, with the hashes of the contents between the two."""
        sql = f"SELECT id, hash, vector FROM {self.with_vectors} WHERE {self._among} ORDER BY id"
        rows = self.execute(sql, (json.dumps(list(ids)),)).fetchall()
        numbers = np.array([row[0] for row in rows], np.int64)
        return numbers, [row[1] for row in rows], self.to_vectors([row[2] for row in rows])

    def problems(self) -> Iterator[str]:
        """Reads everything and yields what is wrong with it, one line each."""
        yield from (f"{problem}; create the index again" for problem in self._damage())
        sql = "SELECT count(*) FROM items WHERE kind = ? AND encoded_by <> ?"
        for kind, fingerprint in self.existing_about().fingerprints.items():
            if (problem := self.copy_problem(kind)) is not None:
                yield f"{problem}; run 'saysee index-compact {self.place}'"
            if others := self.execute(sql, (kind, fingerprint)).fetchone()[0]:
                yield f"{others:,} {kind}s were encoded by another model than the rest; run 'saysee index' again"

    def put(self, items: Sequence[Item], vectors: Vectors) -> None:
        """Adds rows with their vectors [N, D], or replaces those of the same kind and path; within a transaction.

        Sets each item's id, and where it does not say what encoded it, the index's own model.
        """
        if not items:
            return
        about = self.existing_about()
        for item in items:
            item.encoded_by = item.encoded_by or about.fingerprints[item.kind]
        rows = [(*item.content, item.encoded_by, *item.changeable()) for item in items]
        columns = (*_WRITTEN, *self._vector_column)
        sql = (
            f"INSERT INTO items ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))}) "
            f"ON CONFLICT (kind, path) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in columns)} "
            "RETURNING id"
        )
        for item, number in zip(items, self._insert(sql, rows, vectors), strict=True):
            item.id = number
        self.touch([(item.kind, item.id) for item in items])

    def refresh(self, items: Sequence[Item]) -> list[Item]:
        """Writes what may change about rows (path, size, time, metadata), by their ids; in one transaction.

        Returns:
            those whose row another process has removed.
        """
        if not items:
            return []
        with self.transaction():
            there = self.rows([item.id for item in items])
            staying = [item for item in items if item.id in there]
            # Where a file has moved to, another process may have encoded it meanwhile.
            occupied = "DELETE FROM items WHERE kind = ? AND path = ? AND id <> ?"
            self._execute_many(occupied, [(*item.key, item.id) for item in staying])
            sql = f"UPDATE items SET {', '.join(f'{column} = ?' for column in _CHANGEABLE)} WHERE id = ?"
            self._execute_many(sql, [(*item.changeable(), item.id) for item in staying])
        return [item for item in items if item.id not in there]

    def remove(self, items: Sequence[Item]) -> None:
        """Removes rows and their vectors, by their ids; in one transaction."""
        if items:
            with self.transaction():
                self._execute_many("DELETE FROM items WHERE id = ?", [(item.id,) for item in items])
                self.touch([(item.kind, item.id) for item in items])


class Store(ABC):
    """An index's tables, which any process may read at any time."""

    place: str  # for messages: never with a password
    folder: Path | None  # on this machine; None for an index in a database

    @abstractmethod
    def reading(self) -> AbstractContextManager[Tables]:
        """A connection that cannot write, within one transaction: all it reads is of one moment.

        Raises:
            SaySeeError: there is no index, or it is damaged or out of reach.
        """

    @abstractmethod
    def writing(self) -> AbstractContextManager[Tables]:
        """A connection that writes; a new place is prepared.

        Raises:
            SaySeeError: it cannot be written, or another process writes where only one can.
        """

    @abstractmethod
    def nearest(
        self, queries: Vectors, kind: Kind, k: int, where: str | None = None, filters: Filters = (), offset: int = 0
    ) -> Hits:
        """For each unit vector of [Q, D] the up to ``k`` nearest rows of a kind, after the ``offset`` nearest.

        The score is the cosine; of equal scores the earlier row comes first, and of rows of equal content one. The
        condition and all filters must hold.

        Raises:
            SaySeeError: the database refuses the condition, or it takes more than ``WHERE_SECONDS``.
        """

    def about(self) -> About:
        """See :meth:`Tables.existing_about`."""
        with self.reading() as tables:
            return tables.existing_about()


def storable(value: Any) -> Any:
    """A value as JSON that both databases can hold: without U+0000, halves of characters, NaN and infinity."""
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {storable(str(name)): storable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [storable(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int) else storable(str(value))


def is_database(place: str | os.PathLike[str]) -> bool:
    """Whether a place is a database's address, not a path."""
    return isinstance(place, str) and place.startswith(("postgresql://", "postgres://"))


def no_index(place: str) -> SaySeeError:
    """The error where there is no index."""
    to = os.path.join(place, INDEX_FOLDER) if os.path.isdir(place) else place
    return SaySeeError(f"{place}: no index there; create one with 'saysee index MODEL FOLDER --to {to}'")


def condition_error(where: str, reason: str) -> SaySeeError:
    """The error of an SQL condition that the database refuses, in one line."""
    shown, reason = (text if len(text) <= 200 else f"{text[:197]}..." for text in (where, " ".join(reason.split())))
    columns = ", ".join((*TEXT_COLUMNS, *NUMBER_COLUMNS, "metadata"))
    return SaySeeError(
        f'the condition {shown!r} cannot be used ({reason}); give an SQL expression over {columns}, such as "folder '
        "LIKE 'holiday%'\""
    )
