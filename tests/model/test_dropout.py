"""Dropout that is quick on a processor: the same distribution as torch's, and nothing else is other."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from saysee.model.configuration import FusionConfig, HeadConfig
from saysee.model.dropout import QuickDropout, QuickDropoutAttention, quicken_dropout
from saysee.model.fusion import FusionEncoder
from saysee.model.speech_encoder import SpeechHead

WIDTH, HEADS = 12, 3
NEARLY_NONE = 1e-9
"""A share that drops nothing, and yet takes the quick way."""


def quick(module):
    module = copy.deepcopy(module)
    quicken_dropout(module)
    return module


@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
def test_drops_its_share_and_keeps_the_mean(share):
    torch.manual_seed(0)
    values = torch.full((1000, 333), 2.0)
    dropped = QuickDropout(share)(values)
    error = math.sqrt(share * (1 - share) / values.numel())
    assert abs(float((dropped == 0).float().mean()) - share) < 4 * error
    assert dropped.unique().tolist() == pytest.approx([0.0, 2 / (1 - share)], rel=1e-3)
    assert float(dropped.mean()) == pytest.approx(2, rel=4 * error / (1 - share))


def test_values_are_dropped_independently():
    """Four values share a number of 64 bits: one must not predict the others."""
    torch.manual_seed(1)
    gone = (QuickDropout(0.3)(torch.ones(400_000)) == 0).float() - 0.3
    for apart in (1, 2, 3, 4, 8):
        together = float((gone[apart:] * gone[:-apart]).mean()) / (0.3 * 0.7)
        assert abs(together) < 4 / math.sqrt(len(gone)), apart


def test_the_gradient_is_that_of_what_stayed():
    torch.manual_seed(2)
    values = torch.randn(50, 7, requires_grad=True)
    dropped = QuickDropout(0.5)(values)
    dropped.sum().backward()
    assert torch.equal(values.grad, torch.where(dropped == 0, 0.0, 2.0))


def test_a_seed_repeats_the_draws():
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(QuickDropout(0.5)(torch.ones(999)))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(("share", "left"), [(0.0, 1.0), (NEARLY_NONE, 1.0), (1.0, 0.0)])
def test_all_or_nothing(share, left):
    assert torch.equal(QuickDropout(share)(torch.ones(5, 3)), torch.full((5, 3), left))


def test_evaluation_drops_nothing():
    values = torch.randn(4, 5)
    assert torch.equal(QuickDropout(0.5).eval()(values), values)


def test_bf16_stays_bf16():
    dropped = QuickDropout(0.5)(torch.ones(64, dtype=torch.bfloat16))
    assert dropped.dtype == torch.bfloat16
    assert set(dropped.tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("crosswise", [False, True])
@pytest.mark.parametrize("padding", [None, "bool", "float"])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_is_torch_s_where_nothing_is_dropped(crosswise, padding, bias):
    torch.manual_seed(5)
    attention = nn.MultiheadAttention(WIDTH, HEADS, dropout=NEARLY_NONE, bias=bias, batch_first=True).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    query = torch.randn(2, 5, WIDTH).double()
    key = torch.randn(2, 7, WIDTH).double() if crosswise else query
    mask = None if padding is None else torch.arange(key.shape[1]) >= torch.tensor([[key.shape[1]], [3]])
    if padding == "float":
        mask = torch.zeros(mask.shape).masked_fill(mask, -math.inf)
    results = []
    for each in (attention, quick(attention)):
        asked = query.clone().requires_grad_()
        looked_at = key.clone().requires_grad_() if crosswise else asked
        seen, weights = each(asked, looked_at, looked_at, key_padding_mask=mask, need_weights=False)
        assert weights is None
        seen.square().sum().backward()
        results.append((seen, asked.grad, looked_at.grad, *(parameter.grad for parameter in each.parameters())))
    torch.testing.assert_close(results[0], results[1])


def test_attention_weights_are_dropped_and_the_mean_stays():
    torch.manual_seed(6)
    attention = quick(nn.MultiheadAttention(WIDTH, HEADS, dropout=0.4, batch_first=True))
    tokens = torch.randn(1, 6, WIDTH)
    with torch.no_grad():
        many = tokens.expand(4000, -1, -1)
        seen, _ = attention(many, many, many, need_weights=False)
        expected, _ = attention.eval()(tokens, tokens, tokens, need_weights=False)
    assert seen.std(dim=0).min() > 0
    error = seen.std(dim=0) / math.sqrt(len(seen))
    assert ((seen.mean(dim=0) - expected[0]).abs() < 5 * error).all()


def test_attention_that_is_asked_for_more_takes_torch_s_way():
    torch.manual_seed(7)
    attention = nn.MultiheadAttention(WIDTH, HEADS, dropout=NEARLY_NONE, batch_first=True)
    tokens = torch.randn(2, 5, WIDTH)
    future = torch.ones(5, 5).triu(1).bool()
    for asked in ({"need_weights": True}, {"need_weights": False, "attn_mask": future}):
        torch.testing.assert_close(
            quick(attention)(tokens, tokens, tokens, **asked), attention(tokens, tokens, tokens, **asked)
        )


def test_head_and_fusion_encoder_have_it_under_the_old_names():
    head = SpeechHead(WIDTH, HeadConfig(heads=HEADS, layers=2, dropout=0.1), 8)
    fusion = FusionEncoder(FusionConfig(width=WIDTH, heads=HEADS, layers=2, dropout=0.1), 8, 10)
    for model, attentions in ((head, 2), (fusion, 4)):
        kinds = [type(part) for part in model.modules()]
        assert nn.Dropout not in kinds
        assert nn.MultiheadAttention not in kinds
        assert kinds.count(QuickDropoutAttention) == attentions
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS)
    assert set(head.layers.layers[0].state_dict()) == set(layer.state_dict())
