"""How the rows of an index in PostgreSQL are searched: every one while they are few, else by pgvector's HNSW.

An HNSW index belongs to its table, so the server keeps it up to date with the rows. How far it is searched
(hnsw.ef_search) is measured when it is built, on queries that lie off the indexed vectors.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg
from pgvector import Vector

from saysee.media.formats import Kind
from saysee.search.index.exact import RECALL, RECALL_K, recall, trial_queries
from saysee.search.index.filters import NUMBER_COLUMNS, NUMBER_PATTERN, Filter, compose_condition
from saysee.search.index.ranking import Search
from saysee.search.index.store import WHERE_SECONDS, Ids, Vectors, condition_error

if TYPE_CHECKING:
    from saysee.search.index.sql.postgres import PostgresTables

EXACT_ROWS = 20_000  # up to here every vector is compared. A choice, not measured.
_CANDIDATES = (40, 80, 160, 320, 640, 1_000)  # to be tried for hnsw.ef_search; pgvector takes at most the last
_TRIAL_QUERIES = 64  # the server compares each with every row
_GRAPH = "m = 48, ef_construction = 400"
"""Of 25,000 clustered vectors of 128, queries that lie off them by their own length had a recall@10 of 0.992 with 400
candidates; with pgvector's own 16 and 64 it was 0.958 with 1,000, with 32 and 200 it was 0.992 with 1,000."""
_BUILD_MEMORY = "1GB"  # for the graph of 300,000 rows of 512 in fp16 and some; beyond it the build continues, slower
_MOST_DIMENSIONS = {"halfvec": 4_000, "vector": 2_000}  # of an HNSW index over these types
_PATIENCE_SECONDS = 0.2
_EXACT = "exact, by the server"

Condition = tuple[str, dict[str, Any]]  # SQL over the rows, and its named parameters


@dataclass(frozen=True, slots=True)
class _Hnsw:
    """A kind's HNSW index."""

    cast: str  # type that the vectors are indexed as, "halfvec" or "vector"
    rows: int = 0  # how many there were when ``ef`` was measured
    ef: int = 0  # candidates that a search holds; 0 where even the most find too little, so that it is not used

    @property
    def method(self) -> str:
        """Of searching, for people."""
        precision = "fp16" if self.cast == "halfvec" else "fp32, as pgvector below 0.7 does not have halfvec"
        return f"approximate, HNSW with {self.ef} candidates, {precision}" if self.ef else _EXACT


def searcher(
    tables: PostgresTables, queries: Vectors, kind: Kind, where: str | None, filters: Sequence[Filter]
) -> Search:
    """Gives for each query of [Q, D] the ids of a number of its nearest rows; see ``ranked``."""
    condition: Condition = ("kind = %(kind)s", {"kind": kind})
    hnsw, share = _hnsw(tables, kind), 1.0
    if where is not None or filters:
        conditions = [condition, *(_filter_condition(one, number) for number, one in enumerate(filters))]
        if where is not None:
            sql, table = compose_condition(where, "normalize({}, NFC)", "normalize({}::text, NFC)::jsonb")
            sql = sql.replace("%", "%%") + "\n"  # the line's end ends a comment in it
            conditions.append((sql if table == "items" else f"id IN (SELECT id FROM {table} WHERE ({sql}))", {}))
        values = {name: value for _, values in conditions for name, value in values.items()}
        condition = " AND ".join(f"({sql})" for sql, _ in conditions), values
        count, ids = _chosen_ids(tables, condition, where)
        if count <= EXACT_ROWS:
            condition, hnsw = ("id = ANY(%(ids)s::bigint[])", {"ids": ids}), None
        elif hnsw is not None:  # of what HNSW finds, the condition leaves a share
            share = max(1.0, hnsw.rows / count)

    def search(depth: int) -> list[Ids]:
        ef = round(max(hnsw.ef, depth) * share) if hnsw is not None and hnsw.ef else 0
        used = replace(hnsw, ef=ef) if hnsw is not None and 0 < ef <= _CANDIDATES[-1] else None
        found = [_nearest_ids(tables, query, condition, depth, used) for query in queries]
        if used is not None:  # it may give fewer than there are
            for place, query in enumerate(queries):
                if len(found[place]) < depth:
                    found[place] = _nearest_ids(tables, query, condition, depth, None)
        return found

    return search


def _chosen_ids(tables: PostgresTables, condition: Condition, where: str | None) -> tuple[int, list[int]]:
    """For how many rows a condition holds, and the ids of up to ``EXACT_ROWS``; the user's SQL gets little time."""
    limit = [] if where is None else [f"statement_timeout = {round(1_000 * WHERE_SECONDS)}"]
    sql = f"SELECT count(*), (array_agg(id))[:{EXACT_ROWS}] FROM items WHERE {condition[0]}"
    try:
        ((count, ids),) = _under(tables, limit, sql, condition[1])
    except (psycopg.Error, UnicodeError) as error:
        if where is None or type(error) is psycopg.OperationalError:  # the connection was lost
            raise
        reason = error.diag.message_primary if isinstance(error, psycopg.Error) else None
        if isinstance(error, psycopg.errors.QueryCanceled):
            reason = f"it takes over {WHERE_SECONDS:g} s"
        raise condition_error(where, reason or str(error)) from None
    return count, ids or []


def _filter_condition(one: Filter, number: int) -> Condition:
    """A filter as SQL over the rows that gives what :meth:`Filter.matches` gives."""
    like = "%".join(re.sub(r"([\\%_])", r"\\\1", part) for part in one.parts)
    values = {"key": one.name, "like": like, "equal": one.equal, "low": one.low, "high": one.high}
    key, like, equal, low, high = (f"%({name}{number})s::text" for name in values)

    def number_sql(value: str) -> str:
        if one.parts:
            return f"({value})::text LIKE {like}"
        if not one.is_numeric:
            return "false"
        bounds = ((one.equal, "=", equal), (one.low, ">=", low), (one.high, "<=", high))
        return " AND ".join(f"{value} {sign} {bound}::numeric" for text, sign, bound in bounds if text is not None)

    def text_sql(value: str) -> str:
        if one.parts:
            return f"{value} LIKE {like}"
        if one.equal is not None:
            return f"{value} = {equal}"
        above = f'{value} COLLATE "C" >= {low}' if one.low else "true"
        text = f'{above} AND left({value}, length({high})) COLLATE "C" <= {high}' if one.high else above
        if not one.is_numeric:
            return text
        return f"CASE WHEN {value} ~ '^{NUMBER_PATTERN}$' THEN {number_sql(f'({value})::numeric')} ELSE {text} END"

    if one.name in NUMBER_COLUMNS:
        sql = number_sql(one.name)
    elif one.is_column:
        sql = text_sql(f"normalize({one.name}, NFC)")
    else:
        as_number, as_text = number_sql("(value #>> '{}')::numeric"), text_sql("normalize(value #>> '{}', NFC)")
        sql = (
            f"EXISTS (SELECT 1 FROM jsonb_each(metadata) AS pair (key, value) WHERE normalize(key, NFC) = {key} AND "
            f"CASE WHEN jsonb_typeof(value) = 'number' THEN {as_number} "
            f"WHEN jsonb_typeof(value) IN ('string', 'boolean') THEN {as_text} ELSE false END)"
        )
    return sql, {f"{name}{number}": value for name, value in values.items()}


def _nearest_ids(tables: PostgresTables, query: Vectors, condition: Condition, k: int, hnsw: _Hnsw | None) -> Ids:
    """The ids of the nearest rows that HNSW finds; without it, of all rows, and of equal ones the earlier."""
    order, settings = "vector <#> %(query)s, id", ["enable_indexscan = off"]  # by which the server would take HNSW
    if hnsw is not None:
        indexed = f"{hnsw.cast}({len(query)})"
        order = f"(vector::{indexed}) <#> (%(query)s::vector::{indexed})"
        others = [f"enable_{way} = off" for way in ("seqscan", "bitmapscan", "sort")]
        settings = [f"hnsw.ef_search = {hnsw.ef}", *others]
    sql = f"SELECT id FROM items WHERE {condition[0]} ORDER BY {order} LIMIT %(k)s"
    rows = _under(tables, settings, sql, condition[1] | {"query": Vector(query), "k": k})
    return np.array([row[0] for row in rows], np.int64)


def _under(tables: PostgresTables, settings: list[str], sql: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What a query gives under settings of its own."""
    with tables.connection.transaction(force_rollback=True):
        tables.connection.execute("; ".join(f"SET LOCAL {setting}" for setting in settings))
        return tables.connection.execute(sql, values).fetchall()


def update_hnsw(tables: PostgresTables) -> dict[Kind, str]:
    """Builds the HNSW indexes that are missing, drops those that are not needed, and returns how kinds are searched.

    It is outside a transaction: rows may be read and written meanwhile. A lock keeps others from building the same.
    """
    methods: dict[Kind, str] = {}
    with _locked(tables):
        for kind, rows in tables.counts().items():
            hnsw, cast = _hnsw(tables, kind), _needed(tables, kind)
            if cast is None:
                tables.execute(f"DROP INDEX IF EXISTS {_qualified(tables, kind)}")
                hnsw = None
            elif hnsw is None or hnsw.cast != cast:
                _build(tables, kind, cast)
                hnsw = _measured(tables, kind, cast, rows)
            elif rows > 2 * hnsw.rows:
                hnsw = _measured(tables, kind, cast, rows)
            if rows:
                methods[kind] = _EXACT if hnsw is None else hnsw.method
    return methods


def hnsw_problem(tables: PostgresTables, kind: Kind) -> str | None:
    """What is wrong with a kind's HNSW index; None where all is well or none is needed."""
    if _needed(tables, kind) is None or _hnsw(tables, kind) is not None:
        return None
    return f"the HNSW index of its {kind}s is missing, or its build was interrupted"


def _name(kind: Kind) -> str:
    return f"items_{kind}_hnsw"


def _qualified(tables: PostgresTables, kind: Kind) -> str:
    """The name within its schema: the search path goes on to pgvector's, which may hold another index."""
    return f'"{tables.store.schema}".{_name(kind)}'


def _needed(tables: PostgresTables, kind: Kind) -> str | None:
    """The type that vectors are to be indexed as; None where they are few, or too long for HNSW."""
    cast = "halfvec" if (tables.store.find_vectors(tables.connection) or ()) >= (0, 7) else "vector"
    fits = tables.existing_about().dimension <= _MOST_DIMENSIONS[cast]
    return cast if fits and tables.counts()[kind] > EXACT_ROWS else None


def _hnsw(tables: PostgresTables, kind: Kind) -> _Hnsw | None:
    """The HNSW index of a kind; None where there is none, or its build was interrupted."""
    sql = "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indexrelid = to_regclass(?) AND indisvalid"
    row, noted = tables.execute(sql, (_qualified(tables, kind),)).fetchone(), tables.noted(f"hnsw_{kind}")
    if row is None or noted is None:
        return None
    hnsw = _Hnsw(**noted)
    return hnsw if f"{hnsw.cast}_ip_ops" in row[0] else None


def _build(tables: PostgresTables, kind: Kind, cast: str) -> None:
    tables.execute(f"DROP INDEX IF EXISTS {_qualified(tables, kind)}")
    tables.execute(f"SET maintenance_work_mem = '{_BUILD_MEMORY}'")
    sql = (
        f"CREATE INDEX CONCURRENTLY {_name(kind)} ON items USING hnsw "
        f"((vector::{cast}({tables.existing_about().dimension})) {cast}_ip_ops) WITH ({_GRAPH}) WHERE kind = '{kind}'"
    )
    try:
        tables.execute(sql)
    except psycopg.errors.DiskFull:  # workers share the graph in /dev/shm, which containers keep small
        tables.execute(f"DROP INDEX IF EXISTS {_qualified(tables, kind)}")
        tables.execute("SET max_parallel_maintenance_workers = 0")
        tables.execute(sql)


def _measured(tables: PostgresTables, kind: Kind, cast: str, rows: int) -> _Hnsw:
    """Measures how many candidates give the recall on trial queries, and notes it with the index."""
    condition: Condition = ("kind = %(kind)s", {"kind": kind})
    with tables.connection.transaction():
        tables.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        sql = "SELECT vector FROM items WHERE kind = ? ORDER BY hashint8(id) LIMIT ?"
        sample = [row[0] for row in tables.execute(sql, (kind, _TRIAL_QUERIES))]
        queries = trial_queries(tables.to_vectors(sample), np.random.default_rng(0))
        truth = [_nearest_ids(tables, query, condition, RECALL_K, None) for query in queries]
        for ef in _CANDIDATES:
            hnsw = _Hnsw(cast, rows, ef)
            found = [_nearest_ids(tables, query, condition, 2 * RECALL_K, hnsw) for query in queries]
            if recall(found, truth) >= RECALL:
                break
        else:
            hnsw = _Hnsw(cast, rows, ef=0)
        tables.note(f"hnsw_{kind}", asdict(hnsw))
    return hnsw


@contextmanager
def _locked(tables: PostgresTables) -> Iterator[None]:
    """Waits by asking again: a statement that waits would keep another's CREATE INDEX CONCURRENTLY from ending."""
    lock = (tables.lock("fast copy"),)
    while not tables.execute("SELECT 1 WHERE pg_try_advisory_lock(?)", lock).fetchone():
        time.sleep(_PATIENCE_SECONDS)
    try:
        yield
    finally:
        if not tables.connection.closed:
            tables.execute("SELECT pg_advisory_unlock(?)", lock)
