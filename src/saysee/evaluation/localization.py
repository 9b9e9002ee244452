"""Localization: which part of the image the model attends to while a word is spoken.

A map is [F, P]: for each frame of speech the weight of each place of the image; a row sums to 1. Places are counted row
by row from the top left on a square grid, without a class token. Boxes of objects are (left, top, right, bottom) as
shares of the sides of the image.

Shapes: F frames, P places, W words.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saysee.data.manifest import Manifest, Row
from saysee.encoding.attention import AttentionSource, attend, attention_source
from saysee.encoding.encoder import Encoder
from saysee.errors import ManifestError
from saysee.evaluation.recall import Vectors, as_array
from saysee.evaluation.statistics import Floats, image_interval
from saysee.evaluation.table import Table, number
from saysee.log import progress_bar

MAX_IMAGES = 200  # images of a split that are scored, each with one clip: some 1,400 words of the scenes corpus
WHOLE = (0.0, 0.0, 1.0, 1.0)
_ROW_SUM_TOLERANCE = 2e-2  # above the rounding of a softmax in bfloat16 over 50 to 256 patches


@dataclass(frozen=True, slots=True)
class WordScore:
    """The map of one word, the mean of its frames, against the boxes of the objects that the word names, joined."""

    # whether the middle of the place with the highest weight is in a box, 0 or 1; the share of several that are equally
    # high
    pointing: float
    pointing_chance: float  # the share of all places whose middle is
    mass: float  # share of the weight inside the boxes
    # intersection over union of the boxes and the places above half of the range from lowest to highest weight
    iou: float
    area: float  # share of the grid inside the boxes: mass and IoU of a uniform map


@dataclass(frozen=True)
class Localization:
    """How well a model's maps show the objects that words name, over the words of one split."""

    source: AttentionSource  # of the maps
    # images, of: number of images that were scored, one clip each; and of those of the split
    images: int
    of: int
    words: int  # number of words
    outside: int  # words that are skipped, as the model sees nothing of their objects
    # by measure ("pointing", "mass", "iou") the mean over words, the 95 % bootstrap interval over images, and the value
    # of a uniform map, which is chance: by the words' own boxes, see :class:`WordScore`
    scores: Mapping[str, Mapping[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


def localize(
    encoder: Encoder, rows: Manifest, source: AttentionSource, *, seed: int = 0, progress: bool = True
) -> Localization:
    """Scores a model's maps of a ``source`` on the words of a split that name objects.

    ``rows`` have the columns ``words`` (each with ``start``, ``end`` and ``objects``) and ``objects`` (each with
    ``box``) of the scenes corpus. Of more than ``MAX_IMAGES`` images a random choice is scored, by ``seed``. Raises
    ManifestError if a column is missing or has another form, or no word names an object that the model sees; else as
    ``attend``.
    """
    for column in ("words", "objects"):
        rows.column(column)
    check_words(rows.images())
    named = [row for row in rows.images() if any(word.get("objects") for word in row.extra["words"] or ())]
    chosen = random.Random(seed).sample(named, min(MAX_IMAGES, len(named)))
    scores: list[WordScore] = []
    image_of_score: list[int] = []
    words = 0
    with progress_bar(f"localizing by {source}", len(chosen), enabled=progress) as bar:
        for image, row in enumerate(chosen):
            regions = attend(encoder, str(rows.clip_path(row)), str(rows.image_path(row)), source)
            spoken, objects = row.extra["words"], row.extra["objects"]
            found = word_scores(regions.frames, spoken, objects, regions.frame_seconds, regions.box)
            words += sum(bool(word.get("objects")) for word in spoken)
            scores += found
            image_of_score += [image] * len(found)
            bar.update()
    if not scores:
        raise ManifestError("no word names an object that the model sees (columns words and objects)")
    measured = {}
    for name, chance in (("pointing", "pointing_chance"), ("mass", "area"), ("iou", "area")):
        values, chances = ([float(getattr(score, field)) for score in scores] for field in (name, chance))
        interval = list(image_interval(values, image_of_score))
        measured[name] = {"mean": float(np.mean(values)), "interval": interval, "chance": float(np.mean(chances))}
    return Localization(source, len(chosen), len(rows.images()), len(scores), words - len(scores), measured)


def check_words(rows: Iterable[Row]) -> None:
    """Raises ManifestError unless ``words`` and ``objects`` of each row are as :func:`localize` takes them, or null."""
    for row in rows:
        try:
            word_scores(np.ones((1, 1)), row.extra["words"] or (), row.extra["objects"] or (), 1.0)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            wrong = "its words and objects are not as in a scenes corpus, with times and boxes"
            raise ManifestError(f"{row.clip}: {wrong} ({error})") from None


def localization_table(results: Sequence[tuple[str, str, Localization]]) -> Table:
    """A table in percent of (corpus, model, result)."""
    rows, notes = [], []
    for corpus, model, each in results:
        cells = []
        for score in each.scores.values():
            interval = [100 * end for end in score["interval"]]
            cells += [number(100 * score["mean"], interval=interval), number(100 * score["chance"])]
        rows.append([corpus, model, each.source, *cells, f"{each.words:,}"])
        note = f"{corpus}: {each.images:,} of {each.of:,} images, one clip each"
        note += f"; {each.outside:,} words skipped: the model does not see their objects" if each.outside else ""
        notes += [note] if note not in notes else []
    measures = [heading for name in ("pointing", "mass", "IoU") for heading in (name, "chance")]
    headings = ["corpus", "model", "source", *measures, "words"]
    return Table("localization, % (95 % interval over images)", headings, rows, labels=3, notes=notes)


def sources_of(encoder: Encoder) -> list[AttentionSource]:
    """The sources of maps that a model has."""
    return list(dict.fromkeys((attention_source(encoder.model), "interaction")))


def word_scores(
    attention: Vectors,
    words: Sequence[Mapping[str, Any]],
    objects: Sequence[Mapping[str, Any]],
    frame_seconds: float,
    box: Sequence[float] = WHOLE,
) -> list[WordScore]:
    """The map [F, P] of a clip against the boxes of the objects that words name, a score for each such word, in order.

    The boxes of a word that names several are joined; a word whose boxes have no area inside the grid is skipped. Words
    are as in ``word_maps``, with ``objects`` too, the indices of the objects that they name; ``objects`` have each a
    ``box``, and ``box`` is the position of the grid on the image, as of ``Regions``.

    Raises ValueError if the map is not [F, P] with rows that sum to 1 and a square number of places, a box or a time is
    invalid, or a word names an object that does not exist.
    """
    weights = _checked_map(attention)
    grid = math.isqrt(weights.shape[1])
    if grid * grid != weights.shape[1]:
        raise ValueError(f"{weights.shape[1]} patches are no square grid: drop the class token")
    middles = (np.arange(grid) + 0.5) / grid
    scores = []
    for word in words:
        named = word.get("objects") or ()
        if unknown := [index for index in named if not 0 <= index < len(objects)]:
            raise ValueError(f"a word names object {unknown[0]}, but the image has {len(objects)}")
        boxes = [_within(objects[index]["box"], box) for index in named]
        share = patch_grid(boxes, grid)
        if share.sum() == 0:
            continue
        inside = np.zeros((grid, grid), np.bool_)
        for left, top, right, bottom in boxes:
            inside |= np.outer((top <= middles) & (middles < bottom), (left <= middles) & (middles < right))
        of_word = weights[_frames_of(word, len(weights), frame_seconds)].mean(axis=0)
        highest = of_word >= of_word.max() * (1 - 1e-9)
        lit = of_word >= (of_word.min() + of_word.max()) / 2
        shared = share[lit].sum()
        iou = shared / (lit.sum() + share.sum() - shared)
        values = inside.ravel()[highest].mean(), inside.mean(), of_word @ share, iou, share.mean()
        scores.append(WordScore(*map(float, values)))
    return scores


def attention_on_rows(maps: Sequence[Vectors], rows: Sequence[Row], frame_seconds: float) -> dict[str, float]:
    """Means over the words of clips with maps [F, P] of what is on the objects that they name; none without a word.

    ``attention_mass`` is the share of the attention inside the boxes, ``attention_lift`` the same relative to uniform
    attention. The rows have passed :func:`check_words`.
    """
    found: list[WordScore] = []
    for attention, row in zip(maps, rows, strict=True):
        found += word_scores(attention, row.extra["words"] or (), row.extra["objects"] or (), frame_seconds)
    if not found:
        return {}
    mass, lift = np.mean([(score.mass, score.mass / score.area) for score in found], axis=0)
    return {"attention_mass": float(mass), "attention_lift": float(lift)}


def _within(box: Sequence[float], grid: Sequence[float]) -> Sequence[float]:
    """A box of the image as shares of the sides of the grid."""
    if len(box) != 4:
        return box  # patch_grid reports it
    width, height = grid[2] - grid[0], grid[3] - grid[1]
    return [(edge - grid[n % 2]) / (width, height)[n % 2] for n, edge in enumerate(box)]


def word_maps(attention: Vectors, words: Sequence[Mapping[str, Any]], frame_seconds: float) -> Floats:
    """[W, P] mean weights of a map [F, P] during each word; each row sums to 1.

    The frames of a word, which has ``start`` and ``end`` in seconds, are those of ``frame_seconds`` whose middle is in
    it; if there is none, the frame nearest to the middle of the word.

    Raises ValueError if the map is not [F, P] with rows that sum to 1, or a word ends before it starts.
    """
    weights = _checked_map(attention)
    maps = [weights[_frames_of(word, len(weights), frame_seconds)].mean(axis=0) for word in words]
    return np.array(maps).reshape(len(words), weights.shape[1])


def patch_grid(boxes: Sequence[Sequence[float]], grid: int) -> Floats:
    """[grid * grid] share of the area of each patch, 0 to 1, that is in a box; boxes are clipped to the image.

    Raises ValueError if ``grid`` is below 1, or a box is not four finite numbers with left <= right and top <= bottom.
    """
    if grid < 1:
        raise ValueError(f"grid is {grid}; it must be at least 1")
    corners = np.asarray(boxes, dtype=np.float64) if len(boxes) else np.zeros((0, 4))
    if corners.shape != (len(boxes), 4) or not np.isfinite(corners).all():
        raise ValueError(f"a box is four finite numbers (left, top, right, bottom), not {list(boxes)}")
    if (corners[:, :2] > corners[:, 2:]).any():
        raise ValueError(f"a box has left <= right and top <= bottom, not {list(boxes)}")
    corners = corners.clip(0, 1) * grid
    lines = np.arange(grid + 1.0)
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
