"""A model and a manifest in, the retrieval measures of one split out.

    result = evaluate(model, Manifest.read("flickr8k/manifest.parquet"), split="test", by=["speaker"])
    rich.print(to_table(result))

Every clip of the split is a query, whole and as it is: no crop, no randomness. Every image is in the gallery once, by
its image id. How answers are counted is told in ``recall``.
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
    group_measures,
    image_interval,
    retrieval_measures,
    retrieval_ranks,
    unit_vectors,
)
from saysee.evaluation.word_errors import WordErrors

TWIN_COLUMN = "twin_of"


class Encoder(Protocol):
    """What evaluation asks of a model: ``SpeechImageModel`` is one."""

    def encode_speech(
        self, clips: Sequence[os.PathLike[str]], /, *, batch_size: int, progress: bool
    ) -> npt.NDArray[Any]:
        """Sound files to vectors [N, D], in order."""

    def encode_images(
        self, pictures: Sequence[os.PathLike[str]], /, *, batch_size: int, progress: bool
    ) -> npt.NDArray[Any]:
        """Picture files to vectors [M, D], in order."""


@dataclass(frozen=True)
class TwinAccuracy:
    """Whether speech is held closer to its picture than to the hard twin, which differs from it in one thing.

    Attributes:
        accuracy: percent of clips that score their own picture above its twin; a tie is a miss. Chance is 50.
        interval: 95 % bootstrap interval of it over pictures, (low, high); None when not asked for.
        clips: number of clips counted: those of the pictures whose twin is in the split too.
        nearest: percent of these pictures whose nearest other picture of the gallery, by their image vectors, is the
            twin: whether the image vectors put hard twins side by side, as they should, or mix them among others.
    """

    accuracy: float
    interval: tuple[float, float] | None
    clips: int
    nearest: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        interval = None if self.interval is None else list(self.interval)
        return {
            "accuracy": self.accuracy,
            "interval": interval,
            "clips": self.clips,
            "chance": 50.0,
            "twin_is_nearest_picture": self.nearest,
        }


@dataclass(frozen=True)
class EvaluationResult:
    """What ``evaluate`` found.

    Attributes:
        split: name of the split.
        overall: the measures over all its clips and images.
        groups: by column, then by value of it: the measures of that group's queries against the full gallery.
        twin_accuracy: for corpora that have hard twins (the column ``twin_of``), else None.
        word_errors: of a cascade's recogniser, where the manifest has texts, else None.
        encode_speech_seconds: wall time that encoding the clips took, decoding included; None if vectors were given.
        encode_images_seconds: the same of the pictures.
        speech: [N, D] vectors of the split's rows in order, if they were kept.
        images: [M, D] vectors of ``manifest.select(split).images()`` in order, if they were kept.
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
    model: Encoder,
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
    """Encode a split, each clip and each distinct image once, and score it.

    Args:
        model: encodes files; see ``Encoder``.
        manifest: of the corpus.
        split: which rows to score.
        by: columns whose values divide the queries into groups, each scored against the full gallery.
        seed: of the bootstrap; nothing else is random.
        resamples: bootstrap draws for the intervals; 0 leaves them out.
        batch_size: files encoded together. It changes speed, not scores.
        progress: show a bar on stderr while encoding.
        keep_vectors: return the vectors too.

    Raises:
        ManifestError: no such split or column.
        MediaError: a file cannot be decoded.
        SaySeeError: the model gives vectors that are not finite.
    """
    rows = manifest.select(split)
    for column in by:
        rows.column(column)  # an unknown column is refused before the long work
    start = time.perf_counter()
    speech = model.encode_speech([rows.clip_path(row) for row in rows.rows], batch_size=batch_size, progress=progress)
    speech_end = time.perf_counter()
    images = model.encode_images(
        [rows.image_path(row) for row in rows.images()], batch_size=batch_size, progress=progress
    )
    images_end = time.perf_counter()
    scored = evaluate_vectors(speech, images, rows, by=by, seed=seed, resamples=resamples)
    return replace(
        scored,
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
    """Score vectors that are there already: of sound made noisy, say, or from another model.

    Args:
        speech: [N, D] one vector for each row of ``rows``, in order.
        images: [M, D] one vector for each image of ``rows.images()``, in order.
        rows: the rows of one split, as ``manifest.select(split)`` gives them.
        by: as in ``evaluate``.
        seed: as in ``evaluate``.
        resamples: as in ``evaluate``.

    Raises:
        ManifestError: no such column.
        SaySeeError: vectors that do not fit the rows, or are not finite.
    """
    number_of_image = {row.image_id: number for number, row in enumerate(rows.images())}
    if len(speech) != len(rows.rows) or len(images) != len(number_of_image):
        raise SaySeeError(
            f"{len(speech)} speech and {len(images)} image vectors were given "
            f"for {len(rows.rows)} clips and {len(number_of_image)} images: each needs one"
        )
    image_of_clip = np.array([number_of_image[row.image_id] for row in rows.rows])
    ranks = retrieval_ranks(speech, images, image_of_clip)
    return EvaluationResult(
        split=", ".join(rows.splits()),
        overall=retrieval_measures(ranks, resamples=resamples, seed=seed),
        groups={column: group_measures(ranks, rows.column(column), resamples=resamples, seed=seed) for column in by},
        twin_accuracy=_twin_accuracy(speech, images, image_of_clip, rows, number_of_image, resamples, seed),
    )


def to_table(result: EvaluationResult) -> Table:
    """The result for people: a row over all, then one a group; the interval is that of the mean R@1."""
    table = Table(title=f"Retrieval on {result.split!r}, percent", caption=_caption(result))
    _add_columns(table, "queries")
    table.add_row("all", *_cells(result.overall), end_section=True)
    for column, values in result.groups.items():
        for value, measures in values.items():
            # Text, because a value of a manifest may look like markup.
            table.add_row(Text(f"{column} = {value}"), *_cells(measures))
        table.add_section()
    return table


def to_matrix(results: Mapping[str, EvaluationResult]) -> Table:
    """The results of one model on several corpora for people: a row a corpus, under the name given for it.

    The interval is that of the mean R@1; the word error rate is there where a cascade's recogniser has one.
    """
    splits = sorted({repr(result.split) for result in results.values()})
    table = Table(title=f"Retrieval on {', '.join(splits)}, percent; each corpus against its own gallery")
    _add_columns(table, "corpus")
    has_words = any(result.word_errors for result in results.values())
    if has_words:
        table.add_column("word errors", justify="right")
    for name, result in results.items():
        words = "–" if result.word_errors is None else f"{result.word_errors.rate:.1f}"
        table.add_row(Text(name), *_cells(result.overall), *([words] if has_words else []))
    return table


def corpus_names(manifests: Sequence[str], splits: Sequence[str] = ()) -> list[str]:
    """A short name for each path of a manifest: its stem, the folder's name for ``manifest``, the path if two agree.

    Where ``splits``, one for each path, are not all the same, ":SPLIT" stands behind it.
    """
    paths = [Path(manifest) for manifest in manifests]
    names = [path.absolute().parent.name if path.stem == "manifest" else path.stem for path in paths]
    places = dict(zip(map(str, paths), names, strict=True))
    names = [
        name if list(places.values()).count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)
    ]
    if len(set(splits)) < 2:
        return names
    return [f"{name}:{split}" for name, split in zip(names, splits, strict=True)]


def _add_columns(table: Table, first: str) -> None:
    table.add_column(first)
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
    overall = result.overall
    parts = [f"gallery: {overall.gallery_images:,} images, {overall.gallery_clips:,} clips"]
    if overall.chance_mean_recall_at_1 is not None:
        parts.append(f"chance mean R@1: {overall.chance_mean_recall_at_1:.2f}")
    if result.twin_accuracy is not None:
        twins = result.twin_accuracy
        parts.append(
            f"hard twins: {twins.accuracy:.1f} of {twins.clips:,} clips (chance 50); nearest picture is the twin: "
            f"{twins.nearest:.1f}"
        )
    if result.word_errors is not None:
        words = result.word_errors
        parts.append(f"word error rate: {words.rate:.1f} ({words.words:,} words in {words.clips:,} clips)")
    return " · ".join(parts)


def _twin_accuracy(
    speech: npt.NDArray[Any],
    images: npt.NDArray[Any],
    image_of_clip: npt.NDArray[np.int64],
    rows: Manifest,
    number_of_image: dict[str, int],
    resamples: int,
    seed: int,
) -> TwinAccuracy | None:
    if TWIN_COLUMN not in rows.extra_columns:
        return None
    twins = [number_of_image.get(twin, -1) if twin is not None else -1 for twin in rows.column(TWIN_COLUMN)]
    twin_of_clip = np.array(twins, dtype=np.int64)
    clips = np.flatnonzero(twin_of_clip >= 0)
    if len(clips) == 0:
        return None
    own, twin = image_of_clip[clips], twin_of_clip[clips]
    queries, gallery = unit_vectors(speech)[clips], unit_vectors(images)
    margin = np.einsum("nd,nd->n", queries, gallery[own]) - np.einsum("nd,nd->n", queries, gallery[twin])
    hits = 100.0 * (margin > TIE_TOLERANCE)
    twin_of = dict(zip(own.tolist(), twin.tolist(), strict=True))
    pictures = np.array(list(twin_of))
    alike = gallery[pictures] @ gallery.T
    alike[np.arange(len(pictures)), pictures] = -np.inf
    return TwinAccuracy(
        accuracy=float(hits.mean()),
        interval=image_interval(hits, own, resamples=resamples, seed=seed) if resamples else None,
        clips=len(clips),
        nearest=100 * float((alike.argmax(axis=1) == np.array(list(twin_of.values()))).mean()),
    )
