"""Ranks and measures, held against a deliberately simple scorer in exact arithmetic."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saysee.errors import SaySeeError
from saysee.evaluation.recall import (
    NO_LABEL,
    group_measures,
    retrieval_measures,
    retrieval_ranks,
)
from saysee.evaluation.statistics import image_interval, resampled_medians


@st.composite
def cases(draw, max_images=6, max_clips=9):
    """Small whole-number vectors: many ties, duplicates, zeros, images without a clip, one to many clips an image."""
    width = draw(st.integers(1, 3))
    vector = st.lists(st.integers(-2, 2), min_size=width, max_size=width)
    images = draw(st.lists(vector, min_size=1, max_size=max_images))
    speech = draw(st.lists(vector, min_size=1, max_size=max_clips))
    image_of_clip = draw(st.lists(st.integers(0, len(images) - 1), min_size=len(speech), max_size=len(speech)))
    return speech, images, image_of_clip


def exact_cosine(a, b):
    """The cosine times its own size: ordered as the cosine is, and a fraction, so that ties are exact."""
    dot, norms = sum(x * y for x, y in zip(a, b, strict=True)), sum(x * x for x in a) * sum(y * y for y in b)
    return Fraction(dot * abs(dot), norms) if norms else Fraction(0)


def naive_lists(speech, images, image_of_clip):
    """What each clip and each image with clips retrieves: a list of right (True) and wrong, wrong first in a tie."""
    by_clip = [
        [right for _, right in sorted((-exact_cosine(clip, image), m == own) for m, image in enumerate(images))]
        for clip, own in zip(speech, image_of_clip, strict=True)
    ]
    clips = list(zip(speech, image_of_clip, strict=True))
    by_image = {
        m: [right for _, right in sorted((-exact_cosine(clip, image), own == m) for clip, own in clips)]
        for m, image in enumerate(images)
        if m in image_of_clip
    }
    return by_clip, by_image


def literal_ndcg(right, k=10):
    gained = sum(1 / math.log2(place + 1) for place, hit in enumerate(right[:k], start=1) if hit)
    return gained / sum(1 / math.log2(place + 1) for place in range(1, min(sum(right), k) + 1))


def literal_measures(lists):
    first = [right.index(True) + 1 for right in lists]
    measures = {f"R@{k}": 100 * np.mean([any(right[:k]) for right in lists]) for k in (1, 5, 10)}
    measures["nDCG@10"] = 100 * np.mean([literal_ndcg(right) for right in lists])
    for k in (1, 5, 10):
        measures[f"shared_recall@{k}"] = 100 * np.mean([sum(right[:k]) / sum(right) for right in lists])
    return {**measures, "median_rank": float(np.median(first))}


def random_case(n_images=40, clips_an_image=5, width=16, noise=1.5, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((n_images, width)).astype(np.float32)
    image_of_clip = np.repeat(np.arange(n_images), clips_an_image)
    speech = images[image_of_clip] + noise * rng.standard_normal((len(image_of_clip), width)).astype(np.float32)
    return speech, images, image_of_clip


@settings(max_examples=300, deadline=None)
@given(cases())
def test_ranks_equal_a_naive_full_sort_with_ties_against_the_system(case):
    ranks = retrieval_ranks(*map(np.array, case))
    by_clip, by_image = naive_lists(*case)
    assert ranks.speech_to_image.tolist() == [right.index(True) + 1 for right in by_clip]
    assert ranks.query_images.tolist() == list(by_image)
    for image, right in by_image.items():
        places = sorted(ranks.clip_positions[ranks.image_of_clip == image])
        assert places == [place for place, hit in enumerate(right, start=1) if hit]
    assert ranks.image_to_speech.tolist() == [right.index(True) + 1 for right in by_image.values()]


@settings(max_examples=100, deadline=None)
@given(cases(max_images=12, max_clips=30))
def test_measures_equal_their_literal_definitions(case):
    measures = retrieval_measures(retrieval_ranks(*map(np.array, case)), resamples=0)
    by_clip, by_image = naive_lists(*case)
    assert measures.speech_to_image == pytest.approx(literal_measures(by_clip))
    assert measures.image_to_speech == pytest.approx(literal_measures(list(by_image.values())))
    assert measures.mean_recall_at_1 == pytest.approx(
        (measures.speech_to_image["R@1"] + measures.image_to_speech["R@1"]) / 2
    )


@settings(max_examples=60, deadline=None)
@given(cases(max_images=8, max_clips=20), st.integers(1, 25))
def test_chunk_size_changes_nothing(case, chunk):
    case = list(map(np.array, case))
    whole, tiled = retrieval_ranks(*case, chunk=1000), retrieval_ranks(*case, chunk=chunk)
    assert (whole.speech_to_image == tiled.speech_to_image).all()
    assert (whole.clip_positions == tiled.clip_positions).all()


@settings(max_examples=60, deadline=None)
@given(cases(max_images=8, max_clips=20), st.randoms(use_true_random=False))
def test_order_of_clips_and_images_changes_nothing(case, random):
    speech, images, image_of_clip = map(np.array, case)
    clip_order, image_order = list(range(len(speech))), list(range(len(images)))
    random.shuffle(clip_order)
    random.shuffle(image_order)
    new_place = np.argsort(image_order)
    plain = retrieval_ranks(speech, images, image_of_clip)
    mixed = retrieval_ranks(speech[clip_order], images[image_order], new_place[image_of_clip[clip_order]])
    assert (mixed.speech_to_image == plain.speech_to_image[clip_order]).all()
    plain, mixed = retrieval_measures(plain, resamples=0), retrieval_measures(mixed, resamples=0)
    assert mixed.speech_to_image == pytest.approx(plain.speech_to_image)
    assert mixed.image_to_speech == pytest.approx(plain.image_to_speech)


@pytest.mark.parametrize("width", [1, 640, 768, 1000])
def test_constant_embedding_scores_chance_or_less(width):
    # Sums in float32 would be wrong by more than the tie tolerance for some of these constants and widths.
    for constant in np.random.default_rng(0).uniform(0.1, 1, size=50).astype(np.float32):
        embedding = np.full((80, width), constant)
        ranks = retrieval_ranks(embedding[:60], embedding[60:], np.arange(60) // 3, chunk=33)
        assert (ranks.speech_to_image == 20).all()
        assert (ranks.image_to_speech == 58).all()
    measures = retrieval_measures(ranks, resamples=0)
    assert measures.chance_mean_recall_at_1 == pytest.approx(50 * (1 / 20 + 3 / 60))
    assert measures.mean_recall_at_1 == 0


def test_zero_embedding_scores_chance_or_less():
    measures = retrieval_measures(retrieval_ranks(np.zeros((6, 4)), np.zeros((6, 4)), np.arange(6)), resamples=0)
    assert measures.mean_recall_at_1 == 0
    assert measures.speech_to_image["median_rank"] == 6


def test_last_bit_noise_of_equal_vectors_is_a_tie():
    rng = np.random.default_rng(0)
    constant = rng.standard_normal(768).astype(np.float32)
    noisy = constant * (1 + rng.uniform(-1, 1, size=(230, 768)).astype(np.float32) * np.float32(2**-23))
    ranks = retrieval_ranks(noisy[:200], noisy[200:], np.arange(200) % 30, chunk=16)
    assert (ranks.speech_to_image == 30).all()
    assert (ranks.image_to_speech > 190).all()


@pytest.mark.parametrize("clips_an_image", [1, 5, 12])
def test_perfect_embedding_scores_100(clips_an_image):
    speech, images, image_of_clip = random_case(clips_an_image=clips_an_image, noise=0)
    measures = retrieval_measures(retrieval_ranks(speech, images, image_of_clip), resamples=0)
    assert measures.mean_recall_at_1 == 100
    assert measures.speech_to_image["nDCG@10"] == pytest.approx(100)
    assert measures.image_to_speech["nDCG@10"] == pytest.approx(100)
    assert measures.image_to_speech["shared_recall@10"] == pytest.approx(100 * min(1, 10 / clips_an_image))
    assert measures.image_to_speech["shared_recall@1"] == pytest.approx(100 / clips_an_image)


def test_random_embedding_scores_near_the_stated_chance():
    rng = np.random.default_rng(0)
    ranks = retrieval_ranks(rng.standard_normal((4000, 32)), rng.standard_normal((50, 32)), np.arange(4000) % 50)
    measures = retrieval_measures(ranks, resamples=0)
    assert measures.speech_to_image["R@1"] == pytest.approx(2, abs=1)
    assert measures.chance_mean_recall_at_1 == pytest.approx(2)


def test_an_image_with_two_clips_counts_any_of_them_but_shares_both():
    # Image 0 retrieves its first clip, then a clip of image 1, then its second clip.
    images = np.array([[1.0, 0.0], [0.0, 1.0]])
    speech = np.array([[1.0, 0.1], [1.0, 0.6], [1.0, 0.3]])
    ranks = retrieval_ranks(speech, images, [0, 0, 1])
    assert ranks.clip_positions.tolist() == [1, 3, 2]
    assert ranks.image_to_speech.tolist() == [1, 2]
    measures = retrieval_measures(ranks, resamples=0).image_to_speech
    assert measures["R@1"] == 50
    assert measures["shared_recall@1"] == 25
    ideal = 1 + 1 / math.log2(3)
    assert measures["nDCG@10"] == pytest.approx(50 * ((1 + 1 / 2) / ideal + 1 / math.log2(3)))


def test_images_without_a_clip_are_distractors_and_no_queries():
    images = np.array([[1.0, 0.0], [1.0, 0.05], [0.0, 1.0]])
    ranks = retrieval_ranks(np.array([[1.0, 0.1], [0.0, 2.0]]), images, [0, 2])
    assert ranks.speech_to_image.tolist() == [2, 1]
    assert ranks.query_images.tolist() == [0, 2]
    measures = retrieval_measures(ranks)
    assert (measures.clips, measures.images, measures.gallery_images, measures.gallery_clips) == (2, 2, 3, 2)


def test_lengths_of_vectors_do_not_matter():
    speech, images, image_of_clip = random_case()
    plain = retrieval_ranks(speech, images, image_of_clip)
    scaled = retrieval_ranks(speech * np.linspace(1e-6, 1e6, len(speech))[:, None], images * 37, image_of_clip)
    assert (plain.speech_to_image == scaled.speech_to_image).all()
    assert (plain.clip_positions == scaled.clip_positions).all()


def test_torch_and_numpy_vectors_score_alike():
    speech, images, image_of_clip = random_case()
    from_numpy = retrieval_ranks(speech, images, image_of_clip)
    from_torch = retrieval_ranks(torch.from_numpy(speech).requires_grad_(), torch.from_numpy(images), image_of_clip)
    assert (from_numpy.clip_positions == from_torch.clip_positions).all()
    retrieval_ranks(torch.from_numpy(speech).bfloat16(), torch.from_numpy(images).bfloat16(), image_of_clip)


def test_inputs_are_not_changed():
    speech, images, image_of_clip = random_case()
    speech, images = speech.astype(np.float64), images.astype(np.float64)
    before = speech.copy(), images.copy()
    retrieval_ranks(speech, images, image_of_clip)
    assert (speech == before[0]).all()
    assert (images == before[1]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_vector_that_is_not_finite_is_an_error_with_its_row(bad, side):
    case = random_case()
    case[side][17, 3] = bad
    with pytest.raises(SaySeeError, match=r"^(speech|image) vector 17 holds NaN or infinity: .*$"):
        retrieval_ranks(*case, chunk=8)


@pytest.mark.parametrize(
    ("speech", "images", "image_of_clip", "message"),
    [
        (np.ones((0, 2)), np.ones((1, 2)), [], "at least one row"),
        (np.ones((1, 2)), np.ones((0, 2)), [0], "at least one row"),
        (np.ones(2), np.ones((1, 2)), [0], r"\(2,\)"),
        (np.ones((1, 2)), np.ones((1, 3)), [0], "width 2 and image vectors 3"),
        (np.ones((2, 2)), np.ones((1, 2)), [0], "one integer for each of 2 clips"),
        (np.ones((1, 2)), np.ones((1, 2)), [0.0], "one integer"),
        (np.ones((2, 2)), np.ones((1, 2)), [0, 1], "clip 1 has image 1, but there are 1"),
        (np.ones((2, 2)), np.ones((1, 2)), [0, -1], "clip 1 has image -1"),
    ],
)
def test_input_that_does_not_fit_is_an_error_of_one_line(speech, images, image_of_clip, message):
    with pytest.raises(SaySeeError, match=message) as refused:
        retrieval_ranks(speech, images, image_of_clip)
    assert "\n" not in str(refused.value)


def test_score_memory_does_not_grow_with_the_full_matrix():
    import tracemalloc

    def peak(n_images):
        rng = np.random.default_rng(0)
        images, speech = rng.standard_normal((n_images, 4)), rng.standard_normal((2 * n_images, 4))
        tracemalloc.start()
        retrieval_ranks(speech, images, np.arange(2 * n_images) // 2, chunk=128)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    # Ten times the rows is a hundred times the scores: only the few numbers a row may grow.
    assert peak(3000) - peak(300) < 3000 * 2 * 150


def test_interval_holds_the_measure_and_narrows_with_more_images():
    widths = []
    for n_images in (30, 480):
        measures = retrieval_measures(retrieval_ranks(*random_case(n_images=n_images, width=8)))
        for direction, named in (
            ("speech_to_image", measures.speech_to_image),
            ("image_to_speech", measures.image_to_speech),
        ):
            assert measures.interval[direction].keys() == named.keys()
            for name, value in named.items():
                low, high = measures.interval[direction][name]
                assert low <= value <= high
        low, high = measures.interval["mean_R@1"]
        assert low <= measures.mean_recall_at_1 <= high
        low, high = measures.interval["speech_to_image"]["R@10"]
        widths.append(high - low)
    assert widths[1] < widths[0]


def test_interval_covers_what_the_normal_theory_says_for_one_clip_an_image():
    hits = np.arange(1000) < 300
    low, high = image_interval(100 * hits, np.arange(1000), resamples=4000)
    half = 1.96 * 100 * math.sqrt(0.3 * 0.7 / 1000)
    assert (low, high) == pytest.approx((30 - half, 30 + half), abs=0.3)


def test_clips_of_one_image_come_along_when_it_is_drawn():
    # All five clips of an image agree, so five clips an image tell no more than one does.
    hits = np.arange(200) < 60
    once = image_interval(hits, np.arange(200), seed=3)
    five_times = image_interval(np.repeat(hits, 5), np.repeat(np.arange(200), 5), seed=3)
    assert five_times == pytest.approx(once)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=8))
def test_median_of_a_resample_is_the_median_of_the_drawn_ranks(ranks_and_times):
    ranks, times = np.array(sorted(ranks_and_times)).T
    drawn = np.repeat(ranks, times)
    median = resampled_medians(ranks, np.arange(len(ranks)), times[None].astype(np.int32))[0]
    assert median == np.median(drawn) if len(drawn) else np.isnan(median)


def test_interval_of_one_image_closes_on_the_measures():
    speech, images, _ = random_case(n_images=12, clips_an_image=4)
    measures = retrieval_measures(retrieval_ranks(speech, images, np.full(len(speech), 5)))
    for name, value in measures.speech_to_image.items():
        assert measures.interval["speech_to_image"][name] == pytest.approx([value, value])


def test_same_seed_same_interval_and_another_seed_another():
    ranks = retrieval_ranks(*random_case())
    assert retrieval_measures(ranks, seed=1) == retrieval_measures(ranks, seed=1)
    assert retrieval_measures(ranks, seed=1).interval != retrieval_measures(ranks, seed=2).interval


def test_too_few_resamples_are_an_error():
    with pytest.raises(SaySeeError, match="resamples is 10"):
        retrieval_measures(retrieval_ranks(*random_case()), resamples=10)


def test_groups_are_scored_against_the_full_gallery():
    ranks = retrieval_ranks(*random_case(n_images=20))
    labels = ["left" if image < 8 else "right" for image in ranks.image_of_clip]
    groups = group_measures(ranks, labels)
    left = ranks.image_of_clip < 8
    assert list(groups) == ["left", "right"]
    assert groups["left"].speech_to_image["R@1"] == pytest.approx(100 * np.mean(ranks.speech_to_image[left] == 1))
    assert groups["left"].image_to_speech["R@1"] == pytest.approx(100 * np.mean(ranks.image_to_speech[:8] == 1))
    assert (groups["left"].clips, groups["left"].images, groups["left"].gallery_images) == (40, 8, 20)
    whole = retrieval_measures(ranks, resamples=0)
    weighted = 0.4 * groups["left"].speech_to_image["nDCG@10"] + 0.6 * groups["right"].speech_to_image["nDCG@10"]
    assert weighted == pytest.approx(whole.speech_to_image["nDCG@10"])


def test_a_group_with_part_of_each_image_has_no_image_queries():
    ranks = retrieval_ranks(*random_case(n_images=20))
    labels = np.array(["a", "b", "c", None, "c"] * 20, dtype=object)
    labels[:5] = "a"  # one image is wholly a's
    groups = group_measures(ranks, list(labels))
    assert list(groups) == [NO_LABEL, "a", "b", "c"]
    assert groups["b"].image_to_speech is None
    assert groups["b"].mean_recall_at_1 is None
    assert list(groups["b"].interval) == ["speech_to_image"]
    assert groups["a"].images == 1
    assert groups["a"].interval["image_to_speech"]["R@1"] == [groups["a"].image_to_speech["R@1"]] * 2
    json.dumps(groups["b"].to_dict(), allow_nan=False)


def test_each_clip_needs_a_label():
    with pytest.raises(SaySeeError, match="2 labels for 200 clips"):
        group_measures(retrieval_ranks(*random_case()), ["a", "b"])


def test_a_choice_without_clips_is_an_error():
    ranks = retrieval_ranks(*random_case())
    with pytest.raises(SaySeeError, match="no clip is chosen"):
        retrieval_measures(ranks, clips=np.zeros(200, bool))


def test_to_dict_is_json_with_stable_keys():
    values = retrieval_measures(retrieval_ranks(*random_case())).to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert set(values) == {
        "speech_to_image", "image_to_speech", "mean_R@1", "chance_mean_R@1", "interval",
        "clips", "images", "gallery_clips", "gallery_images",
    }  # fmt: skip
    names = {"R@1", "R@5", "R@10", "median_rank", "nDCG@10", "shared_recall@1", "shared_recall@5", "shared_recall@10"}
    for part in (values, values["interval"]):
        assert set(part["speech_to_image"]) == set(part["image_to_speech"]) == names
    assert values["interval"]["mean_R@1"][0] <= values["mean_R@1"] <= values["interval"]["mean_R@1"][1]
