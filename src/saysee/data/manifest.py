"""The manifest: the one table that everything downstream reads, a row for each spoken caption of a picture.

It is kept as Parquet or JSON lines. The columns ``clip``, ``image``, ``image_id`` and ``split`` must be there;
``text``, ``speaker`` and ``language`` may be empty or missing; any further column is kept as it is.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from saysee.errors import ManifestError

REQUIRED = ("clip", "image", "image_id", "split")
OPTIONAL = ("text", "speaker", "language")

_AS_JSON = {b"saysee": b"json"}  # marks a Parquet column whose values Arrow's types could not hold faithfully


@dataclass(frozen=True, slots=True)
class Row:
    """One spoken caption.

    Attributes:
        clip: path of the sound; relative to the manifest's folder, or absolute.
        image: path of the picture, likewise.
        image_id: what the captions of one picture share.
        split: train, dev, test, …; a picture lies in one split only.
        text: the words spoken.
        speaker: who speaks.
        language: in which language, as a tag such as "en".
        extra: further columns, the same in every row; values as of JSON.
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
    """Rows that were checked, and the folder their paths start from.

    Attributes:
        rows: the rows in order.
        root: folder that relative paths are resolved against.
        extra_columns: names of the columns beyond ``REQUIRED`` and ``OPTIONAL``, in order.

    Raises:
        ManifestError: no rows; a value of a wrong type, or empty where one is required; a row whose extra columns are
            not those of the first; a clip twice; a picture in two splits; an image id with two pictures. Rows are
            counted from 1.
    """

    def __init__(self, rows: Iterable[Row], root: str | os.PathLike[str]) -> None:
        self.rows = tuple(rows)
        self.root = Path(root)
        if not self.rows:
            raise ManifestError("no rows; a manifest holds at least one")
        self.extra_columns = tuple(self.rows[0].extra)
        _check_values(self.rows)
        _check_identities(self.rows, os.fspath(self.root))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read a manifest from ``.parquet`` or ``.jsonl``; its folder becomes the root.

        Raises:
            ManifestError: the file is missing, of another suffix or damaged, or its rows break the schema.
        """
        path = Path(path)
        reader = {".parquet": _read_parquet, ".jsonl": _read_jsonl}.get(path.suffix.lower())
        if reader is None:
            _refuse_suffix(path)
        if not path.is_file():
            what = "is a directory; name the file in it" if path.is_dir() else "no such file; check the path"
            raise ManifestError(f"{path}: {what}")
        try:
            return cls(reader(path), path.parent)
        except ManifestError as error:
            raise ManifestError(f"{path}: {error}") from None
        except (OSError, pa.ArrowException) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise ManifestError(f"{path}: cannot be read ({why}); copy or make it again") from None

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write as ``.parquet`` or ``.jsonl``, whole or not at all.

        Relative paths are rewritten so as to start from the new file's folder, which is made if need be.

        Raises:
            ManifestError: another suffix, or the file cannot be written.
        """
        path = Path(path)
        writer = {".parquet": _write_parquet, ".jsonl": _write_jsonl}.get(path.suffix.lower())
        if writer is None:
            _refuse_suffix(path)
        moved = _Relocation(self.root, path.parent)
        table: dict[str, list[Any]] = {name: self.column(name) for name in self._columns()}
        table["clip"] = [moved(clip) for clip in table["clip"]]
        table["image"] = [moved(image) for image in table["image"]]
        scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with scratch.open("wb") as file:
                writer(table, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        except OSError as error:
            raise ManifestError(f"{path}: cannot be written ({error.strerror or error})") from None
        finally:
            scratch.unlink(missing_ok=True)

    def select(self, split: str) -> Manifest:
        """The rows of one split.

        Raises:
            ManifestError: no such split; the message lists those there are.
        """
        rows = tuple(row for row in self.rows if row.split == split)
        if not rows:
            have = ", ".join(f"{name} ({count:,})" for name, count in self.splits().items())
            raise ManifestError(f"no split {split!r}{_did_you_mean(split, self.splits())}; there are: {have}")
        chosen = object.__new__(Manifest)  # rows of a checked manifest need no second check
        chosen.rows, chosen.root, chosen.extra_columns = rows, self.root, self.extra_columns
        return chosen

    def splits(self) -> dict[str, int]:
        """Clips in each split, in order of first appearance."""
        return dict(Counter(row.split for row in self.rows))

    def clip_path(self, row: Row) -> Path:
        """Where the sound of ``row`` lies."""
        return self.root / row.clip

    def image_path(self, row: Row) -> Path:
        """Where the picture of ``row`` lies."""
        return self.root / row.image

    def images(self) -> list[Row]:
        """The first row of each image id, in order: the gallery, each picture once."""
        first: dict[str, Row] = {}
        for row in self.rows:
            first.setdefault(row.image_id, row)
        return list(first.values())

    def column(self, name: str) -> list[Any]:
        """The values of one column, an extra one too.

        Raises:
            ManifestError: no such column; the message lists those there are.
        """
        if name in REQUIRED or name in OPTIONAL:
            return [getattr(row, name) for row in self.rows]
        if name in self.extra_columns:
            return [row.extra[name] for row in self.rows]
        have = self._columns()
        raise ManifestError(f"no column {name!r}{_did_you_mean(name, have)}; there are: {', '.join(have)}")

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"Manifest({len(self):,} rows, splits={self.splits()}, root={os.fspath(self.root)!r})"

    def _columns(self) -> tuple[str, ...]:
        return REQUIRED + OPTIONAL + self.extra_columns


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_values(rows: tuple[Row, ...]) -> None:
    """Each row by itself: types, no empty required value, the extra columns of the first row."""
    columns = rows[0].extra.keys()
    for number, row in enumerate(rows, 1):
        for name in REQUIRED:
            value = getattr(row, name)
            if value is None or value == "":
                raise ManifestError(f"row {number}: {name} is empty; every row needs one")
            _check_text(value, name, number)
        for name in OPTIONAL:
            value = getattr(row, name)
            if value is not None:
                _check_text(value, name, number)
        if row.extra.keys() != columns:
            _refuse_columns(row.extra.keys(), columns, number)
        for name, value in row.extra.items():
            if not isinstance(name, str) or not name or name in REQUIRED or name in OPTIONAL:
                raise ManifestError(f"row {number}: {name!r} cannot name an extra column; choose another name")
            _check_json(value, name, number)


def _check_identities(rows: tuple[Row, ...], root: str) -> None:
    """The rows among each other: each clip once, each picture in one split, each image id one picture."""
    clips: dict[str, int] = {}
    ids: dict[str, tuple[int, str]] = {}
    pictures: dict[str, tuple[int, str]] = {}
    normal: dict[str, str] = {}  # five captions share a picture: its path is made normal once
    for number, row in enumerate(rows, 1):
        clip = os.path.normpath(os.path.join(root, row.clip))
        earlier = clips.setdefault(clip, number)
        if earlier != number:
            raise ManifestError(f"rows {earlier} and {number}: the same clip {row.clip!r}; remove one of them")
        picture = normal.get(row.image) or normal.setdefault(row.image, os.path.normpath(os.path.join(root, row.image)))
        at, split = pictures.setdefault(picture, (number, row.split))
        if split != row.split:
            _refuse_leak(f"image {row.image!r}", (at, split), (number, row.split))
        at, known = ids.setdefault(row.image_id, (number, picture))
        if known != picture:
            there = rows[at - 1]
            if there.split != row.split:
                _refuse_leak(f"image id {row.image_id!r}", (at, there.split), (number, row.split))
            both = f"{there.image!r} and {row.image!r}"
            raise ManifestError(f"rows {at} and {number}: image id {row.image_id!r} has two images, {both}; mend one")


def _check_text(value: object, name: str, number: int) -> None:
    if not isinstance(value, str):
        raise ManifestError(f"row {number}: {name} is {type(value).__name__} ({value!r:.40}); make it a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ManifestError(f"row {number}: {name} {value!r:.60} is not valid Unicode; rename it") from None


def _check_json(value: object, name: str, number: int) -> None:
    if value is None or isinstance(value, (bool, int)):
        return
    if isinstance(value, str):
        _check_text(value, name, number)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ManifestError(f"row {number}: {name} is {value}; leave a missing number empty (null)")
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_json(item, name, number)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ManifestError(f"row {number}: {name} has the key {key!r:.40}; make keys strings")
            _check_text(key, name, number)
            _check_json(item, name, number)
    else:
        kind = type(value).__name__
        raise ManifestError(f"row {number}: {name} is {kind}; use strings, numbers, booleans, null, lists or objects")


def _check_columns(columns: Iterable[str]) -> None:
    have = list(columns)
    for name in REQUIRED:
        if name not in have:
            near = difflib.get_close_matches(name, [other for other in have if other not in REQUIRED], 1)
            mend = f"rename {near[0]!r}" if near else "add it"
            raise ManifestError(f"no column {name!r}; {mend} (there are: {', '.join(map(repr, have)) or 'none'})")
    twice = [name for name, count in Counter(have).items() if count > 1]
    if twice:
        raise ManifestError(f"column {twice[0]!r} is there twice; rename one")


def _refuse_columns(columns: Iterable[str], first: Iterable[str], number: int) -> NoReturn:
    more, less = [name for name in columns if name not in first], [name for name in first if name not in columns]
    parts = [f"lacks {', '.join(map(repr, less))}"] * bool(less) + [f"adds {', '.join(map(repr, more))}"] * bool(more)
    hint = _did_you_mean(more[0], less) if more else ""
    raise ManifestError(f"row {number}: {' and '.join(parts)}{hint}; every row has the columns of row 1")


def _refuse_leak(what: str, one: tuple[int, str], other: tuple[int, str]) -> NoReturn:
    raise ManifestError(
        f"rows {one[0]} and {other[0]}: {what} lies in the splits {one[1]!r} and {other[1]!r}; keep it in one"
    )


def _refuse_suffix(path: Path) -> NoReturn:
    raise ManifestError(f"{path}: the suffix {path.suffix!r} is no manifest's; use .parquet or .jsonl")


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


# --- files ------------------------------------------------------------------------------------------------------------


class _Relocation:
    """Rewrites relative paths that start from one folder to start from another."""

    def __init__(self, old: Path, new: Path) -> None:
        self.old, self.new = os.path.abspath(old), os.path.abspath(new)

    def __call__(self, path: str) -> str:
        if self.old == self.new or os.path.isabs(path):
            return path
        try:
            return os.path.relpath(os.path.join(self.old, path), self.new)
        except ValueError:  # another drive
            return os.path.join(self.old, path)


def _rows(columns: Iterable[str], records: Iterable[Mapping[str, Any]]) -> list[Row]:
    known = [name for name in REQUIRED + OPTIONAL if name in set(columns)]
    extra = [name for name in columns if name not in known]
    return [
        Row(**{name: record[name] for name in known}, extra={name: record[name] for name in extra})
        for record in records
    ]


def _read_jsonl(path: Path) -> list[Row]:
    records: list[dict[str, Any]] = []
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")  # without the mark some editors put in front
    if not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"row {number}: not a line of JSON ({error}); mend or delete it") from None
        if not isinstance(record, dict):
            raise ManifestError(f"row {number}: {type(record).__name__}, not an object ({{…}}); mend or delete it")
        if not records:
            _check_columns(record)
        elif record.keys() != records[0].keys():
            _refuse_columns(record, records[0], number)
        records.append(record)
    return _rows(records[0], records) if records else []


def _write_jsonl(table: dict[str, list[Any]], file: Any) -> None:
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
    for values in zip(*table.values(), strict=True):
        file.write(encode(dict(zip(table, values, strict=True))).encode() + b"\n")


def _read_parquet(path: Path) -> list[Row]:
    with pq.ParquetFile(path) as file:
        table = file.read()
    _check_columns(table.column_names)
    columns: dict[str, list[Any]] = {}
    for name, arrow in zip(table.column_names, table.columns, strict=True):
        values = arrow.to_pylist()
        if (table.schema.field(name).metadata or {}).items() >= _AS_JSON.items():
            values = [None if value is None else json.loads(value) for value in values]
        columns[name] = values
    names = tuple(columns)
    return _rows(names, (dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)))


def _write_parquet(table: dict[str, list[Any]], file: Any) -> None:
    arrays, fields = [], []
    for name, values in table.items():
        array = pa.array(values, pa.string()) if name in REQUIRED + OPTIONAL else _faithful(values)
        if array is None:
            array = pa.array([None if value is None else json.dumps(value) for value in values], pa.string())
            fields.append(pa.field(name, array.type, metadata=_AS_JSON))
        else:
            fields.append(pa.field(name, array.type))
        arrays.append(array)
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), file, compression="zstd")


def _faithful(values: list[Any]) -> Any:
    """``values`` in Arrow's own types, or None where these would change them (1 to 1.0, a missing key to null, …)."""
    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return None
    if _unwritable(array.type) or json.dumps(array.to_pylist(), sort_keys=True) != json.dumps(values, sort_keys=True):
        return None
    return array


def _unwritable(kind: Any) -> bool:
    """Whether Parquet has no place for an Arrow type: objects without keys, and nulls within others."""
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_unwritable(f.type) or pa.types.is_null(f.type) for f in kind)
    return pa.types.is_list(kind) and (pa.types.is_null(kind.value_type) or _unwritable(kind.value_type))
