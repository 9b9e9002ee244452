"""A batch in chunks, with the gradient of the whole batch: what each chunk must know of the others.

Tasks on vectors (the contrastive one) compare every pair of a batch with every other, so the pairs cannot be taken one
after the other. But their gradient goes through the vectors alone. So all chunks are encoded once without a graph, the
loss of all vectors gives each vector its gradient, and then each chunk is encoded again, with a graph, to carry that on
to the parameters (GradCache, arXiv 2101.06983). Only one chunk's activations are in memory at a time. A chunk that is
encoded again draws the same dropout.

Shapes: B pairs of a batch, C pairs of a chunk, D width of the joint space.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


class RandomState:
    """Where torch's random generators are, of the processor and of a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Within a ``with`` block they are there again; afterwards, where they were before."""
        with torch.random.fork_rng(devices=[self._device] if self._cuda is not None else []):
            torch.set_rng_state(self._cpu)
            if self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda, self._device)
            yield


@dataclass(frozen=True)
class Chunk:
    """What a chunk that is encoded again carries of the whole batch.

    Attributes:
        share: C / B.
        random: the random generators before the chunk was first encoded.
        speech, images: [C, D] gradients of the tasks on vectors with respect to the chunk's vectors.
        own: parameters of these tasks with their gradients; in the last chunk of a batch, empty in the others.
    """

    share: float
    random: RandomState
    speech: Tensor
    images: Tensor
    own: Sequence[tuple[Tensor, Tensor]] = ()

    def carried(self, speech: Tensor, images: Tensor) -> Tensor:
        """A scalar whose gradient with respect to everything below the vectors [C, D] is the tasks' own."""
        carried = (speech.float() * self.speech).sum() + (images.float() * self.images).sum()
        for parameter, gradient in self.own:
            carried = carried + (parameter * gradient).sum()
        return carried


def slices(count: int, most: int) -> list[slice]:
    """0 to ``count`` in as few slices of at most ``most`` as there can be, as equal as they can be."""
    parts = -(-count // most)
    edges = [count * part // parts for part in range(parts + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(edges)]
