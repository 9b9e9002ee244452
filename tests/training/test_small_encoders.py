from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from saysee.data.manifest import Manifest, Row
from saysee.errors import ConfigError
from saysee.model.retriever import SpeechImageModel
from saysee.training.frame_labels import NO_FRAME, SmallHuBERTSettings, frame_labels, train_small_hubert
from saysee.training.image_text import SmallCLIPSettings, train_small_clip, word_tokenizer


def test_frames_are_labelled_by_the_word_at_their_middle() -> None:
    words = [{"word": "Red", "start": 0.02, "end": 0.06}, {"word": "star,", "start": 0.06, "end": 0.10}]
    row = Row("a.wav", "a.png", "a", "train", extra={"words": words})
    mask = torch.tensor([[True] * 6 + [False]])
    labels = frame_labels([row], mask, {"red": 1, "star": 2}, stride=320, field=400)
    # Middles at 0.0125, 0.0325, 0.0525, 0.0725, 0.0925, 0.1125 s.
    assert labels.tolist() == [[0, 1, 1, 2, 2, 0, NO_FRAME]]


def test_words_are_tokens_between_the_marks_and_unknown_words_are_told_apart_from_none() -> None:
    tokenizer = word_tokenizer(["A red star", "two blue rings"])
    ids = tokenizer("a Blue giraffe")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<begin>", "a", "blue", "<unknown>", "<end>"]
    assert ids[-1] == max(tokenizer.get_vocab().values())  # where CLIP's text encoder reads its vector


def test_the_small_encoders_load_like_any_encoder_and_give_text_too(tiny_manifest: Manifest, tmp_path: Path) -> None:
    clip = train_small_clip(
        tiny_manifest,
        "train",
        tmp_path / "clip",
        SmallCLIPSettings(width=32, layers=2, projection=16, steps=2, batch_size=8),
    )
    hubert = train_small_hubert(
        tiny_manifest,
        "train",
        tmp_path / "hubert",
        SmallHuBERTSettings(width=32, layers=1, steps=2, batch_size=8, workers=0),
    )
    assert clip["loss"] > 0
    assert 0 <= hubert["frames_right"] <= 1
    model = SpeechImageModel.from_encoders(tmp_path / "hubert", tmp_path / "clip")
    row = tiny_manifest.rows[0]
    for vectors in (
        model.encode_speech([tiny_manifest.clip_path(row)]),
        model.encode_images([tiny_manifest.image_path(row)]),
        model.encode_text([row.text or ""]),
    ):
        assert vectors.shape == (1, 16)
        assert np.linalg.norm(vectors) == pytest.approx(1, abs=1e-5)


def test_the_small_clip_learns_its_captions(tiny_manifest: Manifest, tmp_path: Path) -> None:
    settings = SmallCLIPSettings(width=32, layers=2, projection=16, batch_size=12, lr=3e-3)
    first = train_small_clip(
        tiny_manifest, "train", tmp_path / "short", SmallCLIPSettings(**vars(settings) | {"steps": 2})
    )
    last = train_small_clip(
        tiny_manifest, "train", tmp_path / "long", SmallCLIPSettings(**vars(settings) | {"steps": 60})
    )
    assert last["loss"] < 0.7 * first["loss"]


def test_a_manifest_without_texts_or_word_times_is_refused(tiny_manifest: Manifest, tmp_path: Path) -> None:
    rows = [Row(row.clip, row.image, row.image_id, row.split) for row in tiny_manifest]
    plain = Manifest(rows, tiny_manifest.root)
    with pytest.raises(ConfigError, match="no text"):
        train_small_clip(plain, "train", tmp_path / "clip", SmallCLIPSettings())
    with pytest.raises(ConfigError, match="words"):
        train_small_hubert(plain, "train", tmp_path / "hubert", SmallHuBERTSettings())
