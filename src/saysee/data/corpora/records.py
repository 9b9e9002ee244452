"""Records: the rows or samples of a data set, with sounds and pictures as bytes, and how these become files."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from saysee.errors import ManifestError
from saysee.files import fingerprint
from saysee.media.formats import AUDIO_SUFFIXES, IMAGE_SUFFIXES, file_kind

FLAGS = {
    "clip": "--audio-column",
    "image": "--image-column",
    "text": "--text-column",
    "speaker": "--speaker-column",
    "language": "--language-column",
    "image_id": "--id-column",
    "split": "--split-column",
}
"""The flag that names the column of a role."""

SUFFIXES = {"clips": AUDIO_SUFFIXES, "images": IMAGE_SUFFIXES}
_NOUNS = {"clips": "sound", "images": "picture"}


@dataclass(frozen=True, slots=True)
class Media:
    """A sound or a picture as a data set holds it: its file's bytes, or the path of a file, or both."""

    data: bytes | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A picture with what is said of it.

    Attributes:
        place: file and row or key, for messages.
        split: as the data set names it; None where it does not.
        sounds: one or more; None where one is not there.
        texts: the text of each sound.
        picture: None where it is not there.
        image_id: None where no column has it.
        speaker, language: likewise.
    """

    place: str
    split: str | None
    sounds: list[Media | None]
    texts: list[str | None]
    picture: Media | None
    image_id: str | None = None
    speaker: str | None = None
    language: str | None = None


@dataclass(frozen=True)
class Shard:
    """One file of a data set.

    Attributes:
        path: where it lies.
        kind: "parquet", "arrow" or "tar".
        split: as its name or its folder says; None where neither does.
    """

    path: Path
    kind: str
    split: str | None


@dataclass(frozen=True)
class ColumnNames:
    """Columns that were named, by role (see ``FLAGS``). "" means that the role has none."""

    named: Mapping[str, str] = field(default_factory=dict)

    def get(self, role: str) -> str | None:
        """The column named for a role; None where it is to be found."""
        return self.named.get(role)


class BrokenShardError(Exception):
    """A file of a data set cannot be read, or not to its end; the message says why."""


class LackingError(Exception):
    """A sound or a picture is not there.

    Attributes:
        state: "missing" or "empty".
    """

    def __init__(self, state: str, why: str) -> None:
        super().__init__(why)
        self.state = state


def texts_of_sounds(value: object, sounds: int, place: str) -> list[str | None]:
    """A text for each of a row's sounds: a text for all, a list with one for each, or none.

    Raises:
        ManifestError: there are not as many texts as sounds, or something is no text.
    """
    texts = value if isinstance(value, list | tuple) else [value] * sounds
    if len(texts) != sounds:
        raise ManifestError(
            f"{place}: {sounds} sounds and {len(texts)} texts; name the column of what is spoken by --text-column, or "
            "leave texts out by --text-column ''"
        )
    told: list[str | None] = []
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise ManifestError(f"{place}: the text is {text!r:.40}; name a column of strings by --text-column")
        told.append(text or None)
    return told


class MediaFiles:
    """Puts sounds and pictures into files named by their contents, whole or not at all; what is there stays.

    Files lie under ``clips/`` and ``images/``, in 256 folders each by the first two digits of their name.

    Args:
        folder: of the files; made when the first is written.
        roots: folders that relative paths of a data set start from, the first that has the file.
    """

    def __init__(self, folder: Path, roots: Iterable[Path]) -> None:
        self.folder, self._roots = folder, tuple(roots)
        self._made: set[Path] = set()

    def place(self, media: Media | None, what: str) -> tuple[Path, str]:
        """The file of a sound ("clips") or picture ("images"), and the fingerprint of its contents.

        Bytes are written into a file of this folder, a file that the data set refers to stays where it is.

        Raises:
            LackingError: there are no bytes and no file, or not of a sound or picture.
        """
        if media is None or (media.data is None and not media.path):
            raise LackingError("missing", "no bytes and no path")
        if media.data is None:
            assert media.path is not None
            path = self._refer(media.path)
            with path.open("rb") as file:
                return path, fingerprint(file)
        if not media.data:
            raise LackingError("empty", "no bytes")
        digest = fingerprint(media.data)
        return self._write(media.data, what, digest + _suffix(media, what)), digest

    def again(self, media: Media, what: str, digest: str, other: str) -> Path:
        """A further file of the same contents, named after ``other`` too: a clip that is said of two pictures."""
        assert media.data is not None
        return self._write(media.data, what, f"{digest}-{other}{_suffix(media, what)}")

    def _refer(self, name: str) -> Path:
        if "://" in name:
            raise LackingError("missing", f"{name:.60} is an address, not a file")
        for root in self._roots:
            path = root / name
            if path.is_file():
                if path.stat().st_size == 0:
                    raise LackingError("empty", f"{name} has no bytes")
                return path
        raise LackingError("missing", f"no bytes, and no file {name}")

    def _write(self, data: bytes, what: str, name: str) -> Path:
        path = self.folder / what / name[:2] / name
        # The name tells the contents. After a power cut a file may be there without them, so its size is looked at.
        if not path.exists() or path.stat().st_size != len(data):
            if path.parent not in self._made:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._made.add(path.parent)
            temporary = path.with_name(f".writing-{name}")  # a broken run leaves one at most, which the next renames
            temporary.write_bytes(data)
            os.replace(temporary, path)
        return path


def suffix_of(data: bytes) -> str | None:
    """The suffix for a file of these contents, by its first bytes; None if they are of no sound or picture known."""
    found = file_kind(io.BytesIO(data))
    return None if found is None else found.suffix


def _suffix(media: Media, what: str) -> str:
    """Its suffix: by contents, else by the name that the data set has for it.

    Raises:
        LackingError: it is of the other kind, or of none.
    """
    assert media.data is not None
    found = suffix_of(media.data)
    if found is None and media.path:
        found = os.path.splitext(media.path)[1].lower()
    if found not in SUFFIXES[what]:
        raise LackingError("missing", f"bytes of no {_NOUNS[what]} known")
    assert found is not None
    return found
