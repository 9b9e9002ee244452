"""The image patches that speech attends to: their weights by each source, and where they lie on the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from saysee.encoding.attention import attend, attention_map, attention_source, frame_patch_similarity, grid_box
from saysee.encoding.encoder import Encoder
from saysee.errors import MediaError, SaySeeError
from saysee.model.configuration import FusionConfig
from saysee.model.processor import SpeechImageProcessor
from saysee.model.retriever import SpeechImageModel

FUSION = FusionConfig(width=16, layers=1, heads=2)


@pytest.fixture
def model(hubert_configs, clip_config):
    torch.manual_seed(5)
    return SpeechImageModel.from_encoders(hubert_configs["base"], clip_config, text=False)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 64, 3), np.uint8))


def test_similarity_is_softmax_of_cosine_over_temperature():
    frames = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    patches = torch.tensor([[5.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -3.0]])
    weights = frame_patch_similarity(frames, patches, 0.5)
    e = np.exp([2, 0, -2, 0])
    assert weights[0].numpy() == pytest.approx(e / e.sum())
    assert weights[1].numpy() == pytest.approx([0.25] * 4)


def test_similarity_stays_finite_at_a_small_temperature():
    draw = torch.Generator().manual_seed(0)
    weights = frame_patch_similarity(torch.randn(3, 4, 8, generator=draw), torch.randn(3, 9, 8, generator=draw), 1e-6)
    assert weights.shape == (3, 4, 9)
    assert weights.sum(dim=-1).numpy() == pytest.approx(np.ones((3, 4)))


@pytest.mark.parametrize("fusion", [None, FUSION])
def test_a_map_has_a_row_for_each_frame_that_sums_to_1(model, sounds, image, fusion):
    if fusion is not None:
        model.add_fusion(fusion)
    weights = attention_map(Encoder(model), sounds[0], image)
    assert attention_source(model) == ("similarity" if fusion is None else "fusion")
    assert weights.shape == (49, 16)  # a second of 20 ms frames; 32 x 32 pixels in patches of 8
    assert weights.sum(dim=-1).numpy() == pytest.approx(np.ones(49), abs=1e-5)
    assert weights.std(dim=-1).min() > 0, "every frame attends evenly to all patches"


def test_the_map_is_the_fusion_encoder_s_own_where_there_is_one(model, sounds, image):
    without = attention_map(Encoder(model), sounds[0], image)
    model.add_fusion(FUSION)
    model.eval()
    waveforms, mask = model.processor.pad([model.processor.prepare_speech(sounds[0])])
    with torch.inference_mode():
        own = model.fusion.attend(*model(waveforms, mask, model.processor.prepare_image(image)[None]))[0]
    assert torch.equal(attention_map(Encoder(model), sounds[0], image), own)
    assert not torch.allclose(without, own)


def test_source_grid_times_and_weights(model, sounds, image):
    found = attend(Encoder(model), sounds[0], image)
    assert (found.source, found.rows, found.columns) == ("similarity", 4, 4)
    assert (found.frame_seconds, found.seconds) == (0.02, 1.0)
    assert found.frames.shape == (49, 16)
    assert found.frames.sum(axis=1) == pytest.approx(np.ones(49), abs=1e-5)
    assert found.box == (0.25, 0.0, 0.75, 1.0)
    model.add_fusion(FUSION)
    assert attend(Encoder(model), sounds[0], image).source == "fusion"


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
    images = CLIPImageProcessorPil(
        **{
            "size": {"shortest_edge": 64},
            "crop_size": {"height": 64, "width": 64},
            "do_normalize": False,
            "do_rescale": False,
            **settings,
        }
    )
    width, height = size
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width)
    ramp[..., 1] = np.linspace(0, 255, height)[:, None]
    ramp[..., 2] = 255
    processor = SpeechImageProcessor.from_sources(None, None, 64, text=False)
    processor.image_processor = images
    seen = np.asarray(images(Image.fromarray(ramp), return_tensors="np")["pixel_values"][0], np.float64)
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
