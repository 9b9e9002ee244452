"""The condition of ``--where``: one SQL expression over the rows, and nothing else.

It comes from whoever asks, so nothing is taken on trust: the text may hold no comment, no second statement and no
bracket that closes what it did not open; the connection cannot write; SQLite asks back for everything the statement
would do, and gets leave for one SELECT, for the columns of the rows, and for functions that only compute.
"""

from __future__ import annotations

import re
import sqlite3
import time

import numpy as np
from numpy.typing import NDArray

from saysee.errors import SaySeeError
from saysee.search.index.store import Kind

COLUMNS = ("id", "kind", "path", "folder", "name", "size", "mtime_ns", "hash", "metadata")
SECONDS = 10.0
"""Most time a condition may take; patterns can be made that take hours."""

_FUNCTIONS = frozenset(
    {"->", "->>", "json_array_length", "json_extract", "json_type"}
    | {"glob", "instr", "length", "like", "lower", "ltrim", "rtrim", "substr", "substring", "trim", "unicode", "upper"}
    | {"abs", "coalesce", "ifnull", "max", "min", "nullif", "round"}
)
_LONGEST = 10_000
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*\"""")
_STRANGE = re.compile(r"""--|/\*|[;`"\[\]?@$:#\\\x00-\x1f\x7f]""")
_STEPS = 10_000
"""Of SQLite's machine, between two looks at the clock."""


def ids_where(connection: sqlite3.Connection, kind: Kind, condition: str) -> NDArray[np.int64]:
    """The ids [N] of a kind for which the condition holds, ascending.

    Args:
        connection: one that cannot write.
        kind: of the rows.
        condition: over ``COLUMNS``; ``metadata`` is JSON, so ``metadata ->> 'speaker' = 's1'``.

    Raises:
        SaySeeError: it is not one expression, asks for something else, or takes too long.
    """
    _check_text(condition)
    selects = 0

    def allow(action: int, one: str | None, two: str | None, *_: str | None) -> int:
        nonlocal selects
        if action == sqlite3.SQLITE_SELECT:
            selects += 1
            return sqlite3.SQLITE_OK if selects == 1 else sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_READ and one == "items" and two in COLUMNS:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and str(two).lower() in _FUNCTIONS:
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY

    end = time.monotonic() + SECONDS
    connection.set_authorizer(allow)
    connection.set_progress_handler(lambda: time.monotonic() > end, _STEPS)
    try:
        rows = connection.execute(f"SELECT id FROM items WHERE kind = ? AND ({condition}\n) ORDER BY id", (kind,))
        return np.fromiter((row[0] for row in rows), np.int64)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
        raise SaySeeError(not_usable(condition, str(error))) from None
    finally:
        connection.set_progress_handler(None, 0)
        # Python 3.10 cannot take an authorizer away again by None.
        connection.set_authorizer(lambda *_: sqlite3.SQLITE_OK)


def _check_text(condition: str) -> None:
    bare = _QUOTED.sub("''", condition)
    depth = 0
    for sign in bare:
        depth += (sign == "(") - (sign == ")")
        if depth < 0:
            break
    wrong = not condition.strip() or len(condition) > _LONGEST or depth != 0
    # Other quotation marks and parameters have no use here, and would have to be understood as SQLite does.
    if wrong or _STRANGE.search(bare) or bare.count("'") % 2:
        raise SaySeeError(not_usable(condition, "not one expression"))


def not_usable(condition: str, reason: str) -> str:
    """Why a condition is refused, in one line."""
    if reason == "interrupted":
        reason = f"it takes over {SECONDS:g} s"
    reason = " ".join(reason.split())
    shown = condition if len(condition) <= 80 else f"{condition[:77]}..."
    return (
        f"the condition {shown!r} cannot be used ({reason}); give one expression over {', '.join(COLUMNS)}, "
        "such as folder LIKE 'holiday%'"
    )
