"""Which region of an image belongs to which moment or word of a clip: a file to look at, to play or to compute with.

Shapes: F moments, P places, W words, S samples.
"""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

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
from saysee.search.terminal.sheet import audio_url, data_url, image_url
from saysee.studies.plots import attention_image, text_font
from saysee.studies.video import Lit, write_video

_SIDE, _CAPTION, _COLUMNS = 132, 18, 8  # of a strip: pixels of an image and of the line below it; images in a row
_LARGEST = 1280  # pixels of the image in HTML and in a video
_LINGER = 0.5  # seconds after a word in which it is still shown, unless the next one starts


def write_explanation(
    path: Path, regions: Regions, image: Image.Image, clip: NDArray[np.float32], words: Sequence[Word] = ()
) -> list[str]:
    """Writes a file atomically; its suffix says what.

    Args:
        path: .html: the image and the clip, whose regions light up while it plays; .mp4: the same as a video; .png: a
            strip of images, one a word, or one a moment if there are no words; .npz: the fields of ``regions`` as
            arrays, with ``words``, their ``starts`` and ``ends`` in seconds, and ``word_frames`` [W, P].
        regions: of this image and clip.
        image: RGB.
        clip: [S] samples at 16 kHz.
        words: of the clip, in order. The weights of a word are those of the moments in it, see ``word_maps``.

    Returns:
        What the reader of the file should know, such as characters that no font has.

    Raises:
        SaySeeError: it cannot be written there; or FFmpeg has no codec for a video.
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
    seen = image.crop((
        round(left * image.width), round(top * image.height), round(right * image.width), round(bottom * image.height)
    ))  # fmt: skip
    columns = min(len(frames), _COLUMNS)
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
