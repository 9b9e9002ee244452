"""Batches of kept features, in the order of the file loader that they stand in for.

Shapes: B batch, F frames, N kept hidden states, S width of HuBERT, P patches, V width of the vision transformer, D
width of the joint space.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saysee.data.loader import Loaded, Plan, ResumableLoader
from saysee.data.manifest import Manifest

if TYPE_CHECKING:
    from saysee.training.features import KeptFeatures

AHEAD = 2
"""Batches gathered ahead of the training step."""


@dataclass(slots=True)
class FeatureBatch:
    """Some clips with their pictures, as the encoders give them.

    Attributes:
        states: [N, B, F, S] the hidden states that the head mixes, zero where a clip has ended.
        frame_mask: [B, F] bool, True on real frames.
        vectors: [B, D] image vectors.
        patches: [B, P, V].
        image_ids, rows: as of :class:`saysee.data.loader.Batch`.
    """

    states: Tensor
    frame_mask: Tensor
    vectors: Tensor
    patches: Tensor
    image_ids: Tensor
    rows: list[int]

    def to(self, device: torch.device | str) -> FeatureBatch:
        """The batch on ``device``, in the arithmetic that it was computed in: what was kept as fp16 becomes fp32."""

        def move(tensor: Tensor) -> Tensor:
            moved = tensor.to(device)
            return moved.float() if moved.dtype == torch.float16 else moved

        states, vectors, patches = move(self.states), move(self.vectors), move(self.patches)
        return FeatureBatch(states, self.frame_mask.to(device), vectors, patches, self.image_ids.to(device), self.rows)

    def part(self, rows: slice) -> FeatureBatch:
        """Some of its pairs, padded as they are."""
        return FeatureBatch(
            self.states[:, rows],
            self.frame_mask[rows],
            self.vectors[rows],
            self.patches[rows],
            self.image_ids[rows],
            self.rows[rows],
        )

    def __len__(self) -> int:
        return len(self.rows)


class FeatureLoader(ResumableLoader[FeatureBatch]):
    """Batches of kept features, the same rows in the same order as the file loader whose plan it has.

    Args:
        plan: of the file loader.
        rows: the rows that the plan is of.
        kept: holds the features of all of them but the bad files'.
        bad: path and reason of each file that could not be read; rows with one are left out.
        rank: which of ``world_size`` processes this is; each gathers its share of every batch.
        world_size: processes that train together.
    """

    def __init__(
        self,
        plan: Plan,
        rows: Manifest,
        kept: KeptFeatures,
        bad: Mapping[str, str],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(plan)
        self._kept, self._unreadable = kept, bad
        self._rank, self._world_size = rank, world_size
        self._images = [str(rows.image_path(row)) for row in rows]
        numbers: dict[str, int] = {}
        self._image_ids = [numbers.setdefault(row.image_id, len(numbers)) for row in rows]

    def _load(self, epoch: int, batches: list[list[int]]) -> Iterator[Loaded[FeatureBatch]]:
        del epoch  # nothing is drawn anew
        ahead: deque[Future[Loaded[FeatureBatch]]] = deque()
        with ThreadPoolExecutor(1) as thread:
            for rows in batches:
                ahead.append(thread.submit(self._gather, rows[self._rank :: self._world_size]))
                if len(ahead) > AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _gather(self, rows: list[int]) -> Loaded[FeatureBatch]:
        bad: dict[str, str] = {}
        good = []
        for row in rows:
            path = next((path for path in (self.plan.clips[row], self._images[row]) if path in self._unreadable), None)
            if path is None:
                good.append(row)
            else:
                bad[path] = self._unreadable[path]
        if not good:
            return Loaded(None, bad)
        clips, images = [self.plan.clips[row] for row in good], [self._images[row] for row in good]
        ids = torch.tensor([self._image_ids[row] for row in good])
        return Loaded(self._kept.batch(clips, images, ids, good), bad)
