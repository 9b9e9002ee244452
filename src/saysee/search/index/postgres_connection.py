"""Connections to the PostgreSQL database of an index, and what it refuses, told in one line without a password."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import pgvector.psycopg
import psycopg
from psycopg import errors

from saysee.errors import SaySeeError

Connection = psycopg.Connection[tuple[Any, ...]]

SCHEMA = "saysee"
"""Where none is named."""
_OLDEST_SERVER, _OLDEST_VECTOR = 13, (0, 5)
"""pgvector 0.5 brought HNSW."""
_CONNECT_SECONDS = 10
_SCHEMA_NAME = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,62}")
_SHAPE = "postgresql://user@host:port/database?schema=name"


@dataclass(frozen=True, slots=True)
class Address:
    """Where an index is.

    Attributes:
        place: the address as it may be shown.
        schema: that holds the tables.
        options: for libpq; a password among them.
    """

    place: str
    schema: str
    options: dict[str, str] = field(repr=False)

    @property
    def password(self) -> str | None:
        """The password, where the address has one."""
        return self.options.get("password")


def read_address(url: str) -> Address:
    """The parts of ``postgresql://user:password@host:port/database?schema=name&option=value``.

    Options are those of libpq, such as sslmode. What is left out, libpq takes from the environment (PGUSER, PGPASSWORD)
    and from ~/.pgpass.

    Raises:
        SaySeeError: it cannot be understood; what it was is not repeated, as it may hold a password.
    """
    try:
        parts = urlsplit(url)
        given = {"user": parts.username, "password": parts.password, "host": parts.hostname}
        options = {name: unquote(value) for name, value in given.items() if value}
        if parts.port is not None:
            options["port"] = str(parts.port)
        if database := unquote(parts.path.removeprefix("/")):
            options["dbname"] = database
        options |= dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        if parts.fragment:  # a password with a # in it
            raise ValueError("fragment")
    except ValueError:
        raise SaySeeError(
            f"the database's address cannot be understood; write {_SHAPE}, and signs such as # or @ in a password as "
            "%23 or %40"
        ) from None
    schema = options.pop("schema", SCHEMA)
    if not _SCHEMA_NAME.fullmatch(schema):
        raise SaySeeError(f"the schema {schema!r} of the address cannot be used; name one in a-z, 0-9 and _")
    return Address(_shown(options, schema), schema, options)


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
    """A connection without transactions of its own, that finds the index's tables and vectors by their names.

    Raises:
        SaySeeError: there is no way to the database, or it is too old.
    """
    options = {"connect_timeout": str(_CONNECT_SECONDS), "application_name": "saysee"} | address.options
    try:
        # Plans are made anew each time: how rows are found is chosen by settings that a kept plan would not follow.
        connection = psycopg.connect(**options, autocommit=True, prepare_threshold=None)  # type: ignore[arg-type]
    except psycopg.OperationalError as error:
        _refuse_connection(address, error)
    except (psycopg.Error, ValueError, UnicodeError):
        raise SaySeeError(
            f"{address.place}: its address has an option that libpq does not know; write {_SHAPE}"
        ) from None
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
        the version of pgvector; None where the database has not got it.

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


def _refuse_connection(address: Address, error: psycopg.OperationalError) -> NoReturn:
    text = _line(error, address)
    if "password" in text:
        mend = "check user and password (in PGPASSWORD, in ~/.pgpass, or in the address)"
    elif "does not exist" in text:
        mend = "make it, or correct the address"
    else:
        mend = "check that the server runs there and lets this machine in"
    raise SaySeeError(f"{address.place}: no connection ({text}); {mend}") from None


@contextmanager
def told(address: Address) -> Iterator[None]:
    """Tells what the database refuses in one line.

    Raises:
        SaySeeError: so it is.
    """
    try:
        yield
    except psycopg.Error as error:
        _refuse(address, error)


_REASONS: tuple[tuple[tuple[type[psycopg.Error], ...], str], ...] = (
    (
        (errors.InsufficientPrivilege,),
        "may not be used so ({}); ask for the right, or name another database or ?schema=",
    ),
    ((errors.ReadOnlySqlTransaction,), "cannot be written ({}); name the primary server"),
    (
        (errors.DiskFull, errors.OutOfMemory, errors.InsufficientResources),
        "the server has no room ({}); make room and give the command again, it goes on",
    ),
    ((errors.QueryCanceled,), "it took too long ({}); try again, or ask for less"),
    (
        (errors.LockNotAvailable, errors.DeadlockDetected, errors.SerializationFailure),
        "the index is busy ({}); try again",
    ),
    (
        (errors.UndefinedTable, errors.UndefinedColumn, errors.InvalidSchemaName, errors.DataCorrupted),
        "the index is damaged ({}); make it anew, or bring back a copy",
    ),
    ((psycopg.DataError,), "the database cannot hold a value ({}); correct it"),
    ((psycopg.OperationalError,), "the connection was lost ({}); give the command again, it goes on"),
    ((psycopg.Error,), "the database refuses ({})"),
)


def _refuse(address: Address, error: psycopg.Error) -> NoReturn:
    reason = next(words for kinds, words in _REASONS if isinstance(error, kinds))
    raise SaySeeError(f"{address.place}: {reason.format(_line(error, address))}") from None


def _line(error: psycopg.Error, address: Address) -> str:
    """The first line of what the server or libpq says, without the password."""
    text = error.diag.message_primary or str(error)
    line = (text.strip().splitlines() or [type(error).__name__])[0].removeprefix("connection failed: ")
    return line.replace(address.password, "***") if address.password else line
