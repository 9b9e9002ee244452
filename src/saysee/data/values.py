"""The values of a manifest's rows: whether JSON can hold them, and which have been seen."""

from __future__ import annotations

import json
import math
import sqlite3
import weakref
from typing import Any

from saysee.errors import ManifestError


class OnDisk:
    """Values by key, as a dict has them, in a temporary file."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect("", isolation_level=None)
        weakref.finalize(self, self._connection.close)
        for statement in ("PRAGMA journal_mode = OFF", "CREATE TABLE found (key BLOB PRIMARY KEY, value)", "BEGIN"):
            self._connection.execute(statement)

    def setdefault(self, key: str, value: Any) -> Any:
        """The value of a key, which becomes this one if it has none."""
        stored = key.encode("utf-8", "surrogatepass")
        if self._connection.execute("INSERT OR IGNORE INTO found VALUES (?, ?)", (stored, json.dumps(value))).rowcount:
            return value
        return json.loads(self._connection.execute("SELECT value FROM found WHERE key = ?", (stored,)).fetchone()[0])


def check_text(value: object, name: str, number: int) -> None:
    """Raises a ManifestError if a value is not text that UTF-8 can hold."""
    if not isinstance(value, str):
        raise ManifestError(f"row {number}: {name} is {type(value).__name__} ({value!r:.40}); make it a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ManifestError(f"row {number}: {name} {value!r:.60} is not valid Unicode; rename it") from None


def check_json(value: object, name: str, number: int) -> None:
    """Raises a ManifestError if a value is not one of JSON."""
    if value is None or isinstance(value, (bool, int)):
        return
    if isinstance(value, str):
        check_text(value, name, number)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ManifestError(f"row {number}: {name} is {value}; leave a missing number empty (null)")
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_json(item, name, number)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ManifestError(f"row {number}: {name} has the key {key!r:.40}; make keys strings")
            check_text(key, name, number)
            check_json(item, name, number)
    else:
        kind = type(value).__name__
        raise ManifestError(f"row {number}: {name} is {kind}; use strings, numbers, booleans, null, lists or objects")
