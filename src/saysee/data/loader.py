"""Batches of like length for training; a loader can be interrupted and resumed at any batch.

The contents of an epoch follow from the seed and its number alone: shuffle the rows, sort by length within chunks of
several batches, cut into batches, shuffle these. So a position is two numbers, the epoch and the batch within it:
resuming needs no state of any worker or random generator, and the number of workers may change.

Shapes: B batch, T samples, H height, W width.
"""

from __future__ import annotations

import signal
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from saysee.data.manifest import Manifest
from saysee.errors import CheckpointError, ConfigError, ManifestError, MediaError
from saysee.log import progress_bar
from saysee.media.audio import SAMPLE_RATE, audio_seconds, load_audio
from saysee.media.augmentation import varied
from saysee.media.images import load_image
from saysee.media.padding import pad

PrepareSpeech = Callable[[NDArray[np.float32]], NDArray[np.float32]]
PrepareImage = Callable[[Image.Image], Tensor]
BatchT = TypeVar("BatchT")

BUCKET_BATCHES = 50
"""Batches whose rows are sorted by length together. Of 30,000 captions with log-normal lengths (median 4.5 s, sigma
0.45, within 1 to 15 s) in batches of 64, sorting 1 leaves 61 % of the samples padding, 10 leaves 14 %, 50 leaves 3 %,
100 leaves 1 %; the longer the chunk, the more alike are the lengths that meet in a batch at every epoch."""


@dataclass(slots=True)
class Batch:
    """Some clips with their images."""

    waveforms: Tensor  # [B, T] float32, 16 kHz, zero where a clip has ended
    speech_mask: Tensor  # [B, T] bool, True on the samples of the clip
    pixels: Tensor  # [B, 3, H, W] float32
    image_ids: Tensor  # [B] int64, one number for each distinct image of the manifest; equal for captions of one image
    rows: list[int]  # [B] indices into ``manifest.rows``

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on ``device``."""
        waveforms, speech_mask = self.waveforms.to(device), self.speech_mask.to(device)
        return Batch(waveforms, speech_mask, self.pixels.to(device), self.image_ids.to(device), self.rows)

    def part(self, rows: slice) -> Batch:
        """Some of its pairs, padded as they are."""
        return Batch(*(getattr(self, name)[rows] for name in self.__slots__))

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(slots=True)
class Loaded(Generic[BatchT]):
    """The result of loading a batch."""

    batch: BatchT | None  # None when none of its files could be read
    bad: dict[str, str]  # path and reason of each file that was skipped
    error: MediaError | None = None  # to raise in the main process; raised in a worker it would arrive as a traceback


@dataclass(frozen=True)
class Plan:
    """Which rows make which batch of which epoch."""

    clips: list[str]  # path of each row's clip
    seconds: NDArray[np.float64]  # [rows] length of each clip
    checksum: int  # of the rows' files and image ids, from :func:`files_checksum`
    # batch_size, seed, bucket_batches, drop_last, crop_seconds: as for :class:`SpeechImageLoader`
    batch_size: int
    seed: int
    bucket_batches: int
    drop_last: bool
    crop_seconds: float | None

    @property
    def batches(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.seconds), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def epoch(self, number: int) -> list[list[int]]:
        """The rows of each batch of an epoch."""
        random = np.random.default_rng([self.seed, number])
        order = random.permutation(len(self.seconds))
        if self.drop_last:
            order = order[: self.batches * self.batch_size]
        lengths = self.seconds if self.crop_seconds is None else np.minimum(self.seconds, self.crop_seconds)
        chunk = self.bucket_batches * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(order), chunk):
            rows = order[start : start + chunk]
            rows = rows[np.argsort(lengths[rows], kind="stable")]
            batches += [rows[at : at + self.batch_size].tolist() for at in range(0, len(rows), self.batch_size)]
        return [batches[at] for at in random.permutation(len(batches))]

    def to_dict(self) -> dict[str, Any]:
        """Everything that the batches depend on, as plain values."""
        values = {name: value for name, value in vars(self).items() if name not in ("clips", "seconds", "checksum")}
        checksum = zlib.crc32(self.seconds.tobytes(), self.checksum)
        return {"rows": len(self.seconds), **values, "checksum of clips, images and image ids": checksum}


class ResumableLoader(Generic[BatchT]):
    """Iterates over the batches of one epoch, the next time over those of the next; one iteration at a time.

    An epoch that was interrupted continues where it was. Two loaders of the same rows and settings give the same rows
    in the same order, whatever a subclass makes of them, and each can resume from the position of the other.
    """

    def __init__(self, plan: Plan) -> None:
        self.epoch = 0  # the current or next one
        self._next_batch = 0
        self._bad: dict[str, str] = {}
        self.plan = plan

    def _load(self, epoch: int, batches: list[list[int]]) -> Iterator[Loaded[BatchT]]:
        """Loads the batches that are left of an epoch, given their rows."""
        raise NotImplementedError

    @property
    def bad_files(self) -> list[tuple[str, str]]:
        """The files that were skipped so far, each once: path and reason."""
        return list(self._bad.items())

    def set_epoch(self, epoch: int) -> None:
        """Moves to the first batch of an epoch."""
        self.epoch, self._next_batch = epoch, 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.plan.batches

    def __iter__(self) -> Iterator[BatchT]:
        for loaded in self._load(self.epoch, self.plan.epoch(self.epoch)[self._next_batch :]):
            if loaded.error is not None:
                raise loaded.error
            self._bad.update(loaded.bad)
            self._next_batch += 1
            if loaded.batch is not None:
                yield loaded.batch
        self.set_epoch(self.epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was yielded, as plain values."""
        ended = self._next_batch == len(self)
        return {
            "epoch": self.epoch + ended,
            "next_batch": 0 if ended else self._next_batch,
            "bad_files": self.bad_files,
            "order": self.plan.to_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moves to a position of :meth:`state_dict`; the number of workers and of processes may differ.

        Raises CheckpointError if it is of a loader of other batches (other files, image ids, seed, batch size, …).
        """
        for name, current in self.plan.to_dict().items():
            saved = state["order"].get(name)
            if saved != current:
                what = f"the saved position is of a loader with {name} {saved}, not {current}"
                raise CheckpointError(f"{what}; set it back")
        self.epoch, self._next_batch = state["epoch"], state["next_batch"]
        self._bad = dict(state["bad_files"])


class SpeechImageLoader(ResumableLoader[Batch]):
    """Batches read from the files of a manifest.

    Args:
        manifest: the rows, of one split. Lengths are read from its column ``seconds``, else from each file's header.
        prepare_speech, prepare_image: waveform [T] to [T], RGB image to pixels [3, H, W], all of one size; picklable.
        batch_size: clips per batch, over all processes together.
        seed: of the order and the crops; not negative.
        workers: processes that decode; 0 decodes in this one.
        crop_seconds: of longer clips, take a random part of this length. For training only.
        augment: change each clip by :func:`saysee.media.augmentation.varied`. For training only.
        bucket_batches: batches whose rows are sorted by length together.
        on_bad_file: "stop" raises the file's MediaError; "skip" skips the row and lists the file in ``bad_files``.
        drop_last: drop the last rows of an epoch's order that do not fill a batch.
        cache_images: bytes of prepared pixels that each worker may keep, for models that are faster than decoding.
        rank, world_size: of the processes that train together; each loads its share of every batch.

    Raises ConfigError if settings do not fit each other or the rows; ManifestError if a length in the column
    ``seconds`` is not a positive number; MediaError if a length had to be read from a bad file, and ``on_bad_file`` is
    "stop".

    Attributes:
        pixels: reads the image of a row.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        prepare_speech: PrepareSpeech,
        prepare_image: PrepareImage,
        batch_size: int,
        seed: int,
        workers: int = 0,
        crop_seconds: float | None = None,
        augment: bool = False,
        bucket_batches: int = BUCKET_BATCHES,
        on_bad_file: Literal["stop", "skip"] = "stop",
        drop_last: bool = True,
        cache_images: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if drop_last and len(manifest) < batch_size:
            what = f"batch_size is {batch_size}, but there are {len(manifest)} rows"
            raise ConfigError(f"{what}; lower it or set drop_last to false")
        if world_size > 1 and (batch_size % world_size or on_bad_file == "skip" or not drop_last):
            needed = "a batch_size they divide, on_bad_file='stop' and drop_last=True"
            raise ConfigError(f"{world_size} processes need equal shares of every batch: {needed}")
        numbers: dict[str, int] = {}
        clips, images = ([str(path(row)) for row in manifest] for path in (manifest.clip_path, manifest.image_path))
        ids = [numbers.setdefault(row.image_id, len(numbers)) for row in manifest]
        skip, crop = on_bad_file == "skip", None if crop_seconds is None else round(crop_seconds * SAMPLE_RATE)
        self.pixels = Pixels(images, ids, prepare_image, cache_images)
        reader = _Reader(clips, self.pixels, prepare_speech, seed, crop, augment, skip)
        order = clip_seconds(manifest, skip=skip), files_checksum(manifest)
        super().__init__(Plan(clips, *order, batch_size, seed, bucket_batches, drop_last, crop_seconds))
        self._share = slice(rank, None, world_size)
        self._requests: list[_Request] = []  # the sampler: what is left of an epoch
        self._batches: DataLoader[Loaded[Batch]] = DataLoader(
            reader,
            batch_size=None,
            sampler=self._requests,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # its own, so that iterating does not move torch's global one
        )

    def _load(self, epoch: int, batches: list[list[int]]) -> Iterator[Loaded[Batch]]:
        self._requests[:] = [(epoch, rows[self._share]) for rows in batches]
        return iter(self._batches)


@dataclass
class Pixels:
    """The prepared images of rows: each is read from its file, or was kept."""

    paths: list[str]  # of each row
    image_ids: list[int]  # one number for each distinct image
    prepare: PrepareImage
    room: int  # bytes that may still be kept
    kept: dict[int, Tensor] = field(default_factory=dict)

    def read(self, row: int) -> Tensor:
        """[3, H, W] of a row; MediaError if its file cannot be used."""
        key = self.image_ids[row]
        if key in self.kept:
            return self.kept[key]
        pixels = self.prepare(load_image(Path(self.paths[row])))
        # Kept up to the limit and never dropped: an epoch sees all images equally often.
        if pixels.nbytes <= self.room:
            self.room -= pixels.nbytes
            self.kept[key] = pixels
        return pixels


_Request = tuple[int, list[int]]  # an epoch, and this process's rows of one of its batches


@dataclass
class _Reader(Dataset[Loaded[Batch]]):
    """Reads the files of a batch; each worker has a copy of it."""

    clips: list[str]
    pixels: Pixels
    prepare_speech: PrepareSpeech
    seed: int
    crop: int | None
    augment: bool
    skip: bool

    def __getitem__(self, request: _Request) -> Loaded[Batch]:
        epoch, rows = request
        good: dict[int, tuple[NDArray[np.float32], Tensor]] = {}
        bad: dict[str, str] = {}
        for row in rows:
            path = self.clips[row]
            try:
                waveform = self._waveform(row, epoch)
                path = self.pixels.paths[row]
                good[row] = waveform, self.pixels.read(row)
            except MediaError as error:
                if not self.skip:
                    return Loaded(None, {}, error)
                bad[path] = str(error)
        if not good:
            return Loaded(None, bad)
        waveforms, pixels = zip(*good.values(), strict=True)
        padded, mask = pad(waveforms)
        ids = torch.tensor([self.pixels.image_ids[row] for row in good])
        return Loaded(Batch(padded, mask, torch.stack(pixels), ids, list(good)), bad)

    def _waveform(self, row: int, epoch: int) -> NDArray[np.float32]:
        waveform = load_audio(Path(self.clips[row]))
        if self.augment:
            waveform = varied(waveform, f"{self.seed} {epoch} {row}")
        if self.crop is not None and waveform.size > self.crop:
            start = np.random.default_rng([self.seed, epoch, row]).integers(waveform.size - self.crop + 1)
            waveform = waveform[start : start + self.crop]
        return self.prepare_speech(waveform)


def start_worker(_: int) -> None:
    """Prepares a process that decodes: one thread, and signals are left to the main process."""
    torch.set_num_threads(1)  # the processes are the parallelism
    # The main process answers Ctrl-C and a group's SIGTERM, and ends its workers when it is done.
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)


def files_checksum(manifest: Manifest) -> int:
    """Of the paths of all clips, of the paths and sizes of their images, and of the image ids, in order."""
    sizes: dict[Path, int] = {}
    checksum = 0
    for row in manifest:
        image = manifest.image_path(row)
        if image not in sizes:
            sizes[image] = image.stat().st_size if image.is_file() else -1
        values = (manifest.clip_path(row), image, row.image_id, sizes[image])
        checksum = zlib.crc32("\0".join(map(str, values)).encode("utf-8", "surrogateescape"), checksum)
    return checksum


def clip_seconds(manifest: Manifest, *, skip: bool) -> NDArray[np.float64]:
    """[rows] length of each clip in seconds; a bad file has 0 with ``skip``, else it raises its MediaError."""
    known = manifest.column("seconds") if "seconds" in manifest.extra_columns else [None] * len(manifest)
    lengths = []
    with progress_bar("clip lengths", len(manifest)) as bar:
        for row, seconds in zip(manifest, known, strict=True):
            if seconds is None:
                try:
                    seconds = audio_seconds(manifest.clip_path(row))
                except MediaError:
                    if not skip:
                        raise
                    seconds = 0.0
            elif isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or seconds <= 0:
                raise ManifestError(f"{row.clip}: seconds is {seconds!r:.40}; give a positive number or null")
            lengths.append(seconds)
            bar.update()
    return np.array(lengths, np.float64)
