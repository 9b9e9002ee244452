"""The timed models. Speed does not depend on the weights, so the published sizes have random ones."""

from __future__ import annotations

from typing import Literal

import torch
from transformers import CLIPVisionConfig, HubertConfig

from saysee.model.configuration import HeadConfig
from saysee.model.retriever import SpeechImageModel

Size = Literal["nano", "base"]


def model_of(size: Size) -> SpeechImageModel:
    """The encoders of the package, or random weights of the sizes of HuBERT base and CLIP ViT-B/32."""
    torch.manual_seed(0)
    if size == "nano":
        return SpeechImageModel.from_encoders("saysee/hubert-nano", "saysee/clip-nano")
    clip = CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        image_size=224,
        patch_size=32,
        projection_dim=512,
    )
    return SpeechImageModel.from_encoders(HubertConfig(), clip)


def model_of_width(width: int) -> SpeechImageModel:
    """The smallest model with vectors of this width, for indexes of imported vectors."""
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    speech = HubertConfig(**tiny, conv_dim=[16] * 7, num_conv_pos_embedding_groups=1)
    return SpeechImageModel.from_encoders(
        speech, CLIPVisionConfig(**tiny, projection_dim=width), head=HeadConfig(heads=1)
    )
