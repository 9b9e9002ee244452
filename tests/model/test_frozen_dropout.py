"""HuBERT's dropout while it is frozen: on in training where it is asked for, off in every evaluation."""

from __future__ import annotations

import pytest
import torch
from transformers import HubertConfig, HubertModel

from saysee import SpeechImageModel
from saysee.model.processor import SpeechImageProcessor


@pytest.fixture
def model(hubert_configs, clip_config):
    torch.manual_seed(0)
    model = SpeechImageModel.from_encoders(hubert_configs["base"], clip_config, text=False)
    assert model.config.speech_config.hidden_dropout == 0.1
    model.set_trainable(0, 0)
    return model


def states(model, clip):
    return torch.stack(model.speech_encoder.layer_states(*SpeechImageProcessor.pad([clip]))[0])


def test_in_training_the_frozen_states_are_those_of_hubert_in_training(model, sounds):
    model.frozen_dropout = True
    model.train()
    torch.manual_seed(3)
    found = states(model, sounds[0])
    hubert = HubertModel(HubertConfig(**model.config.speech_config.to_dict(), layerdrop=0.0, apply_spec_augment=False))
    hubert.load_state_dict(model.speech_encoder.hubert.state_dict())
    torch.manual_seed(3)
    with torch.no_grad():
        expected = hubert.train()(torch.from_numpy(sounds[0])[None], output_hidden_states=True).hidden_states
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-5)
    assert not found.requires_grad
    assert not torch.allclose(found, states(model, sounds[0]), atol=1e-2)


def test_it_is_off_in_evaluation_and_without_the_setting(model, sounds):
    quiet = states(model.eval(), sounds[0])
    assert torch.equal(quiet, states(model.train(), sounds[0]))
    model.frozen_dropout = True
    assert torch.equal(quiet, states(model.train().eval(), sounds[0]))
    before = model.train().encode_speech(sounds[:2])
    assert (before == model.encode_speech(sounds[:2])).all()
