"""Attention maps: which image patches each frame of speech attends to."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from saysee.encoding.encoder import Encoder
from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.model.retriever import SpeechImageModel

AttentionSource = Literal["fusion", "similarity"]

TEMPERATURE = 0.07
"""Of the similarity of frames and patches: where CLIP's own contrastive temperature, and SpeechCLIP's, start."""


def attention_source(model: SpeechImageModel) -> AttentionSource:
    """Source of a model's maps: its fusion encoder if it was saved with one, else similarity."""
    return "similarity" if model.fusion is None else "fusion"


@torch.inference_mode()
def attention_map(encoder: Encoder, clip: Any, image: Any) -> Tensor:
    """One clip over one image.

    Args:
        encoder: of a SaySee model.
        clip: a path, the contents of an audio file, or samples [T] at 16 kHz.
        image: a path, the contents of an image file, an open file or a Pillow image.

    Returns:
        [F, P] float32 on the CPU; each row sums to 1.

    Raises:
        MediaError: the clip or the image cannot be used.
    """
    with encoder.evaluating():
        maps = attention_maps(encoder.model, encoder.tokens("clip", clip), encoder.tokens("image", image))
    return maps[0].float().cpu()


def attention_maps(model: SpeechImageModel, speech: SpeechFeatures, images: ImageFeatures) -> Tensor:
    """[B, F, P] of encoded pairs, from the source that ``attention_source`` names; each row sums to 1."""
    if model.fusion is not None:
        return model.fusion.attend(speech, images)
    return frame_patch_similarity(speech.frames, model.image_encoder.project_patches(images.patches), TEMPERATURE)


def frame_patch_similarity(frames: Tensor, patches: Tensor, temperature: float) -> Tensor:
    """A map for a model without a fusion encoder: softmax over the patches of cosine / temperature.

    It shows how similar frames and patches are in the joint space; it is not attention that the model computed.

    Args:
        frames: [..., F, D] speech frame features.
        patches: [..., P, D] image patch features in the same space.
        temperature: above 0; the smaller, the sharper.

    Returns:
        [..., F, P]; each row sums to 1. The row of a zero vector is uniform.

    Raises:
        ValueError: shapes or widths that do not fit, values that are not finite, or a temperature not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if frames.ndim < 2 or frames.ndim != patches.ndim or frames.shape[-1] != patches.shape[-1]:
        raise ValueError(
            f"frames must be [..., F, D] and patches [..., P, D] of one width, got {list(frames.shape)} and "
            f"{list(patches.shape)}"
        )
    logits = functional.normalize(frames, dim=-1) @ functional.normalize(patches, dim=-1).transpose(-1, -2)
    if not logits.isfinite().all():
        raise ValueError("frames and patches must be finite: one holds NaN or infinity")
    return (logits / temperature).softmax(dim=-1)
