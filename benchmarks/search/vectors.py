"""Synthetic vectors with the structure of image vectors, and queries near them.

Vectors are clustered in scenes around topics, in a subspace of 64 dimensions with a falling spectrum, plus noise in all
dimensions. Independent random vectors would be meaningless: they have no neighbors, and no approximate index finds any.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DIMENSION = 512
_RANK, _TOPICS = 64, 200
_SCENE_ROWS = 50
"""Average number of vectors of a scene."""
_SCENE_SPREAD, _OWN_SPREAD, _NOISE = 0.6, 0.35, 0.02
_QUERY_SPREAD = 0.35
"""Additional spread of queries: speech and text vectors are distributed differently from image vectors."""
_BLOCK = 65_536

Vectors = NDArray[np.float32]


class Structure:
    """A distribution of vectors, and draws from it; the same for the same number of rows.

    Args:
        rows: number of vectors to be drawn.
        dimension: D of the vectors, at least 64.
    """

    def __init__(self, rows: int, dimension: int = DIMENSION) -> None:
        self._rng = np.random.default_rng(rows)
        self._spectrum = 1 / np.sqrt(np.arange(1, _RANK + 1))
        basis, _ = np.linalg.qr(self._rng.standard_normal((dimension, _RANK)))
        self._basis = np.asarray(basis.T, np.float32)
        topics = self._rng.standard_normal((_TOPICS, _RANK))
        scenes = max(1, rows // _SCENE_ROWS)
        spread = _SCENE_SPREAD * self._rng.standard_normal((scenes, _RANK))
        self._scenes = topics[self._rng.integers(0, _TOPICS, scenes)] + spread

    def draw(self, count: int, spread: float = _OWN_SPREAD) -> Vectors:
        """Draws unit vectors [count, D]."""
        own = spread * self._rng.standard_normal((count, _RANK))
        places = (self._scenes[self._rng.integers(0, len(self._scenes), count)] + own) * self._spectrum
        vectors = places.astype(np.float32) @ self._basis
        vectors += _NOISE * self._rng.standard_normal(vectors.shape, np.float32)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)

    def queries(self, count: int) -> Vectors:
        """Draws unit vectors [count, D] with a larger spread."""
        return self.draw(count, _OWN_SPREAD + _QUERY_SPREAD)


def write_vectors(folder: Path, rows: int, queries: int, dimension: int = DIMENSION) -> tuple[Path, Path, Vectors]:
    """Writes vectors as fp16, as clip-retrieval does, with a CSV of paths.

    Returns:
        The ``.npy`` file, the CSV file, and queries [queries, D].
    """
    folder.mkdir(parents=True)
    structure = Structure(rows, dimension)
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float16, (rows, dimension))
    for start in range(0, rows, _BLOCK):
        vectors[start : start + _BLOCK] = structure.draw(min(_BLOCK, rows - start))
    vectors.flush()
    with (folder / "ids.csv").open("w", encoding="utf-8") as file:
        file.write("path\n")
        file.writelines(f"{number % 1000:03}/{number}.jpg\n" for number in range(rows))
    return folder / "vectors.npy", folder / "ids.csv", structure.queries(queries)
