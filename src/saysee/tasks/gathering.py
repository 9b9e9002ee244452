"""The pairs of all processes that train together, for losses that compare each pair with every other of the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def in_several_processes() -> bool:
    """Whether other processes train beside this one."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def gather(rows: Tensor) -> Tensor:
    """[B, ...] rows of each of W processes to [W * B, ...], in the processes' order; all have the same shape.

    The gradient of a process's rows is the sum over what all processes do with them. So where each process takes the
    mean loss of its own B pairs, and the gradients of parameters are then averaged over processes, they are those of
    the mean loss of all W * B pairs in one process.
    """
    gathered: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    """torch's own differentiable gather (``torch.distributed.nn``) is deprecated."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows)
        context.rows = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()  # all_reduce writes into it
        distributed.all_reduce(gradient)
        start = distributed.get_rank() * context.rows
        return gradient[start : start + context.rows]
