"""Walking the folders of a user: the only way in which SaySee looks for files."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from saysee.errors import SaySeeError


class Listing:
    """All files under a folder, from one walk.

    Hidden files and folders and ``__MACOSX`` are skipped. Links to folders are followed, each folder once.

    Args:
        folder: where the walk starts.
        option: the flag or argument that named it, for the error message.

    Raises:
        SaySeeError: it is not a folder.
        OSError: a folder inside it cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str], option: str) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            exists = self.folder.exists()
            fix = "is a file; unpack it, or name the folder" if exists else "no such folder; check the path"
            raise SaySeeError(f"{folder}: {fix} ({option})")
        self._by_suffix: dict[str, list[str]] = defaultdict(list)
        for path in _walk(os.fspath(self.folder)):
            self._by_suffix[os.path.splitext(path)[1].lower()].append(path)

    def files(self, suffixes: Iterable[str]) -> list[str]:
        """Sorted paths of the files that have one of these suffixes (in lower case, with the dot)."""
        return sorted(path for suffix in suffixes for path in self._by_suffix.get(suffix, ()))

    def relative(self, path: str) -> str:
        """The path of a file relative to the folder, with forward slashes."""
        return os.path.relpath(path, self.folder).replace(os.sep, "/")


def _walk(folder: str) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()  # a link may lead back up
    pending = [folder]
    while pending:
        current = pending.pop()
        status = os.stat(current)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(current) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if entry.is_dir():
                    pending.append(entry.path)
                else:
                    yield entry.path
