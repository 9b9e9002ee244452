"""Evaluation of a model on one split of a manifest.

    result = evaluate(model, Manifest.read("flickr8k/manifest.parquet"), split="test", by=["speaker"])
    result.overall.mean_recall_at_1  # percent; ``comparison`` makes tables

Every clip of the split is a query, uncropped; the gallery holds each image once, by its image id. ``recall`` describes
how right answers are counted.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from saysee.data.manifest import Manifest
from saysee.errors import SaySeeError
from saysee.evaluation.recall import (
    CUTOFFS,
    TIE_TOLERANCE,
    WAYS,
    RetrievalMeasures,
    Vectors,
    group_measures,
    retrieval_measures,
    retrieval_ranks,
    unit_vectors,
)
from saysee.evaluation.statistics import Integers, image_interval
from saysee.evaluation.word_errors import WordErrors, normalize_text

_TILE = 256
"""Images that are compared with the whole gallery at a time, for twins."""


class RetrievalModel(Protocol):
    """A model that can be evaluated, such as ``SpeechImageModel``; one with ``has_text`` has ``encode_text`` too."""

    def encode_speech(
        self, clips: Sequence[os.PathLike[str]], /, *, batch_size: int, progress: bool
    ) -> npt.NDArray[Any]:
        """[N, D] vectors of audio files, in order."""

    def encode_images(
        self, images: Sequence[os.PathLike[str]], /, *, batch_size: int, progress: bool
    ) -> npt.NDArray[Any]:
        """[M, D] vectors of image files, in order."""


@dataclass(frozen=True)
class TwinAccuracy:
    """Discrimination of hard twins, images that differ in one thing."""

    accuracy: float  # percent of clips that score their own image above its twin; a tie is an error. Chance is 50
    interval: tuple[float, float] | None  # its 95 % bootstrap interval over images, (low, high); None if not asked for
    clips: int  # number of clips of images whose twin is in the split too
    # percent of these images whose twin is the nearest other image of the gallery: whether the image vectors place
    # twins next to each other
    nearest: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = {"accuracy": self.accuracy, "interval": self.interval and list(self.interval), "clips": self.clips}
        return {**found, "chance": 50.0, "twin_is_nearest_picture": self.nearest}


@dataclass(frozen=True)
class SpeechText:
    """Retrieval between speech and text, by the protocol of speech and images with texts in the place of images.

    Texts that differ in case and punctuation alone are one. Clips without a text are neither queries nor in the
    gallery.
    """

    # measures in percent, named as in ``RetrievalMeasures``: the right answer is the clip's own text
    speech_to_text: dict[str, float]
    text_to_speech: dict[str, float]  # the same names: right is any clip of the text
    # clips, texts: number of queries, and size of the gallery, of either direction
    clips: int
    texts: int
    clips_without_text: int  # number of clips that are skipped


@dataclass(frozen=True)
class Reranking:
    """What re-ranking took."""

    first: int  # number of results of each query that are re-ranked
    seconds: float  # a query, in the fusion encoder; files and their features are read before


@dataclass(frozen=True)
class EvaluationResult:
    """The result of ``evaluate``.

    Attributes:
        split: name of the split.
        overall: measures of all its clips and images.
        groups: by column, then by its value: measures of that group against the full gallery.
        twin_accuracy: for a corpus with hard twins (column ``twin_of``).
        speech_text: for a model with a text encoder, if the manifest has texts.
        word_errors: of the recognizer of a cascade, if the manifest has texts.
        encode_speech_seconds, encode_images_seconds: wall time, with decoding; None if vectors were given.
        speech: [N, D] vectors of the rows of the split in order, if kept.
        images: [M, D] vectors of ``manifest.select(split).images()`` in order, if kept.
        rerank: of a result of ``evaluate_reranked``, which has neither hard twins nor texts.
    """

    split: str
    overall: RetrievalMeasures
    groups: dict[str, dict[str, RetrievalMeasures]]
    twin_accuracy: TwinAccuracy | None = None
    speech_text: SpeechText | None = None
    word_errors: WordErrors | None = None
    encode_speech_seconds: float | None = None
    encode_images_seconds: float | None = None
    speech: npt.NDArray[Any] | None = None
    images: npt.NDArray[Any] | None = None
    rerank: Reranking | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the vectors."""
        return {
            "split": self.split,
            "overall": self.overall.to_dict(),
            "by": {column: {value: each.to_dict() for value, each in of.items()} for column, of in self.groups.items()},
            "mteb": mteb_measures(self.overall),
            "twin_accuracy": self.twin_accuracy and self.twin_accuracy.to_dict(),
            "speech_text": self.speech_text and dict(vars(self.speech_text)),
            "word_errors": self.word_errors and self.word_errors.to_dict(),
            "seconds": {"encode_speech": self.encode_speech_seconds, "encode_images": self.encode_images_seconds},
        } | ({} if self.rerank is None else {"rerank": dict(vars(self.rerank))})


def evaluate(
    model: RetrievalModel,
    manifest: Manifest,
    *,
    split: str = "test",
    by: Sequence[str] = (),
    seed: int = 0,
    resamples: int = 1000,
    batch_size: int = 32,
    progress: bool = True,
    keep_vectors: bool = False,
    texts: bool = True,
) -> EvaluationResult:
    """Encodes each clip, each image and each text of a split once, and scores them.

    Args:
        model: the model.
        manifest: of the corpus.
        split: rows to score.
        by: columns whose values divide the queries into groups, each scored against the full gallery.
        seed: of the bootstrap; nothing else is random.
        resamples: bootstrap resamples of the intervals; 0 computes none.
        batch_size: files encoded together. It changes speed, not scores.
        progress: show a progress bar while encoding.
        keep_vectors: return the vectors too.
        texts: score retrieval between speech and text too, where model and manifest have it.

    Raises:
        ManifestError: no such split or column.
        MediaError: a file cannot be decoded.
        SaySeeError: the model gives vectors that are not finite.
    """
    rows = manifest.select(split)
    for column in by:
        rows.column(column)  # raises for an unknown column before the long work
    start = time.perf_counter()
    speech = model.encode_speech([rows.clip_path(row) for row in rows.rows], batch_size=batch_size, progress=progress)
    speech_end = time.perf_counter()
    image_paths = [rows.image_path(row) for row in rows.images()]
    images = model.encode_images(image_paths, batch_size=batch_size, progress=progress)
    images_end = time.perf_counter()
    speech_text = None
    if texts and getattr(model, "has_text", False):
        encode = partial(model.encode_text, batch_size=batch_size, progress=progress)  # type: ignore[attr-defined]
        speech_text = _speech_text(speech, rows, encode)
    return replace(
        evaluate_vectors(speech, images, rows, by=by, seed=seed, resamples=resamples),
        split=split,
        speech_text=speech_text,
        encode_speech_seconds=speech_end - start,
        encode_images_seconds=images_end - speech_end,
        speech=speech if keep_vectors else None,
        images=images if keep_vectors else None,
    )


def evaluate_vectors(
    speech: npt.NDArray[Any],
    images: npt.NDArray[Any],
    rows: Manifest,
    *,
    by: Sequence[str] = (),
    seed: int = 0,
    resamples: int = 1000,
) -> EvaluationResult:
    """Scores vectors ``speech`` [N, D] of the ``rows`` of a split, and ``images`` [M, D] of ``rows.images()``, in
    order.

    Raises ManifestError for no such column, SaySeeError for vectors that do not match the rows, or are not finite.
    """
    number_of_image, image_of_clip = numbered_images(rows)
    if (len(speech), len(images)) != (len(rows), len(number_of_image)):
        vectors, items = f"{len(speech)} speech and {len(images)} image vectors", f"{len(number_of_image)} images"
        raise SaySeeError(f"{vectors} for {len(rows)} clips and {items}: each needs one")
    ranks = retrieval_ranks(speech, images, image_of_clip)
    drawn: dict[str, Any] = {"resamples": resamples, "seed": seed}
    twins = None
    if "twin_of" in rows.extra_columns:
        twin_of_clip = np.array([number_of_image.get(twin, -1) for twin in rows.column("twin_of")])
        twins = _twin_accuracy(speech, images, image_of_clip, twin_of_clip, resamples, seed)
    groups = {column: group_measures(ranks, rows.column(column), **drawn) for column in by}
    return EvaluationResult(", ".join(rows.splits()), retrieval_measures(ranks, **drawn), groups, twins)


def numbered_images(rows: Manifest) -> tuple[dict[str, int], Integers]:
    """By id the number of each image among ``rows.images()``, and [N] that of each clip's image."""
    numbers = {row.image_id: number for number, row in enumerate(rows.images())}
    return numbers, np.array([numbers[row.image_id] for row in rows.rows])


def _twin_accuracy(
    speech: Vectors, images: Vectors, image_of_clip: Integers, twin_of_clip: Integers, resamples: int, seed: int
) -> TwinAccuracy | None:
    """From each clip's image and its twin, -1 for none in the split; None if no image has a twin there."""
    clips = np.flatnonzero(twin_of_clip >= 0)
    if len(clips) == 0:
        return None
    own, twin = image_of_clip[clips], twin_of_clip[clips]
    queries, gallery = unit_vectors(speech)[clips], unit_vectors(images)
    margin = np.einsum("nd,nd->n", queries, gallery[own]) - np.einsum("nd,nd->n", queries, gallery[twin])
    right = 100.0 * (margin > TIE_TOLERANCE)
    with_twin, first = np.unique(own, return_index=True)
    nearest = []
    for start in range(0, len(with_twin), _TILE):
        some = with_twin[start : start + _TILE]
        cosines = gallery[some] @ gallery.T
        cosines[np.arange(len(some)), some] = -np.inf
        nearest.extend(cosines.argmax(axis=1))
    interval = image_interval(right, own, resamples=resamples, seed=seed) if resamples else None
    is_nearest = 100 * float((np.array(nearest) == twin[first]).mean())
    return TwinAccuracy(float(right.mean()), interval, len(clips), is_nearest)


def mteb_measures(measures: RetrievalMeasures) -> dict[str, dict[str, float]]:
    """The measures of each direction under MTEB's names and as MTEB's fractions, 0 to 1.

    ``hit_rate_at_k``: any right answer among the first k, our ``R@k``. ``recall_at_k``: the share of the right answers
    among the first k, our ``shared_recall@k``. ``ndcg_at_10``: our ``nDCG@10``.
    """
    ours = {f"hit_rate_at_{k}": f"R@{k}" for k in CUTOFFS} | {f"recall_at_{k}": f"shared_recall@{k}" for k in CUTOFFS}
    ours |= {"ndcg_at_10": "nDCG@10"}
    found = {way: getattr(measures, way) for way in WAYS}
    return {way: {name: each[own] / 100 for name, own in ours.items()} for way, each in found.items() if each}


def _speech_text(
    speech: npt.NDArray[Any], rows: Manifest, encode: Callable[[list[str]], npt.NDArray[Any]]
) -> SpeechText | None:
    """Retrieval between the clips of rows and their texts; None if no row has a text."""
    normalized = [normalize_text(row.text or "") for row in rows.rows]
    known = [number for number, text in enumerate(normalized) if text]
    if not known:
        return None
    first: dict[str, int] = {}  # the row from which a text is taken
    for number in known:
        first.setdefault(normalized[number], number)
    place = {text: position for position, text in enumerate(first)}
    vectors = encode([rows.rows[number].text or "" for number in first.values()])
    own = [place[normalized[number]] for number in known]
    found = retrieval_measures(retrieval_ranks(speech[known], vectors, own), resamples=0)
    assert found.image_to_speech is not None  # each text has a clip
    without = len(normalized) - len(known)
    return SpeechText(found.speech_to_image, found.image_to_speech, len(known), len(first), without)
