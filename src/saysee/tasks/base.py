"""What a task is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.model.retriever import SpeechImageModel


@dataclass(frozen=True)
class Inputs:
    """What the features of a batch are made of, to make them again from noisy tokens."""

    model: SpeechImageModel
    # states, mask: [B, F, S] and [B, F], what HuBERT gives to the head
    states: Tensor
    mask: Tensor
    pixels: Tensor | None  # [B, 3, H, W]; None where image features are cached and no task needs more

    def speech(self, change: Callable[[Tensor, Tensor], Tensor]) -> SpeechFeatures:
        """The features of the states that ``change`` makes of the states and their mask."""
        return self.model.speech_encoder.head(change(self.states, self.mask), self.mask)  # type: ignore[no-any-return]

    def images(self, change: Callable[[Tensor], Tensor], *, middle: bool) -> ImageFeatures:
        """The features where ``change`` is applied to the patches before the first or the middle layer."""
        layer = self.model.config.vision_config.num_hidden_layers // 2 if middle else 0
        return self.model.image_encoder(self.pixels, change, layer)  # type: ignore[no-any-return]


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
    def forward(
        self, speech: SpeechFeatures, images: ImageFeatures, image_ids: Tensor, inputs: Inputs | None = None
    ) -> dict[str, Tensor]:
        """The losses of B pairs, of which row i of both sides and of ``image_ids`` [B] int is one.

        Pairs with the same id show the same image and are not negatives of each other. ``inputs`` are needed by a task
        that makes features again.
        """

    def diagnose(
        self, speech: SpeechFeatures, images: ImageFeatures, image_ids: Tensor, inputs: Inputs | None = None
    ) -> dict[str, float]:
        """Metrics of a validation batch that show whether the task does what it is for; none by default."""
        del speech, images, image_ids, inputs
        return {}
