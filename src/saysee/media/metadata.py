"""What a file says of itself without being decoded: when, where and by what an image was taken; if it is a video."""

import math
import re
import warnings
from datetime import datetime
from typing import Any, BinaryIO

import av
from PIL import Image

EXIF_KEYS = ("taken", "camera", "lat", "lon")  # what :func:`read_exif` returns, as far as the file has it

_WITH_EXIF = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF")
_MAKE, _MODEL, _CHANGED, _EXIF, _GPS = 0x010F, 0x0110, 0x0132, 0x8769, 0x8825
_TAKEN, _DIGITIZED = 0x9003, 0x9004
_TIME = re.compile(r"(\d{4})\D(\d\d?)\D(\d\d?)\D+(\d\d?)\D(\d\d?)(?:\D(\d\d?))?")
_CAMERA_CHARACTERS = 100  # most of a camera's name that is kept; a choice
_CONTAINERS_OF_VIDEO = {"matroska", "mov", "ogg"}


def read_exif(file: BinaryIO) -> dict[str, Any]:
    """The EXIF data of an image file that people search by; bad or missing values are left out.

    ``taken`` is the local time in ISO 8601 ("2024-06-03T14:05:09"), ``camera`` its make and model; ``lat`` and ``lon``
    are in degrees, north and east positive.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            file.seek(0)
            with Image.open(file, formats=_WITH_EXIF) as image:
                exif = Image.Image.getexif(image)  # not that of a PNG, which decodes the pixels
                found = {"taken": _taken(exif), "camera": _camera(exif)} | _place(exif.get_ifd(_GPS))
    except Exception:  # other formats and damaged files raise errors of many classes
        return {}
    return {name: value for name, value in found.items() if value is not None}


def is_video(file: BinaryIO, container: str | None) -> bool:
    """Whether an audio file of this container format has a picture track, other than a cover."""
    if container not in _CONTAINERS_OF_VIDEO:
        return False
    try:
        file.seek(0)
        with av.open(file, format=container) as opened:
            cover = av.stream.Disposition.attached_pic
            return any(not stream.disposition & cover for stream in opened.streams.video)
    except (OSError, ValueError, av.FFmpegError):  # the decoder reports what is wrong with it
        return False


def _taken(exif: Image.Exif) -> str | None:
    times = exif.get_ifd(_EXIF)
    for value in (times.get(_TAKEN), times.get(_DIGITIZED), exif.get(_CHANGED)):
        match = _TIME.match(_text(value))
        if match is not None:
            try:
                return datetime(*(int(part or 0) for part in match.groups())).isoformat()  # type: ignore[arg-type]
            except ValueError:  # 0000:00:00, where a camera's clock was never set
                continue
    return None


def _camera(exif: Image.Exif) -> str | None:
    make, model = _text(exif.get(_MAKE)), _text(exif.get(_MODEL))
    repeated = model.lower().startswith(make.lower().partition(" ")[0])  # "Canon", "Canon EOS 5D"
    return (model if repeated else f"{make} {model}").strip()[:_CAMERA_CHARACTERS] or make[:_CAMERA_CHARACTERS] or None


def _place(gps: dict[int, Any]) -> dict[str, float]:
    """Latitude and longitude, both or none; 0, 0 is what devices write that do not know their place."""
    lat, lon = _degrees(gps.get(2), gps.get(1), "S", 90), _degrees(gps.get(4), gps.get(3), "W", 180)
    return {} if lat is None or lon is None or lat == lon == 0 else {"lat": lat, "lon": lon}


def _degrees(parts: Any, side: Any, negative: str, most: int) -> float | None:
    try:
        values = [float(part) for part in (parts if isinstance(parts, tuple) else (parts,))]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    degrees = sum(value / 60**place for place, value in enumerate(values[:3]))
    if not math.isfinite(degrees) or not 0 <= degrees <= most:
        return None
    signed: float = -degrees if _text(side).upper().startswith(negative) else degrees
    return round(signed, 6)


def _text(value: Any) -> str:
    """A value of EXIF as one line of text without control characters."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = value if isinstance(value, str) else ""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text.partition("\0")[0]).split())
