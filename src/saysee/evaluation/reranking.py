"""Evaluation with the first results of each query re-ranked by the model's fusion encoder.

    before = evaluate(encoder, manifest, keep_vectors=True)
    after = evaluate_reranked(encoder, manifest, before, first=50)

Queries, galleries and the rules of ``recall`` are the same: of the first results, a wrong one that scores within the
tolerance of a right one still precedes it, and what is beyond them keeps its rank.

Shapes: N clips, M images, P pairs, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from saysee.data.manifest import Manifest
from saysee.encoding.encoder import Encoder
from saysee.encoding.reranking import check_can_rerank, match, reranked_score, tokens_of
from saysee.errors import SaySeeError
from saysee.evaluation.protocols import EvaluationResult, Reranking, numbered_images
from saysee.evaluation.recall import (
    TIE_TOLERANCE,
    Mask,
    RetrievalRanks,
    Vectors,
    group_measures,
    retrieval_measures,
    retrieval_ranks,
    unit_vectors,
)
from saysee.evaluation.statistics import Floats, Integers
from saysee.log import progress_bar
from saysee.model.features import ImageFeatures

LogitsOf = Callable[[Integers, Integers], Any]
"""The logits [P] of pairs of clips [P] and images [P], by their numbers, ascending by clip."""

_QUERIES = 256  # that are compared with the whole gallery at a time


def evaluate_reranked(
    encoder: Encoder,
    manifest: Manifest,
    before: EvaluationResult,
    first: int,
    *,
    by: Sequence[str] = (),
    seed: int = 0,
    resamples: int = 1000,
    progress: bool = True,
) -> EvaluationResult:
    """Scores a split again, with the ``first`` results of each query of both directions re-ranked.

    The model has a fusion encoder that was trained with matching; ``before`` is what ``evaluate`` returned with
    ``keep_vectors``. The rest is as for ``evaluate``: the same seed gives paired intervals. Raises SaySeeError if the
    model cannot re-rank, ``before`` has no vectors or ``first`` is below 1; MediaError if a file cannot be decoded.
    """
    check_can_rerank(encoder)
    if first < 1:
        raise SaySeeError(f"first is {first}; it must be at least 1")
    if before.speech is None or before.images is None:
        raise SaySeeError("before has no vectors; call evaluate(…, keep_vectors=True)")
    rows = manifest.select(before.split)
    number_of_image, image_of_clip = numbered_images(rows)
    judge = _Judge(encoder, rows, progress)
    ranks = retrieval_ranks(before.speech, before.images, image_of_clip)
    ranks = rerank(ranks, before.speech, before.images, first, judge)
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    groups = {column: group_measures(ranks, rows.column(column), **options) for column in by}
    took = Reranking(first, judge.seconds / max(judge.pairs, 1) * min(first, len(number_of_image)))
    return EvaluationResult(before.split, retrieval_measures(ranks, **options), groups, rerank=took)


def rerank(ranks: RetrievalRanks, speech: Vectors, images: Vectors, first: int, logits_of: LogitsOf) -> RetrievalRanks:
    """The ranks by cosine of speech [N, D] and images [M, D], with the ``first`` results ordered by ``reranked_score``.

    ``logits_of`` is called once, with every pair that some query needs. A query without a right answer among its first
    results needs none, as its ranks stay.
    """
    speech, images = unit_vectors(speech), unit_vectors(images)
    own, queries, count = ranks.image_of_clip, ranks.query_images, ranks.gallery_images
    of_clips = list(_shortlists(speech, own, images, np.arange(count), first))
    of_images = list(_shortlists(images[queries], queries, speech, own, first))
    pairs = [each.query * count + each.items for each in of_clips]
    pairs += [each.items * count + queries[each.query] for each in of_images]
    codes, place = np.unique(np.concatenate([np.empty(0, np.int64), *pairs]), return_inverse=True)
    logits = np.asarray(logits_of(codes // count, codes % count), np.float64)[place]
    of_each = iter(np.split(logits, np.cumsum([len(each) for each in pairs])))
    speech_to_image, clip_positions = ranks.speech_to_image.copy(), ranks.clip_positions.copy()
    for each in of_clips:
        speech_to_image[each.query] = each.places(next(of_each))[0]
    for each in of_images:
        # Of an image's own clips with no other between them, ``ranks`` may hold any for the first.
        clips = np.flatnonzero((own == queries[each.query]) & (ranks.clip_positions <= first))
        clip_positions[clips[np.argsort(ranks.clip_positions[clips])]] = each.places(next(of_each))
    return replace(ranks, speech_to_image=speech_to_image, clip_positions=clip_positions)


class _Shortlist(NamedTuple):
    """The first results of a query, by their numbers in the gallery, with cosines and whether each is right."""

    query: int
    items: Integers
    cosines: Floats
    right: Mask

    def places(self, logits: Floats) -> Integers:
        """The places of the right ones when re-ranked, from 1, ascending."""
        return np.flatnonzero(self.right[_order(reranked_score(self.cosines, logits), self.right)]) + 1


def _shortlists(
    queries: Floats, labels: Integers, gallery: Floats, gallery_labels: Integers, first: int
) -> Iterator[_Shortlist]:
    """Of each query with a right answer, one of the same label, among its first results."""
    for start in range(0, len(queries), _QUERIES):
        for query, cosines in enumerate(queries[start : start + _QUERIES] @ gallery.T, start):
            right = gallery_labels == labels[query]
            items = _order(cosines, right)[:first]
            if right[items].any():
                yield _Shortlist(query, items, cosines[items], right[items])


def _order(scores: Floats, right: Mask) -> Integers:
    """The best first; a wrong one that scores within the tolerance of a right one precedes it."""
    return np.lexsort((right, TIE_TOLERANCE * right - scores))


class _Judge:
    """Computes logits of ``pairs`` of clips and images of some rows, in ``seconds`` of the fusion encoder.

    The tokens of all images are in memory, in 16 bits as in a cache; those of a clip only while its pairs are computed.
    """

    def __init__(self, encoder: Encoder, rows: Manifest, progress: bool) -> None:
        self.encoder, self._progress, self.pairs, self.seconds = encoder, progress, 0, 0.0
        self._clips = tokens_of(encoder, "clip", [str(rows.clip_path(row)) for row in rows.rows], progress)
        paths = [str(rows.image_path(row)) for row in rows.images()]
        tokens, vectors, patches = tokens_of(encoder, "image", paths, progress), [], []
        with progress_bar("reading images", len(paths), enabled=progress) as bar:
            for number in range(len(paths)):
                image = tokens(number)
                vectors.append(image.vector)
                patches.append(image.patches.half())
                bar.update()
        self._vectors, self._patches = torch.cat(vectors), torch.cat(patches)

    def __call__(self, clips: Integers, images: Integers) -> Floats:
        """See :data:`LogitsOf`."""
        if not len(clips):
            return np.empty(0)
        logits: list[Any] = []
        numbers, starts = np.unique(clips, return_index=True)
        with progress_bar("re-ranking", len(numbers), enabled=self._progress) as bar:
            for number, of_clip in zip(numbers, np.split(images, starts[1:]), strict=True):
                speech, chosen = self._clips(int(number)), torch.from_numpy(of_clip).to(self._vectors.device)
                seen = ImageFeatures(self._vectors[chosen], self._patches[chosen].float())
                begin = time.perf_counter()
                logits.append(match(self.encoder, speech, seen))
                self.seconds += time.perf_counter() - begin
                self.pairs += len(of_clip)
                bar.update()
        return np.concatenate(logits)
