"""What the noise replaces, with what, and what it must never touch. Each token says whose it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saysee.settings.recipe import SpeechNoiseSettings
from saysee.tasks.noise import blocks, corrupt, with_gaps

PAD = -1.0


@st.composite
def batches(draw, sources):
    """Tokens [B, N, 3] that hold (item, place, 1), padding that holds -1, and the options of the noise."""
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    ids = draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths)))
    width = max(lengths)
    items, places = torch.meshgrid(torch.arange(len(lengths)), torch.arange(width), indexing="ij")
    mask = places < torch.tensor(lengths)[:, None]
    tokens = torch.stack([items, places, torch.ones_like(items)], dim=-1).float().masked_fill(~mask[..., None], PAD)
    share = draw(st.integers(0, 8)) / 8
    torch.manual_seed(draw(st.integers(0, 2**16)))
    return tokens, mask, torch.tensor(ids), share, draw(st.sampled_from(sources)), tokens[:, 0]


@settings(max_examples=150, deadline=None)
@given(batches(["same_position", "any_position", "alike"]))
def test_a_replacement_is_a_real_token_of_another_image(batch):
    tokens, mask, ids, _, source, _ = batch
    noisy, replaced = corrupt(*batch)
    for item, place in replaced.nonzero().tolist():
        donor, donor_place, marker = noisy[item, place].tolist()
        assert marker == 1, "padding was used as a replacement"
        assert ids[int(donor)] != ids[item]
        if source != "any_position":
            assert donor_place == place % int(mask[int(donor)].sum())
    assert torch.equal(noisy[~replaced], tokens[~replaced])


@settings(max_examples=150, deadline=None)
@given(batches(["same_position", "any_position", "alike", "zeros", "gaussian"]))
def test_exactly_the_share_is_replaced_and_never_padding(batch):
    tokens, mask, ids, share, source, _ = batch
    noisy, replaced = corrupt(*batch)
    assert noisy.shape == tokens.shape
    assert noisy.isfinite().all()
    assert not (replaced & ~mask).any()
    assert torch.equal(noisy[~replaced], tokens[~replaced])
    for item, length in enumerate(mask.sum(1).tolist()):
        alone = bool((ids == ids[item]).all())
        expected = 0 if alone and source not in ("zeros", "gaussian") else round(share * length)
        assert int(replaced[item].sum()) == expected


def test_an_item_without_another_image_keeps_its_tokens():
    tokens = torch.randn(3, 4, 2)
    noisy, replaced = corrupt(tokens, torch.ones(3, 4).bool(), torch.zeros(3).long(), 1.0, "any_position", tokens[:, 0])
    assert torch.equal(noisy, tokens)
    assert not replaced.any()


def labelled(items, width):
    return torch.arange(items * width).reshape(items, width, 1).float()


def test_every_place_and_every_other_image_has_its_turn():
    torch.manual_seed(0)
    tokens, mask = labelled(4, 10), torch.ones(4, 10, dtype=torch.bool)
    ids = torch.tensor([0, 1, 2, 0])
    places, donors = set(), set()
    for _ in range(100):
        noisy, replaced = corrupt(tokens, mask, ids, 0.5, "any_position", tokens[:, 0])
        places |= set(replaced[0].nonzero()[:, 0].tolist())
        donors |= set(noisy[0, replaced[0], 0].long().tolist())
    assert places == set(range(10))
    assert donors == set(range(10, 30))


def test_the_most_alike_of_the_other_images_gives_all_its_places():
    tokens, mask = labelled(4, 10), torch.ones(4, 10, dtype=torch.bool)
    # Item 1 is another clip of item 0's image; of the others, 3 points where 0 does, however long its vector.
    vectors = torch.tensor([[1.0, 0.1], [1.0, 0.1], [-1.0, 0.3], [70.0, 9.0]])
    noisy, replaced = corrupt(tokens, mask, torch.tensor([0, 0, 1, 2]), 0.5, "alike", vectors)
    for item, donor in ((0, 3), (1, 3), (2, 3), (3, 0)):
        places = replaced[item].nonzero()[:, 0]
        same_image = {0: (0, 1), 3: (3,)}[donor]
        assert any((noisy[item, places, 0] == tokens[each, places, 0]).all() for each in same_image)


def test_zeros_are_zeros():
    tokens = torch.ones(2, 8, 3)
    noisy, replaced = corrupt(tokens, torch.ones(2, 8).bool(), torch.zeros(2).long(), 0.5, "zeros", tokens[:, 0])
    assert replaced.sum(1).tolist() == [4, 4]
    assert not noisy[replaced].any()
    assert noisy[~replaced].eq(1).all()


def test_gaussian_noise_has_the_mean_and_the_deviation_of_the_real_tokens():
    torch.manual_seed(0)
    tokens = torch.randn(8, 500, 2) * torch.tensor([0.5, 4.0]) + torch.tensor([10.0, -3.0])
    mask = torch.ones(8, 500, dtype=torch.bool)
    mask[:, 400:] = False
    tokens[:, 400:] = 1e6
    noisy, replaced = corrupt(tokens, mask, torch.arange(8), 1.0, "gaussian", tokens[:, 0])
    assert torch.equal(replaced, mask)
    found = noisy[mask]
    torch.testing.assert_close(found.mean(0), torch.tensor([10.0, -3.0]), atol=0.3, rtol=0)
    torch.testing.assert_close(found.std(0), torch.tensor([0.5, 4.0]), atol=0.2, rtol=0)
    assert (found != tokens[mask]).all()


def test_gaussian_noise_of_a_single_token_is_that_token():
    tokens = torch.randn(1, 1, 3)
    noisy, _ = corrupt(tokens, torch.ones(1, 1).bool(), torch.zeros(1).long(), 1.0, "gaussian", tokens[:, 0])
    assert torch.equal(noisy, tokens)


@pytest.mark.parametrize("source", ["same_position", "any_position", "alike", "zeros", "gaussian"])
def test_the_type_stays(source):
    tokens = torch.randn(3, 4, 2).bfloat16()
    noisy, _ = corrupt(tokens, torch.ones(3, 4).bool(), torch.arange(3), 0.5, source, tokens[:, 0])
    assert noisy.dtype == torch.bfloat16


@settings(max_examples=100, deadline=None)
@given(batches(["clip", "zeros"]), st.booleans(), st.integers(1, 5))
def test_gaps_are_filled_by_one_clip_of_another_image_in_its_own_order(batch, every, span):
    tokens, mask, ids, share, source, _ = batch
    wanted = SpeechNoiseSettings(clips=float(every), share=min(share, 0.9), seconds=0.04 * span, source=source)
    noisy = with_gaps(tokens, mask, ids, wanted, 0.04)
    changed = (noisy != tokens).any(dim=-1)
    assert not (changed & ~mask).any()
    if not every or share == 0:
        assert not changed.any()
    if source == "zeros":
        assert not noisy[changed].any()
        return
    for item in range(len(tokens)):
        donors = noisy[item][changed[item]]
        assert len(donors[:, 0].unique()) <= 1
        assert all(ids[int(donor)] != ids[item] for donor in donors[:, 0])
        assert (donors[:, 2] == 1).all(), "padding fills a gap"
        for place in (changed[item, 1:] & changed[item, :-1]).nonzero()[:, 0].tolist():
            before, after = noisy[item, place, 1], noisy[item, place + 1, 1]
            assert after == (before + 1) % int(mask[int(noisy[item, place, 0])].sum())


def test_gaps_have_their_share_and_length():
    torch.manual_seed(0)
    wanted = SpeechNoiseSettings(clips=0.5, share=0.3, seconds=0.2, source="zeros")
    gaps = with_gaps(torch.ones(400, 300, 1), torch.ones(400, 300, dtype=torch.bool), torch.arange(400), wanted, 0.04)
    gaps = gaps[..., 0] == 0
    noisy = gaps.any(dim=1)
    assert abs(float(noisy.float().mean()) - 0.5) < 0.08
    assert abs(float(gaps[noisy].float().mean()) - 0.3) < 0.02
    starts = gaps[:, 5:] & ~gaps[:, 4:-1]
    for clip, place in starts.nonzero()[:200].tolist():
        assert gaps[clip, place + 5 : place + 10].all(), "a gap is shorter than its length"


def test_blocks_are_squares_of_patches_or_runs_of_frames():
    assert blocks("image", 9, 2, torch.device("cpu")).tolist() == [0, 0, 1, 0, 0, 1, 2, 2, 3]
    assert blocks("speech", 5, 2, torch.device("cpu")).tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("source", ["same_position", "any_position", "alike"])
def test_a_block_is_replaced_whole_and_by_one_donor(source):
    items, places = torch.meshgrid(torch.arange(6), torch.arange(16), indexing="ij")
    tokens = torch.stack([items, places], dim=-1).float()
    together = blocks("image", 16, 2, torch.device("cpu"))
    whole = torch.ones(6, 16, dtype=torch.bool)
    noisy, replaced = corrupt(tokens, whole, torch.arange(6), 0.5, source, tokens[:, 0], together)
    assert (replaced.sum(1) == 8).all()
    for item in range(6):
        assert sorted(set(together[replaced[item]].tolist())) == sorted(
            block for block in range(4) if replaced[item][together == block].all()
        )
        for block in set(together[replaced[item]].tolist()):
            donors, of_donor = noisy[item, together == block].long().T
            assert len(set(donors.tolist())) == 1
            assert donors[0] != item
            shift = (of_donor - places[item, together == block]) % 16
            assert len(set(shift.tolist())) == 1
            assert source == "any_position" or shift[0] == 0
