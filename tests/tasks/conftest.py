"""Features that the tasks of the fusion encoder are tested on."""

from __future__ import annotations

import pytest
import torch

from saysee.model.features import ImageFeatures, SpeechFeatures


@pytest.fixture
def features() -> tuple[SpeechFeatures, ImageFeatures]:
    """Of 4 pairs, that gradients are asked of: 6 frames and 5 patches; the last clip is two frames shorter."""
    draw = torch.Generator().manual_seed(1)
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[3, 4:] = False
    vector, frames, images, patches = (
        torch.randn(*shape, generator=draw).requires_grad_() for shape in ((4, 8), (4, 6, 8), (4, 8), (4, 5, 12))
    )
    return SpeechFeatures(vector, frames, mask), ImageFeatures(images, patches)
