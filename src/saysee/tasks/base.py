"""What a task is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from saysee.model.features import ImageFeatures, SpeechFeatures


class Task(nn.Module, ABC):
    """Features in, named scalars out.

    A subclass implements :meth:`forward` and returns ``{name_loss: scalar, ...}``: every key that ends in ``_loss`` is
    multiplied by the task's weight and summed into the training loss; other keys are only logged. A task may own
    parameters (they train with the head) and may use the model's fusion encoder, which it is given when it is made.

    Args:
        weight: weight of the losses when the task is in full force.
        start_step: step before which the weight is 0.
        warmup_steps: steps over which the weight then rises linearly.

    Attributes:
        on_vectors: the task reads the global vectors alone. Then it sees all pairs of the batch even where encoding
            them takes several chunks (``data.chunk_size``); another task sees the pairs of a chunk.
    """

    name: str
    on_vectors = False

    def __init__(self, weight: float, start_step: int = 0, warmup_steps: int = 0) -> None:
        super().__init__()
        self.weight = weight
        self.start_step = start_step
        self.warmup_steps = warmup_steps

    def weight_at(self, step: int) -> float:
        """The weight of the losses at an optimiser step (0 is the first)."""
        if step < self.start_step:
            return 0.0
        if step >= self.start_step + self.warmup_steps:
            return self.weight
        return self.weight * (step - self.start_step) / self.warmup_steps

    @abstractmethod
    def forward(self, speech: SpeechFeatures, images: ImageFeatures, image_ids: Tensor) -> dict[str, Tensor]:
        """The losses of one batch of B pairs.

        Args:
            speech: features of the clips.
            images: features of the pictures, row by row the clips' own.
            image_ids: [B] int; pairs that share one show the same picture and are no negatives of each other.
        """

    def diagnose(self, speech: SpeechFeatures, images: ImageFeatures, image_ids: Tensor) -> dict[str, float]:
        """Figures of a validation batch that tell whether the task does what it is for; none by default."""
        del speech, images, image_ids
        return {}
