"""The items that an index is to be of, in a temporary file: a list of millions of them would not fit into memory."""

import json
import sqlite3
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from saysee.errors import SaySeeError
from saysee.media.formats import Kind
from saysee.search.index.about import MAX_EXAMPLES
from saysee.search.index.store import KINDS, Item, Key, storable

State = Literal["kept", "ignored", "gone", "bad", "unlisted", "missing", "moved"]
"""Of an item: unchanged; not for this model. Of a row: its file has disappeared; cannot be used; is there, but not an
item of the source; has disappeared, but the row stays; has moved. None: the item is new or has changed."""

_PAGE = 1_000  # items read at once
LEAVING = "state IN ('gone', 'bad')"
_SCHEMA = f"""
PRAGMA journal_mode = OFF;
PRAGMA cache_size = -32768;
CREATE TABLE items (
    number INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    path BLOB NOT NULL,
    metadata TEXT,
    listed INTEGER NOT NULL,
    row INTEGER,
    hash TEXT,
    state TEXT,
    UNIQUE (kind, path)
);
CREATE INDEX leaving ON items (kind, hash) WHERE {LEAVING};
BEGIN
"""
_COLUMNS = "number, kind, path, metadata, row, hash, state"


@dataclass(slots=True)
class Listed:
    """An item of the list, or a row of the index that is none."""

    number: int  # from 1, in the order in which they were added
    item: Item
    row: int | None = None  # id of the index's row of this kind and path
    hash: str | None = None  # of that row's content, if its vector can be used
    state: State | None = None


class ItemList:
    """Items, each once; and for an update, the rows of the index that they are compared with."""

    def __init__(self) -> None:
        # A file without a name: it is gone when the process ends, however that ends.
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._connection.close)
        for statement in _SCHEMA.split(";"):
            self._execute(statement)

    def _execute(self, sql: str, *values: Any, many: Iterable[tuple[Any, ...]] | None = None) -> sqlite3.Cursor:
        try:
            if many is not None:
                return self._connection.executemany(sql, many)
            return self._connection.execute(sql, values)
        except sqlite3.Error as error:
            raise SaySeeError(
                f"the list of files cannot be written to a temporary file ({error}); free some space, or name another "
                "folder for it in the environment variable TMPDIR"
            ) from None

    def __len__(self) -> int:
        return self.count("listed AND state IS NOT 'ignored'")

    def count(self, condition: str) -> int:
        """How many there are for which a condition in SQL holds."""
        return int(self._execute(f"SELECT count(*) FROM items WHERE {condition}").fetchone()[0])

    def select(self, condition: str, *values: Any, by: Literal["number", "path"] = "number") -> Iterator[Listed]:
        """Those for which a condition in SQL holds, in order (by path only of one kind); they may change meanwhile."""
        sql = f"SELECT {_COLUMNS} FROM items WHERE {condition} AND {by} > ? ORDER BY {by} LIMIT {_PAGE}"
        last: Any = 0 if by == "number" else b""
        while page := [_listed(row) for row in self._execute(sql, *values, last)]:
            yield from page
            last = page[-1].number if by == "number" else _stored(page[-1].item.path)

    def add(self, item: Item, *, upload: bool = False) -> bool:
        """Adds an item; False if there is one of its kind and path, which gets the metadata of an upload."""
        then = "DO UPDATE SET metadata = excluded.metadata" if upload else "DO NOTHING"
        sql = f"INSERT INTO items (kind, path, metadata, listed) VALUES (?, ?, ?, ?) ON CONFLICT (kind, path) {then}"
        values = (item.kind, _stored(item.path), _json(item.metadata), 2 if upload else 1)
        return self._execute(sql, *values).rowcount > 0

    def add_files(self, files: Iterable[Key]) -> None:
        """Adds files without metadata, each once."""
        sql = "INSERT INTO items (kind, path, listed) VALUES (?, ?, 1)"
        self._execute(sql, many=((kind, _stored(path)) for kind, path in files))

    def find(self, rows: Sequence[Item]) -> list[tuple[int, str | None, State | None] | None]:
        """For each row of an index the number, metadata as JSON and state of the item of its kind and path, if any."""
        found: list[tuple[int, str | None, State | None] | None] = [None] * len(rows)
        sql = (
            "SELECT keys.key, number, metadata, state FROM json_each(?) AS keys CROSS JOIN items "
            "ON items.kind = ? AND items.path = CAST(keys.value AS BLOB)"
        )
        for kind in KINDS:
            paths = json.dumps([row.path if row.kind == kind else None for row in rows])
            for place, *values in self._execute(sql, paths, kind):
                found[place] = tuple(values)
        return found

    def block(self, start: int, stop: int) -> list[Listed]:
        """The items ``start`` to ``stop`` of those that were added, counted from 0."""
        sql = f"SELECT {_COLUMNS} FROM items WHERE listed AND number > ? AND number <= ? ORDER BY number"
        return [_listed(values) for values in self._execute(sql, start, stop)]

    def set_metadata(self, number: int, metadata: dict[str, Any]) -> None:
        """Replaces the metadata of an item."""
        self._execute("UPDATE items SET metadata = ? WHERE number = ?", _json(metadata), number)

    def ignore_clips(self) -> Counter[str]:
        """Gives the clips this state, and returns how many of each suffix there are."""
        paths = (one.item.path for one in self.select("kind = 'clip'"))
        suffixes = Counter(PurePosixPath(path).suffix.lower() for path in paths)
        self._execute("UPDATE items SET state = 'ignored' WHERE kind = 'clip'")
        return suffixes

    def examples(self) -> list[Key]:
        """The items that a visitor may try as queries, whose metadata ``example`` is their kind: clips, then images."""
        sql = (
            "SELECT kind, path FROM items WHERE listed AND state IS NOT 'ignored' AND metadata IS NOT NULL "
            f"AND json_extract(metadata, '$.example') = kind ORDER BY kind, number LIMIT {MAX_EXAMPLES}"
        )
        return [(kind, path.decode()) for kind, path in self._execute(sql)]

    def has_below(self, folder: str) -> bool:
        """Whether an item lies in a folder, or in one below it."""
        start = _stored(folder.rstrip("/"))
        sql = "SELECT 1 FROM items WHERE kind = ? AND path > ? AND path < ? AND listed LIMIT 1"
        return any(self._execute(sql, kind, start + b"/", start + b"0").fetchone() for kind in KINDS)

    def begin(self) -> None:
        """Forgets an earlier comparison."""
        self._execute("DELETE FROM items WHERE listed <> 1")
        self._execute("UPDATE items SET row = NULL, hash = NULL, state = NULL WHERE coalesce(row, state) IS NOT NULL")

    def compared(self, number: int, row: int | None, content: str | None, state: State | None = None) -> None:
        """Notes the row of an item, and the hash of its content if its vector can be used."""
        self._execute("UPDATE items SET row = ?, hash = ?, state = ? WHERE number = ?", row, content, state, number)

    def add_row(self, row: Item, content: str | None, state: State) -> None:
        """Notes a row that is not of an item of the list."""
        sql = "INSERT INTO items (kind, path, listed, row, hash, state) VALUES (?, ?, 0, ?, ?, ?)"
        self._execute(sql, row.kind, _stored(row.path), row.id, content, state)

    def mark(self, state: State, *numbers: int) -> None:
        """Gives a state to what has these numbers."""
        sql = "UPDATE items SET state = ? WHERE number IN (SELECT value FROM json_each(?))"
        self._execute(sql, state, json.dumps(numbers))

    def take_leaving(self, kind: Kind, content: str | None) -> int | None:
        """The id of a row of this content whose file has disappeared, or has another content; it stays in the index."""
        sql = f"SELECT number, row FROM items WHERE kind = ? AND hash = ? AND {LEAVING} ORDER BY number LIMIT 1"
        found = self._execute(sql, kind, content).fetchone()
        if found is None:
            return None
        self.mark("moved", found[0])
        return int(found[1])


def _listed(values: Sequence[Any]) -> Listed:
    number, kind, path, metadata, row, content, state = values
    item = Item(kind, path.decode("utf-8", "surrogatepass"), metadata=json.loads(metadata) if metadata else {})
    return Listed(number, item, row, content, state)


def _stored(path: str) -> bytes:
    """A path as bytes: names on a disk need not be valid Unicode."""
    return path.encode("utf-8", "surrogatepass")


def _json(metadata: dict[str, Any]) -> str | None:
    return json.dumps(storable(metadata), ensure_ascii=False) if metadata else None
