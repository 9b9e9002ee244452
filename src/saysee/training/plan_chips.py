"""How much a chip computes at most: as its maker says, as a number says, or as measured here."""

from __future__ import annotations

import time
from dataclasses import dataclass

from saysee.encoding.precision import Arithmetic, arithmetic_of
from saysee.errors import ConfigError

HERE = "here"
MEASURED_SECONDS = 1.0
MEASURED_WIDTH = {"cpu": 2048, "cuda": 8192}
"""Width of the matrices whose product is timed: large enough that wider ones are no faster."""


@dataclass(frozen=True)
class Chip:
    """What a plan must know of a chip.

    Attributes:
        name: as it is told to people.
        bf16: peak in TFLOP/s, dense, summed in fp32; None where the chip has no bf16.
        fp32: peak in TFLOP/s without TF32, which torch leaves off for matrix products unless told otherwise.
        memory_gib: of the card; None where it is not known.
    """

    name: str
    bf16: float | None
    fp32: float
    memory_gib: float | None = None

    def arithmetic(self, precision: str) -> Arithmetic:
        """What ``training.precision`` comes to on it.

        Raises:
            ConfigError: bf16 on a chip that has none.
        """
        if precision == "bf16" and self.bf16 is None:
            raise ConfigError(f"training.precision is bf16, and the {self.name} has none; set it to auto or fp32")
        if precision == "fp32" or self.bf16 is None:
            return "fp32"
        return "bf16"

    def peak(self, arithmetic: Arithmetic) -> float:
        """In TFLOP/s."""
        return self.fp32 if arithmetic == "fp32" or self.bf16 is None else self.bf16


CHIPS = {
    "b200": Chip("B200", 2250, 75, 180),
    "h200": Chip("H200", 989, 67, 141),
    "h100": Chip("H100 SXM", 989, 67, 80),
    "h100-pcie": Chip("H100 PCIe", 756, 51, 80),
    "a100": Chip("A100 80 GB", 312, 19.5, 80),
    "a100-40": Chip("A100 40 GB", 312, 19.5, 40),
    "l40s": Chip("L40S", 362, 91.6, 48),
    "a40": Chip("A40", 149.7, 37.4, 48),
    "a6000": Chip("RTX A6000", 154.8, 38.7, 48),
    "l4": Chip("L4", 121, 30.3, 24),
    "a10": Chip("A10", 125, 31.2, 24),
    "rtx5090": Chip("RTX 5090", 209.5, 104.8, 32),
    "rtx4090": Chip("RTX 4090", 165.2, 82.6, 24),
    "rtx3090": Chip("RTX 3090", 71, 35.6, 24),
    "v100": Chip("V100", None, 15.7, 32),
    "t4": Chip("T4", None, 8.1, 16),
}
"""Peaks of the makers' data sheets, without sparsity."""


def chip_of(word: str, precision: str, device: str) -> Chip:
    """The chip that ``--peak`` means.

    Args:
        word: a name of :data:`CHIPS`, TFLOP/s as a number (of whatever arithmetic is planned), or "here".
        precision: as in a recipe; what "here" measures.
        device: "cpu" or "cuda"; what "here" measures.

    Raises:
        ConfigError: it is none of these.
    """
    if word == HERE:
        arithmetic = arithmetic_of(precision, device)
        peak = measured_peak(arithmetic, device)
        # One of the two was measured: the other is not asked for.
        return Chip(f"this machine's {device}", peak if arithmetic == "bf16" else None, peak)
    if word.lower() in CHIPS:
        return CHIPS[word.lower()]
    try:
        peak = float(word)
    except ValueError:
        peak = 0.0
    if not 0 < peak < float("inf"):
        raise ConfigError(
            f"--peak is {word!r}; give TFLOP/s as a number above 0, 'here' to measure this machine, or a card's name: "
            f"{', '.join(CHIPS)}"
        )
    return Chip(f"a chip of {peak:g} TFLOP/s", peak, peak)


def measured_peak(arithmetic: Arithmetic, device: str) -> float:
    """TFLOP/s of the fastest of some products of matrices, with the threads that torch has."""
    import torch

    width = MEASURED_WIDTH[device]
    matrix = torch.randn(width, width, device=device, dtype=torch.bfloat16 if arithmetic == "bf16" else torch.float32)
    fastest, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < MEASURED_SECONDS or fastest == float("inf"):
        began = time.perf_counter()
        product = matrix @ matrix
        float(product[0, 0])  # waits for an accelerator
        fastest = min(fastest, time.perf_counter() - began)
    return 2 * width**3 / fastest / 1e12
