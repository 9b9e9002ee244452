"""Any model by its name: a SaySee model, or a plain CLIP, which has no speech side."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, CLIPModel

from saysee.errors import CheckpointError
from saysee.model.image_encoder import ImageEncoder
from saysee.model.loading import FIX, first_line, load_clip, place_of, read_config
from saysee.model.processor import SpeechImageProcessor


def load_model(place: str | os.PathLike[str]) -> Any:
    """A SaySee model or a plain CLIP, in fp32 and in evaluation mode.

    Args:
        place: a folder, a hub name, or ``saysee/clip-nano`` of this package.

    Raises:
        CheckpointError: there is no such model at that place.
    """
    place = place_of(place)
    if read_config(place, ("saysee", "clip", "clip_vision_model"), "SaySee model or CLIP", FIX) == "saysee":
        return AutoModel.from_pretrained(place)
    return PlainClip(place)


class PlainClip(nn.Module):
    """A CLIP as a model without a speech side; in fp32 and in evaluation mode.

    Args:
        place: folder or hub name.

    Attributes:
        name_or_path: the place.
        image_encoder: both towers, or the vision tower alone.
        processor: prepares images and texts.

    Raises:
        CheckpointError: there is no CLIP at that place.
    """

    def __init__(self, place: str | os.PathLike[str]) -> None:
        super().__init__()
        self.name_or_path = os.fspath(place)
        clip = load_clip(place, text=True)
        self.image_encoder = ImageEncoder(clip.config)
        self.image_encoder.clip = clip
        try:
            self.processor = SpeechImageProcessor.from_sources(
                None, self.name_or_path, self.image_encoder.vision_config.image_size, text=isinstance(clip, CLIPModel)
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(f"no processor of a CLIP at {place}: {first_line(error)}; {FIX}") from error
        self.eval()

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device
