"""The speech encoder against HuBERT itself, and the promise that a clip's features do not depend on its batch."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from torch import nn
from torch.nn.functional import cosine_similarity, layer_norm
from transformers import HubertModel

from saysee.errors import ConfigError
from saysee.model.configuration import HeadConfig
from saysee.model.pretrained.configuration import HubertConfig
from saysee.model.pretrained.weights import load_hubert
from saysee.model.processor import SpeechImageProcessor
from saysee.model.speech_encoder import LayerMix, SpeechEncoder, SpeechHead

WIDTH = 24
KINDS = ("base", "large")


@pytest.fixture
def hubert_configs(hubert_configs):
    return {kind: HubertConfig.of(config.to_dict()) for kind, config in hubert_configs.items()}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=[{"pooling": "cls"}, {"pooling": "mean", "stride": 3}], ids=["published", "nano's"])
def encoder(kind, hubert_configs, request):
    torch.manual_seed(0)
    return SpeechEncoder(hubert_configs[kind], HeadConfig(**request.param), WIDTH).eval()


def plain_hubert(encoder):
    """transformers' own HuBERT with the encoder's weights."""
    hubert = HubertModel(transformers.HubertConfig(**encoder.hubert.config.to_dict())).eval()
    hubert.load_state_dict(encoder.hubert.state_dict())
    return hubert


def alone(clip):
    return SpeechImageProcessor.pad([clip])


@torch.no_grad()
def test_same_clip_same_features_alone_and_in_any_batch(encoder, sounds):
    for batch in (sounds, sounds[::-1], sounds[1:3], [sounds[1], sounds[0], sounds[1]]):
        together = encoder(*SpeechImageProcessor.pad(batch))
        for row, clip in enumerate(batch):
            single = encoder(*alone(clip))
            frames = single.frames.shape[1]
            assert cosine_similarity(together.vector[row], single.vector[0], dim=0) >= 0.9999
            assert together.mask[row].sum() == frames
            assert single.mask.all()
            torch.testing.assert_close(together.frames[row, :frames], single.frames[0], rtol=0, atol=1e-4)


@torch.no_grad()
def test_plain_hubert_base_does_not_keep_that_promise(hubert_configs, sounds):
    encoder = SpeechEncoder(hubert_configs["base"], HeadConfig(), WIDTH).eval()
    hubert = plain_hubert(encoder)
    short, mask = SpeechImageProcessor.pad(sounds)[0][2], SpeechImageProcessor.pad(sounds)[1]
    single = hubert(short[None, : mask[2].sum()]).last_hidden_state[0]
    together = hubert(SpeechImageProcessor.pad(sounds)[0], attention_mask=mask.long()).last_hidden_state[2]
    assert cosine_similarity(together[: len(single)].mean(0), single.mean(0), dim=0) < 0.999


@torch.no_grad()
def test_different_clips_have_different_vectors(encoder, sounds):
    vectors = encoder(*SpeechImageProcessor.pad(sounds)).vector
    likeness = cosine_similarity(vectors[:, None], vectors[None], dim=-1).fill_diagonal_(0)
    assert likeness.max() < 0.9999


@torch.no_grad()
def test_the_vector_is_the_mean_of_the_real_frames_where_the_head_says_so(kind, hubert_configs, sounds):
    encoder = SpeechEncoder(hubert_configs[kind], HeadConfig(pooling="mean"), WIDTH).eval()
    found = encoder(*SpeechImageProcessor.pad(sounds))
    assert not found.mask.all()
    for vector, frames, mask in zip(found.vector, found.frames, found.mask, strict=True):
        torch.testing.assert_close(vector, frames[mask].mean(dim=0))


@torch.no_grad()
@pytest.mark.parametrize("real", [4, 5, 6])
def test_with_a_stride_the_head_sees_the_means_of_real_frames(real):
    torch.manual_seed(0)
    plain = SpeechHead(8, HeadConfig(heads=2, pooling="mean"), WIDTH).eval()
    strided = SpeechHead(8, HeadConfig(heads=2, pooling="mean", stride=3), WIDTH).eval()
    strided.load_state_dict(plain.state_dict())
    states, mask = torch.randn(2, 7, 8), torch.arange(7) < torch.tensor([[real], [7]])
    states[~mask] = math.nan
    found = strided(states, mask)
    means = torch.stack([states[0, :3].mean(dim=0), states[0, 3:real].mean(dim=0)])
    expected = plain(means[None], torch.ones(1, 2, dtype=torch.bool))
    assert found.mask.tolist() == [[True, True, False], [True, True, True]]
    torch.testing.assert_close(found.frames[0, :2], expected.frames[0])
    torch.testing.assert_close(found.vector[0], expected.vector[0])


@torch.no_grad()
def test_unpadded_input_gives_hubert_s_own_hidden_states(kind, hubert_configs, sounds):
    """Of the old form; what the published form takes of the large kind is in ``test_published_form``."""
    encoder = SpeechEncoder(hubert_configs[kind], HeadConfig(as_published=False), WIDTH).eval()
    # Away from its initial value, where the large kind's last norm would not show.
    nn.init.normal_(encoder.hubert.encoder.layer_norm.weight)
    output = plain_hubert(encoder)(alone(sounds[0])[0], output_hidden_states=True)
    expected = (*output.hidden_states[:-1], output.last_hidden_state)
    states, _ = encoder.layer_states(*alone(sounds[0]))
    assert len(states) == len(expected) == 4
    for state, truth in zip(states, expected, strict=True):
        torch.testing.assert_close(state, truth, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_second_batch_is_not_normalized_by_the_lengths_of_the_first(encoder, sounds):
    before = encoder(*alone(sounds[0])).vector
    encoder(*SpeechImageProcessor.pad(sounds))
    torch.testing.assert_close(encoder(*alone(sounds[0])).vector, before, rtol=0, atol=0)


@torch.no_grad()
def test_mask_counts_one_frame_per_20_ms(encoder):
    clips = [torch.randn(samples).numpy() for samples in (400, 719, 720, 16_000)]
    assert encoder.layer_states(*SpeechImageProcessor.pad(clips))[1].sum(1).tolist() == [1, 1, 2, 49]


def test_training_takes_the_shortest_clip_and_masks_nothing(encoder, sounds):
    # SpecAugment fails on clips under ten frames and makes two passes differ; dropout is off, so nothing else could.
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for layer in [*encoder.hubert.encoder.layers, *encoder.head.layers.layers]:
        for attention in layer.modules():
            if hasattr(attention, "dropout") and isinstance(attention.dropout, float):
                attention.dropout = 0.0
    encoder.train()
    first, second = encoder(*alone(sounds[1])), encoder(*alone(sounds[1]))
    torch.testing.assert_close(first.vector, second.vector)


def test_every_parameter_that_makes_the_vector_learns_from_a_padded_batch(encoder, sounds):
    features = encoder(*SpeechImageProcessor.pad(sounds))
    (features.vector**2).sum().backward()
    silent = [
        name
        for name, parameter in encoder.named_parameters()
        if "masked_spec_embed" not in name
        and not (encoder.unnormed_last and name.startswith("hubert.encoder.layer_norm"))
        and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    ]
    assert silent == []


def test_a_frozen_hubert_keeps_no_graph(encoder, sounds):
    encoder.hubert.requires_grad_(False)
    seen = []
    encoder.hubert.register_forward_hook(lambda module, inputs, output: seen.extend(output))
    features = encoder(*alone(sounds[0]))
    assert not any(state.requires_grad for state in seen)
    assert features.vector.requires_grad
    encoder.requires_grad_(True)
    with torch.no_grad():
        assert not encoder(*alone(sounds[0])).vector.requires_grad


def test_the_mix_is_normalized_for_the_large_kind_unless_set_otherwise(kind, hubert_configs):
    config = hubert_configs[kind]
    assert SpeechEncoder(config, HeadConfig(), WIDTH).layer_mix.normalize == (kind == "large")
    for chosen in (True, False):
        assert SpeechEncoder(config, HeadConfig(normalize_hidden_states=chosen), WIDTH).layer_mix.normalize is chosen


def test_the_mix_starts_as_the_mean_and_follows_its_weights():
    states = tuple(torch.randn(2, 5, 8) for _ in range(3))
    mix = LayerMix(3, normalize=False)
    torch.testing.assert_close(mix(states), torch.stack(states).mean(0))
    with torch.no_grad():
        mix.weights.copy_(torch.tensor([0.0, 100.0, 0.0]))
    torch.testing.assert_close(mix(states), states[1])
    mix.normalize = True
    torch.testing.assert_close(mix(states), layer_norm(states[1], (8,)))
    with pytest.raises(ValueError):
        mix(states[:2])


def test_heads_that_do_not_divide_the_width_are_an_error_of_one_line(hubert_configs):
    with pytest.raises(ConfigError, match=r"5 attention heads .* 32") as raised:
        SpeechEncoder(hubert_configs["base"], HeadConfig(heads=5), WIDTH)
    assert "\n" not in str(raised.value)


def test_narrow_positional_convolutions_are_right_in_bf16_too():
    """On a CPU with AMX, torch's bf16 kernel for 8 channels a group is wrong by as much as its result."""
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=128,
        conv_dim=(16, 16, 32),
        conv_kernel=(20, 8, 4),
        conv_stride=(10, 8, 4),
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=16,
    )
    convolution = SpeechEncoder(config, HeadConfig(heads=4), width=16).hubert.encoder.pos_conv_embed
    hidden = torch.randn(8, 170, 128)
    with torch.inference_mode():
        exact = convolution(hidden)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = convolution(hidden).float()
    assert float((rounded - exact).norm() / exact.norm()) < 0.02


@torch.no_grad()
def test_only_the_chosen_hidden_states_are_mixed_in_the_order_given(kind, hubert_configs, sounds):
    torch.manual_seed(0)
    whole = SpeechEncoder(hubert_configs[kind], HeadConfig(), WIDTH).eval()
    torch.manual_seed(0)
    chosen = SpeechEncoder(hubert_configs[kind], HeadConfig(speech_layers=[-1, 1]), WIDTH).eval()
    states, mask = whole.layer_states(*SpeechImageProcessor.pad(sounds))
    some, same_mask = chosen.layer_states(*SpeechImageProcessor.pad(sounds))
    assert len(states) == 4
    assert (chosen.layers, len(some), len(chosen.layer_mix.weights)) == ([3, 1], 2, 2)
    assert torch.equal(mask, same_mask)
    torch.testing.assert_close(some[0], states[3])
    torch.testing.assert_close(some[1], states[1])
    from_states = chosen.from_layer_states(torch.stack(some), mask)
    torch.testing.assert_close(from_states.vector, chosen(*SpeechImageProcessor.pad(sounds)).vector)


@pytest.mark.parametrize("layers", [[], [4], [-5], [1, 1], [3, -1]])
def test_hidden_states_that_hubert_does_not_have_are_an_error_of_one_line(hubert_configs, layers):
    with pytest.raises(ConfigError, match=r"head\.speech_layers.*0 to 3.*-4 to -1") as raised:
        SpeechEncoder(hubert_configs["base"], HeadConfig(speech_layers=layers), WIDTH)
    assert "\n" not in str(raised.value)


@torch.no_grad()
def test_a_clip_shorter_than_a_frame_has_one_frame_alone_and_in_any_batch(kind, hubert_configs):
    """The published sizes have frames of 400 samples, the least that is decoded; a HuBERT of longer ones needs it."""
    coarse = {"conv_stride": [20, 4, 4], "conv_kernel": [40, 8, 8], "conv_dim": [16, 16, 16]}
    settings = hubert_configs[kind].to_dict() | coarse
    encoder = SpeechEncoder(HubertConfig.of(settings), HeadConfig(), WIDTH).eval()
    assert encoder.frame_samples == 40 + 7 * 20 + 7 * 80
    assert encoder.frame_seconds == 320 / 16_000
    short, long = torch.randn(500).numpy(), torch.randn(4000).numpy()
    single = encoder(*alone(short))
    assert single.mask.tolist() == [[True]]
    together = encoder(*SpeechImageProcessor.pad([long, short]))
    assert together.mask[1].sum() == 1
    torch.testing.assert_close(together.vector[1], single.vector[0], rtol=0, atol=1e-4)


def test_the_published_sizes_have_a_frame_of_400_samples_each_20_ms():
    encoder = SpeechEncoder(HubertConfig(num_hidden_layers=1, hidden_size=48, num_attention_heads=2), HeadConfig(), 8)
    assert (encoder.frame_samples, encoder.frame_seconds, encoder.feature_seconds) == (400, 0.02, 0.02)


def test_a_hubert_with_batch_norm_of_its_positions_encodes_a_clip_alike_in_any_batch(hubert_configs, tmp_path):
    config = transformers.HubertConfig(**hubert_configs["base"].to_dict() | {"conv_pos_batch_norm": True})
    hubert = HubertModel(config).eval()
    hubert.encoder.pos_conv_embed.batch_norm.running_mean.normal_()
    hubert.save_pretrained(tmp_path)
    clips = torch.randn(2, 8000)
    clips[1, 5000:] = 0
    with torch.inference_mode():
        alone = hubert(clips[1:, :5000]).last_hidden_state[0]
        torch.testing.assert_close(load_hubert(tmp_path)(clips[1:, :5000])[-1][0], alone)
        batch = load_hubert(tmp_path)(clips, torch.tensor([8000, 5000]))[-1][1]
    torch.testing.assert_close(batch[: len(alone)], alone)
