"""How widely an approximate search must look: the recall it must reach, and queries to try it on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from saysee.search.index.store import Vectors

QUERIES, K, RECALL = 256, 10, 0.995
"""The last is the least recall@10 of the trial; what is promised of real queries is 0.99."""
_MOVE = 0.5


def trial_queries(vectors: Vectors, rng: np.random.Generator) -> Vectors:
    """Indexed vectors [N, D], each moved by half of the difference between two others, as queries [N, D].

    Queries of speech or text do not lie where pictures do, so pictures themselves would be too easy. So would noise of
    all dimensions be: pictures fill few of them, and a move out of these changes no order. The differences between
    pictures lie where pictures do.
    """
    return np.asarray(vectors + _MOVE * (rng.permutation(vectors) - rng.permutation(vectors)), np.float32)


def recall(found: Iterable[NDArray[np.int64]], truth: Iterable[NDArray[np.int64]]) -> float:
    """Mean share of the right ids that were found."""
    return float(np.mean([np.isin(right, got).mean() for got, right in zip(found, truth, strict=True)]))
