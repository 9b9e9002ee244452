"""Connections to the PostgreSQL database of an index, and its errors in one line without a password."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import pgvector.psycopg
import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from saysee.errors import SaySeeError

Connection = psycopg.Connection[tuple[Any, ...]]

SCHEMA = "saysee"
"""The default schema."""
_OLDEST_SERVER, _OLDEST_VECTOR = 13, (0, 5)
"""pgvector 0.5 brought HNSW."""
_CONNECT_SECONDS = 10
_SCHEMA_NAME = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,62}")
_SHAPE = "postgresql://user@host:port/database?schema=name"


@dataclass(frozen=True, slots=True)
class Address:
    """Where an index is.

    Attributes:
        place: the address without a password, for messages.
        schema: that holds the tables.
        options: for libpq; a password may be among them.
    """

    place: str
    schema: str
    options: dict[str, Any] = field(repr=False)


def read_address(url: str) -> Address:
    """The parts of ``postgresql://user:password@host:port/database?schema=name&option=value``.

    Options are those of libpq, such as sslmode. Missing ones libpq takes from the environment (PGUSER, PGPASSWORD) and
    from ~/.pgpass.

    Raises:
        SaySeeError: it cannot be parsed; the message does not repeat it, as it may hold a password.
    """
    start, _, query = url.partition("?")
    try:
        asked = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
        schema = asked.pop("schema", SCHEMA)
        options = conninfo_to_dict(f"{start}?{urlencode(asked, quote_via=quote)}" if asked else start)
        if "#" in url:  # of a password, or the start of what other programs take for a fragment
            raise ValueError("fragment")
    except (psycopg.Error, ValueError):
        raise SaySeeError(
            f"the database's address cannot be parsed; write {_SHAPE}, with options of libpq, and characters such as # "
            "or @ in a password as %23 or %40"
        ) from None
    if not _SCHEMA_NAME.fullmatch(schema):
        raise SaySeeError(f"the schema {schema!r} of the address cannot be used; name one in a-z, 0-9 and _")
    return Address(_shown({name: str(value) for name, value in options.items()}, schema), schema, options)


def _shown(options: dict[str, str], schema: str) -> str:
    user = f"{quote(options['user'], safe='')}@" if "user" in options else ""
    host = options.get("host", "")
    query = {"schema": schema} if schema != SCHEMA else {}
    if "/" in host:  # a socket's folder
        query, host = {"host": host} | query, ""
    if ":" in host:
        host = f"[{host}]"
    port = f":{options['port']}" if "port" in options else ""
    asked = f"?{urlencode(query, safe='/')}" if query else ""
    return f"postgresql://{user}{host}{port}/{quote(options.get('dbname', ''), safe='')}{asked}"


def connect(address: Address) -> Connection:
    """A connection in autocommit mode that finds the index's tables and vectors by their names.

    Raises:
        SaySeeError: the database cannot be reached, or is too old.
    """
    options: dict[str, Any] = {"connect_timeout": _CONNECT_SECONDS, "application_name": "saysee"} | address.options
    try:
        # Plans are made each time: how rows are found is chosen by settings that a kept plan would not follow.
        connection = psycopg.connect(**options, autocommit=True, prepare_threshold=None)
    except psycopg.Error as error:
        text = _line(error, address)
        if "password" in text:
            fix = "check user and password (in PGPASSWORD, in ~/.pgpass, or in the address)"
        elif "does not exist" in text:
            fix = "create it, or correct the address"
        else:
            fix = "check that the server runs there and lets this machine in"
        raise SaySeeError(f"{address.place}: no connection ({text}); {fix}") from None
    try:
        if connection.info.server_version < _OLDEST_SERVER * 10_000:
            raise SaySeeError(
                f"{address.place}: the server is PostgreSQL {connection.info.server_version // 10_000}; SaySee needs "
                f"{_OLDEST_SERVER} or newer"
            )
        find_vectors(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


def find_vectors(connection: Connection, address: Address) -> tuple[int, ...] | None:
    """Makes the tables and the type of pgvector known to a connection.

    Returns:
        the version of pgvector; None where the database does not have it.

    Raises:
        SaySeeError: it is too old.
    """
    row = connection.execute(
        "SELECT extversion, extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'"
    ).fetchone()
    home = "public" if row is None else row[1]
    connection.execute("SELECT set_config('search_path', %s, false)", (f'"{address.schema}", {home}, pg_catalog',))
    if row is None:
        return None
    version = tuple(int(part) for part in re.findall(r"\d+", row[0]))
    if version < _OLDEST_VECTOR:
        raise SaySeeError(
            f"{address.place}: its pgvector is {row[0]}; SaySee needs 0.5 or newer: upgrade it, then run ALTER "
            "EXTENSION vector UPDATE"
        )
    pgvector.psycopg.register_vector(connection)
    return version


def knows_vectors(connection: Connection) -> bool:
    """Whether a connection reads and writes vectors; one that is older than pgvector in its database does not."""
    return connection.adapters.types.get("vector") is not None


_REASONS: tuple[tuple[tuple[type[psycopg.Error], ...], str], ...] = (
    ((errors.InsufficientPrivilege,), "no permission ({}); ask for it, or name another database or ?schema="),
    ((errors.ReadOnlySqlTransaction,), "cannot be written ({}); name the primary server"),
    (
        (errors.DiskFull, errors.OutOfMemory, errors.InsufficientResources),
        "the server's disk or memory is full ({}); free some space and run the command again, it resumes",
    ),
    ((errors.QueryCanceled,), "it took too long ({}); try again, or ask for less"),
    (
        (errors.LockNotAvailable, errors.DeadlockDetected, errors.SerializationFailure),
        "the index is busy ({}); try again",
    ),
    (
        (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName, errors.DataCorrupted),
        "the index is damaged ({}); create it again, or restore a copy",
    ),
    ((psycopg.DataError,), "the database cannot store a value ({}); correct it"),
    ((psycopg.OperationalError,), "the connection was lost ({}); run the command again, it resumes"),
    ((psycopg.Error,), "the database reports an error ({})"),
)


@contextmanager
def errors_in_one_line(address: Address) -> Iterator[None]:
    """Errors of psycopg become a SaySeeError."""
    try:
        yield
    except psycopg.Error as error:
        reason = next(text for classes, text in _REASONS if isinstance(error, classes))
        raise SaySeeError(f"{address.place}: {reason.format(_line(error, address))}") from None


def _line(error: psycopg.Error, address: Address) -> str:
    """The first line of the server's or libpq's message, without the password."""
    text = error.diag.message_primary or str(error)
    line = (text.strip().splitlines() or [type(error).__name__])[0].removeprefix("connection failed: ")
    password = str(address.options.get("password") or "")
    return line.replace(password, "***") if password else line
