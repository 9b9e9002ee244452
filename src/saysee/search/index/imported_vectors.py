"""An index of vectors that the user already has, from CLIP's image encoder: no image is encoded again."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from saysee.encoding.encoder import Encoder
from saysee.errors import MediaError, SaySeeError
from saysee.media.formats import kind_by_suffix
from saysee.search.index.index import open_store
from saysee.search.index.sources import is_upload
from saysee.search.index.store import UNIT_TOLERANCE, Item
from saysee.search.index.updating import IndexReport, begin, finish

_PATH_COLUMNS = ("path", "image_path", "image", "file", "filename", "url", "id")
_CHUNK = 8_192
"""Vectors read and committed together."""
_SAMPLES = 8
"""Images that are encoded to check whether the vectors are of this model."""
_ALIKE = 0.9
"""Least median cosine of these. A choice: another program's resizing changes vectors a little, another model's have
nothing in common with them."""


def index_vectors(
    encoder: Encoder, vectors: str | os.PathLike[str], ids: str | os.PathLike[str], to: str | os.PathLike[str]
) -> IndexReport:
    """Creates an index of imported vectors, or brings one up to date.

    Args:
        encoder: the model whose image encoder they came from.
        vectors: ``.npy`` [N, D], or ``.parquet`` with one column of lists; fp16 or fp32, of any length but 0.
        ids: a CSV with a header and N lines in the same order: a column ``path`` (or image_path, image, file, filename,
            url, id), from its folder on or absolute; further columns become metadata.
        to: folder of the index, or ``postgresql://user@host/database?schema=name``.

    Raises:
        SaySeeError: a file cannot be read; another number of lines; another dimension; vectors that are not this
            model's, as far as the images can be found.
    """
    rows = _read_ids(Path(ids))
    matrix = _read_vectors(Path(vectors))
    if len(rows) != len(matrix):
        raise SaySeeError(
            f"{ids}: {len(rows):,} lines for the {len(matrix):,} vectors of {vectors}; write one for each"
        )
    if matrix.shape[1] != encoder.dimension:
        raise SaySeeError(
            f"{vectors}: {matrix.shape[1]} dimensions, and the model {encoder.name} has {encoder.dimension}; give the "
            "model whose image encoder made them"
        )
    root, name = Path(os.path.abspath(Path(ids).parent)), Path(ids).name
    store = open_store(to)
    report = IndexReport(index=store.place, notes=_check_space(encoder, root, rows, matrix))
    with store.writing() as writer:
        about, known = begin(writer, encoder, root, name, str(matrix.dtype))
        for item in rows:
            item.encoded_by = about.fingerprints[item.kind]
        scaled = 0
        for start in range(0, len(rows), _CHUNK):
            block = np.asarray(matrix[start : start + _CHUNK], np.float32)
            lengths = np.linalg.norm(block, axis=1, keepdims=True)
            good = np.flatnonzero(np.isfinite(lengths) & (lengths > 0))
            with writer.transaction():
                writer.put([rows[start + place] for place in good], block[good] / lengths[good])
            scaled += int(np.sum(np.abs(lengths[good] - 1) > UNIT_TOLERANCE))
        report.refused = [(item.path, "its vector is zero or not finite") for item in rows if not item.id]
        stored = {item.key for item in rows if item.id}
        leaving = [row for key, row in known.items() if key not in stored and not is_upload(row)]
        report.removed = len(leaving)
        writer.remove(leaving)
        if scaled:
            report.notes.append(f"{scaled:,} vectors were not of length 1; all are kept as unit vectors")
        finish(writer, about, report)
    return report


def _read_ids(path: Path) -> list[Item]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            column = next((name for name in _PATH_COLUMNS if name in (reader.fieldnames or ())), None)
            if column is None:
                raise SaySeeError(f"{path}: no column {_PATH_COLUMNS[0]!r} in its first line; add one")
            items = [_item(row, column) for row in reader]
    except OSError as error:
        raise SaySeeError(f"{path}: cannot be read ({error.strerror or error}); check --ids") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise SaySeeError(f"{path}: is not a CSV in UTF-8 ({error}); save it as one") from None
    seen: set[str] = set()
    for number, item in enumerate(items, 2):
        if not item.path or item.path in seen:
            what = f"{item.path!r} is there twice" if item.path else "no path"
            raise SaySeeError(f"{path}: line {number}: {what}; give each vector a path of its own")
        seen.add(item.path)
    if not items:
        raise SaySeeError(f"{path}: no lines; give one for each vector")
    return items


def _item(row: dict[str, str], column: str) -> Item:
    path = row.pop(column) or ""
    metadata = {name: value for name, value in row.items() if name and value}
    return Item(kind_by_suffix(path) or "image", path, metadata=metadata)


def _read_vectors(path: Path) -> NDArray[Any]:
    """The vectors [N, D] as fp16 or fp32; a .npy is mapped, not read."""
    try:
        if path.suffix.lower() == ".npy":
            matrix = np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.suffix.lower() == ".parquet":
            matrix = _read_parquet(path)
        else:
            raise SaySeeError(f"{path}: give the vectors as .npy or .parquet")
    except OSError as error:
        raise SaySeeError(f"{path}: cannot be read ({error.strerror or error}); check --from-vectors") from None
    except (ValueError, EOFError, pa.ArrowException) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise SaySeeError(f"{path}: holds no vectors that can be read ({why}); save it again") from None
    if matrix.ndim != 2 or matrix.dtype.kind != "f" or not matrix.size:
        raise SaySeeError(f"{path}: shape {list(matrix.shape)} of {matrix.dtype}; give [N, D] of float16 or float32")
    return np.asarray(matrix) if matrix.dtype == np.float16 else np.asarray(matrix, np.float32)


def _read_parquet(path: Path) -> NDArray[Any]:
    schema = pq.read_schema(path)
    lists = [field.name for field in schema if pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)]
    if len(lists) != 1:
        raise SaySeeError(f"{path}: {len(lists)} columns of lists; keep the one that holds the vectors")
    column = pq.read_table(path, columns=lists).column(0).combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    if column.null_count or len(values) % len(column):
        raise SaySeeError(f"{path}: vectors of several lengths; remove the rows without one")
    return np.asarray(values).reshape(len(column), -1)


def _check_space(encoder: Encoder, root: Path, rows: list[Item], matrix: NDArray[Any]) -> list[str]:
    """Compares some vectors with those that the model gives for their images; warns where none could be compared."""
    spread = np.unique(np.linspace(0, len(rows) - 1, 4 * _SAMPLES, dtype=int)).tolist()
    paths = {place: root / rows[place].path for place in spread if rows[place].kind == "image"}
    places = [place for place, path in paths.items() if os.path.isfile(path)][:_SAMPLES]  # files need not be there
    bad: dict[int, MediaError] = {}
    expected = encoder.encode("image", [paths[place] for place in places], bad=bad, progress=False)
    good = [number for number in range(len(places)) if number not in bad]
    if not good:
        return [
            "no image was found at its path, so that only the dimension was checked: whether the vectors are of this "
            "model's image encoder is not known"
        ]
    given = np.asarray(matrix[places], np.float32)[good]
    given /= np.maximum(np.linalg.norm(given, axis=1, keepdims=True), 1e-12)
    cosine = float(np.median((expected[good] * given).sum(axis=1)))
    if not cosine >= _ALIKE:
        raise SaySeeError(
            f"the vectors are not of the image encoder of {encoder.name}: of {len(good)} images encoded to "
            f"compare, the median cosine is {cosine:.2f}; name the model that made them, or index the images"
        )
    return []
