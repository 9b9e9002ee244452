"""The rows of a table, as values by role: clip, image, text and so on.

A row may have several clips of one image: in a list, or in columns ``audio_0``, ``audio_1``, … with ``caption_0``, ….
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from saysee.data.corpora.hub_files import Part
from saysee.data.tables import role_of
from saysee.errors import ManifestError

FLAGS = {
    "clip": "--audio-column",
    "image": "--image-column",
    "text": "--text-column",
    "speaker": "--speaker-column",
    "language": "--language-column",
    "image_id": "--id-column",
    "split": "--split-column",
}
"""The flag that names the column of each role."""

Values = dict[str, Any]
"""The values of a row by role. Media are bytes, paths or ``{"bytes": …, "path": …}``. "clip" may be a list of them;
then "text", "speaker" and "language" may be lists too, with a value for each clip."""

_TYPES = {"clip": "Audio", "image": "Image"}
OF_CLIP = ("clip", "text", "speaker", "language")
"""The roles of which each clip of a row has its own value."""
_NUMBERED = re.compile(r"^(.*?)[\s_-]*(\d+)$")


def read_table(part: Part, names: Mapping[str, str]) -> Iterator[tuple[str, Values]]:
    """The rows of a table, each with its place for error messages.

    ``names`` are the columns named by the user, by role, "" for a role without a column.

    Raises:
        BrokenPartError: the file is damaged.
        ManifestError: a column is missing or of a wrong type, or several could be meant.
    """
    columns = choose_columns(part, names, _TYPES)
    clips = columns["clip"]
    for place, row in read_columns(part, columns):
        values = {
            role: row[found[0]] if len(found) == 1 else [row[each] for each in found] for role, found in columns.items()
        }
        if len(clips) > 1:  # an image may have fewer captions than there are columns
            texts = values.get("text") or [None]
            used = [n for n, clip in enumerate(values["clip"]) if not _is_empty(clip) or texts[n % len(texts)]]
            values |= {role: [values[role][n] for n in used] for role in OF_CLIP if len(columns.get(role, ())) > 1}
        yield place, values


def read_columns(part: Part, columns: Mapping[str, list[str]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The values of each row in the columns of all roles, with its place."""
    media = [column for role, found in columns.items() if role in _TYPES for column in found]
    words = {each: FLAGS[role] for role, found in columns.items() if role not in _TYPES for each in found}
    for number, row in enumerate(part.rows(media, words), 1):
        yield f"{part.name} row {number}", row


def choose_columns(part: Part, names: Mapping[str, str | None], needed: Collection[str]) -> dict[str, list[str]]:
    """The columns of each role that has any: named by the user, or by their type, or by title; several if numbered.

    Media that are not ``needed`` are ignored.
    """
    chosen: dict[str, list[str]] = {}
    have = ", ".join(f"{column} ({kind})" for column, kind in part.kinds.items())
    for role, flag in FLAGS.items():
        name = names.get(role)
        if role in _TYPES and role not in needed:
            continue
        if name and name not in part.kinds:
            near = difflib.get_close_matches(name, part.kinds, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ManifestError(f"{part.name}: no column {name!r}{hint} ({flag}); there are: {have}")
        found = [name] if name else [] if name == "" else _columns_of(role, part.kinds)
        if role in _TYPES and len(found) != 1 and not (found and role == "clip" and _numbers(found)):
            which = "more than one column" if found else "no column"
            raise ManifestError(f"{part.name}: {which} for the {role}; name one by {flag} (there are: {have})")
        if found:
            chosen[role] = found if role in OF_CLIP and _numbers(found) else found[:1]
    clips = chosen.get("clip", [])
    for role in OF_CLIP:
        if len(chosen.get(role, ())) > 1 and _numbers(chosen[role]) != _numbers(clips):
            raise ManifestError(
                f"{part.name}: columns {', '.join(chosen[role])} do not fit {', '.join(clips)}; give them the same "
                f"numbers, or omit them by {FLAGS[role]} ''"
            )
    return chosen


def _columns_of(role: str, kinds: Mapping[str, str]) -> list[str]:
    called = [column for column in kinds if role_of(column) == role]
    numbered = [column for column in kinds if (found := _NUMBERED.match(column)) and role_of(found[1]) == role]
    typed = [column for column, kind in kinds.items() if kind == _TYPES.get(role)]
    if len(typed) > 1:
        typed = [column for column in typed if column in called] or [c for c in typed if c in numbered] or typed
    if typed and set(typed) <= set(called) and numbered:  # both "audio" and "audio_0": which is meant?
        return [*typed, *numbered]
    return typed or (called if not numbered else [*called, *sorted(numbered, key=_number)])


def _numbers(columns: Collection[str]) -> list[int] | None:
    """The numbers of several columns such as ``audio_0``, ``audio_1``; None if they are not numbered so."""
    found = [_NUMBERED.match(column) for column in columns]
    numbers = [int(each[2]) for each in found if each]
    same = len({each[1] for each in found if each}) == 1
    return numbers if same and len(columns) == len(numbers) == len(set(numbers)) > 1 else None


def _number(column: str) -> int:
    return int(re.sub(r".*?(\d+)$", r"\1", column))


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and value.get("bytes") is None and not value.get("path"))
