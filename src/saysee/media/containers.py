"""Whether a file is cut short, by the sizes in its own structure: decoders play what is left as if it were whole.

Only bytes that are announced and missing count. A length in seconds does not: that of a container is of its longest
track, and a stream has none.
"""

import io
import math
import os
import re
from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple, TypeAlias

from saysee.media.formats import mpeg_start, tags_end

_UNKNOWN = 0x7F000000
"""From here on (2 GiB less 16 MiB) a size of 32 bits stands for "not known yet": programs that write into a pipe put
0x7F000000, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF or the like, less the size of their header."""
_UNKNOWN_64 = 1 << 62
_LARGEST = 1 << 42  # bytes of a file; operating systems refuse to seek much further


_Order: TypeAlias = Literal["big", "little"]


class _Layout(NamedTuple):
    """How a format writes its chunks."""

    first: int  # position of the first chunk
    name: int  # bytes of a chunk's name
    length: int  # bytes of its size
    align: int = 2
    counts_header: bool = False  # whether a size includes the name and itself
    samples: bytes = b"data"  # how the name of the chunk with the samples starts, in lower case


_LAYOUTS = {
    "wav": _Layout(12, 4, 4),
    "aiff": _Layout(12, 4, 4, samples=b"ssnd"),
    "caf": _Layout(8, 4, 8, align=1),
    "w64": _Layout(40, 16, 8, align=8, counts_header=True),
}
_BOXES = {b"ftyp", b"moov", b"mdat", b"moof", b"meta", b"free", b"skip", b"wide", b"sidx", b"styp", b"uuid", b"mfra"}


class Samples(NamedTuple):
    """Where the samples of a file of chunks lie."""

    position: int  # in bytes
    announced: int | None  # bytes of samples by the header; None if it does not know
    total: int | None  # bytes of the whole file by the header; None if it does not know
    unpadded: list[int]  # where a chunk of odd size before them lacks its byte of padding
    order: _Order  # of the bytes in sizes


def how_cut(file: BinaryIO, form: str, start: int = 0) -> str | None:
    """How a file is cut short; None if nothing in it says so.

    ``form`` is of ``audio_container`` or ``image_format`` of ``formats``; ``start`` is where it starts, after tags.
    """
    size = file.seek(0, os.SEEK_END)
    if form == "ogg":
        return _ogg_cut(file, size)
    if form == "matroska":
        return _matroska_cut(file, start, size)
    if form in ("mov", "HEIC", "AVIF"):
        return _boxes_cut(file, start, size)
    if form == "au":
        offset, announced = _au_sizes(file, start)
        return None if announced >= _UNKNOWN else _missing(announced, size - start - offset)
    if form == "WEBP":
        return _missing(int.from_bytes(_read(file, 4, 4), "little"), size - 8)
    if form == "nistsphere":
        head = _read(file, start, 1024)
        counts = re.findall(rb"(?:sample_count|sample_n_bytes|channel_count) -i (\d+)", head)
        length = head[8:16].strip()
        plain = b"shorten" not in head and len(counts) == 3 and length.isdigit()
        return _missing(math.prod(map(int, counts)), size - start - int(length)) if plain else None
    if form not in _LAYOUTS:
        return None
    samples = find_samples(file, form, start)
    if samples is None:
        return "ends before its samples" if form == "wav" else None
    # A wrong count of samples in a file that is as long as it should be is a fault of its writer's, and no loss.
    if samples.announced is None or samples.total is None or start + samples.total <= size + 1:
        return None
    return _missing(samples.announced, size - samples.position)


def find_samples(file: BinaryIO, form: str, start: int = 0) -> Samples | None:
    """Finds the samples of a WAV, AIFF, CAF or W64 file; None if there are none."""
    layout = _LAYOUTS[form]
    head = _read(file, start, 24)
    order: _Order = "big" if head[:4] == b"RIFX" or form in ("aiff", "caf") else "little"
    field = head[layout.name : layout.name + layout.length]
    total = int.from_bytes(field, order) + (0 if layout.counts_header else 8)
    limit = _UNKNOWN if layout.length == 4 else _UNKNOWN_64
    long: tuple[int, int] | None = None
    unpadded: list[int] = []
    for name, position, length, was_padded in _chunks(file, start + layout.first, layout, order):
        if name.lower().startswith(layout.samples):
            if long and length == 0xFFFFFFFF:
                total, length, limit = long[0] + 8, long[1], _UNKNOWN_64
            if form == "caf":
                total = position + length - start
            known = 0 < length < limit or (length == 0 and not _has_samples(file, position, layout, order))
            return Samples(position, length if known else None, total if 8 < total < limit else None, unpadded, order)
        if name == b"ds64":  # the sizes of a file over 4 GB
            body = _read(file, position, 16)
            long = int.from_bytes(body[:8], "little"), int.from_bytes(body[8:], "little")
        unpadded += [] if was_padded else [position + length]
    return None


def repaired(file: BinaryIO, form: str, start: int = 0) -> BinaryIO:
    """An audio file as decoders expect it: the file itself, or a copy where its layout is unusual.

    Decoders take 0 bytes of samples for an empty file, lose their way after an odd chunk that is not padded, and find
    the end of an MP3's junk, but not the counts behind it.
    """
    size = file.seek(0, os.SEEK_END)
    if form == "mp3":
        found = mpeg_start(file)
        begin = found[1] if found else 0
        only_id3 = begin == tags_end(file) and b"APETAGEX" not in _read(file, 0, begin)
        return file if only_id3 else io.BytesIO(_read(file, begin, -1))
    if form == "au" and not 0 < _au_sizes(file, start)[1] < _UNKNOWN:
        return io.BytesIO(_read(file, start, 8) + b"\xff" * 4 + _read(file, start + 12, -1))
    samples = find_samples(file, form, start) if form in _LAYOUTS else None
    if samples is None or not (samples.unpadded or samples.announced is None):
        return file
    data = bytearray(_read(file, start, -1))
    if samples.announced is None:
        layout = _LAYOUTS[form]
        field = samples.position - start - layout.length
        left = size - samples.position + (layout.name + layout.length if layout.counts_header else 0)
        data[field : field + layout.length] = min(left, 0xFFFFFFFF).to_bytes(layout.length, samples.order)
        if bytes(data[:4]) in (b"RF64", b"BW64"):
            data[:4] = b"RIFF"
    for at in reversed(samples.unpadded):
        data[at - start : at - start] = b"\0"
    return io.BytesIO(data)


def _au_sizes(file: BinaryIO, start: int) -> tuple[int, int]:
    """Position and bytes of the samples of an AU file, by its header."""
    head = _read(file, start, 12)
    order: _Order = "big" if head[:1] == b"." else "little"
    return int.from_bytes(head[4:8], order), int.from_bytes(head[8:], order)


def mp3_lacks_bytes(file: BinaryIO) -> bool | None:
    """Whether an MP3 has fewer bytes than its first frame announces, or that announces none; None without counts."""
    found = mpeg_start(file)
    if found is None:
        return None
    frame = _read(file, found[1], 60)
    values = [int.from_bytes(frame[at : at + 4], "big") for at in range(len(frame) - 3)]
    frames = count = 0
    if (at := frame.find(b"VBRI")) >= 0:
        frames, count = values[at + 14], values[at + 10]
    elif (at := max(frame.find(b"Xing"), frame.find(b"Info"))) >= 0:  # at most 36 bytes in
        flags = values[at + 4]
        frames = values[at + 8] if flags & 1 else 0
        count = values[at + (12 if flags & 1 else 8)] if flags & 2 else 0
    left = file.seek(0, os.SEEK_END) - found[1]
    return count == 0 or count > left if frames else None


def _chunks(file: BinaryIO, position: int, layout: _Layout, order: _Order) -> Iterator[tuple[bytes, int, int, bool]]:
    """Name, position and size of the contents of each chunk, and whether it is padded as it should be."""
    width = layout.name + layout.length
    while len(head := _read(file, position, width)) == width:
        length = int.from_bytes(head[layout.name :], order) - (width if layout.counts_header else 0)
        if length < 0:
            return
        position += width
        rest = -(position + length) % 8 if layout.align == 8 else length % layout.align
        after = _read(file, position + length, 4) if rest else b""
        padded = not (rest and layout.align == 2 and len(after) == 4 and after.isalpha() and after.isascii())
        yield head[: layout.name], position, length, padded
        position += length + (rest if padded else 0)


def _has_samples(file: BinaryIO, position: int, layout: _Layout, order: _Order) -> bool:
    """Whether something other than whole chunks follows a chunk of size 0."""
    size = file.seek(0, os.SEEK_END)
    end = position
    for _, start, length, _ in _chunks(file, position, layout, order):
        end = start + length + length % layout.align
    return end != size


def _matroska_cut(file: BinaryIO, position: int, size: int) -> str | None:
    """Follows the elements; those of unknown size, as live recordings have, are entered."""
    while position < size:
        head = _read(file, position, 12)
        name = 9 - head[0].bit_length()  # leading zero bits tell how many bytes follow
        if name > 4:
            return None  # no element: padding or other data
        width = 9 - head[name].bit_length() if name < len(head) else 8
        if name + width > len(head):
            return "ends within the header of an element"
        length = int.from_bytes(head[name : name + width], "big") & ((1 << 7 * width) - 1)
        position += name + width
        is_segment = head[:name] == b"\x18\x53\x80\x67"
        if length == (1 << 7 * width) - 1:
            continue
        if (cut := _missing(length, size - position)) is not None:
            return cut
        position += 0 if is_segment else length
    return None


def _boxes_cut(file: BinaryIO, position: int, size: int) -> str | None:
    """Follows the boxes of the file itself (ISO 14496-12)."""
    while position + 8 <= size:
        head = _read(file, position, 16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8 or head[4:8] not in _BOXES:  # 0: to the end of the file; phones append data that is no box
            return None
        if (cut := _missing(length, size - position)) is not None:
            return cut
        position += length
    return None


def _ogg_cut(file: BinaryIO, size: int) -> str | None:
    """Whether the last page is incomplete."""
    tail = _read(file, max(0, size - (1 << 16) - 512), size)  # a page has at most 65,307 bytes
    page = tail[tail.rfind(b"OggS") :]
    header = 27 + page[26] if len(page) > 26 else 27  # 27 bytes and the lengths of the page's segments
    return "ends within a page" if len(page) < header or len(page) < header + sum(page[27:header]) else None


def _missing(announced: int, left: int) -> str | None:
    return f"has {max(0, left):,} of the {announced:,} bytes that its header announces" if announced > left else None


def _read(file: BinaryIO, position: int, count: int) -> bytes:
    if position > _LARGEST:
        return b""
    file.seek(position)
    return file.read(count)
