"""Re-ranking: the first results of a search in a new order, by the fusion encoder of a model that was trained with
matching.

Vectors find the first results (coarse); the fusion encoder reads the frames of the clip and the patches of each image
together (fine). What then counts is :func:`reranked_score`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from saysee.encoding.encoder import Encoder
from saysee.encoding.sides import Kind
from saysee.errors import SaySeeError
from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.model.fusion import FusionEncoder

LOGIT_WEIGHT = 0.02
"""Of the logit beside the cosine. Chosen on 1,000 clips of the validation split of the study's scenes, whose first 50
images were re-ranked: R@1 from speech to image is 61.9 before, 63.6 with 0.02, 63.4 with 0.05, 28.4 by logits alone."""
PAIRS = 64
"""Pairs that go through the fusion encoder together."""

Tokens = Callable[[int], Any]


def check_can_rerank(encoder: Encoder) -> FusionEncoder:
    """The fusion encoder that re-ranks; SaySeeError if the model has none that was trained with matching."""
    if not can_rerank(encoder):
        raise SaySeeError(
            f"the model {encoder.name} cannot re-rank; train one with matching.weight 1 and training.save_fusion true"
        )
    return encoder.model.fusion  # type: ignore[no-any-return]


def can_rerank(encoder: Encoder) -> bool:
    """Whether the model has a fusion encoder that was trained with matching."""
    return getattr(getattr(encoder.model, "fusion", None), "score", None) is not None


def reranked_score(cosine: Any, logit: Any) -> Any:
    """The score by which the first results are ordered: cosine + ``LOGIT_WEIGHT`` * logit, which is not a cosine."""
    return cosine + LOGIT_WEIGHT * logit


def match(encoder: Encoder, speech: SpeechFeatures, images: ImageFeatures) -> NDArray[np.float32]:
    """Logits [N] of whether clip and image belong together: of one clip and N images, or of N clips and one image.

    Raises SaySeeError as :func:`check_can_rerank`, and if a logit is not finite.
    """
    fusion = check_can_rerank(encoder)
    parts = []
    with torch.inference_mode(), encoder.evaluating():
        for start in range(0, max(len(speech.vector), len(images.vector)), PAIRS):
            clips, others = (_rows(side, slice(start, start + PAIRS)) for side in (speech, images))
            count = max(len(clips.vector), len(others.vector))
            numbers = torch.arange(count, device=clips.vector.device)
            found = fusion.match(clips, others, numbers % len(clips.vector), numbers % len(others.vector))
            parts.append(found.float().cpu().numpy())
    logits = np.concatenate(parts)
    if not np.isfinite(logits).all():
        raise SaySeeError(f"the fusion encoder of {encoder.name} computes logits that are not finite")
    return np.asarray(logits, np.float32)


def _rows(side: Any, rows: slice) -> Any:
    """Some rows of the features of a side; all of a batch of one."""
    return side if len(side.vector) == 1 else type(side)(*(value[rows] for value in vars(side).values()))


def tokens_of(encoder: Encoder, kind: Kind, paths: Sequence[Any], progress: bool = True) -> Tokens:
    """A function from the number of a file to its tokens as :meth:`Encoder.tokens`, from the cache if there is one.

    Raises MediaError if a file cannot be used; without a cache, when its tokens are asked for.
    """
    if encoder.cache is None:
        return lambda number: encoder.tokens(kind, paths[number])
    features, side = encoder.encode(kind, paths, "features", progress=progress), encoder.side(kind)

    def cached(number: int) -> Any:
        with encoder.evaluating():
            return side.tokens_of_features([features[number]])

    return cached
