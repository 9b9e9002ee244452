"""The tables of an index in an SQL database: what SQLite and PostgreSQL both understand."""

import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np

from saysee.media.formats import Kind
from saysee.search.index.about import About
from saysee.search.index.store import CHANGEABLE, ITEM_COLUMNS, KINDS, PAGE, Ids, Item, Key, Tables, Vectors

_ITEM = ", ".join(ITEM_COLUMNS)
_WRITTEN = ("kind", "hash", "encoded_by", *CHANGEABLE)
_SET_ABOUT = "INSERT INTO about VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"


class SqlTables(Tables):
    """A connection to tables that are read and written by SQL."""

    connection: Any
    with_vectors: ClassVar[str]  # SQL: the rows joined with their vectors
    _placeholder: ClassVar[str] = "?"
    _among: ClassVar[str]  # SQL: whether an id is in a list, which one parameter gives as JSON
    _vector_column: ClassVar[tuple[str, ...]]
    """The further column of the rows, where they hold their vectors themselves."""

    @abstractmethod
    def execute(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Runs SQL with ``?`` for each value, and returns the DB-API cursor."""

    @abstractmethod
    def to_vectors(self, values: Sequence[Any]) -> Vectors:
        """Vectors [N, D] from the column ``vector``."""

    def touch(self, rows: Iterable[tuple[Kind, int]]) -> None:
        """Marks the vectors of rows as added, changed or removed, within a transaction, for who must know it."""

    def _execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        self.connection.cursor().executemany(sql.replace("?", self._placeholder), rows)

    @abstractmethod
    def _is_begun(self) -> bool: ...

    @abstractmethod
    def _begin(self, about: About) -> None:
        """Creates the tables, within a transaction."""

    @abstractmethod
    def _insert(self, sql: str, rows: Sequence[Sequence[Any]], vectors: Vectors) -> Iterable[int]:
        """Runs the SQL, which returns an id, for each row; stores the vectors [N, D]."""

    def _about_values(self) -> dict[str, Any] | None:
        if not self._is_begun():
            return None
        return {name: json.loads(value) for name, value in self.execute("SELECT name, value FROM about")}

    def _replace_about(self, about: About) -> bool:
        with self.transaction():
            current = self._read_about()
            if current not in (self.about, about):
                return False
            if current is None:
                self._begin(about)
            self._execute_many(_SET_ABOUT, [(name, json.dumps(value)) for name, value in asdict(about).items()])
        return True

    def noted(self, name: str) -> Any:
        row = self.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def note(self, name: str, value: Any) -> None:
        self.execute(_SET_ABOUT, (name, json.dumps(value)))

    def counts(self) -> dict[Kind, int]:
        found = dict(self.execute("SELECT kind, count(*) FROM items GROUP BY kind").fetchall())
        return {kind: found.get(kind, 0) for kind in KINDS}

    def has(self, kind: Kind) -> bool:
        return self.execute("SELECT 1 FROM items WHERE kind = ? LIMIT 1", (kind,)).fetchone() is not None

    def items(self) -> Iterator[Item]:
        last = 0
        while page := list(self._select("WHERE id > ? ORDER BY id LIMIT ?", last, PAGE)):
            yield from page
            last = page[-1].id

    def rows(self, ids: Iterable[int]) -> dict[int, Item]:
        return {item.id: item for item in self._select(f"WHERE {self._among}", json.dumps(list(ids)))}

    def rows_of(self, keys: Iterable[Key]) -> dict[Key, Item]:
        return {key: item for key in keys for item in self._select("WHERE kind = ? AND path = ?", *key)}

    def row_with(self, kind: Kind, content: str) -> Item | None:
        return next(self._select("WHERE kind = ? AND hash = ? ORDER BY id LIMIT 1", kind, content), None)

    def _newest_ids(self, kind: Kind, k: int | None, offset: int) -> Iterator[int]:
        sql = "SELECT id FROM items WHERE kind = ? ORDER BY mtime_ns IS NOT NULL, mtime_ns DESC, id DESC"
        found = self.execute(sql, (kind,)) if k is None else self.execute(f"{sql} LIMIT ? OFFSET ?", (kind, k, offset))
        return (number for (number,) in found)

    def _select(self, condition: str, *values: Any) -> Iterator[Item]:
        """The rows for which the end of an SQL statement, from WHERE on, holds."""
        return map(Item.from_row, self.execute(f"SELECT {_ITEM} FROM items {condition}", values))

    def copies(self, items: Iterable[Item]) -> dict[int, int]:
        same = "SELECT count(*) FROM items AS same WHERE same.kind = items.kind AND same.hash = items.hash"
        sql = f"SELECT id, ({same}) FROM items WHERE hash IS NOT NULL AND {self._among}"
        return dict(self.execute(sql, (json.dumps([item.id for item in items]),)).fetchall())

    def vectors_with(self, kind: Kind, encoded_by: str, contents: Iterable[str]) -> dict[str, Vectors]:
        sql = f"SELECT vector FROM {self.with_vectors} WHERE kind = ? AND hash = ? AND encoded_by = ? LIMIT 1"
        rows = {content: self.execute(sql, (kind, content, encoded_by)).fetchone() for content in contents}
        return {content: np.asarray(self.to_vectors(row)[0]) for content, row in rows.items() if row is not None}

    def contents_of(self, ids: Iterable[int]) -> tuple[Ids, list[str | None], Vectors]:
        sql = f"SELECT id, hash, vector FROM {self.with_vectors} WHERE {self._among} ORDER BY id"
        rows = self.execute(sql, (json.dumps(list(ids)),)).fetchall()
        numbers = np.array([row[0] for row in rows], np.int64)
        return numbers, [row[1] for row in rows], self.to_vectors([row[2] for row in rows])

    def _put(self, items: Sequence[Item], vectors: Vectors) -> None:
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
        if not items:
            return []
        with self.transaction():
            there = self.rows([item.id for item in items])
            staying = [item for item in items if item.id in there]
            # Where a file has moved to, another process may have encoded it meanwhile.
            occupied = "DELETE FROM items WHERE kind = ? AND path = ? AND id <> ?"
            self._execute_many(occupied, [(*item.key, item.id) for item in staying])
            sql = f"UPDATE items SET {', '.join(f'{column} = ?' for column in CHANGEABLE)} WHERE id = ?"
            self._execute_many(sql, [(*item.changeable(), item.id) for item in staying])
        return [item for item in items if item.id not in there]

    def remove(self, items: Sequence[Item]) -> None:
        if items:
            with self.transaction():
                self._execute_many("DELETE FROM items WHERE id = ?", [(item.id,) for item in items])
                self.touch([(item.kind, item.id) for item in items])

    def _count_of_others(self, kind: Kind, fingerprint: str) -> int:
        sql = "SELECT count(*) FROM items WHERE kind = ? AND encoded_by <> ?"
        return int(self.execute(sql, (kind, fingerprint)).fetchone()[0])
