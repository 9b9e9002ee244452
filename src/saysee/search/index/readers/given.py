"""Imported vectors as every reader gives them: the rows of an index to be, and a vector for each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saysee.data.manifest import name_on_disk
from saysee.data.tables import normal_title, word
from saysee.errors import SaySeeError
from saysee.media.formats import kind_by_suffix
from saysee.search.index.readers.item_list import ItemList
from saysee.search.index.store import Item

PATH_COLUMNS = ("path", "imagepath", "image", "file", "filename", "url", "id", "key")
"""Titles of the column of paths, the preferred one first; compared without case, spaces, ``_`` and ``-``."""


@dataclass(frozen=True, slots=True)
class Part:
    """The vectors [N, D] of a place, NaN where a row has none of D numbers; ``wrong`` says what these rows have."""

    place: str
    values: NDArray[Any]
    wrong: dict[int, str]


class GivenVectors:
    """The vectors of several parts one after the other; those of ``.npy`` and of a database are mapped, not read."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self._starts = np.cumsum([0, *(len(part.values) for part in parts)])
        self.precision = "float16" if all(part.values.dtype == np.float16 for part in parts) else "float32"

    def block(self, start: int, stop: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Some vectors, and their lengths: 0 for one that cannot be used."""
        pieces = []
        for part, first in zip(self.parts, self._starts, strict=False):
            piece = part.values[max(0, start - first) : max(0, stop - first)]
            pieces.append(np.asarray(piece, np.float64))  # the squares of large fp32 values are not finite in fp32
        block = np.concatenate(pieces)
        lengths = np.linalg.norm(block, axis=1)
        return block, np.where(np.isfinite(lengths), lengths, 0.0)

    def why(self, number: int, path: str) -> str:
        """Why a vector cannot be used, with its file, its row from 1, and its path."""
        which = int(np.searchsorted(self._starts, number, "right")) - 1
        part, row = self.parts[which], number - int(self._starts[which])
        values = np.asarray(part.values[row], np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        what = f"its vector has {values[bad[0]]} at {bad[0]}" if bad.size else "its vector is zero"
        return f"{part.place}: row {row + 1} ({path}): {part.wrong.get(row, what)}; not indexed"


@dataclass(frozen=True, slots=True)
class Given:
    """What a reader has read."""

    items: ItemList  # the rows, each with a path of its own
    vectors: GivenVectors  # of the rows, in the same order
    root: Path  # folder that relative paths start from
    source: str  # name of a table in it, or a database's address without a password
    notes: Sequence[str]  # what was guessed or dropped, for the user
    clip: str = ""  # what a library's own settings say of the CLIP that made the vectors, for error messages


def path_column(titles: Sequence[str], place: str) -> int:
    """Position of the column of paths; raises a SaySeeError where there is none."""
    normal = [normal_title(title) for title in titles]
    column = next((normal.index(title) for title in PATH_COLUMNS if title in normal), None)
    if column is None:
        have = f"{', '.join(titles)!r:.80}"
        raise SaySeeError(f"{place}: no column {PATH_COLUMNS[0]!r}; add one (there are: {have})")
    return column


def add_rows(
    items: ItemList, rows: Iterable[tuple[str, Sequence[Any]]], titles: Sequence[str], column: int, root: Path
) -> int:
    """Adds rows of a table, each after its place for messages, with further columns as metadata; returns how many."""
    count = 0
    for place, values in rows:
        name = name_on_disk(word(values[column], place, titles[column]) or "", root)
        further = ((title, value) for at, (title, value) in enumerate(zip(titles, values, strict=True)) if at != column)
        metadata = {title: value for title, value in further if title and value is not None}
        if not name or not items.add(Item(kind_by_suffix(name) or "image", name, metadata=metadata)):
            what = f"{name!r} is there twice" if name else "no path"
            raise SaySeeError(f"{place}: {what}; give each vector a path of its own")
        count += 1
    return count
