"""The tables of an index in LanceDB, as one reader or writer sees them."""

from __future__ import annotations

import json
import random
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from saysee.media.formats import Kind
from saysee.search.index.about import About
from saysee.search.index.lance.arrow import KEY, among, insert, quoted, row_schema, to_items, to_rows, update
from saysee.search.index.lance.searching import ivf_problem, make_ready
from saysee.search.index.store import ITEM_COLUMNS, KINDS, UNIT_TOLERANCE, Ids, Item, Key, Tables, Vectors

if TYPE_CHECKING:
    from saysee.search.index.lance.store import LanceStore

TIDY_COMMITS = 64  # commits between two times that small files become large ones, as these are faster to read
_KEPT_VERSIONS = timedelta(hours=1)  # of tables, for those who are reading them
_PATIENCE_SECONDS = 60.0  # most time that a commit is tried again where others come first
_IDS_AT_ONCE = 4_096  # most ids that a writer takes ahead
_BLOCK = 65_536  # rows read at once
ABOUT, _ID = "about", "next_id"
_ABOUT_COLUMNS = pa.schema([pa.field("name", pa.string(), False, KEY), pa.field("value", pa.string(), False)])
CONFLICT = re.compile("commit conflict|concurrent|retryable", re.IGNORECASE)


class LanceTables(Tables):
    """The tables "about", "image" and "clip": as they were when first read here, or with ``latest`` as they are."""

    make_ready, copy_problem = make_ready, ivf_problem

    def __init__(self, store: LanceStore, latest: bool) -> None:
        super().__init__(store.place, None)
        self.store, self._latest = store, latest
        self._opened: dict[str, Any] = {}
        self._versions: dict[str, int] = {}
        self._kept: pa.Table | None = None
        self._ids, self._ids_taken = iter(range(0)), 0
        self._about_text = ""

    def table(self, name: str) -> Any:
        """A table; None where there is none."""
        with self.store.errors_in_one_line():
            if name not in self._opened:
                try:
                    self._opened[name] = self.store.connection.open_table(name)
                except ValueError as error:
                    if "was not found" in str(error):
                        return None
                    raise
            elif self._latest:
                self._opened[name].checkout_latest()
        return self._opened[name]

    def version(self, name: str) -> int:
        """Of a table, as first opened here; 0 where there is none."""
        if name not in self._versions:
            table = self.table(name)
            with self.store.errors_in_one_line():
                self._versions[name] = 0 if table is None else int(table.version)
        return self._versions[name]

    def commit(self, name: str, change: Callable[[Any], Any]) -> Any:
        """What a change of a table gives; it is made again where other writers come first."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while True:
            table = self.table(name)
            with self.store.errors_in_one_line():
                try:
                    return change(table)
                except (RuntimeError, ValueError, OSError) as error:
                    if not CONFLICT.search(str(error)) or time.monotonic() > end:
                        raise
            time.sleep(random.uniform(0, 0.2))

    def _create(self, name: str, rows: pa.Table) -> bool:
        """Creates a table; not where another process has just done so."""
        with self.store.errors_in_one_line():
            try:
                self.store.connection.create_table(name, rows)
            except ValueError as error:
                if "already exists" in str(error):
                    return False
                raise
        return True

    def select(self, name: str, columns: Iterable[str], condition: str = "", limit: int | None = None) -> pa.Table:
        """Columns of the rows for which the condition holds."""
        batches = list(self.batches(name, columns, condition, limit))
        return pa.Table.from_batches(batches) if batches else pa.table({column: [] for column in columns})

    def batches(
        self, name: str, columns: Iterable[str], condition: str = "", limit: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Columns of the rows for which the condition holds, in runs."""
        table = self.table(name)
        if table is None:
            return
        with self.store.errors_in_one_line():
            query = table.search().select(list(columns))
            query = query.where(condition) if condition else query
            reader = (query if limit is None else query.limit(limit)).to_batches(_BLOCK)
        while True:
            with self.store.errors_in_one_line():
                batch = next(reader, None)
            if batch is None:
                return
            yield batch

    def _about_values(self) -> dict[str, Any] | None:
        rows = self.select(ABOUT, ["value"], f"name = '{ABOUT}'")["value"].to_pylist()
        if not rows:
            return None
        (self._about_text,) = rows
        values: dict[str, Any] = json.loads(self._about_text)
        return values

    def _replace_about(self, about: About) -> bool:
        text = json.dumps(asdict(about))
        if self.about is None:
            rows = pa.table([[ABOUT, _ID], [text, "1"]], schema=_ABOUT_COLUMNS)
            done = self._create(ABOUT, rows)
        else:
            done = self._set_if(ABOUT, self._about_text, text)
        if done:
            self._about_text = text
        return done or self._read_about() == about

    def _set_if(self, name: str, expected: str, value: str) -> bool:
        """Sets a value by name where it still is what is expected."""
        condition = f"name = {quoted(name)} AND value = {quoted(expected)}"
        done = self.commit(ABOUT, lambda table: table.update(where=condition, values={"value": value}))
        return bool(done.rows_updated)

    def noted(self, name: str) -> Any:
        rows = self.select(ABOUT, ["value"], f"name = {quoted(name)}")["value"].to_pylist()
        return json.loads(rows[0]) if rows else None

    def note(self, name: str, value: Any) -> None:
        rows = pa.table([[name], [json.dumps(value)]], schema=_ABOUT_COLUMNS)

        def change(table: Any) -> Any:
            return table.merge_insert("name").when_matched_update_all().when_not_matched_insert_all().execute(rows)

        self.commit(ABOUT, change)

    def counts(self) -> dict[Kind, int]:
        return {kind: self.count(kind) for kind in KINDS}

    def count(self, kind: Kind, condition: str | None = None) -> int:
        """Rows of a kind for which a condition holds."""
        table = self.table(kind)
        with self.store.errors_in_one_line():
            return 0 if table is None else int(table.count_rows(condition))

    def items(self) -> Iterator[Item]:
        return (item for kind in KINDS for batch in self.batches(kind, ITEM_COLUMNS) for item in to_items(batch))

    def _having(self, kind: Kind, column: str, values: Iterable[Any], columns: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of the rows of a kind of which a column has one of the values."""
        values, held = sorted(set(values)), None if self._latest else self.store.held.get(kind)
        if values and held is not None and held.table is not None and held.rows and held.version == self.version(kind):
            yield held.table.filter(pc.is_in(held.table[column], pa.array(values))).select(list(columns))
        else:
            yield from (self.select(kind, columns, condition) for condition in among(column, values))

    def keep(self, rows: pa.Table) -> None:
        """Keeps all columns of rows that will be asked for by their ids, while this reader sees one version."""
        self._kept = None if self._latest else rows

    def _of_ids(self, ids: Iterable[int], columns: Sequence[str]) -> Iterator[pa.Table]:
        left = {int(number) for number in ids}
        if self._kept is not None and left:
            found = self._kept.filter(pc.is_in(self._kept["id"], pa.array(sorted(left))))
            _, first = np.unique(np.asarray(found["id"]), return_index=True)  # several queries may find the same
            found = found.select(list(columns)).take(first)
            left.difference_update(found["id"].to_pylist())
            yield found
        for kind in KINDS:
            for found in self._having(kind, "id", left, columns):
                if len(found):
                    yield found
                    left.difference_update(found["id"].to_pylist())

    def rows(self, ids: Iterable[int]) -> dict[int, Item]:
        return {item.id: item for found in self._of_ids(ids, ITEM_COLUMNS) for item in to_items(found)}

    def rows_of(self, keys: Iterable[Key]) -> dict[Key, Item]:
        asked = list(keys)
        found = {
            item.key: item
            for kind in KINDS
            for rows in self._having(kind, "path", [path for of, path in asked if of == kind], ITEM_COLUMNS)
            for item in to_items(rows)
        }
        return {key: found[key] for key in asked if key in found}

    def row_with(self, kind: Kind, content: str) -> Item | None:
        found = (item for rows in self._having(kind, "hash", [content], ITEM_COLUMNS) for item in to_items(rows))
        return min(found, key=lambda item: item.id, default=None)

    def _newest_ids(self, kind: Kind, k: int | None, offset: int) -> Iterable[int]:
        found = self.select(kind, ["id", "mtime_ns"])
        if not len(found):  # its columns may have no type
            return ()
        ids = found["id"].to_numpy()
        times = np.array(pc.fill_null(found["mtime_ns"], np.iinfo(np.int64).max), np.int64)
        order: Ids = ids[np.lexsort((-ids, -times))][offset:][:k]
        return map(int, order)

    def copies(self, items: Iterable[Item]) -> dict[int, int]:
        known = [item for item in items if item.hash is not None]
        counted: Counter[tuple[Kind, str | None]] = Counter()
        for kind in {item.kind for item in known}:
            for found in self._having(kind, "hash", {item.hash for item in known if item.kind == kind}, ["hash"]):
                counted.update((kind, one) for one in found["hash"].to_pylist())
        return {item.id: counted[item.content] for item in known}

    def vectors_with(self, kind: Kind, encoded_by: str, contents: Iterable[str]) -> dict[str, Vectors]:
        vectors: dict[str, Vectors] = {}
        for condition in among("hash", sorted(set(contents))):
            found = self.select(kind, ["hash", "vector"], f"{condition} AND encoded_by = {quoted(encoded_by)}")
            if len(found):
                vectors.update(zip(found["hash"].to_pylist(), self.vectors(found["vector"].chunks), strict=True))
        return vectors

    def contents_of(self, ids: Iterable[int]) -> tuple[Ids, list[str | None], Vectors]:
        tables = list(self._of_ids(ids, ["id", "hash", "vector"]))
        if not tables:
            return np.empty(0, np.int64), [], np.empty((0, self.existing_about().dimension), np.float32)
        found = pa.concat_tables(tables).sort_by("id")
        return found["id"].to_numpy(), found["hash"].to_pylist(), self.vectors(found["vector"].chunks)

    def _put(self, items: Sequence[Item], vectors: Vectors) -> None:
        for kind in KINDS:
            # The last of rows of the same path is what stays.
            places = {item.path: place for place, item in enumerate(items) if item.kind == kind}
            if places:
                order = list(places.values())
                self._put_kind(kind, [items[place] for place in order], vectors[order])
        ids = {item.key: item.id for item in items}
        for item in items:
            item.id = ids[item.key]

    def _put_kind(self, kind: Kind, items: Sequence[Item], vectors: Vectors) -> None:
        schema = row_schema(self.existing_about().dimension)
        if self.table(kind) is None:
            self._create(kind, schema.empty_table())
        waiting = list(range(len(items)))
        while waiting:
            there = self._ids_of(items[place] for place in waiting)
            known = [place for place in waiting if items[place].key in there]
            new = [place for place in waiting if items[place].key not in there]
            for item in (items[place] for place in waiting):
                item.id = there.get(item.key) or self._next_id(len(new))
            written = 0
            for places, write in ((new, insert), (known, update)):
                if places:
                    rows = to_rows([items[place] for place in places], schema, vectors[places])
                    done = self.commit(kind, partial(write, rows=rows))
                    written += done.num_inserted_rows + done.num_updated_rows
                    if done.version % TIDY_COMMITS == 0:
                        self.tidy(kind)
            if written == len(waiting):
                return
            # Another writer has added or removed some of them meanwhile.
            there = self._ids_of(items[place] for place in waiting)
            waiting = [place for place in waiting if there.get(items[place].key) != items[place].id]

    def _ids_of(self, items: Iterable[Item]) -> dict[Key, int]:
        return {key: row.id for key, row in self.rows_of(item.key for item in items).items()}

    def _next_id(self, count: int) -> int:
        """An id that no row has had; ``count`` are needed, and ever more are taken at once."""
        while (number := next(self._ids, None)) is None:
            first = int(self.noted(_ID))
            self._ids_taken = max(count, min(2 * self._ids_taken, _IDS_AT_ONCE))
            if self._set_if(_ID, str(first), str(first + self._ids_taken)):
                self._ids = iter(range(first, first + self._ids_taken))
        return number

    def refresh(self, items: Sequence[Item]) -> list[Item]:
        there = self.rows([item.id for item in items])
        staying = [item for item in items if item.id in there]
        moved = [item for item in staying if there[item.id].path != item.path]
        self._vacate(moved, staying)
        for kind in KINDS:
            of_kind = [item for item in staying if item.kind == kind]
            if of_kind:
                self.commit(kind, partial(update, rows=to_rows(of_kind, row_schema(0))))
        self._vacate(moved, staying)
        return [item for item in items if item.id not in there]

    def _vacate(self, moved: Sequence[Item], staying: Sequence[Item]) -> None:
        """Removes rows where files have moved to, which another process may have encoded meanwhile."""
        ids = {item.id for item in staying}
        self.remove([row for row in self.rows_of([item.key for item in moved]).values() if row.id not in ids])

    def remove(self, items: Sequence[Item]) -> None:
        for kind in KINDS:
            for condition in among("id", [item.id for item in items if item.kind == kind]):
                self.commit(kind, methodcaller("delete", condition))

    def tidy(self, name: str, kept: timedelta = _KEPT_VERSIONS) -> None:
        """Merges small files, adds rows to the indexes, and removes old versions; leaves it to another who does."""
        table = self.table(name)
        with self.store.errors_in_one_line():
            try:
                with warnings.catch_warnings():  # that readers of older versions fail, which may read again
                    warnings.simplefilter("ignore")
                    if table is not None:
                        table.optimize(cleanup_older_than=kept)
            except RuntimeError as error:
                if not CONFLICT.search(str(error)):
                    raise

    def vacuum(self) -> None:
        """Who is reading an old version must read again."""
        for name in (*KINDS, ABOUT):
            self.tidy(name, timedelta(microseconds=1))

    def size_in_bytes(self) -> int:
        """In an object store, of the rows alone."""
        if (local := self.store.local) is not None:
            return sum(path.stat().st_size for path in local.rglob("*") if path.is_file())
        with self.store.errors_in_one_line():
            return sum(int(table.stats()["total_bytes"]) for kind in KINDS if (table := self.table(kind)))

    def _damage(self) -> Iterator[str]:
        for kind in KINDS:
            hashes = []
            for batch in self.batches(kind, ["id", "path", "vector"]):
                ids, lengths = batch["id"].to_numpy(), np.linalg.norm(self.vectors([batch["vector"]]), axis=1)
                yield from (
                    f"the vector of row {row} is damaged" for row in ids[~(np.abs(lengths - 1) < UNIT_TOLERANCE)]
                )
                hashes.append(np.fromiter(map(hash, batch["path"].to_pylist()), np.int64))
            # Not the paths themselves, which take gigabytes where there are millions.
            found, counts = np.unique(np.concatenate([np.empty(0, np.int64), *hashes]), return_counts=True)
            if twice := set(found[counts > 1].tolist()):
                of_batches = (batch["path"].to_pylist() for batch in self.batches(kind, ["path"]))
                paths = Counter(path for of_batch in of_batches for path in of_batch if hash(path) in twice)
                yield from (f"the {kind} {path} is there twice" for path, count in paths.items() if count > 1)

    def _count_of_others(self, kind: Kind, fingerprint: str) -> int:
        return self.count(kind, f"encoded_by <> {quoted(fingerprint)}")

    def blocks(self, kind: Kind) -> Iterator[tuple[Ids, Vectors]]:
        """Ids [n] and vectors [n, D] of a kind in runs."""
        return (
            (batch["id"].to_numpy(), self.vectors([batch["vector"]])) for batch in self.batches(kind, ["id", "vector"])
        )

    def vectors(self, arrays: Sequence[Any]) -> Vectors:
        """Vectors [N, D] of arrays of lists."""
        parts = [np.asarray(array.flatten(), np.float32).reshape(len(array), -1) for array in arrays if len(array)]
        return np.concatenate(parts) if parts else np.empty((0, self.existing_about().dimension), np.float32)
