"""The image patches that speech attends to: their weights by each source, and where they lie on the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from saysee.encoding import attention
from saysee.encoding.attention import COVER, PLACES, attend, attention_map, covered, grid_box, silenced
from saysee.encoding.encoder import Encoder
from saysee.errors import MediaError, SaySeeError
from saysee.media.audio import SAMPLE_RATE
from saysee.model.configuration import FusionConfig
from saysee.model.processor import ImagePreparation, SpeechImageProcessor
from saysee.model.retriever import SpeechImageModel

FUSION = FusionConfig(width=16, layers=1, heads=2)


@pytest.fixture
def model(hubert_configs, clip_config):
    torch.manual_seed(5)
    return SpeechImageModel.from_encoders(hubert_configs["base"], clip_config, text=False)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8))


def test_each_place_is_covered_by_the_median_color_and_each_window_silenced():
    pixels = torch.zeros(3, 70, 70)
    pixels[:, 20:50, 20:50] = 1.0  # less than half: the median is 0
    variants = covered(pixels)
    assert len(variants) == PLACES**2
    shown = torch.stack([variant[0] for variant in variants])
    assert shown[0, :20].sum() == 0
    assert torch.equal(shown[0], pixels[0]), "nothing is there"
    middle = shown[PLACES**2 // 2]
    side = round(70 * COVER)
    assert pixels[0].sum() - middle.sum() == pytest.approx(side**2, abs=2 * side)
    assert middle[35, 35] == 0
    assert middle[22, 22] == 1
    clip = np.ones(1_000, np.float32)
    windows = np.stack(silenced(clip, 300))
    assert windows.shape == (5, 1_000)  # around 4 moments, the last of 100 samples
    assert [(row == 0).nonzero()[0][[0, -1]].tolist() for row in windows] == [
        [0, 299], [0, 599], [300, 899], [600, 999], [900, 999],
    ]  # fmt: skip
    assert clip.all(), "the clip itself stays"


class Told(Encoder):
    """An encoder whose vectors are worked out by hand: what is heard in a half of the clip is seen in one of the image.

    The first half of the clip speaks of what is at the left, the second of what is at the right.
    """

    def encode_prepared(self, kind, prepared):
        rows = []
        for item in prepared:
            values = torch.as_tensor(item)
            parts = values.abs().mean(dim=0).chunk(2, dim=1) if kind == "image" else values.abs().chunk(2)
            rows.append([float(part.mean()) for part in parts])
        self.runs = getattr(self, "runs", 0) + len(rows)
        return np.array(rows, np.float32)


def test_interaction_lights_what_each_moment_speaks_of(model, monkeypatch):
    monkeypatch.setattr("saysee.encoding.attention.Encoder", Told)
    encoder = Told(model)
    pixels = np.full((64, 64, 3), 128, np.uint8)
    pixels[24:40, 4:20] = pixels[24:40, 44:60] = 255
    clip = np.random.default_rng(0).normal(size=4 * SAMPLE_RATE).astype(np.float32) / 10
    found = attend(encoder, clip, Image.fromarray(pixels), "interaction")
    assert (found.source, found.rows, found.columns, found.frame_seconds) == ("interaction", 7, 7, 0.64)
    assert len(found.frames) == 7
    assert found.frames.sum(axis=1) == pytest.approx(np.ones(7), abs=1e-5)
    brightest = found.frames.reshape(7, 7, 7).max(axis=1).argmax(axis=1)
    assert (brightest[:3] < 3).all(), brightest
    assert (brightest[4:] > 3).all(), brightest
    exact = attention._KEPT[encoder][0]
    runs = exact.runs
    attend(encoder, clip[:SAMPLE_RATE], Image.fromarray(pixels), "interaction")
    assert exact.runs - runs == 1 + 3, "the image's part is kept; a second has 3 windows"


def test_a_long_clip_has_no_more_moments(model, monkeypatch):
    monkeypatch.setattr("saysee.encoding.attention.Encoder", Told)
    monkeypatch.setattr("saysee.encoding.attention.takes_several", lambda hubert: True)  # as of hubert-nano
    clip = np.random.default_rng(0).normal(size=40 * SAMPLE_RATE).astype(np.float32) / 10
    found = attend(Told(model), clip, Image.new("RGB", (64, 64)), "interaction")
    assert len(found.frames) == attention.MOST_MOMENTS
    assert found.frames == pytest.approx(np.full(found.frames.shape, 1 / 49)), "nothing to see: uniform"
    assert len(found.frames) * found.frame_seconds == pytest.approx(found.seconds, abs=0.01)


def test_a_wide_hubert_encodes_only_so_much_speech_on_a_cpu(model, monkeypatch):
    """A third of a clip of 20 s is a moment: with the clip itself five runs over it, in place of 34."""
    monkeypatch.setattr("saysee.encoding.attention.Encoder", Told)
    monkeypatch.setattr("saysee.encoding.attention.MOST_WIDE_SECONDS", 100.0)
    monkeypatch.setattr("saysee.encoding.attention.takes_several", lambda hubert: False)
    encoder, clip = Told(model), np.random.default_rng(0).normal(size=20 * SAMPLE_RATE).astype(np.float32) / 10
    found = attend(encoder, clip, Image.new("RGB", (64, 64)), "interaction")
    assert (len(found.frames), found.frame_seconds) == (3, pytest.approx(20 / 3, abs=1e-3))
    assert attention._KEPT[encoder][0].runs == 1 + 49 + 5
    short = attend(encoder, clip[: 4 * SAMPLE_RATE], Image.new("RGB", (64, 64)), "interaction")
    assert short.frame_seconds == 0.64


def test_a_map_has_a_row_for_each_frame_that_sums_to_1(model, sounds, image):
    model.add_fusion(FUSION)
    weights = attention_map(Encoder(model), sounds[0], image)
    assert weights.shape == (49, 16)  # a second of 20 ms frames; 32 x 32 pixels in patches of 8
    assert weights.sum(axis=1) == pytest.approx(np.ones(49), abs=1e-5)
    assert weights.std(axis=1).min() > 0, "every frame attends evenly to all patches"


def test_the_map_is_the_fusion_encoder_s_own(model, sounds, image):
    model.add_fusion(FUSION)
    model.eval()
    waveforms, mask = model.processor.pad([model.processor.prepare_speech(sounds[0])])
    with torch.inference_mode():
        own = model.fusion.attend(*model(waveforms, mask, model.processor.prepare_image(image)[None]))[0]
    assert attention_map(Encoder(model), sounds[0], image).tolist() == own.tolist()


def test_it_has_no_limit_of_length_besides_that_of_its_caller(model, image):
    model.add_fusion(FUSION)
    clip = np.random.default_rng(0).normal(size=61 * SAMPLE_RATE).astype(np.float32) / 10
    for source in ("fusion", "interaction"):
        assert attend(Encoder(model), clip, image, source).seconds == 61


def test_the_fusion_encoder_of_a_bf16_model_gives_the_same_map_but_for_rounding(model, sounds, image):
    model.add_fusion(FUSION)
    exact = attention_map(Encoder(model), sounds[0], image)
    rough = attention_map(Encoder(model.to(torch.bfloat16)), sounds[0], image)
    np.testing.assert_allclose(rough, exact, atol=0.05)


def test_source_grid_times_and_weights(model, sounds, image):
    found = attend(Encoder(model), sounds[0], image)
    assert (found.source, found.rows, found.columns) == ("interaction", 7, 7)
    assert (found.frame_seconds, found.seconds) == (0.64, 1.0)
    assert found.frames.shape == (2, 49)
    assert found.frames.sum(axis=1) == pytest.approx(np.ones(2), abs=1e-5)
    assert found.box == (0.25, 0.0, 0.75, 1.0)
    with pytest.raises(SaySeeError, match="save_fusion"):
        attend(Encoder(model), sounds[0], image, "fusion")
    model.add_fusion(FUSION)
    found = attend(Encoder(model), sounds[0], image)
    assert (found.source, found.rows, found.columns, found.frame_seconds) == ("fusion", 4, 4, 0.02)
    assert found.frames.shape == (49, 16)


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((240, 240), {}),
        ((400, 240), {}),
        ((240, 500), {}),
        ((400, 240), {"do_resize": False}),
        ((400, 240), {"do_center_crop": False, "size": {"height": 64, "width": 64}}),
        ((400, 240), {"size": {"shortest_edge": 80}}),
        ((400, 240), {"size": {"shortest_edge": 48}}),  # the crop is larger than what it crops: a margin is added
    ],
)
def test_the_grid_is_where_the_processor_takes_its_pixels_from(size, settings):
    """In an image that gets redder to the right and greener downwards, each pixel shows where it came from."""
    crop = {"height": 64, "width": 64}
    plain = {"size": {"shortest_edge": 64}, "crop_size": crop, "do_normalize": False, "do_rescale": False, **settings}
    images = ImagePreparation.of(plain)
    width, height = size
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width)
    ramp[..., 1] = np.linspace(0, 255, height)[:, None]
    ramp[..., 2] = 255
    processor = SpeechImageProcessor.from_sources(None, None, 64, text=False)
    processor.image_processor = images
    seen = np.asarray(images(Image.fromarray(ramp)), np.float64)
    transformers_own = CLIPImageProcessorPil(**plain)(Image.fromarray(ramp), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(seen, transformers_own)
    assert seen.shape == (3, 64, 64)
    left, top, right, bottom = grid_box(processor, size, 64)
    shown = seen[2] > 250  # not of a margin
    across = (np.arange(64) + 0.5) / 64
    x, y = np.meshgrid(left + (right - left) * across, top + (bottom - top) * across)
    assert np.abs(seen[0] / 255 - x)[shown].max() < 0.02
    assert np.abs(seen[1] / 255 - y)[shown].max() < 0.02
    assert shown[(x > 0.02) & (x < 0.98) & (y > 0.02) & (y < 0.98)].all()


def test_an_incomplete_last_patch_is_not_covered():
    processor = SpeechImageProcessor.from_sources(None, None, 64, text=False)
    assert grid_box(processor, (128, 128), 56) == (0, 0, 56 / 64, 56 / 64)


def test_bad_files_are_media_errors(model, tmp_path, image):
    with pytest.raises(MediaError, match=r"nothing\.wav: no such file"):
        attend(Encoder(model), tmp_path / "nothing.wav", image)
    with pytest.raises(MediaError, match="is not an image"):
        attend(Encoder(model), np.random.default_rng(0).standard_normal(8_000).astype(np.float32) / 10, b"words")


@pytest.mark.parametrize("fusion", [None, FUSION])
def test_attention_that_is_not_finite_is_an_error(model, sounds, image, fusion):
    if fusion is not None:
        model.add_fusion(fusion)
    part = model.image_encoder.clip.visual_projection if fusion is None else model.fusion.image_in[1]
    torch.nn.init.constant_(part.weight, torch.nan)
    with pytest.raises(SaySeeError, match="not finite"):
        attend(Encoder(model), sounds[0], image)
