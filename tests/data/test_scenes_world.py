"""Scenes and plans: positions and relations, splits, and the same plan from the same seed on any machine."""

import hashlib
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest

from saysee.data.scenes.grammar import say
from saysee.data.scenes.planning import in_test_half, novel_pairs, plan, split_sizes
from saysee.data.scenes.speakers import speaker_pools, speakers_of
from saysee.data.scenes.world import COLORS, FILLS, SHAPES, SIZES, Background, relation
from saysee.errors import ConfigError

SIZES_OF_SPLITS = {"train": 300, "val": 30, "test": 120}


@pytest.fixture(scope="module")
def planned():
    return list(plan(0, SIZES_OF_SPLITS))


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def test_there_are_enough_attributes():
    assert len(SHAPES) >= 10
    assert (len(COLORS), len(SIZES), len(FILLS)) == (8, 2, 3)


def test_scenes_have_two_to_four_objects_inside_the_image_that_never_touch(planned):
    assert {len(each.scene.objects) for each in planned} == {2, 3, 4}
    for each in planned:
        boxes = [item.box for item in each.scene.objects]
        assert all(0 < x0 < x1 < 1 and 0 < y0 < y1 < 1 for x0, y0, x1, y1 in boxes)
        assert not any(overlap(a, b) for a, b in combinations(boxes, 2))


def test_every_large_object_is_clearly_larger_than_every_small_one(planned):
    diameters = {size: [i.diameter for p in planned for i in p.scene.objects if i.size == size] for size in SIZES}
    assert min(diameters["large"]) > 1.4 * max(diameters["small"])


def test_a_relation_follows_from_the_boxes_and_its_opposite_holds_the_other_way(planned):
    opposite = {"left of": "right of", "above": "below", "right of": "left of", "below": "above", None: None}
    seen = set()
    for each in planned:
        for a, b in combinations(each.scene.objects, 2):
            where = relation(a, b)
            seen.add(where)
            assert relation(b, a) == opposite[where]
            if where == "left of":
                assert a.box[2] <= b.box[0]
            if where == "above":
                assert a.box[3] <= b.box[1]
    assert seen == set(opposite)


def test_splits_have_the_given_sizes_and_no_scene_occurs_twice(planned):
    assert Counter(each.split for each in planned) == SIZES_OF_SPLITS
    assert [each.index for each in planned] == list(range(len(planned)))
    assert len({each.scene.key for each in planned}) == len(planned)


def test_novel_pairs_are_in_the_test_split_only(planned):
    pairs = novel_pairs()
    assert 0.08 < len(pairs) / (len(SHAPES) * len(COLORS)) < 0.15
    for each in planned:
        has_one = any((item.color, item.shape) in pairs for item in each.scene.objects)
        assert each.novel_pair == has_one
        assert each.split == "test" or not has_one
    share = sum(each.novel_pair for each in planned) / SIZES_OF_SPLITS["test"]
    assert 0.2 < share < 0.5
    known = {(item.color, item.shape) for each in planned if each.split == "train" for item in each.scene.objects}
    assert {color for color, _ in known} == set(COLORS)
    assert {shape for _, shape in known} == set(SHAPES)


def test_test_scenes_are_of_the_test_half_and_no_others_are(planned):
    for each in planned:
        assert in_test_half(each.scene) == (each.split == "test")
    objects = [replace(each.scene, objects=each.scene.objects[::-1]) for each in planned]
    # The half depends on what can be said: neither on the order of the objects nor on the background.
    assert [in_test_half(scene) for scene in objects] == [in_test_half(each.scene) for each in planned]
    other = Background("plain", 0, 0)
    assert all(in_test_half(replace(p.scene, background=other)) == in_test_half(p.scene) for p in planned)


def test_no_test_scene_of_any_seed_is_trained_on_with_another():
    trained, tested = set(), set()
    for seed in range(3):
        for each in plan(seed, {"train": 60, "val": 10, "test": 40}):
            assert in_test_half(each.scene) == (each.split == "test")
            (tested if each.split == "test" else trained).add(each.scene.key)
            assert each.split == "test" or not each.novel_pair
    assert not trained & tested


def test_hard_twins_differ_in_one_attribute_of_one_object_and_no_caption_is_true_of_both(planned):
    twins = [each for each in planned if each.twin_index is not None]
    assert len(twins) == 24
    kinds = set()
    for each in twins:
        other = planned[each.twin_index]
        assert each.split == other.split == "test"
        assert other.twin_index == each.index
        assert each.scene.background == other.scene.background
        changed = []
        for a, b in zip(each.scene.objects, other.scene.objects, strict=True):
            changed += [name for name in ("shape", "color", "size", "fill") if getattr(a, name) != getattr(b, name)]
            changed += ["place"] if (a.x, a.y) != (b.x, b.y) else []
            assert a.diameter == b.diameter or a.size != b.size
            assert (a.angle, a.texture_angle) == (b.angle, b.texture_angle)
        assert len(changed) == 1
        kinds.add(changed[0])
        assert all(caption.could_describe(each.scene) for caption in each.captions)
        assert not any(caption.could_describe(other.scene) for caption in each.captions)
    assert len(kinds) >= 4


def test_the_same_seed_gives_this_plan_on_any_machine_and_python():
    digest = hashlib.sha256()
    for each in plan(0, {"train": 60, "val": 10, "test": 30}):
        boxes = [item.box for item in each.scene.objects]
        words = [say(caption).words for caption in each.captions]
        speakers = [speaker.id for speaker in speakers_of(0, each.index, each.split, 5)]
        said = (each.split, each.scene, each.novel_pair, each.twin_index, boxes, words, speakers)
        digest.update(repr(said).encode())
    # With another digest, existing corpora no longer follow from their seed: increase GENERATOR_VERSION.
    assert digest.hexdigest()[:16] == "ae7e73a224682e0f"


def test_another_seed_gives_other_scenes(planned):
    others = plan(1, {"train": 50, "val": 1, "test": 1})
    keys = {each.scene.key for each in planned}
    assert sum(each.scene.key in keys for each in others) <= 1


def test_split_sizes_have_defaults_and_no_split_is_empty():
    assert split_sizes(3000) == {"train": 2400, "val": 150, "test": 450}
    assert split_sizes(100, val_images=7, test_images=20) == {"train": 73, "val": 7, "test": 20}
    with pytest.raises(ConfigError, match=r"0 images to train"):
        split_sizes(30, val_images=10, test_images=20)
    with pytest.raises(ConfigError):
        split_sizes(2)


def test_no_voice_is_in_two_splits_and_each_image_has_five_speakers():
    pools = speaker_pools()
    assert all(len(pools[split]) >= least for split, least in (("train", 200), ("val", 40), ("test", 60)))
    for one, other in combinations(pools.values(), 2):
        assert not {s.voice for s in one} & {s.voice for s in other}
    assert len({s.id for pool in pools.values() for s in pool}) == sum(map(len, pools.values()))
    for index in range(50):
        chosen = speakers_of(0, index, "val", 5)
        assert len(set(chosen)) == 5
        assert set(chosen) <= set(pools["val"])
