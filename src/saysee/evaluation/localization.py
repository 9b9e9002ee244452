"""Where the model looks while a word is spoken, and how much of that falls on the object the word names.

A map is [F, P]: for each speech frame the share of attention that each image patch gets; a row sums to 1. Patches are
counted row by row from the top left corner, without the class token, on a square grid.

Boxes are (left, top, right, bottom) as shares of the sides of the picture *as the model sees it*. The drawn scenes are
square and reach the model whole, so their boxes are used as they are. A picture that is not square may be cropped to
its centre first: then its boxes have to be cropped likewise before they come here.

Shapes: F speech frames, P patches, D width, W words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from saysee.data.manifest import Row
from saysee.evaluation.recall import Floats, Vectors, as_array

Box: TypeAlias = Sequence[float]

# Rows of attention come out of softmax, at times in bfloat16: over 50 to 256 patches its rounding stays below this.
_ROW_SUM_TOLERANCE = 2e-2


@dataclass(frozen=True)
class ObjectAttention:
    """How much attention falls on the objects spoken of.

    Attributes:
        mass: share of the attention inside the boxes, 0 to 1; mean over words of the mean over each word's frames.
        lift: the same relative to what even attention over all patches would put there, mean over words: 1 is no better
            than even, 4 is four times as much.
        words: number of words counted.
    """

    mass: float
    lift: float
    words: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def attention_on_object(
    attention: Vectors,
    words: Sequence[Mapping[str, Any]],
    objects: Sequence[Mapping[str, Any]],
    frame_seconds: float,
) -> ObjectAttention | None:
    """Hold a map against the truth of a scene: does attention fall on the object while its word is spoken?

    Args:
        attention: [F, P] map of one clip over its picture.
        words: spoken words, each with ``start`` and ``end`` in seconds and ``objects``, the indices of the objects that
            it names. Which frames are a word's: see ``word_maps``.
        objects: the picture's objects, each with ``box``.
        frame_seconds: from one frame to the next, as ``SpeechEncoder.frame_seconds`` has it.

    Returns:
        The measure over the words that name an object, or None when no word does. A word that names several objects
        counts their boxes together. A word whose boxes have no area inside the picture is left out.

    Raises:
        ValueError: the map is not [F, P] with rows that sum to 1 and a square number of patches; a box or a time is not
            valid; a word names an object that is not there.
    """
    weights = _checked_map(attention)
    grid = _grid_of(weights.shape[1])
    masses, lifts = [], []
    for word in words:
        if not word.get("objects"):
            continue
        share = patch_grid([_object(objects, index)["box"] for index in word["objects"]], grid)
        if share.sum() == 0:
            continue
        mass = float(weights[_frames_of(word, len(weights), frame_seconds)].mean(axis=0) @ share)
        masses.append(mass)
        lifts.append(mass / float(share.mean()))
    if not masses:
        return None
    return ObjectAttention(mass=float(np.mean(masses)), lift=float(np.mean(lifts)), words=len(masses))


def attention_on_rows(maps: Sequence[Vectors], rows: Sequence[Row], frame_seconds: float) -> ObjectAttention | None:
    """``attention_on_object`` over many clips: the means over all their words.

    Args:
        maps: the clips' maps, [F, P] each, without the frames that only pad a batch.
        rows: their rows of a manifest, with the columns ``words`` and ``objects`` that the scenes corpus has.
        frame_seconds: from one frame to the next, as ``SpeechEncoder.frame_seconds`` has it.

    Returns:
        The measure, or None when no word names an object.
    """
    found = [
        one
        for one in (
            attention_on_object(of_clip, row.extra["words"], row.extra["objects"], frame_seconds)
            for of_clip, row in zip(maps, rows, strict=True)
        )
        if one is not None
    ]
    if not found:
        return None
    words = sum(one.words for one in found)
    return ObjectAttention(
        mass=sum(one.mass * one.words for one in found) / words,
        lift=sum(one.lift * one.words for one in found) / words,
        words=words,
    )


def word_maps(attention: Vectors, words: Sequence[Mapping[str, Any]], frame_seconds: float) -> Floats:
    """Mean attention while each word is spoken.

    Args:
        attention: [F, P] map.
        words: each with ``start`` and ``end`` in seconds. A word takes the frames whose middle lies in it; one too
            short for that, or past the last frame, takes the frame nearest to its own middle.
        frame_seconds: from one frame to the next, as ``SpeechEncoder.frame_seconds`` has it.

    Returns:
        [W, P]; each row sums to 1.

    Raises:
        ValueError: the map is not [F, P] with rows that sum to 1, or a word ends before it starts.
    """
    weights = _checked_map(attention)
    maps = [weights[_frames_of(word, len(weights), frame_seconds)].mean(axis=0) for word in words]
    return np.array(maps).reshape(len(words), weights.shape[1])


def patch_grid(boxes: Sequence[Box], grid: int) -> Floats:
    """Share of each patch's area that lies in at least one box.

    Args:
        boxes: (left, top, right, bottom) as shares of the picture's sides; what lies outside 0 to 1 is cut off.
        grid: patches a side.

    Returns:
        [P] = [grid * grid] values 0 to 1, exact where boxes overlap too.

    Raises:
        ValueError: ``grid`` is below 1, or a box is not four finite numbers with left <= right and top <= bottom.
    """
    if grid < 1:
        raise ValueError(f"grid must be 1 or more patches a side, got {grid}")
    corners = _checked_boxes(boxes) * grid
    lines = np.arange(grid + 1, dtype=np.float64)
    # Cut the picture along every patch's and every box's edge: each cell then lies in one patch, and in a box or not.
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
    """The frames whose middle lies in [start, end), or else the one nearest to the word's middle; never none."""
    start, end = float(word["start"]), float(word["end"])
    if not (math.isfinite(start) and math.isfinite(end) and start <= end):
        raise ValueError(f"a word starts at {start} s and ends at {end} s: it has to end after it starts")
    # Rounded to a millionth of a frame, so that 0.03 / 0.02 counts as the middle that it is.
    first, stop = (math.ceil(round(time / frame_seconds - 0.5, 6)) for time in (start, end))
    first, stop = max(first, 0), min(stop, n_frames)
    if first >= stop:
        first = min(max(math.floor((start + end) / 2 / frame_seconds), 0), n_frames - 1)
        stop = first + 1
    return slice(first, stop)


def _object(objects: Sequence[Mapping[str, Any]], index: int) -> Mapping[str, Any]:
    if not 0 <= index < len(objects):
        raise ValueError(f"a word names object {index}, but the picture has {len(objects)}")
    return objects[index]


def _checked_boxes(boxes: Sequence[Box]) -> Floats:
    corners = np.asarray(boxes, dtype=np.float64) if len(boxes) else np.zeros((0, 4))
    if corners.shape != (len(boxes), 4) or not np.isfinite(corners).all():
        raise ValueError(f"a box is four finite numbers (left, top, right, bottom), got {list(boxes)}")
    if (corners[:, :2] > corners[:, 2:]).any():
        raise ValueError(f"a box has left <= right and top <= bottom, got {list(boxes)}")
    return corners.clip(0, 1)


def _checked_map(attention: Vectors) -> Floats:
    weights = as_array(attention).astype(np.float64)
    if weights.ndim != 2 or 0 in weights.shape:
        raise ValueError(f"attention must be [F, P] with at least one frame and patch, got {weights.shape}")
    if not (np.abs(weights.sum(axis=1) - 1) <= _ROW_SUM_TOLERANCE).all():
        raise ValueError("each row of attention must sum to 1 over the patches (without the class token)")
    return weights


def _grid_of(n_patches: int) -> int:
    grid = math.isqrt(n_patches)
    if grid * grid != n_patches:
        raise ValueError(f"{n_patches} patches are no square grid: leave the class token out")
    return grid
