"""Pictures for reports: training curves as SVG, attention over a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

HEAT = np.array([255, 40, 0], dtype=np.float32)
"""Colour of full attention."""


def curves_svg(title: str, axis: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    """Line chart over training steps, as an SVG element.

    Args:
        title: what is shown.
        axis: name and unit of the vertical axis.
        series: name to (steps, values).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for name, (steps, values) in series.items():
        axes.plot(steps, values, label=name, linewidth=1.6)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("step")
    axes.set_ylabel(axis)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def attention_picture(
    picture: Image.Image, attention: NDArray[Any], boxes: Sequence[Sequence[float]] = (), size: int = 132
) -> Image.Image:
    """A picture with attention laid over it.

    Args:
        picture: RGB, square as the model sees it.
        attention: [P] weights over a square grid of patches, row by row from the top left.
        boxes: boxes to outline, ``[x0, y0, x1, y1]`` in 0..1.
        size: side of the result in pixels.
    """
    side = round(len(attention) ** 0.5)
    heat = attention.reshape(side, side).astype(np.float32)
    heat = (heat - heat.min()) / max(float(heat.max() - heat.min()), 1e-12)
    smooth = Image.fromarray((heat * 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    alpha = np.asarray(smooth, dtype=np.float32)[..., None] / 255 * 0.75
    grey = np.asarray(picture.convert("L").convert("RGB").resize((size, size)), dtype=np.float32)
    base = 0.35 * grey + 0.65 * np.asarray(picture.resize((size, size)), dtype=np.float32)
    result = Image.fromarray((base * (1 - alpha) + HEAT * alpha).astype(np.uint8))
    draw = ImageDraw.Draw(result)
    for x0, y0, x1, y1 in boxes:
        draw.rectangle([x0 * size, y0 * size, x1 * size - 1, y1 * size - 1], outline="black", width=2)
    return result
