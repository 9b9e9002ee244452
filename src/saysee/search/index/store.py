"""What holds the truth of an index, a row and a vector for each picture and clip, and what each such store can do.

There are two: an SQLite file in a folder (:mod:`saysee.search.index.sqlite`), and a schema of a PostgreSQL database
(:mod:`saysee.search.index.postgres`). :func:`open_store` takes the one that a place names.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from saysee.errors import SaySeeError, extra_needed
from saysee.search.index.filters import Filter
from saysee.version import __version__

Kind = Literal["image", "clip"]
KINDS: tuple[Kind, ...] = ("image", "clip")
Vectors = NDArray[np.float32]

FORMAT = 2
"""Version of the layout. A greater one is refused: this release cannot know what it means. Format 1 had one fingerprint
for both kinds, from which those of the kinds cannot be told."""
SPARE = 2
"""Times as many rows are taken from a fast copy as are asked for; the vectors of the truth order them."""
UNIT_TOLERANCE = 0.01
"""How far a kept vector's length may be from 1: fp16 is within 0.001."""

COLUMNS = ("id", "kind", "path", "folder", "name", "size", "mtime_ns", "hash", "metadata")
"""Of the rows, for conditions."""
WHERE_SECONDS = 10.0
"""Most time that choosing rows by an SQL condition may take; a choice. A pattern can be written that takes hours."""

STALE = "{}: {:,} {}s were encoded by another model than the rest; give 'saysee index' again"


@dataclass(frozen=True, slots=True)
class About:
    """What holds for the whole index.

    Attributes:
        model: folder or hub name of the model, as it was last given.
        model_beside: that folder as seen from the index, or None for a hub name and for an index in a database.
        fingerprints: by kind, of what makes its vectors: one side of the model, and that side's preprocessing. While
            rows of a kind are encoded anew by another model, the one that they had.
        dimension: D of the vectors, which are unit vectors.
        precision: "float32" or "float16", how they were given.
        root: folder that relative paths start from.
        root_beside: the same as seen from the index; None on another drive and for an index in a database.
        source: what is indexed below the root: "." for the folder itself, else a manifest's or table's name.
    """

    model: str
    model_beside: str | None
    fingerprints: dict[Kind, str]
    dimension: int
    precision: str
    root: str
    root_beside: str | None
    source: str
    format: int = FORMAT
    normalisation: str = "unit"
    written_by: str = __version__

    def to_rows(self) -> list[tuple[str, str]]:
        """Name and value, as JSON, of each attribute."""
        return [(name, json.dumps(getattr(self, name))) for name in self.__dataclass_fields__]

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[str, str]], place: str) -> About:
        """What :meth:`to_rows` gave, and maybe other rows beside.

        Raises:
            SaySeeError: an older or newer release wrote it.
        """
        values = {name: json.loads(value) for name, value in rows}
        written = values.get("format")
        if not isinstance(written, int) or written > FORMAT:
            raise SaySeeError(
                f"{place}: the index has format {written}, and this release knows format {FORMAT}; upgrade SaySee"
            )
        if written < FORMAT:
            raise SaySeeError(
                f"{place}: the index has format {written} of an older release, and this one reads format {FORMAT}; "
                "make it anew at another place with 'saysee index'"
            )
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})


@dataclass(slots=True)
class Item:
    """One picture or clip.

    Attributes:
        kind: "image" or "clip".
        path: with forward slashes from the index's root on, or absolute.
        size: in bytes; None where only the vector was given.
        mtime_ns: time of the last change in ns; None where it is too fresh to be trusted, or not known.
        hash: of the content.
        metadata: further columns.
        id: of the row; 0 for one that has none yet.
        encoded_by: the fingerprint of what made the vector; empty for one that has none yet.
    """

    kind: Kind
    path: str
    size: int | None = None
    mtime_ns: int | None = None
    hash: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    id: int = 0
    encoded_by: str = ""

    @property
    def folder_and_name(self) -> tuple[str, str]:
        """The path in two."""
        folder, _, name = self.path.rpartition("/")
        return folder, name


Found = tuple[Item, float]
"""A row as :meth:`Store.rows` gives it, and the cosine similarity of its vector with the query."""


class Store(ABC):
    """Rows and vectors of an index. Readers may come at any time.

    Attributes:
        place: where it is, for messages: never with a password.
        folder: where it lies on this machine; None for one in a database.
    """

    place: str
    folder: Path | None

    @abstractmethod
    def about(self) -> About:
        """What holds for the whole index.

        Raises:
            SaySeeError: there is no index, it is damaged or out of reach, or an older or newer release wrote it.
        """

    @abstractmethod
    def counts(self) -> dict[Kind, int]:
        """Rows of each kind."""

    @abstractmethod
    def rows(self, ids: Sequence[int]) -> dict[int, Item]:
        """The rows of ids, without size, time and what encoded them; those that are not there are left out."""

    @abstractmethod
    def nearest(
        self, queries: Vectors, kind: Kind, k: int, where: str | None = None, filters: Sequence[Filter] = ()
    ) -> list[list[Found]]:
        """For each unit vector of [Q, D] the up to ``k`` rows of a kind that are nearest, the best first.

        Of equal scores the earlier row comes first. The condition and all filters must hold.

        Raises:
            SaySeeError: the database refuses the condition, or it takes more than ``WHERE_SECONDS``.
        """

    @abstractmethod
    def writing(self) -> AbstractContextManager[Writer]:
        """What writes, for the time of a ``with`` block; the place is made ready if it is new.

        Raises:
            SaySeeError: it cannot be written, or another process writes where only one can.
        """

    @abstractmethod
    def check(self) -> list[str]:
        """Reads everything and tells what is wrong with it, a line each; empty when all is well.

        Raises:
            SaySeeError: it is too damaged to be read.
        """

    @abstractmethod
    def compact(self) -> tuple[int, int]:
        """Gives back the room of removed rows, and makes the fast copy anew where it does not fit.

        Returns:
            bytes of the index before and after.

        Raises:
            SaySeeError: another process writes it, or there is no room.
        """


class Writer(ABC):
    """What writes to a store.

    Attributes:
        place: of the store.
        folder: likewise.
    """

    place: str
    folder: Path | None

    @property
    @abstractmethod
    def about(self) -> About | None:
        """What holds for the index; None for one not yet begun."""

    @abstractmethod
    def set_about(self, about: About) -> None:
        """Begins the index, or changes what may change; in one transaction."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing."""

    @abstractmethod
    def known(self) -> dict[tuple[Kind, str], Item]:
        """All rows, by kind and path."""

    @abstractmethod
    def counts(self) -> dict[Kind, int]:
        """Rows of each kind."""

    @abstractmethod
    def put(self, items: Sequence[Item], vectors: Vectors) -> None:
        """Adds rows with their vectors [N, D], or replaces those of the same kind and path; within a transaction.

        Gives each item the id of its row, and where it does not say what encoded it, the index's own model.
        """

    @abstractmethod
    def refresh(self, items: Iterable[Item]) -> list[Item]:
        """Writes anew what may change about rows (path, size, time, metadata), by their ids; in one transaction.

        Returns:
            those whose row is no longer there, because another process has taken it out.
        """

    @abstractmethod
    def remove(self, items: Sequence[Item]) -> None:
        """Takes rows and their vectors out, by their ids; in one transaction."""

    @abstractmethod
    def item_of(self, kind: Kind, content: str) -> Item | None:
        """The first row of this content; None where there is none."""

    @abstractmethod
    def vector_of(self, kind: Kind, content: str, encoded_by: str) -> Vectors | None:
        """The vector [D] of any row of this content that this model encoded; None where there is none."""

    @abstractmethod
    def make_ready(self, about: About) -> dict[Kind, str]:
        """Brings what makes searching fast up to date.

        Returns:
            how each kind that has rows is searched, for people.
        """


def condition_error(where: str, reason: str) -> SaySeeError:
    """The error of an SQL condition that the database refuses, in one line."""
    shown, reason = (text if len(text) <= 200 else f"{text[:197]}..." for text in (where, " ".join(reason.split())))
    return SaySeeError(
        f"the condition {shown!r} cannot be used ({reason}); give an SQL expression over "
        f"{', '.join(COLUMNS)}, such as \"folder LIKE 'holiday%'\""
    )


def is_database(place: str | os.PathLike[str]) -> bool:
    """Whether a place is a database's address, not a path."""
    return isinstance(place, str) and place.startswith(("postgresql://", "postgres://"))


def open_store(place: str | os.PathLike[str]) -> Store:
    """The store at a folder, or at ``postgresql://user@host/database?schema=name``. Nothing is opened yet.

    Raises:
        SaySeeError: an address that cannot be understood.
        MissingExtraError: a database without the extra "postgres".
    """
    if is_database(place):
        with extra_needed("an index in PostgreSQL", "postgres"):
            from saysee.search.index.postgres import PostgresStore

        return PostgresStore(os.fspath(place))
    from saysee.search.index.sqlite import SqliteStore

    return SqliteStore(Path(place))


def ranked(
    queries: Vectors,
    found: Sequence[NDArray[np.int64]],
    rows: dict[int, Item],
    ids: NDArray[np.int64],
    vectors: Vectors,
    k: int,
) -> list[list[Found]]:
    """Candidates in the order of their true scores.

    Args:
        queries: unit vectors [Q, D].
        found: for each query the ids of its candidates; those not among ``ids`` have left and are passed over.
        rows: by id.
        ids: of the rows that are there [N], ascending.
        vectors: theirs [N, D].
        k: most for each query.
    """
    results = []
    for query, candidates in zip(queries, found, strict=True):
        places = np.searchsorted(ids, candidates[np.isin(candidates, ids)])
        scores = vectors[places] @ query
        best = np.lexsort((ids[places], -scores))[:k]
        results.append(
            [(rows[int(ids[place])], float(scores[at])) for at, place in zip(best, places[best], strict=True)]
        )
    return results
