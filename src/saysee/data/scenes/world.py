"""Scenes: their objects, where these are, and what is true of them.

Pure Python and exact arithmetic on rounded numbers, so a scene is the same on any machine. Positions and sizes are
fractions of the image side; x points right, y points down.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from saysee.data.scenes.outlines import OUTLINES, box_of

SHAPES = tuple(OUTLINES)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
SIZES = ("small", "large")
FILLS = ("plain", "striped", "dotted")

ATTRIBUTES: dict[str, tuple[str, ...]] = {"size": SIZES, "fill": FILLS, "color": COLORS, "shape": SHAPES}
"""The values of each attribute, in the order of English adjectives before a noun."""

# Chosen so that the largest small object and the smallest large one differ clearly at 64 pixels (15 and 21), and four
# large objects still fit.
DIAMETERS = {"small": (0.195, 0.23), "large": (0.335, 0.38)}
MARGIN = 0.025  # free space around each object and along the image edge; contains the pale rim

CLEARLY = 1.2  # an object is beside, not diagonal to, another if the distance along one axis is this times the other

RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PLACES = ("left", "right", "top", "bottom")

Box = tuple[float, float, float, float]  # left, top, right, bottom, as fractions of the image side


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene."""

    shape: str
    color: str
    size: str
    fill: str
    # x, y: the center of its box, as fractions of the image side
    x: float
    y: float
    diameter: float  # the longer side of its box before rotation, as a fraction of the image side
    angle: int  # rotation in degrees, clockwise
    texture_angle: int  # rotation of the stripes or dots in degrees; never described

    @property
    def attributes(self) -> tuple[str, str, str, str]:
        """Size, fill, color and shape: everything that a caption can say about the object alone."""
        return (self.size, self.fill, self.color, self.shape)

    @property
    def box(self) -> Box:
        """The tight box around the drawn shape, without its pale rim."""
        return box_of(self.shape, self.x, self.y, self.diameter, self.angle)

    def matches(self, description: Mapping[str, str]) -> bool:
        """Whether the object has each attribute of ``description``, such as ``{"color": "red"}``."""
        return all(getattr(self, name) == value for name, value in description.items())


@dataclass(frozen=True)
class Background:
    """A background: a kind of ``drawing.BACKGROUNDS``, the index of a tint, and a seed for its noise."""

    kind: str
    tint: int
    seed: int


@dataclass(frozen=True)
class Scene:
    """The content of an image."""

    objects: tuple[SceneObject, ...]
    background: Background

    def matching(self, description: Mapping[str, str]) -> tuple[int, ...]:
        """The indices of the objects that have each attribute of ``description``."""
        return tuple(i for i, item in enumerate(self.objects) if item.matches(description))

    @property
    def key(self) -> tuple[object, ...]:
        """Everything that captions can say: the attributes of the objects, their relations and places.

        Two scenes with the same key could have the same captions, so a corpus contains each key once.
        """
        order = sorted(self.objects, key=lambda item: (item.attributes, item.x, item.y))
        between = tuple(relation(a, b) for a, b in combinations(order, 2))
        return (tuple(item.attributes for item in order), between, tuple(places(item) for item in order))


def relation(first: SceneObject, second: SceneObject) -> str | None:
    """Where ``first`` is relative to ``second``: one of ``RELATIONS``, or None where a person might hesitate.

    The boxes must not overlap along that axis, and the centers must be clearly further apart along it than along the
    other.
    """
    a, b = first.box, second.box
    across, down = abs(first.x - second.x), abs(first.y - second.y)
    if across > CLEARLY * down:
        return "left of" if a[2] <= b[0] else "right of" if b[2] <= a[0] else None
    if down > CLEARLY * across:
        return "above" if a[3] <= b[1] else "below" if b[3] <= a[1] else None
    return None


def might_lie(first: SceneObject, where: str, second: SceneObject) -> bool:
    """Whether a person might accept ``where``: if :func:`relation` gives it, and in doubtful cases."""
    across, down = first.x - second.x, first.y - second.y
    along, other = (across, down) if where in ("left of", "right of") else (down, across)
    return (along < 0 if where in ("left of", "above") else along > 0) and CLEARLY * abs(along) >= abs(other)


def places(item: SceneObject) -> tuple[str, ...]:
    """The halves of the image (of ``PLACES``) that contain the whole object."""
    x0, y0, x1, y1 = item.box
    holds = {"left": x1 <= 0.5, "right": x0 >= 0.5, "top": y1 <= 0.5, "bottom": y0 >= 0.5}
    return tuple(place for place in PLACES if holds[place])


def might_be_at(item: SceneObject, place: str) -> bool:
    """Whether a person might accept that the object is in that half: its center is."""
    return {"left": item.x <= 0.5, "right": item.x >= 0.5, "top": item.y <= 0.5, "bottom": item.y >= 0.5}[place]


def apart(first: SceneObject, second: SceneObject) -> bool:
    """Whether the boxes are at least ``MARGIN`` apart, so that neither object can hide the other."""
    a, b = first.box, second.box
    return a[2] + MARGIN <= b[0] or b[2] + MARGIN <= a[0] or a[3] + MARGIN <= b[1] or b[3] + MARGIN <= a[1]


def inside(item: SceneObject) -> bool:
    """Whether the object is at least ``MARGIN`` away from the image edge."""
    x0, y0, x1, y1 = item.box
    return x0 >= MARGIN and y0 >= MARGIN and x1 <= 1 - MARGIN and y1 <= 1 - MARGIN
