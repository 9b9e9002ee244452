"""Vectors made ready for searching: in memory while they are few, else in a faiss file beside the truth.

A file belongs to the truth whose stamp its name has; any other is stale and made anew. It is written under another
name, flushed to the disk, renamed, and read by mapping it into memory.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from saysee.errors import SaySeeError
from saysee.files import fingerprint, flush
from saysee.search.index.calibration import QUERIES, RECALL, K, recall, trial_queries
from saysee.search.index.sqlite_tables import blocks, count, ids_of, noted, stamp, vectors_of
from saysee.search.index.store import KINDS, About, Kind, Vectors

MEMORY_ROWS = 20_000
"""Up to here there is no file: so few vectors are read from the truth and compared in memory, where a query takes as
long as in a file of 100,000 (8 ms on two busy cores, 512 dimensions)."""
EXACT_ROWS = 300_000
"""Up to here every vector is compared; beyond, clusters are chosen first. At this size it takes 17 ms, little beside
the hundreds that encoding a spoken query takes, and misses nothing."""

_TRAINING_ROWS = 64
"""Vectors to each cluster that k-means looks at; faiss asks for 39 at least."""
_PRODUCTS_AT_ONCE = 1 << 24
"""Similarities held at once, 64 MB."""
_UNFINISHED = ".writing-"
FROM_MEMORY = "exact, from memory"


class Searcher(Protocol):
    """Vectors of one kind, to be searched.

    Attributes:
        stamp: of the truth that they were read from.
        method: how it searches, for people.
    """

    stamp: str
    method: str

    def search(self, queries: Vectors, k: int, allowed: NDArray[np.int64] | None) -> list[NDArray[np.int64]]:
        """For each query of [Q, D] the ids of the up to ``k`` best, among ``allowed`` only if that is given."""


@dataclass(slots=True)
class InMemory:
    """Every vector compared, in fp32."""

    stamp: str
    ids: NDArray[np.int64]
    vectors: Vectors
    method: str = FROM_MEMORY

    def search(self, queries: Vectors, k: int, allowed: NDArray[np.int64] | None) -> list[NDArray[np.int64]]:
        """As :class:`Searcher` says."""
        ids, vectors = self.ids, self.vectors
        if allowed is not None:
            rows = np.isin(ids, allowed)
            ids, vectors = ids[rows], vectors[rows]
        return best_rows(queries, ids, vectors, k)


@dataclass(slots=True)
class Faiss:
    """A faiss index whose ids are the rows' own."""

    stamp: str
    index: Any
    method: str

    def search(self, queries: Vectors, k: int, allowed: NDArray[np.int64] | None) -> list[NDArray[np.int64]]:
        """As :class:`Searcher` says."""
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


def best_rows(queries: Vectors, ids: NDArray[np.int64], vectors: Vectors, k: int) -> list[NDArray[np.int64]]:
    """For each query of [Q, D] the ids of the up to ``k`` nearest of ``vectors`` [N, D], whose ids are [N]."""
    found: list[NDArray[np.int64]] = []
    k = min(k, len(ids))
    at_once = max(1, _PRODUCTS_AT_ONCE // max(1, len(ids)))
    for start in range(0, len(queries), at_once):
        scores = queries[start : start + at_once] @ vectors.T
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k] if k else np.empty((len(scores), 0), np.int64)
        found += [ids[row] for row in best]
    return found


# ---------------------------------------------------------------------- files


def load(folder: Path, about: About, connection: sqlite3.Connection, kind: Kind) -> Searcher | None:
    """What searches a kind; None where its file is missing, stale or damaged."""
    now, rows = stamp(connection, kind), count(connection, kind)
    if rows <= MEMORY_ROWS:
        return in_memory(about, connection, kind)
    path = folder / _name(kind, now)
    record = noted(connection, f"copy_{kind}")
    try:
        if not record or record["name"] != path.name or path.stat().st_size != record["bytes"]:
            return None
        index = faiss.read_index(os.fspath(path), _mapping(record["approximate"]))
    except (OSError, RuntimeError):  # removed by a writer just now, or of a faiss that this one cannot read
        return None
    return Faiss(now, index, _method(index)) if (index.ntotal, index.d) == (rows, about.dimension) else None


def in_memory(about: About, connection: sqlite3.Connection, kind: Kind) -> InMemory:
    """All vectors of a kind, read from the truth."""
    ids = ids_of(connection, kind)
    vectors = np.empty((len(ids), about.dimension), np.float32)
    start = 0
    for _, block in blocks(connection, about, kind):
        vectors[start : start + len(block)] = block
        start += len(block)
    return InMemory(stamp(connection, kind), ids, vectors)


def write_all(
    folder: Path, connection: sqlite3.Connection, about: About, note: Callable[[str, Any], None]
) -> dict[Kind, str]:
    """Brings the files up to date and removes stale ones.

    Args:
        folder: of the index.
        connection: of its one writer.
        about: of the index.
        note: keeps a value by name in the truth.

    Returns:
        how each kind that has rows is searched.

    Raises:
        SaySeeError: a file cannot be written.
    """
    methods: dict[Kind, str] = {}
    wanted = set()
    for kind in KINDS:
        rows = count(connection, kind)
        if rows > MEMORY_ROWS:
            found = load(folder, about, connection, kind) or _write(folder, connection, about, kind, note)
            methods[kind] = found.method
            wanted.add(_name(kind, found.stamp))
        elif rows:
            methods[kind] = FROM_MEMORY
    for path in [*folder.glob("*.faiss"), *folder.glob(f"{_UNFINISHED}*")]:
        if path.name not in wanted:
            _remove(path)
    return methods


def damage(folder: Path, connection: sqlite3.Connection, kind: Kind) -> str | None:
    """What is wrong with a kind's file, read to its last byte; None where all is well or no file is needed."""
    if count(connection, kind) <= MEMORY_ROWS:
        return None
    path, record = folder / _name(kind, stamp(connection, kind)), noted(connection, f"copy_{kind}")
    if not path.is_file() or not record or record["name"] != path.name:
        return f"the fast copy of its {kind}s is missing or stale"
    return None if _digest(path) == record["hash"] else f"the fast copy of its {kind}s ({path.name}) is damaged"


def _write(
    folder: Path, connection: sqlite3.Connection, about: About, kind: Kind, note: Callable[[str, Any], None]
) -> Faiss:
    now = stamp(connection, kind)
    index = build(connection, about, kind, approximate=count(connection, kind) > EXACT_ROWS)
    path = folder / _name(kind, now)
    scratch = folder / f"{_UNFINISHED}{path.name}"
    try:
        faiss.write_index(index, os.fspath(scratch))
        flush(scratch)
        scratch.replace(path)
        flush(folder)
    except RuntimeError:  # how faiss tells a full disk
        raise SaySeeError(
            f"{folder}: no room for the fast copy (rows and vectors are safe); make room and run "
            f"'saysee index --compact {folder}'"
        ) from None
    finally:
        _remove(scratch)
    approximate = isinstance(index, faiss.IndexIVF)
    record = {"name": path.name, "bytes": path.stat().st_size, "hash": _digest(path), "approximate": approximate}
    note(f"copy_{kind}", record)
    return Faiss(now, faiss.read_index(os.fspath(path), _mapping(approximate)), _method(index))


def _name(kind: Kind, of: str) -> str:
    return f"{kind}s-{of}.faiss"


def _mapping(approximate: bool) -> int:
    """The flag by which faiss maps a file: it has one for inverted lists and one for flat codes."""
    return int(faiss.IO_FLAG_MMAP if approximate else faiss.IO_FLAG_MMAP_IFC)


def _method(index: Any) -> str:
    if isinstance(index, faiss.IndexIVF):
        return f"approximate, {index.nprobe} of {index.nlist} clusters, fp16"
    return "exact, fp16"


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # Windows keeps what a reader has mapped; the next writer removes it
        return


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return fingerprint(file)


# ---------------------------------------------------------------------- building


def build(connection: sqlite3.Connection, about: About, kind: Kind, approximate: bool) -> Any:
    """A faiss index of a kind: fp16, flat, or in clusters of which as many are searched as a recall@10 of 0.995 takes.

    Deterministic for the same rows.
    """
    if not approximate:
        codes = faiss.IndexScalarQuantizer(about.dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        index = faiss.IndexIDMap(codes)
        _add(index, connection, about, kind)
        return index
    ids = ids_of(connection, kind)
    rng = np.random.default_rng(0)
    clusters = 2 ** round(float(np.log2(2 * np.sqrt(len(ids)))))
    seen = np.sort(rng.choice(ids, min(len(ids), _TRAINING_ROWS * clusters), replace=False))
    index = faiss.index_factory(about.dimension, f"IVF{clusters},SQfp16", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 10  # faiss's own choice; more iterations hardly move the clusters
    index.train(vectors_of(connection, about, seen.tolist()))
    _add(index, connection, about, kind)
    chosen = rng.choice(seen, min(len(seen), QUERIES), replace=False)
    index.nprobe = _calibrated(index, trial_queries(vectors_of(connection, about, chosen.tolist()), rng))
    return index


def _add(index: Any, connection: sqlite3.Connection, about: About, kind: Kind) -> None:
    for ids, vectors in blocks(connection, about, kind):
        index.add_with_ids(vectors, ids)


def _calibrated(index: Any, queries: Vectors) -> int:
    """How many clusters give the recall."""

    def nearest(clusters: int) -> NDArray[np.int64]:
        found: NDArray[np.int64] = index.search(queries, K, params=faiss.SearchParametersIVF(nprobe=clusters))[1]
        return found

    truth = nearest(index.nlist)
    clusters = min(8, index.nlist)
    while clusters < index.nlist and recall(nearest(clusters), truth) < RECALL:
        clusters *= 2
    return int(min(clusters, index.nlist))
