"""Two rankings become one by reciprocal rank fusion, checked against its definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from saysee import Index
from saysee.search.index import ranking
from saysee.search.index.imported_vectors import index_vectors
from saysee.search.index.readers.files import read_files
from saysee.search.index.store import Store
from saysee.search.index.updating import update_index

COUNT, DIMENSION = 90, 24


@pytest.fixture
def store_of(encoder, tmp_path) -> Callable[[np.ndarray], Store]:
    """Stores rows 1, 2, … of these vectors."""

    def make(vectors: np.ndarray) -> Store:
        np.save(tmp_path / "vectors.npy", vectors)
        (tmp_path / "ids.txt").write_text("".join(f"{number}.jpg\n" for number in range(1, len(vectors) + 1)))
        given = read_files(tmp_path / "vectors.npy", tmp_path / "ids.txt", DIMENSION)
        index_vectors(encoder, given, tmp_path / "of vectors")
        return Index.open(tmp_path / "of vectors").store

    return make


def units(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def by_definition(vectors: np.ndarray, queries: np.ndarray, depth: int) -> Iterator[dict[int, float]]:
    """For each query of [W, Q, D] the fused score of each row, the best first."""
    for of_query in queries.transpose(1, 0, 2):
        scores: dict[int, float] = {}
        for vector in of_query:
            for rank, row in enumerate(np.argsort(-(vectors @ vector), kind="stable")[:depth] + 1, 1):
                scores[int(row)] = scores.get(int(row), 0) + 1 / (60 + rank)
        yield dict(sorted(scores.items(), key=lambda pair: (-pair[1], pair[0])))


@pytest.mark.parametrize("depth", [20, ranking.DEPTH])
def test_the_fused_score_is_the_sum_of_reciprocal_ranks(store_of, monkeypatch, depth: int) -> None:
    monkeypatch.setattr(ranking, "DEPTH", depth)
    vectors, queries = units(COUNT, 1), units(6, 2).reshape(2, 3, DIMENSION)
    store = store_of(vectors)
    expected = list(by_definition(vectors, queries, depth))
    for found, right in zip(ranking.nearest(store, queries, "image", COUNT), expected, strict=True):
        assert [item.id for item, _ in found] == list(right)
        np.testing.assert_allclose([score for _, score in found], list(right.values()))
    few = ranking.nearest(store, queries, "image", 4, offset=3)
    assert [[item.id for item, _ in found] for found in few] == [list(right)[3:7] for right in expected]


def test_of_equal_fused_scores_the_earlier_row_comes_first(store_of) -> None:
    store = store_of(np.eye(6, DIMENSION, dtype=np.float32)[[3, 1, 0, 2]])
    tied = np.eye(6, DIMENSION, dtype=np.float32)[[[0], [1]]]  # each is the first by one, and as far by the other
    found = ranking.nearest(store, tied, "image", 2)[0]
    assert [item.path for item, _ in found] == ["2.jpg", "3.jpg"]


def test_files_of_equal_content_are_one_hit(encoder, photos: Path, tmp_path: Path) -> None:
    for copy in ("a.png", "b.png"):
        (photos / copy).write_bytes((photos / "work" / "5.png").read_bytes())
    update_index(encoder, photos, tmp_path / "index")
    found = ranking.nearest(Index.open(tmp_path / "index").store, units(2, 3)[:, None], "image", 10)[0]
    assert sorted(item.copies for item, _ in found) == [1, 1, 1, 1, 1, 3]


def test_one_vector_is_an_ordinary_search(store_of) -> None:
    store = store_of(units(COUNT, 1))
    query = units(1, 5)
    assert ranking.nearest(store, query[None], "image", 5, filters=()) == store.nearest(query, "image", 5)
