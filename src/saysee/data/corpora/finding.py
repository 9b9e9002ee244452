"""Finding the files that a corpus lists, in whatever layout a copy of the corpus has, and reading its lists.

Names are compared without case and with composed accents (NFC), and an audio or image file may have another suffix than
the list says: ``.flac`` for ``.wav``.
"""

import io
import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Any

from saysee.data.tables import split_name
from saysee.errors import ManifestError
from saysee.media.folders import Listing
from saysee.media.formats import AUDIO_SUFFIXES, IMAGE_SUFFIXES, kind_by_suffix

_SPLIT_WORD = re.compile(
    r"(?:^|[ _.-])(train(?:ing)?|val(?:id(?:ation)?)?|dev|test(?:ing)?)(?:[_-]?((?:un)?seen))?(?=[ _.-]|\d|$)",
    re.IGNORECASE,
)
_LANGUAGES = {"english": "en", "hindi": "hi", "japanese": "ja", "jpn": "ja", "yoruba": "yo"}
_LAST_LATIN = "\u024f"  # of the Unicode blocks of Latin letters
_LETTERS = 10_000  # enough to tell a script


def plain(name: str) -> str:
    """A name for comparisons: forward slashes, composed accents, no case."""
    return _composed(name).casefold()


def _composed(name: str) -> str:
    name = name if name.isascii() else unicodedata.normalize("NFC", name)  # nearly all are
    return name.replace("\\", "/")


def stem_key(name: str) -> str:
    """The key under which a file is found: its plain base name without the suffix of an audio or image file."""
    last = plain(name).rpartition("/")[2]
    return os.path.splitext(last)[0] if kind_by_suffix(last) else last


class FileIndex:
    """Finds audio or image files of a listing by the names that a corpus lists."""

    def __init__(self, listing: Listing, suffixes: Iterable[str], key: Callable[[str], str] = stem_key) -> None:
        self.listing, self.paths = listing, listing.files(suffixes)
        self.ambiguous: list[tuple[str, str, str]] = []  # (name, chosen, other file) where several fit equally well
        self._key = key
        self._by_key: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            self._by_key[key(path)].append(path)

    def match(self, names: Iterable[str]) -> dict[str, str | None]:
        """The file of each listed name or path; None if there is none. An absolute path may lead out of the listing.

        As copies rename folders, the folders in a name only choose between several files of that name. But if the list
        has the same name in several folders, a file must agree in all that distinguish these, or it would be taken for
        another.
        """
        forms = {name: _composed(name) for name in names}
        known = {_composed(path): path for path in self.paths}
        listed: dict[str, list[str]] = defaultdict(list)
        found: dict[str, str | None] = {}
        for name in dict.fromkeys(forms.values()):
            path = os.path.join(self.listing.folder, name)
            elsewhere = os.path.isabs(name) and os.path.isfile(name)
            found[name] = known.get(_composed(path)) or (path if elsewhere else None)
            listed[self._key(name)].append(name)
        for key, alike in listed.items():
            rest = [name for name in alike if found[name] is None]
            if not rest:
                continue
            files = self._by_key.get(key, [])
            if len(alike) == 1:
                found[rest[0]] = self._best(rest[0], files)
            else:
                used = {found[name] for name in alike}
                found.update(_assign(rest, alike, [path for path in files if path not in used]))
        return {name: found[form] for name, form in forms.items()}

    def _best(self, name: str, files: Sequence[str]) -> str | None:
        fit = {path: _similarity(name, path) for path in files}
        ranked = sorted(files, key=lambda path: (fit[path], -path.count(os.sep)), reverse=True)
        if len(ranked) > 1 and fit[ranked[0]] == fit[ranked[1]]:
            self.ambiguous.append((name, ranked[0], ranked[1]))
        return ranked[0] if ranked else None


def index_folders(
    audio: str | os.PathLike[str], images: str | os.PathLike[str], image_key: Callable[[str], str] = stem_key
) -> tuple[FileIndex, FileIndex]:
    """The clips of ``--audio`` and the images of ``--images``; one walk if both are the same folder."""
    clips = Listing(audio, "--audio")
    same = Path(images).exists() and os.path.samefile(audio, images)
    return (
        FileIndex(clips, AUDIO_SUFFIXES),
        FileIndex(clips if same else Listing(images, "--images"), IMAGE_SUFFIXES, image_key),
    )


def _similarity(name: str, path: str) -> tuple[int, bool, bool]:
    """How well a file fits a listed name: number of equal parent folders; same suffix; same case."""
    listed, actual = plain(name).split("/")[-2::-1], plain(path).split("/")[-2::-1]
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(listed, actual, strict=False))))
    same_suffix = os.path.splitext(plain(name))[1] == os.path.splitext(plain(path))[1]
    return shared, same_suffix, _base_name(name) == _base_name(path)


def _assign(names: Sequence[str], alike: Sequence[str], files: Sequence[str]) -> dict[str, str | None]:
    """Files for some of ``alike`` names, which differ in folder, case or suffix: best fit first, each file once."""
    folders = {_folders(name) for name in alike}
    known = Counter(folder[-depth:] for folder in folders for depth in range(1, len(folder) + 1))
    by_folders: dict[tuple[str, ...], list[str]] = defaultdict(list)
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in files:
        folder = _folders(path)
        for depth in range(1, len(folder) + 1):
            if folder[-depth:] not in known:
                break
            by_folders[folder[-depth:]].append(path)
        by_name[_base_name(path)].append(path)
    counts = Counter(map(_base_name, alike))
    pairs = set()
    for name in names:
        folder = _folders(name)
        depths = range(1, len(folder) + 1)
        least = next((depth for depth in depths if known[folder[-depth:]] == 1), len(folder))
        candidates = by_folders[folder[-least:]] if least else []
        # A name that differs from the others by case or suffix alone is identified by it.
        candidates = candidates + (by_name[_base_name(name)] if counts[_base_name(name)] == 1 else [])
        pairs |= {(_similarity(name, path), name, path) for path in candidates}
    found: dict[str, str | None] = dict.fromkeys(names)
    used: set[str] = set()
    for _, name, path in sorted(pairs, reverse=True):
        if found[name] is None and path not in used:
            found[name] = path
            used.add(path)
    return found


def _base_name(name: str) -> str:
    return _composed(name).rpartition("/")[2]


def _folders(name: str) -> tuple[str, ...]:
    return tuple(plain(name).split("/")[:-1])


def find_lists(listings: Iterable[Listing], name: re.Pattern[str], suffixes: tuple[str, ...]) -> list[Path]:
    """Files whose name matches, in the listings and directly beside their folders; the least nested first."""
    found: dict[str, None] = {}
    for listing in listings:
        near = Path(os.path.abspath(listing.folder)).parent.glob("[!.]*")
        beside = sorted(map(str, (path for path in near if path.suffix.lower() in suffixes and path.is_file())))
        inside = sorted(listing.files(suffixes), key=lambda path: path.count(os.sep))
        for path in (*inside, *beside):
            if name.search(unicodedata.normalize("NFC", os.path.basename(path))):
                found.setdefault(os.path.abspath(path))
    return [Path(path) for path in found]


def split_families(paths: Iterable[Path]) -> dict[str, dict[str, Path]]:
    """Groups files that belong together: name without its split → split (also ``val_seen``) → the first such file.

    Files without a word such as train or dev in their name are skipped.
    """
    families: dict[str, dict[str, Path]] = {}
    for path in paths:
        word = split_word(path.stem)
        if word is None:
            continue
        split = split_name("_".join(filter(None, word.groups())))
        family = (path.stem[: word.start()] + path.stem[word.end() :]).strip(" _.-").lower()
        families.setdefault(family, {}).setdefault(split, path)
    return families


def split_word(name: str) -> re.Match[str] | None:
    """The last word such as train, val or dev in a name, with a following ``seen`` or ``unseen`` as second group."""
    words = list(_SPLIT_WORD.finditer(name))
    return words[-1] if words else None


def named_language(name: str) -> str | None:
    """The language in the name of a file, folder or key, such as ``hindi_wav``; None if it has none, or several."""
    found = {tag for word, tag in _LANGUAGES.items() if word in name.casefold()}
    return found.pop() if len(found) == 1 else None


def can_be_english(texts: Iterable[str | None]) -> bool:
    """Whether texts are in Latin letters. A translated copy often keeps the files and names of the English corpus."""
    letters = list(islice(filter(str.isalpha, chain.from_iterable(filter(None, texts))), _LETTERS))
    return 2 * sum(letter <= _LAST_LATIN for letter in letters) >= len(letters)


def read_lines(path: Path) -> list[str]:
    """The stripped lines of a text file (see :func:`read_utf8`) that are not blank, whatever its line ends."""
    return [line.strip() for line in io.StringIO(read_utf8(path), newline=None) if line.strip()]


def read_utf8(path: Path) -> str:
    """A text file without its byte order mark. Raises ManifestError if it cannot be read, or is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror or error}); check the file") from None
    except UnicodeDecodeError:
        raise ManifestError(f"{path}: not UTF-8 text; save it as UTF-8") from None


def read_json_records(path: Path, key: str) -> list[dict[str, Any]]:
    """The list of objects that a JSON file has under ``key``, or consists of. Raises ManifestError without one."""
    try:
        content = json.loads(read_utf8(path))
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: not JSON ({error}); copy it again") from None
    records = content.get(key) if isinstance(content, dict) else content
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ManifestError(f"{path}: no list of objects under {key!r}; name the corpus's own file")
    return records
