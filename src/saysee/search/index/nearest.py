"""Fast copies of the vectors: in memory while they are few, else in a faiss file beside the SQLite file.

The stamp in a file's name says of which rows it is a copy; a file of another stamp is stale and built again. It is
written under a temporary name, flushed to the disk, renamed, and read by mapping it into memory. How far an approximate
search looks is measured when it is built, on queries that lie off the indexed vectors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from saysee.errors import SaySeeError
from saysee.files import fingerprint, flush
from saysee.media.formats import Kind
from saysee.search.index.store import Ids, Tables, Vectors

MEMORY_ROWS = 20_000
"""Up to here there is no file: so few vectors are read from SQLite and compared in memory, where a query takes as long
as in a file of 100,000 (8 ms on two busy cores, 512 dimensions)."""
EXACT_ROWS = 300_000
"""Up to here every vector is compared; beyond, clusters are chosen first. At this size it takes 17 ms, little beside
the hundreds that encoding a spoken query takes, and misses nothing."""
RECALL, RECALL_K = 0.995, 10
"""Least recall@10 of the trial queries; what is promised of real queries is 0.99."""

_TRIAL_QUERIES, _MOVE = 256, 0.5
_TRAINING_ROWS = 64
"""Vectors to each cluster that k-means looks at; faiss asks for 39 at least."""
_PRODUCTS_AT_ONCE = 1 << 24
"""Similarities held at once, 64 MB."""
_BLOCK = 65_536
"""Vectors read at once."""
_UNFINISHED = ".writing-"
FROM_MEMORY = "exact, from memory"


@dataclass(slots=True)
class InMemory:
    """The unit vectors [N, D] of one kind in memory with the ids [N] of their rows, every one compared in fp32."""

    stamp: str
    ids: Ids
    vectors: Vectors
    method: str = FROM_MEMORY

    def search(self, queries: Vectors, k: int, allowed: Ids | None) -> list[Ids]:
        """For each query of [Q, D] the ids of at least the ``k`` best, among ``allowed`` only if that is given."""
        ids, vectors = self.ids, self.vectors
        if allowed is not None:
            rows = np.isin(ids, allowed)
            ids, vectors = ids[rows], vectors[rows]
        return best_rows(queries, ids, vectors, k)


@dataclass(slots=True)
class Faiss:
    """The vectors of one kind in a faiss index whose ids are the rows' own; else as :class:`InMemory`."""

    stamp: str
    index: Any

    @classmethod
    def read(cls, stamp: str, path: Path, approximate: bool) -> Faiss:
        """Maps a file into memory; faiss has one flag for inverted lists and one for flat codes."""
        flag = faiss.IO_FLAG_MMAP if approximate else faiss.IO_FLAG_MMAP_IFC
        return cls(stamp, faiss.read_index(os.fspath(path), flag))

    @property
    def method(self) -> str:
        """Of searching, for people."""
        if isinstance(self.index, faiss.IndexIVF):
            return f"approximate, {self.index.nprobe} of {self.index.nlist} clusters, fp16"
        return "exact, fp16"

    def search(self, queries: Vectors, k: int, allowed: Ids | None) -> list[Ids]:
        """For each query of [Q, D] the ids of the up to ``k`` best, among ``allowed`` only if that is given."""
        settings = None
        if allowed is not None:
            chosen = faiss.IDSelectorBatch(allowed)
            inner = self.index
            # Clusters of which a filter takes a part have fewer to give, so more of them are looked at.
            settings = (
                faiss.SearchParametersIVF(sel=chosen, nprobe=min(inner.nlist, 2 * inner.nprobe))
                if isinstance(inner, faiss.IndexIVF)
                else faiss.SearchParameters(sel=chosen)
            )
        _, found = self.index.search(np.ascontiguousarray(queries), min(k, self.index.ntotal), params=settings)
        return [row[row >= 0] for row in found]


Searcher = InMemory | Faiss


def best_rows(queries: Vectors, ids: Ids, vectors: Vectors, k: int) -> list[Ids]:
    """For each query of [Q, D] the ids of the ``k`` nearest vectors of [N, D], and of those as near as the last."""
    found: list[Ids] = []
    k = min(k, len(ids))
    at_once = max(1, _PRODUCTS_AT_ONCE // max(1, len(ids)))
    for start in range(0, len(queries), at_once):
        scores = queries[start : start + at_once] @ vectors.T
        least = -np.partition(-scores, k - 1, axis=1)[:, k - 1] if k else np.zeros(len(scores), np.float32)
        found += [ids[row >= last] for row, last in zip(scores, least, strict=True)]
    return found


def load(tables: Tables, kind: Kind) -> Searcher | None:
    """The searcher of a kind; None where its file is missing, stale or damaged."""
    rows = tables.counts()[kind]
    if rows <= MEMORY_ROWS:
        return in_memory(tables, kind)
    current = tables.stamp(kind)
    path, record = _file(tables, kind, current), tables.noted(f"copy_{kind}")
    try:
        if not record or record["name"] != path.name or path.stat().st_size != record["bytes"]:
            return None
        found = Faiss.read(current, path, record["approximate"])
    except (OSError, RuntimeError):  # just removed by a writer, or written by a newer faiss
        return None
    fits = (found.index.ntotal, found.index.d) == (rows, tables.existing_about().dimension)
    return found if fits else None


def in_memory(tables: Tables, kind: Kind) -> InMemory:
    """All vectors of a kind, read from the tables."""
    rows = tables.counts()[kind]
    ids, vectors = np.empty(rows, np.int64), np.empty((rows, tables.existing_about().dimension), np.float32)
    read = 0
    for numbers, block in blocks(tables, kind):
        ids[read : read + len(block)], vectors[read : read + len(block)] = numbers, block
        read += len(block)
    return InMemory(tables.stamp(kind), ids[:read], vectors[:read])


def write_all(folder: Path, tables: Tables) -> dict[Kind, str]:
    """Writes the files that are missing, removes stale ones, and returns how each kind that has rows is searched."""
    methods: dict[Kind, str] = {}
    wanted = set()
    for kind, rows in tables.counts().items():
        if rows > MEMORY_ROWS:
            found = load(tables, kind) or _write(folder, tables, kind, rows > EXACT_ROWS)
            methods[kind] = found.method
            wanted.add(_file(tables, kind, found.stamp).name)
        elif rows:
            methods[kind] = FROM_MEMORY
    for path in [*folder.glob("*.faiss"), *folder.glob(f"{_UNFINISHED}*")]:
        if path.name not in wanted:
            _remove(path)
    return methods


def damage(tables: Tables, kind: Kind) -> str | None:
    """What is wrong with a kind's file, read to its last byte; None where all is well or no file is needed."""
    if tables.counts()[kind] <= MEMORY_ROWS:
        return None
    path, record = _file(tables, kind, tables.stamp(kind)), tables.noted(f"copy_{kind}")
    if not path.is_file() or not record or record["name"] != path.name:
        return f"the fast copy of its {kind}s is missing or stale"
    return None if _digest(path) == record["hash"] else f"the fast copy of its {kind}s ({path.name}) is damaged"


def blocks(tables: Tables, kind: Kind) -> Iterator[tuple[Ids, Vectors]]:
    """Ids [n] and vectors [n, D] of a kind in runs, by ascending id."""
    sql = f"SELECT id, vector FROM {tables.with_vectors} WHERE kind = ? ORDER BY id"
    cursor = tables.execute(sql, (kind,))
    while rows := cursor.fetchmany(_BLOCK):
        yield np.array([row[0] for row in rows], np.int64), tables.to_vectors([row[1] for row in rows])


def _write(folder: Path, tables: Tables, kind: Kind, approximate: bool) -> Faiss:
    current = tables.stamp(kind)
    index = _build(tables, kind, approximate)
    path = _file(tables, kind, current)
    scratch = path.with_name(f"{_UNFINISHED}{path.name}")
    try:
        faiss.write_index(index, os.fspath(scratch))
        flush(scratch)
        scratch.replace(path)
        flush(folder)
    except RuntimeError:  # what faiss raises on a full disk
        raise SaySeeError(
            f"{folder}: the disk is full, so that the fast copy cannot be written (rows and vectors are safe); free "
            f"some space and run 'saysee index-compact {folder}'"
        ) from None
    finally:
        _remove(scratch)
    record = {"name": path.name, "bytes": path.stat().st_size, "hash": _digest(path), "approximate": approximate}
    tables.note(f"copy_{kind}", record)
    return Faiss.read(current, path, approximate)


def _file(tables: Tables, kind: Kind, stamp: str) -> Path:
    assert tables.folder is not None
    return tables.folder / f"{kind}s-{stamp}.faiss"


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # Windows keeps what a reader has mapped; the next writer removes it
        return


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return fingerprint(file)


def _build(tables: Tables, kind: Kind, approximate: bool) -> Any:
    """A faiss index of a kind in fp16: flat, or in clusters of which as many are searched as the recall takes.

    Deterministic for the same rows.
    """
    dimension = tables.existing_about().dimension
    if not approximate:
        codes = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        index = faiss.IndexIDMap(codes)
        _add(index, tables, kind)
        return index
    cursor = tables.execute("SELECT id FROM items WHERE kind = ? ORDER BY id", (kind,))
    ids = np.fromiter((row[0] for row in cursor), np.int64)
    rng = np.random.default_rng(0)
    clusters = 2 ** round(float(np.log2(2 * np.sqrt(len(ids)))))
    seen = np.sort(rng.choice(ids, min(len(ids), _TRAINING_ROWS * clusters), replace=False))
    index = faiss.index_factory(dimension, f"IVF{clusters},SQfp16", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 10  # faiss's own choice; more iterations hardly move the clusters
    index.train(tables.vectors_of(seen.tolist())[1])
    _add(index, tables, kind)
    chosen = rng.choice(seen, min(len(seen), _TRIAL_QUERIES), replace=False)
    order, vectors = tables.vectors_of(chosen.tolist())
    index.nprobe = _calibrated(index, trial_queries(vectors[np.searchsorted(order, chosen)], rng))
    return index


def _add(index: Any, tables: Tables, kind: Kind) -> None:
    for ids, vectors in blocks(tables, kind):
        index.add_with_ids(vectors, ids)


def _calibrated(index: Any, queries: Vectors) -> int:
    """How many clusters give the recall."""

    def nearest(clusters: int) -> Ids:
        found: Ids = index.search(queries, RECALL_K, params=faiss.SearchParametersIVF(nprobe=clusters))[1]
        return found

    truth = nearest(index.nlist)
    clusters = min(8, index.nlist)
    while clusters < index.nlist and recall(nearest(clusters), truth) < RECALL:
        clusters *= 2
    return int(min(clusters, index.nlist))


def trial_queries(vectors: Vectors, rng: np.random.Generator) -> Vectors:
    """Indexed vectors [N, D], each moved by half of the difference between two others, as queries [N, D].

    Queries of speech or text do not lie where images do, so images themselves would be too easy. So would noise of all
    dimensions be: images fill few of them, and a move out of these changes no order. The differences between images lie
    where images do.
    """
    return np.asarray(vectors + _MOVE * (rng.permutation(vectors) - rng.permutation(vectors)), np.float32)


def recall(found: Iterable[Ids], truth: Iterable[Ids]) -> float:
    """Mean share of the right ids that were found."""
    return float(np.mean([np.isin(right, got).mean() for got, right in zip(found, truth, strict=True)]))
