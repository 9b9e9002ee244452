"""Imported vectors from the database of a photo library, such as Immich: read by the user's query, never written."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import IsolationLevel, errors

from saysee.data.tables import plain_value
from saysee.encoding.encoder import Encoder
from saysee.errors import SaySeeError
from saysee.search.index.readers.given import Given, GivenVectors, Part, add_rows, path_column
from saysee.search.index.readers.item_list import ItemList
from saysee.search.index.sql.postgres import Connection, Reasons, Server

_STATEMENT_SECONDS = 300  # most time of a statement: of a batch of rows, not of all
_BATCH = 2_000  # rows that are fetched together
_VECTOR_TYPES = ("vector", "halfvec", "_float4", "_float8")
"""Of pgvector, VectorChord and pgvecto.rs, and arrays of floats, as pg_type names them."""

_ROOT = Path(os.path.abspath(os.sep))  # where relative paths start: a database has no folder

_DEFAULT_CLIP = "ViT-B-32__openai"
_CLIPS = {
    "ViT-B-32__openai": ("openai/clip-vit-base-patch32", 512),
    "ViT-B-16__openai": ("openai/clip-vit-base-patch16", 512),
    "ViT-L-14__openai": ("openai/clip-vit-large-patch14", 768),
    "ViT-L-14-336__openai": ("openai/clip-vit-large-patch14-336", 768),
}
"""Immich's names of OpenAI's weights, with those of the hub and the dimension. Its other CLIPs have no tested form for
transformers."""
_MAY_READ = (
    "SELECT has_table_privilege(to_regclass('system_metadata'), 'SELECT') WHERE to_regclass('smart_search') IS NOT NULL"
)
_CLIP_NAME = "SELECT value #>> '{machineLearning,clip,modelName}' FROM system_metadata WHERE key = 'system-config'"
_REASONS: Reasons = (
    ((errors.QueryCanceled,), f"--query takes over {_STATEMENT_SECONDS} s ({{}}); give one that is faster"),
    ((errors.ReadOnlySqlTransaction,), "--query writes ({}); give one that only reads"),
    ((errors.InsufficientPrivilege,), "no permission ({}); GRANT SELECT on the tables of the query to this user"),
    ((psycopg.OperationalError,), "the connection was lost ({}); run the command again"),
    ((psycopg.Error,), "--query cannot be used ({}); give one SELECT"),
)


def read_database(url: str, query: str, encoder: Encoder) -> Given:
    """Reads what a query of a PostgreSQL database gives, in one read-only transaction.

    The vectors go to a temporary file, so that a library of any size fits into memory. The query is one SELECT with a
    column of vectors (of pgvector, or arrays of floats) and one of ``PATH_COLUMNS``, by which a row is known again;
    further columns become metadata. Raises SaySeeError if there is no connection; the query cannot be used, writes, or
    takes over 5 minutes for 2,000 rows; or it reads a library of Immich that is of another CLIP.
    """
    server = Server(url)
    place = f"{server.place}: --query"
    with server.errors_in_one_line(_REASONS), closing(server.connect()) as connection, tempfile.TemporaryFile() as file:
        connection.execute("SET default_transaction_read_only = on")
        connection.read_only, connection.isolation_level = True, IsolationLevel.REPEATABLE_READ
        with connection.transaction():
            connection.execute(f"SET LOCAL statement_timeout = '{_STATEMENT_SECONDS}s'")
            if server.schema:
                connection.execute("SELECT set_config('search_path', %s, true)", (f'"{server.schema}", public',))
            clip, notes = _clip_of_library(connection, server.place, encoder)
            # A cursor of the server takes one statement, so the query cannot leave the transaction.
            with connection.cursor("saysee_query") as cursor:
                cursor.itersize = _BATCH
                cursor.execute(query)
                rows = _Rows(cursor, file, encoder.dimension, place)
                items = ItemList()
                count = add_rows(items, rows, rows.titles, path_column(rows.titles, place), _ROOT)
        part = rows.part()
    if not count:
        raise SaySeeError(f"{place}: it gives no row; check its conditions")
    return Given(items, GivenVectors([part]), _ROOT, server.source, notes, clip)


class _Rows:
    """The rows of a query without their vectors, each after its place, once; the vectors are written to a file.

    The rows end after some where none has a vector of the ``dimension``.
    """

    def __init__(self, cursor: psycopg.ServerCursor[Any], file: IO[bytes], dimension: int, place: str) -> None:
        columns = cursor.description or ()
        self._cursor, self._file, self._width, self._place = cursor, file, dimension, place
        sql = "SELECT oid, typname FROM pg_type WHERE oid = ANY(%s)"
        types = dict(cursor.connection.execute(sql, ([column.type_code for column in columns],)).fetchall())
        found = [at for at, column in enumerate(columns) if types.get(column.type_code) in _VECTOR_TYPES]
        if len(found) != 1:
            names = ", ".join(columns[at].name for at in found) or "none"
            raise SaySeeError(f"{place}: {len(found)} columns of vectors ({names}); select exactly one")
        (self._vector,) = found
        self.titles = [column.name for at, column in enumerate(columns) if at != self._vector]
        self._widths: Counter[int] = Counter()
        self._wrong: dict[int, str] = {}

    def __iter__(self) -> Iterator[tuple[str, list[Any]]]:
        missing = np.full(self._width, np.nan, np.float32).tobytes()
        for number, row in enumerate(self._cursor):
            values = list(row)
            vector = _numbers(values.pop(self._vector))
            if vector is None:
                self._wrong[number] = "it has no vector"
            elif len(vector) != self._width:
                self._wrong[number] = f"its vector has {len(vector)} dimensions, not {self._width}"
            if vector is not None:
                self._widths[len(vector)] += 1
            self._file.write(missing if vector is None or number in self._wrong else vector.tobytes())
            plain = [self._plain(*pair) for pair in zip(self.titles, values, strict=True)]
            yield f"{self._place}: row {number + 1}", plain
            if number == _BATCH and self._widths and self._width not in self._widths:
                return

    def _plain(self, title: str, value: Any) -> Any:
        try:
            return plain_value(value)
        except TypeError as error:
            raise SaySeeError(f"{self._place}: column {title!r}: {error}; cast it to text, or leave it out") from None

    def part(self) -> Part:
        """The vectors [N, D] of all rows, once they are read; without any of the dimension, zeros of the usual one."""
        if self._widths and self._width not in self._widths:
            ((width, count),) = self._widths.most_common(1)
            return Part(self._place, np.zeros((count, width), np.float32), {})
        self._file.flush()
        shape = (self._file.tell() // (4 * self._width), self._width)
        values = np.memmap(self._file, np.float32, "r", shape=shape) if shape[0] else np.empty(shape, np.float32)
        return Part(self._place, values, self._wrong)


def _numbers(value: Any) -> NDArray[np.float32] | None:
    """A vector from an array, or from the text that pgvector writes: [1,2.5]."""
    if value is None:
        return None
    numbers = np.fromstring(value[1:-1], np.float64, sep=",") if isinstance(value, str) else np.array(value, np.float64)
    return numbers.astype(np.float32).reshape(-1)  # an array may have several dimensions


def _clip_of_library(connection: Connection, place: str, encoder: Encoder) -> tuple[str, list[str]]:
    """The hub name of the CLIP that an Immich encodes with, as far as its settings say, and notes; "" for others."""
    row = connection.execute(_MAY_READ).fetchone()
    if row is None or row[0] is None:
        return "", []
    if not row[0]:
        return "", [
            f"{place}: no permission to read system_metadata, so which CLIP Immich's settings name is not known"
        ]
    ((name,),) = connection.execute(_CLIP_NAME).fetchall() or [(None,)]
    if name is None:  # the settings have what differs from the defaults, and may be in a file instead
        return _CLIPS[_DEFAULT_CLIP][0], []
    hub, dimension = _CLIPS.get(name, ("", 0))
    if not hub:
        raise SaySeeError(
            f"{place}: Immich encodes with {name}, whose vectors SaySee cannot search; set one of {', '.join(_CLIPS)} "
            "in Immich's settings (Machine Learning, Smart Search) and run its smart search job for all assets"
        )
    other = encoder.name.startswith("openai/clip-") and encoder.name != hub
    if other or (name != _DEFAULT_CLIP and encoder.dimension != dimension):
        raise SaySeeError(
            f"{place}: Immich encodes with {name}, and {encoder.name} is another CLIP; give {hub}, or a model that was "
            "trained on it"
        )
    return hub, []
