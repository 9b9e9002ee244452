"""What wide scenes add to the corpus can be distinguished from the corpus's own, and no corpus has it."""

from itertools import combinations

import numpy as np
import pytest
from lab.nano.wide_look import MORE_COLORS, MORE_FILLS, MORE_SHAPES
from PIL import Image

from saysee.data.scenes.drawing import BACKGROUNDS, PIXELS, TINTS, draw_scene
from saysee.data.scenes.planning import CORPUS_LOOK, plan
from saysee.data.scenes.world import COLORS, FILLS, SHAPES, Background, Scene, SceneObject

PLAIN = Background("plain", 0, 0)


def image_of(shape="circle", color="blue", fill="plain", size="large", background=PLAIN):
    item = SceneObject(shape, color, size, fill, 0.5, 0.5, {"small": 0.195, "large": 0.37}[size], 0, 30)
    return np.asarray(draw_scene(Scene((item,), background)), int)


@pytest.mark.parametrize("shape", MORE_SHAPES)
def test_the_box_is_tight_around_the_shape(shape):
    item = SceneObject(shape, "blue", "large", "plain", 0.51, 0.48, 0.37, 7, 0)
    pixels = np.asarray(draw_scene(Scene((item,), PLAIN), 448), int)
    rows, columns = np.nonzero(np.abs(pixels - PIXELS["blue"]).sum(axis=2) < 90)
    drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 448
    assert drawn == pytest.approx(item.box, abs=2.5 / 448)


def test_colors_differ_from_each_other_and_from_every_background():
    for one, other in combinations(PIXELS, 2):
        wide = {one, other} & set(MORE_COLORS)  # brown and olive are 60 apart
        assert np.abs(np.subtract(PIXELS[one], PIXELS[other])).max() > (55 if wide else 70)
    assert set(PIXELS) == set(COLORS + MORE_COLORS)
    for kind in BACKGROUNDS:
        for tint in range(len(TINTS)):
            pixels = np.asarray(draw_scene(Scene((), Background(kind, tint, 3))), int)
            assert (pixels.max(axis=2) - pixels.min(axis=2)).max() < 45  # nearly gray


def test_the_corpus_has_none_of_the_additional_values():
    assert not set(SHAPES) & set(MORE_SHAPES)
    assert not set(COLORS) & set(MORE_COLORS)
    assert not set(FILLS) & set(MORE_FILLS)
    for each in plan(4, {"train": 60, "val": 5, "test": 20}):
        assert each.scene.background.kind in CORPUS_LOOK.backgrounds
        assert each.scene.background.tint < CORPUS_LOOK.tints
        for item in each.scene.objects:
            assert (item.shape in SHAPES, item.color in COLORS, item.fill in FILLS) == (True, True, True)
    assert set(CORPUS_LOOK.backgrounds) < set(BACKGROUNDS)
    assert CORPUS_LOOK.tints < len(TINTS)


def test_every_shape_can_be_distinguished_from_every_other_at_64_pixels():
    tiny = {}
    for shape in SHAPES + MORE_SHAPES:
        image = Image.fromarray(image_of(shape).astype(np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
        tiny[shape] = np.asarray(image, int)[18:46, 18:46]
    for one, other in combinations(tiny, 2):
        # Mean difference per pixel and channel over the large object's box.
        assert np.abs(tiny[one] - tiny[other]).mean() > 6, (one, other)


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("shape", ["circle", "star", *MORE_SHAPES])
def test_every_fill_can_be_distinguished_from_every_other(shape, size):
    drawn = {fill: image_of(shape, fill=fill, size=size) for fill in FILLS + MORE_FILLS}
    inside = (drawn["plain"] == PIXELS["blue"]).all(axis=2)
    for one, other in combinations(drawn, 2):
        assert np.abs(drawn[one] - drawn[other])[inside].mean() > 15, (one, other)
    for fill in FILLS + MORE_FILLS:  # a pattern stays inside its shape and leaves the color visible
        assert (drawn[fill] == drawn["plain"])[~inside].mean() > 0.995
        assert (drawn[fill] == PIXELS["blue"]).all(axis=2)[inside].mean() > 0.25, fill


def test_halved_is_one_half_of_the_shape_in_each_ink():
    inside = (image_of("circle") == PIXELS["blue"]).all(axis=2)
    kept = (image_of("circle", fill="halved") == PIXELS["blue"]).all(axis=2)
    assert kept.sum() / inside.sum() == pytest.approx(0.5, abs=0.08)


def test_every_background_differs_from_every_other_and_depends_on_its_seed():
    drawn = {kind: np.asarray(draw_scene(Scene((), Background(kind, 0, 3))), int) for kind in BACKGROUNDS}
    for one, other in combinations(drawn, 2):
        assert (drawn[one] != drawn[other]).any(axis=2).mean() > 0.02, (one, other)
    for kind in set(BACKGROUNDS) - {"plain"}:
        seeds = {draw_scene(Scene((), Background(kind, 0, seed))).tobytes() for seed in range(12)}
        assert len(seeds) > 1, kind


def test_all_tints_differ():
    assert len(
        {draw_scene(Scene((), Background("plain", tint, 0))).getpixel((0, 0)) for tint in range(len(TINTS))}
    ) == len(TINTS)
