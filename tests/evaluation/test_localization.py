"""Attention against truth, with values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saysee.data.manifest import Row
from saysee.errors import ManifestError
from saysee.evaluation.localization import attention_on_rows, check_words, patch_grid, word_maps, word_scores

LEFT_HALF = {"box": (0.0, 0.0, 0.5, 1.0)}
TOP_LEFT = {"box": (0.0, 0.0, 0.5, 0.5)}
HOP = 0.02  # seconds from frame to frame
EMPTY = {"box": (0.3, 0.3, 0.3, 0.6)}


def attention_on_object(attention, words, objects, frame_seconds):
    row = Row("0.wav", "0.png", "0", "test", extra={"words": words, "objects": objects})
    return attention_on_rows([attention], [row], frame_seconds)


def word(start, end, *objects):
    return {"start": start, "end": end, "objects": list(objects)}


def test_patches_are_counted_row_by_row_from_the_top_left():
    assert patch_grid([(0.5, 0.0, 1.0, 0.5)], 2).tolist() == [0, 1, 0, 0]
    assert patch_grid([(0.0, 0.5, 0.5, 1.0)], 2).tolist() == [0, 0, 1, 0]


def test_a_patch_counts_by_the_area_that_is_covered():
    # Width 0.25 to 0.75 of the image, height 0 to 0.25: half of each upper patch's width and half of its height.
    assert patch_grid([(0.25, 0.0, 0.75, 0.25)], 2) == pytest.approx([0.25, 0.25, 0, 0])
    assert patch_grid([(0.1, 0.2, 0.6, 0.7)], 1) == pytest.approx([0.25])


def test_boxes_that_overlap_count_once():
    assert patch_grid([(0.0, 0.0, 0.5, 1.0), (0.25, 0.0, 0.75, 1.0)], 1) == pytest.approx([0.75])
    assert patch_grid([(0.0, 0.0, 1.0, 1.0)] * 2, 3) == pytest.approx(np.ones(9))


def test_area_over_all_patches_is_the_area_of_the_box():
    rng = np.random.default_rng(0)
    for grid in (1, 2, 7, 16):
        (left, right), (top, bottom) = np.sort(rng.uniform(size=(2, 2)), axis=1)
        share = patch_grid([(left, top, right, bottom)], grid)
        assert share.mean() == pytest.approx((right - left) * (bottom - top))
        assert share.max() <= 1 + 1e-9


def test_what_is_outside_the_image_is_clipped():
    assert patch_grid([(-1.0, -1.0, 0.5, 2.0)], 2) == pytest.approx([1, 0, 1, 0])
    assert patch_grid([], 2).tolist() == [0, 0, 0, 0]


def test_even_attention_has_lift_1():
    attention = np.full((10, 49), 1 / 49)
    found = attention_on_object(attention, [word(0, 0.1, 0), word(0.1, 0.2, 1)], [LEFT_HALF, TOP_LEFT], HOP)
    assert found["attention_mass"] == pytest.approx((0.5 + 0.25) / 2)
    assert found["attention_lift"] == pytest.approx(1)


def test_mass_is_averaged_over_the_frames_of_the_word_and_then_over_words():
    # Patches: top left, top right, bottom left, bottom right. Frames of 20 ms.
    attention = np.array([[0.6, 0.4, 0, 0], [0.2, 0.2, 0.6, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    words = [word(0.0, 0.04, 0), word(0.04, 0.06), word(0.06, 0.08, 1)]
    found = attention_on_object(attention, words, [TOP_LEFT, {"box": (0.5, 0.0, 1.0, 1.0)}], HOP)
    # The first word: (0.6 + 0.2) / 2 in a quarter of the image; the third: all of it in a half.
    assert found["attention_mass"] == pytest.approx((0.4 + 1.0) / 2)
    assert found["attention_lift"] == pytest.approx((0.4 / 0.25 + 1.0 / 0.5) / 2)


def test_attention_beside_the_object_has_no_mass():
    found = attention_on_object([[0, 0, 0, 1.0]], [word(0, 0.02, 0)], [TOP_LEFT], HOP)
    assert (found["attention_mass"], found["attention_lift"]) == (0, 0)


def test_a_patch_half_covered_gives_half_its_attention():
    found = attention_on_object([[1.0, 0, 0, 0]], [word(0, 0.02, 0)], [{"box": (0.0, 0.0, 0.25, 0.5)}], HOP)
    assert found["attention_mass"] == pytest.approx(0.5)
    assert found["attention_lift"] == pytest.approx(0.5 / 0.125)


def test_a_word_that_names_two_objects_counts_both():
    attention = [[0.5, 0.25, 0.25, 0]]
    objects = [TOP_LEFT, {"box": (0.5, 0.0, 1.0, 0.5)}]
    assert attention_on_object(attention, [word(0, 0.02, 0, 1)], objects, HOP)["attention_mass"] == pytest.approx(0.75)


def test_nothing_when_no_word_names_an_object():
    attention = [[0.25] * 4]
    assert attention_on_object(attention, [], [TOP_LEFT], HOP) == {}
    assert attention_on_object(attention, [word(0, 1)], [TOP_LEFT], HOP) == {}
    assert attention_on_object(attention, [word(0, 1, 0)], [EMPTY], HOP) == {}


def test_a_word_takes_the_frames_whose_middle_lies_in_it():
    attention = np.eye(5)  # frame f looks at patch f alone; middles at 10, 30, 50, 70, 90 ms
    maps = word_maps(attention, [word(0.0, 0.04), word(0.011, 0.03), word(0.03, 0.071), word(0.01, 0.03)], HOP)
    assert maps[0].tolist() == [0.5, 0.5, 0, 0, 0]
    assert maps[1].tolist() == [0, 1, 0, 0, 0]  # too short to hold a middle: the nearest frame
    assert maps[2] == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0])
    assert maps[3].tolist() == [1, 0, 0, 0, 0]


def test_a_word_past_the_last_frame_takes_the_last():
    assert word_maps(np.eye(3), [word(0.5, 0.6), word(0.05, 9)], HOP).tolist() == [[0, 0, 1], [0, 0, 1]]


def test_word_maps_are_one_row_a_word_that_sums_to_1():
    attention = np.random.default_rng(0).dirichlet(np.ones(49), size=100)
    maps = word_maps(attention, [word(0.1 * n, 0.1 * n + 0.35) for n in range(12)], HOP)
    assert maps.shape == (12, 49)
    assert maps.sum(axis=1) == pytest.approx(np.ones(12))
    assert word_maps(attention, [], HOP).shape == (0, 49)


def test_torch_maps_of_low_precision_are_read():
    attention = torch.softmax(torch.randn(8, 256, generator=torch.Generator().manual_seed(0)), dim=1).bfloat16()
    found = attention_on_object(attention.requires_grad_(), [word(0, 0.1, 0)], [LEFT_HALF], HOP)
    assert found["attention_mass"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("attention", "words", "objects", "message"),
    [
        ([[0.5, 0.5, 0.5, 0.5]], [word(0, 1, 0)], [TOP_LEFT], "sum to 1"),
        ([[np.nan] * 4], [word(0, 1, 0)], [TOP_LEFT], "sum to 1"),
        ([[0.2] * 5], [word(0, 1, 0)], [TOP_LEFT], "5 patches"),
        (np.zeros((0, 4)), [word(0, 1, 0)], [TOP_LEFT], r"\(0, 4\)"),
        ([[0.25] * 4], [word(0, 1, 1)], [TOP_LEFT], "object 1, but the image has 1"),
        ([[0.25] * 4], [word(0, 1, -1)], [TOP_LEFT], "object -1"),
        ([[0.25] * 4], [word(1, 0, 0)], [TOP_LEFT], "starts at 1.0 s"),
        ([[0.25] * 4], [word(0, 1, 0)], [{"box": (0.5, 0, 0.2, 1)}], "left <= right"),
        ([[0.25] * 4], [word(0, 1, 0)], [{"box": (0.5, 0, 1)}], "four finite numbers"),
        ([[0.25] * 4], [word(0, 1, 0)], [{"box": (0, 0, 1, np.inf)}], "four finite numbers"),
    ],
)
def test_invalid_maps_words_and_boxes_are_errors(attention, words, objects, message):
    with pytest.raises(ValueError, match=message):
        attention_on_object(attention, words, objects, HOP)


@pytest.mark.parametrize("words", [7, ["a", "dog"], [word(1, 0, 0)], [{"objects": [0]}], [word(0, 1, 1)]])
def test_columns_of_another_form_are_a_manifest_error(words):
    fine = Row("fine.flac", "i.jpg", "i", "val", extra={"words": [word(0, 1, 0)], "objects": [TOP_LEFT]})
    null = Row("null.flac", "i.jpg", "i", "val", extra={"words": None, "objects": None})
    check_words([fine, null])
    assert (
        attention_on_rows([[[0.25] * 4]] * 2, [fine, null], HOP) == attention_on_rows([[[0.25] * 4]], [fine], HOP) != {}
    )
    wrong = Row("wrong.flac", "i.jpg", "i", "val", extra={"words": words, "objects": [TOP_LEFT]})
    with pytest.raises(ManifestError, match=r"wrong\.flac"):
        check_words([fine, wrong])


def test_words_find_their_frames_at_any_hop():
    attention = np.eye(4)
    assert word_maps(attention, [word(0.04, 0.08)], 0.04).tolist() == [[0, 1, 0, 0]]
    assert word_maps(attention, [word(0.04, 0.08)], 0.02).tolist() == [[0, 0, 0.5, 0.5]]


def test_a_word_is_scored_by_its_brightest_place_mass_and_overlap():
    # Places: top left, top right, bottom left, bottom right; the object is the left half.
    (score,) = word_scores([[0.4, 0.3, 0.2, 0.1]], [word(0, 0.02, 0)], [LEFT_HALF], HOP)
    assert (score.pointing, score.pointing_chance, score.area) == (1, 0.5, 0.5)
    assert score.mass == pytest.approx(0.6)
    assert score.iou == pytest.approx(1 / 3)  # above 0.25: the two at the top, one of them on the object
    (even,) = word_scores([[0.25] * 4], [word(0, 0.02, 0)], [TOP_LEFT], HOP)
    assert (even.pointing, even.mass, even.iou) == pytest.approx((0.25, 0.25, 0.25)), "a uniform map is chance"
    (beside,) = word_scores([[0.1, 0.7, 0.1, 0.1]], [word(0, 0.02, 0)], [TOP_LEFT], HOP)
    assert (beside.pointing, beside.iou) == (0, 0)


def test_boxes_are_taken_to_the_part_of_the_image_that_the_model_sees():
    # It sees the right half of the image: the object is its left half, or nothing of it.
    right = (0.5, 0.0, 1.0, 1.0)
    objects = [{"box": (0.5, 0.0, 0.75, 1.0)}, {"box": (0.0, 0.0, 0.4, 1.0)}]
    scores = word_scores([[0.4, 0.1, 0.4, 0.1]], [word(0, 0.01, 0), word(0.01, 0.02, 1)], objects, HOP, right)
    assert [score.mass for score in scores] == pytest.approx([0.8])
