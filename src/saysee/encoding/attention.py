"""Attention: which regions of an image each moment of a clip belongs to.

Shapes: F frames, M windows of the clip, P patches or places of the image, D width of the joint space, S samples.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saysee.encoding.encoder import Encoder
from saysee.encoding.sides import Kind
from saysee.encoding.streams import takes_several
from saysee.errors import SaySeeError
from saysee.files import fingerprint
from saysee.media.audio import SAMPLE_RATE, check_waveform, load_audio
from saysee.media.images import load_image
from saysee.model.processor import SpeechImageProcessor
from saysee.model.retriever import ImageInput, SpeechImageModel, SpeechInput

AttentionSource = Literal["fusion", "interaction"]
Box = tuple[float, float, float, float]
Floats = NDArray[np.float32]

PLACES = 7
"""Places along each side of an image that are covered in turn."""
COVER = 0.25
"""Side of the square that covers a place, as a fraction of the image's: neighbors overlap."""
MOMENT = 0.64
"""Seconds between windows of a clip; a window is two moments long, and neighbors overlap."""
SHARED = 0.5
"""Share of the mean over all moments that is subtracted from each: what matters to all of them says little of one.

Chosen on the validation split of the demo by how often the place with the highest weight is on the object spoken of. On
20 images, 151 words, and moments of 0.32 s: for 76 %, for 70 % with the mean color in place of the median and nothing
subtracted; squares of 0.19 and 0.31 are worse by 14 and 4 points. Moments on 100 images, 785 words, rows CMD and
SaySee: 0.32 s 74.3 and 73.1 %, 0.48 s 74.8 and 75.0, 0.64 s 75.8 and 76.1, 0.8 s 74.5 and 76.1."""
MOST_MOMENTS = 48
"""Of a clip; in a longer clip they are longer, as each costs a run over the whole clip."""
MOST_WIDE_SECONDS = 64.0
"""Speech that a wide HuBERT encodes on a CPU for a clip, all its windows together: HuBERT base takes 4 s for so much on
two cores. A longer clip has fewer and longer moments."""
MOST_KEPT = 16
"""Clips and images of an encoder whose changes are kept: a query and the results around it."""


@dataclass(frozen=True, slots=True)
class Regions:
    """Weights of the places of an image for each frame of a clip.

    Attributes:
        source: "fusion": the attention of the model's fusion encoder; "interaction": how the score changes when a place
            and a moment are left out, which any model has.
        rows, columns: of the grid of places.
        frame_seconds: from one frame to the next.
        seconds: duration of the clip.
        frames: [F, rows * columns] weights, row by row from the top left; those of a frame sum to 1.
        box: position of the grid on the upright image: (left, top, right, bottom) as fractions of its sides, below 0
            or above 1 where the model sees a margin around the image.
    """

    source: AttentionSource
    rows: int
    columns: int
    frame_seconds: float
    seconds: float
    frames: Floats
    box: Box


def attend(encoder: Encoder, speech: SpeechInput, image: ImageInput, source: AttentionSource | None = None) -> Regions:
    """Computes which regions of an image each moment of a clip belongs to, for a SaySee model.

    Args:
        speech: a path, the contents of an audio file, or samples [S] at 16 kHz, of any length.
        image: a path, the contents of an image file, an open file or a Pillow image.
        source: see :class:`Regions`; None: the quick one, see :func:`attention_source`.

    Raises MediaError if the clip or the image cannot be used; SaySeeError for "fusion" of a model without a fusion
    encoder, or values that are not finite.
    """
    waveform = check_waveform(speech, max_seconds=math.inf) if isinstance(speech, np.ndarray) else load_audio(speech)
    decoded, model = load_image(image), encoder.model
    source = source or attention_source(model)
    seconds, seen = len(waveform) / SAMPLE_RATE, int(model.config.vision_config.image_size)
    if source == "interaction":
        weights, frame_seconds = interaction(encoder, waveform, decoded)
    else:
        frame_seconds = model.speech_encoder.feature_seconds
        weights = attention_map(encoder, waveform, decoded)
        patch = int(model.config.vision_config.patch_size)
        seen = seen // patch * patch  # the convolution that makes the patches drops an incomplete last one
    side = math.isqrt(weights.shape[1])  # CLIP's vision transformers see a square
    box = grid_box(model.processor, decoded.size, seen)
    return Regions(source, side, side, frame_seconds, seconds, weights, box)


def attention_source(model: SpeechImageModel) -> AttentionSource:
    """The source that takes the least time: the fusion encoder if the model was saved with it."""
    return "interaction" if getattr(model, "fusion", None) is None else "fusion"


@torch.inference_mode()
def attention_map(encoder: Encoder, speech: SpeechInput, image: ImageInput) -> Floats:
    """[F, P] attention of the fusion encoder; each row sums to 1. Arguments and errors as of :func:`attend`."""
    fusion = encoder.model.fusion
    if fusion is None:
        raise SaySeeError("the model was saved without a fusion encoder; save it by training.save_fusion: true")
    with encoder.evaluating():
        found = fusion.attend(encoder.tokens("clip", speech, max_seconds=math.inf), encoder.tokens("image", image))[0]
    return _finite(found.float().cpu().numpy())


def interaction(encoder: Encoder, speech: SpeechInput, image: ImageInput) -> tuple[Floats, float]:
    """Share of each place of an image in the score of each moment of a clip.

    With v the image's vector, v_r that of the image with place r covered by its median color, q the clip's vector and
    q_t that of the clip with window t silenced, (v - v_r) · (q - q_t) is what the score owes to place and window
    together: the score, less the one without r, less the one without t, plus the one without both. ``SHARED`` of its
    mean over all windows is subtracted; below 0 it counts as 0. A moment has the mean of the two windows that it lies
    in. The less it counts, the closer its row is to uniform.

    Returns [F, PLACES * PLACES], each row sums to 1, and the seconds of a row. Arguments and errors as of
    :func:`attend`.
    """
    clip, pixels = encoder.prepare("clip", speech, max_seconds=math.inf), encoder.prepare("image", image)
    moment = max(round(MOMENT * SAMPLE_RATE), -(-len(clip) // _most_moments(encoder, len(clip))))
    of_windows = _changes(encoder, "clip", clip, lambda: silenced(clip, moment))
    of_places = _changes(encoder, "image", pixels, lambda: covered(pixels))
    both = of_windows @ of_places.T
    both = np.maximum(both - SHARED * both.mean(axis=0), 0)
    moments = (both[1:] + both[:-1]) / 2
    counts = moments.sum(axis=1, keepdims=True)
    most = max(float(counts.max()), float(np.finfo(np.float32).tiny))
    return _finite((moments + (most - counts) / moments.shape[1]) / most), moment / SAMPLE_RATE


def _most_moments(encoder: Encoder, samples: int) -> int:
    if encoder.model.device.type != "cpu" or takes_several(encoder.model.config.speech_config):
        return MOST_MOMENTS
    runs = int(MOST_WIDE_SECONDS * SAMPLE_RATE / samples)
    return min(max(runs - 2, 2), MOST_MOMENTS)  # the clip itself, and one window more than moments


def silenced(clip: Floats, moment: int) -> list[Floats]:
    """A clip [S] with each window of two moments, of ``moment`` samples each, set to 0: M windows around M - 1 moments.

    The first and the last window lie half outside the clip.
    """
    variants = []
    for start in range(-moment, len(clip), moment):
        variants.append(clip.copy())
        variants[-1][max(start, 0) : start + 2 * moment] = 0
    return variants


def covered(pixels: Tensor) -> list[Tensor]:
    """Pixels [3, H, W] with each of PLACES * PLACES overlapping squares set to their median color, row by row."""
    color, spans = pixels.flatten(1).median(dim=1).values[:, None, None], []
    for side in pixels.shape[1:]:
        middles = (np.arange(PLACES) + 0.5) * side / PLACES
        reach = COVER * side / 2
        spans.append([slice(max(round(middle - reach), 0), round(middle + reach)) for middle in middles])
    variants = []
    for rows in spans[0]:
        for columns in spans[1]:
            variants.append(pixels.clone())
            variants[-1][:, rows, columns] = color
    return variants


_KEPT: WeakKeyDictionary[Encoder, tuple[Encoder, OrderedDict[tuple[str, str], Floats]]] = WeakKeyDictionary()
"""For each encoder the same one in fp32, as bf16 loses small differences; and its changes by kind and content."""


def _changes(encoder: Encoder, kind: Kind, original: Any, variants: Callable[[], list[Any]]) -> Floats:
    """[N, D] vector of an item less those of N variants of it; those of the last items are kept."""
    if encoder not in _KEPT:
        _KEPT[encoder] = Encoder(encoder.model, precision="fp32"), OrderedDict()
    exact, kept = _KEPT[encoder]
    key = kind, fingerprint(np.ascontiguousarray(original).data)
    if key not in kept:
        vectors = exact.encode_prepared(kind, [original, *variants()])
        kept[key] = vectors[0] - vectors[1:]
    kept.move_to_end(key)
    while len(kept) > MOST_KEPT:
        kept.popitem(last=False)
    return kept[key]


def _finite(weights: Floats) -> Floats:
    if not np.isfinite(weights).all():
        raise SaySeeError("the model computes attention that is not finite; its weights are damaged or too large")
    return weights


def grid_box(processor: SpeechImageProcessor, size: tuple[int, int], covered: int) -> Box:
    """The position of the patches on an image of ``size`` (width, height), which the processor resizes and crops.

    They cover ``covered`` pixels on each side of the model's input, from its top left. Returns left, top, right and
    bottom as fractions of the image's sides.
    """
    width, height = processor.image_processor.resized(*size)
    left, top = processor.image_processor.crop_corner(width, height)
    return left / width, top / height, (left + covered) / width, (top + covered) / height
