"""Loading models from a folder or the hub, with errors of one line."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    HubertModel,
    PreTrainedConfig,
)

from saysee.errors import CheckpointError
from saysee.model.image_encoder import ImageEncoder
from saysee.model.packaged import place_of
from saysee.model.processor import SpeechImageProcessor

FIX = "give a folder in the Hugging Face layout or a name on the hub"


def load_model(place: str | os.PathLike[str]) -> Any:
    """A SaySee model or a plain CLIP, in fp32 and in evaluation mode.

    Args:
        place: a folder, a hub name, or ``saysee/clip-nano`` of this package.

    Raises:
        CheckpointError: there is no such model at that place.
    """
    if kind_of(place) == "saysee":
        return AutoModel.from_pretrained(place_of(place))
    return PlainClip(place_of(place))


def kind_of(place: str | os.PathLike[str]) -> str:
    """The ``model_type`` of what :func:`load_model` would load from a place, and its error, without the weights."""
    return read_config(place_of(place), ("saysee", "clip", "clip_vision_model"), "SaySee model or CLIP", FIX)


class PlainClip(nn.Module):
    """A CLIP of a folder or hub name as a model without a speech side; in fp32 and in evaluation mode.

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


def load_hubert(place: str | os.PathLike[str]) -> Any:
    """A ``HubertModel`` in fp32.

    Raises:
        CheckpointError: there is no HuBERT at that place.
    """
    read_config(place, ("hubert",), "HuBERT", FIX)
    return load_weights(HubertModel, place, "HuBERT", FIX)


def load_clip(place: str | os.PathLike[str], text: bool) -> Any:
    """A CLIP in fp32: a ``CLIPModel``, or its vision tower alone without ``text`` or if the checkpoint has no more.

    Raises:
        CheckpointError: there is no CLIP at that place.
    """
    kind = read_config(place, ("clip", "clip_vision_model"), "CLIP", FIX)
    if kind == "clip_vision_model":
        return load_weights(CLIPVisionModelWithProjection, place, "CLIP", FIX)
    if text:
        return load_weights(CLIPModel, place, "CLIP", FIX)
    config = vision_alone(CLIPConfig.from_pretrained(place_of(place)))
    return load_weights(CLIPVisionModelWithProjection, place, "CLIP", FIX, config=config)


def vision_alone(config: CLIPConfig) -> CLIPVisionConfig:
    """The configuration of a CLIP's vision tower with its projection."""
    return CLIPVisionConfig(**config.vision_config.to_dict() | {"projection_dim": config.projection_dim})


def read_config(place: str | os.PathLike[str], kinds: tuple[str, ...], what: str, fix: str, **hub: Any) -> str:
    """The ``model_type`` of the model at a place.

    Raises:
        CheckpointError: there is no configuration, or one of another kind (for which transformers would only warn).
    """
    place = place_of(place)
    if (os.path.isabs(place) or place.startswith(".")) and not os.path.exists(place):
        raise CheckpointError(f"no {what} at {place}: no such folder; {fix}")
    try:
        kind = PreTrainedConfig.get_config_dict(place, **hub)[0].get("model_type")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no {what} at {place}: {first_line(error)}; {fix}") from error
    if kind not in kinds:
        found = f"it holds a model of the kind {kind!r}" if kind else "it has no config.json that names a kind of model"
        raise CheckpointError(f"no {what} at {place}: {found}; {fix}")
    return str(kind)


def load_weights(kind: Any, place: str | os.PathLike[str], what: str, fix: str, *args: Any, **kwargs: Any) -> Any:
    """A transformers model, in fp32 unless ``dtype`` says otherwise.

    Raises:
        CheckpointError: the weights cannot be read, or some are missing.
    """
    if "torch_dtype" in kwargs:  # its older name
        kwargs.setdefault("dtype", kwargs.pop("torch_dtype"))
    kwargs = {"dtype": torch.float32, **kwargs, "output_loading_info": True}
    try:
        model, report = kind.from_pretrained(place_of(place), *args, **kwargs)
    except Exception as error:  # transformers, safetensors and torch raise many kinds for a broken folder
        raise CheckpointError(f"no {what} at {place}: {first_line(error)}; {fix}") from error
    missing = sorted(name for name in report["missing_keys"] if "masked_spec_embed" not in name)
    if missing:
        raise CheckpointError(f"{what} at {place}: some of its weights are missing, {missing[0]} among them; {fix}")
    return model


def first_line(error: BaseException) -> str:
    """The first line of a library's error message."""
    return str(error).strip().split("\n")[0].rstrip(".")
