"""Tables of Hugging Face ``datasets``: Parquet files as the hub has them, and the Arrow files of ``save_to_disk``.

Columns of sounds and pictures are structs of ``bytes`` and ``path`` (features ``Audio`` and ``Image``), plain bytes, or
paths; or lists of these, for a picture with several captions. Their bytes are taken as they are: nothing is decoded.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from saysee.data.corpora.finding import role_of
from saysee.data.corpora.records import (
    FLAGS,
    BrokenShardError,
    ColumnNames,
    Media,
    Record,
    Shard,
    suffix_of,
    texts_of_sounds,
)
from saysee.errors import ManifestError
from saysee.media.formats import AUDIO_SUFFIXES, IMAGE_SUFFIXES

ROLES = ("clip", "image", "text", "speaker", "language", "image_id", "split")
_ROWS = 64  # rows of Parquet in memory at once: a picture and some seconds of sound each
_ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"
_FEATURES = {"Audio": "clip", "Image": "image"}
_NOUNS = {"clip": "sounds", "image": "pictures"}


def read_table(shard: Shard, names: ColumnNames) -> Iterator[Record]:
    """The rows of a Parquet or Arrow file as records, streamed.

    Raises:
        BrokenShardError: it is damaged, or cut short.
        ManifestError: a column is missing or of a kind that does not fit.
    """
    columns: dict[str, _Column] | None = None
    number = 0
    batches = _parquet(shard.path) if shard.kind == "parquet" else _arrow(shard.path)
    try:
        for batch in batches:
            if columns is None:
                columns = _choose(batch, names, shard.path)
            for row in range(batch.num_rows):
                number += 1
                values = {role: column.value(batch, row) for role, column in columns.items()}
                yield _record(values, f"{shard.path.name} row {number}", shard.split)
    except (OSError, pa.ArrowException, EOFError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BrokenShardError(f"damaged or cut short: {why:.80}") from None


def _parquet(path: Path) -> Iterator[Any]:
    with pq.ParquetFile(path, pre_buffer=False) as file:
        yield from file.iter_batches(_ROWS)


def _arrow(path: Path) -> Iterator[Any]:
    """The record batches of a stream, as ``datasets`` writes them, or of a file in Arrow's other format."""
    with pa.memory_map(os.fspath(path)) as source:
        if source.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
            return
        source.seek(0)
        with pa.ipc.open_stream(source) as stream:
            yield from stream
        # Arrow takes a stream that ends between two batches for whole; the writer's end mark says whether it is.
        source.seek(max(source.size() - len(_ARROW_END), 0))
        if source.read(len(_ARROW_END)) != _ARROW_END:
            raise EOFError("the end mark is missing")


def _record(values: Mapping[str, Any], place: str, split: str | None) -> Record:
    sounds = _media_of(values["clip"], place)
    pictures = _media_of(values["image"], place)
    if len(pictures) > 1:
        raise ManifestError(f"{place}: {len(pictures)} pictures in one row; a row has one (--image-column)")
    return Record(
        place,
        _word(values.get("split")) or split,
        sounds,
        texts_of_sounds(values.get("text"), len(sounds), place),
        pictures[0] if pictures else None,
        image_id=_word(values.get("image_id")),
        speaker=_word(values.get("speaker")),
        language=_word(values.get("language")),
    )


def _media_of(value: Any, place: str) -> list[Media | None]:
    if isinstance(value, list):
        return [media for item in value for media in _media_of(item, place)] or [None]
    if value is None:
        return [None]
    if isinstance(value, bytes):
        return [Media(value)]
    if isinstance(value, str):
        return [Media(None, value)]
    return [Media(value.get("bytes"), value.get("path"))]


def _word(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


# --- which column is what ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    """A column of a table.

    Attributes:
        name: in the table.
        kind: "clip" or "image" (files as bytes), "word" (strings, whole numbers, labels) or what else it is, in words.
        names_files: of strings, "clip" or "image" where they are paths of such files.
        labels: names that its numbers stand for.
    """

    name: str
    kind: str
    names_files: str | None = None
    labels: tuple[str, ...] = ()

    def value(self, batch: Any, row: int) -> Any:
        """The value of a row, as Python has it."""
        value = batch.column(batch.schema.get_field_index(self.name))[row].as_py()
        if self.labels and isinstance(value, int):
            return self.labels[value] if 0 <= value < len(self.labels) else None
        return value


def _choose(batch: Any, names: ColumnNames, path: Path) -> dict[str, _Column]:
    """The column of each role that has one.

    Raises:
        ManifestError: no column of sounds or of pictures, more than one, or one that was named and does not fit.
    """
    columns = {column.name: column for column in _columns(batch)}
    have = ", ".join(f"{column.name} ({_told(column)})" for column in columns.values())
    chosen: dict[str, _Column] = {}
    for role in ROLES:
        named = names.get(role)
        if named:
            chosen[role] = _named(columns, named, role, path, have)
        elif role in _NOUNS:
            chosen[role] = _only(columns, role, path, have)
        elif named is None:
            called = [column for column in columns.values() if column.kind == "word" and role_of(column.name) == role]
            if called:
                chosen[role] = called[0]
    return chosen


def _named(columns: Mapping[str, _Column], name: str, role: str, path: Path, have: str) -> _Column:
    if name not in columns:
        near = difflib.get_close_matches(name, columns, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ManifestError(f"{path}: no column {name!r}{hint} ({FLAGS[role]}); there are: {have}")
    column = columns[name]
    if role not in (column.kind, column.names_files) and (role in _NOUNS or column.kind != "word"):
        needs = f"{_NOUNS[role]}, as files' bytes or paths" if role in _NOUNS else "strings, whole numbers or labels"
        raise ManifestError(f"{path}: column {name!r} holds {_told(column)}; {FLAGS[role]} needs one of {needs}")
    return column


def _only(columns: Mapping[str, _Column], role: str, path: Path, have: str) -> _Column:
    """The one column of sounds or pictures; of several, the one that is called so."""
    fits = [column for column in columns.values() if column.kind == role]
    fits = fits or [column for column in columns.values() if column.names_files == role]  # bytes before paths
    called = [column for column in fits if role_of(column.name) == role]
    if len(fits) != 1 and len(called) != 1:
        which = "more than one column" if fits else "no column"
        raise ManifestError(f"{path}: {which} of {_NOUNS[role]}; name one by {FLAGS[role]} (there are: {have})")
    return fits[0] if len(fits) == 1 else called[0]


def _told(column: _Column) -> str:
    kind = column.names_files or column.kind
    return {"clip": "sounds", "image": "pictures", "word": "words"}.get(kind, kind)


def _columns(batch: Any) -> Iterator[_Column]:
    about = json.loads((batch.schema.metadata or {}).get(b"huggingface", b"{}"))
    features = (about.get("info") or {}).get("features") or {}
    for field, array in zip(batch.schema, batch.columns, strict=True):
        feature = _inner(features.get(field.name))
        name = feature.get("_type", "Value")
        if name in _FEATURES:
            yield _Column(field.name, _FEATURES[name])
        elif name == "ClassLabel":
            yield _Column(field.name, "word", labels=tuple(feature.get("names") or ()))
        elif name == "Value":
            yield _plain_column(field.name, field.type, array)
        else:
            yield _Column(field.name, f"the feature {name}, which is not read")


def _inner(feature: Any) -> dict[str, Any]:
    """What is in a feature's list, if it is one: ``[{…}]`` or ``{"_type": "List", "feature": {…}}``."""
    while True:
        if isinstance(feature, list):
            feature = feature[0] if feature else None
        elif isinstance(feature, dict) and feature.get("_type") in ("List", "LargeList", "Sequence"):
            feature = feature.get("feature")
        else:
            return feature if isinstance(feature, dict) else {}


def _plain_column(name: str, kind: Any, array: Any) -> _Column:
    """A column without a feature of its own: what it holds, by its type and its first value."""
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind):
        return _Column(name, "word")
    first = _first(array)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _Column(name, "word", names_files=_kind_of_suffix(os.path.splitext(first or "")[1]))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        first = {"bytes": first}
    elif not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
        return _Column(name, f"values of the type {kind!s:.40}")
    data, path = (first or {}).get("bytes"), (first or {}).get("path")
    suffix = (suffix_of(data) if data else None) or os.path.splitext(path or "")[1]
    return _Column(name, _kind_of_suffix(suffix) or "bytes of no sound or picture known")


def _first(array: Any) -> Any:
    """The first value that is there, out of its list."""
    for value in array:
        found = value.as_py()
        while isinstance(found, list):
            found = next((item for item in found if item is not None), None)
        if found is not None and not (isinstance(found, dict) and not found.get("bytes") and not found.get("path")):
            return found
    return None


def _kind_of_suffix(suffix: str) -> str | None:
    suffix = suffix.lower()
    return "clip" if suffix in AUDIO_SUFFIXES else "image" if suffix in IMAGE_SUFFIXES else None
