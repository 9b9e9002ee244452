"""Features of frozen encoders: computed for the files that the cache does not have, read from it for all."""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saysee.encoding.cache import FeatureCache, FeatureStore, Values
from saysee.encoding.reading import or_error, read_ahead
from saysee.encoding.sides import ImageSide, SpeechSide
from saysee.errors import MediaError, SaySeeError
from saysee.files import fingerprint
from saysee.log import progress_bar

FeatureSide = SpeechSide | ImageSide
Compute = Callable[[Any, Sequence[Any], Callable[[list[Any]], Any]], list[Any]]

SHARD_BYTES = 256 * 2**20
SHARD_FILES = 256
"""A shard of cached features is written when it holds so many bytes or files: at most so much is lost at a kill."""
BATCH_VALUES = 64 * 2**20
"""Values of features that are in memory together."""
_BATCH_FILES = 32


class CachedFeatures(Sequence[Values]):
    """The cached features of some files, in the order of the files; read from the disk when they are used.

    Of a file that could not be used the key in the store is None.
    """

    def __init__(self, side: FeatureSide, store: FeatureStore, keys: Sequence[str | None]) -> None:
        self.side, self.keys = side, keys
        self._store = store

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, position: Any) -> Any:
        key = self.keys[position]
        if key is None:
            raise SaySeeError(f"file {position} could not be used, so it has no features")
        return self._store.read(key)

    def size(self, position: int) -> int:
        """Number of values of a file."""
        return self._store.size(self.keys[position] or "")

    def gather(self, positions: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Some files as one batch; see :meth:`SpeechSide.gather` and :meth:`ImageSide.gather`."""
        return self.side.gather([self[position] for position in positions])


@dataclass(frozen=True)
class Missing:
    """Files whose features are not in the cache: path, key (None if it cannot be read) and number of values of each."""

    files: list[tuple[str, str | None, int]]

    @property
    def bytes(self) -> int:
        """Size of the features that are missing."""
        return 2 * sum(size for _, _, size in self.files)


class CachedSide:
    """A side of a model with a cache of its features.

    ``compute`` runs prepared items through a function of it, in passes.
    """

    def __init__(self, side: FeatureSide, cache: FeatureCache, compute: Compute, workers: int) -> None:
        self._side, self._cache, self._compute, self._workers = side, cache, compute, workers
        self._store = cache.store("speech" if side.kind == "clip" else "image", side.about_features)

    def missing(self, paths: Sequence[str], progress: bool = True) -> Missing:
        """The files whose features are not in the cache, one of each content, sorted by size."""
        found = self._cache.files.of(paths, progress)
        first: dict[str, str] = {}
        for path in paths:
            key = found[path]
            if key is None or key not in self._store:  # of a file that cannot be read, computing raises the error
                first.setdefault(key or path, path)
        files = []
        with progress_bar("sizes of features", len(first), enabled=progress) as bar:
            for path in first.values():
                key = found[path] or path
                if key not in self._side.sizes:
                    self._side.sizes[key] = self._side.features_size(path)
                files.append((path, found[path], self._side.sizes[key]))
                bar.update()
        return Missing(sorted(files, key=lambda file: file[2]))

    def features(self, paths: Sequence[str], bad: dict[int, MediaError] | None, progress: bool) -> CachedFeatures:
        """The features of files; those that the cache does not have are computed.

        ``bad`` collects the errors of files that cannot be used by their position; None raises the first.
        """
        missing = self.missing(paths, progress)
        errors: dict[str, MediaError] = {}
        if missing.files:
            self._cache.check_room(missing.bytes)
            errors = self._fill(missing, bad is not None, progress)
        found = self._cache.files.of(paths, progress=False)
        # A file with the contents of a bad one is bad too, and was not read.
        of_contents = {found[path]: error for path, error in errors.items() if found[path] is not None}
        keys: list[str | None] = []
        for position, path in enumerate(paths):
            error = errors.get(path) or of_contents.get(found[path])
            if error is None and found[path] is None:  # since it was read
                error = MediaError("unreadable", f"{path}: can no longer be read; check its drive")
                if bad is None:
                    raise error
            if error is not None and bad is not None:
                bad[position] = error
            keys.append(None if error is not None else found[path])
        return CachedFeatures(self._side, self._store, keys)

    def _fill(self, missing: Missing, skip: bool, progress: bool) -> dict[str, MediaError]:
        """Computes missing features into the store, shard by shard; returns the errors of bad files by path."""
        errors: dict[str, MediaError] = {}
        shard, arrays = -1, dict[str, Values]()

        with progress_bar(f"features of {self._side.kind}s", len(missing.files), enabled=progress) as bar:
            try:
                batches = self._requests(missing, bar.update)
                for requests, results in read_ahead(batches, or_error(self._read), self._workers):
                    if requests[0][0] != shard:
                        self._store.write(arrays)
                        shard, arrays = requests[0][0], {}
                    good = []
                    for (_, path), result in zip(requests, results, strict=True):
                        if not isinstance(result, MediaError):
                            good.append(result)
                        elif skip:
                            errors[path] = result
                        else:
                            raise result
                    values = self._compute(self._side, [prepared for _, prepared in good], self._side.features)
                    for (key, _), of_file in zip(good, values, strict=True):
                        arrays[key] = of_file.cpu().contiguous().view(torch.int16).numpy()
                    bar.update(len(requests))
            finally:
                self._store.write(arrays)  # also when interrupted, to keep what is done
        return errors

    def _read(self, request: tuple[int, str]) -> tuple[str, Any]:
        """The key and the prepared contents of a file, read once, so that both are of the same contents."""
        path = request[1]
        try:
            content = Path(path).read_bytes()
        except (OSError, ValueError):
            return "", self._side.prepare(Path(path))  # raises the error
        named = io.BytesIO(content)
        named.name = path  # for error messages
        return fingerprint(content), self._side.prepare(named)

    def _requests(self, missing: Missing, skipped: Callable[[int], None]) -> Iterator[list[tuple[int, str]]]:
        """Number of the shard and path of each file that is still missing, in batches.

        Processes that want the same at once share the work: they begin at different shards, and skip what others have
        finished meanwhile.
        """
        sizes = [size for _, _, size in missing.files]
        shards = _runs(sizes, SHARD_BYTES // 2, SHARD_FILES)
        first = secrets.randbelow(len(shards))
        for shard in [*range(first, len(shards)), *range(first)]:
            self._store.refresh()
            files = [missing.files[number] for number in shards[shard]]
            left = [file for file in files if file[1] is None or file[1] not in self._store]
            skipped(len(files) - len(left))
            for batch in _runs([size for _, _, size in left], BATCH_VALUES, _BATCH_FILES):
                yield [(shard, left[number][0]) for number in batch]


def _runs(sizes: Sequence[int], most: int, count: int) -> list[list[int]]:
    """Numbers 0, 1, … in runs whose sizes sum up to at most ``most``, of at most ``count`` numbers; none is empty."""
    found: list[list[int]] = []
    room = 0
    for number, size in enumerate(sizes):
        if not found or size > room or len(found[-1]) == count:
            found.append([])
            room = most
        found[-1].append(number)
        room -= size
    return found
