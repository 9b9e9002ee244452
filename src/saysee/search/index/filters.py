"""Structured filters of a search: ``folder:holiday*``, ``speaker:s1``, ``taken:2024-06..2024-08``, ``size:1000..``.

A filter may come from anyone: no part of it becomes SQL, and matching takes time in proportion to the text's length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from unicodedata import normalize

from saysee.errors import SaySeeError

NUMBER_COLUMNS = ("id", "size", "mtime_ns")
TEXT_COLUMNS = ("kind", "path", "folder", "name", "hash")
NUMBER_PATTERN = r"-?[0-9]{1,100}([.][0-9]{1,100})?"
"""A text that compares as a number; the same in Python's regular expressions and in PostgreSQL's."""

_MOST_FILTERS, _MOST_CHARACTERS = 20, 1_000
"""Of one search; of one filter. Far beyond what anybody writes, and little work for a server."""
_EXAMPLES = "write name:value, such as folder:holiday*, speaker:s1 or taken:2024-06..2024-08"
_NUMBER = re.compile(NUMBER_PATTERN)
_RANGE = re.compile(r"(?P<low>|.*[^/\\])\.\.(?P<high>|[^/\\].*)", re.DOTALL)
"""``..`` beside a slash is the parent folder of a path."""


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition on a column or on a key of the metadata. Texts are in Unicode NFC and compare case-sensitively.

    Attributes:
        name: a column of ``NUMBER_COLUMNS`` or ``TEXT_COLUMNS``, else a key of the metadata.
        equal: the whole value, for an equality.
        parts: the texts between the ``*`` of a wildcard, at least two.
        low: inclusive lower bound of a range; None where it is open.
        high: inclusive upper bound of a range; None where it is open.
    """

    name: str
    equal: str | None = None
    parts: tuple[str, ...] = ()
    low: str | None = None
    high: str | None = None

    @property
    def is_column(self) -> bool:
        """Whether ``name`` is a column; otherwise it is a key of the metadata."""
        return self.name in NUMBER_COLUMNS or self.name in TEXT_COLUMNS

    @property
    def bounds_are_numbers(self) -> bool:
        """Whether every bound of a range is a number."""
        return all(_NUMBER.fullmatch(bound) for bound in (self.low, self.high) if bound is not None)

    @property
    def equal_is_number(self) -> bool:
        """Whether the value of an equality is a number."""
        return self.equal is not None and _NUMBER.fullmatch(self.equal) is not None

    def matches(self, value: object) -> bool:
        """Whether a value of a row fulfills the filter.

        A number compares as a number, with a wildcard as text. A text in a range compares as a number where it and the
        bounds are numbers, else by its characters, with the upper bound as a prefix. True and False are the texts
        "true" and "false". Nothing else matches: neither a missing value, nor a list, nor an object.
        """
        if isinstance(value, bool):
            return self._matches_text("true" if value else "false")
        if isinstance(value, int | float):
            return self._matches_number(value)
        return isinstance(value, str) and self._matches_text(normalize("NFC", value))

    def _matches_number(self, value: float) -> bool:
        if self.parts:
            return _matches_wildcard(str(value), self.parts)
        if self.equal is not None:
            return self.equal_is_number and _to_number(self.equal) == value
        return self.bounds_are_numbers and (
            (self.low is None or _to_number(self.low) <= value)
            and (self.high is None or value <= _to_number(self.high))
        )

    def _matches_text(self, text: str) -> bool:
        if self.parts:
            return _matches_wildcard(text, self.parts)
        if self.equal is not None:
            return text == self.equal
        if self.bounds_are_numbers and _NUMBER.fullmatch(text):
            return self._matches_number(_to_number(text))
        return (self.low is None or self.low <= text) and (self.high is None or text[: len(self.high)] <= self.high)


def parse_filters(texts: Iterable[str | Filter]) -> tuple[Filter, ...]:
    """Filters from their texts; all of them must hold.

    A text is ``name:value`` (equality; an empty value matches an empty text), ``name:value`` with ``*`` for any
    characters (wildcard), or ``name:low..high`` (inclusive range, either end may be missing). A value that itself
    contains ``..`` or ``*`` is matched by a wildcard.

    Raises:
        SaySeeError: a text is not a filter; the message has the text and how to write it.
    """
    filters = tuple(text if isinstance(text, Filter) else _parse(text) for text in texts)
    if len(filters) > _MOST_FILTERS:
        raise SaySeeError(f"{len(filters)} filters; give at most {_MOST_FILTERS}")
    return filters


def _parse(text: str) -> Filter:
    shown = repr(text if len(text) <= 80 else f"{text[:77]}...")
    if len(text) > _MOST_CHARACTERS:
        raise SaySeeError(f"the filter {shown} has {len(text):,} characters; give at most {_MOST_CHARACTERS:,}")
    if "\0" in text or not _is_unicode(text):
        raise SaySeeError(f"the filter {shown} is not valid text; remove its invalid characters")
    name, colon, value = normalize("NFC", text).partition(":")
    if not colon or not name:
        raise SaySeeError(f"the filter {shown} has no {'name' if colon else 'colon'}; {_EXAMPLES}")
    if "*" in value:
        found = Filter(name, parts=tuple(value.split("*")))
    elif span := _RANGE.fullmatch(value):
        found = Filter(name, low=span["low"] or None, high=span["high"] or None)
        _check_range(found, shown)
    else:
        found = Filter(name, equal=value)
    numbers = found.bounds_are_numbers if found.equal is None else found.equal_is_number
    if name in NUMBER_COLUMNS and (found.parts or not numbers):
        raise SaySeeError(f"the filter {shown} needs numbers; write {name}:1000, {name}:1000.. or {name}:1000..2000")
    return found


def _check_range(found: Filter, shown: str) -> None:
    if found.low is None and found.high is None:
        raise SaySeeError(f"the filter {shown} has no bound; {_EXAMPLES}")
    if found.low is None or found.high is None:
        return
    if found.bounds_are_numbers:
        ordered = _to_number(found.low) <= _to_number(found.high)
    else:
        ordered = found.low[: len(found.high)] <= found.high
    if not ordered:
        turned = f"{found.name}:{found.high}..{found.low}"
        raise SaySeeError(f"the filter {shown} ends before it begins; write {turned!r}")


def _to_number(text: str) -> float:
    return float(text) if "." in text else int(text)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


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
