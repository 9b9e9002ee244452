"""CLIP: the projected image vector, the patch features and, where the checkpoint has it, the text encoder.

The vectors are CLIP's own, so an index of CLIP image vectors that a user already has can be searched by speech.
"""

import torch
from torch import Tensor, nn

from saysee.model.features import ImageFeatures
from saysee.model.pretrained.clip import CLIP, Change


class ImageEncoder(nn.Module):
    """Images to :class:`ImageFeatures` and, unless ``clip`` is a vision tower alone, texts to vectors of that space.

    ``config`` is the vision transformer's.
    """

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip, self.config = clip, clip.config.vision_config
        self.has_text = clip.config.text_config is not None

    def forward(self, pixels: Tensor, change: Change | None = None, layer: int = 0) -> ImageFeatures:
        """Encodes [B, 3, H, W] pixels as the processor prepares them.

        In training, ``change`` makes the patches noisy before this layer of the vision transformer.
        """
        vision = [*self.clip.vision_model.parameters(), *self.clip.visual_projection.parameters()]
        trains = any(parameter.requires_grad for parameter in vision)
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            return ImageFeatures(*self.clip.encode_image(pixels, change, layer))

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids [B, N] to CLIP's text vectors [B, D]; only where :attr:`has_text`."""
        return self.clip.encode_text(ids)
