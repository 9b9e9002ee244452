"""The manifest: the table that everything downstream reads, with one row for each spoken caption of an image.

It is a Parquet or JSON Lines file. The columns ``clip``, ``image``, ``image_id`` and ``split`` are required; ``text``,
``speaker`` and ``language`` are optional; any further columns are kept as they are.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pyarrow as pa
import pyarrow.parquet as pq

from saysee.data.tables import arrow_values, holds_json
from saysee.data.values import OnDisk, check_json, check_text
from saysee.errors import ManifestError, did_you_mean
from saysee.files import atomic_write
from saysee.media.source import reason

REQUIRED = ("clip", "image", "image_id", "split")
OPTIONAL = ("text", "speaker", "language")
KNOWN = REQUIRED + OPTIONAL
SUFFIXES = (".parquet", ".jsonl")

_AS_JSON = {b"saysee": b"json"}  # marks a Parquet column of JSON, whose values Arrow's types would change
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


@dataclass(frozen=True, slots=True)
class Row:
    """One spoken caption.

    Attributes:
        clip, image: paths of the files, relative to the manifest's folder or absolute. A manifest changes those of
            Windows to forward slashes.
        image_id: shared by all captions of one image.
        split: train, dev, test, …; an image is in one split only.
        text, speaker: the words spoken, and who speaks.
        language: of the speech, as a tag such as "en".
        extra: further columns, the same in every row; JSON values.
    """

    clip: str
    image: str
    image_id: str
    split: str
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Manifest:
    """Checked rows, the folder (``root``) of their relative paths, and the names of their extra columns.

    Raises:
        ManifestError: no rows; a value of the wrong type, or empty where one is required; a row whose extra columns
            differ from those of the first; a repeated clip; an image in two splits; an image id with two images. Rows
            are counted from 1.
    """

    def __init__(self, rows: Iterable[Row], root: str | os.PathLike[str]) -> None:
        self._hold(_checked(((row, row.extra) for row in rows), Path(root), {}, {}, {}), root)

    def _hold(self, rows: Iterable[Row], root: str | os.PathLike[str]) -> Manifest:
        self.root, self.rows = Path(root), tuple(rows)
        self.extra_columns = tuple(self.rows[0].extra)
        return self

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read a manifest from ``.parquet`` or ``.jsonl``; its folder becomes the root.

        Raises:
            ManifestError: the file is missing, has another suffix or is damaged, or its rows break the schema.
        """
        with _opened(path) as (rows, path):
            return cls.__new__(cls)._hold(_checked(rows, path.parent, {}, {}, {}), path.parent)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write as ``.parquet`` or ``.jsonl``, atomically.

        Relative paths are rewritten to be relative to the new file's folder, which is created if necessary.

        Raises:
            ManifestError: another suffix, or the file cannot be written.
        """
        path = check_suffix(path)
        writer = _write_parquet if path.suffix.lower() == ".parquet" else _write_jsonl
        table: dict[str, list[Any]] = {name: self.column(name) for name in KNOWN + self.extra_columns}
        relative, start = relative_to(path.parent), os.path.realpath(self.root)
        for name in ("clip", "image") if start != os.path.realpath(path.parent) else ():
            table[name] = [each if os.path.isabs(each) else relative(os.path.join(start, each)) for each in table[name]]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                writer(table, file)
        except OSError as error:
            raise ManifestError(f"{path}: cannot be written ({error.strerror or error})") from None

    def select(self, split: str, option: str = "--split", language: str = "") -> Manifest:
        """The rows of one split, of one language if it is given.

        Raises:
            ManifestError: there are none; it names the splits and the option, or the languages.
        """
        rows = tuple(row for row in self.rows if row.split == split)
        if not rows:
            have = ", ".join(f"{name} ({count:,})" for name, count in self.splits().items())
            near = did_you_mean(split, self.splits())
            raise ManifestError(f"no split {split!r}{near}; set {option} to one of those there are: {have}")
        if language:
            spoken = Counter(row.language or "none" for row in rows)
            rows = tuple(row for row in rows if row.language == language)
        if not rows:
            have = ", ".join(f"{name} ({count:,})" for name, count in spoken.items())
            raise ManifestError(f"split {split!r} has no language {language!r}; set data.language to one of: {have}")
        return object.__new__(Manifest)._hold(rows, self.root)  # rows of a checked manifest need no second check

    def splits(self) -> dict[str, int]:
        """Number of clips in each split, in order of first appearance."""
        return dict(Counter(row.split for row in self.rows))

    def clip_path(self, row: Row) -> Path:
        """Path of the clip of ``row``."""
        return self.root / row.clip

    def image_path(self, row: Row) -> Path:
        """Path of the image of ``row``."""
        return self.root / row.image

    def images(self) -> list[Row]:
        """The first row of each image id, in order: the gallery, with each image once."""
        first: dict[str, Row] = {}
        for row in self.rows:
            first.setdefault(row.image_id, row)
        return list(first.values())

    def column(self, name: str) -> list[Any]:
        """The values of any column. Raises ManifestError if it does not exist, with those that do."""
        if name in KNOWN:
            return [getattr(row, name) for row in self.rows]
        if name in self.extra_columns:
            return [row.extra[name] for row in self.rows]
        have = KNOWN + self.extra_columns
        raise ManifestError(f"no column {name!r}{did_you_mean(name, have)}; there are: {', '.join(have)}")

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"Manifest({len(self):,} rows, splits={self.splits()}, root={os.fspath(self.root)!r})"


def read_rows(path: str | os.PathLike[str]) -> Iterator[Row]:
    """As :meth:`Manifest.read`, with few rows in memory at once; raises its errors where the row is read."""
    with _opened(path) as (rows, path):
        yield from _checked(rows, path.parent, OnDisk(), OnDisk(), OnDisk())


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[Iterator[_Unchecked], Path]]:
    """The rows of a file, and its path; errors have the path."""
    path = check_suffix(path)
    if not path.is_file():
        fix = "is a folder; name the file in it" if path.is_dir() else "no such file; check the path"
        raise ManifestError(f"{path}: {fix}")
    reader = _read_parquet if path.suffix.lower() == ".parquet" else _read_jsonl
    try:
        yield reader(path), path
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from None
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: a column of JSON that is none
        raise ManifestError(f"{path}: cannot be read ({reason(error)}); copy or make it again") from None


def check_suffix(path: str | os.PathLike[str]) -> Path:
    """Raises ManifestError if a path does not have the suffix of a manifest."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ManifestError(f"{path}: a manifest cannot have the suffix {path.suffix!r}; use {' or '.join(SUFFIXES)}")
    return path


def name_on_disk(path: str, root: Path) -> str:
    """A path as this system has it: with forward slashes, and its accents composed or decomposed as in the file's name.

    As it is if such a file exists. If none does, only backslashes are changed.
    """
    if path.isascii() and "\\" not in path:
        return path
    slashes = path.replace("\\", "/")
    forms = dict.fromkeys((path, slashes, normalize("NFC", slashes), normalize("NFD", slashes)))
    return next((form for form in forms if len(forms) > 1 and os.path.exists(root / form)), slashes)


_Unchecked = tuple[Row, Collection[str]]  # a row, and the extra columns in which it may have values that are not JSON


def _checked(rows: Iterable[_Unchecked], root: Path, clips: Any, ids: Any, images: Any) -> Iterator[Row]:
    """The rows, with their paths as this system has them.

    ``clips``, ``ids`` and ``images`` note the first row of each, as all of a large manifest need not fit into memory.
    """
    columns, named, image = None, "", ""
    folder = os.fspath(root)
    for number, (row, doubtful) in enumerate(rows, 1):
        columns = _check_names(row.extra) if columns is None else columns
        _check_values(row, columns, doubtful, number)
        own = name_on_disk(row.clip, root), name_on_disk(row.image, root)
        if own != (row.clip, row.image):
            row = replace(row, clip=own[0], image=own[1])
        if row.image != named:  # the rows of an image mostly follow each other
            named, image = row.image, os.path.normpath(os.path.join(folder, row.image))
        clip = os.path.normpath(os.path.join(folder, row.clip))
        earlier = clips.setdefault(clip, number)
        if earlier != number:
            raise ManifestError(f"rows {earlier} and {number}: the same clip {row.clip!r}; remove one of them")
        first, split = images.setdefault(image, (number, row.split))
        if split != row.split:
            raise _leak(f"image {row.image!r}", (first, split), (number, row.split))
        first, split, known, other = ids.setdefault(row.image_id, (number, row.split, image, row.image))
        if known != image:
            if split != row.split:
                raise _leak(f"image id {row.image_id!r}", (first, split), (number, row.split))
            both = f"image id {row.image_id!r} has two images, {other!r} and {row.image!r}"
            raise ManifestError(f"rows {first} and {number}: {both}; change one")
        yield row
    if columns is None:
        raise ManifestError("no rows; a manifest has at least one")


def _check_names(extra: Mapping[str, Any]) -> Set[str]:
    for name in extra:
        if not isinstance(name, str) or not name or name in KNOWN:
            raise ManifestError(f"row 1: {name!r} cannot be the name of an extra column; rename it")
    return extra.keys()


def _check_values(row: Row, columns: Set[str], doubtful: Iterable[str], number: int) -> None:
    for name in KNOWN:
        value = getattr(row, name)
        if name in REQUIRED and (value is None or value == ""):
            raise ManifestError(f"row {number}: {name} is empty; every row needs one")
        if value is not None:
            check_text(value, name, number)
    if row.extra.keys() != columns:
        raise _different_columns(row.extra.keys(), columns, number)
    for name in doubtful:
        check_json(row.extra[name], name, number)


def _check_columns(columns: Iterable[str]) -> None:
    have = list(columns)
    for name in REQUIRED:
        if name not in have:
            near = difflib.get_close_matches(name, [other for other in have if other not in REQUIRED], 1)
            fix = f"rename {near[0]!r}" if near else "add it"
            raise ManifestError(f"no column {name!r}; {fix} (there are: {', '.join(map(repr, have)) or 'none'})")
    repeated = [name for name, count in Counter(have).items() if count > 1]
    if repeated:
        raise ManifestError(f"there are two columns {repeated[0]!r}; rename one")


def _different_columns(columns: Iterable[str], first: Iterable[str], number: int) -> ManifestError:
    added, absent = [name for name in columns if name not in first], [name for name in first if name not in columns]
    pairs = (("does not have", absent), ("adds", added))
    parts = [f"{what} {', '.join(map(repr, names))}" for what, names in pairs if names]
    hint = did_you_mean(added[0], absent) if added else ""
    return ManifestError(f"row {number} {' and '.join(parts)}{hint}; give every row the columns of row 1")


def _leak(what: str, one: tuple[int, str], other: tuple[int, str]) -> ManifestError:
    splits = f"{one[1]!r} and {other[1]!r}"
    return ManifestError(f"rows {one[0]} and {other[0]}: {what} is in the splits {splits}; keep it in one")


def relative_to(root: Path) -> Callable[[str], str]:
    """A function that makes paths relative to ``root``, or absolute if that is impossible (another drive)."""
    real = os.path.realpath(root)  # ".." leads from the real folder, not from a link to it

    @functools.cache  # a million files share few folders
    def relative_folder(folder: str) -> str:
        try:
            relative = os.path.relpath(os.path.abspath(folder), real)
        except ValueError:
            return os.path.abspath(folder)
        return "" if relative == os.curdir else relative

    def relative(path: str) -> str:
        folder, name = os.path.split(path)
        return os.path.join(relative_folder(folder), name).replace(os.sep, "/")

    return relative


def _read_jsonl(path: Path) -> Iterator[_Unchecked]:
    first: Set[str] | None = None
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").decode())
            except (ValueError, RecursionError) as error:
                if not line.strip() and not line.endswith(b"\n"):  # what follows the last line
                    return
                raise ManifestError(f"row {number}: not a line of JSON ({error}); fix or delete it") from None
            if not isinstance(record, dict):
                raise ManifestError(f"row {number}: {type(record).__name__}, not an object ({{…}}); fix or delete it")
            if first is None:
                _check_columns(record)
                first = dict.fromkeys(record).keys()
            elif record.keys() != first:
                raise _different_columns(record, first, number)
            known = {name: record.pop(name) for name in KNOWN if name in record}
            row = Row(**known, extra=record)
            try:
                _encode(row.extra).encode()
                yield row, ()
            except ValueError:  # a number that is not finite, or text that is not valid Unicode
                yield row, row.extra


def _write_jsonl(table: dict[str, list[Any]], file: Any) -> None:
    for values in zip(*table.values(), strict=True):
        file.write(_encode(dict(zip(table, values, strict=True))).encode() + b"\n")


def _read_parquet(path: Path) -> Iterator[_Unchecked]:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        _check_columns(schema.names)
        as_json = [field.name for field in schema if (field.metadata or {}).items() >= _AS_JSON.items()]
        for batch in file.iter_batches():
            table, columns = pa.Table.from_batches([batch]), dict[str, list[Any]]()
            doubtful = []
            for name, arrow in zip(table.column_names, table.columns, strict=True):
                columns[name] = arrow_values(arrow, f"column {name!r}")
                if name in as_json:
                    columns[name] = [None if value is None else json.loads(value) for value in columns[name]]
                if name not in KNOWN and (name in as_json or not holds_json(arrow)):
                    doubtful.append(name)
            known = [columns.pop(name, [None] * len(batch)) for name in KNOWN]
            further = zip(*columns.values(), strict=True) if columns else [()] * len(batch)
            extra = (dict(zip(columns, values, strict=True)) for values in further)
            yield from ((Row(*values), doubtful) for values in zip(*known, extra, strict=True))


def _write_parquet(table: dict[str, list[Any]], file: Any) -> None:
    arrays, fields = [], []
    for name, values in table.items():
        array, metadata = pa.array(values, pa.string()) if name in KNOWN else _faithful(values), None
        if array is None:
            array = pa.array([None if value is None else json.dumps(value) for value in values], pa.string())
            metadata = _AS_JSON
        arrays.append(array)
        fields.append(pa.field(name, array.type, metadata=metadata))
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), file, compression="zstd")


def _faithful(values: list[Any]) -> Any:
    """``values`` in Arrow's own types; None if these would change them (1 to 1.0, a missing key to null, …)."""
    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return None
    if _unwritable(array.type) or json.dumps(array.to_pylist(), sort_keys=True) != json.dumps(values, sort_keys=True):
        return None
    return array


def _unwritable(kind: Any) -> bool:
    """Whether Parquet cannot hold an Arrow type: objects without keys, and nulls within other types."""
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_unwritable(f.type) or pa.types.is_null(f.type) for f in kind)
    return pa.types.is_list(kind) and (pa.types.is_null(kind.value_type) or _unwritable(kind.value_type))
