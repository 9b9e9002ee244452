"""Files found by name, in whatever layout a copy of a corpus has: nested, flat, folders renamed, suffixes changed.

A folder is walked once. Names are compared without regard to case and to how accents are composed (NFC), and a sound or
picture may have another suffix than its list says: ``.jpeg`` for ``.jpg``, ``.flac`` for ``.wav``.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saysee.errors import ManifestError, SaySeeError

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".webm", ".m4a", ".mp4", ".aac"})
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})

_MEDIA_SUFFIXES = AUDIO_SUFFIXES | IMAGE_SUFFIXES
_SPLIT_WORD = re.compile(r"(?:^|[ _.-])(train|val|dev|test)(?:[_-]((?:un)?seen))?(?=[ _.-]|$)", re.IGNORECASE)


def plain(name: str) -> str:
    """A name for comparing: forward slashes, composed accents, no case."""
    if not name.isascii():  # nearly all are, and there are a million of them
        name = unicodedata.normalize("NFC", name)
    return name.replace("\\", "/").casefold()


def stem_key(name: str) -> str:
    """What the name of a sound or picture is found by: its last part, without the suffix of a sound or picture."""
    last = plain(name).rpartition("/")[2]
    stem, suffix = os.path.splitext(last)
    return stem if suffix in _MEDIA_SUFFIXES else last


class Listing:
    """The files under a folder.

    Hidden files, and what macOS packs beside files, are left out. Links to folders are followed, once each.

    Attributes:
        folder: where the walk began.

    Raises:
        SaySeeError: it is no folder, or a folder in it cannot be read. ``option`` is the flag that named it.
    """

    def __init__(self, folder: str | os.PathLike[str], option: str) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            what = (
                "is a file; unpack it, or name the folder" if self.folder.exists() else "no such folder; check the path"
            )
            raise SaySeeError(f"{folder}: {what} ({option})")
        self._by_suffix: dict[str, list[str]] = defaultdict(list)
        for path in _walk(os.fspath(self.folder)):
            self._by_suffix[os.path.splitext(path)[1].lower()].append(path)

    def files(self, suffixes: Iterable[str]) -> list[str]:
        """Paths of the files with one of these suffixes (lower case, with the dot), in order."""
        return sorted(path for suffix in suffixes for path in self._by_suffix.get(suffix, ()))

    def relative(self, path: str) -> str:
        """A file's path from the folder on, with forward slashes."""
        return os.path.relpath(path, self.folder).replace(os.sep, "/")


def list_both(audio: str | os.PathLike[str], images: str | os.PathLike[str]) -> tuple[Listing, Listing]:
    """The listings of ``--audio`` and ``--images``; where both are one folder, it is walked once.

    Raises:
        SaySeeError: as ``Listing``.
    """
    sounds = Listing(audio, "--audio")
    same = Path(images).exists() and os.path.samefile(audio, images)
    return sounds, sounds if same else Listing(images, "--images")


def _walk(folder: str) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()  # a link may lead back up
    todo = [folder]
    while todo:
        at = todo.pop()
        status = os.stat(at)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(at) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if entry.is_dir():
                    todo.append(entry.path)
                else:
                    yield entry.path


class FileIndex:
    """Sounds or pictures of a listing, to be found by the names that a corpus's lists have for them.

    Attributes:
        listing: where they lie.
        twice: names for which several files fit equally well, each with the file taken and the next.
    """

    def __init__(self, listing: Listing, suffixes: Iterable[str], key: Callable[[str], str] = stem_key) -> None:
        self.listing, self.paths = listing, listing.files(suffixes)
        self.twice: list[tuple[str, str, str]] = []
        self._key = key
        self._by_key: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            self._by_key[key(path)].append(path)

    def match(self, names: Iterable[str]) -> dict[str, str | None]:
        """The file of each name or path of a list; None where there is none.

        Folders in a name only choose between files of one name, as copies rename them. But where the list itself has a
        name in several folders, a file must agree in its folder too, or it would be taken for another.
        """
        here = os.path.join(self.listing.folder, "")
        known = set(self.paths)
        listed: dict[str, list[str]] = defaultdict(list)
        found: dict[str, str | None] = {}
        for name in dict.fromkeys(names):
            path = here + name.replace("\\", "/").replace("/", os.sep)
            found[name] = path if path in known else None
            listed[self._key(name)].append(name)
        for key, alike in listed.items():
            rest = [name for name in alike if found[name] is None]
            if not rest:
                continue
            files = self._by_key.get(key, [])
            if len(alike) == 1:
                found[rest[0]] = self._best(rest[0], files)
            else:
                taken = {found[name] for name in alike}
                found.update(_assign(rest, [path for path in files if path not in taken]))
        return found

    def _best(self, name: str, files: Sequence[str]) -> str | None:
        if len(files) < 2:
            return files[0] if files else None
        ranked = sorted(files, key=lambda path: (_likeness(name, path), -path.count(os.sep)), reverse=True)
        if _likeness(name, ranked[0]) == _likeness(name, ranked[1]):
            self.twice.append((name, ranked[0], ranked[1]))
        return ranked[0]


def _likeness(name: str, path: str) -> tuple[int, bool, bool]:
    """How well a file fits a listed name: folders shared from the end on; the same suffix; the same case."""
    mine, theirs = plain(name).split("/")[:-1], plain(path).split("/")[:-1]
    shared = 0
    for one, other in zip(reversed(mine), reversed(theirs), strict=False):
        if one != other:
            break
        shared += 1
    same_suffix = os.path.splitext(plain(name))[1] == os.path.splitext(plain(path))[1]
    return shared, same_suffix, _last(name) == _last(path)


def _last(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/").rpartition("/")[2])


def _assign(names: Sequence[str], files: Sequence[str]) -> dict[str, str | None]:
    """Files for listed names that differ in folder, case or suffix only: the most alike first, no file twice."""
    by_parent: dict[str, list[str]] = defaultdict(list)
    by_last: dict[str, list[str]] = defaultdict(list)
    for path in files:
        by_parent[_parent(path)].append(path)
        by_last[_last(path)].append(path)
    lasts = Counter(map(_last, names))
    pairs = set()
    for name in names:
        sure = by_parent[_parent(name)] if _parent(name) else []
        # A name that only differs from the others by case or suffix may be told by it.
        sure = sure + (by_last[_last(name)] if lasts[_last(name)] == 1 else [])
        pairs |= {(_likeness(name, path), name, path) for path in sure}
    found: dict[str, str | None] = dict.fromkeys(names)
    used: set[str] = set()
    for _, name, path in sorted(pairs, reverse=True):
        if found[name] is None and path not in used:
            found[name] = path
            used.add(path)
    return found


def _parent(name: str) -> str:
    return plain(name).rpartition("/")[0].rpartition("/")[2]


# --- lists and tables -------------------------------------------------------------------------------------------------

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "clip": ("clip", "audio", "wav", "sound", "speech"),
    "image": ("image", "picture", "photo", "img"),
    "image_id": ("image_id", "img_id"),
    "split": ("split",),
    "text": ("text", "caption", "transcript", "transcription", "sentence", "texts", "captions", "sentences"),
    "speaker": ("speaker", "speaker_id"),
    "language": ("language", "lang"),
}
"""What a column of a table may be called, whatever its case; "_path", "_file" and "path" behind it are the same."""


def role_of(title: str) -> str | None:
    """The column of a manifest that a table's column of this title fills; None if it fills none."""
    word = re.sub(r"[ _-]?(path|file|filename)$", "", title.strip().lower())
    return next((role for role, titles in COLUMNS.items() if word in titles), None)


def find_lists(listings: Iterable[Listing], name: re.Pattern[str], suffixes: Iterable[str]) -> list[Path]:
    """Files whose name matches, in the listings and directly beside their folders; the least deep first."""
    found: dict[str, None] = {}
    suffixes = tuple(suffixes)
    for listing in listings:
        beside = _files_of(os.path.dirname(os.path.abspath(listing.folder)), suffixes)
        inside = sorted(listing.files(suffixes), key=lambda path: path.count(os.sep))
        for path in (*inside, *beside):
            if name.search(unicodedata.normalize("NFC", os.path.basename(path))):
                found.setdefault(os.path.abspath(path))
    return [Path(path) for path in found]


def _files_of(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.path
                for entry in entries
                if entry.name.lower().endswith(suffixes) and not entry.name.startswith(".") and entry.is_file()
            )
    except OSError:  # not ours to read: then there is nothing to find
        return []


def split_families(paths: Iterable[Path]) -> dict[str, dict[str, Path]]:
    """Files that belong together: what the name is without its split → split → the first such file.

    The split is the last of the words train, val, dev and test in the name, dev being val; ``seen`` and ``unseen``
    behind it are kept. Files without such a word are left out.
    """
    families: dict[str, dict[str, Path]] = {}
    for path in paths:
        words = list(_SPLIT_WORD.finditer(path.stem))
        if not words:
            continue
        word = words[-1]
        split = "_".join([word[1].lower().replace("dev", "val"), *([word[2].lower()] if word[2] else [])])
        family = (path.stem[: word.start()] + path.stem[word.end() :]).strip(" _.-").lower()
        families.setdefault(family, {}).setdefault(split, path)
    return families


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, without line ends of any system and without a byte order mark.

    Raises:
        ManifestError: it cannot be read, or is not UTF-8.
    """
    text = read_utf8(path).replace("\r\n", "\n").replace("\r", "\n")
    return [line.strip() for line in text.split("\n") if line.strip()]


def read_utf8(path: Path) -> str:
    """A text file without its byte order mark.

    Raises:
        ManifestError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None
    except UnicodeDecodeError:
        raise ManifestError(f"{path}: not UTF-8 text; save it as UTF-8") from None


def read_json_records(path: Path, key: str) -> list[dict[str, Any]]:
    """The list of objects that a JSON file has under ``key``, or is.

    Raises:
        ManifestError: it cannot be read, is not JSON, or has no such list.
    """
    try:
        content = json.loads(read_utf8(path))
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: not JSON ({error}); copy it again") from None
    records = content.get(key) if isinstance(content, dict) else content
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ManifestError(f"{path}: no list of objects under {key!r}; name the corpus's own file")
    return records
