"""Which region of an image belongs to which moment or word of a clip: a file to look at, to play or to compute with.

Shapes: F moments, P places, W words, S samples.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image, ImageDraw

import saysee.search
from saysee.encoding.attention import Regions
from saysee.encoding.recognizer import Word
from saysee.errors import SaySeeError
from saysee.evaluation.localization import word_maps
from saysee.files import atomic_write
from saysee.media.audio import SAMPLE_RATE
from saysee.media.changes import audio_frame
from saysee.search.terminal.sheet import audio_url, data_url, image_url
from saysee.studies.plots import attention_image, text_font

_SIDE, _CAPTION, _COLUMNS = 132, 18, 8  # of a strip: pixels of an image and of the line below it; images in a row
_LARGEST = 1280  # pixels of the image in HTML and in a video
_LINGER = 0.5  # seconds after a word in which it is still shown, unless the next one starts
RATE = 25  # frames a second: a word starts at most 0.04 s late
_CODECS = ("libx264", "libopenh264", "mpeg4")  # the last plays in fewer programs
_SMALLEST = 480  # pixels of the larger side of the image: below it the caption cannot be read
_NARROWEST = 320  # pixels of the width of the video, so that a word has space
_SHADE, _DARKEST, _GAMMA = (9, 12, 18), 0.76, 0.6  # as in page/attention.js
_SPOKEN, _OTHER = (255, 183, 77), (135, 135, 135)  # colors of words; they differ in brightness too


def write_explanation(
    path: Path, regions: Regions, image: Image.Image, clip: NDArray[np.float32], words: Sequence[Word] = ()
) -> list[str]:
    """Writes a file atomically; returns what its reader should know, such as characters that no font has.

    Args:
        path: .html: the image and the clip, whose regions light up while it plays; .mp4: the same as a video; .png: a
            strip of images, one a word, or one a moment if there are no words; .npz: the fields of ``regions`` as
            arrays, with ``words``, their ``starts`` and ``ends`` in seconds, and ``word_frames`` [W, P].
        regions: of this image, which is RGB, and of the samples [S] of this clip at 16 kHz.
        words: of the clip, in order. The weights of a word are those of the moments in it, see ``word_maps``.

    Raises SaySeeError if it cannot be written there, or FFmpeg has no codec for a video.
    """
    spoken = [{"start": word.start, "end": word.end} for word in words]
    maps = word_maps(regions.frames, spoken, regions.frame_seconds)
    buffer, notes = io.BytesIO(), []
    shown = image.copy()
    shown.thumbnail((_LARGEST, _LARGEST))
    kind = path.suffix.lower()
    if kind == ".html":
        buffer.write(_html(path.stem, regions, shown, clip, words, timeline(regions, words, maps)).encode())
    elif kind == ".mp4":
        notes = write_video(buffer, timeline(regions, words, maps), shown, regions, clip, words)
    elif kind == ".png":
        notes = _strip(buffer, regions, image, words, maps)
    else:
        arrays: dict[str, Any] = asdict(regions)
        if words:
            named = zip(("words", "starts", "ends"), zip(*words, strict=True), strict=True)
            arrays |= {name: np.array(values) for name, values in named} | {"word_frames": maps}
        np.savez_compressed(buffer, **arrays)
    try:
        with atomic_write(path) as file:
            file.write(buffer.getvalue())
    except OSError as error:
        raise SaySeeError(f"{path}: it cannot be written ({error.strerror}); name another file with --to") from None
    return notes


def timeline(regions: Regions, words: Sequence[Word], maps: NDArray[Any]) -> list[Lit]:
    """What lights up from when on, from 0 s: words, and moments where nobody speaks. ``maps`` are of the words."""
    following = [word.start for word in words[1:]] + [math.inf]
    spans = [(word.start, min(word.end + _LINGER, start)) for word, start in zip(words, following, strict=False)]
    moments = [number * regions.frame_seconds for number in range(len(regions.frames))]
    lit: list[Lit] = []
    for start in sorted({*moments, *(edge for span in spans for edge in span if edge < regions.seconds)}):
        word = next((number for number, (first, end) in enumerate(spans) if first <= start < end), None)
        if word is None:
            moment = max(number for number, first in enumerate(moments) if first <= start)
            lit.append(Lit(start, regions.frames[moment], None))
        elif not lit or lit[-1].word != word:
            lit.append(Lit(start, maps[word], word))
    return lit


def _html(
    title: str, regions: Regions, image: Image.Image, clip: NDArray[np.float32], words: Sequence[Word], lit: list[Lit]
) -> str:
    environment = Environment(loader=PackageLoader("saysee", "studies"), autoescape=select_autoescape())
    drawing = Path(saysee.search.__path__[0], "page", "attention.js").read_bytes()
    frames = np.array([each.weights for each in lit], np.float64).round(4).tolist()
    # The script finds the frame by these times: to the drawing, frames are 1 s apart.
    times = {"starts": [round(each.start, 4) for each in lit], "words": [each.word for each in lit]}
    values = asdict(regions) | times | {"frames": frames, "frame_seconds": 1}
    return environment.get_template("explain.html").render(
        title=title,
        image=image_url(image),
        audio=audio_url(clip),
        words=words,
        script=data_url(drawing, "text/javascript"),
        regions=Markup(json.dumps(values)),  # numbers and names of ours
    )


def _strip(
    buffer: io.BytesIO, regions: Regions, image: Image.Image, words: Sequence[Word], maps: NDArray[Any]
) -> list[str]:
    """The part of the image that the model sees, once a word or moment, all on one scale, as PNG; returns notes."""
    if words:
        captions, frames = [word.text for word in words], maps
    else:
        frames, step = regions.frames, regions.frame_seconds
        starts = [number * step for number in range(len(frames))]
        captions = [f"{start:.2f} to {min(start + step, regions.seconds):.2f} s" for start in starts]
    left, top, right, bottom = regions.box
    (width, height), columns = image.size, min(len(frames), _COLUMNS)
    seen = image.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))
    rows = math.ceil(len(frames) / columns)
    strip = Image.new("RGB", (columns * _SIDE, rows * (_SIDE + _CAPTION)), "white")
    normal, notes = text_font("".join(captions), 12)
    for number, (caption, weights) in enumerate(zip(captions, frames, strict=True)):
        place = (number % columns * _SIDE, number // columns * (_SIDE + _CAPTION))
        strip.paste(attention_image(seen, weights, highest=float(frames.max())), place)
        font = normal.font_variant(size=min(12, 12 * (_SIDE - 8) / normal.getlength(caption)))  # a long word is smaller
        ImageDraw.Draw(strip).text((place[0] + 4, place[1] + _SIDE + 2), caption, fill="black", font=font)
    strip.save(buffer, "PNG")
    return notes


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

    ``lit`` lights up, the first from 0 s, on the grid of ``regions`` over an RGB image; ``clip`` is [S] samples at 16
    kHz.

    Raises SaySeeError if FFmpeg has no codec for it.
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
        return bool(av.Codec(codec, "w"))
    except ValueError:  # PyAV's error for an unknown codec is one
        return False


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
    for number in range(len(texts)):
        start = lines[-1].start if lines else 0
        if lines and font.getlength(" ".join(texts[start : number + 1])) <= width:
            lines[-1] = range(start, number + 1)
        else:
            lines.append(range(number, number + 1))
    return lines


def _write_line(picture: Image.Image, font: Any, line: Sequence[tuple[str, bool]], top: int) -> None:
    """Writes (word, whether it is spoken) in the middle; from right to left in scripts that do."""
    if unicodedata.bidirectional(line[0][0][0]) in ("R", "AL"):
        line = line[::-1]
    place = (picture.width - font.getlength(" ".join(text for text, _ in line))) / 2
    for text, spoken in line:
        ImageDraw.Draw(picture).text((place, top), text, fill=_SPOKEN if spoken else _OTHER, font=font)
        place += font.getlength(text + " ")
