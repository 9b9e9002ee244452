"""The contrastive loss against closed forms and a loop written by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.tasks.contrastive import AllImages, ContrastiveTask, info_nce


def features(a, b):
    mask = torch.ones(len(a), 1, dtype=torch.bool)
    return SpeechFeatures(a, a[:, None], mask), ImageFeatures(b, b[:, None])


def by_hand(a, b, scale, ids):
    """One row and one column at a time, from the definition."""
    total = 0.0
    for queries, keys in ((a, b), (b, a)):
        for i, query in enumerate(queries):
            exponents = []
            for j, key in enumerate(keys):
                if i == j or ids[i] != ids[j]:
                    exponents.append(math.exp(scale * float(query @ key / (query.norm() * key.norm()))))
            own = math.exp(scale * float(query @ keys[i] / (query.norm() * keys[i].norm())))
            total -= math.log(own / sum(exponents))
    return total / (2 * len(a))


@pytest.mark.parametrize("size", [1, 2, 7])
def test_zero_vectors_give_the_logarithm_of_the_batch_size(size):
    zeros = torch.zeros(size, 4)
    loss = ContrastiveTask()(*features(zeros, zeros), torch.arange(size))["contrastive_loss"]
    assert loss.item() == pytest.approx(math.log(size), abs=1e-6)


def test_right_answers_that_share_nothing_give_the_closed_form_whatever_their_lengths():
    loss = info_nce(3 * torch.eye(5), torch.eye(5) / 7, 1 / 0.5, torch.arange(5))
    assert loss.item() == pytest.approx(math.log(1 + 4 * math.exp(-2)), abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 2**16))
def test_pairs_of_one_image_are_no_negatives_of_each_other(ids, seed):
    draw = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(len(ids), 5, generator=draw) for _ in range(2))
    loss = info_nce(a, b, 3.0, torch.tensor(ids))
    assert loss.item() == pytest.approx(by_hand(a, b, 3.0, ids), abs=1e-5)


def test_a_clip_is_compared_with_all_images_and_an_image_with_the_clips_of_the_batch():
    draw = torch.Generator().manual_seed(0)
    clips, images = torch.randn(3, 5, generator=draw), torch.randn(6, 5, generator=draw)
    unit = torch.nn.functional.normalize(images, dim=-1)
    all_images, ids = AllImages(unit, torch.tensor([0, 2, 3, 5, 8, 9])), torch.tensor([8, 2, 8])
    own = images[[4, 1, 4]]
    task = ContrastiveTask(temperature=0.25)
    in_batch = info_nce(clips, own, 4.0, ids)
    task.among = all_images
    loss = task(*features(clips, own), ids)["contrastive_loss"]
    cosines = torch.nn.functional.cosine_similarity(clips[:, None], images[None], dim=-1)
    of_clips = torch.nn.functional.cross_entropy(4.0 * cosines, torch.tensor([4, 1, 4]))
    of_images = torch.tensor([math.log(1 + math.exp(4 * float(cosines[1, 4] - cosines[row, 4]))) for row in (0, 2)])
    of_images = (of_images.sum() + torch.logsumexp(4 * cosines[:, 1], dim=0) - 4 * cosines[1, 1]) / 3
    assert loss.item() == pytest.approx(float(of_clips + of_images) / 2, abs=1e-5)
    assert loss > in_batch


def test_a_batch_of_one_image_has_no_negatives():
    a = torch.randn(4, 5, requires_grad=True)
    loss = info_nce(a, torch.randn(4, 5), 10.0, torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert not a.grad.any()


def test_masked_pairs_leave_no_nan_in_the_gradient():
    a = torch.randn(4, 5, requires_grad=True)
    info_nce(a, torch.randn(4, 5), 10.0, torch.tensor([0, 0, 1, 1])).backward()
    assert a.grad.isfinite().all()
    assert a.grad.any()


def test_logits_are_fp32_under_autocast():
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(16, 64, generator=draw) for _ in range(2))
    ids = torch.arange(16)
    exact = info_nce(a, b, 100.0, ids)
    assert exact.item() == pytest.approx(by_hand(a.double(), b.double(), 100.0, ids.tolist()), rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(info_nce(a, b, 100.0, ids), exact)
        half = info_nce(a.bfloat16(), b.bfloat16(), 100.0, ids)
    assert half.dtype == torch.float32
    assert torch.equal(half, info_nce(a.bfloat16().float(), b.bfloat16().float(), 100.0, ids))


def test_a_fixed_temperature_is_no_parameter_and_is_taken_as_it_is():
    task = ContrastiveTask(temperature=0.005)
    assert not list(task.parameters())
    metrics = task(*features(torch.eye(3), torch.eye(3)), torch.arange(3))
    assert metrics["temperature"].item() == pytest.approx(0.005)
    assert not metrics["temperature"].requires_grad


def test_a_learned_temperature_has_no_bound():
    task = ContrastiveTask(temperature=0.07, learn_temperature=True)
    right = features(torch.eye(3), torch.eye(3))
    wrong = features(torch.eye(3), torch.eye(3).roll(1, 0))
    optimizer = torch.optim.SGD(task.parameters(), lr=1.0)

    def step(pairs):
        metrics = task(*pairs, torch.arange(3))
        optimizer.zero_grad()
        metrics["contrastive_loss"].backward()
        optimizer.step()
        return metrics["temperature"].item()

    assert step(right) == pytest.approx(0.07)
    with torch.no_grad():
        task.log_scale.fill_(50.0)
    assert step(wrong) == pytest.approx(math.exp(-50))
    assert step(wrong) > math.exp(-50)
