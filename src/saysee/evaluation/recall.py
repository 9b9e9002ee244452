"""Ranks and retrieval measures from vectors alone, both directions.

    ranks = retrieval_ranks(speech, images, image_of_clip)
    measures = retrieval_measures(ranks)
    measures.to_dict()["speech_to_image"]["R@1"]  # percent

What counts as right:

- Speech to image: every clip is a query, its own image is the one right answer.
- Image to speech: an image is a query when it has a clip. ``R@k`` asks whether *any* of its clips is among the first k,
  as the tables of the field do. ``shared_recall@k`` is the share of its clips that are among the first k: what MTEB
  calls ``recall_at_k``. ``nDCG@10`` is MTEB's too: a right clip at place p gains 1 / log2(1 + p), and the sum is
  divided by the largest that the image could have.
- Images without a clip stay in the gallery as distractors, and are not queries.
- Ties count against the system: a wrong answer that scores within ``TIE_TOLERANCE`` of a right one stands above it, in
  every measure. So a constant embedding scores chance or less. The clips of one image take distinct places one after
  another; which of two tied ones comes first changes no measure. MTEB (by trec_eval) breaks ties by document name:
  without ties its figures are these, with ties they are these or higher.

Every measure but ``median_rank`` is in percent, 0 to 100.

Shapes: N clips, M images, Q images that have a clip, D width, K measures, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from saysee.errors import SaySeeError

if TYPE_CHECKING:
    import torch

Vectors: TypeAlias = "npt.NDArray[Any] | torch.Tensor"
Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]

# Equal inputs get float32 vectors that differ in the last bits from batch to batch: their cosines differ by some 1e-7.
TIE_TOLERANCE = 1e-6
CUTOFFS = (1, 5, 10)
NDCG_CUTOFF = 10
NO_LABEL = "(none)"
# The percentiles 2.5 and 97.5 are not told by fewer draws.
MIN_RESAMPLES = 100

# Numbers that the bootstrap holds at once: 32 MB in float64.
_BOOTSTRAP_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class RetrievalRanks:
    """Where the right answers stand, 1 being the best place.

    Attributes:
        speech_to_image: [N] rank of each clip's own image among all M images.
        clip_positions: [N] place of each clip among all N clips, in the list that its own image retrieves. Clips of one
            image have distinct places.
        image_of_clip: [N] index of each clip's image.
        gallery_images: M, the number of images searched.
    """

    speech_to_image: Integers
    clip_positions: Integers
    image_of_clip: Integers
    gallery_images: int

    @property
    def gallery_clips(self) -> int:
        """N, the number of clips searched."""
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
        """[Q] rank of the best clip of each of ``query_images``. A clip of the same image never pushes it down."""
        best = np.full(self.gallery_images, self.gallery_clips + 1, dtype=np.int64)
        np.minimum.at(best, self.image_of_clip, self.clip_positions)
        return best[self.query_images]


@dataclass(frozen=True)
class RetrievalMeasures:
    """The measures of one set of queries against the full gallery; percent, but for ``median_rank``.

    Attributes:
        speech_to_image: measure by name: ``R@1``, ``R@5``, ``R@10``, ``median_rank``, ``nDCG@10``, ``shared_recall@1``,
            ``shared_recall@5``, ``shared_recall@10``.
        image_to_speech: the same names; None when no image is a query (see ``group_measures``).
        mean_recall_at_1: mean of the two directions' ``R@1``; None without image queries.
        chance_mean_recall_at_1: what a random order would score there; None without image queries.
        interval: 95 % bootstrap intervals over images, [low, high], under the keys of ``to_dict``; None when not asked
            for.
        clips: number of speech queries.
        images: number of image queries.
        gallery_clips: N.
        gallery_images: M.
    """

    speech_to_image: dict[str, float]
    image_to_speech: dict[str, float] | None
    mean_recall_at_1: float | None
    chance_mean_recall_at_1: float | None
    interval: dict[str, Any] | None
    clips: int
    images: int
    gallery_clips: int
    gallery_images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values. ``interval`` has the keys of the measures, with [low, high] in place of each number."""
        return {
            "speech_to_image": dict(self.speech_to_image),
            "image_to_speech": self.image_to_speech and dict(self.image_to_speech),
            "mean_R@1": self.mean_recall_at_1,
            "chance_mean_R@1": self.chance_mean_recall_at_1,
            "interval": self.interval,
            "clips": self.clips,
            "images": self.images,
            "gallery_clips": self.gallery_clips,
            "gallery_images": self.gallery_images,
        }


def retrieval_ranks(
    speech: Vectors, images: Vectors, image_of_clip: Sequence[int] | npt.NDArray[Any], *, chunk: int = 1024
) -> RetrievalRanks:
    """Rank every clip against every image, and every image against every clip, in one pass.

    The score is the cosine, computed in float64 in tiles of ``chunk`` × ``chunk``. So the memory taken does not grow
    with the product of N and M: beyond the input there are a few numbers a clip and an image.

    Args:
        speech: [N, D] clip vectors of any length; they are L2-normalised here, and a zero vector stays zero.
        images: [M, D] image vectors, each image once.
        image_of_clip: [N] index into ``images`` of the image that each clip describes.
        chunk: rows and columns of a tile. It changes speed and memory, not the ranks.

    Raises:
        SaySeeError: no clip or no image, widths that differ, an index out of range, or a vector that is not finite.
    """
    speech, images = as_array(speech), as_array(images)
    image_of_clip = np.asarray(image_of_clip)
    _check_shapes(speech, images, image_of_clip)
    if chunk < 1:
        raise SaySeeError(f"chunk must be 1 or more, got {chunk}")
    image_of_clip = image_of_clip.astype(np.int64)
    n_clips, n_images = len(speech), len(images)
    for rows in _chunks(n_images, chunk):
        _check_finite(images[rows], "image", rows.start)

    # A wrong answer stands above clip n's pair when it scores at least threshold[n], in either direction.
    threshold = np.empty(n_clips)
    for rows in _chunks(n_clips, chunk):
        _check_finite(speech[rows], "speech", rows.start)
        threshold[rows] = (
            np.einsum("nd,nd->n", unit_vectors(speech[rows]), unit_vectors(images[image_of_clip[rows]])) - TIE_TOLERANCE
        )

    # Images in the order of their number of clips, most first, and clips in the order of their images: then the images
    # of a tile that have an n-th clip are its first columns, and the cost is N comparisons a clip, however unevenly the
    # clips are shared out.
    clips_per_image = np.bincount(image_of_clip, minlength=n_images)
    image_order = np.argsort(-clips_per_image, kind="stable")
    place_of_image = np.empty(n_images, dtype=np.int64)
    place_of_image[image_order] = np.arange(n_images)
    clip_order = np.argsort(place_of_image[image_of_clip], kind="stable")
    ordered_counts = clips_per_image[image_order]
    first_clip = np.cumsum(ordered_counts) - ordered_counts
    ordered_threshold = threshold[clip_order]

    images_above = np.zeros(n_clips, dtype=np.int64)
    ordered_clips_above = np.zeros(n_clips, dtype=np.int64)
    for rows in _chunks(n_clips, chunk):
        tile_speech = unit_vectors(speech[rows])
        own_place = place_of_image[image_of_clip[rows]]
        for columns in _chunks(n_images, chunk):
            scores = tile_speech @ unit_vectors(images[image_order[columns]]).T
            # What is right for a query is no competitor of it: the same pairs in both directions.
            own_rows = np.flatnonzero((own_place >= columns.start) & (own_place < columns.stop))
            scores[own_rows, own_place[own_rows] - columns.start] = -np.inf
            images_above[rows] += (scores >= threshold[rows, None]).sum(axis=1, dtype=np.int32)
            counts = ordered_counts[columns]
            for nth in range(counts[0]):
                n_having = int(np.searchsorted(-counts, -nth, side="left"))
                clips = first_clip[columns][:n_having] + nth
                above = scores[:, :n_having] >= ordered_threshold[clips]
                ordered_clips_above[clips] += above.sum(axis=0, dtype=np.int32)

    clips_above = np.empty(n_clips, dtype=np.int64)
    clips_above[clip_order] = ordered_clips_above
    return RetrievalRanks(
        speech_to_image=images_above + 1,
        clip_positions=_positions(clips_above, image_of_clip, clips_per_image),
        image_of_clip=image_of_clip,
        gallery_images=n_images,
    )


def retrieval_measures(
    ranks: RetrievalRanks, *, clips: Mask | None = None, resamples: int = 1000, seed: int = 0
) -> RetrievalMeasures:
    """All measures of the queries of ``clips``, with 95 % intervals.

    The interval is the percentile bootstrap over images: images are drawn with replacement, and all (chosen) clips of a
    drawn image come along. The gallery stays as it is, so ranks do not change.

    Args:
        ranks: what ``retrieval_ranks`` gave.
        clips: [N] which clips are queries; all by default. An image is a query when all its clips are chosen.
        resamples: number of bootstrap draws, ``MIN_RESAMPLES`` or more; 0 leaves intervals out.
        seed: of the draws. The same seed gives the same interval.

    Raises:
        SaySeeError: no clip is chosen, ``clips`` is not [N], or there are too few resamples.
    """
    chosen = np.ones(ranks.gallery_clips, dtype=np.bool_) if clips is None else np.asarray(clips, dtype=np.bool_)
    if chosen.shape != (ranks.gallery_clips,):
        raise SaySeeError(f"clips must mark each of {ranks.gallery_clips} clips, got shape {chosen.shape}")
    if not chosen.any():
        raise SaySeeError("no clip is chosen as a query: there is nothing to score")
    return _measures(ranks, _speech_queries(ranks), _image_queries(ranks), chosen, resamples, seed)


def group_measures(
    ranks: RetrievalRanks, labels: Sequence[Any], *, resamples: int = 1000, seed: int = 0
) -> dict[str, RetrievalMeasures]:
    """The measures of each group's queries against the full gallery.

    Speech to image is over the group's clips. Image to speech is over the images whose clips are all in the group;
    where there is none (by speaker, say, when each image has several), it is None and so is the mean.

    Args:
        ranks: what ``retrieval_ranks`` gave.
        labels: [N] the group of each clip. None is a group of its own, named ``NO_LABEL``.
        resamples: as in ``retrieval_measures``.
        seed: as in ``retrieval_measures``.

    Returns:
        Measures by label as text, in sorted order.

    Raises:
        SaySeeError: there is not one label a clip.
    """
    if len(labels) != ranks.gallery_clips:
        raise SaySeeError(f"{len(labels)} labels were given for {ranks.gallery_clips} clips: each clip needs one")
    names, group = np.unique([NO_LABEL if label is None else str(label) for label in labels], return_inverse=True)
    speech_queries, image_queries = _speech_queries(ranks), _image_queries(ranks)
    return {
        str(name): _measures(ranks, speech_queries, image_queries, group == number, resamples, seed)
        for number, name in enumerate(names)
    }


def recall_at_k(rank: npt.ArrayLike, k: int) -> float:
    """Percent of queries whose right answer stands at rank k or better. ``rank``: one number a query, 1 the best."""
    return 100.0 * float(np.mean(np.asarray(rank) <= k))


def as_array(values: Vectors) -> npt.NDArray[Any]:
    """A torch tensor of any device and float type, or anything that numpy reads, as an array."""
    # Told by its method, so that vectors kept on disk are scored without torch.
    if hasattr(values, "detach"):
        return np.asarray(values.detach().cpu().float().numpy())
    return np.asarray(values)


def unit_vectors(vectors: Vectors) -> Floats:
    """[N, D] L2-normalised; a zero vector stays zero.

    In float64: sums of float32 rounding grow with the width, and at some widths pass the tie tolerance.
    """
    wide = as_array(vectors).astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: Floats = np.divide(wide, norms, out=wide, where=norms > 0)
    return unit


def image_interval(
    values: npt.ArrayLike, image: npt.ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval over images of the mean of one value a clip.

    Args:
        values: [N] one value a clip, in any unit; the interval has the same.
        image: [N] index of each clip's image.
        resamples: number of draws, ``MIN_RESAMPLES`` or more.
        seed: of the draws.

    Returns:
        The 2.5th and the 97.5th percentile of the resampled means.

    Raises:
        SaySeeError: too few resamples.
    """
    drawn_from, image = np.unique(np.asarray(image), return_inverse=True)
    queries = _Queries(image, np.asarray(values, dtype=np.float64)[:, None], rank=None)
    drawn = [queries.resampled(times) for times in _image_draws(len(drawn_from), len(image), resamples, seed)]
    low, high = _bounds(np.concatenate(drawn)[:, 0])
    return low, high


@dataclass(frozen=True)
class _Queries:
    """One direction's queries: the image of each [Q], what it adds to each measure [Q, K], and its rank [Q]."""

    image: Integers
    values: Floats
    rank: Integers | None

    def only(self, chosen: Mask) -> _Queries:
        return _Queries(self.image[chosen], self.values[chosen], None if self.rank is None else self.rank[chosen])

    def measures(self) -> dict[str, float]:
        return _named([*self.values.mean(axis=0), np.median(np.asarray(self.rank))])

    def resampled(self, times: npt.NDArray[np.int32]) -> Floats:
        """The measures, [R, K] or with the median [R, K + 1], given how often each image was drawn, [R, images].

        A resample without any of these queries gives NaN.
        """
        n_images = times.shape[1]
        sums = np.zeros((n_images, 1 + self.values.shape[1]))
        np.add.at(sums, self.image, np.column_stack([np.ones(len(self.image)), self.values]))
        totals = times.astype(np.float64) @ sums
        with np.errstate(invalid="ignore"):
            means: Floats = totals[:, 1:] / totals[:, :1]
        if self.rank is None:
            return means
        order = np.argsort(self.rank, kind="stable")
        return np.column_stack([means, _weighted_median(self.rank[order], times[:, self.image[order]])])


def _weighted_median(ascending: Integers, times: npt.NDArray[np.int32]) -> Floats:
    """[R] medians of ``ascending`` [Q] with each value taken ``times`` [R, Q]; NaN where none is taken."""
    taken = np.cumsum(times, axis=1, dtype=np.int32)
    medians = np.full(len(taken), np.nan)
    for row, taken_until in enumerate(taken):
        if n_taken := int(taken_until[-1]):
            middle = np.searchsorted(taken_until, [(n_taken - 1) // 2, n_taken // 2], side="right")
            medians[row] = ascending[middle].mean()
    return medians


def _measures(
    ranks: RetrievalRanks,
    speech_queries: _Queries,
    image_queries: _Queries,
    chosen: Mask,
    resamples: int,
    seed: int,
) -> RetrievalMeasures:
    """The measures of the ``chosen`` [N] clips, and of the images whose clips are all chosen, out of all queries."""
    clips_per_image = ranks.clips_per_image
    chosen_per_image = np.bincount(ranks.image_of_clip[chosen], minlength=ranks.gallery_images)
    speech_queries = speech_queries.only(chosen)
    image_queries = image_queries.only((chosen_per_image == clips_per_image)[image_queries.image])
    speech_to_image = speech_queries.measures()
    image_to_speech = mean = chance = None
    if len(image_queries.image):
        image_to_speech = image_queries.measures()
        mean = (speech_to_image["R@1"] + image_to_speech["R@1"]) / 2
        chance_image = float(clips_per_image[image_queries.image].mean()) / ranks.gallery_clips
        chance = 50.0 * (1 / ranks.gallery_images + chance_image)
    return RetrievalMeasures(
        speech_to_image=speech_to_image,
        image_to_speech=image_to_speech,
        mean_recall_at_1=mean,
        chance_mean_recall_at_1=chance,
        interval=_intervals(speech_queries, image_queries, resamples, seed) if resamples else None,
        clips=len(speech_queries.image),
        images=len(image_queries.image),
        gallery_clips=ranks.gallery_clips,
        gallery_images=ranks.gallery_images,
    )


def _intervals(speech_queries: _Queries, image_queries: _Queries, resamples: int, seed: int) -> dict[str, Any]:
    # Images are drawn from those that a chosen clip belongs to, and counted from 0 among these.
    drawn_from = np.unique(speech_queries.image)
    speech_queries, image_queries = (
        replace(queries, image=np.searchsorted(drawn_from, queries.image))
        for queries in (speech_queries, image_queries)
    )
    speech_parts, image_parts = [], []
    for times in _image_draws(len(drawn_from), len(speech_queries.image), resamples, seed):
        speech_parts.append(speech_queries.resampled(times))
        if len(image_queries.image):
            image_parts.append(image_queries.resampled(times))
    speech = np.concatenate(speech_parts)
    intervals: dict[str, Any] = {"speech_to_image": _named([_bounds(column) for column in speech.T])}
    if image_parts:
        image = np.concatenate(image_parts)
        intervals["image_to_speech"] = _named([_bounds(column) for column in image.T])
        recall_at_1 = _NAMES.index("R@1")
        intervals["mean_R@1"] = _bounds((speech[:, recall_at_1] + image[:, recall_at_1]) / 2)
    return intervals


def _image_draws(n_images: int, n_clips: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.int32]]:
    """How often each image was drawn, [up to R at once, n_images]; as many at once as memory is set aside for."""
    if resamples < MIN_RESAMPLES:
        raise SaySeeError(f"resamples must be {MIN_RESAMPLES} or more for an interval, got {resamples}")
    rng = np.random.default_rng(seed)
    for rows in _chunks(resamples, max(1, _BOOTSTRAP_ELEMENTS // max(n_images, n_clips))):
        n_rows = rows.stop - rows.start
        drawn = rng.integers(0, n_images, size=(n_rows, n_images))
        flat = (drawn + np.arange(n_rows)[:, None] * n_images).ravel()
        yield np.bincount(flat, minlength=n_rows * n_images).astype(np.int32).reshape(n_rows, n_images)


def _bounds(drawn: Floats) -> list[float]:
    low, high = np.percentile(drawn[~np.isnan(drawn)], [2.5, 97.5])
    return [float(low), float(high)]


# The columns of a table of query values, then the median rank, which is no mean of such values.
_NAMES = (*(f"R@{k}" for k in CUTOFFS), f"nDCG@{NDCG_CUTOFF}", *(f"shared_recall@{k}" for k in CUTOFFS), "median_rank")


def _named(values: Sequence[Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, list) else float(value) for name, value in zip(_NAMES, values, strict=True)
    }


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


def _gain(position: Integers) -> Floats:
    return np.where(position <= NDCG_CUTOFF, 1.0 / np.log2(1.0 + position), 0.0)


def _positions(clips_above: Integers, image_of_clip: Integers, clips_per_image: Integers) -> Integers:
    """[N] places, from the number of other images' clips above each; an image's own clips come in order of score."""
    order = np.lexsort((clips_above, image_of_clip))
    own_before = np.arange(len(order)) - (np.cumsum(clips_per_image) - clips_per_image)[image_of_clip[order]]
    positions = np.empty_like(clips_above)
    positions[order] = clips_above[order] + own_before + 1
    return positions


def _chunks(length: int, chunk: int) -> Iterator[slice]:
    for start in range(0, length, chunk):
        yield slice(start, min(start + chunk, length))


def _check_shapes(speech: npt.NDArray[Any], images: npt.NDArray[Any], image_of_clip: npt.NDArray[Any]) -> None:
    for name, vectors in (("speech", speech), ("images", images)):
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise SaySeeError(
                f"{name} vectors must have shape [rows, width] with at least one row, got {vectors.shape}"
            )
    if speech.shape[1] != images.shape[1]:
        raise SaySeeError(
            f"speech vectors are {speech.shape[1]} wide and image vectors {images.shape[1]}: "
            "encode both with the same model"
        )
    if image_of_clip.shape != (len(speech),) or not np.issubdtype(image_of_clip.dtype, np.integer):
        raise SaySeeError(
            f"image_of_clip must hold one whole number for each of {len(speech)} clips, "
            f"got shape {image_of_clip.shape} of {image_of_clip.dtype}"
        )
    if image_of_clip.min() < 0 or image_of_clip.max() >= len(images):
        wrong = int(np.flatnonzero((image_of_clip < 0) | (image_of_clip >= len(images)))[0])
        raise SaySeeError(f"clip {wrong} names image {image_of_clip[wrong]}, but there are {len(images)} images")


def _check_finite(vectors: npt.NDArray[Any], name: str, start: int) -> None:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        row = start + int(np.flatnonzero(~finite)[0])
        raise SaySeeError(f"{name} vector {row} holds NaN or infinity: encode it again in float32 or bfloat16")
