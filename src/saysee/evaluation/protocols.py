"""Evaluation of a model on one split of a manifest.

    result = evaluate(model, Manifest.read("flickr8k/manifest.parquet"), split="test", by=["speaker"])
    rich.print(to_table(result))

Every clip of the split is a query, uncropped; the gallery holds each image once, by its image id. ``recall`` describes
how right answers are counted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text

from saysee.data.manifest import Manifest
from saysee.errors import SaySeeError
from saysee.evaluation.recall import (
    CUTOFFS,
    TIE_TOLERANCE,
    RetrievalMeasures,
    Vectors,
    group_measures,
    retrieval_measures,
    retrieval_ranks,
    unit_vectors,
)
from saysee.evaluation.statistics import Integers, image_interval
from saysee.evaluation.word_errors import WordErrors


class RetrievalModel(Protocol):
    """A model that can be evaluated, such as ``SpeechImageModel``."""

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
    """Discrimination of hard twins, images that differ in one thing.

    Attributes:
        accuracy: percent of clips that score their own image above its twin; a tie is an error. Chance is 50.
        interval: its 95 % bootstrap interval over images, (low, high); None if not asked for.
        clips: number of clips of images whose twin is in the split too.
        nearest: percent of these images whose twin is the nearest other image of the gallery: whether the image
            vectors place twins next to each other.
    """

    accuracy: float
    interval: tuple[float, float] | None
    clips: int
    nearest: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "accuracy": self.accuracy,
            "interval": self.interval and list(self.interval),
            "clips": self.clips,
            "chance": 50.0,
            "twin_is_nearest_picture": self.nearest,
        }


@dataclass(frozen=True)
class EvaluationResult:
    """The result of ``evaluate``.

    Attributes:
        split: name of the split.
        overall: measures of all its clips and images.
        groups: by column, then by its value: measures of that group against the full gallery.
        twin_accuracy: for a corpus with hard twins (column ``twin_of``).
        word_errors: of the recognizer of a cascade, if the manifest has texts.
        encode_speech_seconds, encode_images_seconds: wall time, with decoding; None if vectors were given.
        speech: [N, D] vectors of the rows of the split in order, if kept.
        images: [M, D] vectors of ``manifest.select(split).images()`` in order, if kept.
    """

    split: str
    overall: RetrievalMeasures
    groups: dict[str, dict[str, RetrievalMeasures]]
    twin_accuracy: TwinAccuracy | None = None
    word_errors: WordErrors | None = None
    encode_speech_seconds: float | None = None
    encode_images_seconds: float | None = None
    speech: npt.NDArray[Any] | None = None
    images: npt.NDArray[Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the vectors."""
        return {
            "split": self.split,
            "overall": self.overall.to_dict(),
            "by": {
                column: {value: measures.to_dict() for value, measures in values.items()}
                for column, values in self.groups.items()
            },
            "twin_accuracy": self.twin_accuracy and self.twin_accuracy.to_dict(),
            "word_errors": self.word_errors and self.word_errors.to_dict(),
            "seconds": {"encode_speech": self.encode_speech_seconds, "encode_images": self.encode_images_seconds},
        }


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
) -> EvaluationResult:
    """Encodes each clip and each image of a split once, and scores them.

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
    return replace(
        evaluate_vectors(speech, images, rows, by=by, seed=seed, resamples=resamples),
        split=split,
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
    """Scores existing vectors as ``evaluate`` does.

    Args:
        speech: [N, D] one vector for each row of ``rows``, in order.
        images: [M, D] one vector for each image of ``rows.images()``, in order.
        rows: of one split, from ``manifest.select(split)``.

    Raises:
        ManifestError: no such column.
        SaySeeError: vectors that do not match the rows, or are not finite.
    """
    number_of_image = {row.image_id: number for number, row in enumerate(rows.images())}
    if len(speech) != len(rows.rows) or len(images) != len(number_of_image):
        raise SaySeeError(
            f"{len(speech)} speech and {len(images)} image vectors for {len(rows.rows)} clips and "
            f"{len(number_of_image)} images: each needs one"
        )
    image_of_clip = np.array([number_of_image[row.image_id] for row in rows.rows])
    ranks = retrieval_ranks(speech, images, image_of_clip)
    twins = None
    if "twin_of" in rows.extra_columns:
        twin_of_clip = np.array([number_of_image.get(twin, -1) for twin in rows.column("twin_of")])
        twins = _twin_accuracy(speech, images, image_of_clip, twin_of_clip, resamples, seed)
    return EvaluationResult(
        split=", ".join(rows.splits()),
        overall=retrieval_measures(ranks, resamples=resamples, seed=seed),
        groups={column: group_measures(ranks, rows.column(column), resamples=resamples, seed=seed) for column in by},
        twin_accuracy=twins,
    )


def to_table(result: EvaluationResult) -> Table:
    """One result as a table: a row for all queries and one a group; the interval is that of the mean R@1."""
    table = Table("queries", title=f"Retrieval on {result.split!r}, percent", caption=_caption(result))
    _add_columns(table)
    table.add_row("all", *_cells(result.overall), end_section=True)
    for column, values in result.groups.items():
        for value, measures in values.items():
            table.add_row(Text(f"{column} = {value}"), *_cells(measures))  # Text: a value may contain rich's markup
        table.add_section()
    return table


def to_matrix(results: Mapping[str, EvaluationResult]) -> Table:
    """The results of one model on several corpora as a table: a row a corpus, by its name.

    The interval is that of the mean R@1; a cascade has a column of word error rates.
    """
    splits = sorted({repr(result.split) for result in results.values()})
    table = Table("corpus", title=f"Retrieval on {', '.join(splits)}, percent; each corpus against its own gallery")
    _add_columns(table)
    has_words = any(result.word_errors for result in results.values())
    if has_words:
        table.add_column("word error rate", justify="right")
    for name, result in results.items():
        rate = "–" if result.word_errors is None else f"{result.word_errors.rate:.1f}"
        table.add_row(Text(name), *_cells(result.overall), *([rate] if has_words else []))
    return table


def corpus_names(manifests: Sequence[str], splits: Sequence[str] = ()) -> list[str]:
    """A short name for each manifest: its stem, or its folder if the stem is ``manifest``; the path if two are equal.

    If the ``splits``, one for each manifest, differ, ":SPLIT" is appended.
    """
    paths = [Path(manifest) for manifest in manifests]
    names = [path.absolute().parent.name if path.stem == "manifest" else path.stem for path in paths]
    distinct = list(dict(zip(paths, names, strict=True)).values())
    names = [name if distinct.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    if len(set(splits)) < 2:
        return names
    return [f"{name}:{split}" for name, split in zip(names, splits, strict=True)]


def _add_columns(table: Table) -> None:
    for name in ("clips", "images", *(f"{way} R@{k}" for way in ("S→I", "I→S") for k in CUTOFFS), "mean R@1", "95 %"):
        table.add_column(name, justify="right")


def _cells(measures: RetrievalMeasures) -> list[str]:
    to_image, to_speech = measures.speech_to_image, measures.image_to_speech
    mean, interval = measures.mean_recall_at_1, (measures.interval or {}).get("mean_R@1")
    return [
        f"{measures.clips:,}",
        f"{measures.images:,}",
        *(f"{to_image[f'R@{k}']:.1f}" for k in CUTOFFS),
        *("–" if to_speech is None else f"{to_speech[f'R@{k}']:.1f}" for k in CUTOFFS),
        "–" if mean is None else f"{mean:.1f}",
        "–" if interval is None else f"{interval[0]:.1f} to {interval[1]:.1f}",
    ]


def _caption(result: EvaluationResult) -> str:
    overall, twins, words = result.overall, result.twin_accuracy, result.word_errors
    parts = [f"gallery: {overall.gallery_images:,} images, {overall.gallery_clips:,} clips"]
    if overall.chance_mean_recall_at_1 is not None:
        parts.append(f"chance mean R@1: {overall.chance_mean_recall_at_1:.2f}")
    if twins is not None:
        parts.append(f"hard twins: {twins.accuracy:.1f} of {twins.clips:,} clips (chance 50)")
        parts.append(f"nearest image is the twin: {twins.nearest:.1f}")
    if words is not None:
        parts.append(f"word error rate: {words.rate:.1f} ({words.words:,} words in {words.clips:,} clips)")
    return " · ".join(parts)


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
    cosines = gallery[with_twin] @ gallery.T
    cosines[np.arange(len(with_twin)), with_twin] = -np.inf
    return TwinAccuracy(
        accuracy=float(right.mean()),
        interval=image_interval(right, own, resamples=resamples, seed=seed) if resamples else None,
        clips=len(clips),
        nearest=100 * float((cosines.argmax(axis=1) == twin[first]).mean()),
    )
