"""An explanation as a video: the image with the region that lights up, the clip as its sound, words as a caption.

Shapes: P places, S samples.
"""

import io
import itertools
import math
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from saysee.encoding.attention import Regions
from saysee.encoding.recognizer import Word
from saysee.errors import SaySeeError
from saysee.media.audio import SAMPLE_RATE
from saysee.media.changes import audio_frame
from saysee.studies.plots import text_font

RATE = 25  # frames a second: a word starts at most 0.04 s late
_CODECS = ("libx264", "libopenh264", "mpeg4")  # the last plays in fewer programs
_SMALLEST = 480  # pixels of the larger side of the image: below it the caption cannot be read
_NARROWEST = 320  # pixels of the width of the video, so that a word has space
_SHADE, _DARKEST, _GAMMA = (9, 12, 18), 0.76, 0.6  # as in page/attention.js
_SPOKEN, _OTHER = (255, 183, 77), (135, 135, 135)  # colors of words; they differ in brightness too


class Lit(NamedTuple):
    """What lights up from a time on."""

    start: float  # in seconds
    weights: NDArray[Any]  # [P]
    word: int | None  # number of the word that is spoken; None if there is none


def write_video(
    buffer: io.BytesIO,
    lit: Sequence[Lit],
    image: Image.Image,
    regions: Regions,
    clip: NDArray[np.float32],
    words: Sequence[Word],
) -> list[str]:
    """Writes an MP4: H.264, or MPEG-4 video if FFmpeg cannot write it, and AAC. Returns what its reader should know.

    Args:
        buffer: to write to.
        lit: what lights up, in order; the first from 0 s.
        image: RGB.
        regions: whose grid the weights are on.
        clip: [S] samples at 16 kHz.
        words: of the clip, in order, that ``lit`` counts.

    Raises:
        SaySeeError: FFmpeg has no codec for it.
    """
    codec = next((name for name in _CODECS if _can_encode(name)), None)
    if codec is None or not _can_encode("aac"):
        needed = f"{', '.join(_CODECS[:-1])} or {_CODECS[-1]}, and aac"
        raise SaySeeError(f"the FFmpeg of PyAV cannot write .mp4: it needs {needed}; give --to FILE.html")
    scale = max(1.0, _SMALLEST / max(image.size))
    image = image.resize((max(2, round(image.width * scale)), max(2, round(image.height * scale))))
    size = min(max(max(image.width, _NARROWEST) // 24, 16), 36)
    font, notes = text_font("".join(word.text for word in words), size)
    pictures = _pictures(lit, image, regions, words, font)
    frame, shown = av.VideoFrame.from_image(next(pictures)).reformat(format="yuv420p"), 0
    if codec == _CODECS[-1]:
        notes.append("MPEG-4 video, as this FFmpeg has no H.264 encoder")
    with av.open(buffer, "w", format="mp4") as file:
        video = file.add_stream(codec, rate=RATE)
        video.width, video.height, video.pix_fmt, video.gop_size = frame.width, frame.height, "yuv420p", RATE
        if codec == "libx264":
            # A minute takes a third of the time of the default preset, and no more bytes.
            video.options = {"crf": "20", "tune": "stillimage", "preset": "veryfast"}
        else:
            video.bit_rate = 4_000_000
        sound = file.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        sound.bit_rate = 64_000
        packets = [*sound.encode(audio_frame(clip, "fltp")), *sound.encode(None)]
        starts = [each.start for each in lit]
        for number in range(math.ceil(len(clip) / SAMPLE_RATE * RATE)):
            if (current := int(np.searchsorted(starts, number / RATE, side="right")) - 1) > shown:
                picture = next(itertools.islice(pictures, current - shown - 1, None))
                frame, shown = av.VideoFrame.from_image(picture).reformat(format="yuv420p"), current
            frame.pts = number
            packets += video.encode(frame)
        for packet in sorted([*packets, *video.encode(None)], key=lambda packet: packet.dts * packet.time_base):
            file.mux(packet)
    return notes


def _can_encode(codec: str) -> bool:
    try:
        av.Codec(codec, "w")
    except ValueError:  # PyAV's error for an unknown codec is one
        return False
    return True


def _pictures(
    lit: Sequence[Lit], image: Image.Image, regions: Regions, words: Sequence[Word], font: Any
) -> Iterator[Image.Image]:
    """A picture for each of ``lit``, all of one size with even sides; not all at once, as a minute has 200."""
    width, letters = max(image.width, _NARROWEST) // 2 * 2, round(font.size)
    lines = _lines([word.text for word in words], font, width - letters)
    height = (image.height + (2 * letters if words else 0)) // 2 * 2
    # Full brightness: the 95th percentile of the strongest place, as in page/attention.js.
    weights = np.stack([each.weights for each in lit])
    uniform, strongest = 1 / weights.shape[1], np.sort(weights.max(axis=1))
    full = max(strongest[int(0.95 * (len(strongest) - 1))], 1.5 * uniform)
    brightness = ((weights - uniform) / (full - uniform)).clip(0, 1)
    line = lines[0] if lines else range(0)
    for each, bright in zip(lit, brightness, strict=True):
        line = next((found for found in lines if each.word in found), line)
        picture = Image.new("RGB", (width, height))
        picture.paste(_lit(image, regions, bright), ((width - image.width) // 2, 0))
        if words:
            _write_line(picture, font, [(words[n].text, n == each.word) for n in line], height - round(1.6 * letters))
        yield picture


def _lit(image: Image.Image, regions: Regions, brightness: NDArray[Any]) -> Image.Image:
    """The image, dark except where it is bright, from 0 to 1."""
    across, down = image.width, image.height
    left, top, right, bottom = (round(edge * side) for edge, side in zip(regions.box, (across, down) * 2, strict=True))
    shade = 255 * _DARKEST * (1 - brightness**_GAMMA).reshape(regions.rows, regions.columns)
    grid = Image.fromarray(shade.round().astype(np.uint8))
    mask = Image.new("L", image.size, round(255 * _DARKEST))
    mask.paste(grid.resize((right - left, bottom - top), Image.Resampling.BICUBIC), (left, top))
    return Image.composite(Image.new("RGB", image.size, _SHADE), image, mask)


def _lines(texts: Sequence[str], font: Any, width: int) -> list[range]:
    """The numbers of the words of each line that is at most so wide, if it is more than one word."""
    lines: list[range] = []
    for number, text in enumerate(texts):
        line = " ".join([*texts[lines[-1].start : number], text]) if lines else ""
        if not lines or font.getlength(line) > width:
            lines.append(range(number, number + 1))
        else:
            lines[-1] = range(lines[-1].start, number + 1)
    return lines


def _write_line(picture: Image.Image, font: Any, line: Sequence[tuple[str, bool]], top: int) -> None:
    """Writes (word, whether it is spoken) in the middle; from right to left in scripts that do."""
    if unicodedata.bidirectional(line[0][0][0]) in ("R", "AL"):
        line = line[::-1]
    place = (picture.width - font.getlength(" ".join(text for text, _ in line))) / 2
    for text, spoken in line:
        ImageDraw.Draw(picture).text((place, top), text, fill=_SPOKEN if spoken else _OTHER, font=font)
        place += font.getlength(text + " ")
