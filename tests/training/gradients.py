"""What tests of whole and parted batches compare."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_same_gradients(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Each differs by no more than ``tolerance`` of its own length and a hundredth of that of all together."""
    assert one.keys() == other.keys()
    whole = torch.cat([gradient.flatten() for gradient in other.values()]).norm()
    for name, gradient in one.items():
        difference = (gradient - other[name]).norm()
        assert difference <= tolerance * (other[name].norm() + 0.01 * whole), name
