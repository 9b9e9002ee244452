"""Small pictures of what was found, for people to see."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from saysee.errors import MediaError
from saysee.media.images import load_image


def thumbnail(path: str | Path, side: int) -> Image.Image | None:
    """A picture file, no side longer than ``side`` pixels; None where it is gone or can no longer be read."""
    try:
        picture = load_image(path)
    except MediaError:
        return None
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture
