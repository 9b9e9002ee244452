"""An index of vectors that the user already has, from CLIP's image encoder: no image is encoded again."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from saysee.data.manifest import name_on_disk
from saysee.data.tables import Table, normal_title, open_table, plain_column, read_text, word
from saysee.encoding.encoder import Encoder
from saysee.errors import MediaError, SaySeeError
from saysee.media.formats import kind_by_suffix
from saysee.search.index.about import IndexReport
from saysee.search.index.index import open_store
from saysee.search.index.sources import is_upload
from saysee.search.index.store import UNIT_TOLERANCE, Item
from saysee.search.index.updating import begin, finish

_PATH_COLUMNS = ("path", "imagepath", "image", "file", "filename", "url", "id", "key")
"""Titles of the column of paths, the preferred one first; compared without case, spaces, ``_`` and ``-``."""
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

    Rows whose vector is missing, zero, not finite or of another dimension are left out and reported.

    Args:
        encoder: the model whose image encoder they came from.
        vectors: ``.npy`` [N, D]; ``.parquet`` with one column of lists of floats; or a folder of such files in the
            order of their numbers, such as clip-retrieval's with its ``img_emb/img_emb_0.npy``. Of any length but 0.
        ids: N rows in the same order: delimited text, JSON lines or Parquet with a column ``path`` (or image_path,
            image, file, filename, url, id, key), whose other columns become metadata; ``.txt`` with a path a line; or a
            folder of such files, such as clip-retrieval's with its ``metadata/metadata_0.parquet``. Relative paths
            start from where this file or folder is.
        to: folder of the index, or ``postgresql://user@host/database?schema=name``.

    Raises:
        SaySeeError: a file cannot be read; another number of ids; another dimension; vectors that are not this model's,
            as far as the images can be found.
    """
    parts = [_read_part(path, encoder.dimension) for path in _files(Path(vectors), "img_emb", "--from-vectors")]
    place = _inner(Path(ids), "metadata")
    root = Path(os.path.abspath(place.parent))
    lists = [_read_ids(path, root) for path in _files(place, "metadata", "--ids")]
    rows, matrix = _fit(lists, parts, Path(ids), Path(vectors))
    wide = [part for part in parts if part.values.shape[1] != encoder.dimension]
    if wide:
        raise SaySeeError(
            f"{wide[0].path}: {wide[0].values.shape[1]} dimensions, and the model {encoder.name} has "
            f"{encoder.dimension}; give the model whose image encoder made them"
        )
    store = open_store(to)
    notes = [note for found in lists for note in found.notes]
    report = IndexReport(index=store.place, notes=[*_check_space(encoder, root, rows, matrix), *notes])
    report.notes += [encoder.warning] if encoder.warning else []
    with store.writing() as writer:
        about, known = begin(writer, encoder, root, place.name, matrix.precision)
        for item in rows:
            item.encoded_by = about.fingerprints[item.kind]
        scaled = 0
        for start in range(0, len(rows), _CHUNK):
            block, lengths = matrix.block(start, start + _CHUNK)
            good = np.flatnonzero(lengths > 0)
            with writer.transaction():
                unit = (block[good] / lengths[good, None]).astype(np.float32)
                writer.put([rows[start + place] for place in good], unit)
            scaled += int(np.sum(np.abs(lengths[good] - 1) > UNIT_TOLERANCE))
        report.refused = [(item.path, matrix.why(number, item.path)) for number, item in enumerate(rows) if not item.id]
        stored = {item.key for item in rows if item.id}
        leaving = [row for key, row in known.items() if key not in stored and not is_upload(row)]
        report.removed = len(leaving)
        writer.remove(leaving)
        if scaled:
            report.notes.append(f"{scaled:,} vectors were not of length 1; all are kept as unit vectors")
        finish(writer, about, report)
    return report


@dataclass(frozen=True, slots=True)
class _Part:
    """The vectors [N, D] of a file, NaN where a row has none of D numbers; ``wrong`` says what these rows have."""

    path: Path
    values: NDArray[Any]
    wrong: dict[int, str]


class _Vectors:
    """The vectors of several files one after the other; those of ``.npy`` are mapped, not read."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part.values) for part in parts)])
        self.precision = "float16" if all(part.values.dtype == np.float16 for part in parts) else "float32"

    def block(self, start: int, stop: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Some vectors, and their lengths: 0 for one that cannot be used."""
        pieces = []
        for part, first in zip(self._parts, self._starts, strict=False):
            piece = part.values[max(0, start - first) : max(0, stop - first)]
            pieces.append(np.asarray(piece, np.float64))  # the squares of large fp32 values are not finite in fp32
        block = np.concatenate(pieces)
        lengths = np.linalg.norm(block, axis=1)
        return block, np.where(np.isfinite(lengths), lengths, 0.0)

    def why(self, number: int, path: str) -> str:
        """Why a vector cannot be used, with its file, its row from 1, and its path."""
        which = int(np.searchsorted(self._starts, number, "right")) - 1
        part, row = self._parts[which], number - int(self._starts[which])
        values = np.asarray(part.values[row], np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        what = f"its vector has {values[bad[0]]} at {bad[0]}" if bad.size else "its vector is zero"
        return f"{part.path}: row {row + 1} ({path}): {part.wrong.get(row, what)}; not indexed"


@dataclass(frozen=True, slots=True)
class _Ids:
    path: Path
    items: list[Item]
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


def _fit(lists: Sequence[_Ids], parts: Sequence[_Part], ids: Path, vectors: Path) -> tuple[list[Item], _Vectors]:
    """All ids and all vectors, checked to be as many, in each file if there are as many files."""
    pairs = list(zip(lists, parts, strict=True)) if len(lists) == len(parts) else []
    for found, part in pairs:
        if len(found.items) != len(part.values):
            raise _counts_differ(found.path, len(found.items), part.path, len(part.values))
    rows = [item for found in lists for item in found.items]
    total = sum(len(part.values) for part in parts)
    if len(rows) != total:
        raise _counts_differ(ids, len(rows), vectors, total)
    if not rows:
        raise SaySeeError(f"{ids}: no lines; give one for each vector")
    for path, count in Counter(item.path for item in rows).items() if len(lists) > 1 else ():
        if count > 1:
            raise SaySeeError(f"{ids}: {path!r} is there {count} times; give each vector a path of its own")
    return rows, _Vectors(parts)


def _counts_differ(ids: Path, lines: int, vectors: Path, count: int) -> SaySeeError:
    return SaySeeError(f"{ids}: {lines:,} lines for the {count:,} vectors of {vectors}; write one for each")


def _read_ids(path: Path, root: Path) -> _Ids:
    table = _open_ids(path)
    titles = [normal_title(title) for title in table.titles]
    column = next((titles.index(title) for title in _PATH_COLUMNS if title in titles), None)
    if column is None:
        have = f"{', '.join(table.titles)!r:.80}"
        raise SaySeeError(f"{path}: no column {_PATH_COLUMNS[0]!r}; add one (there are: {have})")
    items: dict[str, Item] = {}
    for number, values in table.rows():
        place = table.place(number)
        name = name_on_disk(word(values[column], place, table.titles[column]) or "", root)
        if not name or name in items:
            what = f"{name!r} is there twice" if name else "no path"
            raise SaySeeError(f"{place}: {what}; give each vector a path of its own")
        further = (
            (title, value) for at, (title, value) in enumerate(zip(table.titles, values, strict=True)) if at != column
        )
        metadata = {title: value for title, value in further if title and value is not None}
        items[name] = Item(kind_by_suffix(name) or "image", name, metadata=metadata)
    return _Ids(path, list(items.values()), table.notes)


def _open_ids(path: Path) -> Table:
    """The table of ids. A ``.txt`` that is no table has a path a line, which may contain any delimiter."""
    table = open_table(path, without=_is_vectors)
    known = {*map(normal_title, table.titles)} & {*_PATH_COLUMNS}
    if path.suffix.lower() != ".txt" or (known and len(table.titles) > 1):
        return table
    text, notes = read_text(path)
    lines = [(number, [line]) for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1) if line.strip()]
    headed = bool(lines) and normal_title(lines[0][1][0]) in _PATH_COLUMNS
    return Table(path, ("path",), "line", notes, lines[headed:])


def _is_vectors(kind: Any) -> bool:
    """Whether an Arrow type is of lists of floats: their items are vectors."""
    while isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
    return any(is_kind(kind) for is_kind in (*lists, pa.types.is_large_list_view)) and pa.types.is_floating(
        kind.value_type
    )


def _read_part(path: Path, dimension: int) -> _Part:
    """The vectors of a file as fp16 or fp32."""
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
    return _Part(path, matrix if matrix.dtype.itemsize <= 4 else np.asarray(matrix, np.float32), wrong)


def _read_parquet(path: Path, dimension: int) -> tuple[NDArray[Any], dict[int, str]]:
    lists = [field.name for field in pq.read_schema(path) if _is_vectors(field.type)]
    if len(lists) != 1:
        names = f" ({', '.join(lists)})" if lists else ""
        raise SaySeeError(
            f"{path}: {len(lists)} columns of lists of floats{names}; keep the one that holds the vectors"
        )
    column = plain_column(pq.read_table(path, columns=lists).column(0)).combine_chunks()
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), -1))
    counts = Counter(lengths[lengths >= 0].tolist())
    width = dimension if dimension in counts else max(counts, key=counts.__getitem__, default=0)
    good = lengths == width
    wrong = {
        int(row): "it has no vector" if lengths[row] < 0 else f"its vector has {lengths[row]} dimensions, not {width}"
        for row in np.flatnonzero(~good)
    }
    values = (column.filter(pa.array(good)) if wrong else column).flatten().to_numpy(zero_copy_only=False)
    if not wrong:
        return np.asarray(values).reshape(len(column), -1), {}
    matrix: NDArray[Any] = np.full((len(column), width), np.nan, values.dtype)
    matrix[good] = values.reshape(-1, width)
    return matrix, wrong


def _check_space(encoder: Encoder, root: Path, rows: list[Item], matrix: _Vectors) -> list[str]:
    """Compares some vectors with those that the model gives for their images; warns where none could be compared."""
    given: dict[int, NDArray[np.float64]] = {}
    for place in np.unique(np.linspace(0, len(rows) - 1, 4 * _SAMPLES, dtype=int)).tolist():
        # Files need not be there.
        if len(given) < _SAMPLES and rows[place].kind == "image" and os.path.isfile(root / rows[place].path):
            (vector,), (length,) = matrix.block(place, place + 1)
            if length:
                given[place] = vector / length
    bad: dict[int, MediaError] = {}
    expected = encoder.encode("image", [root / rows[place].path for place in given], bad=bad, progress=False)
    good = [number for number in range(len(given)) if number not in bad]
    if not good:
        return [
            "no image was found at its path, so that only the dimension was checked: whether the vectors are of this "
            "model's image encoder is not known"
        ]
    cosine = float(np.median((expected[good] * np.stack(list(given.values()))[good]).sum(axis=1)))
    if not cosine >= _ALIKE:
        raise SaySeeError(
            f"the vectors are not of the image encoder of {encoder.name}: of {len(good)} images encoded to "
            f"compare, the median cosine is {cosine:.2f}; name the model that made them, or index the images"
        )
    return []
