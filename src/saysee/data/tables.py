"""Reading the tables of users strictly: delimited text, JSON lines and Parquet.

What does not fit is an error that names its line or row. What is guessed or dropped is in the table's notes.
"""

import csv
import datetime
import decimal
import gc
import json
import math
import os
import re
import unicodedata
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from saysee.errors import ManifestError
from saysee.media.source import reason

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "clip": ("clip", "audio", "wav", "sound", "speech"),
    "image": ("image", "picture", "photo", "img"),
    "image_id": ("imageid", "imgid"),
    "split": ("split",),
    "text": ("text", "caption", "transcript", "transcription", "sentence", "texts", "captions", "sentences"),
    "speaker": ("speaker", "speakerid"),
    "language": ("language", "lang"),
    "file": ("filename", "file", "filepath", "path"),
}
"""Titles that a column may have, for each column of a manifest, the usual one first. "file" is a clip or an image,
as in AudioFolder and ImageFolder of ``datasets``. Compared as :func:`role_of` does."""

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SEEN = re.compile(r"^(.+?)[ _-]?((?:un)?seen)$")
_DELIMITERS = ",;\t|"
_SEPARATOR_LINE = re.compile(r'"?sep=(.|\\t)"?\r?\n?', re.IGNORECASE)  # Excel's own first line
_SEPARATOR_LENGTH = 16  # characters; more than such a line has
_PATH_SUFFIX = re.compile(r"(filepath|filename|path|file|name)$")
_JSON_SUFFIXES = (".jsonl", ".ndjson")


def normal_title(title: str) -> str:
    """A title for comparisons: without case, spaces, ``_`` and ``-``."""
    return re.sub(r"[\s_-]", "", unicodedata.normalize("NFC", title).casefold())


def role_of(title: str) -> str | None:
    """The key of ``COLUMNS`` that a column of this title fills; None if it fills none.

    Case, spaces, ``_`` and ``-`` are ignored, and of clips and images a final "path", "file", "name" or "filename".
    """
    word = normal_title(title)
    stem = _PATH_SUFFIX.sub("", word)
    for role, titles in COLUMNS.items():
        if word in titles or (role in ("clip", "image") and stem in titles):
            return role
    return None


def split_name(name: str) -> str:
    """The split of a manifest for that of a corpus: train, val (dev, validation, …), test; any other name stays.

    A final ``seen`` or ``unseen`` is kept (``val_seen``), because scores on the two are reported apart.
    """
    word = name.strip().casefold()
    seen = _SEEN.match(word)
    kind = _SPLITS.get(seen[1] if seen else word)
    return f"{kind}_{seen[2]}" if kind and seen else kind or name


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose header has been read. :meth:`rows` reads the rest."""

    path: Path  # the file
    titles: tuple[str, ...]  # of its columns, in order
    unit: str  # what its rows are counted in: "line" of a text file, or "row"
    notes: tuple[str, ...]  # what was guessed or dropped, for the user
    _rows: Iterable[tuple[int, Sequence[Any]]]

    def rows(self) -> Iterator[tuple[int, Sequence[Any]]]:
        """Number (from 1; of text the line where it starts) and JSON values of each row that is not blank; only once.

        Raises ManifestError: two columns have one title; a row, or a column that fills a role, cannot be read; a row
        has more or fewer cells than the header.
        """
        for title, count in Counter(self.titles).items():
            if count > 1 and title:
                raise ManifestError(f"{self.path}: {count} columns {title!r}; rename all but one")
        try:
            for number, values in self._rows:
                if any(value is not None for value in values):
                    yield number, values
        except (OSError, pa.ArrowException) as error:
            raise ManifestError(f"{self.path}: cannot be read ({reason(error)}); check the file") from None

    def place(self, number: int) -> str:
        """Where a row is, for error messages."""
        return f"{self.path}: {self.unit} {number}"

    def columns(self) -> tuple[dict[str, int], list[str]]:
        """The position of the column of each role, and notes on columns that could fill a role too."""
        found: dict[str, list[tuple[int, int]]] = {}
        for position, title in enumerate(self.titles):
            if role := role_of(title):
                word, known = normal_title(title), COLUMNS[role]
                rank = known.index(word) if word in known else len(known)
                found.setdefault(role, []).append((rank, position))
        notes = []
        for role, ranked in found.items():
            first, *others = (repr(self.titles[position]) for _, position in sorted(ranked))
            notes += [f"{self.path}: {role} is the column {first}, not {', '.join(others)}"] if others else []
        return {role: min(ranked)[1] for role, ranked in found.items()}, notes


def open_table(path: str | os.PathLike[str], without: Callable[[pa.DataType], bool] | None = None) -> Table:
    """A table by its suffix: Parquet, JSON lines (``.jsonl``, ``.ndjson``), else delimited text.

    Columns of Parquet for whose type ``without`` is true are not read. Raises ManifestError if it cannot be read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return _open_parquet(path, without)
        encoding, notes = text_encoding(path)
        return (_open_json_lines if suffix in _JSON_SUFFIXES else _open_delimited)(path, encoding, notes)
    except (OSError, pa.ArrowException) as error:
        raise ManifestError(f"{path}: cannot be read ({reason(error)}); check the file") from None


def read_text(path: Path) -> tuple[str, tuple[str, ...]]:
    """A text file without its byte order mark, with its line ends; notes and errors of :func:`text_encoding`."""
    encoding, notes = text_encoding(path)
    with path.open(encoding=encoding, newline="") as file:
        return file.read(), notes


def text_encoding(path: Path) -> tuple[str, tuple[str, ...]]:
    """The encoding of a text file, and a note if it was guessed: UTF-8, UTF-16 with or without a mark, Windows-1252.

    Raises ManifestError if it cannot be read, or is none of these.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
        bare = {b"\0": "utf-16-be"}.get(start[:1]) or ("utf-16-le" if start[1:2] == b"\0" else "")
        utf16 = start in (b"\xff\xfe", b"\xfe\xff")
        for encoding in ("utf-16",) if utf16 else (bare,) if bare else ("utf-8-sig", "cp1252"):
            if _is_text(path, encoding):
                return encoding, (f"{path}: not UTF-8; read as Windows-1252",) * (encoding == "cp1252")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None
    raise ManifestError(f"{path}: not text in UTF-8, UTF-16 or Windows-1252; save it as UTF-8")


def _is_text(path: Path, encoding: str) -> bool:
    try:
        with path.open(encoding=encoding, newline="") as file:
            return all("\0" not in part for part in iter(partial(file.read, 1 << 20), ""))
    except UnicodeError:
        return False


def _open_delimited(path: Path, encoding: str, notes: tuple[str, ...]) -> Table:
    with path.open(encoding=encoding, newline="") as file:
        separator = _SEPARATOR_LINE.match(file.read(_SEPARATOR_LENGTH))
    named = separator[1].replace("\\t", "\t") if separator else ""
    headers = {mark: _header(path, encoding, mark, bool(separator)) for mark in (named or _DELIMITERS)}
    known = {mark: sum(role_of(title) is not None for title in titles) for mark, titles in headers.items()}
    delimiter = max(headers, key=lambda mark: (known[mark], len(headers[mark])))
    titles = headers[delimiter]
    rows = _delimited_rows(path, encoding, delimiter, bool(separator), len(titles))
    return Table(path, tuple(titles), "line", notes, rows)


def _records(path: Path, encoding: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The records that are not blank, each with the line where it starts."""
    with path.open(encoding=encoding, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                fix = "quote each cell that contains a quote, and double it"
                raise ManifestError(f"{path}: line {line}: {error}; {fix}") from None
            if any(cell.strip() for cell in record):
                yield line, [cell.strip() for cell in record]


def _header(path: Path, encoding: str, delimiter: str, skip: bool) -> list[str]:
    try:
        return next(islice(_records(path, encoding, delimiter), skip, None), (0, []))[1]
    except ManifestError:
        return []


def _delimited_rows(
    path: Path, encoding: str, delimiter: str, skip: bool, width: int
) -> Iterator[tuple[int, Sequence[Any]]]:
    name = {",": "a comma", ";": "a semicolon", "\t": "a tab"}.get(delimiter, repr(delimiter))
    for line, record in islice(_records(path, encoding, delimiter), 1 + skip, None):
        if len(record) != width:
            fix = f"quote a cell that contains {name}"
            raise ManifestError(f"{path}: line {line}: {len(record)} cells, and the header has {width}; {fix}")
        yield line, [cell or None for cell in record]


def _open_json_lines(path: Path, encoding: str, notes: tuple[str, ...]) -> Table:
    titles: dict[str, None] = {}
    try:
        for _, record in _objects(path, encoding, lambda value: value):
            titles |= dict.fromkeys(record)
    except ManifestError:
        if not titles:
            raise
    rows = ((number, [one.get(title) for title in titles]) for number, one in _objects(path, encoding, plain_value))
    return Table(path, tuple(titles), "line", notes, rows)


def _objects(path: Path, encoding: str, convert: Callable[[Any], Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding=encoding) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    record = convert(json.loads(line))
                    if not isinstance(record, dict):
                        raise TypeError(f"{type(record).__name__}, not an object")
                except (ValueError, TypeError, RecursionError) as why:
                    fix = "fix or delete it"
                    raise ManifestError(f"{path}: line {number}: not an object of JSON ({why}); {fix}") from None
                yield number, record


def _open_parquet(path: Path, without: Callable[[pa.DataType], bool] | None) -> Table:
    with pq.ParquetFile(path) as file:
        fields = [field for field in file.schema_arrow if without is None or not without(field.type)]
    titles = [field.name for field in fields]
    twice = [title for title in titles if titles.count(title) > 1]
    wrong = {title: ManifestError(f"{path}: two columns {title!r}; rename one") for title in twice}

    def batches() -> Iterator[dict[str, list[Any]]]:
        """The columns that can be read; others are noted."""
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=titles) if titles else ():
                columns: dict[str, list[Any]] = {}
                for title, column in zip(batch.schema.names, pa.Table.from_batches([batch]).columns, strict=True):
                    if title in wrong:
                        continue
                    try:
                        columns[title] = arrow_values(column, f"{path}: column {title!r}")
                    except ManifestError as error:
                        wrong[title] = error
                yield columns

    for _ in batches():  # so that what cannot be read is known before the first row is
        pass
    errors = [error for title, error in wrong.items() if role_of(title) or title in twice]
    notes = tuple(f"{error}; dropped" for error in wrong.values() if error not in errors)
    kept = dict.fromkeys(title for title in titles if title not in wrong or wrong[title] in errors)

    def rows() -> Iterator[tuple[int, Sequence[Any]]]:
        if errors:
            raise errors[0]
        yield from enumerate((row for columns in batches() for row in zip(*columns.values(), strict=True)), 1)

    return Table(path, tuple(kept), "row", notes, rows())


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of a plain type: categories and run ends decoded, views and extensions as what they store."""
    kind, types = column.type, pa.types
    if isinstance(kind, pa.BaseExtensionType):
        chunks = [getattr(chunk, "storage", chunk) for chunk in column.chunks]
        return plain_column(pa.chunked_array(chunks, kind.storage_type))
    if types.is_dictionary(kind):
        return plain_column(column.cast(kind.value_type))
    if types.is_run_end_encoded(kind):
        return plain_column(pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks], kind.value_type))
    if types.is_string_view(kind) or types.is_large_string(kind):
        return column.cast(pa.large_string())
    is_large = types.is_binary_view(kind) or types.is_large_binary(kind)
    return column.cast(pa.large_binary()) if is_large else column


def arrow_values(column: pa.ChunkedArray, place: str) -> list[Any]:
    """The values of an Arrow column as those of JSON: dates and times in ISO 8601, decimals and UUIDs as text.

    Raises ManifestError, with ``place`` and the type, where JSON has no such values (bytes, for example).
    """
    try:
        if holds_json(column):
            return _values(column)
        column = plain_column(column)
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns":  # Python's times have microseconds
            column = column.cast(pa.timestamp("us", column.type.tz))
        return [plain_value(value) for value in _values(column)]
    except (TypeError, ValueError, OverflowError, NotImplementedError, pa.ArrowException) as error:
        what = f"{place} is of the type {column.type!s:.60}"
        raise ManifestError(f"{what}, which is not read ({reason(error):.80})") from None


def _values(column: pa.ChunkedArray) -> list[Any]:
    """``to_pylist``, without the garbage collector: it would look through millions of new objects again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        values: list[Any] = column.to_pylist()
        return values
    finally:
        if was_enabled:
            gc.enable()


def holds_json(column: pa.ChunkedArray) -> bool:
    """Whether Arrow's Python values of a column are those of JSON already, by its type and its numbers."""
    kind = column.type
    if pa.types.is_struct(kind):
        return all(map(holds_json, column.flatten()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return holds_json(pc.list_flatten(column))
    if pa.types.is_float32(kind) or pa.types.is_float64(kind):
        return pc.all(pc.is_finite(column)).as_py() is not False
    plain = pa.types.is_string(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind)
    return bool(plain or pa.types.is_null(kind))


def plain_value(value: Any) -> Any:
    """A value as JSON has it; NaN, which Pandas writes for a missing number, becomes None."""
    match value:
        case None | str() | bool() | int():
            return value
        case float():
            return None if math.isnan(value) else value
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta():
            return value.total_seconds()
        case decimal.Decimal() | uuid.UUID():
            return str(value)
        case list() | tuple():
            return [plain_value(item) for item in value]
        case dict():
            return {str(key): plain_value(item) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} is not a value of JSON")


def word(value: Any, place: str, title: str) -> str | None:
    """A value of a text column: numbers and booleans as JSON writes them, 3.0 as "3"; None if it is empty.

    Raises ManifestError, with ``place`` and the column's title, for a list or an object.
    """
    if value is None or isinstance(value, str):
        return (value or "").strip() or None
    if isinstance(value, list | dict):
        kind = "a list" if isinstance(value, list) else "an object"
        raise ManifestError(f"{place}: column {title!r} holds {kind}; make it text, or rename the column")
    if isinstance(value, float) and value.is_integer():  # Pandas makes floats of whole numbers where one is missing
        value = int(value)
    return json.dumps(value)
