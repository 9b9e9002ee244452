"""Fast copies of the vectors: in memory while they are few, else in a faiss file beside the SQLite file.

The stamp in a file's name says of which rows it is a copy; a file of another stamp is stale and built again. Files are
read by mapping them into memory. How far an approximate search looks is measured when it is built, on queries that lie
off the indexed vectors.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from saysee.files import atomic_write, fingerprint
from saysee.media.formats import Kind
from saysee.search.index.exact import RECALL_K, best_rows, least_probes, trial_queries
from saysee.search.index.sql.tables import SqlTables
from saysee.search.index.store import KINDS, Ids, Vectors

MEMORY_ROWS = 20_000
"""Up to here there is no file: so few vectors are read from SQLite and compared in memory, where a query takes as long
as in a file of 100,000 (8 ms on two busy cores, 512 dimensions)."""
RENEW_ROWS = 5_000  # rows added, changed or removed beside a file before it is renewed: comparing these takes 2 ms
EXACT_ROWS = 300_000
"""Up to here every vector is compared; beyond, clusters are chosen first. At this size it takes 17 ms, little beside
the hundreds that encoding a spoken query takes, and misses nothing."""

_TRIAL_QUERIES = 256
_TRAINING_ROWS = 64  # vectors to each cluster that k-means looks at; faiss asks for 39 at least
_BLOCK = 65_536  # vectors read at once


@dataclass(slots=True)
class InMemory:
    """The unit vectors [N, D] of one kind in memory with the ids [N] of their rows, every one compared in fp32."""

    method: ClassVar[str] = "exact, from memory"
    is_worn: ClassVar[bool] = False
    stamp: str
    ids: Ids
    vectors: Vectors

    def search(self, queries: Vectors, k: int, allowed: Ids | None) -> list[Ids]:
        """For each query of [Q, D] the ids of at least the ``k`` best, among ``allowed`` only if that is given."""
        if allowed is None:
            return best_rows(queries, self.ids, self.vectors, k)
        rows = np.isin(self.ids, allowed)
        return best_rows(queries, self.ids[rows], self.vectors[rows], k)


@dataclass(slots=True)
class Faiss:
    """The vectors of one kind in a faiss index whose ids are the rows' own; else as :class:`InMemory`."""

    stamp: str
    index: Any
    approximate: bool
    outdated: Ids  # ids of the rows that were added, changed or removed since the index was made, ascending
    last: int  # number of the last of these changes
    added: InMemory  # those of the rows that are there now, in memory

    @property
    def is_worn(self) -> bool:
        """Whether the index should be renewed."""
        return len(self.outdated) > RENEW_ROWS

    @property
    def method(self) -> str:
        """Of searching, for people."""
        if self.approximate:
            return f"approximate, {self.index.nprobe} of {self.index.nlist} clusters, fp16"
        return "exact, fp16"

    def search(self, queries: Vectors, k: int, allowed: Ids | None) -> list[Ids]:
        """For each query of [Q, D] the ids of the up to ``k`` best, among ``allowed`` only if that is given."""
        if not len(self.outdated):
            return self._search(queries, k, allowed)
        count = k
        while True:
            found = self._search(queries, count, allowed)
            current = [ids[~np.isin(ids, self.outdated)] for ids in found]
            if all(len(ids) >= k or len(every) < count for ids, every in zip(current, found, strict=True)):
                break
            count *= 2
        return [np.union1d(*ids) for ids in zip(current, self.added.search(queries, k, allowed), strict=True)]

    def _search(self, queries: Vectors, k: int, allowed: Ids | None) -> list[Ids]:
        import faiss

        queries, chosen = np.ascontiguousarray(queries), None if allowed is None else faiss.IDSelectorBatch(allowed)
        count = min(k, self.index.ntotal if allowed is None else len(allowed))
        if not self.approximate:
            settings = None if chosen is None else faiss.SearchParameters(sel=chosen)
            return list(self.index.search(queries, count, params=settings)[1])
        # Clusters of which a filter takes a part have fewer to give, so more are searched.
        clusters = self.index.nprobe if chosen is None else 2 * self.index.nprobe
        while True:
            settings = faiss.SearchParametersIVF(sel=chosen, nprobe=min(clusters, self.index.nlist))
            _, found = self.index.search(queries, count, params=settings)
            if clusters >= self.index.nlist or (found >= 0).all():
                return [row[row >= 0] for row in found]
            clusters *= 4  # the last page of a long list lies in the last cluster


Searcher = InMemory | Faiss


def current_stamp(tables: SqlTables, kind: Kind) -> str:
    """What changes whenever a vector of the kind is added, changed or removed."""
    return str(tables.noted(f"stamp_{kind}"))


def advance_stamp(tables: SqlTables, kind: Kind) -> None:
    """Gives a kind the stamp of further changes to the same fast copy; of none where there is no copy."""
    if _copy(tables, kind)[1]:
        base, _, number = current_stamp(tables, kind).partition(".")
        tables.note(f"stamp_{kind}", f"{base}.{int(number or 0) + 1}")
    else:
        replace_stamp(tables, kind)


def replace_stamp(tables: SqlTables, kind: Kind, base: str | None = None) -> None:
    """Gives a kind a stamp that no fast copy has, or that of a copy. Earlier releases do so at each change."""
    tables.note(f"stamp_{kind}", f"{base}.0" if base else secrets.token_hex(8))
    if base is None and _has_outdated(tables):
        tables.execute("DELETE FROM outdated WHERE kind = ?", (kind,))


def load(tables: SqlTables, kind: Kind, known: Searcher | None = None) -> Searcher | None:
    """The searcher of a kind; None where its file is missing, stale or damaged. ``known`` is an earlier one."""
    if not _is_large(tables, kind):
        return in_memory(tables, kind)
    path, record = _copy(tables, kind)
    try:
        if isinstance(known, Faiss) and _base(known.stamp) == _base(current_stamp(tables, kind)):
            return _with_outdated(tables, kind, known)
        if path.stat().st_size == record.get("bytes"):
            return _with_outdated(tables, kind, _read(tables, kind, path, record["approximate"]))
    except (OSError, RuntimeError):  # just removed by a writer, or written by a newer faiss
        pass
    return None


def _is_large(tables: SqlTables, kind: Kind) -> bool:
    """Whether there are more than ``MEMORY_ROWS``: counting a million takes 0.1 s, which each added row would cost."""
    sql = "SELECT 1 FROM items WHERE kind = ? LIMIT 1 OFFSET ?"
    return tables.execute(sql, (kind, MEMORY_ROWS)).fetchone() is not None


def _with_outdated(tables: SqlTables, kind: Kind, known: Faiss) -> Faiss:
    """A searcher with the changes of its rows since."""
    stamp = current_stamp(tables, kind)
    if not _has_outdated(tables):
        return replace(known, stamp=stamp)
    sql = "SELECT number, item FROM outdated WHERE kind = ? AND number > ? ORDER BY number"
    changes = tables.execute(sql, (kind, known.last)).fetchall()
    changed = np.unique(np.array([item for _, item in changes], np.int64))
    kept = ~np.isin(known.added.ids, changed)
    ids, vectors = tables.vectors_of(changed.tolist())
    added = InMemory(
        stamp, np.concatenate([known.added.ids[kept], ids]), np.concatenate([known.added.vectors[kept], vectors])
    )
    last = changes[-1][0] if changes else known.last
    return Faiss(stamp, known.index, known.approximate, np.union1d(known.outdated, changed), last, added)


def _has_outdated(tables: SqlTables) -> bool:
    return tables.execute("SELECT 1 FROM sqlite_master WHERE name = 'outdated'").fetchone() is not None


def _base(stamp: str) -> str:
    """What stays of a stamp while changes are only added to a fast copy."""
    return stamp.partition(".")[0]


def in_memory(tables: SqlTables, kind: Kind) -> InMemory:
    """All vectors of a kind, read from the tables."""
    rows = tables.execute("SELECT count(*) FROM items WHERE kind = ?", (kind,)).fetchone()[0]
    ids, vectors = np.empty(rows, np.int64), np.empty((rows, tables.existing_about().dimension), np.float32)
    end = 0
    for numbers, block in blocks(tables, kind):
        start, end = end, end + len(block)
        ids[start:end], vectors[start:end] = numbers, block
    return InMemory(current_stamp(tables, kind), ids[:end], vectors[:end])


def write_all(tables: SqlTables) -> dict[Kind, str]:
    """Writes the files that are missing, removes stale ones, and returns how each kind that has rows is searched."""
    methods: dict[Kind, str] = {}
    for kind in KINDS:
        if _is_large(tables, kind):
            searcher = load(tables, kind)
            if searcher is None or searcher.is_worn:
                publish(tables, kind, build(tables, kind))
                searcher = load(tables, kind)
            assert searcher is not None
            methods[kind] = searcher.method
        elif tables.has(kind):
            methods[kind] = InMemory.method
    if _stale(tables):
        with tables.transaction():  # a file that another process is writing, in one of its own, is not stale
            for path in _stale(tables):
                with suppress(OSError):  # Windows keeps what a reader has mapped; the next writer removes it
                    path.unlink()
    return methods


def _stale(tables: SqlTables) -> set[Path]:
    """The files that are not current; one that is just being written among them."""
    assert tables.folder is not None
    return set(tables.folder.glob("*.faiss")) - {_copy(tables, kind)[0] for kind in KINDS if _is_large(tables, kind)}


def damage(tables: SqlTables, kind: Kind) -> str | None:
    """What is wrong with a kind's file, read to its last byte; None where all is well or no file is needed."""
    if not _is_large(tables, kind):
        return None
    path, record = _copy(tables, kind)
    if not record or not path.is_file():
        return f"the fast copy of its {kind}s is missing or stale"
    return None if _digest(path) == record["hash"] else f"the fast copy of its {kind}s ({path.name}) is damaged"


def blocks(tables: SqlTables, kind: Kind) -> Iterator[tuple[Ids, Vectors]]:
    """Ids [n] and vectors [n, D] of a kind in runs, by ascending id."""
    sql = f"SELECT id, vector FROM {tables.with_vectors} WHERE kind = ? ORDER BY id"
    cursor = tables.execute(sql, (kind,))
    while rows := cursor.fetchmany(_BLOCK):
        yield np.array([row[0] for row in rows], np.int64), tables.to_vectors([row[1] for row in rows])


def _copy(tables: SqlTables, kind: Kind) -> tuple[Path, dict[str, Any]]:
    """Where the copy belongs that the current rows are changes of, and what was noted of it; nothing of another."""
    assert tables.folder is not None
    path = tables.folder / f"{kind}s-{_base(current_stamp(tables, kind))}.faiss"
    record = tables.noted(f"copy_{kind}") or {}
    return path, record if record.get("name") == path.name else {}


def _read(tables: SqlTables, kind: Kind, path: Path, approximate: bool) -> Faiss:
    """Maps a file into memory; faiss has one flag for inverted lists and one for flat codes."""
    import faiss

    flag = faiss.IO_FLAG_MMAP if approximate else faiss.IO_FLAG_MMAP_IFC
    index = faiss.read_index(os.fspath(path), flag)
    nothing = InMemory("", np.empty(0, np.int64), np.empty((0, index.d), np.float32))
    return Faiss(current_stamp(tables, kind), index, approximate, nothing.ids, 0, nothing)


class Copy(NamedTuple):
    """A faiss index before it is published, the base of the stamp of its moment, and the number of the last change."""

    index: Any
    approximate: bool
    base: str
    last: int


def build(tables: SqlTables, kind: Kind) -> Copy:
    """Builds a fast copy of the rows that these tables show, the same for the same rows; others may write meanwhile.

    The vectors are in fp16: flat, or in clusters, of which as many are searched as the recall takes.
    """
    import faiss

    last = tables.execute("SELECT max(number) FROM outdated").fetchone()[0] if _has_outdated(tables) else None
    cursor = tables.execute("SELECT id FROM items WHERE kind = ? ORDER BY id", (kind,))
    ids = np.fromiter((row[0] for row in cursor), np.int64)
    approximate = len(ids) > EXACT_ROWS
    clusters = 2 ** round(float(np.log2(2 * np.sqrt(len(ids)))))
    layout = f"IVF{clusters},SQfp16" if approximate else "IDMap,SQfp16"
    index = faiss.index_factory(tables.existing_about().dimension, layout, faiss.METRIC_INNER_PRODUCT)
    rng = np.random.default_rng(0)
    seen = np.sort(rng.choice(ids, min(len(ids), _TRAINING_ROWS * clusters), replace=False))
    if approximate:
        index.cp.niter = 10  # faiss's own choice; more iterations hardly move the clusters
        index.train(tables.vectors_of(seen.tolist())[1])
    for numbers, vectors in blocks(tables, kind):
        index.add_with_ids(vectors, numbers)
    if approximate:
        chosen = rng.choice(seen, min(len(seen), _TRIAL_QUERIES), replace=False)
        order, vectors = tables.vectors_of(chosen.tolist())
        queries = trial_queries(vectors[np.searchsorted(order, chosen)], rng)

        def found(probes: int) -> Any:
            index.nprobe = probes
            return index.search(queries, RECALL_K)[1]

        index.nprobe = least_probes(index.nlist, found, found(index.nlist))
    return Copy(index, approximate, _base(current_stamp(tables, kind)), last or 0)


def publish(tables: SqlTables, kind: Kind, copy: Copy) -> None:
    """Writes a fast copy and makes it the current one, unless the rows have got another meanwhile.

    A kill leaves the previous copy and at most a file that the next writer removes.
    """
    import faiss

    assert tables.folder is not None
    base = secrets.token_hex(8)
    path = tables.folder / f"{kind}s-{base}.faiss"
    with tables.transaction():
        if _base(current_stamp(tables, kind)) != copy.base:
            return
        with atomic_write(path) as file:
            faiss.write_index(copy.index, faiss.PyCallbackIOWriter(file.write))
        size, digest = path.stat().st_size, _digest(path)
        record = {"name": path.name, "bytes": size, "hash": digest, "approximate": copy.approximate}
        tables.note(f"copy_{kind}", record)
        replace_stamp(tables, kind, base)
        if _has_outdated(tables):
            tables.execute("DELETE FROM outdated WHERE kind = ? AND number <= ?", (kind, copy.last))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return fingerprint(file)
