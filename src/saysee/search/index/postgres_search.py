"""How the rows of an index in PostgreSQL are searched: every one while they are few, else by pgvector's HNSW.

An HNSW index belongs to its table, so the server keeps it up to date with the rows. How far it is searched
(hnsw.ef_search) is measured when it is built, on queries that lie off the indexed vectors.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import psycopg
from pgvector import Vector

from saysee.media.formats import Kind
from saysee.search.index.filters import NUMBER_COLUMNS, NUMBER_PATTERN, Filter
from saysee.search.index.nearest import RECALL, RECALL_K, recall, trial_queries
from saysee.search.index.store import KINDS, SPARE, WHERE_SECONDS, About, Ids, Vectors, condition_error

Connection = psycopg.Connection[tuple[Any, ...]]

EXACT_ROWS = 20_000
"""Up to here every vector is compared. A choice, not measured."""
_CANDIDATES = (40, 80, 160, 320, 640, 1_000)
"""To be tried for hnsw.ef_search; pgvector takes at most the last."""
_TOO_MANY = _CANDIDATES[-1] + 1
_TRIAL_QUERIES = 64
"""The server compares each with every row."""
_GRAPH = "m = 48, ef_construction = 400"
"""Of 25,000 clustered vectors of 128, queries that lie off them by their own length had a recall@10 of 0.992 with 400
candidates; with pgvector's own 16 and 64 it was 0.958 with 1,000, with 32 and 200 it was 0.992 with 1,000."""
_BUILD_MEMORY = "1GB"
"""For the graph of 300,000 rows of 512 in fp16 and some; beyond it the build continues, slower."""
_PATIENCE_SECONDS = 0.2
_EXACT = "exact, by the server"


@dataclass(frozen=True, slots=True)
class _Condition:
    """SQL over the rows, and its named parameters."""

    sql: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Hnsw:
    """A kind's HNSW index.

    Attributes:
        cast: type that the vectors are indexed as, "halfvec" or "vector".
        rows: how many there were when ``ef`` was measured.
        ef: candidates that a search holds; 0 where even the most find too little, so that it is not used.
    """

    cast: str
    rows: int = 0
    ef: int = 0

    @property
    def method(self) -> str:
        """Of searching, for people."""
        precision = "fp16" if self.cast == "halfvec" else "fp32, as pgvector below 0.7 does not have halfvec"
        return f"approximate, HNSW with {self.ef} candidates, {precision}" if self.ef else _EXACT


def nearest(
    connection: Connection, queries: Vectors, kind: Kind, k: int, where: str | None, filters: Sequence[Filter]
) -> list[Ids]:
    """For each query of [Q, D] the ids of the candidates for the ``k`` nearest rows; see :meth:`Store.nearest`."""
    condition = _Condition("kind = %(kind)s", {"kind": kind})
    hnsw = _hnsw(connection, kind)
    ef = max(hnsw.ef, SPARE * k) if hnsw is not None and hnsw.ef else _TOO_MANY
    if where is not None or filters:
        conditions = [condition, *(_filter_condition(one, number) for number, one in enumerate(filters))]
        if where is not None:
            conditions.append(_Condition(where.replace("%", "%%") + "\n", {}))  # the line's end ends a comment in it
        condition = _Condition(
            " AND ".join(f"({one.sql})" for one in conditions),
            {name: value for one in conditions for name, value in one.values.items()},
        )
        count, ids = _chosen_ids(connection, condition, where)
        if count <= EXACT_ROWS:
            condition, ef = _Condition("id = ANY(%(ids)s::bigint[])", {"ids": ids}), _TOO_MANY
        elif hnsw is not None:  # of what HNSW finds, the condition leaves a share
            ef = round(ef * max(1.0, hnsw.rows / count))
    if hnsw is not None and ef < _TOO_MANY:
        return [_by_hnsw(connection, hnsw.cast, query, condition, SPARE * k, ef) for query in queries]
    return [_exactly(connection, query, condition, SPARE * k) for query in queries]


def _chosen_ids(connection: Connection, condition: _Condition, where: str | None) -> tuple[int, list[int]]:
    """For how many rows a condition holds, and the ids of up to ``EXACT_ROWS``; the user's SQL gets little time."""
    limit = "" if where is None else f"SET LOCAL statement_timeout = {round(1_000 * WHERE_SECONDS)}"
    sql = f"SELECT count(*), (array_agg(id))[:{EXACT_ROWS}] FROM items WHERE {condition.sql}"
    try:
        ((count, ids),) = _under(connection, limit, sql, condition.values)
    except (psycopg.Error, UnicodeError) as error:
        if where is None or type(error) is psycopg.OperationalError:  # the connection was lost
            raise
        reason = error.diag.message_primary if isinstance(error, psycopg.Error) else None
        if isinstance(error, psycopg.errors.QueryCanceled):
            reason = f"it takes over {WHERE_SECONDS:g} s"
        raise condition_error(where, reason or str(error)) from None
    return count, ids or []


def _filter_condition(one: Filter, number: int) -> _Condition:
    """A filter as SQL over the rows that gives what :meth:`Filter.matches` gives."""
    like = "%".join(re.sub(r"([\\%_])", r"\\\1", part) for part in one.parts)
    values = {"key": one.name, "like": like, "equal": one.equal, "low": one.low, "high": one.high}
    key, like, equal, low, high = (f"%({name}{number})s::text" for name in values)

    def number_sql(value: str) -> str:
        if one.parts:
            return f"({value})::text LIKE {like}"
        if one.equal is not None:
            return f"{value} = {equal}::numeric" if one.equal_is_number else "false"
        if not one.bounds_are_numbers:
            return "false"
        bounds = (f"{value} >= {low}::numeric" if one.low else "", f"{value} <= {high}::numeric" if one.high else "")
        return " AND ".join(filter(None, bounds))

    def text_sql(value: str) -> str:
        if one.parts:
            return f"{value} LIKE {like}"
        if one.equal is not None:
            return f"{value} = {equal}"
        before = f'left({value}, length({high})) COLLATE "C" <= {high}' if one.high else ""
        text = " AND ".join(filter(None, (f'{value} COLLATE "C" >= {low}' if one.low else "", before)))
        if not one.bounds_are_numbers:
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
    return _Condition(sql, {f"{name}{number}": value for name, value in values.items()})


def _exactly(connection: Connection, query: Vectors, condition: _Condition, k: int) -> Ids:
    """The ids of the nearest rows, by comparing with every one; of equal ones the earlier."""
    sql = f"SELECT id FROM items WHERE {condition.sql} ORDER BY vector <#> %(query)s, id LIMIT %(k)s"
    values = {**condition.values, "query": Vector(query), "k": k}
    # Index scans are what HNSW works by, and it must not be taken here.
    return np.array([row[0] for row in _under(connection, "SET LOCAL enable_indexscan = off", sql, values)], np.int64)


def _by_hnsw(connection: Connection, cast: str, query: Vectors, condition: _Condition, k: int, ef: int) -> Ids:
    """The ids of the nearest rows that HNSW finds."""
    indexed = f"{cast}({len(query)})"
    order = f"(vector::{indexed}) <#> (%(query)s::vector::{indexed})"
    sql = f"SELECT id FROM items WHERE {condition.sql} ORDER BY {order} LIMIT %(k)s"
    others = [f"SET LOCAL enable_{way} = off" for way in ("seqscan", "bitmapscan", "sort")]
    settings = "; ".join([f"SET LOCAL hnsw.ef_search = {int(ef)}", *others])
    values = {**condition.values, "query": Vector(query), "k": k}
    return np.array([row[0] for row in _under(connection, settings, sql, values)], np.int64)


def _under(connection: Connection, settings: str, sql: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What a query gives under settings of its own."""
    with connection.transaction(force_rollback=True):
        connection.execute(settings)
        return connection.execute(sql, values).fetchall()


def update_hnsw(connection: Connection, about: About, version: tuple[int, ...], lock: int) -> dict[Kind, str]:
    """Builds the HNSW indexes that are missing, drops those that are not needed, and returns how kinds are searched.

    The connection is outside a transaction: rows may be read and written meanwhile. The lock keeps two processes from
    building the same index.
    """
    cast = "halfvec" if version >= (0, 7) and about.dimension <= 4_000 else "vector"
    methods: dict[Kind, str] = {}
    with _locked(connection, lock):
        for kind in KINDS:
            rows, hnsw = _count(connection, kind), _hnsw(connection, kind)
            if rows <= EXACT_ROWS or (cast == "vector" and about.dimension > 2_000):  # too long for HNSW
                connection.execute(f"DROP INDEX IF EXISTS {_name(kind)}")
                hnsw = None
            elif hnsw is None or hnsw.cast != cast:
                _build(connection, about, kind, cast)
                hnsw = _measured(connection, kind, cast, rows)
            elif rows > 2 * hnsw.rows:
                hnsw = _measured(connection, kind, cast, rows)
            if rows:
                methods[kind] = _EXACT if hnsw is None else hnsw.method
    return methods


def hnsw_problem(connection: Connection, about: About, kind: Kind) -> str | None:
    """What is wrong with a kind's HNSW index; None where all is well or none is needed."""
    needed = _count(connection, kind) > EXACT_ROWS and about.dimension <= 2_000
    if not needed or _hnsw(connection, kind) is not None:
        return None
    return f"the HNSW index of its {kind}s is missing, or its build was interrupted"


def _name(kind: Kind) -> str:
    return f"items_{kind}_hnsw"


def _count(connection: Connection, kind: Kind) -> int:
    ((count,),) = connection.execute("SELECT count(*) FROM items WHERE kind = %s", (kind,)).fetchall()
    return int(count)


def _hnsw(connection: Connection, kind: Kind) -> _Hnsw | None:
    """The HNSW index of a kind; None where there is none, or its build was interrupted."""
    row = connection.execute(
        "SELECT pg_get_indexdef(indexrelid), (SELECT value FROM about WHERE name = %s) FROM pg_index "
        "WHERE indexrelid = to_regclass(%s) AND indisvalid",
        (f"hnsw_{kind}", _name(kind)),
    ).fetchone()
    if row is None or row[1] is None:
        return None
    hnsw = _Hnsw(**json.loads(row[1]))
    return hnsw if f"{hnsw.cast}_ip_ops" in row[0] else None


def _build(connection: Connection, about: About, kind: Kind, cast: str) -> None:
    connection.execute(f"DROP INDEX IF EXISTS {_name(kind)}")
    connection.execute(f"SET maintenance_work_mem = '{_BUILD_MEMORY}'")
    sql = (
        f"CREATE INDEX CONCURRENTLY {_name(kind)} ON items USING hnsw "
        f"((vector::{cast}({about.dimension})) {cast}_ip_ops) WITH ({_GRAPH}) WHERE kind = '{kind}'"
    )
    try:
        connection.execute(sql)
    except psycopg.errors.DiskFull:  # workers share the graph in /dev/shm, which containers keep small
        connection.execute(f"DROP INDEX IF EXISTS {_name(kind)}")
        connection.execute("SET max_parallel_maintenance_workers = 0")
        connection.execute(sql)


def _measured(connection: Connection, kind: Kind, cast: str, rows: int) -> _Hnsw:
    """Measures how many candidates give the recall on trial queries, and notes it with the index."""
    condition = _Condition("kind = %(kind)s", {"kind": kind})
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        sql = "SELECT vector FROM items WHERE kind = %s ORDER BY hashint8(id) LIMIT %s"
        vectors = [row[0].to_numpy() for row in connection.execute(sql, (kind, _TRIAL_QUERIES))]
        queries = trial_queries(np.array(vectors, np.float32), np.random.default_rng(0))
        truth = [_exactly(connection, query, condition, RECALL_K) for query in queries]
        enough = 0
        for ef in _CANDIDATES:
            found = [_by_hnsw(connection, cast, query, condition, SPARE * RECALL_K, ef) for query in queries]
            if recall(found, truth) >= RECALL:
                enough = ef
                break
        hnsw = _Hnsw(cast, rows, enough)
        connection.execute(
            "INSERT INTO about VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (f"hnsw_{kind}", json.dumps(asdict(hnsw))),
        )
    return hnsw


@contextmanager
def _locked(connection: Connection, lock: int) -> Iterator[None]:
    """Waits by asking again: a statement that waits would keep another's CREATE INDEX CONCURRENTLY from ending."""
    while not connection.execute("SELECT 1 WHERE pg_try_advisory_lock(%s)", (lock,)).fetchone():
        time.sleep(_PATIENCE_SECONDS)
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s)", (lock,))
