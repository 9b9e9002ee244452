"""The head and the layer mix against SpeechCLIP parallel's as described, and models saved before they were so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, gelu, layer_norm
from transformers import HubertConfig, HubertModel

from saysee import SpeechImageModel
from saysee.encoding.encoder import Encoder
from saysee.model.configuration import HeadConfig
from saysee.model.processor import SpeechImageProcessor

OLD = Path(__file__).with_name("old_form")
"""A tiny model of the large kind that release 0.2 saved, with the vectors that it gave; its norms are perturbed."""
HEADS = 4


def states_of_hubert(hubert, waveform, large):
    """Input of the first layer and output of each; of the large kind without the norm that ends the encoder."""
    found, hooks = [], []
    layers = hubert.encoder.layers
    hooks.append(layers[0].register_forward_pre_hook(lambda layer, inputs: found.append(inputs[0])))
    for layer in layers:
        hooks.append(layer.register_forward_hook(lambda layer, inputs, output: found.append(output)))
    last = hubert(waveform).last_hidden_state
    for hook in hooks:
        hook.remove()
    assert torch.equal(last, found[-1]) != large
    return found


def published_vector(states, weights, large):
    """One clip's states [1, F, S] to its vector [D], by the arithmetic of SpeechCLIP's parallel branch."""
    width = states[0].shape[-1]

    def norm(values, name):
        return layer_norm(values, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def linear(values, name):
        return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    if large:
        states = [layer_norm(state, (width,)) for state in states]
    mix = weights["layer_mix.weights"].softmax(0)
    tokens = sum(share * state[0] for share, state in zip(mix, states, strict=True))
    tokens = torch.cat([weights["head.cls"][None], tokens])
    layer = "head.layers.layers.0"
    together = tokens @ weights[f"{layer}.self_attn.in_proj_weight"].T + weights[f"{layer}.self_attn.in_proj_bias"]
    query, key, value = (part.view(len(tokens), HEADS, -1).transpose(0, 1) for part in together.chunk(3, dim=-1))
    attention = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1)
    attended = linear((attention @ value).transpose(0, 1).flatten(1), f"{layer}.self_attn.out_proj")
    tokens = norm(tokens + attended, f"{layer}.norm1")
    tokens = norm(tokens + linear(gelu(linear(tokens, f"{layer}.linear1")), f"{layer}.linear2"), f"{layer}.norm2")
    return linear(norm(tokens, "head.layers.norm"), "head.projection")[0]


@pytest.mark.parametrize("kind", ["base", "large"])
@torch.no_grad()
def test_the_vector_is_that_of_speechclip_s_head_and_layer_mix(kind, hubert_configs, clip_config, sounds):
    torch.manual_seed(0)
    model = SpeechImageModel.from_encoders(hubert_configs[kind], clip_config, text=False, head=HeadConfig(heads=HEADS))
    encoder = model.speech_encoder
    for name, weight in encoder.named_parameters():
        if "norm" in name or name == "layer_mix.weights":  # away from 1, 0 and equal shares, which show no difference
            weight += 0.5 * torch.randn_like(weight)
    hubert = HubertModel(HubertConfig(**encoder.hubert.config.to_dict())).eval()
    hubert.load_state_dict(encoder.hubert.state_dict())
    for clip in sounds:
        waveform, mask = SpeechImageProcessor.pad([clip])
        states = states_of_hubert(hubert, waveform, kind == "large")
        expected = published_vector(states, dict(encoder.named_parameters()), kind == "large")
        assert cosine_similarity(encoder(waveform, mask).vector[0], expected, dim=0) >= 0.999999


def test_cls_is_standard_normal_and_layers_start_as_torch_starts_them():
    from saysee.model.speech_encoder import SpeechHead

    torch.manual_seed(0)
    head = SpeechHead(768, HeadConfig(), 512)
    assert head.cls.std().item() == pytest.approx(1, abs=0.1)
    torch.manual_seed(0)
    torch.randn(768)
    layer = torch.nn.TransformerEncoderLayer(768, 8, dim_feedforward=3072)
    for name, weight in layer.named_parameters():
        torch.testing.assert_close(head.layers.layers[0].get_parameter(name), weight, rtol=0, atol=0)
    torch.testing.assert_close(head.projection.weight, torch.nn.Linear(768, 512).weight, rtol=0, atol=0)


def old_clips():
    return [np.random.default_rng(n).standard_normal(4000 + 2000 * n).astype(np.float32) / 10 for n in range(3)]


def test_a_model_saved_in_the_old_form_gives_its_old_vectors_and_stays_old_when_saved_again(tmp_path):
    expected = np.load(OLD / "vectors.npy")
    model = SpeechImageModel.from_pretrained(OLD)
    np.testing.assert_allclose(model.encode_speech(old_clips()), expected, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    again = SpeechImageModel.from_pretrained(tmp_path / "again")
    np.testing.assert_allclose(again.encode_speech(old_clips()), expected, rtol=0, atol=1e-5)
    assert Encoder(model).fingerprint("clip") == Encoder(again).fingerprint("clip")


def test_the_old_and_the_new_form_share_no_cached_features():
    old = SpeechImageModel.from_pretrained(OLD)
    head = HeadConfig(**{**old.config.head, "as_published": True})
    new = SpeechImageModel.from_encoders(old.config.speech_config, old.config.image_config, head=head)
    new.speech_encoder.hubert.load_state_dict(old.speech_encoder.hubert.state_dict())
    sides = [Encoder(model).side("clip") for model in (old, new)]
    assert sides[0].about_features != sides[1].about_features
