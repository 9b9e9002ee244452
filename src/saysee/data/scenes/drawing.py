"""From a scene to its image.

Objects look like stickers: a flat color in a pale rim, so that each color is visible on any background. Stripes and
dots are wide enough to be distinguished when the image is scaled down to 64 pixels. Noise comes from
``random.Random``, and everything else is Pillow's integer arithmetic, so a scene gives the same pixels on any machine.
"""

import math
from collections.abc import Callable
from itertools import product
from random import Random

from PIL import Image, ImageChops, ImageDraw

from saysee.data.scenes.outlines import rotated, rotation
from saysee.data.scenes.world import Scene, SceneObject

IMAGE_SIZE = 224  # input size of CLIP's vision transformers
OVERSAMPLING = 4  # objects are drawn this much larger and scaled down, for smooth edges

Rgb = tuple[int, int, int]
PIXELS: dict[str, Rgb] = {
    "red": (212, 33, 45),
    "orange": (247, 138, 22),
    "yellow": (250, 217, 40),
    "green": (46, 152, 66),
    "blue": (37, 90, 206),
    "purple": (126, 50, 168),
    "pink": (247, 146, 190),
    "brown": (122, 74, 38),
}
PALE: Rgb = (252, 250, 244)
# Stripes and dots are pale on most colors; on light ones, pale would be invisible.
PATTERN_INKS: dict[str, Rgb] = {"yellow": (128, 96, 0), "pink": (150, 30, 96), "orange": (128, 52, 0)}

# Fractions of the image side. A period of 0.065 is four pixels at 64, the least that is visible as a pattern.
PERIODS = {"small": 0.065, "large": 0.085}
STRIPE_SHARE = 0.46  # of a period
DOT_SHARE = 0.66  # diameter, of a period
RIM = 0.011
EDGE = 0.008  # without pattern along the inside of the outline; otherwise a small striped star breaks into bars

# Nearly gray, so that a background is never mistaken for the color of an object: light tints, then a few dark ones.
TINTS: list[Rgb] = [
    (240, 238, 230), (226, 234, 240), (234, 228, 240), (228, 240, 230), (246, 232, 224), (222, 222, 222),
    (204, 214, 220), (216, 208, 196), (188, 200, 190), (150, 160, 172), (92, 98, 110), (64, 70, 76),
]  # fmt: skip


def draw_scene(scene: Scene, image_size: int = IMAGE_SIZE) -> Image.Image:
    """Draws a scene as an RGB image of ``image_size`` × ``image_size`` pixels."""
    kind, tint, seed = scene.background.kind, scene.background.tint, scene.background.seed
    image = BACKGROUNDS[kind](TINTS[tint], Random(f"saysee background {seed}"), image_size)
    for item in scene.objects:
        _paste(image, item)
    return image


def _paste(image: Image.Image, item: SceneObject) -> None:
    """Draws one object onto the image, by a tile that is drawn large and scaled down."""
    side, rim = image.width, math.ceil(RIM * image.width)
    x0, y0, x1, y1 = (edge * side for edge in item.box)
    left, top, right, bottom = math.floor(x0) - rim, math.floor(y0) - rim, math.ceil(x1) + rim, math.ceil(y1) + rim
    size, scale = ((right - left) * OVERSAMPLING, (bottom - top) * OVERSAMPLING), side * OVERSAMPLING
    center = (item.x * scale - left * OVERSAMPLING, item.y * scale - top * OVERSAMPLING)
    polygons = placed_polygons(item, center, scale)
    shape, rimmed = Image.new("L", size), Image.new("L", size)
    for mask in (shape, rimmed):
        fill_polygons(mask, polygons)
    _trace(rimmed, polygons, RIM * scale, 255)
    image.paste(PALE, (left, top), rimmed.reduce(OVERSAMPLING))
    image.paste(PIXELS[item.color], (left, top), shape.reduce(OVERSAMPLING))
    if item.fill != "plain":
        pattern = Image.new("L", size)
        PATTERNS[item.fill](pattern, center, PERIODS[item.size] * scale, item.texture_angle)
        pattern.paste(0, (0, 0), ImageChops.invert(shape))
        _trace(pattern, polygons, EDGE * scale, 0)
        image.paste(PATTERN_INKS.get(item.color, PALE), (left, top), pattern.reduce(OVERSAMPLING))


def placed_polygons(item: SceneObject, center: tuple[float, float], scale: int) -> list[list[tuple[int, int]]]:
    """The object's outer polygon and its holes around ``center``, in pixels of an image of side ``scale``."""
    return [
        [turned(center, x * item.diameter * scale, y * item.diameter * scale, 1, 0) for x, y in polygon]
        for polygon in rotated(item.shape, item.angle)
    ]


def fill_polygons(mask: Image.Image, polygons: list[list[tuple[int, int]]]) -> None:
    """Sets the pixels inside the outer polygon, and not in its holes, to 255."""
    draw = ImageDraw.Draw(mask)
    draw.polygon(polygons[0], fill=255)
    for hole in polygons[1:]:
        draw.polygon(hole, fill=0)


def _trace(mask: Image.Image, polygons: list[list[tuple[int, int]]], reach: float, value: int) -> None:
    """Draws a line along the polygons that extends ``reach`` pixels to either side."""
    draw = ImageDraw.Draw(mask)
    for polygon in polygons:
        draw.line([*polygon, *polygon[:2]], fill=value, width=2 * round(reach), joint="curve")


def _stripes(pattern: Image.Image, center: tuple[float, float], period: float, angle: int) -> None:
    """Parallel bars; the center of the shape is between two of them, so that a small shape still shows two."""
    draw = ImageDraw.Draw(pattern)
    reach = 1.5 * max(pattern.size)
    c, s = rotation(angle)
    half = period * STRIPE_SHARE / 2
    for i in range(-math.ceil(reach / period), math.ceil(reach / period)):
        middle = (i + 0.5) * period
        corners = [(-reach, middle - half), (reach, middle - half), (reach, middle + half), (-reach, middle + half)]
        draw.polygon([turned(center, x, y, c, s) for x, y in corners], fill=255)


def _dots(pattern: Image.Image, center: tuple[float, float], period: float, angle: int) -> None:
    """Discs in staggered rows, one of them at the center of the shape."""
    draw = ImageDraw.Draw(pattern)
    reach, radius = math.ceil(max(pattern.size) / period), period * DOT_SHARE / 2
    c, s = rotation(angle)
    for row, column in product(range(-reach, reach + 1), repeat=2):
        # Rows are 0.87 of the period apart, so adjacent discs form equilateral triangles.
        x, y = turned(center, (column + (row % 2) / 2) * period, row * 0.87 * period, c, s)
        if -radius < x < pattern.width + radius and -radius < y < pattern.height + radius:
            draw.ellipse((round(x - radius), round(y - radius), round(x + radius), round(y + radius)), fill=255)


PATTERNS = {"striped": _stripes, "dotted": _dots}


def turned(center: tuple[float, float], x: float, y: float, c: float, s: float) -> tuple[int, int]:
    """The pixel at (x, y) from ``center``, rotated by the angle of cosine ``c`` and sine ``s``."""
    return round(center[0] + x * c - y * s), round(center[1] + x * s + y * c)


def _plain(tint: Rgb, _: Random, side: int) -> Image.Image:
    return Image.new("RGB", (side, side), tint)


def _gradient(tint: Rgb, rng: Random, side: int) -> Image.Image:
    """From one shade of the tint to another, horizontally or vertically."""
    ramp = Image.linear_gradient("L").rotate(90 * rng.randrange(4)).resize((side, side), Image.Resampling.BILINEAR)
    return blended(tint, 22, ramp)


def _paper(tint: Rgb, rng: Random, side: int) -> Image.Image:
    """Fine noise in cells of 1/112 of the side."""
    cells = 112
    noise = Image.frombytes("L", (cells, cells), rng.randbytes(cells * cells))
    coarse = noise.point([value // 64 * 85 for value in range(256)])  # four levels: the file is half as large
    return blended(tint, 9, coarse.resize((side, side), Image.Resampling.NEAREST))


def _checker(tint: Rgb, rng: Random, side: int) -> Image.Image:
    cells = rng.randint(5, 9)
    board = Image.frombytes("L", (cells, cells), bytes(255 * ((i + j) % 2) for i in range(cells) for j in range(cells)))
    return blended(tint, 10, board.resize((side, side), Image.Resampling.NEAREST))


def _clouds(tint: Rgb, rng: Random, side: int) -> Image.Image:
    """Soft light and dark patches."""
    noise = Image.frombytes("L", (6, 6), rng.randbytes(36))
    return blended(tint, 20, noise.resize((side, side), Image.Resampling.BICUBIC))


def _squared(tint: Rgb, rng: Random, side: int) -> Image.Image:
    """A grid of thin lines."""
    lines = Image.new("L", (side, side))
    draw = ImageDraw.Draw(lines)
    step = side / rng.randint(9, 14)
    for i in range(1, math.ceil(side / step)):
        at = round(i * step)
        draw.line((at, 0, at, side), fill=255)
        draw.line((0, at, side, at), fill=255)
    return blended(tint, 16, lines)


def blended(tint: Rgb, depth: int, mask: Image.Image) -> Image.Image:
    """The tint, darker by up to ``depth`` where the mask is bright."""
    return Image.merge("RGB", [mask.point([max(0, v - i * depth // 255) for i in range(256)]) for v in tint])


BACKGROUNDS: dict[str, Callable[[Rgb, Random, int], Image.Image]] = {
    draw.__name__[1:]: draw for draw in (_plain, _gradient, _paper, _checker, _clouds, _squared)
}
"""The function that draws each kind of background, from a tint, a random generator, and the image side in pixels."""
