"""Speech-image contrastive learning: the clip's vector must find its picture's among the batch's, and the other way."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.tasks.base import Task

MAX_LOGIT_SCALE = 100.0
"""A learned temperature never falls below 1/100, as in CLIP (arXiv 2103.00020, section 2.5)."""


def info_nce(a: Tensor, b: Tensor, scale: Tensor | float, ids: Tensor) -> Tensor:
    """The mean of the two directions' InfoNCE, in fp32.

    Row i of ``a`` belongs to row i of ``b``. Rows that share an id are neither positives nor negatives of each other.
    Zero vectors give log B. Source: arXiv 2210.00705, equation 1, with its same-image mask.

    Args:
        a: [B, D], of any length.
        b: [B, D], of any length.
        scale: one over the temperature.
        ids: [B] int.

    Returns:
        A scalar, 0 at best.
    """
    with torch.autocast(a.device.type, enabled=False):
        logits = scale * functional.normalize(a.float(), dim=-1) @ functional.normalize(b.float(), dim=-1).T
        same = ids[:, None] == ids[None, :]
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, -torch.inf)
        target = torch.arange(len(logits), device=logits.device)
        return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2


def info_nce_over_processes(a: Tensor, b: Tensor, scale: Tensor | float, ids: Tensor) -> Tensor:
    """This process's share of :func:`info_nce` of the rows of all W processes: its own rows against all.

    The mean over processes is the loss of all rows in one process, and so is the mean of the gradients of parameters;
    because each process's rows get the gradient of all processes' losses. Every process must call it at once, with
    the same B.

    Args:
        a, b, scale, ids: as for :func:`info_nce`; ids count the same images in every process.
    """
    with torch.autocast(a.device.type, enabled=False):
        own_a, own_b = functional.normalize(a.float(), dim=-1), functional.normalize(b.float(), dim=-1)
        all_a, all_b = _gather(torch.cat([own_a, own_b], dim=1)).chunk(2, dim=1)
        all_ids = _gather(ids)
        rows = torch.arange(len(ids), device=ids.device)
        target = rows + distributed.get_rank() * len(ids)
        same = ids[:, None] == all_ids[None, :]
        same[rows, target] = False
        a_to_b = (scale * own_a @ all_b.T).masked_fill(same, -torch.inf)
        b_to_a = (scale * own_b @ all_a.T).masked_fill(same, -torch.inf)
        return (functional.cross_entropy(a_to_b, target) + functional.cross_entropy(b_to_a, target)) / 2


def _in_several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _gather(rows: Tensor) -> Tensor:
    """[B, ...] rows of each of W processes to [W * B, ...], in the order of ranks, with gradient."""
    from torch.distributed.nn.functional import all_gather

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 recommends a private module that 2.6 does not have
        return torch.cat(all_gather(rows))  # type: ignore[no-untyped-call]


def bounded_scale(log_scale: nn.Parameter) -> Tensor:
    """One over a learned temperature, in fp32.

    The parameter itself is held back: a clamp behind it would stop its gradient, and with it the way back.
    """
    with torch.no_grad():
        log_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
    return log_scale.float().exp()


class ContrastiveTask(Task):
    """InfoNCE between the global vectors of clips and pictures, over the pairs of all processes that train together.

    Args:
        weight: weight of the loss.
        temperature: temperature at the start.
        learn_temperature: make it a parameter.
    """

    name = "contrastive"
    on_vectors = True

    def __init__(self, weight: float = 1.0, temperature: float = 0.07, learn_temperature: bool = False) -> None:
        super().__init__(weight)
        scale = torch.tensor(math.log(1 / temperature))
        if learn_temperature:
            self.log_scale: Tensor = nn.Parameter(scale)
        else:
            self.register_buffer("log_scale", scale)

    def forward(self, speech: SpeechFeatures, images: ImageFeatures, image_ids: Tensor) -> dict[str, Tensor]:
        """See :meth:`Task.forward`; gives ``contrastive_loss`` and the ``temperature`` in force."""
        log_scale = self.log_scale
        scale = bounded_scale(log_scale) if isinstance(log_scale, nn.Parameter) else log_scale.float().exp()
        compare = info_nce_over_processes if _in_several_processes() else info_nce
        return {
            "contrastive_loss": compare(speech.vector, images.vector, scale, image_ids),
            "temperature": 1 / scale.detach(),
        }
