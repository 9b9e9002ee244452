"""What the wide scenes of clip-nano show in addition to the corpus: shapes, colors, fills, backgrounds and tints.

Importing this module adds them to the tables from which scenes are drawn. No corpus has any of them.
"""

from __future__ import annotations

import math
from random import Random

from PIL import Image, ImageDraw

from saysee.data.scenes.drawing import (
    BACKGROUNDS,
    OVERSAMPLING,
    PATTERNS,
    PIXELS,
    TINTS,
    Rgb,
    blended,
    fill_polygons,
    placed_polygons,
    turned,
)
from saysee.data.scenes.outlines import OUTLINES, Outline, arc, circle, fitted, rotation
from saysee.data.scenes.planning import Look
from saysee.data.scenes.world import FILLS, Scene

_MORE_OUTLINES: dict[str, Outline] = {
    "oval": fitted([(x, 0.58 * y) for x, y in circle(1.0)]),
    "rectangle": fitted([(-1, -0.5), (1, -0.5), (1, 0.5), (-1, 0.5)]),
    "drop": fitted([*arc(0.62, -30, 210), (0, -1.25)]),
    "bolt": fitted([(0.25, -1), (-0.65, 0.15), (-0.1, 0.15), (-0.3, 1), (0.65, -0.3), (0.1, -0.3), (0.55, -1)]),
    "tree": fitted([
        (0, -1), (0.5, -0.35), (0.25, -0.35), (0.75, 0.5), (0.18, 0.5), (0.18, 1), (-0.18, 1), (-0.18, 0.5),
        (-0.75, 0.5), (-0.25, -0.35), (-0.5, -0.35),
    ]),
    "crown": fitted([(-1, -0.7), (-0.5, 0), (0, -0.9), (0.5, 0), (1, -0.7), (0.8, 0.8), (-0.8, 0.8)]),
    "bowl": fitted([*arc(1.0, 0, 180), (-1.0, -0.15), (1.0, -0.15)]),
    "hourglass": fitted([(-0.8, -1), (0.8, -1), (0.15, 0), (0.8, 1), (-0.8, 1), (-0.15, 0)]),
}  # fmt: skip
_MORE_PIXELS: dict[str, Rgb] = {
    "black": (26, 26, 30),
    "gray": (124, 128, 134),
    "turquoise": (60, 190, 190),
    "olive": (122, 134, 30),
}
_MORE_TINTS: tuple[Rgb, ...] = (
    (250, 246, 214), (210, 226, 216), (236, 214, 220), (198, 196, 214), (172, 184, 178), (126, 118, 124), (50, 56, 70),
)  # fmt: skip


def _checks(pattern: Image.Image, center: tuple[float, float], period: float, angle: int) -> None:
    """Squares, alternating as on a chessboard."""
    draw = ImageDraw.Draw(pattern)
    c, s = rotation(angle)
    side = period * 0.8
    reach = math.ceil(max(pattern.size) / side)
    for row in range(-reach, reach + 1):
        for column in range(-reach + (row + reach) % 2, reach + 1, 2):
            x, y = column * side, row * side
            corners = [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]
            draw.polygon([turned(center, x, y, c, s) for x, y in corners], fill=255)


def _half(pattern: Image.Image, center: tuple[float, float], period: float, angle: int) -> None:  # noqa: ARG001
    """One side of a line through the center."""
    c, s = rotation(angle)
    far = 2.0 * max(pattern.size)
    corners = [(-far, 0.0), (far, 0.0), (far, far), (-far, far)]
    ImageDraw.Draw(pattern).polygon([turned(center, x, y, c, s) for x, y in corners], fill=255)


def _hatched(tint: Rgb, rng: Random, side: int) -> Image.Image:
    """Thin diagonal lines."""
    lines = Image.new("L", (side, side))
    draw = ImageDraw.Draw(lines)
    step, lean = side / rng.randint(8, 13), rng.choice((-1, 1))
    for i in range(-math.ceil(side / step), 2 * math.ceil(side / step)):
        at = round(i * step)
        draw.line((at, 0, at + lean * side, side), fill=255)
    return blended(tint, 16, lines)


def _bricks(tint: Rgb, rng: Random, side: int) -> Image.Image:
    """Rows of bricks, every other row shifted by half a brick."""
    wall = Image.new("L", (side, side))
    draw = ImageDraw.Draw(wall)
    height = side / rng.randint(8, 12)
    for row in range(math.ceil(side / height)):
        top = round(row * height)
        draw.line((0, top, side, top), fill=255)
        for column in range(-1, math.ceil(side / height)):
            left = round((2 * column + row % 2) * height)
            draw.line((left, top, left, round(top + height)), fill=255)
    return blended(tint, 16, wall)


def _spots(tint: Rgb, rng: Random, side: int) -> Image.Image:
    """Large faint discs at random places."""
    discs = Image.new("L", (side, side))
    draw = ImageDraw.Draw(discs)
    for _ in range(rng.randint(6, 12)):
        x, y, radius = (round(rng.random() * side), round(rng.random() * side), round((0.05 + rng.random() / 8) * side))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return blended(tint, 12, discs)


OUTLINES |= _MORE_OUTLINES
PIXELS |= _MORE_PIXELS
PATTERNS |= {"checked": _checks, "halved": _half}
BACKGROUNDS |= {"hatched": _hatched, "bricks": _bricks, "spots": _spots}
TINTS += _MORE_TINTS

MORE_SHAPES = tuple(_MORE_OUTLINES)
MORE_COLORS = tuple(_MORE_PIXELS)
MORE_FILLS = ("checked", "halved")
WIDE_LOOK = Look(objects=(1, 4), fills=FILLS + MORE_FILLS, backgrounds=tuple(BACKGROUNDS), tints=len(TINTS))


def draw_silhouettes(scene: Scene, image_size: int) -> Image.Image:
    """Draws only where the objects are.

    Returns:
        A gray image of ``image_size`` × ``image_size`` pixels: 255 where an object (without its pale rim) covers a
        pixel, otherwise 0.
    """
    scale = image_size * OVERSAMPLING
    silhouettes = Image.new("L", (scale, scale))
    for item in scene.objects:
        mask = Image.new("L", (scale, scale))
        fill_polygons(mask, placed_polygons(item, (item.x * scale, item.y * scale), scale))
        silhouettes.paste(255, (0, 0), mask)
    return silhouettes.reduce(OVERSAMPLING)
