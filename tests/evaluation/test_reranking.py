"""Re-ranking in evaluation: closed forms, what stays, ties, and a real model with and without a cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saysee.encoding.cache import FeatureCache
from saysee.encoding.encoder import Encoder
from saysee.encoding.reranking import LOGIT_WEIGHT, match, reranked_score
from saysee.errors import SaySeeError
from saysee.evaluation.comparison import Comparison, System
from saysee.evaluation.protocols import evaluate
from saysee.evaluation.recall import retrieval_measures, retrieval_ranks
from saysee.evaluation.reranking import evaluate_reranked, rerank
from saysee.model.configuration import FusionConfig
from saysee.model.retriever import SpeechImageModel

N, M, D = 60, 24, 4
OWN = np.random.default_rng(2).permutation(np.arange(N) % (M - 2))  # two images are distractors


@pytest.fixture
def vectors():
    """Vectors of a mediocre model: many ranks are beyond the first ones."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((M, D))
    return images[OWN] + 0.9 * rng.standard_normal((N, D)), images


def knows(clips, images):
    return 1000.0 * (OWN[clips] == images)


@pytest.mark.parametrize("first", [1, 3, 10, 200])
def test_one_who_knows_puts_every_right_answer_of_the_first_ones_on_top_and_changes_none_beyond(vectors, first):
    before = retrieval_ranks(*vectors, OWN)
    after = rerank(before, *vectors, first, knows)
    beyond = before.speech_to_image > first
    assert beyond.any() == (first < 20)
    np.testing.assert_array_equal(after.speech_to_image, np.where(beyond, before.speech_to_image, 1))
    late = before.clip_positions > first
    np.testing.assert_array_equal(after.clip_positions[late], before.clip_positions[late])
    for image in before.query_images:  # the clips of an image share its first places
        of_image = after.clip_positions[(image == OWN) & ~late]
        assert sorted(of_image) == list(range(1, len(of_image) + 1))
    np.testing.assert_array_equal(after.image_to_speech == 1, before.image_to_speech <= first)
    if first == 200:
        assert retrieval_measures(after, resamples=0).mean_recall_at_1 == 100


def test_one_who_says_the_same_of_all_pairs_changes_nothing(vectors):
    before = retrieval_ranks(*vectors, OWN)
    for constant in (0.0, -7.5):
        after = rerank(before, *vectors, 10, lambda clips, _: np.full(len(clips), constant))  # noqa: B023
        np.testing.assert_array_equal(after.speech_to_image, before.speech_to_image)
        np.testing.assert_array_equal(after.clip_positions, before.clip_positions)


def test_one_who_is_always_wrong_puts_right_answers_last_of_the_first_ones(vectors):
    before = retrieval_ranks(*vectors, OWN)
    after = rerank(before, *vectors, 5, lambda clips, images: -knows(clips, images))
    assert set(after.speech_to_image[before.speech_to_image <= 5]) == {5}
    assert (after.image_to_speech[before.image_to_speech <= 5] >= 3).all()  # an image has up to three clips


def test_the_ranks_are_those_of_the_rescored_matrix_with_ties_against_the_system(vectors):
    speech, images = vectors
    images[5] = images[4]  # twins that no score tells apart
    logits = np.round(np.random.default_rng(3).standard_normal((N, M)), 1)
    logits[:, 5] = logits[:, 4]
    before = retrieval_ranks(speech, images, OWN)
    asked = []

    def logits_of(clips, of_images):
        asked.extend(zip(clips.tolist(), of_images.tolist(), strict=True))
        return logits[clips, of_images]

    after = rerank(before, speech, images, M * N, logits_of)
    assert len(asked) == len(set(asked)) == N * M  # each pair once, for both directions
    assert asked == sorted(asked)
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (speech, images)]
    scores = unit[0] @ unit[1].T + LOGIT_WEIGHT * logits
    own = scores[np.arange(N), OWN]
    wrong = OWN[:, None] != np.arange(M)
    np.testing.assert_array_equal(after.speech_to_image, 1 + (wrong & (scores >= own[:, None] - 1e-6)).sum(axis=1))
    assert (after.speech_to_image[np.isin(OWN, (4, 5))] >= 2).all()
    for image in before.query_images:
        best = own[image == OWN].max()
        ahead = (scores[image != OWN, image] >= best - 1e-6).sum()
        assert after.image_to_speech[np.flatnonzero(before.query_images == image)[0]] == 1 + ahead


def test_a_query_whose_answer_is_not_among_the_first_is_not_judged(vectors):
    before = retrieval_ranks(*vectors, OWN)
    seen = []
    rerank(before, *vectors, 2, lambda clips, images: seen.extend(clips) or np.zeros(len(images)))
    found = np.flatnonzero(before.speech_to_image <= 2)
    assert set(found) <= set(seen)
    # Other clips are judged only as results of an image, two of each.
    assert len(seen) <= 2 * len(found) + 2 * M


@pytest.fixture
def model(hubert_folder, clip_folder):
    torch.manual_seed(3)
    model = SpeechImageModel.from_encoders(hubert_folder, clip_folder)
    model.speech_encoder.layer_mix.weights.data += 0.1
    model.add_fusion(FusionConfig(width=16, layers=1, heads=2, matching=True))
    model.fusion.score.weight.data *= 100
    return model.eval()


def test_a_real_model_is_scored_by_its_logits_with_and_without_a_cache(model, corpus, tmp_path):
    encoder = Encoder(model, precision="fp32")
    before = evaluate(encoder, corpus, keep_vectors=True, progress=False, resamples=0)
    after = evaluate_reranked(encoder, corpus, before, 3, progress=False, resamples=0)
    clips = [encoder.tokens("clip", corpus.clip_path(row)) for row in corpus.rows]
    images = [encoder.tokens("image", corpus.image_path(row)) for row in corpus.images()]
    scores = np.array(
        [
            [
                reranked_score(before.speech[n] @ before.images[m], match(encoder, clip, image)[0])
                for m, image in enumerate(images)
            ]
            for n, clip in enumerate(clips)
        ]
    )
    assert np.ptp(scores - before.speech @ before.images.T) > 0.01
    right = scores.argmax(axis=1) == np.arange(6) // 2
    assert after.overall.speech_to_image["R@1"] == pytest.approx(100 * right.mean())
    assert (after.rerank.first, after.to_dict()["rerank"]["first"]) == (3, 3)
    assert after.rerank.seconds > 0
    cached = Encoder(model, precision="fp32", cache=FeatureCache(tmp_path / "features"))
    again = evaluate_reranked(cached, corpus, before, 3, progress=False, resamples=0)
    assert again.overall == after.overall
    for first in (0, -1):
        with pytest.raises(SaySeeError, match=str(first)):
            evaluate_reranked(encoder, corpus, before, first)


def test_a_clip_against_many_images_and_an_image_against_many_clips_are_the_pairs(model, corpus, monkeypatch):
    monkeypatch.setattr("saysee.encoding.reranking.PAIRS", 2)
    encoder = Encoder(model, precision="fp32")
    side = encoder.side("image")
    images = side.tokens([side.prepare(corpus.image_path(row)) for row in corpus.images()])
    clip = encoder.tokens("clip", corpus.clip_path(corpus.rows[0]))
    singly = [match(encoder, clip, type(images)(*(v[n : n + 1] for v in vars(images).values())))[0] for n in range(3)]
    np.testing.assert_allclose(match(encoder, clip, images), singly, rtol=1e-4, atol=1e-5)
    clips = encoder.side("clip").tokens([encoder.prepare("clip", corpus.clip_path(row)) for row in corpus.rows[:3]])
    image = encoder.tokens("image", corpus.image_path(corpus.rows[0]))
    assert match(encoder, clips, image)[0] == pytest.approx(singly[0], rel=1e-3, abs=1e-3)
    rough = Encoder(model.to(torch.bfloat16))  # eight bits: logits near 50 are rounded to quarters
    np.testing.assert_allclose(match(rough, clip, images), singly, rtol=0.02)


def test_a_model_without_matching_is_one_error(model, corpus):
    before = evaluate(Encoder(model), corpus, keep_vectors=True, progress=False, resamples=0)
    for fusion in (None, FusionConfig(width=16, layers=1, heads=2)):
        if fusion is None:
            model.fusion = None
        else:
            model.add_fusion(fusion)
        with pytest.raises(SaySeeError, match=r"matching\.weight.*training\.save_fusion"):
            evaluate_reranked(Encoder(model), corpus, before, 2)


def test_the_difference_of_a_reranked_row_is_to_the_row_above_it(model, corpus):
    encoder = Encoder(model)
    before = evaluate(encoder, corpus, keep_vectors=True, progress=False)
    after = evaluate_reranked(encoder, corpus, before, 3, progress=False)
    facts = [{"data": {}, "recipe": {"training": {"seed": seed}}} for seed in (0, 1)]
    systems = [System("first", [before])]
    for seed, of_run in enumerate(facts):
        systems.append(System(f"m.seed-{seed}", [before], {"model": "m"}, of_run))
        systems.append(systems[-1].reranked([after]))
    comparison = Comparison(["c"], systems)
    lines = comparison.lines
    assert [line["model"] for line in lines] == ["first", "m.seed-*", "m.seed-*, first 3 re-ranked"]
    assert [line.get("seeds") for line in lines] == [None, 2, 2]
    assert lines[2]["mean_R@1_difference"] == pytest.approx(
        after.overall.mean_recall_at_1 - before.overall.mean_recall_at_1
    )
    assert lines[2]["rerank_seconds"] > 0
    assert "rerank_seconds" not in lines[1]
    other = Comparison(["c"], [System("zero", [after]), *systems[1:3]]).lines
    assert other[2]["mean_R@1_difference"] == pytest.approx(other[2]["mean_R@1"] - other[1]["mean_R@1"])
