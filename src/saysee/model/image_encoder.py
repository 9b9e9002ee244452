"""CLIP: the projected image vector, the patch features and, where the checkpoint has it, the text encoder.

The vectors are CLIP's own, so an index of CLIP image vectors that a user already has can be searched by speech.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from saysee.model.features import ImageFeatures


class ImageEncoder(nn.Module):
    """Images to :class:`ImageFeatures`, and texts to vectors of the same space.

    Args:
        config: a CLIPConfig builds both towers, a CLIPVisionConfig the vision tower alone.
    """

    def __init__(self, config: CLIPConfig | CLIPVisionConfig) -> None:
        super().__init__()
        self.has_text = isinstance(config, CLIPConfig)
        self.clip = CLIPModel(config) if self.has_text else CLIPVisionModelWithProjection(config)

    @property
    def vision_config(self) -> CLIPVisionConfig:
        """The vision transformer's configuration."""
        return self.clip.config.vision_config if self.has_text else self.clip.config

    def forward(self, pixels: Tensor) -> ImageFeatures:
        """Encodes [B, 3, H, W] pixels as the processor prepares them."""
        vision = [*self.clip.vision_model.parameters(), *self.clip.visual_projection.parameters()]
        trains = any(parameter.requires_grad for parameter in vision)
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            output = self.clip.vision_model(pixel_values=pixels)
            vector = self.clip.visual_projection(output.pooler_output)
        return ImageFeatures(vector=vector, patches=output.last_hidden_state[:, 1:])

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids [B, N] and their mask to CLIP's text vectors [B, D]; only where :attr:`has_text`."""
        output = self.clip.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        vector: Tensor = output.pooler_output
        return vector
