"""Speech-image matching: which negatives are drawn, the closed forms of the loss, and where its gradient goes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from saysee.errors import ConfigError
from saysee.model.configuration import FusionConfig
from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.model.fusion import FusionEncoder
from saysee.settings.reading import resolve_recipe
from saysee.tasks.matching import MatchingTask, hard_negatives
from saysee.training.objective import build_objective

B, F, P, D, V, W = 4, 6, 5, 8, 12, 16
IDS = torch.tensor([7, 7, 3, 5])  # two clips of one image


def build(temperature: float = 0.07) -> MatchingTask:
    torch.manual_seed(0)
    config = FusionConfig(width=W, layers=1, heads=2, dropout=0.0, matching=True)
    return MatchingTask(1.0, FusionEncoder(config, D, V), temperature)


def judging(monkeypatch, task, judge):
    """The fusion encoder's judgment replaced by a function of the numbers of clips and images; returns what it saw."""
    seen = []

    def match(speech, images, clips, of_clips):
        seen.append((clips, of_clips))
        return judge(clips, of_clips)

    monkeypatch.setattr(task._fusion[0], "match", match)
    return seen


def test_negatives_are_of_other_images_and_follow_the_similarities():
    torch.manual_seed(0)
    vectors = torch.randn(64, D)
    ids = torch.arange(64) // 4
    wrong, has_wrong = hard_negatives(vectors, vectors + 0.5 * torch.randn(64, D), ids, 0.07)
    assert has_wrong.all()
    assert (ids[wrong] != ids).all()

    queries, candidates = torch.eye(3)[:1].expand(4, -1), torch.tensor([[1.0, 0, 0], [3, 4, 0], [0, 2, 0], [-1, 0, 0]])
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[hard_negatives(queries, candidates, torch.arange(4), 0.5)[0][0]] += 1
    expected = torch.tensor([0.6, 0, -1]).div(0.5).softmax(0)
    torch.testing.assert_close(counts / 4000, torch.cat([torch.zeros(1), expected]), atol=0.03, rtol=0)


def test_each_pair_is_judged_once_with_a_wrong_image_and_once_with_a_wrong_clip(features, monkeypatch):
    task = build()
    seen = judging(monkeypatch, task, lambda clips, _: torch.zeros(len(clips)))
    found = task(*features, IDS)
    clips, images = seen[0]
    assert (
        clips[:B].tolist()
        == images[:B].tolist()
        == clips[B : 2 * B].tolist()
        == images[2 * B :].tolist()
        == [*range(B)]
    )
    assert (IDS[clips[B:]] != IDS[images[B:]]).all()
    assert found["matching_loss"].item() == pytest.approx(math.log(2))


def test_of_a_diverged_run_the_loss_is_not_finite(features):
    speech, images = features
    broken = replace(speech, vector=speech.vector * math.nan, frames=speech.frames * math.nan)
    assert not build()(broken, images, IDS)["matching_loss"].isfinite()


def test_the_loss_is_small_for_a_judge_who_knows_and_large_for_one_who_is_always_wrong(features, monkeypatch):
    task = build()
    judging(monkeypatch, task, lambda clips, images: 20.0 * (2 * (IDS[clips] == IDS[images]).float() - 1))
    found = task(*features, IDS)
    assert (found["matching_loss"].item(), found["matched_share"].item()) == (pytest.approx(0, abs=1e-6), 1)
    judging(monkeypatch, task, lambda clips, images: -20.0 * (2 * (IDS[clips] == IDS[images]).float() - 1))
    found = task(*features, IDS)
    assert (found["matching_loss"].item(), found["matched_share"].item()) == (pytest.approx(20), 0)
    # All "yes": right pairs cost nothing and negatives, twice as many, still count half.
    judging(monkeypatch, task, lambda clips, _: torch.full((len(clips),), 20.0))
    assert task(*features, IDS)["matching_loss"].item() == pytest.approx(10)


def test_pairs_of_one_image_alone_teach_nothing(features):
    task = build()
    loss = task(*features, torch.full((B,), 3))["matching_loss"]
    loss.backward()
    assert loss.item() == 0
    assert all(not parameter.grad.any() for parameter in task._fusion[0].parameters() if parameter.grad is not None)


def test_the_gradient_reaches_the_speech_vector_the_frames_and_the_fusion_encoder(features):
    task = build()
    task(*features, IDS)["matching_loss"].backward()
    speech, images = features
    for values in (speech.vector, speech.frames, images.patches, task._fusion[0].score.weight):
        assert values.grad.abs().sum() > 0
    assert not speech.frames.grad[~speech.mask].any()


@torch.no_grad()
def test_a_pair_s_logit_does_not_depend_on_the_batch(features):
    fusion, (speech, images) = build()._fusion[0], features
    together = fusion.match(speech, images, torch.tensor([3, 0, 1]), torch.tensor([2, 2, 1]))
    alone = fusion.match(
        SpeechFeatures(speech.vector[3:], speech.frames[3:, :4], speech.mask[3:, :4]),
        ImageFeatures(images.vector[2:3], images.patches[2:3]),
        torch.tensor([0]),
        torch.tensor([0]),
    )
    torch.testing.assert_close(together[:1], alone)
    assert len(set(together.tolist())) == 3


def test_a_batch_of_two_images_is_learned(features):
    torch.manual_seed(0)
    task, (speech, images) = build(), features
    speech, images = (
        SpeechFeatures(*(v.detach() for v in vars(speech).values())),
        ImageFeatures(*(v.detach() for v in vars(images).values())),
    )
    images.patches[1] = images.patches[0]  # the same image
    adam = torch.optim.Adam(task._fusion[0].parameters(), 3e-3)
    for _ in range(150):
        adam.zero_grad()
        found = task(speech, images, IDS)
        found["matching_loss"].backward()
        adam.step()
    assert found["matched_share"] == 1
    assert found["matching_loss"] < 0.1


def test_the_task_trains_the_head_and_is_built_only_where_it_has_a_weight(tiny_settings):
    tiny_settings["denoising"] = {"preset": "off"}
    assert build_objective(resolve_recipe(tiny_settings)).model.fusion is None
    tiny_settings["matching"] = {"weight": 1.0}
    objective = build_objective(resolve_recipe(tiny_settings))
    fusion = objective.model.fusion
    assert fusion.score is not None
    assert (fusion.query, fusion.global_token) == ("speech", "vector")
    assert objective.model.config.fusion["matching"]
    assert list(objective.tasks) == ["contrastive", "matching"]
    tiny_settings["denoising"] = {"preset": "paper"}
    both = build_objective(resolve_recipe(tiny_settings))
    assert list(both.tasks) == ["contrastive", "denoising", "matching"]
    del tiny_settings["matching"]
    without = build_objective(resolve_recipe(tiny_settings)).model.fusion
    assert without.score is None
    for name, values in without.state_dict().items():  # the same seed, the same fusion encoder
        assert torch.equal(values, both.model.fusion.state_dict()[name]), name


def test_negatives_need_contrastive_learning(tiny_settings):
    tiny_settings["matching"], tiny_settings["contrastive"] = {"weight": 1.0}, {"weight": 0.0}
    with pytest.raises(ConfigError, match=r"matching\.weight.*contrastive\.weight"):
        resolve_recipe(tiny_settings)


def test_a_run_logs_the_share_and_saves_a_model_that_can_match(tiny_settings):
    import json

    from saysee.model.retriever import SpeechImageModel
    from saysee.training.trainer import Trainer

    tiny_settings["matching"], tiny_settings["data"]["chunk_size"] = {"weight": 1.0}, 4
    tiny_settings["training"]["save_fusion"] = True
    trainer = Trainer(resolve_recipe(tiny_settings))
    before = trainer.model.fusion.score.weight.detach().clone()
    trainer.fit()
    lines = [json.loads(line) for line in (trainer.folder.path / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["matched_share"] <= 1 for line in lines if line["kind"] == "train")
    saved = SpeechImageModel.from_pretrained(trainer.folder.path / "best")
    assert not torch.equal(saved.fusion.score.weight, before)
    assert functional.cosine_similarity(saved.fusion.score.weight, before).item() > 0.9  # the same, moved
