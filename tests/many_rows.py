"""Many rows of an index at once, without a model, and how many of the nearest a search finds."""

from __future__ import annotations

import numpy as np
import pytest

from saysee import Index, SaySeeError
from saysee.search.index.index import open_store
from saysee.search.index.store import About, Item

DIMENSION = 24
ABOUT = About("model", None, {"image": "1", "clip": "2"}, DIMENSION, "float32", "/root", None, ".")


def clustered(count: int) -> np.ndarray:
    """Unit vectors around centres around centres, as those of pictures lie."""
    rng = np.random.default_rng(0)
    topics = rng.standard_normal((20, DIMENSION))
    scenes = topics[rng.integers(0, 20, 400)] + 0.6 * rng.standard_normal((400, DIMENSION))
    vectors = scenes[rng.integers(0, 400, count)] + 0.4 * rng.standard_normal((count, DIMENSION))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def fill(place: str, vectors: np.ndarray) -> dict[str, str]:
    """Rows "0.jpg" and so on with these vectors."""
    items = [Item("image", f"{n}.jpg", n, metadata={"week": n % 7}) for n in range(len(vectors))]
    with open_store(place).writing() as writer:
        if writer.about is None:
            writer.set_about(ABOUT)
        with writer.transaction():
            writer.put(items, vectors)
        return writer.make_ready()


def recall(store, vectors: np.ndarray, where: str | None = None, rest: slice | None = None) -> float:
    rng = np.random.default_rng(1)
    queries = vectors[rng.integers(0, len(vectors), 50)] + 0.1 * rng.standard_normal((50, DIMENSION)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    candidates = np.arange(len(vectors))[rest or slice(None)]
    truth = candidates[np.argsort(-(queries @ vectors[candidates].T), axis=1, kind="stable")[:, :10]]
    found = store.nearest(queries, "image", 10, where)
    numbers = [{int(item.path.removesuffix(".jpg")) for item, _ in got} for got in found]
    return float(np.mean([len(got & set(right.tolist())) / 10 for got, right in zip(numbers, truth, strict=True)]))


def refusal(place: str, write: bool = False) -> str:
    """The one line that is said where an index cannot be opened, or with ``write`` be begun."""

    def begin() -> None:
        with open_store(place).writing() as writer:
            assert writer.about is None
            writer.set_about(ABOUT)

    with pytest.raises(SaySeeError) as refused:
        begin() if write else Index.open(place)
    assert "\n" not in str(refused.value)
    return str(refused.value)
