"""Geometry of the shapes: outlines as polygons around the origin, and the box around a placed shape.

Sines and cosines may differ in the last digit between machines, so corners are rounded to 1/10,000 of the shape's size
before they are used.
"""

import math
from collections.abc import Sequence
from functools import cache

Point = tuple[float, float]
Polygon = tuple[Point, ...]
Outline = tuple[Polygon, ...]  # the outer polygon, then the holes


def arc(radius: float, start: float, end: float, x: float = 0.0, y: float = 0.0, corners: int = 60) -> list[Point]:
    """Points of an arc from ``start`` to ``end`` degrees (0 is right, 90 is down), including both ends."""
    angles = [math.radians(start + (end - start) * i / corners) for i in range(corners + 1)]
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


def circle(radius: float) -> list[Point]:
    """Points of a circle around the origin."""
    return arc(radius, 0, 360)[:-1]


def _star() -> list[Point]:
    """Five points, one of them straight up; inner corners at half the radius."""
    turns = [(1.0 if i % 2 == 0 else 0.5, math.radians(-90 + 180 * i / 5)) for i in range(10)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in turns]


def _flower() -> list[Point]:
    """The outer arcs of five round petals."""
    corners: list[Point] = []
    for angle in range(-90, 270, 72):
        x, y = 0.58 * math.cos(math.radians(angle)), 0.58 * math.sin(math.radians(angle))
        corners += arc(0.42, angle - 90, angle + 90, x, y, corners=20)  # adjacent petals meet at 90.3
    return corners


def _heart() -> list[Point]:
    """The common parametric heart curve."""
    turns = [2 * math.pi * i / 72 for i in range(72)]
    ys = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return [(16 * math.sin(t) ** 3, -y) for t, y in zip(turns, ys, strict=True)]


def _moon() -> list[Point]:
    """A waxing crescent: a disc minus another disc to its right."""
    across, down = math.cos(math.radians(48)) - 0.62, math.sin(math.radians(48))  # from the other center to a tip
    half = math.degrees(math.atan2(down, across))
    return arc(1.0, 48, 312) + arc(math.hypot(down, across), 360 - half, half, x=0.62)


def fitted(*polygons: list[Point]) -> Outline:
    """The polygons, moved and scaled so that the box of the outer one is centered and its longer side is 1."""
    xs, ys = zip(*polygons[0], strict=True)
    return _centered(polygons, max(max(xs) - min(xs), max(ys) - min(ys)))


def _centered(polygons: Sequence[list[Point]], scale: float = 1.0) -> Outline:
    xs, ys = zip(*polygons[0], strict=True)
    cx, cy = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    return tuple(tuple((round((x - cx) / scale, 4), round((y - cy) / scale, 4)) for x, y in p) for p in polygons)


OUTLINES: dict[str, Outline] = {
    "circle": fitted(circle(1.0)),
    "square": fitted([(-1, -1), (1, -1), (1, 1), (-1, 1)]),
    "triangle": fitted([(0, -1.8), (1, 0), (-1, 0)]),
    "diamond": fitted([(0, -1), (0.72, 0), (0, 1), (-0.72, 0)]),
    "star": fitted(_star()),
    "heart": fitted(_heart()),
    "ring": fitted(circle(1.0), circle(0.5)),
    "cross": fitted([
        (-0.36, -1), (0.36, -1), (0.36, -0.36), (1, -0.36), (1, 0.36), (0.36, 0.36), (0.36, 1), (-0.36, 1),
        (-0.36, 0.36), (-1, 0.36), (-1, -0.36), (-0.36, -0.36),
    ]),
    "moon": fitted(_moon()),
    "arrow": fitted([(-1, -0.34), (0, -0.34), (0, -0.85), (1, 0), (0, 0.85), (0, 0.34), (-1, 0.34)]),
    "flower": fitted(_flower()),
    "house": fitted([(-0.8, 1), (-0.8, -0.1), (-1, -0.1), (0, -1), (1, -0.1), (0.8, -0.1), (0.8, 1)]),
}  # fmt: skip
"""The outline of each shape, in a box of side 1 around the origin. ``lab/nano`` adds shapes that no corpus has."""


def rotation(angle: float) -> tuple[float, float]:
    """Cosine and sine of an angle in degrees, rounded so that they are the same on any machine."""
    return round(math.cos(math.radians(angle)), 6), round(math.sin(math.radians(angle)), 6)


@cache
def rotated(shape: str, angle: int) -> Outline:
    """The outline of ``shape`` rotated clockwise by ``angle`` degrees, with the box of its outer polygon centered.

    It is not scaled again: the box of a rotated square is larger than 1.
    """
    c, s = rotation(angle)
    return _centered([[(x * c - y * s, x * s + y * c) for x, y in p] for p in OUTLINES[shape]])


def box_of(shape: str, x: float, y: float, diameter: float, angle: int) -> tuple[float, float, float, float]:
    """The box (left, top, right, bottom) around a shape placed at (``x``, ``y``), rounded to 1/10,000."""
    w, h = (half * diameter for half in _half_sides(shape, angle))
    return (round(x - w, 4), round(y - h, 4), round(x + w, 4), round(y + h, 4))


@cache
def _half_sides(shape: str, angle: int) -> tuple[float, float]:
    outer = rotated(shape, angle)[0]
    return max(abs(x) for x, _ in outer), max(abs(y) for _, y in outer)
