"""In which arithmetic a training computes; see :mod:`saysee.model.arithmetic`."""

from saysee.model.arithmetic import Arithmetic, arithmetic_of

__all__ = ["Arithmetic", "arithmetic_of"]
