"""Wide scenes: never one that a test split may show, twins that words can tell apart, a pool that survives a kill."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from lab.nano.clip import augmented
from lab.nano.images import (
    LABELS,
    SURROUNDINGS,
    ImagePool,
    patch_labels,
    patch_silhouettes,
    patch_surroundings,
    wide_scenes,
)
from lab.nano.wide_look import MORE_COLORS, MORE_FILLS, MORE_SHAPES
from lab.nano.words import MAX_WORDS, word_tokenizer

from lab.nano import images as wide_images
from saysee.data.scenes.captions import write_captions
from saysee.data.scenes.drawing import BACKGROUNDS, draw_scene
from saysee.data.scenes.grammar import say
from saysee.data.scenes.planning import in_test_half, novel_pairs
from saysee.data.scenes.world import Background, Scene, SceneObject
from saysee.errors import CheckpointError
from saysee_process import wait_for

CHUNKS = [(seed, chunk) for seed in (0, 7) for chunk in (0, 5)]


@pytest.fixture(scope="module")
def wide():
    """Nine hundred scenes, of two seeds and two chunks."""
    return {key: list(wide_scenes(*key, 225)) for key in CHUNKS}


@pytest.fixture(scope="module")
def every(wide):
    return [each for chunk in wide.values() for each in chunk]


def pairs_of(scene):
    return {(item.color, item.shape) for item in scene.objects}


def test_no_wide_scene_may_be_in_a_test_split(every):
    assert len(every) > 800
    assert not any(in_test_half(each.scene) for each in every)


def test_no_wide_scene_has_a_pair_that_only_tests_show(every):
    assert len(novel_pairs()) == 10
    assert not any(pairs_of(each.scene) & novel_pairs() for each in every)


def test_no_test_scene_of_a_corpus_is_among_the_wide_ones(every):
    from saysee.data.scenes.planning import plan

    seen = {each.scene.key for each in every}
    for seed in range(2):
        for planned in plan(seed, {"train": 1, "val": 1, "test": 60}):
            assert planned.split != "test" or planned.scene.key not in seen


def test_wide_scenes_are_wider_than_the_corpus_and_half_of_them_are_like_it(every):
    shown = Counter(value for each in every for item in each.scene.objects for value in item.attributes)
    assert set(MORE_SHAPES + MORE_COLORS + MORE_FILLS) <= set(shown)
    assert {len(each.scene.objects) for each in every} == {1, 2, 3, 4}
    assert {each.scene.background.kind for each in every} == set(BACKGROUNDS)
    wider = set(MORE_SHAPES + MORE_COLORS + MORE_FILLS)
    like = sum(not any(wider & set(item.attributes) for item in each.scene.objects) for each in every)
    assert 0.45 < like / len(every) < 0.75


def test_the_same_numbers_give_the_same_scenes_and_others_others(wide):
    assert list(wide_scenes(7, 5, 225)) == wide[7, 5]
    keys = [[each.scene for each in chunk] for chunk in wide.values()]
    assert all(a != b for a, b in pairwise(keys))


def test_captions_are_true_several_and_different(every):
    assert all(len(set(each.captions)) == len(each.captions) >= 5 for each in every)
    words = {word.strip(",") for each in every for text in each.captions for word in text.split()}
    assert set(MORE_SHAPES) <= words


def test_twins_differ_in_one_object_and_their_captions_are_false_of_each_other(wide, monkeypatch):
    truths = []

    def recorded(scene, rng, false_of=None):
        captions = write_captions(scene, rng, false_of)
        if captions is not None and false_of is not None:
            truths.append((scene, false_of, captions))
        return captions

    monkeypatch.setattr(wide_images, "write_captions", recorded)
    made = list(wide_scenes(0, 0, 225))
    assert made == wide[0, 0]
    said = {(id(scene), say(caption).text): caption for scene, _, found in truths for caption in found}
    twins = [(a, b) for a, b in pairwise(made) if a.twin]
    assert len(twins) > 30
    assert not made[-1].twin
    for a, b in twins:
        assert not b.twin
        assert a.scene.background == b.scene.background
        assert sum(x != y for x, y in zip(a.scene.objects, b.scene.objects, strict=True)) == 1
        for one, other in ((a, b), (b, a)):
            for text in one.captions:
                caption = said[id(one.scene), text]
                assert caption.could_describe(one.scene)
                assert not caption.could_describe(other.scene)


def thing(shape, color, x, y, diameter, size="large", fill="plain"):
    return SceneObject(shape, color, size, fill, x, y, diameter, 0, 0)


def labels_of(*objects, grid=8):
    labels = patch_labels(Scene(objects, Background("plain", 0, 0)), grid)
    assert labels.shape == (len(LABELS), grid * grid)
    assert labels.dtype == np.uint8
    return labels.reshape(len(LABELS), grid, grid)


def test_a_patch_is_labelled_where_an_object_covers_half_of_it():
    # From 0.125 to 0.4375 across and down: patches 1 and 2 whole, and half of patch 3; a quarter of the corner.
    labels = labels_of(thing("square", "turquoise", 0.28125, 0.28125, 0.3125, fill="halved"))
    expected = np.zeros((8, 8), bool)
    expected[1:3, 1:3] = expected[1:3, 3] = expected[3, 1:3] = True
    values = {"shape": "square", "color": "turquoise", "size": "large", "fill": "halved"}
    for layer, (name, known) in zip(labels, LABELS.items(), strict=True):
        assert (layer == expected * (1 + known.index(values[name]))).all(), name


def test_an_object_too_small_for_half_a_patch_labels_the_one_that_it_covers_most():
    labels = labels_of(thing("square", "red", 0.23, 0.73, 0.1, size="small"), grid=4)
    expected = np.zeros((4, 4), bool)
    expected[2, 0] = True  # from 0.18 to 0.28, and from 0.68 to 0.78: most of it above 0.75 and left of 0.25
    assert ((labels[0] > 0) == expected).all()


def test_surroundings_agree_with_captions():
    left, right = thing("star", "red", 0.2, 0.25, 0.2), thing("oval", "black", 0.8, 0.3, 0.2)
    low = thing("ring", "blue", 0.75, 0.8, 0.2)
    bits = np.unpackbits(patch_surroundings(Scene((left, right, low), Background("plain", 0, 0)), 4), axis=1)
    bits = bits[:, : len(SURROUNDINGS)].reshape(4, 4, -1)

    def told(row, column):
        return {SURROUNDINGS[bit] for bit in np.flatnonzero(bits[row, column])}

    # The ring lies aslant of the star, so nothing is said of the two.
    assert told(1, 0) == {("left", ""), ("top", ""), ("right of", "black"), ("right of", "oval")}
    assert told(1, 3) == {
        *[("right", ""), ("top", ""), ("left of", "red"), ("left of", "star"), ("below", "blue"), ("below", "ring")]
    }
    assert told(3, 3) == {("right", ""), ("bottom", ""), ("above", "black"), ("above", "oval")}
    assert told(3, 0) == set()


def test_a_third_of_the_twins_differ_in_a_place(every):
    places = sum(
        [item.attributes for item in first.scene.objects] == [item.attributes for item in second.scene.objects]
        for first, second in pairwise(every)
        if first.twin
    )
    assert 0.25 < places / sum(each.twin for each in every) < 0.45


def test_silhouettes_are_the_objects_pixels_patch_by_patch():
    # A square over the pixels 8 to 23 across and 4 to 19 down of 64, in patches of 8.
    square = thing("square", "red", 16 / 64, 12 / 64, 16 / 64)
    bits = np.unpackbits(patch_silhouettes(Scene((square,), Background("plain", 0, 0)), 64, 8), axis=1)
    assert bits.shape == (64, 64)
    picture = bits.reshape(8, 8, 8, 8).swapaxes(1, 2).reshape(64, 64)
    expected = np.zeros((64, 64), dtype=np.uint8)
    expected[4:20, 8:24] = 1
    assert (picture != expected).sum() <= 64  # the edges fall on a pixel's border
    assert picture[4:20, 8:24].mean() > 0.95


def test_a_hole_is_no_part_of_a_silhouette_and_what_is_drawn_is_where_it_says():
    scene = Scene((thing("ring", "blue", 0.5, 0.5, 0.36),), Background("plain", 0, 0))
    bits = np.unpackbits(patch_silhouettes(scene, 64, 8), axis=1).reshape(8, 8, 8, 8).swapaxes(1, 2).reshape(64, 64)
    picture = np.asarray(draw_scene(scene, 64)).astype(int)
    assert bits[32, 32] == 0
    blue = picture[..., 2] - picture[..., 0] > 60
    assert (blue == (bits > 0)).mean() > 0.98


def test_each_object_has_labels_of_its_own():
    labels = labels_of(thing("star", "red", 0.25, 0.25, 0.37), thing("oval", "black", 0.75, 0.75, 0.37, fill="checked"))
    shapes, colors = LABELS["shape"], LABELS["color"]
    assert set(np.unique(labels[0])) == {0, 1 + shapes.index("star"), 1 + shapes.index("oval")}
    assert labels[1, 2, 2] == 1 + colors.index("red")
    assert labels[1, 6, 6] == 1 + colors.index("black")


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of six scenes, and no other processes: those would not see the change."""
    monkeypatch.setattr(wide_images, "CHUNK", 6)
    monkeypatch.setattr(wide_images, "make_missing", one_after_the_other)


def one_after_the_other(what, chunks, make):
    from lab.nano.chunks import make_missing

    chunks[0].folder.parent.mkdir(parents=True, exist_ok=True)
    for chunk in chunks:
        make_missing(what, [chunk], make)


def test_the_pool_has_what_was_asked_for_and_the_same_seed_gives_the_same(tmp_path, small_chunks):
    pool = ImagePool(tmp_path / "a", 15, 32, 4, seed=2)
    assert pool.pixels.shape == (15, 32, 32, 3)
    assert pool.labels.shape == (15, len(LABELS), 16)
    assert len(pool.captions) == 15
    assert len({picture.tobytes() for picture in pool.pixels}) == 15
    ImagePool(tmp_path / "b", 15, 32, 4, seed=2)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    other = ImagePool(tmp_path / "c", 15, 32, 4, seed=3)
    assert (other.pixels != pool.pixels).any()


def test_images_labels_and_captions_are_of_the_scenes_in_order(tmp_path, small_chunks):
    pool = ImagePool(tmp_path, 9, 32, 4, seed=2)
    scenes = [*wide_scenes(2, 0, 6), *wide_scenes(2, 1, 3)]
    assert pool.captions == [list(each.captions) for each in scenes]
    assert (pool.labels == np.stack([patch_labels(each.scene, 4) for each in scenes])).all()
    assert (pool.surroundings == np.stack([patch_surroundings(each.scene, 4) for each in scenes])).all()
    side = pool.pixels.shape[1]
    assert (pool.silhouettes == np.stack([patch_silhouettes(each.scene, side, 4) for each in scenes])).all()
    for picture, each in zip(pool.pixels, scenes, strict=True):
        bare = wide_images._draw(Scene((), each.scene.background), 32).astype(int)
        painted = np.abs(picture - bare).sum(axis=2) > 60
        boxes = np.zeros((32, 32), bool)
        for item in each.scene.objects:
            x0, y0, x1, y1 = (round(32 * edge) for edge in item.box)
            boxes[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2] = True
        assert painted.any()
        assert boxes[painted].all()


def test_units_hold_twins_together_and_every_scene_once(tmp_path, small_chunks):
    pool = ImagePool(tmp_path, 40, 16, 2, seed=0)
    assert sorted({number for unit in pool.units.tolist() for number in unit}) == list(range(40))
    scenes = [each for chunk, count in enumerate([6] * 6 + [4]) for each in wide_scenes(0, chunk, count)]
    pairs = {(first, second) for first, second in pool.units.tolist() if first != second}
    assert pairs == {(i, i + 1) for i, each in enumerate(scenes) if each.twin}
    assert pairs
    assert len(pool.units) == 40 - len(pairs)


def test_tokens_are_those_of_the_captions_scene_by_scene(tmp_path, small_chunks):
    pool = ImagePool(tmp_path, 15, 16, 2, seed=2)
    tokenizer = word_tokenizer(pool.words)
    tokens = pool.tokens(tokenizer)
    assert len(tokens.first) == 16
    for captions, start, stop in zip(pool.captions, tokens.first[:-1], tokens.first[1:], strict=True):
        theirs = tokenizer(captions, padding="max_length", max_length=MAX_WORDS).input_ids
        assert tokens.tokens[start:stop].tolist() == theirs
        assert tokenizer.unk_token_id not in np.array(theirs)


def test_a_chunk_that_is_missing_is_drawn_again_and_is_the_same(tmp_path, small_chunks):
    ImagePool(tmp_path, 15, 16, 2, seed=1)
    before = content(tmp_path)
    chunks = sorted(tmp_path.iterdir())
    times = {chunk: (chunk / "pixels.npy").stat().st_mtime_ns for chunk in chunks}
    shutil.rmtree(chunks[1])
    (tmp_path / f".writing-{chunks[1].name}").mkdir()  # what a kill leaves
    ImagePool(tmp_path, 15, 16, 2, seed=1)
    assert content(tmp_path) == before
    assert sorted(tmp_path.iterdir()) == chunks
    assert all((c / "pixels.npy").stat().st_mtime_ns == times[c] for c in (chunks[0], chunks[2]))


def test_a_folder_of_other_images_is_an_error(tmp_path, small_chunks):
    ImagePool(tmp_path, 3, 16, 2, seed=1)
    for size, grid in ((32, 2), (16, 4)):
        with pytest.raises(CheckpointError, match=r"holds images of 16 pixels and 4 patches, not") as refusal:
            ImagePool(tmp_path, 3, size, grid, seed=1)
        assert "\n" not in str(refusal.value)


def test_a_folder_of_an_earlier_version_is_an_error(tmp_path, small_chunks):
    ImagePool(tmp_path, 3, 16, 2, seed=1)
    for name in ("words.npy", "words.json"):
        next(tmp_path.glob(f"*/{name}")).unlink()
    with pytest.raises(CheckpointError, match="earlier version") as refusal:
        ImagePool(tmp_path, 3, 16, 2, seed=1)
    assert "\n" not in str(refusal.value)


DRAW = (
    "import sys\n"
    "from pathlib import Path\n"
    "from lab.nano import images\n"
    "if __name__ == '__main__':\n"
    "    images.CHUNK = 20\n"
    "    images.ImagePool(Path(sys.argv[1]), 230, 16, 2, seed=3)\n"
)


@pytest.mark.nightly  # starts worker processes; that a missing chunk is drawn again is tested above
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_killed_pool_has_whole_chunks_only_and_is_completed(tmp_path, monkeypatch):
    script = tmp_path / "draw.py"
    script.write_text(DRAW)
    folder = tmp_path / "pool"
    process = subprocess.Popen([sys.executable, script, folder], stderr=subprocess.DEVNULL)
    wait_for(lambda: any(folder.glob("chunk-*")), process)
    process.kill()
    process.wait()
    time.sleep(0.5)  # its workers end after it
    whole = sorted(folder.glob("chunk-*"))
    assert 0 < len(whole) < 12
    for chunk in whole:
        names = {"pixels", "labels", "silhouettes", "surroundings", "words"}
        assert {path.name for path in chunk.iterdir()} == {f"{n}.npy" for n in names} | {"scenes.json", "words.json"}
        assert len(np.load(chunk / "pixels.npy")) in (10, 20)
    made = {chunk: (chunk / "pixels.npy").stat().st_mtime_ns for chunk in whole}
    monkeypatch.setattr(wide_images, "CHUNK", 20)
    monkeypatch.setattr(wide_images, "make_missing", one_after_the_other)
    pool = ImagePool(folder, 230, 16, 2, seed=3)
    assert len(pool.pixels) == len(pool.captions) == 230
    names = [path.name for path in sorted(folder.iterdir())]
    assert names == [*(f"chunk-3-{number:05d}" for number in range(11)), "chunk-3-00011-of-10"]
    assert {chunk: (chunk / "pixels.npy").stat().st_mtime_ns for chunk in whole} == made
    # What two processes began and one finished is what one would have drawn.
    ImagePool(tmp_path / "again", 230, 16, 2, seed=3)
    assert content(tmp_path / "again") == content(folder)


def test_augmentation_keeps_shape_and_range_and_follows_its_generator():
    pixels = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    once, again, other = (augmented(pixels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert once.shape == pixels.shape
    assert once.dtype == pixels.dtype
    assert once.min() >= 0
    assert once.max() <= 1
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_augmentation_changes_each_image_differently_but_not_its_content():
    pixels = torch.full((8, 3, 16, 16), 0.2)
    pixels[:, :, :, 8:] = 0.8
    changed = augmented(pixels, torch.Generator().manual_seed(3))
    means = changed.mean(dim=(1, 2, 3))
    assert len({round(float(mean), 4) for mean in means}) == 8
    assert (changed[..., 8:].mean(dim=(1, 2, 3)) - changed[..., :8].mean(dim=(1, 2, 3)) > 0.4).all()
