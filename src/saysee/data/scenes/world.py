"""What a scene is: its objects, where they lie, and what is true of them.

Pure Python and exact arithmetic on rounded numbers, so that a scene is the same on any machine. Places and sizes are
shares of the picture's side: x grows to the right, y grows downwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from saysee.data.scenes.outlines import MORE_OUTLINES, OUTLINES, box_of

SHAPES = tuple(OUTLINES)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
SIZES = ("small", "large")
FILLS = ("plain", "striped", "dotted")

# What the corpus never shows, for encoders that are to know more than the corpus.
MORE_SHAPES = tuple(MORE_OUTLINES)
MORE_COLORS = ("black", "gray", "turquoise", "olive")
MORE_FILLS = ("checked", "halved")

ATTRIBUTES: dict[str, tuple[str, ...]] = {"size": SIZES, "fill": FILLS, "color": COLORS, "shape": SHAPES}
"""Each attribute with its values, in the order in which English puts the words before a noun."""

# Chosen so that the largest small object and the smallest large one cannot be taken for each other at 64 pixels (15 and
# 21), and four large objects still find room.
DIAMETERS = {"small": (0.195, 0.23), "large": (0.335, 0.38)}
MARGIN = 0.025  # kept free around each object and along the picture's edge, as a share of its side; holds the pale rim

CLEARLY = 1.2  # times further apart along one axis than along the other, to lie beside rather than aslant

RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PLACES = ("left", "right", "top", "bottom")

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as shares of the picture's side."""


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        x, y: the centre of its box, as shares of the picture's side.
        diameter: the longer side of its box before it is turned, as a share of the picture's side.
        angle: how far it is turned, in degrees clockwise.
        texture_angle: how far the stripes or the grid of dots are turned, in degrees; never spoken of.
    """

    shape: str
    color: str
    size: str
    fill: str
    x: float
    y: float
    diameter: float
    angle: int
    texture_angle: int

    @property
    def attributes(self) -> tuple[str, str, str, str]:
        """Size, fill, color and shape: what can be said of the object alone."""
        return (self.size, self.fill, self.color, self.shape)

    @property
    def box(self) -> Box:
        """The tight box around the drawn shape (without its pale rim)."""
        return box_of(self.shape, self.x, self.y, self.diameter, self.angle)

    def matches(self, description: Mapping[str, str]) -> bool:
        """Whether the object has each attribute of ``description``, such as ``{"color": "red"}``."""
        return all(getattr(self, name) == value for name, value in description.items())


@dataclass(frozen=True)
class Background:
    """What lies behind the objects: a kind of ``drawing.BACKGROUNDS``, a number of a tint, and a seed for its grain."""

    kind: str
    tint: int
    seed: int


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn."""

    objects: tuple[SceneObject, ...]
    background: Background

    def matching(self, description: Mapping[str, str]) -> tuple[int, ...]:
        """The numbers of the objects that have each attribute of ``description``."""
        return tuple(i for i, item in enumerate(self.objects) if item.matches(description))

    @property
    def key(self) -> tuple[object, ...]:
        """What can be said of the scene at all: the attributes of its objects and how they lie to each other.

        Two scenes of the same key would have the same captions, so a corpus holds each key once.
        """
        order = sorted(self.objects, key=lambda item: (item.attributes, item.x, item.y))
        between = tuple(relation(a, b) for i, a in enumerate(order) for b in order[i + 1 :])
        return (tuple(item.attributes for item in order), between, tuple(places(item) for item in order))


def relation(first: SceneObject, second: SceneObject) -> str | None:
    """Where ``first`` lies as seen from ``second``: one of ``RELATIONS``, or None where a person might hesitate.

    It holds only where the boxes do not overlap along that axis, and the centres are clearly further apart along it
    than along the other.
    """
    a, b = first.box, second.box
    across, down = abs(first.x - second.x), abs(first.y - second.y)
    if across > CLEARLY * down:
        return "left of" if a[2] <= b[0] else "right of" if b[2] <= a[0] else None
    if down > CLEARLY * across:
        return "above" if a[3] <= b[1] else "below" if b[3] <= a[1] else None
    return None


def might_lie(first: SceneObject, where: str, second: SceneObject) -> bool:
    """Whether anybody might say that ``first`` lies so to ``second``: wherever ``relation`` says it, and beyond."""
    across, down = first.x - second.x, first.y - second.y
    along, other = (across, down) if where in ("left of", "right of") else (down, across)
    return (along < 0 if where in ("left of", "above") else along > 0) and CLEARLY * abs(along) >= abs(other)


def places(item: SceneObject) -> tuple[str, ...]:
    """The halves of the picture (of ``PLACES``) in which the whole object lies."""
    x0, y0, x1, y1 = item.box
    holds = {"left": x1 <= 0.5, "right": x0 >= 0.5, "top": y1 <= 0.5, "bottom": y0 >= 0.5}
    return tuple(place for place in PLACES if holds[place])


def might_be_at(item: SceneObject, place: str) -> bool:
    """Whether anybody might say that the object is in that half: its centre is."""
    return {"left": item.x <= 0.5, "right": item.x >= 0.5, "top": item.y <= 0.5, "bottom": item.y >= 0.5}[place]


def apart(first: SceneObject, second: SceneObject) -> bool:
    """Whether the boxes keep ``MARGIN`` between them, so that neither object can hide the other."""
    a, b = first.box, second.box
    return a[2] + MARGIN <= b[0] or b[2] + MARGIN <= a[0] or a[3] + MARGIN <= b[1] or b[3] + MARGIN <= a[1]


def inside(item: SceneObject) -> bool:
    """Whether the object keeps ``MARGIN`` to the picture's edge."""
    x0, y0, x1, y1 = item.box
    return x0 >= MARGIN and y0 >= MARGIN and x1 <= 1 - MARGIN and y1 <= 1 - MARGIN
