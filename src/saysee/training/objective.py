"""From a recipe to a model, its tasks, and the one number that is minimised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, HubertConfig

from saysee.data.loader import Batch
from saysee.errors import ConfigError
from saysee.model.configuration import FusionConfig, HeadConfig
from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.model.retriever import SpeechImageModel
from saysee.settings.recipe import Recipe
from saysee.tasks.base import Task
from saysee.tasks.contrastive import ContrastiveTask
from saysee.tasks.denoising import DenoisingTask
from saysee.training.chunks import Chunk
from saysee.training.feature_loader import FeatureBatch


def build_model(recipe: Recipe) -> SpeechImageModel:
    """The model that a recipe asks for, ready to train.

    The same seed gives the same encoders and head whether or not a task brings the fusion encoder.

    Raises:
        SaySeeError: an encoder cannot be loaded, or has fewer layers than shall be trained.
    """
    settings = recipe.model
    torch.manual_seed(recipe.training.seed)
    speech = _encoder(HubertConfig, settings.speech, "model.speech")
    image = _encoder(CLIPVisionConfig, settings.image, "model.image")
    head = HeadConfig(
        layers=settings.head_layers,
        heads=settings.head_heads,
        feedforward=settings.head_feedforward,
        dropout=settings.head_dropout,
        normalize_hidden_states=settings.normalize_hidden_states,
        speech_layers=settings.speech_layers,
    )
    try:
        model = SpeechImageModel.from_encoders(speech, image, text=settings.text, head=head)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # values that make no encoder
        raise ConfigError(f"model.speech, model.image: {' '.join(str(error).split())}") from error
    model.set_trainable(settings.speech_trainable, settings.image_trainable)
    return model


def _encoder(kind: Any, value: str | dict[str, Any], setting: str) -> Any:
    """A place of a checkpoint as it is, or the configuration that a mapping of values describes."""
    if not isinstance(value, dict):
        return value
    try:
        return kind(**value)
    except Exception as error:  # transformers raises kinds of its own for a value of a wrong type
        raise ConfigError(f"{setting}: not a {kind.__name__}: {' '.join(str(error).split())}") from error


def build_tasks(recipe: Recipe, model: SpeechImageModel) -> dict[str, Task]:
    """The tasks whose weight is not 0. Denoising gives the model its fusion encoder; off, there is none."""
    tasks: dict[str, Task] = {}
    if recipe.contrastive.weight:
        settings = recipe.contrastive
        tasks["contrastive"] = ContrastiveTask(settings.weight, settings.temperature, settings.learn_temperature)
    if recipe.denoising.weight:
        model.add_fusion(_fusion_config(recipe))
        assert model.fusion is not None
        tasks["denoising"] = DenoisingTask(
            recipe.denoising,
            model.fusion,
            width=model.config.projection_dim,
            patch_width=model.config.vision_config.hidden_size,
            fusion_width=recipe.fusion.width,
        )
    return tasks


def _fusion_config(recipe: Recipe) -> FusionConfig:
    query, noise = recipe.denoising.query, recipe.denoising.noise
    # With both sides noisy in turn each asks once; the pictures of attention then read speech as the query.
    asks = query if query != "noisy" else ("image" if noise == "image" else "speech")
    # DenoisingTask withholds the asker's vector where the asker is the noisy side.
    withheld = query in (noise, "noisy")
    return FusionConfig(
        **vars(recipe.fusion), query=asks, global_token=recipe.denoising.front if withheld else "vector"
    )


class Objective(nn.Module):
    """Model and tasks as one module: a batch in, the training loss and every named figure out.

    Args:
        model: the model.
        tasks: the tasks by name.
    """

    def __init__(self, model: SpeechImageModel, tasks: Mapping[str, Task]) -> None:
        super().__init__()
        self.model = model
        self.tasks = nn.ModuleDict(dict(tasks))

    def weights_at(self, step: int) -> dict[str, float]:
        """Each task's weight at an optimiser step."""
        return {name: task.weight_at(step) for name, task in self._tasks()}

    def features(self, batch: Batch | FeatureBatch) -> tuple[SpeechFeatures, ImageFeatures]:
        """The features of both sides, from files' contents or from kept features."""
        if isinstance(batch, FeatureBatch):
            speech = self.model.speech_encoder.from_layer_states(batch.states, batch.frame_mask)
            return speech, ImageFeatures(vector=batch.vectors, patches=batch.patches)
        features: tuple[SpeechFeatures, ImageFeatures] = self.model(batch.waveforms, batch.speech_mask, batch.pixels)
        return features

    def forward(
        self, batch: Batch | FeatureBatch, weights: Mapping[str, float], chunk: Chunk | None = None
    ) -> dict[str, Tensor]:
        """The figures of a batch; ``loss`` is the weighted sum of every ``*_loss``.

        Args:
            batch: B pairs.
            weights: each task's weight; a task at 0 is not computed.
            chunk: the pairs are a chunk of a batch whose tasks on vectors are computed already: they are left out, and
                ``surrogate`` is a scalar whose gradient is the chunk's share of the whole batch's.
        """
        if chunk is None:
            speech, images = self.features(batch)
            return self._figures(speech, images, batch.image_ids, weights)
        with chunk.random.replayed():
            speech, images = self.features(batch)
        figures = self._figures(speech, images, batch.image_ids, weights, on_vectors=False)
        return {**figures, "surrogate": chunk.share * figures["loss"] + chunk.carried(speech.vector, images.vector)}

    def vectors(self, batch: Batch | FeatureBatch) -> tuple[Tensor, Tensor]:
        """The global vectors [B, D] of clips and pictures."""
        speech, images = self.features(batch)
        return speech.vector, images.vector

    def on_vectors(
        self, speech: Tensor, images: Tensor, image_ids: Tensor, weights: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """The figures of those tasks that read the global vectors [B, D] alone."""
        nothing = speech.new_empty(len(speech), 0, speech.shape[1])
        mask = torch.empty(nothing.shape[:2], dtype=torch.bool, device=speech.device)
        return self._figures(
            SpeechFeatures(speech, nothing, mask), ImageFeatures(images, nothing), image_ids, weights, on_vectors=True
        )

    def parameters_on_vectors(self, weights: Mapping[str, float]) -> list[Tensor]:
        """The trained parameters that are those tasks' own."""
        return [
            parameter
            for name, task in self._tasks()
            if task.on_vectors and weights[name]
            for parameter in task.parameters()
            if parameter.requires_grad
        ]

    @torch.no_grad()
    def diagnose(self, speech: SpeechFeatures, images: ImageFeatures, image_ids: Tensor) -> dict[str, float]:
        """What each task says of itself on the features of a validation batch."""
        return {
            key: value for _, task in self._tasks() for key, value in task.diagnose(speech, images, image_ids).items()
        }

    def _figures(
        self,
        speech: SpeechFeatures,
        images: ImageFeatures,
        image_ids: Tensor,
        weights: Mapping[str, float],
        on_vectors: bool | None = None,
    ) -> dict[str, Tensor]:
        """What the tasks in force give, and ``loss``, the weighted sum; with ``on_vectors``, only those that do, or do
        not, read vectors alone."""
        figures: dict[str, Tensor] = {}
        total = torch.zeros((), device=image_ids.device)
        for name, task in self._tasks():
            if weights[name] == 0 or on_vectors not in (None, task.on_vectors):
                continue
            for key, value in task(speech, images, image_ids).items():
                figures[key] = value
                if key.endswith("_loss"):
                    total = total + weights[name] * value
        return {**figures, "loss": total}

    def _tasks(self) -> list[tuple[str, Task]]:
        return [(name, task) for name, task in self.tasks.items() if isinstance(task, Task)]
