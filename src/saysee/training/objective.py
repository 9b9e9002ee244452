"""From a recipe to a model, its tasks, the scalar that is minimized, and the parameter groups of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from saysee.data.loader import Batch
from saysee.errors import ConfigError
from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.model.pretrained.configuration import CLIPConfig, HubertConfig
from saysee.model.retriever import SpeechImageModel
from saysee.settings.recipe import FusionConfig, OptimizerSettings, Recipe, SpeechNoiseSettings
from saysee.tasks.base import Inputs, Task
from saysee.tasks.contrastive import CachedChunk, ContrastiveTask
from saysee.tasks.denoising import DenoisingTask
from saysee.tasks.matching import MatchingTask
from saysee.tasks.noise import with_gaps
from saysee.training.data import FeatureBatch

TrainingBatch = Batch | FeatureBatch


class Objective(nn.Module):
    """Model and tasks as one module: a batch in, the training loss and named metrics out."""

    def __init__(
        self, model: SpeechImageModel, tasks: Mapping[str, Task], speech_noise: SpeechNoiseSettings | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.speech_noise = speech_noise or SpeechNoiseSettings()
        self.tasks = nn.ModuleDict(dict(tasks))

    def forward(
        self, batch: TrainingBatch, weights: Mapping[str, float], cached: CachedChunk | None = None
    ) -> dict[str, Tensor]:
        """The results of all tasks for B pairs, and ``loss``: the weighted sum of every ``*_loss``.

        A task of weight 0 is not computed. For a chunk of a larger batch, ``cached`` is what :meth:`cache` returned for
        it: the contrastive loss is then that of the whole batch; other tasks see the pairs of the chunk.
        """
        speech, images, inputs = self.features(batch) if cached is None else cached.encode_again(self.features, batch)
        results: dict[str, Tensor] = {}
        loss = torch.zeros((), device=batch.image_ids.device)
        for name, task in self._tasks():
            if weights[name] == 0:
                continue
            if cached is not None and isinstance(task, ContrastiveTask):
                of_task = cached.losses(speech, images)
            else:
                of_task = task(speech, images, batch.image_ids, inputs)
            results |= of_task
            for key, value in of_task.items():
                if key.endswith("_loss"):
                    loss = loss + weights[name] * value
        return {**results, "loss": loss}

    def features(self, batch: TrainingBatch) -> tuple[SpeechFeatures, ImageFeatures, Inputs]:
        """The features of both sides, from waveforms and pixels or from cached features, and what they are made of.

        In training, speech has gaps, but not among what it is made of.
        """
        speech, pixels = self.model.speech_encoder, batch.pixels
        if isinstance(batch, FeatureBatch):
            states, mask = speech.layer_mix(batch.states), batch.frame_mask
            images = ImageFeatures(vector=batch.vectors, patches=batch.patches)
        else:
            hidden, mask = speech.layer_states(batch.waveforms, batch.speech_mask)
            states, images = speech.layer_mix(hidden), self.model.image_encoder(batch.pixels)
        inputs = Inputs(self.model, states, mask, pixels)
        if self.model.training and self.speech_noise.clips:
            states = with_gaps(states, mask, batch.image_ids, self.speech_noise, speech.frame_seconds)
        return speech.head(states, mask), images, inputs

    def cache(self, chunks: Sequence[TrainingBatch]) -> list[CachedChunk]:
        """The first pass over a batch in chunks: see :meth:`ContrastiveTask.cache`."""
        task = self.tasks["contrastive"]
        assert isinstance(task, ContrastiveTask)
        return task.cache(lambda chunk: self.features(chunk.to(self.model.device)), chunks)

    def weights_at(self, step: int) -> dict[str, float]:
        """The weight of each task at an optimizer step."""
        return {name: task.weight_at(step) for name, task in self._tasks()}

    @torch.no_grad()
    def diagnose(
        self, speech: SpeechFeatures, images: ImageFeatures, image_ids: Tensor, inputs: Inputs
    ) -> dict[str, float]:
        """The tasks' own metrics of a validation batch."""
        of_tasks = (task.diagnose(speech, images, image_ids, inputs) for _, task in self._tasks())
        return {key: value for of_task in of_tasks for key, value in of_task.items()}

    def _tasks(self) -> list[tuple[str, Task]]:
        return [(name, task) for name, task in self.tasks.items() if isinstance(task, Task)]


def build_objective(recipe: Recipe) -> Objective:
    """The model and the tasks of a recipe, ready to train; errors of :func:`build_model`."""
    model = build_model(recipe)
    return Objective(model, build_tasks(recipe, model), recipe.speech_noise)


def build_model(recipe: Recipe) -> SpeechImageModel:
    """The model of a recipe. The same seed gives the same encoders and head with and without a fusion encoder.

    Raises SaySeeError if an encoder cannot be loaded, or has fewer layers than are to be trained.
    """
    settings = recipe.model
    torch.manual_seed(recipe.training.seed)
    speech = _encoder(settings.speech, {"model_type": "hubert"}, HubertConfig.of, "model.speech")
    image = _encoder(settings.image, {"model_type": "clip_vision_model"}, CLIPConfig.of, "model.image")
    fusion = _fusion_config(recipe) if recipe.denoising.weight or recipe.matching.weight else None
    try:
        model = SpeechImageModel.from_encoders(speech, image, text=settings.text, head=recipe.head, fusion=fusion)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # values that make no encoder
        raise ConfigError(f"model.speech, model.image: {' '.join(str(error).split())}") from error
    model.frozen_dropout = settings.frozen_dropout
    model.set_trainable(settings.speech_trainable, settings.image_trainable)
    return model


def build_tasks(recipe: Recipe, model: SpeechImageModel) -> dict[str, Task]:
    """The tasks whose weight is not 0, for a model of :func:`build_model`."""
    tasks: dict[str, Task] = {}
    if recipe.contrastive.weight:
        settings = recipe.contrastive
        tasks["contrastive"] = ContrastiveTask(settings.weight, settings.temperature, settings.learn_temperature)
    if recipe.denoising.weight:
        assert model.fusion is not None
        tasks["denoising"] = DenoisingTask(
            recipe.denoising,
            model.fusion,
            width=model.config.projection_dim,
            patch_width=model.config.vision_config.hidden_size,
            fusion_width=recipe.fusion.width,
        )
    if recipe.matching.weight:
        assert model.fusion is not None
        tasks["matching"] = MatchingTask(recipe.matching.weight, model.fusion, recipe.contrastive.temperature)
    return tasks


def _encoder(value: str | dict[str, Any], kind: dict[str, str], of: Callable[..., Any], setting: str) -> Any:
    """The name of a checkpoint unchanged, or the configuration that a mapping of values describes."""
    if not isinstance(value, dict):
        return value
    try:
        return of(kind | value)
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from None


def _fusion_config(recipe: Recipe) -> FusionConfig:
    fusion = replace(recipe.fusion, matching=recipe.matching.weight > 0)
    if not recipe.denoising.weight:
        return fusion
    query, noise = recipe.denoising.query, recipe.denoising.noise
    # With noise on both sides, each is the query once; attention maps then use speech as the query.
    if query == "noisy":
        query = "image" if noise == "image" else "speech"
    # DenoisingTask does not show the query side's vector where that side is noisy.
    withheld = recipe.denoising.query in (noise, "noisy")
    return replace(fusion, query=query, global_token=recipe.denoising.front if withheld else "vector")


def parameter_groups(objective: Objective, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """The optimizer's groups: the rest, and the trained parts of the encoders. Frozen parameters are in none.

    Each carries ``peak_lr``, the learning rate at the end of the warm-up.
    """
    groups: dict[float, list[Any]] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            encoder = name.startswith(("model.speech_encoder.hubert.", "model.image_encoder."))
            groups.setdefault(settings.encoder_lr if encoder else settings.lr, []).append(parameter)
    return [{"params": parameters, "peak_lr": peak, "lr": 0.0} for peak, parameters in groups.items()]


def learning_rate_factor(step: int, steps: int, settings: OptimizerSettings) -> float:
    """The learning rate at an optimizer step (0 is the first), as a share of its peak.

    It depends on the step alone, so a resumed run needs no state for it.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    left = 1 - (step - settings.warmup_steps) / max(steps - settings.warmup_steps, 1)
    left = max(left, 0.0)
    return left if settings.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
