"""In bf16 or not, vectors stay the same; a side whose kernels compute it wrong stays in fp32."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from media_files import picture
from saysee.encoding import inference
from saysee.encoding.encoder import Encoder, _alike
from saysee.encoding.inference import Inference
from saysee.media import images
from saysee.media.images import load_image
from saysee.model.retriever import SpeechImageModel


@pytest.fixture
def nano(monkeypatch) -> SpeechImageModel:
    """On a chip that has bf16, or computes it all the same."""
    monkeypatch.setattr(inference, "arithmetic_of", lambda precision, device: "bf16")
    torch.manual_seed(0)
    return SpeechImageModel.from_encoders("saysee/hubert-nano", "saysee/clip-nano")


def test_vectors_stay_the_same_in_bf16(nano, sounds, tmp_path):
    encoder = Encoder(nano, "nano")
    assert (encoder.inference.speech_arithmetic, encoder.inference.image_arithmetic) == ("bf16", "bf16")
    pictures = [picture(tmp_path / f"{number}.png", number) for number in range(3)]
    found = encoder.encode("image", [encoder.prepare("image", path) for path in pictures])
    assert found.dtype == np.float32
    assert (found * nano.encode_images(pictures)).sum(axis=1).min() > 0.999
    prepared = [nano.processor.prepare_speech(sound) for sound in sounds]
    found = encoder.encode("clip", prepared)
    assert (found * nano.encode_speech(sounds)).sum(axis=1).min() > 0.999
    assert {parameter.dtype for parameter in nano.parameters()} == {torch.float32}


def test_a_side_that_bf16_spoils_stays_in_fp32(nano, monkeypatch):
    wrong = inference._image_vectors

    def spoiled(encoder, pixels):
        vectors = wrong(encoder, pixels)
        return vectors.flip(-1) if next(encoder.parameters()).dtype == torch.bfloat16 else vectors

    monkeypatch.setattr(inference, "_image_vectors", spoiled)
    made = Inference(nano)
    assert (made.speech_arithmetic, made.image_arithmetic) == ("bf16", "fp32")
    monkeypatch.setattr(inference, "_image_vectors", lambda encoder, pixels: wrong(encoder, pixels) * torch.nan)
    assert Inference(nano).image_arithmetic == "fp32"


def test_fp32_where_the_chip_has_no_bf16(nano, monkeypatch):
    monkeypatch.setattr(inference, "arithmetic_of", lambda precision, device: "fp32")
    made = Inference(nano)
    assert (made.speech_arithmetic, made.image_arithmetic) == ("fp32", "fp32")
    assert made._speech is nano.speech_encoder


def test_on_an_accelerator_clips_of_like_length_go_together_and_not_too_many():
    lengths = [16_000 * seconds for seconds in (40, 2, 39, 2.1, 41, 45, 44, 7, 7, 1)]
    waveforms = [np.empty(round(length)) for length in lengths]
    assert _alike(waveforms, 10) == [[5, 6, 4], [0, 2], [7, 8], [3, 1], [9]]
    assert _alike(waveforms, 2) == [[5, 6], [4, 0], [2], [7, 8], [3, 1], [9]]
    assert _alike(waveforms, 1) == [[5], [6], [4], [0], [2], [7], [8], [3], [1], [9]]
    assert _alike([], 1) == []


@pytest.mark.parametrize(("wide", "rows"), [(192, 1), (193, 3)])
def test_on_a_processor_only_a_narrow_hubert_takes_several_clips(nano, monkeypatch, wide, rows):
    monkeypatch.setattr("saysee.encoding.streams._WIDE", wide)  # hubert-nano has 192
    monkeypatch.setattr("saysee.encoding.streams._STREAM_CLIPS", 3)
    encoder = Encoder(nano, "nano")
    encoder._streams.count = 2
    lengths = [len(part) for part in encoder._parts("clip", [np.empty(16_000)] * 9)]
    assert lengths == [rows] * (9 // rows)
    few = encoder._parts("clip", [np.empty(16_000)] * 2)  # each core gets its own
    assert few == [[0], [1]]


@pytest.mark.parametrize(("norm", "tolerance"), [("group", 1e-6), ("layer", 5e-4)])
def test_on_a_processor_a_clip_has_the_same_vector_beside_any_other(encoder, nano, norm, tolerance):
    encoder = encoder if norm == "group" else Encoder(nano, "nano")
    assert encoder.model.config.speech_config.feat_extract_norm == norm
    rng = np.random.default_rng(0)
    clips = [rng.standard_normal(length).astype(np.float32) for length in rng.integers(400, 30_000, 40)]
    alone = np.concatenate([encoder.encode("clip", [clip]) for clip in clips])
    before = torch.get_num_threads()
    torch.set_num_threads(4)  # four at once, through one model
    try:
        encoder = Encoder(encoder.model, "anew")
        together = encoder.encode("clip", clips)
    finally:
        torch.set_num_threads(before)
    assert encoder._streams.count == 4
    assert (together * alone).sum(axis=1).min() > 1 - tolerance


def test_a_jpeg_is_made_smaller_as_it_is_decoded(monkeypatch):
    file = io.BytesIO()
    Image.new("RGB", (1600, 1200), "red").save(file, "JPEG")
    decoded = []
    to_rgb = images._to_rgb
    monkeypatch.setattr(images, "_to_rgb", lambda image: decoded.append(image.size) or to_rgb(image))
    load_image(file.getvalue(), at_least=192)
    assert decoded == [(400, 300)]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_large_pictures_are_decoded_no_larger_than_needed(kind, nano):
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 255, (9, 12, 3), np.uint8)).resize((1600, 1200), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    large.save(file, kind, quality=90)
    small = load_image(file.getvalue(), at_least=192)
    assert 192 <= small.height < 2 * 192
    assert small.width * 3 == pytest.approx(small.height * 4, abs=4)
    assert load_image(file.getvalue()).size == (1600, 1200)
    assert load_image(file.getvalue(), at_least=1201).size == (1600, 1200)
    vectors = nano.encode_images([large, small])
    assert vectors[0] @ vectors[1] > 0.999
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    large.save(turned, "JPEG", exif=exif)
    assert load_image(turned.getvalue(), at_least=192).height > load_image(turned.getvalue(), at_least=192).width
