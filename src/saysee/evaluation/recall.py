"""Ranks and retrieval measures from vectors, in both directions.

    ranks = retrieval_ranks(speech, images, image_of_clip)
    measures = retrieval_measures(ranks)
    measures.to_dict()["speech_to_image"]["R@1"]  # percent

What counts as right:

- Speech to image: every clip is a query, and its own image is the one right answer.
- Image to speech: every image with a clip is a query. ``R@k`` is the share of images with *any* own clip among the
  first k, as the tables of the field count. ``shared_recall@k`` is the share of an image's clips that are among the
  first k, which MTEB calls ``recall_at_k``. ``nDCG@10`` is MTEB's too: a right clip at place p gains 1 / log2(1 + p),
  and the sum is divided by the largest possible one.
- Images without a clip are distractors in the gallery, and no queries.
- Ties count against the system: a wrong answer that scores within ``TIE_TOLERANCE`` of a right one precedes it in every
  measure, so a constant embedding scores chance or less. Clips of one image have distinct places; the order of two
  tied ones changes no measure. MTEB (trec_eval) breaks ties by document name: with ties its values may be higher.

Every measure but ``median_rank`` is in percent, 0 to 100.

Shapes: N clips, M images, Q images that have a clip, D width, K measures, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from saysee.errors import SaySeeError
from saysee.evaluation.statistics import (
    Counts,
    Floats,
    Integers,
    draws,
    percentile_interval,
    resampled_means,
    resampled_medians,
)

if TYPE_CHECKING:
    import torch

Vectors: TypeAlias = "npt.NDArray[Any] | torch.Tensor"
Mask: TypeAlias = npt.NDArray[np.bool_]

TIE_TOLERANCE = 1e-6
"""Equal inputs get float32 vectors that differ in the last bits from batch to batch, and their cosines by some 1e-7."""
CUTOFFS = (1, 5, 10)
NDCG_CUTOFF = 10
WAYS = ("speech_to_image", "image_to_speech")
MEAN = "mean_R@1"
NO_LABEL = "(none)"


@dataclass(frozen=True)
class RetrievalRanks:
    """The places of the right answers, from 1."""

    speech_to_image: Integers  # [N] rank of each clip's own image among all M images
    # [N] place of each clip among all N clips in the list that its own image retrieves. Clips of one image have
    # distinct places
    clip_positions: Integers
    image_of_clip: Integers  # [N] index of each clip's image
    gallery_images: int  # M

    @property
    def gallery_clips(self) -> int:
        """N, the number of clips in the gallery."""
        return len(self.image_of_clip)

    @property
    def clips_per_image(self) -> Integers:
        """[M] number of clips of each image; 0 for a distractor."""
        return np.bincount(self.image_of_clip, minlength=self.gallery_images)

    @property
    def query_images(self) -> Integers:
        """[Q] indices, ascending, of the images that have a clip."""
        return np.flatnonzero(self.clips_per_image)

    @property
    def image_to_speech(self) -> Integers:
        """[Q] rank of the best clip of each of ``query_images``."""
        best = np.full(self.gallery_images, self.gallery_clips + 1, dtype=np.int64)
        np.minimum.at(best, self.image_of_clip, self.clip_positions)
        return best[self.query_images]


@dataclass(frozen=True)
class RetrievalMeasures:
    """The measures of a set of queries against the full gallery, in percent except ``median_rank``."""

    # by name: ``R@k`` and ``shared_recall@k`` for k of ``CUTOFFS``, ``nDCG@10``, ``median_rank``
    speech_to_image: dict[str, float]
    image_to_speech: dict[str, float] | None  # the same names; None if no image is a query (see ``group_measures``)
    mean_recall_at_1: float | None  # mean ``R@1`` of both directions; None without image queries
    chance_mean_recall_at_1: float | None  # that of a random order; None without image queries
    # 95 % bootstrap intervals over images, [low, high] by the keys of ``to_dict``; None if not asked for
    interval: dict[str, Any] | None
    # clips, images: number of speech queries and of image queries
    clips: int
    images: int
    # gallery_clips, gallery_images: N and M
    gallery_clips: int
    gallery_images: int
    # [R] values of each measure of ``named`` in the resamples of the bootstrap. Measures of the same queries by another
    # model, with the same seed, are of the same resamples: their differences are paired
    resampled: dict[str, Floats] = field(default_factory=dict, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the resamples."""
        return {name.replace("recall_at_1", "R@1"): value for name, value in vars(self).items() if name != "resampled"}

    def named(self) -> dict[str, float]:
        """Every measure that there is by one name, such as ``speech_to_image_R@1`` or ``mean_R@1``."""
        found = {f"{way}_{name}": value for way in WAYS for name, value in (getattr(self, way) or {}).items()}
        return found if self.mean_recall_at_1 is None else {MEAN: self.mean_recall_at_1, **found}


def retrieval_ranks(
    speech: Vectors, images: Vectors, image_of_clip: Sequence[int] | npt.NDArray[Any], *, chunk: int = 1024
) -> RetrievalRanks:
    """Ranks every clip against every image, and every image against every clip.

    The score is the cosine in float64, computed in tiles of ``chunk`` × ``chunk``: memory does not grow with N times M,
    and the ranks do not depend on the chunk. Vectors ``speech`` [N, D] and ``images`` [M, D] of any length are
    normalized here, and a zero vector stays zero; ``image_of_clip`` [N] is the index of each clip's image.

    Raises SaySeeError for no clip or no image, widths that differ, an index out of range, or a vector that is not
    finite.
    """
    speech, images = as_array(speech), as_array(images)
    image_of_clip = np.asarray(image_of_clip)
    _check_shapes(speech, images, image_of_clip)
    if chunk < 1:
        raise SaySeeError(f"chunk is {chunk}; it must be at least 1")
    image_of_clip = image_of_clip.astype(np.int64)
    for name, vectors in (("image", images), ("speech", speech)):
        _check_finite(vectors, name, chunk)

    # A wrong answer precedes clip n or its image, in either direction, if it scores at least threshold[n].
    threshold = np.empty(len(speech))
    for rows in _chunks(len(speech), chunk):
        own = unit_vectors(images[image_of_clip[rows]])
        threshold[rows] = np.einsum("nd,nd->n", unit_vectors(speech[rows]), own) - TIE_TOLERANCE

    by_image = np.argsort(image_of_clip, kind="stable")
    first_of_image = np.searchsorted(image_of_clip[by_image], np.arange(len(images) + 1))
    images_above = np.zeros(len(speech), dtype=np.int64)
    clips_above = np.zeros(len(speech), dtype=np.int64)
    for rows in _chunks(len(speech), chunk):
        queries, own_image = unit_vectors(speech[rows]), image_of_clip[rows]
        for columns in _chunks(len(images), chunk):
            scores = unit_vectors(images[columns]) @ queries.T
            right = np.flatnonzero((own_image >= columns.start) & (own_image < columns.stop))
            scores[own_image[right] - columns.start, right] = -np.inf  # only wrong answers count
            images_above[rows] += (scores >= threshold[rows]).sum(axis=0, dtype=np.int32)
            retrieved = by_image[first_of_image[columns.start] : first_of_image[columns.stop]]
            for part in _chunks(len(retrieved), chunk):
                clips = retrieved[part]
                wrong = scores[image_of_clip[clips] - columns.start]
                clips_above[clips] += (wrong >= threshold[clips, None]).sum(axis=1, dtype=np.int32)
    return RetrievalRanks(images_above + 1, _positions(clips_above, image_of_clip), image_of_clip, len(images))


def retrieval_measures(
    ranks: RetrievalRanks, *, clips: Mask | None = None, resamples: int = 1000, seed: int = 0
) -> RetrievalMeasures:
    """All measures of the queries of ``clips``, with 95 % intervals: those of the percentile bootstrap over images.

    Images are drawn with replacement, by ``seed``, each with all its chosen clips. The gallery and the ranks stay the
    same. ``clips`` [N] are those that are queries; None is all. An image is a query if all its clips are chosen.
    ``resamples`` are at least ``statistics.MIN_RESAMPLES``; 0 computes no intervals.

    Raises SaySeeError if no clip is chosen, ``clips`` is not [N], or there are too few resamples.
    """
    chosen = np.ones(ranks.gallery_clips, dtype=np.bool_) if clips is None else np.asarray(clips, dtype=np.bool_)
    if chosen.shape != (ranks.gallery_clips,):
        raise SaySeeError(f"clips must mark each of {ranks.gallery_clips} clips, but has shape {chosen.shape}")
    if not chosen.any():
        raise SaySeeError("no clip is chosen as a query; choose at least one")
    clips_per_image = ranks.clips_per_image
    complete = np.bincount(ranks.image_of_clip[chosen], minlength=ranks.gallery_images) == clips_per_image
    speech_queries, image_queries = _speech_queries(ranks).only(chosen), _image_queries(ranks)
    image_queries = image_queries.only(complete[image_queries.image])
    speech_to_image = speech_queries.measures()
    image_to_speech = mean = chance = None
    if len(image_queries.image):
        image_to_speech = image_queries.measures()
        mean = (speech_to_image["R@1"] + image_to_speech["R@1"]) / 2
        share_of_clips = float(clips_per_image[image_queries.image].mean()) / ranks.gallery_clips
        chance = 50.0 * (1 / ranks.gallery_images + share_of_clips)
    resampled = _resamples(speech_queries, image_queries, resamples, seed) if resamples else {}
    return RetrievalMeasures(
        speech_to_image=speech_to_image,
        image_to_speech=image_to_speech,
        mean_recall_at_1=mean,
        chance_mean_recall_at_1=chance,
        interval=_intervals(resampled) if resamples else None,
        clips=len(speech_queries.image),
        images=len(image_queries.image),
        gallery_clips=ranks.gallery_clips,
        gallery_images=ranks.gallery_images,
        resampled=resampled,
    )


def group_measures(
    ranks: RetrievalRanks, labels: Sequence[Any], *, resamples: int = 1000, seed: int = 0
) -> dict[str, RetrievalMeasures]:
    """The measures of each group of clips against the full gallery, by label as text, sorted.

    Image queries are the images whose clips are all in the group; if there is none (by speaker, say, when each image
    has several), ``image_to_speech`` and the mean are None. ``labels`` has the group [N] of each clip; None is
    ``NO_LABEL``.

    Raises SaySeeError if there is not one label a clip.
    """
    if len(labels) != ranks.gallery_clips:
        raise SaySeeError(f"{len(labels)} labels for {ranks.gallery_clips} clips: each clip needs one")
    names, group = np.unique([NO_LABEL if label is None else str(label) for label in labels], return_inverse=True)
    return {
        str(name): retrieval_measures(ranks, clips=group == number, resamples=resamples, seed=seed)
        for number, name in enumerate(names)
    }


def mean_resamples(runs: Sequence[RetrievalMeasures]) -> dict[str, Floats]:
    """[R] resampled values of each measure, as means over runs on the same queries."""
    return {name: np.mean([each.resampled[name] for each in runs], axis=0) for name in runs[0].resampled}


def as_array(values: Vectors) -> npt.NDArray[Any]:
    """A torch tensor of any device and float type, or an array-like, as an array."""
    if hasattr(values, "detach"):  # not isinstance: vectors from disk are scored without importing torch
        return np.asarray(values.detach().cpu().float().numpy())
    return np.asarray(values)


def unit_vectors(vectors: Vectors) -> Floats:
    """[N, D] normalized to length 1; a zero vector stays zero.

    In float64: rounding of float32 sums grows with the width, and exceeds the tie tolerance for some widths.
    """
    wide = as_array(vectors).astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: Floats = np.divide(wide, norms, out=wide, where=norms > 0)
    return unit


_NAMES = (*(f"R@{k}" for k in CUTOFFS), f"nDCG@{NDCG_CUTOFF}", *(f"shared_recall@{k}" for k in CUTOFFS), "median_rank")
"""Columns of the values of queries; the median rank follows from the ranks."""


class _Queries(NamedTuple):
    """The queries of one direction."""

    image: Integers  # [Q]
    values: Floats  # [Q, K] of all measures but the last
    rank: Integers  # [Q]

    def only(self, chosen: Mask) -> _Queries:
        return _Queries(self.image[chosen], self.values[chosen], self.rank[chosen])

    def measures(self) -> dict[str, float]:
        values = [*self.values.mean(axis=0), np.median(self.rank)]
        return {name: float(value) for name, value in zip(_NAMES, values, strict=True)}

    def resampled(self, images: Integers, counts: Counts) -> Floats:
        """[R, K + 1] measures if each of ``images`` is drawn ``counts`` [R, images] times."""
        image = np.searchsorted(images, self.image)
        means = resampled_means(self.values, image, counts)
        return np.column_stack([means, resampled_medians(self.rank, image, counts)])


def _speech_queries(ranks: RetrievalRanks) -> _Queries:
    """All N clips. Each has one right answer, so its shared recall is its recall."""
    hits = ranks.speech_to_image[:, None] <= np.array(CUTOFFS)
    values = 100.0 * np.column_stack([hits, _gain(ranks.speech_to_image), hits])
    return _Queries(ranks.image_of_clip, values, ranks.speech_to_image)


def _image_queries(ranks: RetrievalRanks) -> _Queries:
    """All Q images with clips."""
    queries, best, cutoffs = ranks.query_images, ranks.image_to_speech, np.array(CUTOFFS)
    n_clips = ranks.clips_per_image[queries]
    per_clip = np.column_stack([_gain(ranks.clip_positions), ranks.clip_positions[:, None] <= cutoffs])
    found = np.zeros((ranks.gallery_images, per_clip.shape[1]))
    np.add.at(found, ranks.image_of_clip, per_clip)
    best_gain = np.cumsum(_gain(np.arange(1, NDCG_CUTOFF + 1)))[np.minimum(n_clips, NDCG_CUTOFF) - 1]
    of_all = np.column_stack([best_gain, *[n_clips] * len(CUTOFFS)])
    return _Queries(queries, 100.0 * np.column_stack([best[:, None] <= cutoffs, found[queries] / of_all]), best)


def _resamples(speech: _Queries, image: _Queries, resamples: int, seed: int) -> dict[str, Floats]:
    """[R] resampled values by measure; images are drawn from those that a chosen clip belongs to."""
    images = np.unique(speech.image)
    parts: dict[str, list[Floats]] = {way: [] for way in WAYS}
    for counts in draws(len(images), len(speech.image), resamples, seed):
        for way, queries in zip(WAYS, (speech, image), strict=True):
            parts[way] += [queries.resampled(images, counts)] if len(queries.image) else []
    values = {way: np.concatenate(part) for way, part in parts.items() if part}
    found = {f"{way}_{name}": values[way][:, number] for way in values for number, name in enumerate(_NAMES)}
    return found | ({MEAN: (found[f"{WAYS[0]}_R@1"] + found[f"{WAYS[1]}_R@1"]) / 2} if len(values) == 2 else {})


def _intervals(resampled: dict[str, Floats]) -> dict[str, Any]:
    """95 % intervals, nested as in ``to_dict``."""
    found: dict[str, Any] = {
        way: {name: percentile_interval(resampled[f"{way}_{name}"]) for name in _NAMES}
        for way in WAYS
        if f"{way}_R@1" in resampled
    }
    return found | ({MEAN: percentile_interval(resampled[MEAN])} if MEAN in resampled else {})


def _gain(position: Integers) -> Floats:
    return np.where(position <= NDCG_CUTOFF, 1.0 / np.log2(1.0 + position), 0.0)


def _positions(clips_above: Integers, image_of_clip: Integers) -> Integers:
    """[N] places, from the number of other images' clips above each; an image's own clips come in order of score."""
    order = np.lexsort((clips_above, image_of_clip))
    _, first, number = np.unique(image_of_clip[order], return_index=True, return_inverse=True)
    positions = np.empty_like(clips_above)
    positions[order] = clips_above[order] + np.arange(len(order)) - first[number] + 1
    return positions


def _chunks(length: int, chunk: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk, length)) for start in range(0, length, chunk))


def _check_shapes(speech: npt.NDArray[Any], images: npt.NDArray[Any], image_of_clip: npt.NDArray[Any]) -> None:
    for name, vectors in (("speech", speech), ("image", images)):
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise SaySeeError(f"{name} vectors have shape {vectors.shape}; give [rows, width] with at least one row")
    if speech.shape[1] != images.shape[1]:
        both = f"speech vectors have width {speech.shape[1]} and image vectors {images.shape[1]}"
        raise SaySeeError(f"{both}: encode both with the same model")
    if image_of_clip.shape != (len(speech),) or not np.issubdtype(image_of_clip.dtype, np.integer):
        shape = f"image_of_clip has shape {image_of_clip.shape} of {image_of_clip.dtype}"
        raise SaySeeError(f"{shape}; give one integer for each of {len(speech)} clips")
    if len(wrong := np.flatnonzero((image_of_clip < 0) | (image_of_clip >= len(images)))):
        raise SaySeeError(f"clip {wrong[0]} has image {image_of_clip[wrong[0]]}, but there are {len(images)} images")


def _check_finite(vectors: npt.NDArray[Any], name: str, chunk: int) -> None:
    for rows in _chunks(len(vectors), chunk):
        finite = np.isfinite(vectors[rows]).all(axis=1)
        if not finite.all():
            row = rows.start + int(np.flatnonzero(~finite)[0])
            raise SaySeeError(f"{name} vector {row} holds NaN or infinity: encode it again in float32 or bfloat16")
