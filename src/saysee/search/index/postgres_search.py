"""How the rows of an index in PostgreSQL are searched: every one while they are few, else by pgvector's HNSW.

An HNSW index belongs to its table, so the server keeps it up with the rows. How far it is searched (hnsw.ef_search) is
measured when it is made, on queries that lie off the indexed vectors.
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
from numpy.typing import NDArray
from pgvector import Vector

from saysee.search.index.calibration import RECALL, K, recall, trial_queries
from saysee.search.index.filters import NUMBER_COLUMNS, NUMBER_PATTERN, Filter
from saysee.search.index.postgres_connection import Address, Connection, find_vectors
from saysee.search.index.store import (
    KINDS,
    SPARE,
    WHERE_SECONDS,
    About,
    Found,
    Item,
    Kind,
    Vectors,
    condition_error,
    ranked,
)

EXACT_ROWS = 20_000
"""Up to here every vector is compared. A choice, not measured."""
_MOST_EF = 1_000
"""What pgvector takes at most."""
_LEAST_EF = 40
_QUERIES = 64
"""To try: the server compares each with every row."""
_GRAPH = "m = 48, ef_construction = 400"
"""Of 25,000 clustered vectors of 128, queries that lie off them by their own length had a recall@10 of 0.992 with 400
candidates; with pgvector's own 16 and 64 it was 0.958 with 1,000, with 32 and 200 it was 0.992 with 1,000."""
_BUILD_MEMORY = "1GB"
"""For the graph of 300,000 rows of 512 in fp16 and some; beyond it the build goes on, slower."""
_PATIENCE_SECONDS = 0.2

Condition = tuple[str, tuple[Any, ...]]
"""SQL over the rows, and its parameters."""


@dataclass(frozen=True, slots=True)
class _Fast:
    """A kind's HNSW index.

    Attributes:
        cast: type that the vectors are indexed as, "halfvec" or "vector".
        rows: how many there were when ``ef`` was measured.
        ef: candidates that a search holds; 0 where even the most find too little, so that it is not used.
    """

    cast: str
    rows: int = 0
    ef: int = 0


def nearest(
    connection: Connection,
    about: About,
    queries: Vectors,
    kind: Kind,
    k: int,
    where: str | None = None,
    filters: Sequence[Filter] = (),
) -> list[list[Found]]:
    """As :meth:`saysee.search.index.store.Store.nearest`, over a connection within a transaction that cannot write."""
    condition: Condition = ("kind = %s", (kind,))
    fast = _fast(connection, kind)
    wanted = SPARE * k
    ef = max(fast.ef, wanted) if fast is not None and fast.ef else _MOST_EF + 1
    if where is not None or filters:
        conditions = [condition, *map(_filter_condition, filters)]
        if where is not None:
            conditions.append((where.replace("%", "%%") + "\n", ()))
        condition = (
            " AND ".join(f"({sql})" for sql, _ in conditions),
            tuple(value for _, parameters in conditions for value in parameters),
        )
        ids = [
            row[0] for row in _asked(connection, f"id FROM items WHERE {{}} LIMIT {EXACT_ROWS + 1}", condition, where)
        ]
        if len(ids) <= EXACT_ROWS:
            condition, ef = ("id = ANY(%s::bigint[])", (ids,)), _MOST_EF + 1
        elif fast is not None:  # of what HNSW finds, the condition leaves a share
            ((left,),) = _asked(connection, "count(*) FROM items WHERE {}", condition, where)
            ef = round(ef * max(1.0, fast.rows / left))
    if fast is not None and ef <= _MOST_EF:
        found = [_by_hnsw(connection, about, fast.cast, query, condition, wanted, ef) for query in queries]
    else:
        found = [_exactly(connection, query, condition, wanted) for query in queries]
    candidates = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
    rows, ids_there, vectors = _read(connection, about, candidates)
    return ranked(queries, found, rows, ids_there, vectors, k)


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
        f"CASE jsonb_typeof(value) WHEN 'number' THEN {number} WHEN 'string' THEN {text} "
        f"WHEN 'boolean' THEN {text} ELSE false END)"
    )
    return sql, (one.name, *number_values, *text_values, *text_values)


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
    conditions: list[str] = []
    values: list[Any] = []
    if one.low is not None:
        conditions.append(f'{value} COLLATE "C" >= %s')
        values.append(one.low)
    if one.high is not None:
        conditions.append(f'left({value}, %s) COLLATE "C" <= %s')
        values += [len(one.high), one.high]
    text = " AND ".join(conditions)
    if not one.bounds_are_numbers:
        return text, tuple(values)
    number, number_values = _number_condition(one, f"({value})::numeric")
    return (
        f"CASE WHEN {value} ~ '^{NUMBER_PATTERN}$' THEN {number} ELSE {text} END",
        (*number_values, *values),
    )


def _like_pattern(one: Filter) -> str:
    return "%".join(re.sub(r"([\\%_])", r"\\\1", part) for part in one.parts)


def _asked(connection: Connection, what: str, condition: Condition, where: str | None) -> list[tuple[Any, ...]]:
    """What a condition chooses, within the time limit."""
    try:
        with connection.transaction(), _settings(connection, statement_timeout=f"{WHERE_SECONDS * 1_000:.0f}"):
            return connection.execute(f"SELECT {what.format(condition[0])}", condition[1]).fetchall()
    except psycopg.errors.QueryCanceled:
        raise condition_error(where or "", f"it takes over {WHERE_SECONDS:g} s") from None
    except (psycopg.Error, UnicodeError) as error:
        if where is None or isinstance(error, psycopg.OperationalError):
            raise
        reason = error.diag.message_primary if isinstance(error, psycopg.Error) else None
        raise condition_error(where, reason or str(error)) from None


@contextmanager
def _settings(connection: Connection, **settings: Any) -> Iterator[None]:
    """Settings for as long as the block lasts, within a transaction."""
    before = {name: _one(connection, "SELECT current_setting(%s)", (name,)) for name in settings}
    try:
        for name, value in settings.items():
            connection.execute("SELECT set_config(%s, %s, true)", (name, str(value)))
        yield
    finally:
        if connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS:
            for name, value in before.items():
                connection.execute("SELECT set_config(%s, %s, true)", (name, value))


def _exactly(connection: Connection, query: Vectors, condition: Condition, k: int) -> NDArray[np.int64]:
    """The ids of the nearest rows, by comparing with every one; of equal ones the earlier."""
    # Index scans are what HNSW works by, and it must not be taken here.
    connection.execute("SET LOCAL enable_indexscan = off")
    sql = f"SELECT id FROM items WHERE {condition[0]} ORDER BY vector <#> %s, id LIMIT %s"
    rows = connection.execute(sql, (*condition[1], Vector(query), k))
    return np.fromiter((row[0] for row in rows), np.int64)


def _by_hnsw(
    connection: Connection, about: About, cast: str, query: Vectors, condition: Condition, k: int, ef: int
) -> NDArray[np.int64]:
    connection.execute(f"SET LOCAL hnsw.ef_search = {int(ef)}")
    connection.execute("SET LOCAL enable_indexscan = on")
    for way in ("seqscan", "bitmapscan", "sort"):
        connection.execute(f"SET LOCAL enable_{way} = off")
    type = f"{cast}({about.dimension})"
    sql = f"SELECT id FROM items WHERE {condition[0]} ORDER BY (vector::{type}) <#> (%s::vector::{type}) LIMIT %s"
    rows = connection.execute(sql, (*condition[1], Vector(query), k))
    return np.fromiter((row[0] for row in rows), np.int64)


def _read(
    connection: Connection, about: About, ids: NDArray[np.int64]
) -> tuple[dict[int, Item], NDArray[np.int64], Vectors]:
    """The rows of ids, their ids ascending, and their vectors."""
    connection.execute("SET LOCAL enable_indexscan = on")
    rows = connection.execute(
        "SELECT id, kind, path, hash, metadata, vector FROM items WHERE id = ANY(%s::bigint[]) ORDER BY id",
        (ids.tolist(),),
        binary=True,
    ).fetchall()
    items = {row[0]: Item(row[1], row[2], None, None, row[3], row[4], row[0]) for row in rows}
    return items, np.array([row[0] for row in rows], np.int64), _stacked([row[5] for row in rows], about)


def _stacked(vectors: Sequence[Vector], about: About) -> Vectors:
    if not vectors:
        return np.empty((0, about.dimension), np.float32)
    return np.stack([vector.to_numpy() for vector in vectors])


# ---------------------------------------------------------------------- the HNSW index of a kind


def _name(kind: Kind) -> str:
    return f"items_{kind}_hnsw"


def _fast(connection: Connection, kind: Kind) -> _Fast | None:
    """The HNSW index of a kind; None where there is none, or one that was broken off."""
    row = connection.execute(
        "SELECT pg_get_indexdef(indexrelid), (SELECT value FROM about WHERE name = %s) FROM pg_index "
        "WHERE indexrelid = to_regclass(%s) AND indisvalid",
        (f"hnsw_{kind}", _name(kind)),
    ).fetchone()
    if row is None or row[1] is None:
        return None
    known = _Fast(**json.loads(row[1]))
    return known if f"{known.cast}_ip_ops" in row[0] else None


def _wanted(version: tuple[int, ...], about: About) -> str | None:
    """The type to be indexed by this version of pgvector; None for vectors that are too long for any."""
    if version >= (0, 7) and about.dimension <= 4_000:
        return "halfvec"
    return "vector" if about.dimension <= 2_000 else None


def damage(connection: Connection, about: About, kind: Kind) -> str | None:
    """What is wrong with a kind's HNSW index; None where all is well or none is needed."""
    if _rows(connection, kind) <= EXACT_ROWS or about.dimension > 2_000 or _fast(connection, kind) is not None:
        return None
    return f"the HNSW index of its {kind}s is missing or was broken off"


def make_fast(connection: Connection, address: Address, about: About, lock: int) -> dict[Kind, str]:
    """Makes the HNSW indexes that are needed and missing, and takes out those that are not needed.

    Args:
        connection: outside a transaction: rows may be read and written while the server makes an index.
        address: of the database.
        about: of the index.
        lock: held meanwhile, so that two processes do not make the same.

    Returns:
        how each kind that has rows is searched.
    """
    cast = _wanted(find_vectors(connection, address) or (), about)
    methods: dict[Kind, str] = {}
    with _locked(connection, lock):
        for kind in KINDS:
            rows = _rows(connection, kind)
            fast = _fast(connection, kind)
            if rows <= EXACT_ROWS or cast is None:
                connection.execute(f"DROP INDEX IF EXISTS {_name(kind)}")
                fast = None
            elif fast is None or fast.cast != cast:
                fast = _made(connection, about, kind, cast, rows)
            elif rows > 2 * fast.rows:
                fast = _measured(connection, about, kind, cast, rows)
            if rows:
                methods[kind] = _method(fast)
    return methods


def _method(fast: _Fast | None) -> str:
    if fast is None or not fast.ef:
        return "exact, by the server"
    precision = "fp16" if fast.cast == "halfvec" else "fp32, as pgvector below 0.7 has no halfvec"
    return f"approximate, HNSW with {fast.ef} candidates, {precision}"


def _made(connection: Connection, about: About, kind: Kind, cast: str, rows: int) -> _Fast:
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
    return _measured(connection, about, kind, cast, rows)


def _measured(connection: Connection, about: About, kind: Kind, cast: str, rows: int) -> _Fast:
    """Notes how many candidates give the recall on trial queries."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        fast = _Fast(cast, rows, _calibrated(connection, about, kind, cast))
        connection.execute(
            "INSERT INTO about VALUES (%s, %s) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (f"hnsw_{kind}", json.dumps(asdict(fast))),
        )
    return fast


def _calibrated(connection: Connection, about: About, kind: Kind, cast: str) -> int:
    condition: Condition = ("kind = %s", (kind,))
    rows = connection.execute(
        "SELECT vector FROM items WHERE kind = %s ORDER BY hashint8(id) LIMIT %s", (kind, _QUERIES)
    )
    vectors = _stacked([row[0] for row in rows], about)
    queries = trial_queries(vectors, np.random.default_rng(0))
    truth = [_exactly(connection, query, condition, K) for query in queries]
    ef = _LEAST_EF
    while True:
        found = [_by_hnsw(connection, about, cast, query, condition, SPARE * K, ef) for query in queries]
        if recall(found, truth) >= RECALL:
            return ef
        if ef == _MOST_EF:
            return 0
        ef = min(2 * ef, _MOST_EF)


@contextmanager
def _locked(connection: Connection, lock: int) -> Iterator[None]:
    """Waits by asking again: a statement that waits would keep another's CREATE INDEX CONCURRENTLY from ending."""
    while not _one(connection, "SELECT pg_try_advisory_lock(%s)", (lock,)):
        time.sleep(_PATIENCE_SECONDS)
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s)", (lock,))


def _rows(connection: Connection, kind: Kind) -> int:
    return int(_one(connection, "SELECT count(*) FROM items WHERE kind = %s", (kind,)))


def _one(connection: Connection, sql: str, parameters: tuple[Any, ...] = ()) -> Any:
    """The one value that a statement gives."""
    row = connection.execute(sql, parameters).fetchone()
    assert row is not None
    return row[0]
