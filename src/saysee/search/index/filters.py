"""Structured filters of a search: ``folder:holiday*``, ``speaker:s1``, ``taken:2024-06..2024-08``, ``size:1000..``.

A filter may come from anyone: no part of it becomes SQL, and matching takes time in proportion to the text's length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unicodedata import normalize

from saysee.errors import SaySeeError

if TYPE_CHECKING:
    from saysee.search.index.store import Item

NUMBER_COLUMNS = ("id", "size", "mtime_ns")
TEXT_COLUMNS = ("kind", "path", "folder", "name", "hash")
NUMBER_PATTERN = r"-?[0-9]{1,100}([.][0-9]{1,100})?"
"""A text that compares as a number; the same in Python's regular expressions and in PostgreSQL's."""

_MOST_FILTERS, _MOST_CHARACTERS = 20, 1_000
"""Of one search; of one filter. Far beyond what anybody writes, and little work for a server."""
_EXAMPLES = "write name:value, such as folder:holiday*, speaker:s1 or taken:2024-06..2024-08"
_NUMBER = re.compile(NUMBER_PATTERN)
_INVALID = re.compile("[\0\ud800-\udfff]")
"""PostgreSQL cannot store the first; the others are halves of surrogate pairs."""
_RANGE = re.compile(r"(?P<low>|.*[^/\\])\.\.(?P<high>|[^/\\].*)", re.DOTALL)
"""``..`` beside a slash is the parent folder of a path."""


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition on a column or on a key of the metadata. Texts are in Unicode NFC and compare case-sensitively."""

    name: str  # a column of ``NUMBER_COLUMNS`` or ``TEXT_COLUMNS``, else a key of the metadata
    equal: str | None = None  # the whole value, for an equality
    parts: tuple[str, ...] = ()  # the texts between the ``*`` of a wildcard, at least two
    low: str | None = None  # inclusive lower bound of a range; None where it is open
    high: str | None = None  # inclusive upper bound of a range; None where it is open

    @property
    def is_column(self) -> bool:
        """Whether ``name`` is a column; otherwise it is a key of the metadata."""
        return self.name in NUMBER_COLUMNS or self.name in TEXT_COLUMNS

    @property
    def is_numeric(self) -> bool:
        """Whether the value of an equality, or every bound of a range, is a number."""
        return all(_NUMBER.fullmatch(text) for text in (self.equal, self.low, self.high) if text is not None)

    def matches(self, value: object) -> bool:
        """Whether a value of a row fulfills the filter; a missing value, a list or an object never does.

        A number compares as a number, with a wildcard as text. A text in a range compares as a number where it and the
        bounds are numbers, else by its characters, with the upper bound as a prefix.
        """
        if isinstance(value, bool):
            value = "true" if value else "false"
        if not isinstance(value, str | int | float):
            return False
        text = normalize("NFC", str(value))
        if self.parts:
            return _matches_wildcard(text, self.parts)
        low, high = (self.low, self.high) if self.equal is None else (self.equal, self.equal)
        if isinstance(value, str):
            if self.equal is not None:
                return text == self.equal
            if not self.is_numeric or not _NUMBER.fullmatch(text):
                return (low is None or low <= text) and (high is None or text[: len(high)] <= high)
            value = _to_number(text)
        if not self.is_numeric:
            return False
        return (low is None or _to_number(low) <= value) and (high is None or value <= _to_number(high))

    def matches_metadata(self, metadata: str) -> bool:
        """Whether the value of this key in metadata as JSON fulfills the filter."""
        return self._matches_key(json.loads(metadata))

    def fits(self, item: Item) -> bool:
        """Whether a row fulfills the filter."""
        return self.matches(getattr(item, self.name)) if self.is_column else self._matches_key(item.metadata)

    def _matches_key(self, metadata: Mapping[str, object]) -> bool:
        return any(self.matches(value) for key, value in metadata.items() if normalize("NFC", key) == self.name)


Filters = Sequence[Filter]


def parse_filters(texts: Iterable[str | Filter]) -> tuple[Filter, ...]:
    """Filters from their texts; all of them must hold.

    A text is ``name:value`` (equality; an empty value matches an empty text), ``name:value`` with ``*`` for any
    characters (wildcard), or ``name:low..high`` (inclusive range, either end may be missing). A value that itself
    contains ``..`` or ``*`` is matched by a wildcard. SaySeeError, with the text, for what is none of these.
    """
    filters = tuple(text if isinstance(text, Filter) else _parse(text) for text in texts)
    if len(filters) > _MOST_FILTERS:
        raise SaySeeError(f"{len(filters)} filters; give at most {_MOST_FILTERS}")
    return filters


def compose_condition(where: str, text: str, json_text: str) -> tuple[str, str]:
    """A condition in SQL on ``items``, and the table that it is on, so that names compare in Unicode NFC.

    Nothing changes for a condition in ASCII. For any other, the table has its texts in NFC. ``text`` and ``json_text``
    are the SQL of a text column and of the metadata in NFC, where {} is the column.
    """
    if where.isascii():
        return where, "items"
    columns = [*NUMBER_COLUMNS, *(f"{text.format(name)} AS {name}" for name in TEXT_COLUMNS)]
    columns.append(f"{json_text.format('metadata')} AS metadata")
    return normalize("NFC", where), f"(SELECT {', '.join(columns)} FROM items) AS items"


def _parse(text: str) -> Filter:
    shown = repr(text if len(text) <= 80 else f"{text[:77]}...")
    if len(text) > _MOST_CHARACTERS:
        raise SaySeeError(f"the filter {shown} has {len(text):,} characters; give at most {_MOST_CHARACTERS:,}")
    if _INVALID.search(text):
        raise SaySeeError(f"the filter {shown} is not valid text; remove its invalid characters")
    name, colon, value = normalize("NFC", text).partition(":")
    if not colon or not name:
        raise SaySeeError(f"the filter {shown} has no {'name' if colon else 'colon'}; {_EXAMPLES}")
    if "*" in value:
        found = Filter(name, parts=tuple(value.split("*")))
    elif span := _RANGE.fullmatch(value):
        low, high = span["low"] or None, span["high"] or None
        found = Filter(name, low=low, high=high)
        if low is None and high is None:
            raise SaySeeError(f"the filter {shown} has no bound; {_EXAMPLES}")
        if low is not None and not found.matches(low):
            raise SaySeeError(f"the filter {shown} ends before it begins; write {f'{name}:{high}..{low}'!r}")
    else:
        found = Filter(name, equal=value)
    if name in NUMBER_COLUMNS and (found.parts or not found.is_numeric):
        raise SaySeeError(f"the filter {shown} needs numbers; write {name}:1000, {name}:1000.. or {name}:1000..2000")
    return found


def _to_number(text: str) -> float:
    return float(text) if "." in text else int(text)


def _matches_wildcard(text: str, parts: tuple[str, ...]) -> bool:
    """Whether the parts follow each other in a text, the first at its start and the last at its end."""
    first, *middle, last = parts
    place, end = len(first), len(text) - len(last)
    if place > end or not text.startswith(first) or not text.endswith(last):
        return False
    for part in middle:
        place = text.find(part, place, end)
        if place < 0:
            return False
        place += len(part)
    return True
