"""What a plan must know of the data: how long the clips are, and what kept features would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from saysee.data.loader import Plan
from saysee.data.manifest import Manifest
from saysee.errors import ConfigError
from saysee.media.audio import SAMPLE_RATE
from saysee.model.retriever import SpeechImageModel
from saysee.settings.recipe import Recipe
from saysee.training.features import why_recomputed

VALUE_BYTES = 2
"""Of a kept feature."""


@dataclass(frozen=True)
class ClipLengths:
    """How long training's clips are, once cropped.

    Attributes:
        mean, longest: in seconds.
        source: where that is from, in words for people.
        uncropped: [clips] lengths of the training split as the manifest has them, in seconds; None where it does not.
        manifest: None where it is not there yet.
    """

    mean: float
    longest: float
    source: str
    uncropped: Sequence[float] | None
    manifest: Manifest | None


@dataclass(frozen=True)
class DiskNeed:
    """What kept features take.

    Attributes:
        hour_of_speech, thousand_pictures: bytes of so much.
        total: bytes of the training and the validation split; None where the manifest is not there, or nothing is kept.
    """

    hour_of_speech: int
    thousand_pictures: int
    total: int | None


def clip_lengths(recipe: Recipe, given: float | None) -> ClipLengths:
    """The lengths that the manifest tells, else the ``given`` one, else the crop; no sound file is opened.

    Args:
        recipe: of the training.
        given: mean length of a clip in seconds, which goes before all else.

    Raises:
        ConfigError: nothing tells a length.
        ManifestError: the manifest is there and cannot be read.
    """
    data = recipe.data
    manifest = Manifest.read(data.manifest) if data.manifest and Path(data.manifest).exists() else None
    uncropped = None if manifest is None else _told_seconds(manifest.select(data.train_split))
    crop = data.crop_seconds
    if uncropped is not None:
        cropped = np.minimum(uncropped, crop or np.inf)
        told = ClipLengths(float(cropped.mean()), float(cropped.max()), "as in the manifest", uncropped, manifest)
    elif crop is not None:
        told = ClipLengths(crop, crop, "data.crop_seconds; shorter clips take less", None, manifest)
    elif given is not None:
        told = ClipLengths(given, given, "", None, manifest)
    else:
        where = "data.manifest is not there" if manifest is None else f"{data.manifest} has no column seconds"
        raise ConfigError(
            f"data.crop_seconds is null and {where}; say how many seconds a clip lasts by --clip-seconds, such as 4.1"
        )
    if given is None:
        return told
    mean = given if crop is None else min(given, crop)
    return ClipLengths(mean, max(told.longest, mean), "--clip-seconds", uncropped, manifest)


def why_not_kept(recipe: Recipe, lengths: ClipLengths) -> str | None:
    """As :func:`saysee.training.features.why_recomputed`; where no lengths are known, some clips are taken to be longer
    than the crop."""
    data = recipe.data
    seconds = [0.0] if lengths.uncropped is None else lengths.uncropped
    order = Plan([], np.array(seconds), data.batch_size, 0, data.bucket_batches, True, data.crop_seconds)
    reason = why_recomputed(recipe, order)
    if reason is None and lengths.uncropped is None and data.crop_seconds is not None:
        return f"data.crop_seconds is {data.crop_seconds:g}, and some clips are taken to be longer"
    return reason


def disk_need(model: SpeechImageModel, recipe: Recipe, lengths: ClipLengths, *, kept: bool) -> DiskNeed:
    """What the features of a recipe's files take on the disk.

    A file that several rows name counts once. Clips whose length the manifest does not tell are taken to have the mean.
    """
    encoder, config = model.speech_encoder, model.config
    frame: int = len(encoder.layers) * config.speech_config.hidden_size * VALUE_BYTES
    picture = VALUE_BYTES * (config.patch_grid**2 * config.vision_config.hidden_size + config.projection_dim)

    def clips(seconds: Sequence[float]) -> int:
        samples = torch.tensor(np.round(np.asarray(seconds) * SAMPLE_RATE), dtype=torch.long)
        return int(encoder.frames(samples).sum()) * frame

    total = None
    if kept and lengths.manifest is not None:
        total = 0
        for split in (recipe.data.train_split, recipe.data.val_split):
            rows = lengths.manifest.select(split)
            told = _told_seconds(rows)
            seconds = [lengths.mean] * len(rows) if told is None else told
            total += clips(list({row.clip: length for row, length in zip(rows, seconds, strict=True)}.values()))
            total += len({row.image for row in rows}) * picture
    return DiskNeed(round(3600 / encoder.frame_seconds) * frame, 1000 * picture, total)


def _told_seconds(rows: Manifest) -> list[float] | None:
    """Length of each clip where the manifest tells all of them."""
    told = rows.column("seconds") if "seconds" in rows.extra_columns else []
    return told if told and all(isinstance(value, int | float) and value > 0 for value in told) else None
