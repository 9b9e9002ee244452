"""Clips of different lengths as one batch."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def pad(waveforms: Sequence[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    """Waveforms [T] of any lengths to zero-padded waveforms [B, T] and their mask [B, T], True on real samples."""
    lengths = torch.tensor([waveform.size for waveform in waveforms])
    # torch's own memory is aligned, numpy's is not always; kernels round otherwise on the latter.
    padded = torch.zeros(len(waveforms), int(lengths.max()))
    for row, waveform in zip(padded, waveforms, strict=True):
        row[: waveform.size] = torch.from_numpy(np.ascontiguousarray(waveform, np.float32))
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]
