"""Image decoding: any common image file to an upright RGB image, or a :class:`MediaError` that says why not."""

import io
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, features

from saysee.errors import MediaError
from saysee.media.containers import how_cut
from saysee.media.formats import READABLE_IMAGES, image_format
from saysee.media.source import Source, opened, printable, reason

MAX_PIXELS = 89_478_485  # default limit of what is decoded: 256 MiB as RGB, where Pillow warns of decompression bombs
MAX_REDUCTION = 16  # a JPEG may have this many times ``max_pixels``: it is decoded down to an eighth of its size
MAX_ASPECT = 100  # ratio of the sides: encoders scale the short side to some 224 pixels, and the long one with it

# Called directly, they neither stop at Pillow's own limit of pixels nor hide why a file cannot be opened. A JPEG that
# holds more images after the first (MPO) is read as a JPEG.
_PLUGINS: dict[str, Callable[..., Any]] = {
    name.upper(): getattr(import_module(f"PIL.{name}ImagePlugin"), f"{name}ImageFile")
    for name in ("Bmp", "Gif", "Jpeg", "Png", "Tiff", "WebP")
}
_TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
_TRANSPOSED = {number: Image.Transpose[name] for number, name in enumerate(_TURNS.split(), 2)}  # by EXIF's orientation

_DAMAGE = ("truncated", "broken", "unrecognized data stream", "unexpected end", "insufficient")  # in errors of decoders
_SUBFILE, _DNG = 254, 50706  # TIFF tags


def load_image(
    source: Source | Image.Image, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None
) -> Image.Image:
    """Decode an image.

    The EXIF orientation is applied. Transparency is composited on white. 16-bit gray is scaled, not clipped. Of an
    animation, the first frame is used. Color profiles are not applied. HEIC requires the extra ``heif``.

    Args:
        source: a path, the bytes of a file, a binary file object, or a Pillow image (which is not modified).
        max_pixels: limit of width times height of what is decoded. A JPEG of up to ``MAX_REDUCTION`` times as many,
            such as a panorama, is decoded at a half, a quarter or an eighth of its size, unless it is progressive.
        at_least: the shorter side needs no more pixels than this. Larger images are reduced by averaging whole blocks
            of pixels, a JPEG while it is decoded: a photo of 12 megapixels then takes a tenth of the time.

    Returns:
        an RGB image, fully loaded.

    Raises MediaError: missing, broken-link, directory, unreadable, empty, undecodable, truncated (as the decoder or the
    sizes in the file say), too-large.
    """
    if isinstance(source, Image.Image):
        name = printable(getattr(source, "filename", "") or "image")
        _check_size(source, name, max_pixels)
        image = _guarded(lambda: _decode(source, name), name)
    else:
        with opened(source, "image") as (file, name):
            form = image_format(file)
            if form is None:
                raise MediaError("undecodable", f"{name}: is not an image; convert it to one of {READABLE_IMAGES}")
            image = _load(file, form, name, max_pixels, at_least)
    factor = 1 if at_least is None else min(image.size) // at_least
    return image.reduce(factor) if factor > 1 else image


def load_thumbnail(source: Source, side: int) -> Image.Image:
    """:func:`load_image`, with no side longer than ``side`` pixels."""
    image = load_image(source, at_least=side)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def _load(file: BinaryIO, form: str, name: str, max_pixels: int, at_least: int | None) -> Image.Image:
    try:
        return _guarded(lambda: _open_and_decode(file, form, name, max_pixels, at_least), name)
    except MediaError as error:
        if error.code == "undecodable" and (how := how_cut(file, form)) is not None:
            raise _damaged(name, how) from None
        if form != "PNG" or error.code not in ("undecodable", "truncated"):
            raise
        first = error
    # Pillow limits the size of texts and color profiles, and stops at damaged ones; the pixels do not depend on them.
    bare = _without_metadata(file)
    try:
        return _guarded(lambda: _open_and_decode(bare, form, name, max_pixels, at_least), name)
    except MediaError as error:
        raise (error if error.code == "truncated" else first) from None


def _guarded(decode: Callable[[], Image.Image], name: str) -> Image.Image:
    """Calls a decoder; its errors become those of SaySee."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            return decode()
    except MediaError:
        raise
    except Exception as error:
        why = reason(error)
        if isinstance(error, EOFError) or any(word in why.lower() for word in _DAMAGE):
            raise _damaged(name, why) from None
        what = f"{name}: cannot be decoded ({why}); open and save it in another program"
        raise MediaError("undecodable", what) from None


def _open_and_decode(file: BinaryIO, form: str, name: str, max_pixels: int, at_least: int | None) -> Image.Image:
    file.seek(0)
    if form == "HEIC":
        return _open_heic(file, name, max_pixels)
    if form == "AVIF":
        if not features.check("avif"):
            raise MediaError("undecodable", f"{name}: this Pillow cannot read AVIF; pip install --upgrade pillow")
        encoded: Any = Image.open(file, formats=["AVIF"])
    else:
        encoded = _PLUGINS[form](file)
    with encoded:
        if form == "JPEG":
            _draft(encoded, max_pixels, at_least)
        if form == "TIFF" and (_DNG in encoded.tag_v2 or encoded.tag_v2.get(_SUBFILE, 0) & 1):
            raise MediaError("undecodable", f"{name}: is a camera's raw file; export it as a JPEG")
        _check_size(encoded, name, max_pixels)
        return _decode(encoded, name)


def _draft(image: Image.Image, max_pixels: int, at_least: int | None) -> None:
    """Lets a JPEG be decoded at a fraction of its size, where that is enough or all that the limit allows."""
    width, height = image.size
    pixels = width * height
    enough = min(image.size) // at_least if at_least else 1
    # The decoder keeps the whole of a progressive image in memory, at any fraction.
    allowed = "progressive" not in image.info and pixels <= MAX_REDUCTION * max_pixels
    for scale in (8, 4, 2, 1):
        if scale <= enough:
            break
    while allowed and scale < 8 and (width // scale) * (height // scale) > max_pixels:
        scale *= 2
    if scale > 1:
        image.draft(None, (width // scale, height // scale))


def _open_heic(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    try:
        import pillow_heif
    except ImportError:
        what = f"{name}: is a HEIC image, which needs an optional extra; pip install 'saysee[heif]'"
        raise MediaError("undecodable", what) from None
    encoded = pillow_heif.open_heif(file)
    _check_size(encoded, name, max_pixels)
    image = encoded.to_pillow()
    image.info.clear()  # libheif has applied the orientation, which EXIF repeats
    return _decode(image, name)


def _decode(image: Image.Image, name: str) -> Image.Image:
    if image.mode in ("I", "F"):
        how = "has 32-bit pixels, which have no defined white"
        raise MediaError("undecodable", f"{name}: {how}; save it with 8 or 16 bits")
    image.load()
    return _to_rgb(_upright(image))


def _check_size(image: Any, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        how = f"has {width:,} × {height:,} pixels, over the limit of {max_pixels:,}"
        raise MediaError("too-large", f"{name}: {how}; scale it down, or save it as a baseline JPEG")
    if not width or not height:
        raise MediaError("empty", f"{name}: has no pixels ({width} × {height}); save it again")
    if max(width, height) > MAX_ASPECT * min(width, height):
        how = f"has one side over {MAX_ASPECT} times as long as the other ({width} × {height})"
        raise MediaError("too-large", f"{name}: {how}; crop it")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = _TRANSPOSED.get(image.getexif().get(0x0112, 1))
    except Exception:  # EXIF that cannot be parsed has no orientation; browsers show such an image as stored
        turned = None
    return image if turned is None else image.transpose(turned)


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


def _without_metadata(file: BinaryIO) -> BinaryIO:
    """A PNG with the chunks that its pixels need, and EXIF for the orientation."""
    file.seek(0)
    data = file.read()
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 5].isupper() or data[at + 4 : at + 8] in (b"tRNS", b"eXIf"):
            kept.append(data[at:end])
        at = end
    return io.BytesIO(b"".join(kept))


def _damaged(name: str, why: str) -> MediaError:
    return MediaError("truncated", f"{name}: is cut short or damaged ({why}); copy it again")
