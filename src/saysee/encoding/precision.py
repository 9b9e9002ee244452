"""The precision that a network computes in: fp32, bf16, or bf16 under autocast as a training step does."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

Arithmetic = Literal["fp32", "bf16"]
Precision = Literal["auto", "fp32", "bf16", "autocast"]


def arithmetic_of(precision: str, device: str) -> Arithmetic:
    """The precision to compute in on a type of device: for "auto", bf16 where it has instructions for it, else fp32.

    A CPU without bf16 instructions emulates them, two hundred times slower than fp32 (0.5 against 107 GFLOP/s, measured
    on two cores with AVX2).
    """
    if precision in ("fp32", "bf16"):
        return precision  # type: ignore[return-value]
    if device == "cpu":
        has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        has_bf16 = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


def attention_kernel(device: str, bf16: bool) -> AbstractContextManager[None]:
    """Plain attention for a training step in bf16 on a device of type "cpu"; elsewhere torch's own choice.

    torch's fused kernel is slow to differentiate there: 86 ms against 50 for [64, 4, 170, 32] on two cores, torch 2.13.
    """
    return sdpa_kernel(SDPBackend.MATH) if device == "cpu" and bf16 else nullcontext()
