"""A table of vectors in PostgreSQL with pgvector, in a temporary server."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NEEDED = ("pgserver", "psycopg", "pgvector")
_CANDIDATES = 100
"""Candidates of the HNSW search; its default of 40 has a lower recall."""


def reason_to_skip() -> str | None:
    """Why pgvector is not available; None if it is."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


class PgvectorTable:
    """Vectors and their HNSW index.

    Attributes:
        metrics: method, seconds to build, megabytes.
    """

    def __init__(self, connection: Any, metrics: dict[str, Any]) -> None:
        self._connection, self.metrics = connection, metrics

    @classmethod
    @contextmanager
    def create(cls, matrix: NDArray[np.float16], folder: Path) -> Iterator[PgvectorTable]:
        """Runs a server with the vectors [N, D] in a table within a ``with`` block."""
        import psycopg
        from pgserver.postgres_server import get_server
        from pgvector.psycopg import register_vector

        with get_server(folder, cleanup_mode="stop") as server:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                start = time.perf_counter()
                connection.execute("CREATE EXTENSION vector")
                register_vector(connection)
                connection.execute(f"CREATE TABLE items (id bigint PRIMARY KEY, vector vector({matrix.shape[1]}))")
                with connection.cursor().copy("COPY items FROM STDIN WITH (FORMAT binary)") as copy:
                    copy.set_types(["int8", "vector"])
                    for number, vector in enumerate(matrix):
                        copy.write_row((number, vector.astype(np.float32)))
                connection.execute("SET maintenance_work_mem = '2GB'")
                connection.execute("CREATE INDEX items_near ON items USING hnsw (vector vector_ip_ops)")
                connection.execute(f"SET hnsw.ef_search = {_CANDIDATES}")
                size = connection.execute("SELECT pg_total_relation_size('items')").fetchone()
                assert size is not None
                metrics = {
                    "method": f"approximate, HNSW, {_CANDIDATES} candidates, fp32",
                    "seconds_to_build": round(time.perf_counter() - start, 1),
                    "megabytes_on_disk": size[0] // 10**6,
                }
                yield cls(connection, metrics)

    def search(self, query: NDArray[np.float32], k: int) -> list[int]:
        """Numbers of the rows nearest to a query [D]."""
        rows = self._connection.execute("SELECT id FROM items ORDER BY vector <#> %s LIMIT %s", (query, k))
        return [row[0] for row in rows]
