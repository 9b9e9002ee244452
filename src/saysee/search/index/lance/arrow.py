"""Rows of an index as columns of Arrow, how they are written, and values within Lance's SQL."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from saysee.search.index.store import CHANGEABLE, ITEM_COLUMNS, Item, Vectors

LITERALS = 4_096  # values of one condition: as many as Lance parses quickly
KEY = {"lance-schema:unenforced-primary-key": "true"}  # with it, no two writers insert the same row


def to_items(rows: pa.Table | pa.RecordBatch) -> Iterator[Item]:
    """Items from their columns."""
    return map(Item.from_row, zip(*(rows[name].to_pylist() for name in ITEM_COLUMNS), strict=True))


def row_schema(dimension: int) -> pa.Schema:
    """Of the rows; without vectors where ``dimension`` is 0, of the columns that may change."""
    text, number = pa.string(), pa.int64()
    columns = [
        pa.field("id", number, False),
        pa.field("path", text, False, KEY),
        *(pa.field(name, text, False) for name in ("folder", "name")),
        *(pa.field(name, number) for name in ("size", "mtime_ns")),
        pa.field("metadata", pa.json_(), False),
    ]
    if dimension:
        columns += [pa.field("kind", text, False), pa.field("hash", text), pa.field("encoded_by", text, False)]
        columns.append(pa.field("vector", pa.list_(pa.float32(), dimension), False))
    return pa.schema(columns)


def to_rows(items: Sequence[Item], schema: pa.Schema, vectors: Vectors | None = None) -> pa.Table:
    """The columns of a schema, with the vectors [N, D] if it has them."""
    columns: dict[str, Any] = dict(
        zip(CHANGEABLE, zip(*(item.changeable() for item in items), strict=True), strict=True)
    )
    columns["metadata"] = to_json(pa.array(columns["metadata"], pa.string()))
    columns |= {name: [getattr(item, name) for item in items] for name in ("id", "kind", "hash", "encoded_by")}
    if vectors is not None:
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
        columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    return pa.table([columns[name] for name in schema.names], schema=schema)


def insert(table: Any, rows: pa.Table) -> Any:
    """Adds rows whose path is not there."""
    # With an index over the paths Lance does not find that two writers insert the same.
    return table.merge_insert("path").when_not_matched_insert_all().use_index(False).execute(rows)


def update(table: Any, rows: pa.Table) -> Any:
    """Replaces the columns that are given of rows whose id is there."""
    return table.merge_insert("id").when_matched_update_all().execute(rows)


def quoted(text: str) -> str:
    """A text as a literal."""
    return "'" + text.replace("'", "''") + "'"


def among(column: str, values: Sequence[int | str]) -> Iterator[str]:
    """Conditions that a column has one of the values, so many in each as Lance parses quickly."""
    for start in range(0, len(values), LITERALS):
        texts = (str(one) if isinstance(one, int) else quoted(one) for one in values[start : start + LITERALS])
        yield f"{column} IN ({', '.join(texts)})"


def to_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of JSON as texts."""
    return pa.chunked_array([chunk.storage for chunk in column.chunks], pa.string())


def to_json(texts: Any) -> Any:
    """A column of texts as JSON, of which Lance's SQL finds the parts."""
    chunks = texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]
    return pa.chunked_array([pa.ExtensionArray.from_storage(pa.json_(), chunk) for chunk in chunks], pa.json_())


def one_line(error: BaseException) -> str:
    """Lance's message without the names of its own source files."""
    text = " ".join(str(error).split()).removeprefix("lance error: ").removeprefix("Invalid input, ")
    return text.split(", /", 1)[0][:200] or type(error).__name__
