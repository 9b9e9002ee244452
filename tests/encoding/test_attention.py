"""Where speech looks in a picture, by each of the two sources."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from saysee.encoding.attention import attention_map, attention_source, frame_patch_similarity
from saysee.encoding.encoder import Encoder
from saysee.model.configuration import FusionConfig
from saysee.model.retriever import SpeechImageModel


@pytest.fixture
def model(hubert_configs, clip_config):
    torch.manual_seed(5)
    return SpeechImageModel.from_encoders(hubert_configs["base"], clip_config, text=False)


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))


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


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_a_temperature_that_is_not_above_0_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        frame_patch_similarity(torch.ones(1, 2), torch.ones(1, 2), temperature)


@pytest.mark.parametrize(
    ("frames", "message"), [(torch.ones(1, 3), "of one width"), (torch.full((1, 2), torch.nan), "must be finite")]
)
def test_what_cannot_be_compared_is_refused(frames, message):
    with pytest.raises(ValueError, match=message):
        frame_patch_similarity(frames, torch.ones(4, 2), 0.1)


@pytest.mark.parametrize("fusion", [None, FusionConfig(width=16, layers=1, heads=2)])
def test_a_map_has_a_row_for_each_frame_that_sums_to_1(model, sounds, picture, fusion):
    if fusion is not None:
        model.add_fusion(fusion)
    weights = attention_map(Encoder(model), sounds[0], picture)
    assert attention_source(model) == ("similarity" if fusion is None else "fusion")
    assert weights.shape == (49, 16)  # a second of 20 ms frames; 32 pixels in patches of 8
    assert weights.sum(dim=-1).numpy() == pytest.approx(np.ones(49), abs=1e-5)
    assert weights.std(dim=-1).min() > 0, "every frame looks evenly at all patches"


def test_the_map_is_the_fusion_encoder_s_own_where_there_is_one(model, sounds, picture):
    without = attention_map(Encoder(model), sounds[0], picture)
    model.add_fusion(FusionConfig(width=16, layers=1, heads=2))
    model.eval()
    waveforms, mask = model.processor.pad([model.processor.prepare_speech(sounds[0])])
    with torch.inference_mode():
        own = model.fusion.attend(*model(waveforms, mask, model.processor.prepare_image(picture)[None]))[0]
    assert torch.equal(attention_map(Encoder(model), sounds[0], picture), own)
    assert not torch.allclose(without, own)
