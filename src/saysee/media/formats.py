"""The audio and image formats that SaySee reads: recognized by content, and the suffixes of their files.

This is the only list of formats; decoders, folder walks, the service and its page all use it.
"""

import os
from typing import BinaryIO, Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["image", "clip"]


class FileKind(NamedTuple):
    """What a file is: image or clip, its MIME type, and the suffix for its name, with the dot."""

    kind: Kind
    media_type: str
    suffix: str


_AUDIO = {
    "wav": FileKind("clip", "audio/wav", ".wav"),  # also RF64 and BW64, its forms over 4 GB
    **dict.fromkeys(("flac", "streamed flac"), FileKind("clip", "audio/flac", ".flac")),
    "ogg": FileKind("clip", "audio/ogg", ".ogg"),  # Vorbis, Opus, Speex or FLAC
    "matroska": FileKind("clip", "audio/webm", ".webm"),
    "mov": FileKind("clip", "audio/mp4", ".m4a"),
    "mp3": FileKind("clip", "audio/mpeg", ".mp3"),
    "aac": FileKind("clip", "audio/aac", ".aac"),
    "aiff": FileKind("clip", "audio/aiff", ".aiff"),  # also AIFF-C
    "caf": FileKind("clip", "audio/x-caf", ".caf"),
    "au": FileKind("clip", "audio/basic", ".au"),
    "w64": FileKind("clip", "audio/x-w64", ".w64"),
    "nistsphere": FileKind("clip", "audio/x-nist", ".sph"),  # speech corpora of the LDC, often named .wav
    "amr": FileKind("clip", "audio/amr", ".amr"),
}
_IMAGES = {
    "PNG": FileKind("image", "image/png", ".png"),
    "JPEG": FileKind("image", "image/jpeg", ".jpg"),
    "WEBP": FileKind("image", "image/webp", ".webp"),
    "GIF": FileKind("image", "image/gif", ".gif"),
    "BMP": FileKind("image", "image/bmp", ".bmp"),
    "TIFF": FileKind("image", "image/tiff", ".tif"),
    "HEIC": FileKind("image", "image/heic", ".heic"),  # requires the extra heif
    "AVIF": FileKind("image", "image/avif", ".avif"),
}

AUDIO_SUFFIXES = frozenset(
    {kind.suffix for kind in _AUDIO.values()}
    | {".wave", ".rf64", ".bwf", ".oga", ".opus", ".spx", ".ogv", ".mka", ".mkv", ".weba", ".mp4", ".m4b", ".m4v"}
    | {".mov", ".qt", ".3gp", ".3g2", ".mp2", ".mpga", ".adts", ".aif", ".aifc", ".snd", ".nist"}
)
IMAGE_SUFFIXES = frozenset(
    {kind.suffix for kind in _IMAGES.values()}
    | {".jpeg", ".jfif", ".jpe", ".jif", ".jfi", ".mpo", ".apng", ".tiff", ".dib", ".heif", ".hif", ".heics"}
)

READABLE_AUDIO = "WAV, FLAC, Ogg, MP3, WebM, M4A, MP4, AAC, AIFF"
READABLE_IMAGES = "PNG, JPEG, WebP, GIF, BMP, TIFF, HEIC, AVIF"

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF_BRANDS = {b"avif", b"avis"}
_GENERAL_BRANDS = {b"mif1", b"mif2", b"msf1", b"miaf"}  # images of any codec: the further brands name it
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}  # sizes of the header that follows the first 14 bytes
_BOXES = {b"moov", b"mdat", b"wide", b"pnot"}  # with which QuickTime files from before 2001 start
_W64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_TAGS = (b"TAG", b"APETAGEX", b"LYRICS")  # at the end of an MP3
_MPEG_SEARCH = 1 << 16  # bytes of tags, padding and junk before the first MPEG frame; FFmpeg searches as far
_MPEG_KBITS = {  # by "version 1" and layer, for the indices 1 to 14
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    **dict.fromkeys(((False, 2), (False, 3)), (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)),
}


def file_kind(file: BinaryIO) -> FileKind | None:
    """What a file is, by its first bytes; None for anything that SaySee does not read, such as HTML or SVG."""
    return _IMAGES.get(image_format(file) or "") or _AUDIO.get(audio_container(file) or "")


def kind_by_suffix(path: str | os.PathLike[str]) -> Kind | None:
    """Whether a file's name is that of an image or a clip; None for any other name."""
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    return "image" if suffix in IMAGE_SUFFIXES else "clip" if suffix in AUDIO_SUFFIXES else None


def image_format(file: BinaryIO) -> str | None:
    """The format of an image file, as Pillow names it, by its first bytes; None for anything else."""
    file.seek(0)
    head = file.read(64)
    if head[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") and head[8:10] != b"CR":  # CR: a raw file of Canon's
        return "TIFF"
    if head[4:8] == b"ftyp":
        brands = {head[at : at + 4] for at in range(16, min(int.from_bytes(head[:4], "big"), len(head)), 4)}
        brands = {head[8:12]} | brands if head[8:12] in _GENERAL_BRANDS else {head[8:12]}
        return "AVIF" if brands & _AVIF_BRANDS else "HEIC" if brands & (_HEIC_BRANDS | _GENERAL_BRANDS) else None
    return None


def audio_container(file: BinaryIO) -> str | None:
    """The container format of an audio file, as FFmpeg names it, by its first bytes; None for anything else."""
    start = tags_end(file)
    file.seek(start)
    head = file.read(26)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"fLaC":  # libsndfile fails at the end of a FLAC file whose header does not count its samples
        return "flac" if len(head) < 26 or head[21] & 0x0F or any(head[22:]) else "streamed flac"
    if head[:4] == b"OggS":
        return "ogg"
    if head[:4] == b"\x1aE\xdf\xa3":  # WebM is a subset of Matroska
        return "matroska"
    if head[4:8] == b"ftyp" and image_format(file) is None and head[8:12] != b"crx ":  # crx: a raw file of Canon's
        return "mov"
    if head[4:8] in _BOXES:
        return "mov"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[:16] == _W64:
        return "w64"
    starts = {b"caff": "caf", b".snd": "au", b"dns.": "au", b"NIST_1A": "nistsphere", b"#!AMR": "amr"}
    for first, name in starts.items():
        if head.startswith(first):
            return name
    found = mpeg_start(file)
    return found[0] if found else "mp3" if start else None


def tags_end(file: BinaryIO) -> int:
    """The position after the ID3v2 and APE tags at the start of a file; 0 without a tag."""
    position = 0
    while True:
        file.seek(position)
        head = file.read(32)
        if head[:3] == b"ID3" and len(head) >= 10:
            size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
            position += size + (20 if head[5] & 0x10 else 10)
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            position += 32 + int.from_bytes(head[12:16], "little")
        else:
            return position


def mpeg_start(file: BinaryIO) -> tuple[str, int] | None:
    """Codec ("mp3" or "aac") and position of the first MPEG audio frame; None without one.

    A frame counts if two more follow it, or the end of the file: its first bytes alone occur in any file. Tags, zeros
    and other bytes before it, such as the rest of a frame, are skipped.
    """
    start = tags_end(file)
    end = file.seek(0, os.SEEK_END)
    file.seek(start)
    data = file.read(_MPEG_SEARCH + 8192)  # a frame has at most 8,191 bytes
    at = -1
    while 0 <= (at := data.find(b"\xff", at + 1)) < _MPEG_SEARCH:
        position, frames, codec = at, 0, None
        while frames < 3 and (frame := _mpeg_frame(data[position : position + 6])) and codec in (None, frame[0]):
            codec, size = frame
            position, frames = position + size, frames + 1
            if start + position == end or (start + position > end and frames == 2) or data.startswith(_TAGS, position):
                frames = 3
        if codec is not None and frames == 3:
            return codec, start + at
    return None


def _mpeg_frame(head: bytes) -> tuple[str, int] | None:
    """Codec and size in bytes of the frame with this header of 4 bytes (MPEG audio) or 6 (ADTS)."""
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    if head[1] & 0xF6 == 0xF0:  # layer 0 is ADTS, which holds AAC
        size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        return ("aac", size) if size >= 7 and head[2] >> 2 & 15 < 13 else None
    version, layer, rate = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 2 & 3
    bits, padding = head[2] >> 4, head[2] >> 1 & 1
    if version == 1 or layer == 4 or rate == 3 or bits in (0, 15):
        return None
    hertz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    per_second = _MPEG_KBITS[version == 3, layer][bits - 1] * 1000
    if layer == 1:
        return "mp3", (12 * per_second // hertz + padding) * 4
    return "mp3", (72 if layer == 3 and version != 3 else 144) * per_second // hertz + padding
