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

from saysee.search.index.filters import NUMBER_COLUMNS, NUMBER_PATTERN, Filter
from saysee.search.index.nearest import RECALL, RECALL_K, recall, trial_queries
from saysee.search.index.postgres_connection import Address, Connection, find_vectors
from saysee.search.index.store import KINDS, SPARE, WHERE_SECONDS, About, Ids, Kind, Vectors, condition_error

EXACT_ROWS = 20_000
"""Up to here every vector is compared. A choice, not measured."""
_LEAST_EF, _MOST_EF = 40, 1_000
"""pgvector takes at most the second."""
_TRIAL_QUERIES = 64
"""The server compares each with every row."""
_GRAPH = "m = 48, ef_construction = 400"
"""Of 25,000 clustered vectors of 128, queries that lie off them by their own length had a recall@10 of 0.992 with 400
candidates; with pgvector's own 16 and 64 it was 0.958 with 1,000, with 32 and 200 it was 0.992 with 1,000."""
_BUILD_MEMORY = "1GB"
"""For the graph of 300,000 rows of 512 in fp16 and some; beyond it the build continues, slower."""
_PATIENCE_SECONDS = 0.2

Condition = tuple[str, tuple[Any, ...]]
"""SQL over the rows, and its parameters."""


def nearest(
    connection: Connection,
    about: About,
    queries: Vectors,
    kind: Kind,
    k: int,
    where: str | None = None,
    filters: Sequence[Filter] = (),
) -> list[Ids]:
    """For each unit vector of [Q, D] the ids of the candidates for the ``k`` nearest rows of a kind.

    Args:
        connection: within a transaction that cannot write.
        about: of the index.
        queries: unit vectors.
        kind: of the rows.
        k: most rows for each query.
        where: SQL condition, or None.
        filters: that must hold.

    Raises:
        SaySeeError: the server refuses the condition, or it takes too long.
    """
    condition: Condition = ("kind = %s", (kind,))
    copy = _fast_copy(connection, kind)
    wanted = SPARE * k
    ef = max(copy.ef, wanted) if copy is not None and copy.ef else _MOST_EF + 1
    if where is not None or filters:
        conditions = [condition, *map(_filter_condition, filters)]
        if where is not None:
            conditions.append((where.replace("%", "%%") + "\n", ()))  # a line of its own ends a comment in it
        sql = " AND ".join(f"({part})" for part, _ in conditions)
        condition = sql, tuple(value for _, values in conditions for value in values)
        count, ids = _chosen_ids(connection, condition, where)
        if count <= EXACT_ROWS:
            condition, ef = ("id = ANY(%s::bigint[])", (ids,)), _MOST_EF + 1
        elif copy is not None:  # of what HNSW finds, the condition leaves a share
            ef = round(ef * max(1.0, copy.rows / count))
    if copy is not None and ef <= _MOST_EF:
        return [_by_hnsw(connection, about, copy.cast, query, condition, wanted, ef) for query in queries]
    return [_exactly(connection, query, condition, wanted) for query in queries]


def _chosen_ids(connection: Connection, condition: Condition, where: str | None) -> tuple[int, list[int]]:
    """For how many rows a condition holds, and the ids of up to ``EXACT_ROWS``; the user's SQL gets little time."""
    limit = "" if where is None else f"SET LOCAL statement_timeout = {round(1_000 * WHERE_SECONDS)}"
    sql = f"SELECT count(*), (array_agg(id))[:{EXACT_ROWS}] FROM items WHERE {condition[0]}"
    try:
        ((count, ids),) = _under(connection, limit, sql, condition[1])
    except (psycopg.Error, UnicodeError) as error:
        if where is None or type(error) is psycopg.OperationalError:  # the connection was lost
            raise
        reason = error.diag.message_primary if isinstance(error, psycopg.Error) else None
        if isinstance(error, psycopg.errors.QueryCanceled):
            reason = f"it takes over {WHERE_SECONDS:g} s"
        raise condition_error(where, reason or str(error)) from None
    return count, ids or []


def _filter_condition(one: Filter) -> Condition:
    """A filter as SQL over the rows that gives what :meth:`Filter.matches` gives."""
    if one.name in NUMBER_COLUMNS:
        return _number_condition(one, one.name)
    if one.is_column:
        return _text_condition(one, f"normalize({one.name}, NFC)")
    number, number_values = _number_condition(one, "(value #>> '{}')::numeric")
    text, text_values = _text_condition(one, "normalize(value #>> '{}', NFC)")
    sql = (
        "EXISTS (SELECT 1 FROM jsonb_each(metadata) AS pair (key, value) WHERE normalize(key, NFC) = %s AND "
        f"CASE WHEN jsonb_typeof(value) = 'number' THEN {number} "
        f"WHEN jsonb_typeof(value) IN ('string', 'boolean') THEN {text} ELSE false END)"
    )
    return sql, (one.name, *number_values, *text_values)


def _number_condition(one: Filter, value: str) -> Condition:
    if one.parts:
        return f"({value})::text LIKE %s", (_like_pattern(one),)
    if one.equal is not None:
        return (f"{value} = %s::numeric", (one.equal,)) if one.equal_is_number else ("false", ())
    if not one.bounds_are_numbers:
        return "false", ()
    bounds = [(sign, bound) for sign, bound in ((">=", one.low), ("<=", one.high)) if bound is not None]
    return " AND ".join(f"{value} {sign} %s::numeric" for sign, _ in bounds), tuple(bound for _, bound in bounds)


def _text_condition(one: Filter, value: str) -> Condition:
    if one.parts:
        return f"{value} LIKE %s", (_like_pattern(one),)
    if one.equal is not None:
        return f"{value} = %s", (one.equal,)
    parts: list[Condition] = []
    if one.low is not None:
        parts.append((f'{value} COLLATE "C" >= %s', (one.low,)))
    if one.high is not None:
        parts.append((f'left({value}, %s) COLLATE "C" <= %s', (len(one.high), one.high)))
    text, values = " AND ".join(sql for sql, _ in parts), tuple(each for _, some in parts for each in some)
    if not one.bounds_are_numbers:
        return text, values
    number, number_values = _number_condition(one, f"({value})::numeric")
    return f"CASE WHEN {value} ~ '^{NUMBER_PATTERN}$' THEN {number} ELSE {text} END", (*number_values, *values)


def _like_pattern(one: Filter) -> str:
    return "%".join(re.sub(r"([\\%_])", r"\\\1", part) for part in one.parts)


def _exactly(connection: Connection, query: Vectors, condition: Condition, k: int) -> Ids:
    """The ids of the nearest rows, by comparing with every one; of equal ones the earlier."""
    sql = f"SELECT id FROM items WHERE {condition[0]} ORDER BY vector <#> %s, id LIMIT %s"
    # Index scans are what HNSW works by, and it must not be taken here.
    rows = _under(connection, "SET LOCAL enable_indexscan = off", sql, (*condition[1], Vector(query), k))
    return np.array([row[0] for row in rows], np.int64)


def _by_hnsw(
    connection: Connection, about: About, cast: str, query: Vectors, condition: Condition, k: int, ef: int
) -> Ids:
    indexed = f"{cast}({about.dimension})"
    sql = f"SELECT id FROM items WHERE {condition[0]} ORDER BY (vector::{indexed}) <#> (%s::vector::{indexed}) LIMIT %s"
    others = [f"SET LOCAL enable_{way} = off" for way in ("seqscan", "bitmapscan", "sort")]
    settings = "; ".join([f"SET LOCAL hnsw.ef_search = {int(ef)}", *others])
    rows = _under(connection, settings, sql, (*condition[1], Vector(query), k))
    return np.array([row[0] for row in rows], np.int64)


def _under(connection: Connection, settings: str, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """What a query gives under settings of its own."""
    with connection.transaction(force_rollback=True):
        connection.execute(settings)
        return connection.execute(sql, values).fetchall()


@dataclass(frozen=True, slots=True)
class _FastCopy:
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
        if not self.ef:
            return _EXACT
        precision = "fp16" if self.cast == "halfvec" else "fp32, as pgvector below 0.7 does not have halfvec"
        return f"approximate, HNSW with {self.ef} candidates, {precision}"


_EXACT = "exact, by the server"


def make_fast(connection: Connection, address: Address, about: About, lock: int) -> dict[Kind, str]:
    """Builds the HNSW indexes that are needed and missing, and drops those that are not needed.

    Args:
        connection: outside a transaction: rows may be read and written while the server builds an index.
        address: of the database.
        about: of the index.
        lock: held meanwhile, so that two processes do not build the same.

    Returns:
        how each kind that has rows is searched.
    """
    cast = _cast_for(find_vectors(connection, address) or (), about)
    methods: dict[Kind, str] = {}
    with _locked(connection, lock):
        for kind in KINDS:
            rows, copy = _count(connection, kind), _fast_copy(connection, kind)
            if rows <= EXACT_ROWS or cast is None:
                connection.execute(f"DROP INDEX IF EXISTS {_name(kind)}")
                copy = None
            elif copy is None or copy.cast != cast:
                _build(connection, about, kind, cast)
                copy = _measured(connection, about, kind, cast, rows)
            elif rows > 2 * copy.rows:
                copy = _measured(connection, about, kind, cast, rows)
            if rows:
                methods[kind] = _EXACT if copy is None else copy.method
    return methods


def damaged_copy(connection: Connection, about: About, kind: Kind) -> str | None:
    """What is wrong with a kind's HNSW index; None where all is well or none is needed."""
    needed = _count(connection, kind) > EXACT_ROWS and about.dimension <= 2_000
    if not needed or _fast_copy(connection, kind) is not None:
        return None
    return f"the HNSW index of its {kind}s is missing, or its build was interrupted"


def _name(kind: Kind) -> str:
    return f"items_{kind}_hnsw"


def _count(connection: Connection, kind: Kind) -> int:
    ((count,),) = connection.execute("SELECT count(*) FROM items WHERE kind = %s", (kind,)).fetchall()
    return int(count)


def _fast_copy(connection: Connection, kind: Kind) -> _FastCopy | None:
    """The HNSW index of a kind; None where there is none, or its build was interrupted."""
    row = connection.execute(
        "SELECT pg_get_indexdef(indexrelid), (SELECT value FROM about WHERE name = %s) FROM pg_index "
        "WHERE indexrelid = to_regclass(%s) AND indisvalid",
        (f"hnsw_{kind}", _name(kind)),
    ).fetchone()
    if row is None or row[1] is None:
        return None
    copy = _FastCopy(**json.loads(row[1]))
    return copy if f"{copy.cast}_ip_ops" in row[0] else None


def _cast_for(version: tuple[int, ...], about: About) -> str | None:
    """The type to be indexed by this version of pgvector; None for vectors that are too long for any."""
    if version >= (0, 7) and about.dimension <= 4_000:
        return "halfvec"
    return "vector" if about.dimension <= 2_000 else None


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


def _measured(connection: Connection, about: About, kind: Kind, cast: str, rows: int) -> _FastCopy:
    """Notes how many candidates give the recall on trial queries."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        copy = _FastCopy(cast, rows, _calibrated(connection, about, kind, cast))
        connection.execute(
            "INSERT INTO about VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (f"hnsw_{kind}", json.dumps(asdict(copy))),
        )
    return copy


def _calibrated(connection: Connection, about: About, kind: Kind, cast: str) -> int:
    """How many candidates give the recall; 0 where even the most do not."""
    condition: Condition = ("kind = %s", (kind,))
    sql = "SELECT vector FROM items WHERE kind = %s ORDER BY hashint8(id) LIMIT %s"
    vectors = [row[0].to_numpy() for row in connection.execute(sql, (kind, _TRIAL_QUERIES))]
    queries = trial_queries(np.array(vectors, np.float32), np.random.default_rng(0))
    truth = [_exactly(connection, query, condition, RECALL_K) for query in queries]
    ef = _LEAST_EF
    while ef < 2 * _MOST_EF:
        ef = min(ef, _MOST_EF)
        found = [_by_hnsw(connection, about, cast, query, condition, SPARE * RECALL_K, ef) for query in queries]
        if recall(found, truth) >= RECALL:
            return ef
        ef *= 2
    return 0


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
