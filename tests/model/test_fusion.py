"""The fusion encoder: what it may look at, and the attention that it shows."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from saysee.model.configuration import FusionConfig
from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.model.fusion import FusionEncoder

D, V, W = 8, 12, 16


def build(**settings):
    torch.manual_seed(0)
    return FusionEncoder(FusionConfig(width=W, layers=2, heads=2, **settings), D, V).eval()


@pytest.fixture
def features():
    draw = torch.Generator().manual_seed(1)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    speech = SpeechFeatures(torch.randn(2, D, generator=draw), torch.randn(2, 6, D, generator=draw), mask)
    return speech, ImageFeatures(torch.randn(2, D, generator=draw), torch.randn(2, 9, V, generator=draw))


@torch.no_grad()
def test_frames_beyond_a_clip_s_end_change_nothing(features):
    speech, images = features
    fusion = build()
    louder = torch.where(speech.mask[..., None], speech.frames, 50.0)
    patches = fusion.image_in(images.patches)
    asking = [
        fusion(fusion.speech_in(frames), patches, query_mask=speech.mask, vector=speech.vector)
        for frames in (speech.frames, louder)
    ]
    torch.testing.assert_close(asking[0].global_token, asking[1].global_token)
    torch.testing.assert_close(asking[0].tokens[speech.mask], asking[1].tokens[speech.mask])
    asked = [fusion(patches, fusion.speech_in(frames), context_mask=speech.mask) for frames in (speech.frames, louder)]
    torch.testing.assert_close(asked[0].global_token, asked[1].global_token)
    torch.testing.assert_close(asked[0].tokens, asked[1].tokens)


@torch.no_grad()
def test_the_global_token_knows_of_the_other_queries(features):
    speech, images = features
    fusion = build()
    patches = fusion.image_in(images.patches)
    frames = fusion.speech_in(speech.frames)
    changed = torch.cat([frames[:, :1].flip(-1), frames[:, 1:]], dim=1)
    before, after = (fusion(query, patches, query_mask=speech.mask) for query in (frames, changed))
    assert (before.global_token - after.global_token).abs().max() > 1e-4


@pytest.mark.parametrize("query", ["speech", "image"])
def test_the_global_token_alone_is_the_same_and_teaches_the_same(features, query):
    speech, images = features
    found = []
    for global_only in (False, True):
        fusion = build(dropout=0.0)
        frames = fusion.speech_in(speech.frames)
        patches = fusion.image_in(images.patches)
        if query == "speech":
            output = fusion(frames, patches, query_mask=speech.mask, vector=speech.vector, global_only=global_only)
        else:
            output = fusion(patches, frames, context_mask=speech.mask, global_only=global_only)
        output.global_token.pow(3).sum().backward()
        gradients = {name: each.grad for name, each in fusion.named_parameters() if each.grad is not None}
        found.append((output.global_token.detach(), gradients))
        assert output.tokens.shape[1] == (0 if global_only else 6 if query == "speech" else 9)
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_items_of_a_batch_do_not_see_each_other(features):
    speech, images = features
    fusion = build()
    together = fusion(
        fusion.speech_in(speech.frames), fusion.image_in(images.patches), query_mask=speech.mask, vector=speech.vector
    )
    single = fusion(
        fusion.speech_in(speech.frames[1:, :4]), fusion.image_in(images.patches[1:]), vector=speech.vector[1:]
    )
    torch.testing.assert_close(together.global_token[1:], single.global_token)
    torch.testing.assert_close(together.tokens[1:, :4], single.tokens)


@torch.no_grad()
def test_asking_for_attention_does_not_change_the_output(features):
    speech, images = features
    fusion = build()
    query, context = fusion.speech_in(speech.frames), fusion.image_in(images.patches)
    quiet = fusion(query, context, query_mask=speech.mask)
    shown = fusion(query, context, query_mask=speech.mask, need_attention=True)
    assert quiet.attention is None
    assert shown.attention.shape == (2, 1 + 6, 9)
    torch.testing.assert_close(shown.attention.sum(-1), torch.ones(2, 7))
    torch.testing.assert_close(quiet.tokens, shown.tokens)


@torch.no_grad()
@pytest.mark.parametrize("query", ["speech", "image"])
def test_attention_has_a_row_per_frame_that_sums_to_one(features, query):
    speech, images = features
    attention = build(query=query).attend(speech, images)
    assert attention.shape == (2, 6, 9)
    torch.testing.assert_close(attention.sum(-1)[speech.mask], torch.ones(10))
    assert (attention >= 0).all()


@torch.no_grad()
@pytest.mark.parametrize("query", ["speech", "image"])
@pytest.mark.parametrize("global_token", ["vector", "blank", "other"])
def test_attention_is_read_with_the_global_token_of_training(features, query, global_token):
    speech, images = features
    fusion = build(query=query, global_token=global_token)
    before = fusion.attend(speech, images)
    other = fusion.attend(
        dataclasses.replace(speech, vector=speech.vector.flip(-1)),
        dataclasses.replace(images, vector=images.vector.flip(-1)),
    )
    assert torch.equal(before, other) == (global_token == "blank")
    asker, looked_at = (speech, images) if query == "speech" else (images, speech)
    turned = dataclasses.replace(asker, vector=asker.vector.flip(-1))
    pair = (turned, looked_at) if query == "speech" else (looked_at, turned)
    assert torch.equal(before, fusion.attend(*pair)) == (global_token != "vector")
