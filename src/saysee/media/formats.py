"""Which kind of file bytes are of: by the bytes themselves, and never by a name."""

from __future__ import annotations

from typing import BinaryIO, Literal, NamedTuple

from saysee.media.audio import container_of
from saysee.media.images import picture_format

_SOUNDS = {
    "wav": ("audio/wav", ".wav"),
    "flac": ("audio/flac", ".flac"),
    "streamed flac": ("audio/flac", ".flac"),
    "ogg": ("audio/ogg", ".ogg"),
    "matroska": ("audio/webm", ".webm"),
    "mov": ("audio/mp4", ".m4a"),
    "mp3": ("audio/mpeg", ".mp3"),
    "aac": ("audio/aac", ".aac"),
}
_PICTURES = {
    "PNG": ("image/png", ".png"),
    "JPEG": ("image/jpeg", ".jpg"),
    "MPO": ("image/jpeg", ".jpg"),  # what Pillow calls a camera's JPEG that holds more pictures behind the first
    "WEBP": ("image/webp", ".webp"),
    "GIF": ("image/gif", ".gif"),
    "BMP": ("image/bmp", ".bmp"),
    "TIFF": ("image/tiff", ".tif"),
}


class FileKind(NamedTuple):
    """What a file is.

    Attributes:
        kind: picture or clip.
        media_type: as HTTP names it.
        suffix: that its name should have, with the dot.
    """

    kind: Literal["image", "clip"]
    media_type: str
    suffix: str


def file_kind(file: BinaryIO) -> FileKind | None:
    """What a file is, by its head; None for all that is no picture and no sound which SaySee reads.

    So whatever a file is called, a page of HTML or a drawing in SVG is never taken for one. What comes behind the head
    may be damaged all the same.
    """
    picture = _PICTURES.get(picture_format(file) or "")
    if picture is not None:
        return FileKind("image", *picture)
    sound = _SOUNDS.get(container_of(file) or "")
    return None if sound is None else FileKind("clip", *sound)
