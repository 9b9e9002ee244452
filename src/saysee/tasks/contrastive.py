"""Speech-image contrastive learning: each clip's vector must find the vector of its image in the batch, and vice versa.

The loss compares every pair of a batch with every other, over all processes that train together. A batch that is too
large to encode at once goes in chunks with the loss and gradient of the whole batch: see :meth:`ContrastiveTask.cache`.

Shapes: B pairs of a batch (this process's share), C pairs of a chunk, D width of the joint space.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.tasks.base import Inputs, Task


class Chunk(Protocol):
    """Some pairs of a batch."""

    image_ids: Tensor

    def __len__(self) -> int: ...


ChunkT = TypeVar("ChunkT", bound=Chunk)


class ContrastiveTask(Task):
    """InfoNCE between the global vectors of clips and images.

    ``learn_temperature`` learns the logarithm of one over the temperature, without a bound, as SpeechCLIP does. Where
    ``among`` is set, clips are compared with these images in place of those of their batch.
    """

    name = "contrastive"

    def __init__(self, weight: float = 1.0, temperature: float = 0.07, learn_temperature: bool = False) -> None:
        super().__init__(weight)
        self.among: AllImages | None = None
        scale = torch.tensor(math.log(1 / temperature))
        if learn_temperature:
            self.log_scale: Tensor = nn.Parameter(scale)
        else:
            self.register_buffer("log_scale", scale)

    def forward(
        self, speech: SpeechFeatures, images: ImageFeatures, image_ids: Tensor, inputs: Inputs | None = None
    ) -> dict[str, Tensor]:
        """See :meth:`Task.forward`; returns ``contrastive_loss`` and the current ``temperature``."""
        del inputs
        return self._compare(speech.vector, images.vector, image_ids)

    def cache(
        self, encode: Callable[[ChunkT], tuple[SpeechFeatures, ImageFeatures, Inputs]], chunks: Sequence[ChunkT]
    ) -> list[CachedChunk]:
        """The first of two passes over a batch in chunks (GradCache, arXiv 2101.06983).

        The gradient of the loss goes through the vectors alone. So all chunks are encoded once without a graph, the
        loss of all vectors gives each vector its gradient, and in a second pass each chunk is encoded again with a
        graph, to carry that gradient to the parameters. Only the activations of one chunk are in memory at a time.

        Returns for each chunk what replaces this task in the second pass. With several processes, each must have as
        many chunks.
        """
        draws, speech, images = [], [], []
        with torch.no_grad():
            for chunk in chunks:
                draws.append(_Draws(self.log_scale.device))
                of_speech, of_images, _ = encode(chunk)
                speech.append(of_speech.vector.float())
                images.append(of_images.vector.float())
        ids = torch.cat([chunk.image_ids for chunk in chunks]).to(self.log_scale.device)
        all_speech, all_images = torch.cat(speech).requires_grad_(), torch.cat(images).requires_grad_()
        results = self._compare(all_speech, all_images, ids)
        own = [parameter for parameter in self.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(results["contrastive_loss"], [all_speech, all_images, *own])
        sizes = [len(chunk) for chunk in chunks]
        detached = {name: value.detach() for name, value in results.items()}
        with_gradients = list(zip(own, gradients[2:], strict=True))
        of_chunks = zip(draws, *(torch.split(each, sizes) for each in gradients[:2]), strict=True)
        return [
            CachedChunk(detached, len(of_speech) / len(ids), of_chunk, of_speech, of_images, with_gradients)
            for of_chunk, of_speech, of_images in of_chunks
        ]

    def _compare(self, speech: Tensor, images: Tensor, image_ids: Tensor) -> dict[str, Tensor]:
        scale = self.log_scale.float().exp()
        several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
        loss = info_nce(speech, images, scale, image_ids, self.among, over_processes=several)
        return {"contrastive_loss": loss, "temperature": 1 / scale.detach()}


@dataclass(frozen=True)
class CachedChunk:
    """What a chunk that is encoded again carries of the contrastive loss of the whole batch."""

    results: dict[str, Tensor]  # of the task for the whole batch, without graph
    share: float  # C / B
    draws: _Draws  # the random generators before the chunk was first encoded
    # speech_gradient, image_gradient: [C, D] gradients of the loss with respect to the chunk's vectors
    speech_gradient: Tensor
    image_gradient: Tensor
    own: Sequence[tuple[Tensor, Tensor]]  # the task's parameters with their gradients

    def encode_again(
        self, encode: Callable[[ChunkT], tuple[SpeechFeatures, ImageFeatures, Inputs]], chunk: ChunkT
    ) -> tuple[SpeechFeatures, ImageFeatures, Inputs]:
        """Encodes the chunk with a graph and the same dropout as before."""
        with self.draws.replayed():
            return encode(chunk)

    def losses(self, speech: SpeechFeatures, images: ImageFeatures) -> dict[str, Tensor]:
        """As :meth:`ContrastiveTask.forward`, for the chunk encoded again.

        The loss has the value of the whole batch. Its gradient is such that the mean over all chunks, weighted by their
        :attr:`share`, is the gradient of the whole batch.
        """
        carried = (speech.vector.float() * self.speech_gradient).sum()
        carried = carried + (images.vector.float() * self.image_gradient).sum()
        carried = carried / self.share
        for parameter, gradient in self.own:
            carried = carried + (parameter * gradient).sum()
        # The difference is exactly 0: only its gradient counts.
        return {**self.results, "contrastive_loss": self.results["contrastive_loss"] + (carried - carried.detach())}


class _Draws:
    """The state of torch's random generators, of the CPU and of a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Goes back to this state for a ``with`` block, and then to the state before it."""
        with torch.random.fork_rng(devices=[self._device] if self._cuda is not None else []):
            torch.set_rng_state(self._cpu)
            if self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda, self._device)
            yield


@dataclass(frozen=True)
class AllImages:
    """The images of a whole training split, which each clip is compared with in place of those of its batch."""

    vectors: Tensor  # [M, D] unit vectors, without gradient
    ids: Tensor  # [M] int, ascending

    def to(self, device: torch.device) -> AllImages:
        """On a device."""
        return AllImages(self.vectors.to(device), self.ids.to(device))


def info_nce(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float,
    ids: Tensor,
    among: AllImages | None = None,
    *,
    over_processes: bool = False,
) -> Tensor:
    """The mean of InfoNCE in both directions, in fp32: a scalar, 0 at best.

    Row i of ``a`` [B, D] belongs to row i of ``b`` [B, D], both of any length. Rows that share an id are neither
    positives nor negatives of each other. Zero vectors give log B. Source: arXiv 2210.00705, equation 1, with its
    same-image mask.

    Args:
        scale: one over the temperature.
        ids: [B] int.
        among: what ``a`` is compared with instead of ``b``; it has every id.
        over_processes: compare with the rows of all processes, which must call it at once with the same B; ids number
            the same images in every process. The mean over processes is the loss of all rows in one process, and so is
            the mean of the gradients of parameters: each row gets the gradient of all processes' losses.
    """
    with torch.autocast(a.device.type, enabled=False):
        own_a, own_b = functional.normalize(a.float(), dim=-1), functional.normalize(b.float(), dim=-1)
        places = torch.arange(len(ids), device=ids.device)
        all_a, all_b, all_ids = own_a, own_b, ids
        if over_processes:
            all_a, all_b = _gather(torch.cat([own_a, own_b], dim=1)).chunk(2, dim=1)
            all_ids = _gather(ids)
            places = places + distributed.get_rank() * len(ids)
        if among is None:
            found = _find(own_a, all_b, scale, ids, all_ids, places)
        else:
            found = _find(own_a, among.vectors, scale, ids, among.ids, torch.searchsorted(among.ids, ids))
        return (found + _find(own_b, all_a, scale, ids, all_ids, places)) / 2


def _find(
    queries: Tensor, candidates: Tensor, scale: Tensor | float, ids: Tensor, candidate_ids: Tensor, places: Tensor
) -> Tensor:
    """Cross-entropy of each query's own candidate, which is at its place, without the others of the same id."""
    same = ids[:, None] == candidate_ids[None, :]
    same[torch.arange(len(ids), device=ids.device), places] = False
    return functional.cross_entropy((scale * queries @ candidates.T).masked_fill(same, -torch.inf), places)


def _gather(rows: Tensor) -> Tensor:
    """[B, ...] rows of each of W processes to [W * B, ...], in the order of ranks, with gradient."""
    from torch.distributed.nn.functional import all_gather

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 recommends a private module that 2.6 does not have
        return torch.cat(all_gather(rows))  # type: ignore[no-untyped-call]
