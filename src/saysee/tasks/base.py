"""What a task is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from saysee.model.features import ImageFeatures, SpeechFeatures


class Task(nn.Module, ABC):
    """Features in, named scalars out.

    A subclass implements :meth:`forward`, which returns ``{name_loss: scalar, ...}``. Every key that ends in ``_loss``
    is multiplied by the task's weight and summed into the training loss; other keys are only logged. A task may own
    parameters (they train with the head) and may use the model's fusion encoder, which its constructor receives.
    """

    name: str

    def __init__(self, weight: float, start_step: int = 0, warmup_steps: int = 0) -> None:
        super().__init__()
        self.weight = weight
        self.start_step = start_step
        self.warmup_steps = warmup_steps

    def weight_at(self, step: int) -> float:
        """The weight of the losses at a step: 0 up to ``start_step``, then rising over ``warmup_steps``."""
        if step < self.start_step:
            return 0.0
        if step >= self.start_step + self.warmup_steps:
            return self.weight
        return self.weight * (step - self.start_step) / self.warmup_steps

    @abstractmethod
    def forward(self, speech: SpeechFeatures, images: ImageFeatures, image_ids: Tensor) -> dict[str, Tensor]:
        """The losses of B pairs, of which row i of both sides and of ``image_ids`` [B] int is one.

        Pairs with the same id show the same image and are not negatives of each other.
        """

    def diagnose(self, speech: SpeechFeatures, images: ImageFeatures, image_ids: Tensor) -> dict[str, float]:
        """Metrics of a validation batch that show whether the task does what it is for; none by default."""
        del speech, images, image_ids
        return {}
