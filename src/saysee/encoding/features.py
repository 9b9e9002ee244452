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

from saysee.encoding.cache import FeatureCache, FeatureStore, Values, chunks
from saysee.encoding.reading import read_ahead
from saysee.encoding.sides import ImageSide, SpeechSide
from saysee.errors import MediaError, SaySeeError
from saysee.files import fingerprint
from saysee.log import progress_bar
from saysee.media.audio import audio_seconds

FeatureSide = SpeechSide | ImageSide
Compute = Callable[[Any, Sequence[Any], Callable[[list[Any]], Any]], list[Any]]

SHARD_BYTES = 256 * 2**20
SHARD_FILES = 256
"""A shard of cached features is written when it holds so many bytes or files: at most so much is lost at a kill."""
_BATCH_VALUES = 64 * 2**20
_BATCH_FILES = 32


class CachedFeatures(Sequence[Values]):
    """The cached features of some files, in the order of the files; read from the disk when they are looked at.

    Attributes:
        side: whose features they are.
        keys: of the files in the store; None for a file that could not be used.
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
    """What is not in the cache: for each file its path, its key (None if it cannot be read) and its number of
    values."""

    files: list[tuple[str, str | None, int]]

    @property
    def bytes(self) -> int:
        """Size of the features that are missing."""
        return 2 * sum(size for _, _, size in self.files)


def find_missing(side: FeatureSide, cache: FeatureCache, paths: Sequence[str], progress: bool = True) -> Missing:
    """The files whose features are not in the cache, one of each content; clips of like length side by side."""
    store = _store(side, cache)
    found = cache.files.of(paths, progress)
    first: dict[str, str] = {}
    for path in paths:
        key = found[path]
        if key is None or key not in store:  # a file that cannot be read: computing says why
            first.setdefault(key or path, path)
    if isinstance(side, ImageSide):
        return Missing([(path, found[path], side.features_size()) for path in first.values()])
    files = []
    with progress_bar("lengths of clips", len(first), enabled=progress) as bar:
        for path in first.values():
            files.append((path, found[path], side.features_size(_seconds(path))))
            bar.advance()
    return Missing(sorted(files, key=lambda file: file[2]))


def cached_features(
    side: FeatureSide,
    cache: FeatureCache,
    paths: Sequence[str],
    compute: Compute,
    workers: int,
    bad: dict[int, MediaError] | None,
    progress: bool,
) -> CachedFeatures:
    """The features of files, of which those that the cache does not have are computed.

    Args:
        side: whose features they are.
        cache: where they are kept.
        paths: of the files.
        compute: runs prepared items through a function of the side, in passes.
        workers: threads that read and decode.
        bad: collects the errors of files that cannot be used by their position; None raises the first.
        progress: show progress bars.
    """
    store, missing = _store(side, cache), find_missing(side, cache, paths, progress)
    refused: dict[str, MediaError] = {}
    if missing.files:
        cache.check_room(missing.bytes)
        refused = _fill(side, store, missing, compute, workers, bad is not None, progress)
    found = cache.files.of(paths, progress=False)
    # A file of the same contents is as bad, and was not read.
    reasons = {found[path]: error for path, error in refused.items() if found[path] is not None}
    keys: list[str | None] = []
    for position, path in enumerate(paths):
        error = refused.get(path) or reasons.get(found[path])
        if error is not None and bad is not None:
            bad[position] = error
        keys.append(None if error is not None else found[path])
    return CachedFeatures(side, store, keys)


def _store(side: FeatureSide, cache: FeatureCache) -> FeatureStore:
    return cache.store("speech" if side.kind == "clip" else "image", side.about_features)


def _fill(
    side: FeatureSide,
    store: FeatureStore,
    missing: Missing,
    compute: Compute,
    workers: int,
    skip: bool,
    progress: bool,
) -> dict[str, MediaError]:
    """Computes missing features into their store, shard by shard; returns the errors of the files that are bad."""
    refused: dict[str, MediaError] = {}
    shard, arrays = -1, dict[str, Values]()

    def read(request: tuple[int, str]) -> tuple[str, Any]:
        try:
            return _read_whole(side, request[1])
        except MediaError as error:
            if not skip:
                raise
            return "", error

    with progress_bar(f"features of {side.kind}s", len(missing.files), enabled=progress) as bar:
        try:
            for requests, results in read_ahead(_requests(store, missing, bar.advance), read, workers):
                if requests[0][0] != shard:
                    store.write(arrays)
                    shard, arrays = requests[0][0], {}
                good = []
                for (_, path), (key, content) in zip(requests, results, strict=True):
                    if isinstance(content, MediaError):
                        refused[path] = content
                    else:
                        good.append((key, content))
                values = compute(side, [content for _, content in good], side.features)
                for (key, _), of_file in zip(good, values, strict=True):
                    arrays[key] = of_file.cpu().contiguous().view(torch.int16).numpy()
                bar.advance(len(requests))
        finally:
            store.write(arrays)  # when it is interrupted too, what is done is kept
    return refused


def _seconds(path: str) -> float:
    try:
        return audio_seconds(path)
    except MediaError:  # reading it says why
        return 0.0


def _read_whole(side: FeatureSide, path: str) -> tuple[str, Any]:
    """The key and the prepared contents of a file, read once, so that both are of the same contents."""
    try:
        content = Path(path).read_bytes()
    except (OSError, ValueError):
        return "", side.prepare(Path(path))  # refuses it in its own words
    return fingerprint(content), side.prepare(_Named(content, path))


class _Named(io.BytesIO):
    """The contents of a file, under the name that messages call it by."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


def _requests(store: FeatureStore, missing: Missing, already: Callable[[int], None]) -> Iterator[list[tuple[int, str]]]:
    """Number of the shard and path of what is not yet there, in batches.

    Processes that want the same at once share the work: they begin at different shards, and skip what others have
    finished meanwhile.
    """
    sizes = [size for _, _, size in missing.files]
    shards = chunks(sizes, SHARD_BYTES // 2, SHARD_FILES)
    first = secrets.randbelow(len(shards))
    for shard in [*range(first, len(shards)), *range(first)]:
        store.refresh()
        files = [missing.files[number] for number in shards[shard]]
        left = [file for file in files if file[1] is None or file[1] not in store]
        already(len(files) - len(left))
        for batch in chunks([size for _, _, size in left], _BATCH_VALUES, _BATCH_FILES):
            yield [(shard, left[number][0]) for number in batch]
