"""Plots for reports: curves and intervals as SVG or PNG, attention over an image."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

HEAT = np.array([255, 40, 0], dtype=np.float32)  # the color of full attention


def lines_svg(title: str, x_axis: str, y_axis: str, series: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Lines as an SVG element; ``series`` has (x, value), or points (x, value, half of its interval), by name."""
    axes = _axes(6.4, 4.0)
    for name, points in series.items():
        x, values, *halves = zip(*points, strict=True)
        style: dict[str, Any] = {"yerr": halves[0], "marker": "o", "capsize": 3} if halves else {}
        axes.errorbar(x, values, label=name, linewidth=1.4, **style)
    axes.axhline(0, color="grey", linewidth=0.8)
    return _svg(axes, title, x_axis, y_axis)


def intervals_svg(
    title: str, axis: str, rows: Sequence[str], series: Mapping[str, Sequence[tuple[float, float] | None]]
) -> str:
    """A point with its interval for each of ``rows``, from the top down, as an SVG element.

    ``series`` has (value, half of its interval) of each row by name; None skips the row.
    """
    axes = _axes(7.2, 1.3 + 0.5 * len(rows))
    for number, (name, points) in enumerate(series.items()):
        offset = 0.24 * (number - (len(series) - 1) / 2)
        found = [(place + offset, *point) for place, point in enumerate(points) if point is not None]
        places, values, halves = zip(*found, strict=True) if found else ((), (), ())
        axes.errorbar(values, places, xerr=halves, label=name, fmt="os^D"[number % 4], capsize=3, linewidth=1.4)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    return _svg(axes, title, axis, "")


class Panel(NamedTuple):
    """Lines on one pair of axes."""

    title: str
    axis: str  # what x is
    lines: Mapping[str, Sequence[tuple[float, float, float, float]]]  # by name: points (x, value, low, high)
    ticks: Sequence[str] = ()  # names of x = 0, 1, …; none where x is a number
    joined: bool = True  # a line through the points, else points beside each other


def panels_png(
    title: str, axis: str, panels: Sequence[Panel], *, columns: int = 3, marks: tuple[float, float] | None = None
) -> bytes:
    """Panels of lines with intervals, at most ``columns`` in a row, all on one scale from 0 on, as PNG.

    ``axis`` is what y is; ``marks`` are the heights of a dashed line, and the x of another.
    """
    from matplotlib.figure import Figure

    columns = min(len(panels), columns)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 0.7 + 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        for number, (label, points) in enumerate(panel.lines.items()):
            x, values, low, high = np.array(points).T
            style: dict[str, Any] = {"marker": "os^Dv"[number % 5], "markersize": 3.5, "label": label}
            if panel.joined:
                axes.plot(x, values, **style)
                axes.fill_between(x, low, high, alpha=0.15, linewidth=0)
            else:
                beside = 0.15 * (number - (len(panel.lines) - 1) / 2)
                axes.errorbar(x + beside, values, [values - low, high - values], linestyle="", **style)
        if panel.ticks:
            turned = {} if panel.joined else {"rotation": 45, "ha": "right"}
            axes.set_xticks(range(len(panel.ticks)), panel.ticks, **turned)
        if marks is not None:
            axes.axhline(marks[0], color="grey", linestyle="--", linewidth=0.8)
            axes.axvline(marks[1], color="grey", linestyle="--", linewidth=0.8)
        axes.set(title=panel.title, xlabel=panel.axis)
        axes.grid(alpha=0.25)
    for axes in grid[len(panels) :]:
        axes.remove()
    grid[0].set_ylim(bottom=0)  # after all panels are drawn: it ends the scaling to their data
    figure.suptitle(title, fontsize=11)
    figure.supylabel(axis, fontsize=10)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return _png(figure)


def bars_png(
    title: str,
    panels: Sequence[tuple[str, Sequence[str], Mapping[str, Sequence[tuple[float, float, float]]], bool]],
) -> bytes:
    """Bar charts side by side, as PNG.

    Each of ``panels`` is its title, the names of its places, the (value, low, high) at each place by name of a bar, and
    whether the bars of a place are stacked.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0 * len(panels), 4.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for axis, (heading, places, bars, stacked) in zip(
        figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True
    ):
        width, bottom = 0.8 / (1 if stacked else len(bars)), np.zeros(len(places))
        for number, (name, points) in enumerate(bars.items()):
            values, low, high = np.array(points).T
            at = np.arange(len(places)) + (0 if stacked else width * (number - (len(bars) - 1) / 2))
            reach = None if stacked else [values - low, high - values]
            axis.bar(at, values, width, bottom=bottom if stacked else None, yerr=reach, capsize=3, label=name)
            bottom = bottom + values
        size, turned = (7, 45) if len(places) > 4 else (9, 0)
        axis.set_xticks(range(len(places)), places, fontsize=size, rotation=turned)
        axis.set_title(heading, fontsize=10)
        axis.grid(axis="y", alpha=0.25)
        axis.set_ylim(top=1.3 * axis.get_ylim()[1])  # room for the legend
        axis.legend(frameon=False, fontsize=8, ncols=2)
    return _png(figure)


def attention_image(
    image: Image.Image, attention: NDArray[Any], boxes: Sequence[Sequence[float]] = (), highest: float = 0.0
) -> Image.Image:
    """A square image of 132 pixels a side, overlaid with attention and with outlined boxes.

    The image is RGB, square as the model sees it; ``attention`` [P] are weights over a square grid of patches, row by
    row from the top left; ``boxes`` are ``[left, top, right, bottom]`` as shares of the sides. ``highest`` is the
    weight of the full color, if higher than those of this map: the same for all images of a strip.
    """
    side, size = round(len(attention) ** 0.5), 132
    heat = attention.reshape(side, side).astype(np.float32)
    heat = (heat - heat.min()) / max(float(heat.max() - heat.min()), highest - float(heat.min()), 1e-12)
    smooth = Image.fromarray((heat * 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    alpha = np.asarray(smooth, dtype=np.float32)[..., None] / 255 * 0.75
    grey = np.asarray(image.convert("L").convert("RGB").resize((size, size)), dtype=np.float32)
    base = 0.35 * grey + 0.65 * np.asarray(image.resize((size, size)), dtype=np.float32)
    result = Image.fromarray((base * (1 - alpha) + HEAT * alpha).astype(np.uint8))
    draw = ImageDraw.Draw(result)
    for x0, y0, x1, y1 in boxes:
        draw.rectangle([x0 * size, y0 * size, x1 * size - 1, y1 * size - 1], outline="black", width=2)
    return result


def text_font(text: str, size: int) -> tuple[ImageFont.FreeTypeFont, list[str]]:
    """A font of ``size`` pixels with all characters of a text, or most that one here has; and a note of the others."""
    from matplotlib.font_manager import findfont, findSystemFonts
    from matplotlib.ft2font import FT2Font

    needed, best = {ord(character) for character in text if not character.isspace()}, (-1, "")
    for path in (findfont("DejaVu Sans"), *sorted(findSystemFonts())):  # the first comes with matplotlib
        try:
            found = len(needed & FT2Font(path).get_charmap().keys())
        except (OSError, RuntimeError):  # of a kind that FreeType cannot read
            continue
        best = max(best, (found, path), key=lambda each: each[0])
        if found == len(needed):
            return ImageFont.truetype(path, size), []
    lacking = needed - FT2Font(best[1]).get_charmap().keys()
    note = f"no font on this machine has all of the text; boxes stand for {''.join(sorted(map(chr, lacking)))}"
    return ImageFont.truetype(best[1], size), [note]


def _axes(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()


def _svg(axes: Any, title: str, x_axis: str, y_axis: str) -> str:
    """The figure as an SVG element; equal figures give equal text."""
    from matplotlib import rc_context

    axes.set_title(title, fontsize=11)
    axes.set(xlabel=x_axis, ylabel=y_axis)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "saysee"}):
        axes.figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
