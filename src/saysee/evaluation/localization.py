"""Localization: which part of the image the model attends to while a word is spoken.

An attention map is [F, P]: for each frame of speech the attention on each image patch; a row sums to 1. Patches are
counted row by row from the top left, without the class token, on a square grid.

Boxes are (left, top, right, bottom) as shares of the sides of the image *as the model sees it*. Drawn scenes are square
and reach the model whole. An image that is cropped to its center first needs boxes that are cropped likewise.

Shapes: F frames, P patches, W words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saysee.data.manifest import Row
from saysee.evaluation.recall import Vectors, as_array
from saysee.evaluation.statistics import Floats

_ROW_SUM_TOLERANCE = 2e-2  # above the rounding of a softmax in bfloat16 over 50 to 256 patches


@dataclass(frozen=True)
class ObjectAttention:
    """Attention on the objects that words name.

    Attributes:
        mass: share of the attention inside the boxes, 0 to 1; mean over words of the mean over each word's frames.
        lift: the same relative to uniform attention, mean over words: 1 is uniform, 4 is four times as much.
        words: number of words.
    """

    mass: float
    lift: float
    words: int


def attention_on_object(
    attention: Vectors,
    words: Sequence[Mapping[str, Any]],
    objects: Sequence[Mapping[str, Any]],
    frame_seconds: float,
) -> ObjectAttention | None:
    """Compares a map with the boxes of the objects that each word names.

    Args:
        attention: [F, P] map of one clip over its image.
        words: as in ``word_maps``, each with ``objects`` too, the indices of the objects that it names.
        objects: of the image, each with ``box``.
        frame_seconds: as in ``word_maps``.

    Returns:
        None if no word names an object. The boxes of a word that names several are joined. A word whose boxes have no
        area inside the image is skipped.

    Raises:
        ValueError: the map is not [F, P] with rows that sum to 1 and a square number of patches; a box or a time is
            invalid; a word names an object that does not exist.
    """
    weights = _checked_map(attention)
    grid = math.isqrt(weights.shape[1])
    if grid * grid != weights.shape[1]:
        raise ValueError(f"{weights.shape[1]} patches are no square grid: drop the class token")
    masses, lifts = [], []
    for word in words:
        named = word.get("objects") or ()
        for index in named:
            if not 0 <= index < len(objects):
                raise ValueError(f"a word names object {index}, but the image has {len(objects)}")
        share = patch_grid([objects[index]["box"] for index in named], grid)
        if share.sum() > 0:
            masses.append(float(weights[_frames_of(word, len(weights), frame_seconds)].mean(axis=0) @ share))
            lifts.append(masses[-1] / float(share.mean()))
    return ObjectAttention(float(np.mean(masses)), float(np.mean(lifts)), len(masses)) if masses else None


def attention_on_rows(maps: Sequence[Vectors], rows: Sequence[Row], frame_seconds: float) -> ObjectAttention | None:
    """``attention_on_object`` for many clips: the means over all their words; None if no word names an object.

    Args:
        maps: [F, P] map of each clip, without padding frames.
        rows: of a manifest with the columns ``words`` and ``objects`` of the scenes corpus.
        frame_seconds: as in ``word_maps``.
    """
    known = []
    for attention, row in zip(maps, rows, strict=True):
        if found := attention_on_object(attention, row.extra["words"], row.extra["objects"], frame_seconds):
            known.append(found)
    if not known:
        return None
    words = sum(each.words for each in known)
    mass, lift = (sum(getattr(each, name) * each.words for each in known) / words for name in ("mass", "lift"))
    return ObjectAttention(mass, lift, words)


def word_maps(attention: Vectors, words: Sequence[Mapping[str, Any]], frame_seconds: float) -> Floats:
    """[W, P] mean attention during each word; each row sums to 1.

    Args:
        attention: [F, P] map.
        words: each with ``start`` and ``end`` in seconds. The frames of a word are those whose middle is in it; if
            there is none, the frame nearest to the middle of the word.
        frame_seconds: duration of a frame, ``SpeechEncoder.frame_seconds``.

    Raises:
        ValueError: the map is not [F, P] with rows that sum to 1, or a word ends before it starts.
    """
    weights = _checked_map(attention)
    maps = [weights[_frames_of(word, len(weights), frame_seconds)].mean(axis=0) for word in words]
    return np.array(maps).reshape(len(words), weights.shape[1])


def patch_grid(boxes: Sequence[Sequence[float]], grid: int) -> Floats:
    """[grid * grid] share of the area of each patch that is in at least one box, from 0 to 1.

    Args:
        boxes: (left, top, right, bottom) as shares of the sides of the image; clipped to the image.
        grid: patches a side.

    Raises:
        ValueError: ``grid`` is below 1, or a box is not four finite numbers with left <= right and top <= bottom.
    """
    if grid < 1:
        raise ValueError(f"grid is {grid}; it must be at least 1")
    corners = np.asarray(boxes, dtype=np.float64) if len(boxes) else np.zeros((0, 4))
    if corners.shape != (len(boxes), 4) or not np.isfinite(corners).all():
        raise ValueError(f"a box is four finite numbers (left, top, right, bottom), not {list(boxes)}")
    if (corners[:, :2] > corners[:, 2:]).any():
        raise ValueError(f"a box has left <= right and top <= bottom, not {list(boxes)}")
    corners = corners.clip(0, 1) * grid
    lines = np.arange(grid + 1, dtype=np.float64)
    # Cut the image along the edges of all patches and boxes: each cell is in one patch, and either in a box or not.
    x_edges = np.unique(np.concatenate([lines, corners[:, 0], corners[:, 2]]))
    y_edges = np.unique(np.concatenate([lines, corners[:, 1], corners[:, 3]]))
    x_middle, y_middle = (x_edges[1:] + x_edges[:-1]) / 2, (y_edges[1:] + y_edges[:-1]) / 2
    covered = np.zeros((len(y_middle), len(x_middle)), dtype=np.bool_)
    for left, top, right, bottom in corners:
        covered |= np.outer((y_middle > top) & (y_middle < bottom), (x_middle > left) & (x_middle < right))
    areas = np.outer(np.diff(y_edges), np.diff(x_edges)) * covered
    patches = np.zeros((grid, grid))
    np.add.at(patches, (y_middle.astype(int)[:, None], x_middle.astype(int)[None, :]), areas)
    return patches.ravel()


def _frames_of(word: Mapping[str, Any], n_frames: int, frame_seconds: float) -> slice:
    """The frames whose middle is in [start, end), or the one nearest to the middle of the word."""
    start, end = float(word["start"]), float(word["end"])
    if not (math.isfinite(start) and math.isfinite(end) and start <= end):
        raise ValueError(f"a word starts at {start} s and ends at {end} s: it must end after its start")
    # Rounded to a millionth of a frame, so that 0.03 / 0.02 counts as the middle that it is.
    first, stop = (math.ceil(round(time / frame_seconds - 0.5, 6)) for time in (start, end))
    first, stop = max(first, 0), min(stop, n_frames)
    if first >= stop:
        first = min(max(math.floor((start + end) / 2 / frame_seconds), 0), n_frames - 1)
        stop = first + 1
    return slice(first, stop)


def _checked_map(attention: Vectors) -> Floats:
    weights = as_array(attention).astype(np.float64)
    if weights.ndim != 2 or 0 in weights.shape:
        raise ValueError(f"attention has shape {weights.shape}; give [F, P] with at least one frame and one patch")
    if not (np.abs(weights.sum(axis=1) - 1) <= _ROW_SUM_TOLERANCE).all():
        raise ValueError("each row of attention must sum to 1 over the patches, without the class token")
    return weights
