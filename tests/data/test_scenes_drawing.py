"""Images: each object is where its box says, complete, and recognizable even at 64 pixels."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from saysee.data.scenes.drawing import PIXELS, draw_scene
from saysee.data.scenes.planning import CORPUS_LOOK, plan
from saysee.data.scenes.world import (
    COLORS,
    FILLS,
    SHAPES,
    Background,
    Scene,
    SceneObject,
)

PLAIN = Background("plain", 0, 0)


@pytest.fixture(scope="module")
def scenes():
    return [each.scene for each in plan(2, {"train": 24, "val": 1, "test": 4})]


def touched(scene, size=224):
    """The pixels that the objects of a scene change, [side, side]."""
    bare = np.asarray(draw_scene(Scene((), scene.background), size), int)
    return (np.asarray(draw_scene(scene, size), int) != bare).any(axis=2)


def test_images_are_rgb_of_the_given_size(scenes):
    assert (draw_scene(scenes[0]).mode, draw_scene(scenes[0]).size) == ("RGB", (224, 224))
    assert draw_scene(scenes[0], 96).size == (96, 96)


def test_the_same_scene_gives_the_same_pixels(scenes):
    for scene in scenes:
        assert draw_scene(scene).tobytes() == draw_scene(scene).tobytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_box_is_tight_around_the_shape(shape):
    item = SceneObject(shape, "blue", "large", "plain", 0.51, 0.48, 0.37, 7, 0)
    pixels = np.asarray(draw_scene(Scene((item,), PLAIN), 448), int)
    rows, columns = np.nonzero(np.abs(pixels - PIXELS["blue"]).sum(axis=2) < 90)
    drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 448
    assert drawn == pytest.approx(item.box, abs=2.5 / 448)


def test_no_object_hides_another(scenes):
    for scene in scenes:
        alone = [touched(replace(scene, objects=(item,))) for item in scene.objects]
        assert not any((a & b).any() for a, b in combinations(alone, 2))
        assert (sum(alone) == touched(scene)).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", ["small", "large"])
def test_fills_and_shapes_can_be_distinguished_at_64_pixels(shape, size):
    diameter = {"small": 0.195, "large": 0.335}[size]
    for color in COLORS:
        tiny = {}
        for fill in FILLS:
            item = SceneObject(shape, color, size, fill, 0.5, 0.5, diameter, 0, 45)
            image = draw_scene(Scene((item,), PLAIN)).resize((64, 64), Image.Resampling.BICUBIC)
            x0, y0, x1, y1 = (round(64 * edge) for edge in item.box)
            tiny[fill] = np.asarray(image, int)[y0:y1, x0:x1]
        for one, other in combinations(FILLS, 2):
            # Mean difference per pixel and channel over the box; the closest pairs are near 13.
            assert np.abs(tiny[one] - tiny[other]).mean() > 6, (shape, color, one, other)
        spread = {fill: tiny[fill].std(axis=(0, 1)).max() for fill in FILLS}
        assert min(spread["striped"], spread["dotted"]) > 25, (shape, color)


def test_colors_differ_from_each_other_and_from_every_background():
    for one, other in combinations(COLORS, 2):
        assert np.abs(np.subtract(PIXELS[one], PIXELS[other])).max() > 70
    for kind in CORPUS_LOOK.backgrounds:
        for tint in range(CORPUS_LOOK.tints):
            pixels = np.asarray(draw_scene(Scene((), Background(kind, tint, 3))), int)
            assert (pixels.max(axis=2) - pixels.min(axis=2)).max() < 45  # nearly gray


def test_every_shape_can_be_distinguished_from_every_other_at_64_pixels():
    tiny = {}
    for shape in SHAPES:
        item = SceneObject(shape, "blue", "large", "plain", 0.5, 0.5, 0.37, 0, 30)
        image = draw_scene(Scene((item,), PLAIN)).resize((64, 64), Image.Resampling.BICUBIC)
        tiny[shape] = np.asarray(image, int)[18:46, 18:46]
    for one, other in combinations(tiny, 2):
        # Mean difference per pixel and channel over the large object's box.
        assert np.abs(tiny[one] - tiny[other]).mean() > 6, (one, other)


def test_every_background_differs_from_every_other_and_depends_on_its_seed():
    kinds = CORPUS_LOOK.backgrounds
    drawn = {kind: np.asarray(draw_scene(Scene((), Background(kind, 0, 3))), int) for kind in kinds}
    for one, other in combinations(drawn, 2):
        assert (drawn[one] != drawn[other]).any(axis=2).mean() > 0.02, (one, other)
    for kind in set(kinds) - {"plain"}:
        seeds = {draw_scene(Scene((), Background(kind, 0, seed))).tobytes() for seed in range(12)}
        assert len(seeds) > 1, kind
