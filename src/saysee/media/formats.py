"""The audio and image formats that SaySee reads: recognized by content, and the suffixes of their files.

This is the only list of formats; decoders, folder walks, the service and its page all use it.
"""

from __future__ import annotations

import os
import warnings
from typing import BinaryIO, Literal, NamedTuple, TypeAlias

from PIL import Image

Kind: TypeAlias = Literal["image", "clip"]


class FileKind(NamedTuple):
    """What a file is: image or clip, its MIME type, and the suffix for its name, with the dot."""

    kind: Kind
    media_type: str
    suffix: str


_AUDIO = {
    "wav": FileKind("clip", "audio/wav", ".wav"),
    "flac": FileKind("clip", "audio/flac", ".flac"),
    "streamed flac": FileKind("clip", "audio/flac", ".flac"),
    "ogg": FileKind("clip", "audio/ogg", ".ogg"),  # Vorbis or Opus
    "matroska": FileKind("clip", "audio/webm", ".webm"),
    "mov": FileKind("clip", "audio/mp4", ".m4a"),
    "mp3": FileKind("clip", "audio/mpeg", ".mp3"),
    "aac": FileKind("clip", "audio/aac", ".aac"),
}
_IMAGES = {
    "PNG": FileKind("image", "image/png", ".png"),
    "JPEG": FileKind("image", "image/jpeg", ".jpg"),
    "MPO": FileKind("image", "image/jpeg", ".jpg"),  # Pillow's name for a JPEG that holds more images after the first
    "WEBP": FileKind("image", "image/webp", ".webp"),
    "GIF": FileKind("image", "image/gif", ".gif"),
    "BMP": FileKind("image", "image/bmp", ".bmp"),
    "TIFF": FileKind("image", "image/tiff", ".tif"),
}

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""The decoders that Pillow may use. It has thirty more, which are less proven."""

AUDIO_SUFFIXES = frozenset({kind.suffix for kind in _AUDIO.values()} | {".opus", ".mp4"})
IMAGE_SUFFIXES = frozenset({kind.suffix for kind in _IMAGES.values()} | {".jpeg", ".tiff"})

READABLE_AUDIO = "WAV, FLAC, Ogg, MP3, WebM, M4A, MP4, AAC"
READABLE_IMAGES = "PNG, JPEG, WebP, GIF, BMP, TIFF"


def file_kind(file: BinaryIO) -> FileKind | None:
    """What a file is, by its first bytes; None for anything that SaySee does not read, such as HTML or SVG.

    Only the header is read; the rest of the file may still be damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _IMAGES[str(Image.open(file, formats=IMAGE_FORMATS).format)]
    except Exception:  # damaged headers raise errors of many classes
        return _AUDIO.get(audio_container(file) or "")


def kind_by_suffix(path: str | os.PathLike[str]) -> Kind | None:
    """Whether a file's name is that of an image or a clip; None for any other name."""
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    return "image" if suffix in IMAGE_SUFFIXES else "clip" if suffix in AUDIO_SUFFIXES else None


def audio_container(file: BinaryIO) -> str | None:
    """The container format of an audio file, by its first bytes; None for anything else. ID3 tags are skipped."""
    start = id3_end(file)
    file.seek(start)
    head = file.read(26)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return "wav"
    if head[:4] == b"fLaC":  # libsndfile fails at the end of a FLAC file whose header does not count its samples
        return "flac" if len(head) < 26 or head[21] & 0x0F or any(head[22:]) else "streamed flac"
    if head[:4] == b"OggS":
        return "ogg"
    if head[:4] == b"\x1aE\xdf\xa3":  # WebM is a subset of Matroska
        return "matroska"
    if head[4:8] == b"ftyp":
        return "mov"
    if len(head) >= 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:  # MPEG audio; layer 0 is ADTS, which holds AAC
        return "mp3" if head[1] & 0x06 else "aac"
    return "mp3" if start else None


def id3_end(file: BinaryIO) -> int:
    """The position after an ID3 tag at the start of the file; 0 without a tag."""
    file.seek(0)
    head = file.read(10)
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
