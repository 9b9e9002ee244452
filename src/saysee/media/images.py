"""Image decoding: any common image file to an upright RGB image, or a :class:`MediaError` that says why not."""

from __future__ import annotations

import os
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from saysee.errors import MediaError
from saysee.media.formats import IMAGE_FORMATS, READABLE_IMAGES
from saysee.media.source import Source, opened, printable, reason

MAX_PIXELS = 89_478_485
"""Default limit, checked before decoding: 256 MiB as RGB, where Pillow begins to warn of decompression bombs. Pillow
itself rejects images with more than twice as many pixels."""

MAX_ASPECT = 100
"""Largest ratio of the sides: encoders scale the short side to about 224 pixels, and the long one grows with it."""


def load_image(
    source: Source | Image.Image, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None
) -> Image.Image:
    """Decode an image.

    The EXIF orientation is applied. Transparency is composited on white. 16-bit gray is scaled, not clipped. Of an
    animation, the first frame is used. Color profiles are not applied.

    Args:
        source: a path, the bytes of a file, a binary file object, or a Pillow image (which is not modified).
        max_pixels: limit of width times height.
        at_least: the shorter side needs no more pixels than this. Larger images are reduced by averaging whole blocks
            of pixels, a JPEG while it is decoded: a photo of 12 megapixels then takes a tenth of the time.

    Returns:
        an RGB image, fully loaded.

    Raises:
        MediaError: missing, broken-link, directory, unreadable, empty, undecodable, truncated, too-large.
    """
    if isinstance(source, Image.Image):
        image = _decode(source, printable(getattr(source, "filename", "") or "image"), max_pixels)
    else:
        image = _load(source, max_pixels, at_least)
    factor = 1 if at_least is None else min(image.size) // at_least
    return image.reduce(factor) if factor > 1 else image


def _load(source: Source, max_pixels: int, at_least: int | None) -> Image.Image:
    with opened(source, "image") as (file, name):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of bombs, which _check_size rejects, and of odd metadata
                encoded = Image.open(file, formats=IMAGE_FORMATS)
        except Image.DecompressionBombError:
            raise _too_large(name, "more pixels than Pillow's own limit", max_pixels) from None
        except UnidentifiedImageError:
            raise _unidentified(file.read(12) if file.seek(0) == 0 else b"", file.seek(0, os.SEEK_END), name) from None
        except Exception as error:
            raise _damaged(name, reason(error)) from None
        with encoded:
            if at_least is not None:
                _check_size(encoded, name, max_pixels)
                encoded.draft(None, (at_least, at_least))
            return _decode(encoded, name, max_pixels)


def load_thumbnail(source: Source, side: int) -> Image.Image:
    """:func:`load_image`, with no side longer than ``side`` pixels."""
    image = load_image(source, at_least=side)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def _decode(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    _check_size(image, name, max_pixels)
    if image.mode in ("I", "F"):
        raise MediaError(
            "undecodable", f"{name}: has 32-bit pixels, which have no defined white; save it with 8 or 16 bits"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
            return _to_rgb(_upright(image))
    except Exception as error:
        raise _damaged(name, reason(error)) from None


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(name, f"{width:,} × {height:,} pixels", max_pixels)
    if not width or not height:
        raise MediaError("empty", f"{name}: has no pixels ({width} × {height}); save it again")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise MediaError(
            "too-large",
            f"{name}: has one side over {MAX_ASPECT} times as long as the other ({width} × {height}); crop it",
        )


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF that cannot be parsed has no orientation; browsers show such an image as stored
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        gray = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((gray + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        transparent = image.convert("RGBA")
        white = Image.new("RGBA", transparent.size, "white")
        return Image.alpha_composite(white, transparent).convert("RGB")
    # Copied even if it is RGB already: it may be the caller's, or belong to a file that is about to be closed.
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _unidentified(head: bytes, size: int, name: str) -> MediaError:
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP" and int.from_bytes(head[4:8], "little") + 8 > size:
        return _damaged(name, "fewer bytes than its header announces")
    return MediaError("undecodable", f"{name}: is not an image; convert it to one of {READABLE_IMAGES}")


def _damaged(name: str, why: str) -> MediaError:
    return MediaError("truncated", f"{name}: is cut short or damaged ({why}); copy it again")


def _too_large(name: str, size: str, max_pixels: int) -> MediaError:
    return MediaError(
        "too-large", f"{name}: has {size}, over the limit of {max_pixels:,}; scale it down or raise max_pixels"
    )
