"""Imported vectors from files: .npy or Parquet, with a table of their paths."""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from saysee.data.tables import Table, normal_title, open_table, plain_column, text_encoding
from saysee.errors import SaySeeError
from saysee.search.index.readers.given import PATH_COLUMNS, Given, GivenVectors, Part, add_rows, path_column
from saysee.search.index.readers.item_list import ItemList

_BATCH = 8_192  # rows of Parquet read together


def read_files(vectors: Path, ids: Path, dimension: int) -> Given:
    """Reads vectors, of this dimension as a rule, and their paths.

    Args:
        vectors: ``.npy`` [N, D]; ``.parquet`` with one column of lists of floats; or a folder of such files in the
            order of their numbers, such as clip-retrieval's with its ``img_emb/img_emb_0.npy``. Of any length but 0.
        ids: N rows in the same order: delimited text, JSON lines or Parquet with a column of ``PATH_COLUMNS``, whose
            other columns become metadata; ``.txt`` with a path a line; or a folder of such files, such as
            clip-retrieval's with its ``metadata/metadata_0.parquet``. Relative paths start from its folder.

    Raises SaySeeError if a file cannot be read, there is another number of ids, or a path is missing or there twice.
    """
    parts = [_read_part(path, dimension) for path in _files(vectors, "img_emb", "--from-vectors")]
    place = _inner(ids, "metadata")
    root = Path(os.path.abspath(place.parent))
    items = ItemList()
    lists = [_read_ids(path, root, items) for path in _files(place, "metadata", "--ids")]
    _check_counts(lists, parts, ids, vectors)
    return Given(items, GivenVectors(parts), root, place.name, [note for found in lists for note in found.notes])


class _Ids(NamedTuple):
    path: Path
    lines: int
    notes: Sequence[str]


def _inner(place: Path, name: str) -> Path:
    return place / name if (place / name).is_dir() else place


def _files(place: Path, inner: str, option: str) -> list[Path]:
    """The file, or those of a folder (or of its ``inner`` folder) in the order of the numbers in their names."""
    place = _inner(place, inner)
    if not place.is_dir():
        return [place]
    found: dict[str, list[Path]] = {}
    for path in place.iterdir():
        if path.is_file() and not path.name.startswith("."):
            found.setdefault(path.suffix.lower(), []).append(path)
    suffixes = (".npy", ".parquet") if inner == "img_emb" else (".parquet", ".jsonl", ".csv", ".tsv", ".txt")
    files = next((found[suffix] for suffix in suffixes if suffix in found), [])
    if not files:
        raise SaySeeError(f"{place}: no {' or '.join(suffixes)} file in it ({option}); name the file or its folder")
    return sorted(
        files, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
    )


def _check_counts(lists: Sequence[_Ids], parts: Sequence[Part], ids: Path, vectors: Path) -> None:
    """Checks that there are as many ids as vectors, in each file if there are as many files."""
    files = zip(lists, parts, strict=True) if len(lists) == len(parts) else ()
    pairs: list[tuple[Path, int, object, int]]
    pairs = [(found.path, found.lines, part.place, len(part.values)) for found, part in files]
    pairs.append((ids, sum(found.lines for found in lists), vectors, sum(len(part.values) for part in parts)))
    for place, lines, other, count in pairs:
        if lines != count:
            raise SaySeeError(f"{place}: {lines:,} lines for the {count:,} vectors of {other}; write one for each")
    if not pairs[-1][1]:
        raise SaySeeError(f"{ids}: no lines; give one for each vector")


def _read_ids(path: Path, root: Path, items: ItemList) -> _Ids:
    table = _open_ids(path)
    column = path_column(table.titles, str(path))
    rows = ((table.place(number), values) for number, values in table.rows())
    return _Ids(path, add_rows(items, rows, table.titles, column, root), table.notes)


def _open_ids(path: Path) -> Table:
    """The table of ids. A ``.txt`` that is no table has a path a line, which may contain any delimiter."""
    table = open_table(path, without=_is_vectors)
    known = {*map(normal_title, table.titles)} & {*PATH_COLUMNS}
    if path.suffix.lower() != ".txt" or (known and len(table.titles) > 1):
        return table
    encoding, notes = text_encoding(path)
    return Table(path, ("path",), "line", notes, _lines(path, encoding))


def _lines(path: Path, encoding: str) -> Iterator[tuple[int, list[str]]]:
    with path.open(encoding=encoding) as file:
        lines = ((number, line.removesuffix("\n")) for number, line in enumerate(file, 1) if line.strip())
        first = next(lines, None)
        if first is not None and normal_title(first[1]) not in PATH_COLUMNS:
            yield first[0], [first[1]]
        yield from ((number, [line]) for number, line in lines)


def _is_vectors(kind: Any) -> bool:
    """Whether an Arrow type is of lists of floats: their items are vectors."""
    while isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
    return any(is_kind(kind) for is_kind in (*lists, pa.types.is_large_list_view)) and pa.types.is_floating(
        kind.value_type
    )


def _read_part(path: Path, dimension: int) -> Part:
    """The vectors of a file, which are not held in memory."""
    wrong: dict[int, str] = {}
    try:
        if path.suffix.lower() == ".npy":
            matrix = np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.suffix.lower() == ".parquet":
            matrix, wrong = _read_parquet(path, dimension)
        else:
            raise SaySeeError(f"{path}: give the vectors as .npy or .parquet, or as a folder of them")
    except OSError as error:
        raise SaySeeError(f"{path}: cannot be read ({error.strerror or error}); check --from-vectors") from None
    except (ValueError, EOFError, pa.ArrowException) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise SaySeeError(f"{path}: holds no vectors that can be read ({why}); save it again") from None
    if matrix.ndim != 2 or matrix.dtype.kind != "f" or not matrix.size:
        raise SaySeeError(f"{path}: shape {list(matrix.shape)} of {matrix.dtype}; give [N, D] of float16 or float32")
    return Part(str(path), matrix, wrong)


def _read_parquet(path: Path, dimension: int) -> tuple[NDArray[Any], dict[int, str]]:
    lists = [field.name for field in pq.read_schema(path) if _is_vectors(field.type)]
    if len(lists) != 1:
        names = f" ({', '.join(lists)})" if lists else ""
        raise SaySeeError(
            f"{path}: {len(lists)} columns of lists of floats{names}; keep the one that holds the vectors"
        )

    def columns() -> Iterator[Any]:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH, columns=lists):
                yield plain_column(pa.chunked_array([batch.column(0)])).combine_chunks()

    lengths = np.concatenate([[0], *(pc.fill_null(pc.list_value_length(column), -1) for column in columns())])[1:]
    widths, counts = np.unique(lengths[lengths >= 0], return_counts=True)
    width = dimension if dimension in widths else int(widths[counts.argmax()]) if len(widths) else 0
    wrong = {
        int(row): "it has no vector" if lengths[row] < 0 else f"its vector has {lengths[row]} dimensions, not {width}"
        for row in np.flatnonzero(lengths != width)
    }
    # In a temporary file, as vectors may take more than the memory.
    with tempfile.TemporaryFile() as file:
        start = 0
        for column in columns():
            good = lengths[start : start + len(column)] == width
            values = column.filter(pa.array(good)).flatten().to_numpy(zero_copy_only=False)
            part: NDArray[Any] = np.full((len(column), width), np.nan, values.dtype)
            part[good] = values.reshape(int(good.sum()), width)
            file.write(part.tobytes())
            start += len(column)
        file.flush()
        shape = (len(lengths), width)
        return np.memmap(file, part.dtype, "r", shape=shape) if start * width else np.empty(shape, np.float32), wrong
