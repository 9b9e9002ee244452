"""Walking the folders of a user: the only way in which SaySee looks for files."""

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase, translate
from pathlib import Path
from unicodedata import normalize

from saysee.errors import SaySeeError
from saysee.media.formats import kind_by_suffix
from saysee.media.source import printable, reason

EXCLUDED = (
    *(".*", "__MACOSX", "lost+found", "$RECYCLE.BIN", "RECYCLER", "System Volume Information"),
    *("@eaDir", "@__thumb", "@Recycle", "@Recently-Snapshot", "#recycle", "#snapshot"),  # of Synology and QNAP
    *("appdata_*/preview", "thumbs", "_thumbs", "*.lrdata", "*.photoslibrary/resources"),  # of Nextcloud, Immich, ...
)
"""Patterns of what is no file of the user's: hidden files, trash, snapshots and thumbnails."""
NO_MEDIA = ".nomedia"  # a file with this name excludes its folder, as on Android

logger = logging.getLogger(__name__)


class Walk:
    """The files under a folder, each once.

    Links to folders are followed, each folder once: one that lies inside is listed there, not where a link leads to it.
    What cannot be read is logged, and the rest is listed.

    ``option`` is the flag or argument that named the folder. ``exclude`` are patterns beside ``EXCLUDED``, as of the
    shell, compared without regard to case: with the name of a file or folder, or where they have a slash, with the end
    of its path below the folder.

    Raises SaySeeError if it is not a folder, or cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str], option: str, exclude: Sequence[str] = ()) -> None:
        self.folder, self._option = Path(folder), option
        if not os.path.isdir(self.folder):
            exists = os.path.exists(self.folder)
            fix = "is a file; unpack it, or name the folder" if exists else "no such folder; check the path"
            raise SaySeeError(f"{printable(folder)}: {fix} ({option})")
        self._start = os.path.join(self.folder, "")
        # Complete once all files are listed:
        self.excluded = Counter(dict.fromkeys(exclude, 0))  # files and folders by each pattern and by ``NO_MEDIA``
        self.unreadable: dict[str, str] = {}  # reason for each folder or link that cannot be read, by relative path
        self._patterns = {each: _comparable(each).strip("/").removeprefix("**/") for each in (*EXCLUDED, *exclude)}
        # One expression for all names; the path, and which pattern it is, are looked at where that matches.
        names = (translate(pattern.rpartition("/")[2]) for pattern in self._patterns.values())
        self._candidates = re.compile("|".join(names))

    def relative(self, path: str) -> str:
        """The path of a file relative to the folder, with forward slashes."""
        inside = path[len(self._start) :] if path.startswith(self._start) else os.path.relpath(path, self.folder)
        return inside.replace(os.sep, "/")

    def __iter__(self) -> Iterator[str]:
        """The paths, in no order; only once."""
        seen: set[tuple[int, int] | str] = set()
        pending, links = [os.fspath(self.folder)], list[str]()
        while pending or links:
            if not pending:  # what lies inside has been listed
                links.sort(reverse=True)
                pending.append(links.pop())
            current = pending.pop()
            try:
                status = os.stat(current)
                # Some network drives number no files.
                identity = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(current)
                if identity in seen:
                    continue
                seen.add(identity)
                if current != os.fspath(self.folder) and os.path.lexists(os.path.join(current, NO_MEDIA)):
                    self.excluded[NO_MEDIA] += 1
                    continue
                before = len(pending)
                with os.scandir(current) as entries:
                    for entry in entries:
                        if not self._is_excluded(entry) and self._is_file(entry, pending, links):
                            yield entry.path
                pending[before:] = sorted(pending[before:], reverse=True)
            except OSError as error:
                self._skip(current, reason(error))
        for path, why in sorted(self.unreadable.items()):
            logger.warning("%s: %s; skipped", printable(os.path.join(self.folder, path)), why)

    def _is_file(self, entry: os.DirEntry[str], pending: list[str], links: list[str]) -> bool:
        """Whether it is to be listed; a folder is noted to be walked."""
        try:
            if entry.is_dir():
                (links if entry.is_symlink() else pending).append(entry.path)
                return False
            # Whoever opens an image or a clip reports what is wrong with it.
            if entry.is_symlink() and kind_by_suffix(entry.name) is None and not os.path.exists(entry.path):
                self._skip(entry.path, f"is a link to {printable(os.readlink(entry.path))}, which does not exist")
                return False
        except OSError as error:  # a link to itself, or a network drive that no longer answers
            self._skip(entry.path, reason(error))
            return False
        return True

    def _is_excluded(self, entry: os.DirEntry[str]) -> bool:
        if not self._candidates.match(_comparable(entry.name)):
            return False
        path = _comparable(f"/{self.relative(entry.path)}")
        found = next((each for each, pattern in self._patterns.items() if fnmatchcase(path, f"*/{pattern}")), None)
        if found is not None:
            self.excluded[found] += 1
        return found is not None

    def _skip(self, path: str, why: str) -> None:
        if path == os.fspath(self.folder):
            raise SaySeeError(f"{printable(path)}: {why}; change its permissions ({self._option})")
        self.unreadable[self.relative(path)] = why


class Listing(Walk):
    """All files of a :class:`Walk`; the same at every walk."""

    def __init__(self, folder: str | os.PathLike[str], option: str) -> None:
        super().__init__(folder, option)
        self._by_suffix: dict[str, list[str]] = defaultdict(list)
        for path in self:
            self._by_suffix[os.path.splitext(path)[1].lower()].append(path)

    def files(self, suffixes: Iterable[str]) -> list[str]:
        """Sorted paths of the files that have one of these suffixes (in lower case, with the dot)."""
        return sorted(path for suffix in suffixes for path in self._by_suffix.get(suffix, ()))


def _comparable(text: str) -> str:
    return normalize("NFC", text).casefold().replace(os.sep, "/")
