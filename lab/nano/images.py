"""Drawn scenes for clip-nano: more varied than the corpus's, and none that a corpus's test split may show.

These "wide" scenes have more shapes, colors, fills and backgrounds and one to four objects. Many have a twin that
differs in one attribute of one object, with captions that are false of the other: global vectors find it hardest to
separate these.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import PreTrainedTokenizerFast

from lab.nano.chunks import Chunk, chunks_of, make_missing
from lab.nano.wide_look import MORE_COLORS, MORE_FILLS, MORE_SHAPES, WIDE_LOOK, draw_silhouettes
from lab.nano.words import SceneTokens, WordNumbers
from saysee.data.scenes.captions import write_captions
from saysee.data.scenes.drawing import draw_scene
from saysee.data.scenes.grammar import say
from saysee.data.scenes.planning import CHANGES, Look, changed, in_test_half, novel_pairs, sample_scene
from saysee.data.scenes.world import (
    COLORS,
    FILLS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    places,
    relation,
)
from saysee.errors import CheckpointError
from saysee.files import write_folder, write_text

LABELS = {"shape": SHAPES + MORE_SHAPES, "color": COLORS + MORE_COLORS, "size": SIZES, "fill": FILLS + MORE_FILLS}
"""Labels of a patch that an object covers; 0 is "no object"."""

SURROUNDINGS = tuple((place, "") for place in PLACES) + tuple(
    (where, value) for where in RELATIONS for value in (*LABELS["color"], *LABELS["shape"])
)
"""What may hold of an object: the half of the image that it lies in, and the relation to an object of a color or
shape."""

TWIN_SHARE = 0.5
TWIN_CHANGES = (*CHANGES, "place", "place", "place")
"""The change between twins; a third of those found differ in a place. CLIP's loss teaches places least, because other
images of a batch mostly differ in more."""
TWIN_TRIES = 12
CORPUS_SHARE = 0.5
"""Share of the scenes with the look of the corpus; the others have the wide look."""
CAPTION_ROUNDS = 2  # times five captions a scene
CHUNK = 500  # scenes that are drawn and written at once
DRAWN_AT = 128  # twice the input size of clip-nano, then scaled down as by its image processor


@dataclass(frozen=True)
class WideScene:
    """A scene and its captions; ``twin`` is true if the next scene is its twin."""

    scene: Scene
    captions: tuple[str, ...]
    twin: bool


def wide_pairs(look: Look) -> list[tuple[str, str]]:
    """The (color, shape) pairs of a look, without those that only test splits show."""
    wide = look is WIDE_LOOK
    shapes, colors = (LABELS["shape"], LABELS["color"]) if wide else (SHAPES, COLORS)
    novel = novel_pairs()
    return [(color, shape) for color in colors for shape in shapes if (color, shape) not in novel]


def wide_scenes(seed: int, chunk: int, count: int) -> Iterator[WideScene]:
    """``count`` scenes of a chunk; the same arguments give the same scenes."""
    rng = Random(f"saysee wide scenes {seed} {chunk}")
    made = 0
    while made < count:
        corpus_like = rng.random() < CORPUS_SHARE
        look = Look(objects=(1, 4)) if corpus_like else WIDE_LOOK
        pairs = wide_pairs(look)
        first = sample_scene(rng, pairs, look=look)
        if in_test_half(first):
            continue
        twins = _twins(first, pairs, rng) if made + 1 < count and rng.random() < TWIN_SHARE else None
        if twins is not None:
            yield from twins
            made += 2
        elif said := _captions(first, rng, None):
            yield WideScene(first, said, False)
            made += 1


def _twins(first: Scene, pairs: list[tuple[str, str]], rng: Random) -> tuple[WideScene, WideScene] | None:
    """The scene and one that differs in one thing, with captions that are false of the other; None if none is found.

    A moved object often overlaps another, or every caption stays true, so several places are tried.
    """
    change = TWIN_CHANGES[rng.randrange(len(TWIN_CHANGES))]
    for _ in range(TWIN_TRIES):
        second = changed(first, change, rng)
        if second is None or not _may_show(second, pairs):
            continue
        said = _captions(first, rng, second)
        said_of_second = _captions(second, rng, first) if said else None
        if said and said_of_second:
            return WideScene(first, said, True), WideScene(second, said_of_second, False)
    return None


def _may_show(scene: Scene, pairs: list[tuple[str, str]]) -> bool:
    return not in_test_half(scene) and all((item.color, item.shape) in pairs for item in scene.objects)


def _captions(scene: Scene, rng: Random, false_of: Scene | None) -> tuple[str, ...] | None:
    texts: dict[str, None] = {}
    for _ in range(CAPTION_ROUNDS):
        captions = write_captions(scene, rng, false_of)
        if captions is None:  # already tried many times
            break
        texts |= dict.fromkeys(say(caption).text for caption in captions)
    return tuple(texts) or None


def patch_labels(scene: Scene, grid: int) -> NDArray[np.uint8]:
    """Labels of each patch: [len(LABELS), grid * grid], 0 where no object covers half of the patch.

    An object too small to cover half of a patch labels the patch that it covers most.
    """
    labels = np.zeros((len(LABELS), len(scene.objects) + 1), dtype=np.uint8)
    for number, (name, values) in enumerate(LABELS.items()):
        labels[number, 1:] = [1 + values.index(getattr(item, name)) for item in scene.objects]
    return labels[:, _owners(scene, grid)]


def _owners(scene: Scene, grid: int) -> NDArray[np.intp]:
    """[grid * grid] number of the object on each patch, from 1; 0 for no object."""
    owners = np.zeros((grid, grid), dtype=np.intp)
    edges = np.arange(grid + 1) / grid
    for number, item in enumerate(scene.objects, start=1):
        x0, y0, x1, y1 = item.box
        across = np.clip(np.minimum(edges[1:], x1) - np.maximum(edges[:-1], x0), 0, None)
        down = np.clip(np.minimum(edges[1:], y1) - np.maximum(edges[:-1], y0), 0, None)
        covered = np.outer(down, across) * grid * grid
        owners[covered >= min(0.5, covered.max())] = number
    return owners.ravel()


def patch_surroundings(scene: Scene, grid: int) -> NDArray[np.uint8]:
    """Bits of the :data:`SURROUNDINGS` that hold for the object of each patch: [grid * grid, bytes].

    No bit is set where :func:`patch_labels` has no object.
    """
    bits = np.zeros((len(scene.objects) + 1, len(SURROUNDINGS)), dtype=np.uint8)
    number = {name: bit for bit, name in enumerate(SURROUNDINGS)}
    for mine, item in zip(bits[1:], scene.objects, strict=True):
        mine[[number[place, ""] for place in places(item)]] = 1
        for other in scene.objects:
            where = None if other is item else relation(other, item)
            if where is not None:
                mine[[number[where, other.color], number[where, other.shape]]] = 1
    return np.packbits(bits, axis=1)[_owners(scene, grid)]


def patch_silhouettes(scene: Scene, image_size: int, grid: int) -> NDArray[np.uint8]:
    """Which pixels of each patch an object covers, as bits row by row: [grid * grid, bytes]."""
    covered = np.asarray(draw_silhouettes(scene, image_size)) > 127
    side = image_size // grid
    patches = covered.reshape(grid, side, grid, side).swapaxes(1, 2).reshape(grid * grid, side * side)
    return np.packbits(patches, axis=1)


class ImagePool:
    """Wide scenes, drawn once and kept in a folder; an interrupted pool is completed.

    Args:
        folder: of the chunks.
        scenes: number of scenes.
        image_size: side of the kept images in pixels.
        grid: patches along a side.
        seed: another seed gives other scenes.

    Raises:
        CheckpointError: the folder holds images or labels of another size, or of an earlier version.
        SaySeeError: a process died.
    """

    def __init__(self, folder: Path, scenes: int, image_size: int, grid: int, seed: int) -> None:
        self.chunks = chunks_of(folder, scenes, CHUNK, seed)
        for chunk in (chunk for chunk in self.chunks if chunk.folder.exists()):
            if not (chunk.folder / "words.npy").exists():
                raise CheckpointError(f"{folder} holds scenes of an earlier version; give another folder, or remove it")
            side = np.load(chunk.folder / "pixels.npy", mmap_mode="r").shape[1]
            patches = np.load(chunk.folder / "labels.npy", mmap_mode="r").shape[2]
            if (side, patches) != (image_size, grid * grid):
                raise CheckpointError(
                    f"{folder} holds images of {side} pixels and {patches} patches, not {image_size} and "
                    f"{grid * grid}; give another folder, or remove it"
                )
        make_missing("drawing scenes", self.chunks, partial(_draw_chunk, image_size, grid, seed))

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """[N, H, W, 3]; this property and the three below read the folder each time."""
        return self._joined("pixels")

    @property
    def labels(self) -> NDArray[np.uint8]:
        """[N, len(LABELS), P], see :func:`patch_labels`."""
        return self._joined("labels")

    @property
    def silhouettes(self) -> NDArray[np.uint8]:
        """[N, P, bytes], see :func:`patch_silhouettes`."""
        return self._joined("silhouettes")

    @property
    def surroundings(self) -> NDArray[np.uint8]:
        """[N, P, bytes], see :func:`patch_surroundings`."""
        return self._joined("surroundings")

    @cached_property
    def captions(self) -> list[list[str]]:
        """The captions of each scene."""
        return [item["captions"] for item in self._items()]

    @cached_property
    def words(self) -> list[str]:
        """All words of the captions, sorted."""
        return sorted({word for chunk in self.chunks for word in _words_of(chunk)})

    def tokens(self, tokenizer: PreTrainedTokenizerFast) -> SceneTokens:
        """The captions as token numbers; a word that the tokenizer does not have is its unknown token."""
        each = [
            WordNumbers(_words_of(chunk), np.load(chunk.folder / "words.npy")).tokens(tokenizer)
            for chunk in self.chunks
        ]
        return SceneTokens(np.concatenate(each), np.concatenate([[0], np.cumsum(self._counts[:, 0])]))

    @cached_property
    def units(self) -> NDArray[np.intp]:
        """[U, 2] numbers of scenes that belong in one batch: two twins, or a scene without twin twice."""
        twin_of_next = self._counts[:, 1] > 0
        firsts = np.flatnonzero(~np.roll(twin_of_next, 1))  # the last scene is never the twin of a next one
        return np.stack([firsts, firsts + twin_of_next[firsts]], axis=1)

    @cached_property
    def _counts(self) -> NDArray[np.intp]:
        """[N, 2] number of captions of each scene, and whether the next is its twin."""
        return np.array([(len(item["captions"]), item["twin"]) for item in self._items()], dtype=np.intp)

    def draw(self, rng: np.random.Generator, size: int) -> NDArray[np.intp]:
        """Numbers of ``size`` random scenes, each at most once, with their twins."""
        units = self.units[rng.choice(len(self.units), min(size, len(self.units)), replace=False)]
        both = np.ones(units.shape, dtype=bool)
        both[:, 1] = units[:, 0] < units[:, 1]
        chosen: NDArray[np.intp] = units[both][:size]
        return chosen

    def _joined(self, name: str) -> NDArray[np.uint8]:
        parts = [np.load(chunk.folder / f"{name}.npy", mmap_mode="r") for chunk in self.chunks]
        joined = np.empty((sum(len(part) for part in parts), *parts[0].shape[1:]), dtype=np.uint8)
        return np.concatenate(parts, out=joined)

    def _items(self) -> Iterator[dict[str, Any]]:
        for chunk in self.chunks:
            yield from json.loads((chunk.folder / "scenes.json").read_text(encoding="utf-8"))


def _words_of(chunk: Chunk) -> list[str]:
    words: list[str] = json.loads((chunk.folder / "words.json").read_text(encoding="utf-8"))
    return words


def _draw_chunk(image_size: int, grid: int, seed: int, chunk: Chunk) -> None:
    made = list(wide_scenes(seed, chunk.number, chunk.count))
    pixels = np.stack([_draw(each.scene, image_size) for each in made])
    labels = np.stack([patch_labels(each.scene, grid) for each in made])
    silhouettes = np.stack([patch_silhouettes(each.scene, image_size, grid) for each in made])
    surroundings = np.stack([patch_surroundings(each.scene, grid) for each in made])
    items = [{"captions": each.captions, "twin": each.twin} for each in made]
    said = WordNumbers.of([text for each in made for text in each.captions])

    def write(temporary: Path) -> None:
        np.save(temporary / "pixels.npy", pixels)
        np.save(temporary / "labels.npy", labels)
        np.save(temporary / "silhouettes.npy", silhouettes)
        np.save(temporary / "surroundings.npy", surroundings)
        np.save(temporary / "words.npy", said.numbers)
        write_text(temporary / "words.json", json.dumps(said.words))
        write_text(temporary / "scenes.json", json.dumps(items))

    write_folder(chunk.folder, write)


def _draw(scene: Scene, image_size: int) -> NDArray[np.uint8]:
    image = draw_scene(scene, DRAWN_AT)
    return np.asarray(image.resize((image_size, image_size), Image.Resampling.BICUBIC))
