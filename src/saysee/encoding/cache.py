"""Features of frozen encoders on disk, safe when processes share them and when one is killed.

An entry is found by the contents of its file and by everything that made it: weights, preprocessing, precision. So
nothing is ever stale: what has changed has another key, and is computed again.

A store is a folder that grows by whole shards: ``NAME.values`` holds the arrays end to end, ``NAME.json`` their
positions. Both are written atomically, the index last, and never changed again: where there is an index, there are its
values. Each shard has a unique name, so processes that write at once do not collide; a key that two of them wrote is
there twice, which costs disk space and nothing else. A shard whose size differs from the one in its index is removed,
and its keys are missing again.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saysee.encoding.reading import read_ahead
from saysee.errors import ConfigError, SaySeeError
from saysee.files import STILL_SECONDS, UNFINISHED, atomic_write, fingerprint
from saysee.log import progress_bar

logger = logging.getLogger(__name__)

Values = NDArray[np.int16]
"""The bits of 16-bit floating-point numbers; numpy has no bf16."""

ABOUT_FILE = "about.json"
LEFTOVER_SECONDS = 3600
"""An older unfinished file was left by a killed process: writing a shard takes seconds."""
OPEN_SHARDS = 256
"""Shards mapped at once, well below the usual limit of 1,024 open files."""
_BATCH = 64  # files whose fingerprints are computed together
_FIX = "free some disk space, choose another folder by features.folder, or set features.keep to off"


class FeatureCache:
    """A folder of cached features, of any number of models, at most ``limit_gb`` GB of 10 to the 9th bytes.

    Raises SaySeeError if it does not exist and cannot be created.
    """

    def __init__(self, folder: Path, limit_gb: float = 50.0) -> None:
        self.folder, self.limit_gb = folder, limit_gb
        self._stores: dict[str, FeatureStore] = {}
        with _writing_into(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.files = FileFingerprints(folder / "files.json")

    def store(self, name: str, about: Mapping[str, Any]) -> FeatureStore:
        """The store of the features that ``about`` describes, opened once; ``name`` begins that of its folder.

        ``about`` has everything that the features depend on besides the contents of a file. Raises SaySeeError if the
        folder cannot be used.
        """
        key = f"{name}-{fingerprint(json.dumps(about, sort_keys=True, default=str).encode())[:16]}"
        if key not in self._stores:
            with _writing_into(self.folder):
                self._stores[key] = FeatureStore(self.folder / key, about)
        return self._stores[key]

    def check_room(self, need: int, advice: str = "") -> None:
        """Checks that ``need`` more bytes fit into the limit and on the disk; ConfigError, with ``advice``, if not."""
        after = folder_bytes(self.folder) + need
        if after > self.limit_gb * 1e9:
            raise ConfigError(
                f"{self.folder} would hold {gigabytes(after)} of features, over features.limit_gb "
                f"({self.limit_gb:g}); raise it, {advice}or set features.keep to off"
            )
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise ConfigError(
                f"{self.folder} needs {gigabytes(need)} for features, and its disk has {gigabytes(free)} free; "
                f"{advice}{_FIX}"
            )


class FeatureStore:
    """A folder of arrays by key; ``about`` describes them, for people who look into the folder."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self._places: dict[str, tuple[str, int, int]] = {}
        self._read_shards: set[str] = set()
        self._map = lru_cache(OPEN_SHARDS)(lambda shard: np.memmap(folder / f"{shard}.values", np.int16, "r"))
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / ABOUT_FILE).exists():
            _write(folder / ABOUT_FILE, json.dumps(about, indent=2, default=str).encode())
        self._remove_leftovers()
        self.refresh()

    def refresh(self) -> None:
        """Reads the indexes of the shards that were finished since."""
        for index in sorted(self.folder.glob("[!.]*.json")):  # not the unfinished ones
            if index.name != ABOUT_FILE and index.stem not in self._read_shards:
                self._read_index(index)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def size(self, key: str) -> int:
        """Number of values of a key; SaySeeError as :meth:`read`."""
        return self._place(key)[2]

    def read(self, key: str) -> Values:
        """The values of a key [n], mapped from the disk; SaySeeError if there is none."""
        shard, start, count = self._place(key)
        values: Values = self._map(shard)[start : start + count]
        return values

    def _place(self, key: str) -> tuple[str, int, int]:
        if key not in self._places:
            raise SaySeeError(f"{self.folder}: features of a file are missing, or the file has just changed; try again")
        return self._places[key]

    def write(self, arrays: Mapping[str, Values]) -> None:
        """Adds one shard; SaySeeError if it cannot be written."""
        if not arrays:
            return
        places, start = {}, 0
        for key, array in arrays.items():
            places[key] = (start, array.size)
            start += array.size
        shard = f"{time.time_ns():x}-{secrets.token_hex(4)}"
        index = {"bytes": 2 * start, "places": places}
        with _writing_into(self.folder):
            _write(self.folder / f"{shard}.values", *(array.data for array in arrays.values()))
            _write(self.folder / f"{shard}.json", json.dumps(index).encode())
        self.refresh()

    def _read_index(self, index: Path) -> None:
        values = index.with_suffix(".values")
        try:
            content = json.loads(index.read_text(encoding="utf-8"))
            places = {key: (index.stem, int(start), int(count)) for key, (start, count) in content["places"].items()}
            whole = values.stat().st_size == content["bytes"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # other errors of reading say nothing of the shard
            places, whole = {}, False
        if whole:
            self._places |= places
            self._read_shards.add(index.stem)
            return
        logger.warning("features: %s is damaged; its features are computed again", values)
        index.unlink(missing_ok=True)
        values.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        for path in self.folder.iterdir():
            unfinished = path.name.startswith(UNFINISHED)
            unfinished |= path.suffix == ".values" and not path.with_suffix(".json").exists()
            with suppress(FileNotFoundError):  # another process removed it
                if unfinished and time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                    path.unlink()


class FileFingerprints:
    """Fingerprints of the contents of files, kept in a JSON file.

    A file is read again when its size, times or inode differ from the kept ones. When two processes write at once, the
    later one's list stays, and the other's files are read again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, paths: Iterable[str], progress: bool = True) -> dict[str, str | None]:
        """Path to fingerprint; None for a file that cannot be read."""
        found: dict[str, str | None] = {}
        unread = []
        kept = self._kept()
        for path in dict.fromkeys(paths):
            known = kept.get(os.path.abspath(path))
            if known is not None and known[:-1] == _touched(path):
                found[path] = known[-1]
            else:
                unread.append(path)
        new: dict[str, list[Any]] = {}
        batches = (unread[start : start + _BATCH] for start in range(0, len(unread), _BATCH))
        try:
            with progress_bar("fingerprints of files", len(unread), enabled=progress) as bar:
                for batch, results in read_ahead(batches, _read_fingerprint, min(4, os.cpu_count() or 1)):
                    for path, (content, touched) in zip(batch, results, strict=True):
                        found[path] = content
                        if touched is not None:
                            new[os.path.abspath(path)] = [*touched, content]
                    bar.update(len(batch))
        finally:  # also when interrupted, to keep what is done
            if new:
                try:
                    _write(self._path, json.dumps(self._kept() | new).encode())
                except OSError as error:  # a warning: they are found all the same
                    logger.warning(
                        "features: %s cannot be written (%s); new files are read again next time", self._path, error
                    )
        return found

    def _kept(self) -> dict[str, list[Any]]:
        try:
            return dict(json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError):  # none yet, or damaged: every file is read again
            return {}


def folder_bytes(folder: Path) -> int:
    """Size of the files below a folder, in bytes."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # another process has just renamed it
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def gigabytes(size: float) -> str:
    """Bytes for people, in GB of 10 to the 9th bytes."""
    return f"{size / 1e9:.3g} GB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def _touched(path: str) -> list[int] | None:
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return None
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def _read_fingerprint(path: str) -> tuple[str | None, list[int] | None]:
    """A file's fingerprint and its state; None for the state if the file may still change unnoticed."""
    before = _touched(path)
    try:
        with open(path, "rb") as file:
            found = fingerprint(file)
    except (OSError, ValueError):
        return None, None
    if before is None or before != _touched(path):
        return found, None
    still = time.time_ns() - max(before[1], before[2]) > STILL_SECONDS * 1e9
    return found, before if still else None


@contextmanager
def _writing_into(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SaySeeError(f"{folder}: cannot hold features ({error.strerror or error}); {_FIX}") from None


def _write(path: Path, *parts: bytes | memoryview) -> None:
    with atomic_write(path, concurrent=True) as file:
        for part in parts:
            file.write(part)
