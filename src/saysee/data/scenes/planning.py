"""The scenes of a corpus: splits, pairs of color and shape that only the test split has, and hard twins.

Everything follows from the seed by ``random.Random`` seeded with strings, whose sequence is the same on every machine
and Python version. Scenes are planned one after the other, because no two of a corpus may be alike.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from saysee.data.scenes.captions import Caption, write_captions
from saysee.data.scenes.world import (
    ATTRIBUTES,
    COLORS,
    DIAMETERS,
    FILLS,
    SHAPES,
    SIZES,
    Background,
    Scene,
    SceneObject,
    apart,
    inside,
)
from saysee.errors import ConfigError

# About a tenth of the 96 pairs. Each shape loses at most one color and each color at most two shapes, so training still
# shows every shape and every color often.
NOVEL_PAIRS = 10
NOVEL_SHARE = 0.4  # of the test scenes that are not twins: a third of all test scenes
TWIN_SHARE = 0.2  # of the test scenes, counting both twins
ECHO_SHARE = 0.4  # of the objects after the first: they share attributes with an earlier one, so that there are counts
CHANGES = ("shape", "color", "size", "fill", "place")

Pairs = Sequence[tuple[str, str]]  # pairs of color and shape
Attributes = tuple[str, str, str, str]  # size, fill, color and shape of an object


@dataclass(frozen=True)
class Look:
    """What :func:`sample_scene` may draw."""

    objects: tuple[int, int] = (2, 4)  # smallest and largest number
    fills: tuple[str, ...] = FILLS
    backgrounds: tuple[str, ...] = ("plain", "gradient", "paper", "checker", "clouds", "squared")
    tints: int = 12  # of ``drawing.TINTS``, from the first


CORPUS_LOOK = Look()


@dataclass(frozen=True)
class PlannedScene:
    """A scene of a corpus."""

    index: int  # its position in the corpus, from 0
    split: str  # ``train``, ``val`` or ``test``
    scene: Scene
    novel_pair: bool  # whether an object has a pair of color and shape that is not in training
    captions: tuple[Caption, ...]  # true of the scene, and false of its twin, if it has one
    twin_index: int | None = None  # index of its hard twin, if it has one


def image_id(index: int) -> str:
    """The name of the image with this index."""
    return f"{index:06d}"


def split_sizes(images: int, val_images: int | None = None, test_images: int | None = None) -> dict[str, int]:
    """The number of images in each split: by default 5 % in ``val`` and 15 % in ``test``, at least one each.

    Raises ConfigError if a split would be empty.
    """
    val = max(1, round(images * 0.05)) if val_images is None else val_images
    test = max(1, round(images * 0.15)) if test_images is None else test_images
    sizes = {"train": images - val - test, "val": val, "test": test}
    for split, size in sizes.items():
        if size < 1:
            what = f"images={images} with val_images={val} and test_images={test} gives {size} images to {split}"
            raise ConfigError(f"{what}: each split needs at least one; set more images or smaller splits")
    return sizes


def novel_pairs() -> frozenset[tuple[str, str]]:
    """The (color, shape) pairs that only test splits contain, of every corpus: no model has seen them before a test."""
    rng = Random("saysee scenes novel pairs")
    shapes, colors = list(SHAPES), list(COLORS) * 2
    rng.shuffle(shapes)
    rng.shuffle(colors)
    return frozenset(zip(colors[:NOVEL_PAIRS], shapes[:NOVEL_PAIRS], strict=True))


def in_test_half(scene: Scene) -> bool:
    """Whether the scene is in the half of all scenes that only test splits may contain, of any corpus and seed."""
    return hashlib.blake2b(repr(scene.key).encode(), digest_size=1).digest()[0] < 128


def plan(seed: int, sizes: dict[str, int]) -> Iterator[PlannedScene]:
    """The scenes of a corpus in order: first ``train``, then ``val``, then ``test``, in the numbers of ``sizes``."""
    planner = _Planner(seed)
    index = 0
    for split in ("train", "val"):
        for _ in range(sizes[split]):
            yield planner.single(index, split)
            index += 1
    for is_pair in planner.units(sizes["test"]):
        if is_pair:
            yield from planner.twins(index)
        else:
            yield planner.single(index, "test")
        index += 2 if is_pair else 1


class _Planner:
    """Draws scenes that differ from all earlier ones."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.novel = sorted(novel_pairs())
        self.known = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in set(self.novel)]
        self.seen: set[tuple[object, ...]] = set()

    def units(self, size: int) -> list[bool]:
        """The test split as single scenes (False) and pairs of twins (True), shuffled."""
        pairs = max(1, round(size * TWIN_SHARE / 2)) if size >= 2 else 0
        units = [True] * pairs + [False] * (size - 2 * pairs)
        Random(f"saysee scenes {self.seed} units").shuffle(units)
        return units

    def single(self, index: int, split: str) -> PlannedScene:
        """A new scene; some test scenes have a novel pair."""
        rng = Random(f"saysee scenes {self.seed} {index}")
        novel = self.novel if split == "test" and rng.random() < NOVEL_SHARE else None
        while True:
            scene = sample_scene(rng, self.known, novel)
            if scene.key in self.seen or in_test_half(scene) != (split == "test"):
                continue
            if captions := write_captions(scene, rng):
                self.seen.add(scene.key)
                return PlannedScene(index, split, scene, self._is_novel(scene), captions)

    def twins(self, index: int) -> tuple[PlannedScene, PlannedScene]:
        """Two scenes that differ in one attribute of one object, each with captions that are false of the other."""
        rng = Random(f"saysee scenes {self.seed} {index}")
        change = CHANGES[rng.randrange(len(CHANGES))]
        while True:
            first = sample_scene(rng, self.known, None)
            second = changed(first, change, rng)
            if second is None or first.key == second.key or {first.key, second.key} & self.seen:
                continue
            if not (in_test_half(first) and in_test_half(second)):
                continue
            captions = write_captions(first, rng, false_of=second), write_captions(second, rng, false_of=first)
            if captions[0] and captions[1]:
                self.seen |= {first.key, second.key}
                novel = self._is_novel(first), self._is_novel(second)
                one = PlannedScene(index, "test", first, novel[0], captions[0], index + 1)
                return one, PlannedScene(index + 1, "test", second, novel[1], captions[1], index)

    def _is_novel(self, scene: Scene) -> bool:
        return any((item.color, item.shape) in self.novel for item in scene.objects)


def sample_scene(rng: Random, pairs: Pairs, novel: Pairs | None = None, look: Look = CORPUS_LOOK) -> Scene:
    """Draws one scene of these (color, shape) pairs; one object has a novel pair, if there are any, and others may."""
    while True:
        drawn: list[Attributes] = []
        for i in range(rng.randint(*look.objects)):
            choice = novel if novel and (i == 0 or rng.random() < 0.25) else pairs
            color, shape = choice[rng.randrange(len(choice))]
            size, fill = _pick(rng, SIZES), _pick(rng, look.fills)
            if drawn and rng.random() < ECHO_SHARE:
                size, fill, color, shape = _echo(rng, (size, fill, color, shape), drawn, [*pairs, *(novel or [])])
            drawn.append((size, fill, color, shape))
        rng.shuffle(drawn)
        objects = _placed(rng, drawn)
        if objects:
            background = Background(_pick(rng, look.backgrounds), rng.randrange(look.tints), rng.randrange(1_000_000))
            return Scene(objects, background)


def _pick(rng: Random, values: Sequence[str]) -> str:
    return values[rng.randrange(len(values))]


def _echo(rng: Random, own: Attributes, drawn: list[Attributes], pairs: Pairs) -> Attributes:
    """``own`` with some attributes of an earlier object; with all of them in a third of the cases."""
    other = drawn[rng.randrange(len(drawn))]
    if rng.random() < 1 / 3:
        return other
    size, fill, color, shape = (theirs if rng.random() < 0.5 else mine for mine, theirs in zip(own, other, strict=True))
    return (size, fill, color, shape) if (color, shape) in pairs else other


def _placed(rng: Random, drawn: list[Attributes]) -> tuple[SceneObject, ...] | None:
    """The objects at free places, large ones placed first; None if there was no space."""
    placed: dict[int, SceneObject] = {}
    for i in sorted(range(len(drawn)), key=lambda i: drawn[i][0]):  # "large" sorts before "small"
        size, fill, color, shape = drawn[i]
        diameter = _diameter(rng, size)
        angle, texture = rng.randint(-10, 10), rng.choice((0, 45, 90, 135)) + rng.randint(-8, 8)
        for _ in range(40):
            item = SceneObject(shape, color, size, fill, *_position(rng), diameter, angle, texture)
            if inside(item) and all(apart(item, other) for other in placed.values()):
                placed[i] = item
                break
        else:
            return None
    return tuple(placed[i] for i in range(len(drawn)))


def _position(rng: Random) -> tuple[float, float]:
    return rng.randint(80, 920) / 1000, rng.randint(80, 920) / 1000


def _diameter(rng: Random, size: str) -> float:
    low, high = DIAMETERS[size]
    return rng.randint(round(low * 1000), round(high * 1000)) / 1000


def changed(scene: Scene, change: str, rng: Random) -> Scene | None:
    """The scene with one object changed in one of ``CHANGES``; None if the changed object has no space."""
    i = rng.randrange(len(scene.objects))
    item = scene.objects[i]
    if change == "place":
        x, y = _position(rng)
        new = replace(item, x=x, y=y)
    else:
        value = _pick(rng, [value for value in ATTRIBUTES[change] if value != getattr(item, change)])
        new = replace(item, **{change: value})  # type: ignore[arg-type]
        if change == "size":
            new = replace(new, diameter=_diameter(rng, value))
    if not inside(new) or not all(apart(new, other) for j, other in enumerate(scene.objects) if j != i):
        return None
    return Scene((*scene.objects[:i], new, *scene.objects[i + 1 :]), scene.background)
