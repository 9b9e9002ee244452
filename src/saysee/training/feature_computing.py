"""Running files through a frozen encoder into a store of features: shard by shard, decoded in other processes."""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from saysee.data.loader import start_worker
from saysee.encoding.cache import FeatureStore, Values, chunks
from saysee.errors import MediaError
from saysee.files import fingerprint
from saysee.log import progress_bar
from saysee.media.audio import load_audio
from saysee.media.images import load_image
from saysee.model.processor import SpeechImageProcessor

SHARD_BYTES = 256 * 2**20
SHARD_FILES = 256
"""A shard is written when it holds so many bytes or files: at most so much is lost at a kill."""
BATCH_FILES = 32

Prepared = NDArray[np.float32]
"""What an encoder takes of one file."""


@dataclass(frozen=True)
class Wanted:
    """A file whose features are to be computed: its path, its key (None if it cannot be read), and how many values its
    features will have."""

    path: str
    key: str | None
    values: int


@dataclass(frozen=True)
class Side:
    """One encoder and where its features go.

    Attributes:
        what: what its files are called.
        store: where its features lie.
        prepare: a file to what the encoder takes; picklable.
        encode: a batch of these to the features of each, flat.
        batch_values: values of a batch.
    """

    what: str
    store: FeatureStore
    prepare: Callable[[Any], Prepared]
    encode: Callable[[list[Prepared]], list[Tensor]]
    batch_values: int


def compute_side(
    side: Side, wanted: Sequence[Wanted], skip: bool, workers: int, progress: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """Runs files through an encoder into its store, shard by shard.

    Returns:
        Path and key of each file that was computed; path and reason of each that was left out.
    """
    keys: dict[str, str] = {}
    bad: dict[str, str] = {}
    if not wanted:
        return keys, bad
    with progress_bar(f"features of {side.what}", len(wanted), enabled=progress) as bar:
        loader: DataLoader[_Prepared] = DataLoader(
            _Files(side.prepare),
            batch_size=None,
            sampler=_Requests(side, wanted, bar.advance),
            num_workers=workers,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # its own, so that this does not move torch's global one
        )
        shard, arrays = -1, dict[str, Values]()
        try:
            for prepared in loader:
                if prepared.shard != shard:
                    side.store.write(arrays)
                    shard, arrays = prepared.shard, {}
                good = []
                for path, key, content in prepared.files:
                    if isinstance(content, np.ndarray):
                        good.append((key, content))
                        keys[path] = key
                    elif skip:
                        bad[path] = content[1]
                    else:
                        raise MediaError(*content)
                if good:
                    features = side.encode([content for _, content in good])
                    for (key, _), values in zip(good, features, strict=True):
                        arrays[key] = values.cpu().contiguous().view(torch.int16).numpy()
                bar.advance(len(prepared.files))
        finally:
            side.store.write(arrays)  # when it is broken off too, what is done stays
    return keys, bad


def prepare_clip(processor: SpeechImageProcessor, source: Any) -> Prepared:
    """A sound file to samples [T] as HuBERT takes them."""
    return processor.prepare_speech(load_audio(source))


def prepare_image(processor: SpeechImageProcessor, source: Any) -> Prepared:
    """A picture file to pixels [3, H, W] as CLIP takes them."""
    pixels: Prepared = processor.prepare_image(load_image(source)).numpy()
    return pixels


# --- in the other processes ---


@dataclass
class _Prepared:
    """What a worker makes of some files of a shard: for each its path, its key, and what it holds or why it was
    refused."""

    shard: int
    files: list[tuple[str, str, Prepared | tuple[str, str]]]


@dataclass
class _Files(Dataset[_Prepared]):
    """Reads and prepares files; a copy of it lives in each worker."""

    prepare: Callable[[Any], Prepared]

    def __getitem__(self, request: tuple[int, list[str]]) -> _Prepared:
        shard, paths = request
        return _Prepared(shard, [(path, *self._read(path)) for path in paths])

    def _read(self, path: str) -> tuple[str, Prepared | tuple[str, str]]:
        try:
            try:
                # Read once, so that fingerprint and features are of the same contents.
                content = Path(path).read_bytes()
            except (OSError, ValueError):
                return "", self.prepare(Path(path))  # refuses it in its own words
            return fingerprint(content), self.prepare(_Named(content, path))
        except MediaError as error:
            return "", (error.code, str(error))


class _Named(io.BytesIO):
    """The contents of a file, under the name that messages call it by."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


class _Requests:
    """The sampler: what is not yet there of each shard to make, in batches."""

    def __init__(self, side: Side, wanted: Sequence[Wanted], already: Callable[[int], None]) -> None:
        self._side, self._wanted, self._already = side, wanted, already

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        shards = chunks([file.values for file in self._wanted], SHARD_BYTES // 2, SHARD_FILES)
        # Two runs that start at once begin at different shards, so that each finds some of the other's done.
        first = secrets.randbelow(len(shards))
        for shard in [*range(first, len(shards)), *range(first)]:
            self._side.store.refresh()
            files = [self._wanted[number] for number in shards[shard]]
            left = [file for file in files if file.key is None or file.key not in self._side.store]
            self._already(len(files) - len(left))
            for batch in chunks([file.values for file in left], self._side.batch_values, BATCH_FILES):
                yield shard, [left[number].path for number in batch]
