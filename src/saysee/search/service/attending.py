"""Speech over a picture that was found: which regions each moment of the query attends to."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saysee.encoding.attention import AttentionSource, attention_map, attention_source
from saysee.encoding.encoder import Encoder
from saysee.errors import SaySeeError
from saysee.media.audio import SAMPLE_RATE, check_waveform, load_audio
from saysee.media.images import load_image
from saysee.model.processor import SpeechImageProcessor
from saysee.model.retriever import ImageInput, SpeechInput

Box = tuple[float, float, float, float]

_DIGITS = 4
"""Decimals of a weight in JSON: an even share over 256 patches is 0.0039."""


@dataclass(frozen=True, slots=True)
class Attending:
    """Where each moment of a clip looks in a picture.

    Attributes:
        source: "fusion", the attention of the model's fusion encoder, or "similarity", how alike its speech frames and
            image patches are, which is not attention that the model computed.
        rows, columns: of the grid of patches.
        frame_seconds: from one frame to the next.
        seconds: length of the clip.
        frames: [F, rows * columns] weights, row by row from the top left; each frame's sum to 1.
        box: where the grid lies on the upright picture, as (left, top, right, bottom) shares of its sides. Below 0 or
            above 1 where the model was shown a margin around the picture.
    """

    source: AttentionSource
    rows: int
    columns: int
    frame_seconds: float
    seconds: float
    frames: NDArray[np.float32]
    box: Box

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        frames = np.round(self.frames.astype(np.float64), _DIGITS).tolist()
        return {**asdict(self), "frames": frames, "box": list(self.box)}


def attend(encoder: Encoder, speech: SpeechInput, image: ImageInput) -> Attending:
    """Reads where each moment of a clip looks in a picture.

    Args:
        encoder: of a SaySee model.
        speech: a path, the contents of a sound file, or samples [T] at 16 kHz.
        image: a path, the contents of a picture file, an open file or a Pillow image.

    Raises:
        MediaError: the clip or the picture cannot be used.
        SaySeeError: the model's weights give values that are not finite.
    """
    waveform = check_waveform(speech) if isinstance(speech, np.ndarray) else load_audio(speech)
    picture = load_image(image)
    model = encoder.model
    weights = attention_map(encoder, waveform, picture).numpy()
    if not np.isfinite(weights).all():
        raise SaySeeError("the model gives attention that is not finite; its weights are damaged or too large")
    side = math.isqrt(weights.shape[1])  # vision transformers of CLIP see a square
    vision = model.config.vision_config
    return Attending(
        source=attention_source(model),
        rows=side,
        columns=side,
        frame_seconds=model.speech_encoder.frame_seconds,
        seconds=len(waveform) / SAMPLE_RATE,
        frames=weights,
        box=grid_box(model.processor, picture.size, side * vision.patch_size),
    )


def grid_box(processor: SpeechImageProcessor, size: tuple[int, int], covered: int) -> Box:
    """Where the patches lie on a picture, which the processor scales and crops.

    Args:
        processor: of the model.
        size: width and height of the picture, in pixels.
        covered: pixels a side that the patches cover, from the top left of what the model sees; the convolution that
            cuts the patches drops what is left of the sides beyond.

    Returns:
        (left, top, right, bottom) as shares of the picture's sides.
    """
    pictures = processor.image_processor
    width, height = size
    if pictures.do_resize:
        # The processor's own resizing says how large the picture gets, whatever its settings; its pixels do not matter.
        blank = np.zeros((3, height, width), np.uint8)
        _, height, width = pictures.resize(blank, pictures.size, resample=Image.Resampling.NEAREST).shape
    left, top = 0, 0
    if pictures.do_center_crop:
        left = (width - pictures.crop_size["width"]) // 2
        top = (height - pictures.crop_size["height"]) // 2
    return left / width, top / height, (left + covered) / width, (top + covered) / height
