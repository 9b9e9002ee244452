"""A model of either kind from a folder or the hub."""

import os
from typing import Any

import torch
from torch import nn

from saysee.errors import CheckpointError
from saysee.model.image_encoder import ImageEncoder
from saysee.model.pretrained.weights import FIX, first_line, load_clip, place_of, read_config
from saysee.model.processor import SpeechImageProcessor
from saysee.model.retriever import SpeechImageModel


def load_model(place: str | os.PathLike[str]) -> Any:
    """A SaySee model or a plain CLIP, in fp32 and evaluation mode; CheckpointError if there is none at that place."""
    return SpeechImageModel.from_pretrained(place) if kind_of(place) == "saysee" else PlainClip(place_of(place))


def kind_of(place: str | os.PathLike[str]) -> str:
    """The ``model_type`` of what :func:`load_model` would load from a place, and its error, without the weights."""
    kinds = (SpeechImageModel.model_type, "clip", "clip_vision_model")
    return str(read_config(place, kinds, "SaySee model or CLIP")["model_type"])


class PlainClip(nn.Module):
    """A CLIP of a folder or hub name as a model without a speech side; CheckpointError if there is none."""

    def __init__(self, place: str | os.PathLike[str]) -> None:
        super().__init__()
        self.name_or_path = os.fspath(place)
        self.image_encoder = ImageEncoder(load_clip(place, text=True))
        size, text = self.image_encoder.config.image_size, self.image_encoder.has_text
        try:
            self.processor = SpeechImageProcessor.from_sources(None, self.name_or_path, size, text=text)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"no processor of a CLIP at {place}: {first_line(error)}; {FIX}") from error
        self.eval()

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device
