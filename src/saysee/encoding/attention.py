"""Attention: the patches of an image that each frame of speech attends to.

Shapes: F frames, P patches, D width of the joint space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from saysee.encoding.encoder import Encoder
from saysee.errors import SaySeeError
from saysee.media.audio import SAMPLE_RATE, check_waveform, load_audio
from saysee.media.images import load_image
from saysee.model.processor import SpeechImageProcessor
from saysee.model.retriever import ImageInput, SpeechImageModel, SpeechInput

AttentionSource = Literal["fusion", "similarity"]
Box = tuple[float, float, float, float]

TEMPERATURE = 0.07
"""Of the similarity of frames and patches: where CLIP's own contrastive temperature, and SpeechCLIP's, start."""


@dataclass(frozen=True, slots=True)
class Regions:
    """Weights of the patches of an image for each frame of a clip.

    Attributes:
        source: "fusion": the attention of the model's fusion encoder; "similarity": the similarity of speech frames
            and image patches, which is not attention computed by the model.
        rows, columns: of the grid of patches.
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
    frames: NDArray[np.float32]
    box: Box


def attend(encoder: Encoder, speech: SpeechInput, image: ImageInput) -> Regions:
    """Computes which regions of an image each moment of a clip attends to; arguments and errors of `attention_map`."""
    waveform = check_waveform(speech) if isinstance(speech, np.ndarray) else load_audio(speech)
    decoded, model = load_image(image), encoder.model
    weights = attention_map(encoder, waveform, decoded).numpy()
    side = math.isqrt(weights.shape[1])  # CLIP's vision transformers see a square
    return Regions(
        source=attention_source(model),
        rows=side,
        columns=side,
        frame_seconds=model.speech_encoder.frame_seconds,
        seconds=len(waveform) / SAMPLE_RATE,
        frames=weights,
        box=grid_box(model.processor, decoded.size, side * model.config.vision_config.patch_size),
    )


def attention_source(model: SpeechImageModel) -> AttentionSource:
    """Source of a model's maps: its fusion encoder if it was saved with one, else similarity."""
    return "similarity" if model.fusion is None else "fusion"


@torch.inference_mode()
def attention_map(encoder: Encoder, speech: SpeechInput, image: ImageInput) -> Tensor:
    """Weights of the patches of an image for each frame of a clip.

    Args:
        encoder: of a SaySee model.
        speech: a path, the contents of an audio file, or samples [T] at 16 kHz.
        image: a path, the contents of an image file, an open file or a Pillow image.

    Returns:
        [F, P] float32 on the CPU; each row sums to 1.

    Raises:
        MediaError: the clip or the image cannot be used.
        SaySeeError: the model computes values that are not finite.
    """
    model = encoder.model
    with encoder.evaluating():
        clips, images = encoder.tokens("clip", speech), encoder.tokens("image", image)
        if model.fusion is not None:
            maps = model.fusion.attend(clips, images)
        else:
            maps = frame_patch_similarity(clips.frames, model.image_encoder.project_patches(images.patches))
    if not maps.isfinite().all():
        raise SaySeeError("the model computes attention that is not finite; its weights are damaged or too large")
    found: Tensor = maps[0].float().cpu()
    return found


def frame_patch_similarity(frames: Tensor, patches: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """A map for a model without a fusion encoder: softmax over the patches of cosine / temperature.

    Args:
        frames: [..., F, D] speech frame features.
        patches: [..., P, D] image patch features in the same space.
        temperature: above 0; the smaller, the sharper.

    Returns:
        [..., F, P]; each row sums to 1. The row of a zero vector is uniform.
    """
    cosines = functional.normalize(frames, dim=-1) @ functional.normalize(patches, dim=-1).transpose(-1, -2)
    return (cosines / temperature).softmax(dim=-1)


def grid_box(processor: SpeechImageProcessor, size: tuple[int, int], covered: int) -> Box:
    """The position of the patches on an image, which the processor resizes and crops.

    Args:
        processor: of the model.
        size: width and height of the image in pixels.
        covered: pixels that the patches cover on each side of the model's input, from its top left: the convolution
            that makes the patches drops an incomplete last one.

    Returns:
        (left, top, right, bottom) as fractions of the image's sides.
    """
    images = processor.image_processor
    width, height = size
    if images.do_resize:
        # The processor's own resizing gives the size, whatever its settings; the pixels do not matter.
        blank = np.zeros((3, height, width), np.uint8)
        _, height, width = images.resize(blank, images.size, resample=Image.Resampling.NEAREST).shape
    left, top = 0, 0
    if images.do_center_crop:
        left = (width - images.crop_size["width"]) // 2
        top = (height - images.crop_size["height"]) // 2
    return left / width, top / height, (left + covered) / width, (top + covered) / height
