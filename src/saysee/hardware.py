"""What there is to compute with: CPU cores, and a GPU or none."""

from __future__ import annotations

import os

from saysee.errors import ConfigError


def usable_cores() -> int:
    """Number of CPU cores that this process may use, where the system says so; else of all cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def torch_device(name: str = "auto") -> str:
    """The device to use, as torch names it: "auto" is a GPU if there is one; ConfigError for "cuda" without a GPU."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name}: torch finds no CUDA device on this machine; use --device cpu")
    return name
