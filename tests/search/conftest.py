"""A tiny model in its folder, and folders of real pictures and clips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from search_files import clip, picture

from saysee.model.retriever import SpeechImageModel
from saysee.search.encoding import Encoder


@pytest.fixture
def model_folder(tmp_path: Path, hubert_folder: Path, clip_folder: Path) -> Path:
    """A SaySee model of random weights, with a text encoder, in a folder of its own."""
    torch.manual_seed(4)
    SpeechImageModel.from_encoders(hubert_folder, clip_folder).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def encoder(model_folder: Path) -> Encoder:
    return Encoder.load(str(model_folder))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures in two sub-folders and three clips."""
    folder = tmp_path / "photos"
    for number in range(6):
        picture(folder / ("holiday" if number < 4 else "work") / f"{number}.png", number)
    for number in range(3):
        clip(folder / "clips" / f"{number}.wav", number)
    return folder


@pytest.fixture
def counted(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many files have gone through the encoder since it was last asked."""
    encoded: list[int] = []
    encode = encoder.encode

    def counting(kind, prepared):
        encoded.append(len(prepared))
        return encode(kind, prepared)

    monkeypatch.setattr(encoder, "encode", counting)

    def count() -> int:
        total = sum(encoded)
        encoded.clear()
        return total

    return count
