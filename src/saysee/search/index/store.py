"""What an index holds, and what every store of one can do: those in SQL (sql/) and LanceDB (lance/).

A store opens connections to the same tables: ``about`` (name and JSON value), ``items`` (a row for each image and
clip) and the rows' vectors.
"""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from saysee.errors import SaySeeError
from saysee.media.formats import Kind
from saysee.search.index.about import FORMAT, INDEX_FOLDER, About
from saysee.search.index.filters import NUMBER_COLUMNS, TEXT_COLUMNS, Filters

T = TypeVar("T")

KINDS: tuple[Kind, ...] = ("image", "clip")
Key = tuple[Kind, str]
Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]

LANCE = ("lance://", "s3://")  # what the address of an index in LanceDB starts with
UNIT_TOLERANCE = 0.01  # how far a stored vector's length may be from 1: fp16 is within 0.001
PAGE = 1_000  # rows read at once, where all are
WHERE_SECONDS = 10.0
"""Most time that choosing rows by an SQL condition may take; a choice. A pattern can be written that takes hours."""

CHANGEABLE = ("path", "folder", "name", "size", "mtime_ns", "metadata")


@dataclass(slots=True)
class Item:
    """One image or clip."""

    kind: Kind  # "image" or "clip"
    path: str  # with forward slashes, relative to the index's root, or absolute
    size: int | None = None  # in bytes; None where only the vector was imported
    mtime_ns: int | None = None  # time of the last change in ns; None where it is too recent to be trusted, or unknown
    hash: str | None = None  # of the content
    metadata: dict[str, Any] = field(default_factory=dict)  # further columns
    id: int = 0  # of the row; 0 for one that has none yet
    encoded_by: str = ""  # the fingerprint of what made the vector; empty for one that has none yet
    # of a row that was searched for: how many rows of the index have its content, this one included
    copies: int = field(default=1, compare=False)

    @property
    def key(self) -> Key:
        """Kind and path: no two rows have the same."""
        return self.kind, self.path

    @property
    def folder(self) -> str:
        """The path without the name; empty for a file of the root."""
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def content(self) -> tuple[Kind, str | None]:
        """Kind and hash: rows that have the same have the same vector, if the same model made it."""
        return self.kind, self.hash

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Item:
        """From the columns of ``ITEM_COLUMNS``; PostgreSQL has the metadata as an object, the others as text."""
        kind, path, size, mtime_ns, content, metadata, *rest = row
        if isinstance(metadata, str):
            metadata = json.loads(metadata) if metadata != "{}" else {}  # most have none
        return cls(kind, path, size, mtime_ns, content, metadata, *rest)

    def changeable(self) -> tuple[Any, ...]:
        """The values of ``CHANGEABLE``."""
        metadata = json.dumps(storable(self.metadata), ensure_ascii=False, sort_keys=True)
        return self.path, self.folder, self.name, self.size, self.mtime_ns, metadata


Hits = list[list[tuple[Item, float]]]  # for each query rows with their scores, the best first
ITEM_COLUMNS = tuple(column.name for column in fields(Item) if column.compare)


class Tables(ABC):
    """One connection to the tables of an index, to read or write; ``place`` and ``folder`` as in :class:`Store`."""

    def __init__(self, place: str, folder: Path | None) -> None:
        self.place, self.folder = place, folder

    @cached_property
    def about(self) -> About | None:
        """What holds for the index, as first read or last written here; None for one that was never begun."""
        return self._read_about()

    def _read_about(self) -> About | None:
        if (values := self._about_values()) is None:
            return None
        written = values.get("format")
        if written != FORMAT:
            newer = not isinstance(written, int) or written > FORMAT
            fix = "upgrade SaySee" if newer else "create it again at another place with 'saysee index'"
            raise SaySeeError(
                f"{self.place}: the index has format {written}, and this release reads format {FORMAT}; {fix}"
            )
        return About(**{column.name: values[column.name] for column in fields(About)})

    def existing_about(self) -> About:
        """What holds for the index; SaySeeError where there is none, or another format."""
        if self.about is None:
            raise no_index(self.place)
        return self.about

    def set_about(self, about: About) -> None:
        """Begins the index, or changes what may change; SaySeeError if another process did since it was read."""
        if about != self.about and not self._replace_about(about):
            raise SaySeeError(f"{self.place}: another process has just changed this index; run the command again")
        self.about = about

    @abstractmethod
    def _about_values(self) -> dict[str, Any] | None:
        """The fields of :class:`About` as stored, maybe among others; None where the index was never begun."""

    @abstractmethod
    def _replace_about(self, about: About) -> bool:
        """Writes what holds, and begins the index where it was not; not if it is neither ``self.about`` nor the new."""

    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing, where the store can; else each call within is."""
        return nullcontext()

    @abstractmethod
    def noted(self, name: str) -> Any:
        """A value stored by name; None where there is none."""

    @abstractmethod
    def note(self, name: str, value: Any) -> None:
        """Stores a value by name; within a transaction, or as one."""

    @abstractmethod
    def counts(self) -> dict[Kind, int]:
        """Rows of each kind."""

    def has(self, kind: Kind) -> bool:
        """Whether there is any row of a kind."""
        return self.counts()[kind] > 0

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """All rows, of which few are held in memory at once; rows may be changed and removed meanwhile."""

    @abstractmethod
    def rows(self, ids: Iterable[int]) -> dict[int, Item]:
        """The rows of ids, by id; missing ones are skipped."""

    @abstractmethod
    def rows_of(self, keys: Iterable[Key]) -> dict[Key, Item]:
        """The rows of kinds and paths; missing ones are skipped."""

    @abstractmethod
    def row_with(self, kind: Kind, content: str) -> Item | None:
        """The earliest row of a kind whose content has this hash."""

    def newest(self, kind: Kind, k: int | None = None, offset: int = 0) -> Iterator[Item]:
        """Up to ``k`` rows of a kind after ``offset`` others: those without a time, as of the last few seconds or of
        imported vectors, then the newest files first; of equal times the row added last."""
        for ids in batched(self._newest_ids(kind, k, offset), PAGE):  # few rows are held in memory at once
            rows = self.rows(ids)
            yield from (rows[number] for number in ids if number in rows)

    @abstractmethod
    def _newest_ids(self, kind: Kind, k: int | None, offset: int) -> Iterable[int]: ...

    @abstractmethod
    def copies(self, items: Iterable[Item]) -> dict[int, int]:
        """For the rows whose content is known, by id, how many rows have that content."""

    @abstractmethod
    def vectors_with(self, kind: Kind, encoded_by: str, contents: Iterable[str]) -> dict[str, Vectors]:
        """By the hash of a content, a vector [D] that this model made of it, of a row of a kind."""

    @abstractmethod
    def contents_of(self, ids: Iterable[int]) -> tuple[Ids, list[str | None], Vectors]:
        """:meth:`vectors_of`, with the hashes of the contents between the two."""

    def vectors_of(self, ids: Iterable[int]) -> tuple[Ids, Vectors]:
        """Those of the ids that exist [N], ascending, and their vectors [N, D]."""
        ids, _, vectors = self.contents_of(ids)
        return ids, vectors

    def put(self, items: Sequence[Item], vectors: Vectors) -> None:
        """Adds rows with their vectors [N, D], or replaces those of the same kind and path; within a transaction.

        Sets each item's id, and where it does not say what encoded it, the index's own model.
        """
        about = self.existing_about()
        for item in items:
            item.encoded_by = item.encoded_by or about.fingerprints[item.kind]
        if items:
            self._put(items, vectors)

    @abstractmethod
    def _put(self, items: Sequence[Item], vectors: Vectors) -> None: ...

    @abstractmethod
    def refresh(self, items: Sequence[Item]) -> list[Item]:
        """Writes ``CHANGEABLE`` of rows by their ids, in one transaction; returns those that were removed meanwhile."""

    @abstractmethod
    def remove(self, items: Sequence[Item]) -> None:
        """Removes rows and their vectors, by their ids; in one transaction."""

    @abstractmethod
    def make_ready(self) -> dict[Kind, str]:
        """Brings the fast copies up to date, and returns how each kind that has rows is searched, for people."""

    @abstractmethod
    def size_in_bytes(self) -> int:
        """Size of the index on the disk."""

    @abstractmethod
    def vacuum(self) -> None:
        """Reclaims the disk space of removed rows; a damaged fast copy is no longer up to date."""

    @abstractmethod
    def copy_problem(self, kind: Kind) -> str | None:
        """What is wrong with the fast copy of a kind; None where all is well, or none is needed."""

    @abstractmethod
    def _damage(self) -> Iterator[str]:
        """What cannot be read, or not be right, of the rows and vectors."""

    @abstractmethod
    def _count_of_others(self, kind: Kind, fingerprint: str) -> int:
        """Rows of a kind that another model encoded."""

    def problems(self) -> Iterator[str]:
        """Reads everything and yields what is wrong with it, one line each."""
        yield from (f"{problem}; create the index again" for problem in self._damage())
        for kind, fingerprint in self.existing_about().fingerprints.items():
            if (problem := self.copy_problem(kind)) is not None:
                yield f"{problem}; run 'saysee index-compact {self.place}'"
            if others := self._count_of_others(kind, fingerprint):
                yield f"{others:,} {kind}s were encoded by another model than the rest; run 'saysee index' again"


class Store(ABC):
    """An index's tables, which any process may read at any time."""

    place: str  # for messages: never with a password
    folder: Path | None = None  # on this machine; None for an index in a database
    many_writers: ClassVar[bool] = True  # whether several processes may write at the same time

    @abstractmethod
    def reading(self) -> AbstractContextManager[Tables]:
        """A connection that cannot write, and reads all of one moment; SaySeeError if there is no index to be read."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[Tables]:
        """A connection that writes; SaySeeError if it cannot, also as another process does where only one can."""

    @abstractmethod
    def nearest(
        self, queries: Vectors, kind: Kind, k: int, where: str | None = None, filters: Filters = (), offset: int = 0
    ) -> Hits:
        """For each unit vector of [Q, D] the up to ``k`` nearest rows of a kind, after the ``offset`` nearest.

        The score is the cosine; of equal scores the earlier row comes first, and of rows of equal content one. The
        condition, in at most ``WHERE_SECONDS``, and all filters must hold; SaySeeError if the database refuses it.
        """

    def about(self) -> About:
        """As :meth:`Tables.existing_about`."""
        with self.reading() as tables:
            return tables.existing_about()


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of up to so many."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def storable(value: Any) -> Any:
    """A value as JSON that both databases can hold: without U+0000, halves of characters, NaN and infinity."""
    if isinstance(value, str):
        return value.replace("\0", "").encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {storable(str(name)): storable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [storable(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int) else storable(str(value))


def is_database(place: str | os.PathLike[str]) -> bool:
    """Whether a place is a database's address, not a path."""
    return isinstance(place, str) and place.startswith(("postgresql://", "postgres://", *LANCE))


def no_index(place: str) -> SaySeeError:
    """The error where there is no index."""
    to = os.path.join(place, INDEX_FOLDER) if os.path.isdir(place) else place
    return SaySeeError(f"{place}: no index there; create one with 'saysee index MODEL FOLDER --to {to}'")


def condition_error(where: str, reason: str) -> SaySeeError:
    """The error of an SQL condition that the database refuses, in one line."""
    shown, reason = (text if len(text) <= 200 else f"{text[:197]}..." for text in (where, " ".join(reason.split())))
    columns = ", ".join((*TEXT_COLUMNS, *NUMBER_COLUMNS, "metadata"))
    return SaySeeError(
        f'the condition {shown!r} cannot be used ({reason}); give an SQL expression over {columns}, such as "folder '
        "LIKE 'holiday%'\""
    )
