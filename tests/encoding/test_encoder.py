"""The encoder: the same vectors alone and in any batch, in bf16 where it computes right, from files of any kind."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from media_files import picture
from saysee.encoding import sides
from saysee.encoding.encoder import Encoder
from saysee.encoding.streams import alike
from saysee.errors import ConfigError, MediaError, SaySeeError
from saysee.media import images
from saysee.media.images import load_image
from saysee.model.configuration import HeadConfig
from saysee.model.retriever import SpeechImageModel


@pytest.fixture(scope="module")
def nano() -> SpeechImageModel:
    torch.manual_seed(0)
    return SpeechImageModel.from_encoders("saysee/hubert-nano", "saysee/clip-nano")


@pytest.fixture
def has_bf16(monkeypatch):
    """The CPU has bf16, or emulates it."""
    monkeypatch.setattr(sides, "arithmetic_of", lambda precision, device: "bf16")


@pytest.fixture
def clips():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(length).astype(np.float32) for length in rng.integers(400, 30_000, 12)]


@pytest.mark.usefixtures("has_bf16")
def test_vectors_stay_the_same_in_bf16(nano, clips, tmp_path):
    quick, exact = Encoder(nano), Encoder(nano, precision="fp32")
    files = [picture(tmp_path / f"{number}.png", number) for number in range(3)]
    for kind, items in (("clip", clips), ("image", files)):
        found = quick.encode(kind, items)
        assert (quick.side(kind).precision, exact.side(kind).precision) == ("bf16", "fp32")
        assert found.dtype == np.float32
        assert (found * exact.encode(kind, items)).sum(axis=1).min() > 0.999
    assert {parameter.dtype for parameter in nano.parameters()} == {torch.float32}


@pytest.mark.parametrize("of_place", [True, False])
def test_a_gpu_that_is_missing_is_an_error_of_the_setting(nano, monkeypatch, of_place):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="cuda"):
        Encoder("no such model" if of_place else nano, device="cuda")


def test_another_way_to_the_vector_of_a_clip_is_another_fingerprint(tiny_model_settings):
    encoders = tiny_model_settings["speech"], tiny_model_settings["image"]
    found = set()
    for change in ({}, {"pooling": "mean"}, {"stride": 2}):
        torch.manual_seed(0)
        encoder = Encoder(SpeechImageModel.from_encoders(*encoders, head=HeadConfig(heads=2, **change)))
        found.add((encoder.fingerprint("clip"), encoder.fingerprint("image")))
    assert len({of_clips for of_clips, _ in found}) == 3
    assert len({of_images for _, of_images in found}) == 1


@pytest.mark.usefixtures("has_bf16")
@pytest.mark.parametrize("spoil", [lambda vectors: vectors.flip(-1), lambda vectors: vectors * torch.nan])
def test_a_side_whose_vectors_bf16_changes_stays_in_fp32(nano, monkeypatch, spoil):
    right = sides.ImageSide._vectors_of

    def spoiled(side, network, *inputs):
        vectors = right(side, network, *inputs)
        return spoil(vectors) if next(network.parameters()).dtype == torch.bfloat16 else vectors

    monkeypatch.setattr(sides.ImageSide, "_vectors_of", spoiled)
    encoder = Encoder(nano)
    assert (encoder.side("clip").precision, encoder.side("image").precision) == ("bf16", "fp32")


def test_fp32_where_the_cpu_has_no_bf16(nano, monkeypatch):
    monkeypatch.setattr(sides, "arithmetic_of", lambda precision, device: "fp32")
    assert {Encoder(nano).side(kind).precision for kind in ("clip", "image")} == {"fp32"}


def test_on_a_gpu_clips_of_like_length_go_together_and_not_too_many():
    lengths = [16_000 * seconds for seconds in (40, 2, 39, 2.1, 41, 45, 44, 7, 7, 1)]
    waveforms = [np.empty(round(length)) for length in lengths]
    assert alike(waveforms, 10) == [[5, 6, 4], [0, 2], [7, 8], [3, 1], [9]]
    assert alike(waveforms, 2) == [[5, 6], [4, 0], [2], [7, 8], [3, 1], [9]]
    assert alike([], 1) == []


@pytest.mark.parametrize(("wide", "rows"), [(192, 1), (193, 3)])
def test_on_a_cpu_only_a_narrow_hubert_takes_several_clips(nano, monkeypatch, wide, rows):
    monkeypatch.setattr("saysee.encoding.streams._WIDE", wide)  # hubert-nano has 192
    monkeypatch.setattr("saysee.encoding.streams._STREAM_CLIPS", 3)
    side = Encoder(nano, precision="fp32").side("clip")
    lengths = [len(part) for part in side.passes([np.empty(16_000)] * 9, 2)]
    assert lengths == [rows] * (9 // rows)
    assert side.passes([np.empty(16_000)] * 2, 2) == [[0], [1]]  # each core gets its own


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_clip_has_the_same_vector_alone_and_beside_any_other(norm, nano, hubert_configs, clip_config, clips):
    model = nano if norm == "layer" else SpeechImageModel.from_encoders(hubert_configs["base"], clip_config, text=False)
    assert model.config.speech_config.feat_extract_norm == norm
    encoder = Encoder(model, precision="fp32")
    alone = np.concatenate([encoder.encode("clip", [clip]) for clip in clips])
    before = torch.get_num_threads()
    torch.set_num_threads(4)  # four at once, through one model
    try:
        together = encoder.encode("clip", clips)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    if norm == "group":
        np.testing.assert_array_equal(encoder.encode("clip", clips[:3])[1], alone[1])


def test_items_that_cannot_be_used_are_errors_or_skipped(nano, clips, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"this is no audio")
    items = [clips[0], tmp_path / "bad.wav", clips[1]]
    encoder = Encoder(nano, precision="fp32")
    with pytest.raises(MediaError, match=r"bad\.wav"):
        encoder.encode_speech(items)
    bad: dict[int, MediaError] = {}
    vectors = encoder.encode("clip", items, bad=bad)
    assert list(bad) == [1]
    assert np.isnan(vectors[1]).all()
    np.testing.assert_allclose(vectors[[0, 2]], encoder.encode_speech(clips[:2]), atol=1e-6)


def test_features_need_a_cache(nano, clips):
    with pytest.raises(SaySeeError, match="cache"):
        Encoder(nano).encode("clip", clips, "features")


def test_a_plain_clip_has_no_speech_side(clip_folder, tmp_path):
    encoder = Encoder(clip_folder)
    vectors = encoder.encode_images([picture(tmp_path / "one.png", 1)])
    assert vectors.shape == (1, encoder.dimension)
    assert encoder.encode_text(["two green stars"]).shape == (1, encoder.dimension)
    with pytest.raises(SaySeeError, match="no speech side"):
        encoder.encode_speech([np.ones(16_000)])


def test_a_jpeg_is_reduced_as_it_is_decoded(monkeypatch):
    file = io.BytesIO()
    Image.new("RGB", (1600, 1200), "red").save(file, "JPEG")
    decoded = []
    to_rgb = images._to_rgb
    monkeypatch.setattr(images, "_to_rgb", lambda image: decoded.append(image.size) or to_rgb(image))
    load_image(file.getvalue(), at_least=192)
    assert decoded == [(400, 300)]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_large_images_are_decoded_no_larger_than_needed(kind, nano):
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 255, (9, 12, 3), np.uint8)).resize((1600, 1200), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    large.save(file, kind, quality=90)
    small = load_image(file.getvalue(), at_least=192)
    assert 192 <= small.height < 2 * 192
    assert small.width * 3 == pytest.approx(small.height * 4, abs=4)
    assert load_image(file.getvalue()).size == (1600, 1200)
    assert load_image(file.getvalue(), at_least=1201).size == (1600, 1200)
    whole = nano.processor.prepare_image(large)[None]
    with torch.inference_mode():
        exact = torch.nn.functional.normalize(nano.image_encoder(whole).vector, dim=-1)[0].numpy()
    assert Encoder(nano, precision="fp32").encode_images([file.getvalue()])[0] @ exact > 0.999
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    large.save(turned, "JPEG", exif=exif)
    assert load_image(turned.getvalue(), at_least=192).height > load_image(turned.getvalue(), at_least=192).width
