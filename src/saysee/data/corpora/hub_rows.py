"""The rows of a table, as values by role (clip, image, text and so on), and from these values to captions and files.

A row may have several clips of one image: in a list, or in columns ``audio_0``, ``audio_1``, … with ``caption_0``, ….
"""

import io
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from saysee.data.corpora.hub_files import BrokenPartError, Part
from saysee.data.corpora.preparing import Problems
from saysee.data.manifest import Row
from saysee.data.tables import role_of, word
from saysee.errors import ManifestError, did_you_mean
from saysee.files import fingerprint, write_bytes
from saysee.media.folders import Listing
from saysee.media.formats import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Kind, file_kind, kind_by_suffix

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

TYPES = {"clip": "Audio", "image": "Image"}
OF_CLIP = ("clip", "text", "speaker", "language")  # the roles of which each clip of a row has its own value
_NUMBERED = re.compile(r"^(.*?)[\s_-]*(\d+)$")


def read_table(part: Part, names: Mapping[str, str]) -> Iterator[tuple[str, Values]]:
    """The rows of a table, each with its place for error messages.

    ``names`` are the columns named by the user, by role, "" for a role without a column. Raises BrokenPartError if the
    file is damaged, ManifestError if a column is missing or of a wrong type, or several could be meant.
    """
    columns = choose_columns(part, names, TYPES)
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
    media = [column for role, found in columns.items() if role in TYPES for column in found]
    words = {each: FLAGS[role] for role, found in columns.items() if role not in TYPES for each in found}
    for number, row in enumerate(part.rows(media, words), 1):
        yield f"{part.name} row {number}", row


def choose_columns(part: Part, names: Mapping[str, str | None], needed: Collection[str]) -> dict[str, list[str]]:
    """The columns of each role: named by the user, or by their type, or by title; several if numbered.

    Media that are not ``needed`` are ignored.
    """
    chosen: dict[str, list[str]] = {}
    have = ", ".join(f"{column} ({kind})" for column, kind in part.kinds.items())
    for role, flag in FLAGS.items():
        name = names.get(role)
        if role in TYPES and role not in needed:
            continue
        if name and name not in part.kinds:
            hint = did_you_mean(name, part.kinds)
            raise ManifestError(f"{part.name}: no column {name!r}{hint} ({flag}); there are: {have}")
        found = [name] if name else [] if name == "" else _columns_of(role, part.kinds)
        if role in TYPES and len(found) != 1 and not (found and role == "clip" and _numbers(found)):
            which = "more than one column" if found else "no column"
            raise ManifestError(f"{part.name}: {which} for the {role}; name one by {flag} (there are: {have})")
        if found:
            chosen[role] = found if role in OF_CLIP and _numbers(found) else found[:1]
    clips = chosen.get("clip", [])
    for role in OF_CLIP:
        if len(chosen.get(role, ())) > 1 and _numbers(chosen[role]) != _numbers(clips):
            what = f"columns {', '.join(chosen[role])} do not fit {', '.join(clips)}"
            fix = f"give them the same numbers, or omit them by {FLAGS[role]} ''"
            raise ManifestError(f"{part.name}: {what}; {fix}")
    return chosen


def _columns_of(role: str, kinds: Mapping[str, str]) -> list[str]:
    called = [column for column in kinds if role_of(column) == role]
    named = ((column, _NUMBERED.match(column)) for column in kinds)
    numbers = {column: int(found[2]) for column, found in named if found and role_of(found[1]) == role}
    numbered = sorted(numbers, key=numbers.__getitem__)
    typed = [column for column, kind in kinds.items() if kind == TYPES.get(role)]
    if len(typed) > 1:
        typed = [column for column in typed if column in called] or [c for c in typed if c in numbered] or typed
    if typed and set(typed) <= set(called) and numbered:  # both "audio" and "audio_0": which is meant?
        return [*typed, *numbered]
    return typed or [*called, *numbered]


def _numbers(columns: Collection[str]) -> list[int] | None:
    """The numbers of several columns such as ``audio_0``, ``audio_1``; None if they are not numbered so."""
    found = [_NUMBERED.match(column) for column in columns]
    numbers = [int(each[2]) for each in found if each]
    same = len({each[1] for each in found if each}) == 1
    return numbers if same and len(columns) == len(numbers) == len(set(numbers)) > 1 else None


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and value.get("bytes") is None and not value.get("path"))


class _Stored(NamedTuple):
    """A clip or an image that is a file."""

    path: str
    digest: str  # fingerprint of its contents


class Rows:
    """Turns rows into captions, and their clips and images into files of ``folder``.

    Files are named by their contents, in ``clips/`` and ``images/``, each with up to 256 folders by the first two
    digits of the name. Existing files stay.
    """

    def __init__(self, folder: Path, language: str | None) -> None:
        self.folder = folder
        self.captions: list[Row] = []
        self.problems = Problems()
        self._roots, self._language = list[Path](), language
        self._image_of_clip: dict[str, str] = {}  # fingerprint of a clip → id of its first image
        self.bar: Any = None

    @contextmanager
    def reading(self, part: Part) -> Iterator[None]:
        """While a part is read, its paths are looked for beside it first; a damaged one becomes a problem."""
        self._roots = part.roots
        try:
            yield
        except BrokenPartError as error:
            broken = self.problems.missing.setdefault("shards", [])
            broken.append(f"{part.name}: damaged or cut short: {error}")
        self.bar.update()

    def add(self, place: str, values: Values, split: str | None) -> None:
        """Adds the captions of a row, and to the problems the clips and images that cannot be used."""
        clips, images = ((each if isinstance(each, list) else [each]) or [None] for each in map(values.get, TYPES))
        if len(images) > 1:
            raise ManifestError(f"{place}: {len(images)} images in one row; name a column of one by {FLAGS['image']}")
        texts, speakers, languages = (_of_clips(values, role, len(clips), place) for role in OF_CLIP[1:])
        image = images[0] if isinstance(images[0], _Stored) else self.store(images[0], "image", place)
        image_id = word(values.get("image_id"), place, FLAGS["image_id"]) or (image.digest if image else "")
        split = word(values.get("split"), place, FLAGS["split"]) or split
        for number, value in enumerate(clips):
            clip = self.store(value, "clip", place if len(clips) == 1 else f"{place} ({number + 1})")
            # A manifest has each clip once, so the same audio for another image becomes a file of its own.
            if clip and image and self._image_of_clip.setdefault(clip.digest, image_id) != image_id:
                clip = self.store(value, "clip", place, image_id)
            if clip and image:
                words = texts[number], speakers[number], languages[number] or self._language
                self.captions.append(Row(clip.path, image.path, image_id, split or "", *words))

    def find_extra(self) -> None:
        """Adds to the problems the files of earlier runs that no caption uses."""
        if self.folder.is_dir():
            used = {path for caption in self.captions for path in (caption.clip, caption.image)}
            listing = Listing(self.folder, "--to")
            for what, suffixes in (("clips", AUDIO_SUFFIXES), ("images", IMAGE_SUFFIXES)):
                extra = [listing.relative(path) for path in listing.files(suffixes) if path not in used]
                self.problems.extra[what] += extra

    def store(self, value: Any, kind: Kind, place: str, other: str = "") -> _Stored | None:
        """A clip or an image as a file; None, and a problem, if it cannot be used."""
        fields = value if isinstance(value, dict) else {"bytes" if isinstance(value, bytes) else "path": value}
        data, name = fields.get("bytes"), fields.get("path")
        if data is not None:
            return self._write(data, name, kind, place, other)
        if not isinstance(name, str) or not name:
            return self._problem("missing", kind, place, "no bytes and no path")
        path = next((root / name for root in self._roots if (root / name).is_file()), None)
        if path is None:
            why = f"{name:.60} is a URL, not a file" if "://" in name else f"no bytes, no file {name}"
            return self._problem("missing", kind, place, why)
        if path.stat().st_size == 0:
            return self._problem("empty", kind, place, f"{name} has no bytes")
        with path.open("rb") as file:
            return _Stored(os.fspath(path), fingerprint(file))

    def _problem(self, state: str, kind: Kind, place: str, why: str) -> _Stored | None:
        vars(self.problems)[state][f"{kind}s"].append(f"{place}: {why}")
        return None

    def _write(self, data: bytes, name: str | None, kind: Kind, place: str, other: str) -> _Stored | None:
        if not data:
            return self._problem("empty", kind, place, "no bytes")
        found = file_kind(io.BytesIO(data))
        suffix = found.suffix if found else os.path.splitext(name or "")[1].lower()
        if kind_by_suffix(f"x{suffix}") != kind:
            what = "audio" if kind == "clip" else "an image"
            return self._problem("missing", kind, place, f"the bytes are not {what}")
        digest = fingerprint(data)
        name = f"{digest}-{fingerprint(other.encode())[:8]}{suffix}" if other else digest + suffix
        path = self.folder / f"{kind}s" / name[:2] / name
        # The name tells the contents. After a power cut a file may exist without them, so its size is checked.
        if not path.exists() or path.stat().st_size != len(data):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, data, durable=False)
        return _Stored(os.fspath(path), digest)


def _of_clips(values: Values, role: str, count: int, place: str) -> list[str | None]:
    """The text, speaker or language of each clip of a row."""
    found = values.get(role)
    each = found if isinstance(found, list) else [found] * count
    if len(each) != count or any(isinstance(value, list | dict) for value in each):
        fix = f"name its column by {FLAGS[role]}, or omit it by {FLAGS[role]} ''"
        raise ManifestError(f"{place}: {role} {found!r:.60} does not fit {count} clips; {fix}")
    return [word(value, place, FLAGS[role]) for value in each]
