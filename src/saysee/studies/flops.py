"""Floating-point operations of a training step, by part of the model: those of matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from saysee.data.loader import Batch
from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.tasks.contrastive import ContrastiveTask
from saysee.tasks.denoising import DenoisingTask
from saysee.training.dry_run import as_cached
from saysee.training.objective import TrainingBatch
from saysee.training.trainer import Trainer, slices

SPEECH, IMAGE, HEAD = "speech encoder", "image encoder", "speech head"
CONTRASTIVE, FUSION, LOSS, REST = "contrastive loss", "fusion encoder", "denoising loss", "rest"


def count_flops(compute: Callable[[], Any]) -> int:
    """FLOPs of calling ``compute``, and of the backward pass through the tensors that it returns.

    They are its result, or in a tuple, list or dictionary of it; those without gradient are ignored. A product of
    [A, B] and [B, C] counts 2ABC. Attention is computed in its plain form, as the counter does not know the fast
    kernels of CPUs.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = compute()
        outputs = list(result.values()) if isinstance(result, dict) else result
        outputs = outputs if isinstance(outputs, tuple | list) else [outputs]
        trained = [each for each in outputs if isinstance(each, Tensor) and each.requires_grad]
        if trained:
            torch.autograd.backward(trained, [torch.ones_like(each) for each in trained])
    return int(counter.get_total_flops())


def flops_of_step(trainer: Trainer, batches: Sequence[TrainingBatch]) -> dict[str, int]:
    """FLOPs by part, forward and backward, of an optimizer step on its accumulated batches, which is taken.

    Each part runs alone on what it gets in a step, so that its backward pass is its own. "rest" is what the whole step
    takes beyond the parts: with ``data.chunk_size``, the first of the two passes over each chunk.
    """
    parts = dict.fromkeys((SPEECH, IMAGE, HEAD, CONTRASTIVE, FUSION, LOSS), 0)
    with trainer.accelerator.autocast():
        for batch in batches:
            encoded = []
            for rows in slices(len(batch), trainer.recipe.data.chunk_size or len(batch)):
                encoded.append(_add_chunk(parts, trainer, batch.part(rows).to(trainer.accelerator.device)))
            _add_contrastive(parts, trainer, encoded)
    trainer.optimizer.zero_grad()
    whole = count_flops(partial(trainer.step, iter(batches), trainer.recipe.training.steps - 1))
    parts[REST] = whole - sum(parts.values())
    return {part: count for part, count in parts.items() if count}


Encoded = tuple[SpeechFeatures, ImageFeatures, Tensor]


def _add_chunk(parts: dict[str, int], trainer: Trainer, batch: TrainingBatch) -> Encoded:
    """Adds what a chunk costs but for the contrastive loss; returns its features as the tasks get them."""
    objective, model = trainer.objective, trainer.model
    cached = batch
    if isinstance(batch, Batch):
        parts[SPEECH] += count_flops(lambda: model.speech_encoder.layer_states(batch.waveforms, batch.speech_mask)[0])
        parts[IMAGE] += count_flops(lambda: vars(model.image_encoder(batch.pixels)))
        cached = as_cached(trainer, batch)
        if trainer.recipe.model.speech_trainable:
            cached.states.requires_grad_()
        if trainer.recipe.model.image_trainable:
            cached.vectors.requires_grad_()
            cached.patches.requires_grad_()
    parts[HEAD] += count_flops(lambda: objective.features(cached)[0].vector)
    speech, images = objective.features(cached)
    vector, frames = (each.detach().requires_grad_() for each in (speech.vector, speech.frames))
    speech = replace(speech, vector=vector, frames=frames)
    arguments = speech, images, batch.image_ids
    for task in objective.tasks.values():
        if not isinstance(task, DenoisingTask):
            continue
        fused = sum(count_flops(partial(task.reconstruct, side, *arguments)) for side in task.noisy_sides)
        parts[FUSION] += fused
        parts[LOSS] += count_flops(partial(task, *arguments)) - fused
    return arguments


def _add_contrastive(parts: dict[str, int], trainer: Trainer, encoded: Sequence[Encoded]) -> None:
    """Adds the contrastive loss of a whole batch."""
    own = torch.cat([speech.vector for speech, *_ in encoded]).detach().requires_grad_()
    other = torch.cat([images.vector for _, images, _ in encoded])
    # Gradients of vectors are computed for chunks even where no encoder is trained.
    other = other.detach().requires_grad_(len(encoded) > 1 or other.requires_grad)
    vectors = replace(encoded[0][0], vector=own), replace(encoded[0][1], vector=other)
    ids = torch.cat([of_chunk for *_, of_chunk in encoded])
    for task in trainer.objective.tasks.values():
        if isinstance(task, ContrastiveTask):
            parts[CONTRASTIVE] += count_flops(partial(task, *vectors, ids))
