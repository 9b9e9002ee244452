"""Exact search among few vectors; trial queries and recall, by which an approximate search is set when it is built."""

from collections.abc import Callable, Iterable

import numpy as np

from saysee.search.index.store import Ids, Vectors

RECALL, RECALL_K = 0.995, 10  # least recall@10 of the trial queries; what is promised of real queries is 0.99

_MOVE = 0.5
_PRODUCTS_AT_ONCE = 1 << 24  # similarities held at once, 64 MB


def best_rows(queries: Vectors, ids: Ids, vectors: Vectors, k: int) -> list[Ids]:
    """For each query of [Q, D] the ids of the ``k`` nearest vectors of [N, D], and of those as near as the last."""
    found: list[Ids] = []
    k = min(k, len(ids))
    at_once = max(1, _PRODUCTS_AT_ONCE // max(1, len(ids)))
    for start in range(0, len(queries), at_once):
        scores = queries[start : start + at_once] @ vectors.T
        least = -np.partition(-scores, k - 1, axis=1)[:, k - 1] if k else np.zeros(len(scores), np.float32)
        found += [ids[row >= last] for row, last in zip(scores, least, strict=True)]
    return found


def trial_queries(vectors: Vectors, rng: np.random.Generator) -> Vectors:
    """Indexed vectors [N, D], each moved by half of the difference between two others, as queries [N, D].

    Queries of speech or text do not lie where images do, so images themselves would be too easy. So would noise of all
    dimensions be: images fill few of them, and a move out of these changes no order. The differences between images lie
    where images do.
    """
    return np.asarray(vectors + _MOVE * (rng.permutation(vectors) - rng.permutation(vectors)), np.float32)


def least_probes(clusters: int, found: Callable[[int], Iterable[Ids]], truth: Iterable[Ids]) -> int:
    """How many clusters must be searched, of 8, 16 and so on, for the recall of what is ``found`` by so many."""
    probes = 8
    while probes < clusters and recall(found(probes), truth) < RECALL:
        probes *= 2
    return min(probes, clusters)


def recall(found: Iterable[Ids], truth: Iterable[Ids]) -> float:
    """Mean share of the right ids that were found."""
    return float(np.mean([np.isin(right, got).mean() for got, right in zip(found, truth, strict=True)]))
