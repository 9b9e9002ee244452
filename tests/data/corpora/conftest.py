"""Small real WAV and JPEG files, for corpora that tests lay out like real copies."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image


class Files:
    """Writes files that can be decoded, each with different content."""

    @staticmethod
    def clip(path: Path, rate: int = 16_000) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(zlib.crc32(path.name.encode())).normal(0, 0.1, rate // 10)
        soundfile.write(path, noise, rate)
        return path

    @staticmethod
    def image(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(path, format="PNG" if path.suffix.lower() == ".png" else "JPEG")
        return path

    @staticmethod
    def text(path: Path, content: str, *, windows: bool = False) -> Path:
        """With ``windows``: CR LF line ends and a byte order mark."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if windows:
            path.write_bytes(b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode())
        else:
            path.write_bytes(content.encode())
        return path


@pytest.fixture
def files() -> type[Files]:
    return Files
