"""Optimiser steps: batches in, moved weights and the mean figures of all processes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from saysee.data.loader import Batch
from saysee.errors import SaySeeError
from saysee.settings.recipe import Recipe
from saysee.training.chunks import Chunk, RandomState, slices
from saysee.training.feature_loader import FeatureBatch
from saysee.training.objective import Objective
from saysee.training.optimization import learning_rate_factor, parameter_groups
from saysee.training.processes import Processes

TrainingBatch = Batch | FeatureBatch


class Steps:
    """Takes optimiser steps.

    Args:
        objective: what is minimised; moved to the device.
        recipe: every setting.
        processes: that train together.

    Attributes:
        optimizer: AdamW.
    """

    def __init__(self, objective: Objective, recipe: Recipe, processes: Processes) -> None:
        self._objective, self._recipe, self._processes = objective, recipe, processes
        self._accelerator = processes.accelerator
        self._prepared = self._accelerator.prepare_model(objective)
        self.optimizer: Any = self._accelerator.prepare_optimizer(
            torch.optim.AdamW(
                parameter_groups(objective, recipe.optimizer),
                betas=(recipe.optimizer.betas[0], recipe.optimizer.betas[1]),
            )
        )

    def take(self, batches: Iterator[TrainingBatch], step: int) -> tuple[dict[str, float], int]:
        """One step.

        Args:
            batches: this process's share of each batch.
            step: steps done.

        Returns:
            The figures, as means over processes and batches, and how many clips all processes took together.

        Raises:
            SaySeeError: the loss is not finite.
        """
        settings = self._recipe.optimizer
        factor = learning_rate_factor(step, self._recipe.training.steps, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        weights = self._objective.weights_at(step)
        sums: dict[str, float] = {}
        clips = 0
        for number in range(1, settings.accumulate + 1):
            batch = next(batches)
            clips += len(batch)
            figures = self.gradients(batch, weights, last=number == settings.accumulate)
            for key, value in figures.items():
                sums[key] = sums.get(key, 0.0) + float(value.detach()) / settings.accumulate
        means = self._processes.mean(sums)
        if not torch.isfinite(torch.tensor(means["loss"])):
            raise SaySeeError(
                f"the loss is {means['loss']} at step {step + 1}; lower optimizer.lr, or use training.precision fp32"
            )
        norm = self._accelerator.clip_grad_norm_(self._objective.parameters(), settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {**means, "gradient_norm": float(norm), "lr_factor": factor}, clips * self._processes.count

    def gradients(self, batch: TrainingBatch, weights: Mapping[str, float], last: bool) -> dict[str, Tensor]:
        """Adds the gradients of one batch; those of the ``last`` of a step go over all processes."""
        most = self._recipe.data.chunk_size
        if most is not None and len(batch) > most:
            parts = [batch.part(rows) for rows in slices(len(batch), most)]
            return self._gradients_in_chunks(parts, weights, last)
        with self._together(last):
            figures: dict[str, Tensor] = self._prepared(batch.to(self._accelerator.device), weights)
            self._backward(figures["loss"])
        return figures

    def _gradients_in_chunks(
        self, parts: list[TrainingBatch], weights: Mapping[str, float], last: bool
    ) -> dict[str, Tensor]:
        """As :meth:`gradients`, of a batch in parts; see :mod:`saysee.training.chunks`."""
        figures, chunks = self._encode(parts, weights)
        for number, (part, chunk) in enumerate(zip(parts, chunks, strict=True), 1):
            with self._together(last and number == len(parts)):
                of_part: dict[str, Tensor] = self._prepared(part.to(self._accelerator.device), weights, chunk)
                self._backward(of_part.pop("surrogate"))
            for key, value in of_part.items():
                figures[key] = figures.get(key, 0.0) + chunk.share * value.detach()
        return figures

    def _encode(
        self, parts: list[TrainingBatch], weights: Mapping[str, float]
    ) -> tuple[dict[str, Tensor], list[Chunk]]:
        """The figures of the tasks on vectors over all parts, and what each part then carries of them."""
        device = self._accelerator.device
        states, speech, images = [], [], []
        with torch.no_grad(), self._accelerator.autocast():
            for part in parts:
                states.append(RandomState(device))
                vectors = self._objective.vectors(part.to(device))
                speech.append(vectors[0].float())
                images.append(vectors[1].float())
        of_speech, of_images = torch.cat(speech).requires_grad_(), torch.cat(images).requires_grad_()
        ids = torch.cat([part.image_ids for part in parts]).to(device)
        figures = self._objective.on_vectors(of_speech, of_images, ids, weights)
        own = self._objective.parameters_on_vectors(weights)
        # Not by backward: data parallelism counts a parameter's gradient as done when backward has reached it.
        to_speech, to_images, *to_own = torch.autograd.grad(figures["loss"], [of_speech, of_images, *own])
        chunks, start = [], 0
        for part, state in zip(parts, states, strict=True):
            rows = slice(start, start + len(part))
            start = rows.stop
            of_own = list(zip(own, to_own, strict=True)) if rows.stop == len(ids) else []
            chunks.append(Chunk(len(part) / len(ids), state, to_speech[rows], to_images[rows], of_own))
        return {key: value.detach() for key, value in figures.items()}, chunks

    def _backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss / self._recipe.optimizer.accumulate)

    def _together(self, last: bool) -> AbstractContextManager[None]:
        """Gradients go over all processes in the last backward of a step; before, each adds up its own."""
        if last:
            return nullcontext()
        together: AbstractContextManager[None] = self._accelerator.no_sync(self._prepared)
        return together
