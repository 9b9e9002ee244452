"""Which region of an image belongs to which moment of a clip, as a file to look at, to play or to compute with."""

import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import saysee.search
from saysee.encoding.attention import Regions
from saysee.errors import SaySeeError
from saysee.files import atomic_write
from saysee.search.terminal.sheet import audio_url, data_url, image_url
from saysee.studies.plots import attention_image

_SIDE, _CAPTION, _COLUMNS = 132, 18, 8  # of a strip: pixels of an image and of the line below it; images in a row
_LARGEST = 1280  # pixels of the image in HTML


def write_explanation(path: Path, regions: Regions, image: Image.Image, clip: NDArray[np.float32]) -> None:
    """Writes a file atomically; its suffix says what.

    Args:
        path: .html: the image and the clip, whose regions light up while it plays; .png: a strip of images, one a
            frame; .npz: the fields of ``regions`` as arrays.
        regions: of this image and clip.
        image: RGB.
        clip: [S] samples at 16 kHz.

    Raises:
        SaySeeError: it cannot be written there.
    """
    buffer = io.BytesIO()
    if path.suffix.lower() == ".html":
        buffer.write(_html(path.stem, regions, image, clip).encode())
    elif path.suffix.lower() == ".png":
        _strip(regions, image).save(buffer, "PNG")
    else:
        arrays: dict[str, Any] = asdict(regions)
        np.savez_compressed(buffer, **arrays)
    try:
        with atomic_write(path) as file:
            file.write(buffer.getvalue())
    except OSError as error:
        raise SaySeeError(f"{path}: it cannot be written ({error.strerror}); name another file with --to") from None


def _html(title: str, regions: Regions, image: Image.Image, clip: NDArray[np.float32]) -> str:
    environment = Environment(loader=PackageLoader("saysee", "studies"), autoescape=select_autoescape())
    drawing = Path(saysee.search.__path__[0], "page", "attention.js").read_bytes()
    values = asdict(regions) | {"frames": regions.frames.astype(np.float64).round(4).tolist()}
    shown = image.copy()
    shown.thumbnail((_LARGEST, _LARGEST))
    return environment.get_template("explain.html").render(
        title=title,
        image=image_url(shown),
        audio=audio_url(clip),
        script=data_url(drawing, "text/javascript"),
        regions=Markup(json.dumps(values)),  # numbers and names of ours
    )


def _strip(regions: Regions, image: Image.Image) -> Image.Image:
    """The part of the image that the model sees, once a frame, all on one scale."""
    left, top, right, bottom = regions.box
    seen = image.crop((
        round(left * image.width), round(top * image.height), round(right * image.width), round(bottom * image.height)
    ))  # fmt: skip
    columns = min(len(regions.frames), _COLUMNS)
    rows = math.ceil(len(regions.frames) / columns)
    strip = Image.new("RGB", (columns * _SIDE, rows * (_SIDE + _CAPTION)), "white")
    for number, weights in enumerate(regions.frames):
        place = (number % columns * _SIDE, number // columns * (_SIDE + _CAPTION))
        strip.paste(attention_image(seen, weights, highest=float(regions.frames.max())), place)
        start = number * regions.frame_seconds
        caption = f"{start:.2f} to {min(start + regions.frame_seconds, regions.seconds):.2f} s"
        ImageDraw.Draw(strip).text((place[0] + 4, place[1] + _SIDE + 3), caption, fill="black")
    return strip
