"""How the rows of an index in LanceDB are searched: every one while they are few, else by an index of clusters (IVF).

The index has 8 bits of each value; the best candidates are compared by the vectors themselves, and so are rows that
came after it. How many clusters are searched is measured when it is built, on queries that lie off the indexed vectors.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING, Any, Final
from unicodedata import normalize

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lancedb.index import BTree, IvfSq

from saysee.media.formats import Kind
from saysee.search.index.exact import RECALL_K, best_rows, least_probes, trial_queries
from saysee.search.index.filters import NUMBER_COLUMNS, TEXT_COLUMNS, Filter
from saysee.search.index.lance.arrow import one_line, to_json, to_texts
from saysee.search.index.ranking import Search
from saysee.search.index.store import ITEM_COLUMNS, WHERE_SECONDS, Ids, Vectors, condition_error

if TYPE_CHECKING:
    from saysee.search.index.lance.tables import LanceTables

EXACT_ROWS = 20_000  # up to here every vector is compared, as in the other stores
_DISTANCE: Final = "l2"  # of unit vectors it orders as the cosine does; clusters by "dot" took twice the probes
_TRIAL_QUERIES = 256
_NOTE_SECONDS = 60.0  # after which a reader asks again how many clusters to search
_REFINED = 4
"""Candidates for each row asked for. Of 50,000 vectors of 128 in 64 clusters, 8 of these gave a recall@10 of 0.968
without refinement and 0.998 with 5; product quantization to 16 bytes gave 0.89 with 5, and trained for minutes."""
_TRAINING_ROWS, _ROUNDS = 64, 10  # of k-means: vectors to each cluster, and iterations; as with faiss
_LOOKED_UP = ("id", "path", "hash")  # columns with a tree, from as many rows on
_PART = re.compile(r"\bmetadata\s*->>\s*('(?:[^']|'')*')")
"""A value of the metadata, as SQLite and PostgreSQL write it."""
_OUTSIDE = re.compile(r"'(?:[^']|'')*'|--[^\n]*")
"""The texts and comments of a condition."""
_EXACT = "exact, from memory"


@dataclass(frozen=True, slots=True)
class _Ivf:
    """A kind's index."""

    rows: int  # how many there were when it was built
    clusters: int
    probes: int  # clusters that are searched

    @property
    def method(self) -> str:
        """Of searching, for people."""
        return f"approximate, {self.probes} of {self.clusters} clusters, 8-bit, the best compared in fp32"


@dataclass(slots=True)
class Held:
    """What a store holds of a kind: of few rows everything."""

    version: int  # of the table
    rows: int
    end: float = math.inf  # when the note of the index is read again, by the monotonic clock
    ivf: _Ivf | None = None
    table: pa.Table | None = None
    ids: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    vectors: Vectors = field(default_factory=lambda: np.empty((0, 0), np.float32))


def searcher(tables: LanceTables, queries: Vectors, kind: Kind, where: str | None, filters: Sequence[Filter]) -> Search:
    """Gives for each query of [Q, D] the ids of a number of its nearest rows; see ``ranked``."""
    allowed = None
    if where is not None or filters:
        allowed, places = _chosen(tables, kind, where, filters)
        if len(allowed) <= EXACT_ROWS:
            return partial(best_rows, queries, *_at(tables, kind, "take_row_ids", places))
    held = _held(tables, kind)
    if held.table is not None:
        return partial(best_rows, queries, held.ids, held.vectors)
    rows, ivf = held.rows, held.ivf

    def search(depth: int) -> list[Ids]:
        # Of what the index finds, a filter leaves a share.
        count = depth if allowed is None else math.ceil(depth * rows / len(allowed))
        if ivf is not None:
            found = _near(tables, queries, kind, count, ivf)
            if allowed is not None:
                found = [ids[np.isin(ids, allowed)] for ids in found]
            if all(len(ids) >= depth for ids in found):
                return found
        return _exact(tables, queries, kind, depth, allowed)

    return search


def _held(tables: LanceTables, kind: Kind) -> Held:
    """What the store holds of a kind, which it reads again where the table has changed."""
    held, version = tables.store.held.get(kind), tables.version(kind)
    if held is None or held.version != version or time.monotonic() > held.end:
        held = Held(version, rows := tables.count(kind))
        if rows <= EXACT_ROWS:
            if rows == 0:
                tables.existing_about()
            held.table = tables.select(kind, (*ITEM_COLUMNS, "vector")).combine_chunks()
            held.ids, held.vectors = np.asarray(held.table["id"], np.int64), tables.vectors(held.table["vector"].chunks)
        else:
            held.ivf, held.end = _ivf(tables, kind), time.monotonic() + _NOTE_SECONDS
        tables.store.held[kind] = held
    return held


def _at(tables: LanceTables, kind: Kind, how: str, places: Ids) -> tuple[Ids, Vectors]:
    """Ids [N] and vectors [N, D] at places in a table, as its method ``how`` numbers them within a version."""
    if not len(places):
        return np.empty(0, np.int64), tables.vectors([])
    with tables.store.errors_in_one_line():
        found = getattr(tables.table(kind), how)(places.tolist()).select(["id", "vector"]).to_arrow()
    return np.asarray(found["id"], np.int64), tables.vectors(found["vector"].chunks)


def _near(tables: LanceTables, queries: Vectors, kind: Kind, count: int, ivf: _Ivf) -> list[Ids]:
    """For each query of [Q, D] the ids of the ``count`` rows nearest by the index; the tables keep these rows."""
    columns = [*ITEM_COLUMNS, "vector", "_distance"]
    with tables.store.errors_in_one_line():
        search = tables.table(kind).search(queries, vector_column_name="vector").distance_type(_DISTANCE)
        search = search.nprobes(ivf.probes).refine_factor(_REFINED).limit(count).select(columns)
        found = search.to_arrow()
    tables.keep(found.select(columns[:-1]))
    ids = np.asarray(found["id"], np.int64)
    if "query_index" not in found.column_names:
        return [ids]
    query = np.asarray(found["query_index"])
    return [ids[query == number] for number in range(len(queries))]


def _exact(tables: LanceTables, queries: Vectors, kind: Kind, k: int, allowed: Ids | None = None) -> list[Ids]:
    """See :func:`best_rows`; of all rows or those allowed, read in blocks."""
    ids, vectors = np.empty(0, np.int64), np.empty((0, queries.shape[1]), np.float32)
    for block_ids, block in tables.blocks(kind):
        chosen = slice(None) if allowed is None else np.isin(block_ids, allowed)
        ids, vectors = np.concatenate([ids, block_ids[chosen]]), np.concatenate([vectors, block[chosen]])
        best = np.isin(ids, np.concatenate(best_rows(queries, ids, vectors, k)))
        ids, vectors = ids[best], vectors[best]
    return best_rows(queries, ids, vectors, k)


def _chosen(tables: LanceTables, kind: Kind, where: str | None, filters: Sequence[Filter]) -> tuple[Ids, Ids]:
    """The ids [N] of the rows for which the condition and all filters hold, and their places in the table."""
    table, place = tables.table(kind), "_rowid"
    if table is None:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    columns = {"id"} | {one.name if one.is_column else "metadata" for one in filters}
    with tables.store.errors_in_one_line():
        if where is not None and not where.isascii():  # names compare in Unicode NFC, which Lance's SQL does not have
            where, table, place = normalize("NFC", where), _composed(table), "place"
        query = table.search().select([*columns, place] if place == "place" else [*columns]).with_row_id(True)
        if where is None:
            found = query.to_arrow()
        else:
            if ";" in _OUTSIDE.sub("", where):  # of what follows Lance's SQL takes no notice
                raise condition_error(where, "it has more than one statement")
            sql = _PART.sub(r"json_get_string(metadata, \1)", where)
            try:
                query = query.where(f"({sql}\n)")  # a line of its own ends a comment in it
                found = query.to_arrow(timeout=timedelta(seconds=WHERE_SECONDS))
            except Exception as error:
                reason = f"it takes over {WHERE_SECONDS:g} s" if "timeout" in str(error) else one_line(error)
                raise condition_error(where, reason) from None
    kept = np.ones(len(found), bool)
    for one in filters:
        values = to_texts(found["metadata"]) if not one.is_column else found[one.name]
        distinct = values.combine_chunks().dictionary_encode()  # many rows have the same
        if isinstance(distinct, pa.ChunkedArray):
            distinct = distinct.combine_chunks()
        matches = one.matches if one.is_column else one.matches_metadata
        fits = np.array(
            [*map(matches, distinct.dictionary.to_pylist()), False]
        )  # the last is for those without a value
        kept &= fits[np.asarray(pc.fill_null(distinct.indices, len(fits) - 1))]
    return np.asarray(found["id"], np.int64)[kept], np.asarray(found[place], np.int64)[kept]


def _composed(table: Any) -> Any:
    """A copy of a table in memory without vectors, its texts in Unicode NFC, with the column "place"."""
    found = table.search().select([*NUMBER_COLUMNS, *TEXT_COLUMNS, "metadata"]).with_row_id(True).to_arrow()
    columns = {name: found[name] for name in NUMBER_COLUMNS} | {"place": found["_rowid"]}
    for name in TEXT_COLUMNS:
        columns[name] = pc.utf8_normalize(found[name], "NFC")
    texts = pc.utf8_normalize(to_texts(found["metadata"]), "NFC")
    columns["metadata"] = to_json(texts)
    return lancedb.connect("memory://").create_table("items", pa.table(columns))


def make_ready(tables: LanceTables) -> dict[Kind, str]:
    """Merges small files, builds or extends the indexes, and returns how each kind that has rows is searched."""
    methods: dict[Kind, str] = {}
    tables.tidy("about")
    for kind, rows in tables.counts().items():
        if not rows:
            continue
        methods[kind] = _EXACT
        tables.tidy(kind)
        if rows > EXACT_ROWS:
            ivf = _ivf(tables, kind)
            if ivf is None or rows > 2 * ivf.rows or ivf_problem(tables, kind) is not None:
                ivf = _build(tables, kind, rows)
            methods[kind] = ivf.method
    return methods


def ivf_problem(tables: LanceTables, kind: Kind) -> str | None:
    """What is wrong with a kind's index; None where all is well or none is needed."""
    if tables.count(kind) <= EXACT_ROWS:
        return None
    with tables.store.errors_in_one_line():
        columns = {column for index in tables.table(kind).list_indices() for column in index.columns}
    there = "vector" in columns and _ivf(tables, kind) is not None
    return None if there else f"the index of its {kind}s is missing, or its build was interrupted"


def _ivf(tables: LanceTables, kind: Kind) -> _Ivf | None:
    noted = tables.noted(f"ivf_{kind}")
    return None if noted is None else _Ivf(**noted)


def _build(tables: LanceTables, kind: Kind, rows: int) -> _Ivf:
    """Builds the index, measures how many clusters give the recall on trial queries, and notes it."""
    clusters = 2 ** round(math.log2(math.sqrt(rows)))
    clustered = IvfSq(_DISTANCE, clusters, max_iterations=_ROUNDS, sample_rate=_TRAINING_ROWS)
    for column, config in (("vector", clustered), *((name, BTree()) for name in _LOOKED_UP)):
        tables.commit(kind, methodcaller("create_index", column, config=config, replace=True))
    rng = np.random.default_rng(0)
    sample = _at(tables, kind, "take_offsets", rng.choice(rows, _TRIAL_QUERIES, replace=False))[1]
    queries = trial_queries(sample, rng)

    def found(probes: int) -> list[Ids]:
        return _near(tables, queries, kind, 2 * RECALL_K, _Ivf(rows, clusters, probes))

    ivf = _Ivf(rows, clusters, least_probes(clusters, found, _exact(tables, queries, kind, RECALL_K)))
    tables.note(f"ivf_{kind}", asdict(ivf))
    return ivf
