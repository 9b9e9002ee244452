"""Pictures: any common picture file to RGB, upright, or a refusal that says why."""

from __future__ import annotations

import os
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from saysee.errors import MediaError
from saysee.media.source import Source, opened, printable, reason

MAX_PIXELS = 89_478_485
"""Default limit, checked before decoding: a quarter of a GiB as RGB, where Pillow too begins to warn of bombs.
Pillow itself refuses pictures of more than twice as many."""

MAX_ASPECT = 100
"""Largest ratio of the sides: encoders scale the short side to some 224 pixels, so a picture one pixel high would
grow into billions."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow reads thirty more, less proven ones
_READABLE = "PNG, JPEG, WebP, GIF, BMP, TIFF"


def load_image(
    source: Source | Image.Image, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None
) -> Image.Image:
    """Decode a picture.

    The orientation in EXIF is applied. What is transparent is laid on white. Grey of 16 bits is scaled, not clipped.
    Of an animation the first frame is taken. Colour profiles are not applied.

    Args:
        source: a path, the bytes of a file, a binary file object, or a Pillow image (which is not changed).
        max_pixels: limit of width times height.
        at_least: the shorter side need have no more pixels; what is larger is averaged over whole blocks of pixels,
            a JPEG's as it is decoded, which for a photo of 12 megapixels takes a tenth of the time.

    Returns:
        an RGB image, fully loaded.

    Raises:
        MediaError: missing, broken link, directory, unreadable, empty, undecodable, truncated, too large.
    """
    if isinstance(source, Image.Image):
        picture = _decode(source, printable(getattr(source, "filename", "") or "picture"), max_pixels)
        return picture if at_least is None else _reduced(picture, at_least)
    with opened(source, "picture") as (file, name):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of bombs, which the next check refuses, and of odd metadata
                image = Image.open(file, formats=_FORMATS)
        except Image.DecompressionBombError:
            raise _too_large(name, "over Pillow's own limit of a bomb", max_pixels) from None
        except UnidentifiedImageError:
            raise _unidentified(file.read(12) if file.seek(0) == 0 else b"", file.seek(0, os.SEEK_END), name) from None
        except Exception as error:
            raise _damaged(name, error) from None
        with image:
            if at_least is not None:
                _check_size(image, name, max_pixels)
                image.draft(None, (at_least, at_least))
            picture = _decode(image, name, max_pixels)
    return picture if at_least is None else _reduced(picture, at_least)


def picture_format(file: BinaryIO) -> str | None:
    """The format of a picture by its first bytes, as Pillow names it; None for what :func:`load_image` cannot read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(file, formats=_FORMATS).format
    except Exception:  # decoders raise what they like on damaged headers
        return None


def _decode(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    _check_size(image, name, max_pixels)
    if image.mode in ("I", "F"):
        raise MediaError("undecodable", f"{name}: pixels of 32 bits have no known white; save it with 8 or 16 bits")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            return _to_rgb(_upright(image))
    except Exception as error:
        raise _damaged(name, error) from None


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(name, f"{width:,} × {height:,}", max_pixels)
    if not width or not height:
        raise MediaError("empty", f"{name}: has no pixels ({width} × {height}); save it again")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise MediaError("too-large", f"{name}: its sides differ over {MAX_ASPECT}-fold ({width} × {height}); crop it")


def _reduced(picture: Image.Image, at_least: int) -> Image.Image:
    factor = min(picture.size) // at_least
    return picture.reduce(factor) if factor > 1 else picture


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF that cannot be parsed tells no orientation; every browser shows such a picture as it lies
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        clear = image.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        return Image.alpha_composite(white, clear).convert("RGB")
    # A copy also where the mode is RGB already: the caller's image, or one bound to a closing file, stays apart.
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _unidentified(head: bytes, size: int, name: str) -> MediaError:
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP" and int.from_bytes(head[4:8], "little") + 8 > size:
        return _damaged(name, "fewer bytes than its header tells")
    return MediaError("undecodable", f"{name}: is not a picture that can be read; convert it to one of {_READABLE}")


def _damaged(name: str, error: Exception | str) -> MediaError:
    why = error if isinstance(error, str) else reason(error)
    return MediaError("truncated", f"{name}: is cut short or damaged ({why}); copy it again")


def _too_large(name: str, size: str, max_pixels: int) -> MediaError:
    return MediaError(
        "too-large", f"{name}: {size}, over the limit of {max_pixels:,}; scale it down or raise max_pixels"
    )
