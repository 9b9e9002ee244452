"""The files of a data set, as ``datasets`` finds them on the hub and in folders, and the columns of its tables.

Tables are read by pyarrow: ``datasets`` refuses a whole table for one column of a type that it does not know.
"""

import glob
import json
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from saysee.data.corpora.finding import split_word
from saysee.data.tables import Table, arrow_values, open_table, plain_column
from saysee.errors import ManifestError, SaySeeError, extra_needed
from saysee.media.folders import Listing
from saysee.media.source import reason

_FORMS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "tar",
    ".tgz": "tar",
    ".gz": "tar",
    **dict.fromkeys((".tsv", ".csv", ".jsonl"), "text"),  # only of the pairs of three tables
}
_SHARD = re.compile(r"^(.+?)-\d{5}-of-(\d{5})")
_HUB_NAME = re.compile(r"^[\w-][\w.-]*/[\w-][\w.-]*$", re.ASCII)
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_ONE_OF_THREE = re.compile(
    r"^(?:(?P<before>.+)[-_])?(?:corpus|queries|query|qrels|audios?|clips?|images?|default)(?:[-_](?P<after>.+))?$"
)
_MEDIA = ("Audio", "Image")
_BATCH = 64  # rows: with media of 200 KB each, some 25 MB


class BrokenPartError(Exception):
    """A file of a data set cannot be read, or not to its end."""


@dataclass(frozen=True)
class Part:
    """A file of a data set."""

    path: str  # path or URL
    form: str  # "parquet", "arrow", "tar" or "text"
    split: str | None = None  # by its place or name, if that says one
    config: str = ""  # the configuration that it belongs to, if there are several
    source: str = ""  # what the user named

    @property
    def name(self) -> str:
        """For messages."""
        return re.split(r"[/\\]", self.path)[-1]

    @property
    def roots(self) -> list[Path]:
        """Where relative paths in it may start from, the nearest first."""
        source = Path(self.source)
        return [path for path in (Path(self.path).parent, source, source.parent) if path.is_dir()]

    @cached_property
    def _schema(self) -> Any:
        with open_file(self.path) as file:
            return self._read(file)[0]

    def _read(self, file: BinaryIO) -> tuple[Any, Callable[[list[str]], Iterable[Any]]]:
        """The schema of an open table, and a function that gives its record batches."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self.form == "parquet":
            parquet = pq.ParquetFile(file)
            return parquet.schema_arrow, lambda columns: parquet.iter_batches(_BATCH, columns=columns)
        try:
            stream = pa.ipc.open_stream(file)
            return stream.schema, lambda _: stream
        except pa.ArrowInvalid:
            file.seek(0)
            batches = pa.ipc.open_file(file)
            return batches.schema, lambda _: map(batches.get_batch, range(batches.num_record_batches))

    @cached_property
    def features(self) -> Mapping[str, Any]:
        """By column: what ``datasets`` wrote of it into the file, and of a list what its items are."""
        if self.form == "text":
            return {}
        written = json.loads((self._schema.metadata or {}).get(b"huggingface", b"{}"))
        features = (written.get("info") or {}).get("features") or {}
        for column, feature in features.items():
            while isinstance(feature, list) or "feature" in feature:
                feature = feature[0] if isinstance(feature, list) else feature["feature"]
            features[column] = feature
        return dict(features)

    @cached_property
    def kinds(self) -> Mapping[str, str]:
        """The columns, each with "Audio", "Image" or its type. Raises BrokenPartError if the file is damaged."""
        try:
            if self.form == "text":
                with self._text() as table:
                    return dict.fromkeys(table.titles, "text")
            found = {field.name: str(field.type) for field in self._schema}
        except Exception as error:  # of pyarrow, fsspec or the network
            raise BrokenPartError(reason(error)) from None
        types = {column: feature.get("_type") for column, feature in self.features.items()}
        return {column: types[column] if types.get(column) in _MEDIA else kind for column, kind in found.items()}

    @contextmanager
    def _text(self) -> Iterator[Table]:
        if "://" not in self.path:
            yield open_table(self.path)
            return
        with tempfile.TemporaryDirectory() as folder, open_file(self.path) as file:
            copy = Path(folder, self.name)
            copy.write_bytes(file.read())
            yield open_table(copy)

    def rows(self, media: Sequence[str], words: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """The values of each row in columns of media, as they are, and of words (column → flag), as JSON has them.

        Raises BrokenPartError if the file is damaged, ManifestError if JSON has no type of a column of words.
        """
        columns = list(dict.fromkeys((*media, *words)))
        try:
            if self.form == "text":
                with self._text() as table:
                    for _, cells in table.rows():
                        row = dict(zip(table.titles, cells, strict=True))
                        yield {column: row[column] for column in columns}
                return
            number = 1
            for batch in self._batches(columns):
                values = {column: plain_column(batch[column]).to_pylist() for column in media}
                for column, flag in words.items():
                    found = arrow_values(batch[column], f"{self.name} row {number}: column {column!r} ({flag})")
                    labels = dict(enumerate(self.features.get(column, {}).get("names") or ()))  # -1 is none
                    as_label = (labels.get(value) if isinstance(value, int) else value for value in found)
                    values[column] = list(as_label) if labels else found
                yield from (dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True))
                number += len(batch)
        except ManifestError:
            raise
        except Exception as error:  # of pyarrow, fsspec or the network
            raise BrokenPartError(reason(error)) from None

    def _batches(self, columns: list[str]) -> Iterator[Any]:
        """The rows as tables of Arrow."""
        import pyarrow as pa

        with open_file(self.path) as file:
            for batch in self._read(file)[1](columns):
                yield pa.Table.from_batches([batch]).select(columns)


def open_file(path: str) -> BinaryIO:
    """A file or URL. That of a URL tries again when the network fails."""
    if "://" not in path:
        return open(path, "rb")
    from datasets.utils.file_utils import xopen

    return xopen(path, "rb")  # type: ignore[no-any-return]


def find_parts(sources: Sequence[str], config: str | None, target: Path) -> tuple[list[Part], list[str]]:
    """The parts of a data set in order, without the manifest to be written, and the names of missing files."""
    names = [name for pattern in sources for name in _expand(pattern)]
    for name in names:  # before the hub is asked
        if not (os.path.exists(name) or _form(name) or _HUB_NAME.match(name)):
            raise SaySeeError(f"{name}: no such file or folder, and not an OWNER/NAME of the hub; check the path")
    with extra_needed("reading data sets of the Hugging Face hub", "hub"):
        import datasets
    parts: list[Part] = []
    missing: list[str] = []
    for name in names:
        if os.path.isfile(name):
            found = [_file_part(name, _split_of(name))]
        elif _form(name) and not os.path.isdir(name):
            missing.append(f"{os.path.basename(name)}: no such file")
            continue
        else:
            try:
                found = _resolve(name, config, target, datasets)
            except SaySeeError:
                raise
            except Exception as error:  # of datasets, the hub client or the network
                what = f"not a folder, and not a data set of the hub that can be read ({reason(error)})"
                raise SaySeeError(f"{name}: {what}; check the name") from None
        parts += [replace(part, source=name) for part in found]
    if not parts:
        raise SaySeeError(f"{', '.join(sources)}: none of its files exists; check the path")
    return parts, missing + _gaps(parts)


def _resolve(source: str, config: str | None, target: Path, datasets: Any) -> list[Part]:
    """The files of a data set on the hub or of a folder; of one with a README, ``datasets`` says which they are."""
    if os.path.isdir(source):
        listing = Listing(source, "SOURCES")
        if saved := [path for path in listing.files((".json",)) if os.path.basename(path) == "state.json"]:
            return [part for state in saved for part in _saved(Path(state))]
        if config is None and not os.path.isfile(os.path.join(source, "README.md")):
            return _local(listing, target)
        if glob.has_magic(os.path.abspath(source)):
            what = "datasets takes *, ? and [ in this path for a pattern"
            raise SaySeeError(f"{source}: {what}; rename it, or name the files")
    try:
        builder = datasets.load_dataset_builder(source, config)
        configs = [*builder.builder_configs]
    except ValueError:  # there are several, or none of this name
        builder, configs = None, datasets.get_dataset_config_names(source)
    if names := _three_tables(source, configs, config):
        builders = {name: datasets.load_dataset_builder(source, name) for name in names}
    elif builder is None:
        raise SaySeeError(f"{source}: its configurations are {', '.join(configs)}; name one by --config")
    else:
        builders = {"": builder}
    return [
        _file_part(path, str(split), name)
        for name, each in builders.items()
        for split, paths in (each.config.data_files or {}).items()
        for path in paths
    ]


def _saved(state: Path) -> list[Part]:
    """The shards of a split that ``save_to_disk`` wrote, whose folder has this ``state.json``."""
    folder, content = state.parent, json.loads(state.read_bytes())
    if content.get("_indices_data_files"):
        raise SaySeeError(f"{folder}: was saved by datasets before 2.0; save it again by a newer version")
    of_several = (folder.parent / "dataset_dict.json").is_file()
    split = folder.name if of_several else content.get("_split")
    config = folder.parent.name if of_several else folder.name
    return [Part(str(folder / each["filename"]), "arrow", split, config) for each in content["_data_files"]]


def _local(listing: Listing, target: Path) -> list[Part]:
    """The tables and tars below a folder; text files only beside pairs, else they tell of the data set at most."""
    files = [path for path in listing.files(tuple(_FORMS)) if not (target.exists() and target.samefile(path))]
    names = {path: listing.relative(path) for path in files}
    found = [Part(path, form, _split_in(name)) for path, name in names.items() if (form := _form(path))]
    texts = any("qrels" in name.casefold() for name in names.values())
    parts = [part for part in found if texts or part.form != "text"] or found
    if not parts:
        what = "no .parquet, .arrow or .tar file there"
        raise SaySeeError(f"{listing.folder}: {what}; name the folder that holds them")
    return parts


def _three_tables(source: str, configs: Sequence[str], wanted: str | None) -> list[str]:
    """The configurations of a set of tables of queries, corpus and pairs: all, or those of ``wanted``, a language."""
    sets: dict[str, list[str]] = defaultdict(list)
    for name in configs:
        if found := _ONE_OF_THREE.match(name):
            sets[found["before"] or found["after"] or ""].append(name)
    whole = {key: [*names, *([key] if key in configs else [])] for key, names in sets.items()}
    whole = {key: names for key, names in whole.items() if len(names) > 2}
    if wanted is None and len(whole) > 1:
        raise SaySeeError(f"{source}: sets of tables for {', '.join(whole)}; name one by --config")
    return whole.get(wanted, []) if wanted is not None else [name for names in whole.values() for name in names]


def _file_part(path: str, split: str | None, config: str = "") -> Part:
    form = _form(path)
    if form is None:
        raise SaySeeError(f"{path}: not a .parquet, .arrow or .tar file; name such files, or a folder of them")
    return Part(path, form, split, config)


def _form(path: str) -> str | None:
    suffix = os.path.splitext(path)[1].lower()
    return None if suffix == ".gz" and not path.lower().endswith(".tar.gz") else _FORMS.get(suffix)


def _split_of(path: str) -> str | None:
    """The split in the name of a file: ``SPLIT-00000-of-00003.parquet``, or the last word such as train."""
    name = os.path.basename(path)
    if numbered := _SHARD.match(name):
        return None if numbered[1] == "data" else numbered[1]  # "data" as ``save_to_disk`` has it
    word = split_word(name.split(".")[0])
    return "_".join(filter(None, word.groups())).lower() if word else None


def _split_in(path: str) -> str | None:
    """The split in the name of a file below a folder, or in that of the nearest folder that has one."""
    return next(filter(None, map(_split_of, reversed(path.split("/")))), None)


def _expand(pattern: str) -> list[str]:
    """The names for which braces stand: ``{000..010}`` are numbers of that width, ``{a,b}`` words."""
    braces = None if os.path.exists(pattern) else _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    first, last, words = braces.groups()
    values = words.split(",") if words else [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [name for value in values for name in _expand(before + value + after)]


def _gaps(parts: Sequence[Part]) -> list[str]:
    """The missing ones of files that are numbered ``-00000-of-00003``."""
    shards = [(os.path.dirname(part.path), part.split, found) for part in parts if (found := _SHARD.match(part.name))]
    have = {(folder, split, found[0]) for folder, split, found in shards}
    series = dict.fromkeys((folder, split, found[1], int(found[2])) for folder, split, found in shards)
    names = [(at, split, f"{stem}-{n:05d}-of-{total:05d}") for at, split, stem, total in series for n in range(total)]
    return [f"{name}: no such file" for folder, split, name in names if (folder, split, name) not in have]
