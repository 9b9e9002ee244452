"""Small pictures and clips on disk, for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from saysee.search.index.index import open_store


def picture(path: Path, seed: int) -> Path:
    """A small picture that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    Image.fromarray(coarse).resize((40, 40), Image.Resampling.NEAREST).save(path, format="PNG")
    return path


def clip(path: Path, seed: int) -> Path:
    """A third of a second of noise with a rhythm of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rise = 1 + np.sin(np.arange(5_000) * (1 + seed) / 700)
    soundfile.write(path, (0.1 * rise * rng.standard_normal(5_000)).astype(np.float32), 16_000)
    return path


def rows(place: str | Path) -> dict[tuple[str, str], tuple[int, bytes]]:
    """Kind and path to id and vector."""
    with open_store(place).reading() as tables:
        keys = {item.id: item.key for item in tables.items()}
        ids, vectors = tables.vectors_of(keys)
        return {keys[number]: (number, vector.tobytes()) for number, vector in zip(ids.tolist(), vectors, strict=True)}
