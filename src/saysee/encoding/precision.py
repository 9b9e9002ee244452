"""In which arithmetic a model computes: fp32, or bf16 where the chip has instructions for it."""

from __future__ import annotations

from typing import Literal

import torch

Arithmetic = Literal["fp32", "bf16"]


def arithmetic_of(precision: str, device: str) -> Arithmetic:
    """What "auto" comes to on a device: bf16 where its chip has it, fp32 elsewhere.

    A processor without instructions for bf16 computes it all the same, two hundred times slower than fp32 (0.5 against
    107 GFLOP/s, measured on two cores with AVX2).

    Args:
        precision: "auto", "fp32" or "bf16"; the last two are taken at their word.
        device: kind of device, such as "cpu" or "cuda".
    """
    if precision in ("fp32", "bf16"):
        return precision  # type: ignore[return-value]
    return "bf16" if (_processor_has_bf16() if device == "cpu" else _accelerator_has_bf16(device)) else "fp32"


def _processor_has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _accelerator_has_bf16(device: str) -> bool:
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
