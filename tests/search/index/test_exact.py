"""Queries that an approximate search is tried on, and the recall that it is held to."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from saysee.search.index.exact import recall, trial_queries


def test_trial_queries_leave_their_vectors_and_stay_where_vectors_lie():
    rng = np.random.default_rng(0)
    few = rng.standard_normal((8, 64)).astype(np.float32)  # eight of the dimensions are used
    vectors = rng.standard_normal((200, 8)).astype(np.float32) @ few
    queries = trial_queries(vectors, rng)
    assert queries.dtype == np.float32
    inside, *_ = np.linalg.lstsq(few.T, queries.T, rcond=None)
    np.testing.assert_allclose((few.T @ inside).T, queries, atol=1e-4)
    moved = np.linalg.norm(queries - vectors, axis=1) / np.linalg.norm(vectors, axis=1).mean()
    assert 0.5 < np.median(moved) < 1


def test_recall_is_the_mean_share_of_right_ids():
    truth = [np.array([1, 2, 3, 4]), np.array([5, 6])]
    found = [np.array([4, 9, 1]), np.array([6, 5, -1])]
    assert recall(found, truth) == (0.5 + 1) / 2


def test_faiss_is_loaded_only_where_a_fast_copy_is_used():
    program = "import sys, saysee.search.index.index; print({'faiss', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"
