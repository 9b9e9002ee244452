"""The timed models. Speed does not depend on the weights, so the published sizes have random ones."""

from __future__ import annotations

from typing import Any, Literal

import torch

from saysee.model.configuration import HeadConfig
from saysee.model.pretrained.configuration import CLIPConfig, CLIPVisionConfig, HubertConfig
from saysee.model.retriever import SpeechImageModel

Size = Literal["nano", "base"]


def model_of(size: Size) -> SpeechImageModel:
    """The encoders of the package, or random weights of the sizes of HuBERT base and CLIP ViT-B/32."""
    torch.manual_seed(0)
    if size == "nano":
        return SpeechImageModel.from_encoders("saysee/hubert-nano", "saysee/clip-nano")
    return SpeechImageModel.from_encoders(HubertConfig(), CLIPConfig(), text=False)  # the defaults are these sizes


def model_of_width(width: int) -> SpeechImageModel:
    """The smallest model with vectors of this width, for indexes of imported vectors."""
    size = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    tiny: dict[str, Any] = dict(zip(size, (16, 16, 1, 1), strict=True))
    speech = HubertConfig(**tiny, conv_dim=(16,) * 7, num_conv_pos_embedding_groups=1)
    image = CLIPConfig(CLIPVisionConfig(**tiny), None, projection_dim=width)
    return SpeechImageModel.from_encoders(speech, image, head=HeadConfig(heads=1))
