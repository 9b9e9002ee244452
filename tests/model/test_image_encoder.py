"""The image encoder against CLIP itself."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPModel

from saysee.errors import ConfigError
from saysee.model.image_encoder import ImageEncoder
from saysee.model.pretrained.clip import CLIP
from saysee.model.pretrained.configuration import CLIPConfig


@pytest.fixture
def encoder(clip_config):
    torch.manual_seed(0)
    return ImageEncoder(CLIP(CLIPConfig.of(clip_config.to_dict()))).eval()


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_vectors_and_patches_are_clip_s_own(encoder, clip_config, pixels):
    clip = CLIPModel(clip_config).eval()
    clip.load_state_dict(encoder.clip.state_dict())
    features = encoder(pixels)
    torch.testing.assert_close(features.vector, clip.get_image_features(pixels).pooler_output, rtol=0, atol=1e-5)
    hidden = clip.vision_model(pixels).last_hidden_state
    assert features.patches.shape == (3, 16, 32)
    torch.testing.assert_close(features.patches, hidden[:, 1:], rtol=0, atol=1e-5)
    assert (features.vector[0] - features.vector[1]).abs().max() > 0.01


@torch.no_grad()
def test_the_vision_tower_alone_gives_the_same(encoder, clip_config, pixels):
    alone = ImageEncoder(CLIP(CLIPConfig.of(clip_config.to_dict()).without_text)).eval()
    assert not alone.has_text
    assert not [name for name in alone.state_dict() if "text" in name]
    both = encoder.clip.state_dict()
    alone.clip.load_state_dict({name: both[name] for name in alone.clip.state_dict()})
    for mine, theirs in zip(vars(alone(pixels)).values(), vars(encoder(pixels)).values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def test_patches_are_numbered_row_by_row_from_the_top_left(encoder, pixels):
    changed = pixels.clone()
    changed[:, :, 0:8, 24:32] += 100.0  # the last patch of the first row
    embed = encoder.clip.vision_model.embeddings
    difference = (embed(changed) - embed(pixels)).abs().sum(-1)[:, 1:]
    assert (difference > 1e-3).nonzero()[:, 1].unique().tolist() == [3]


@torch.no_grad()
@pytest.mark.parametrize("legacy", [False, True])
def test_text_vectors_are_clip_s_own_whatever_follows_the_mark_of_the_end(clip_config, legacy):
    end = clip_config.text_config.eos_token_id
    clip_config.text_config.eos_token_id = 2 if legacy else end  # in OpenAI's files: the highest number
    clip = CLIPModel(clip_config).eval()
    encoder = ImageEncoder(CLIP(CLIPConfig.of(clip_config.to_dict()))).eval()
    encoder.clip.load_state_dict(clip.state_dict())
    ids = torch.tensor([[1, 5, 6, end, 0, 0], [1, 4, 7, 8, 9, end]])
    expected = clip.get_text_features(input_ids=ids, attention_mask=(ids != 0).long()).pooler_output
    assert expected.shape == (2, 24)
    torch.testing.assert_close(encoder.encode_text(ids), expected)
    ids[0, 4:] = end
    torch.testing.assert_close(encoder.encode_text(ids), expected)


def test_a_frozen_vision_tower_keeps_no_graph_and_a_trained_one_does(encoder, pixels):
    assert encoder(pixels).vector.requires_grad
    with torch.no_grad():
        assert not encoder(pixels).vector.requires_grad
    encoder.requires_grad_(False)
    encoder.clip.text_model.requires_grad_(True)  # text has no part in it
    assert not encoder(pixels).vector.requires_grad
    encoder.clip.visual_projection.requires_grad_(True)
    assert encoder(pixels).vector.requires_grad


def test_values_of_the_vision_tower_alone_make_no_whole_clip():
    tower = CLIPConfig.of({"hidden_size": 32, "num_attention_heads": 2})
    assert (tower.vision_config.hidden_size, tower.text_config) == (32, None)
    for whole in ({"projection_dim": 24}, {"vision_config": {"hidden_size": 24}, "image_size": 224}):
        assert CLIPConfig.of(whole).text_config is not None


def test_patches_larger_than_the_image_are_an_error():
    with pytest.raises(ConfigError, match="patch_size"):
        CLIPConfig.of({"vision_config": {"image_size": 8, "patch_size": 16}})
