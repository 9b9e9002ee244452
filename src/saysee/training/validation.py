"""Evaluation during training: recall on the validation split, the tasks' own metrics, and signs of failure."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from saysee.encoding.encoder import Encoder
from saysee.evaluation.localization import attention_on_rows
from saysee.evaluation.protocols import evaluate
from saysee.settings.recipe import Recipe
from saysee.training.data import TrainingData
from saysee.training.objective import Objective

FUSION_MARGIN = 0.02
"""The reconstruction loss must be lower by this share than with another image's features."""
PLATEAU_FALL = 0.01
"""Between two evaluations the contrastive loss must fall by this share."""
ATTENTION_LIFT = 1.05
"""Attention on the object spoken of must be this many times what uniform attention would put there."""


def validate(objective: Objective, data: TrainingData, recipe: Recipe) -> dict[str, float]:
    """Recall in percent, and the tasks' own metrics; leaves the objective in training mode."""
    objective.model.eval()
    encoder = Encoder(objective.model, cache=data.cache)
    result = evaluate(encoder, data.val_rows, split=recipe.data.val_split, resamples=0, progress=False, texts=False)
    scores = result.overall.to_dict()
    ways = ("speech_to_image", "image_to_speech")
    recall = {f"{way}/R@{k}": scores[way][f"R@{k}"] for way in ways for k in (1, 5, 10)}
    recall |= {f"mean_R@{k}": sum(scores[way][f"R@{k}"] for way in ways) / 2 for k in (1, 10)}
    diagnosis = _diagnose(objective, data)
    objective.train()
    return {**recall, **diagnosis}


@torch.no_grad()
def _diagnose(objective: Objective, data: TrainingData) -> dict[str, float]:
    """The tasks' own metrics on a batch of validation images, and the attention on the object spoken of."""
    model, rows = objective.model, data.val_rows.images()
    batch = data.val_batch().to(model.device)
    speech, images = objective.features(batch)
    metrics = objective.diagnose(speech, images, batch.image_ids)
    if model.fusion is not None and {"words", "objects"} <= set(data.val_rows.extra_columns):
        maps = model.fusion.attend(speech, images)
        attention = attention_on_rows(
            [of_clip[mask] for of_clip, mask in zip(maps, speech.mask, strict=True)],
            [rows[row] for row in batch.rows],
            model.speech_encoder.frame_seconds,
        )
        if attention is not None:
            metrics |= {"attention_mass": attention.mass, "attention_lift": attention.lift}
    return metrics


def find_signs(metrics: Mapping[str, float], previous_contrastive: float | None, progress: float) -> dict[str, str]:
    """Signs of failure: what to look at in a run that goes wrong without an error.

    They are the three that the method's authors name: a reconstruction no better than without the other modality, a
    contrastive loss that has stopped falling, and attention that is not on the region spoken of.

    Args:
        metrics: of an evaluation: ``reconstruction_*``, ``contrastive_loss`` (mean since the previous evaluation),
            ``attention_lift``; what is missing is not judged.
        previous_contrastive: ``contrastive_loss`` at the previous evaluation.
        progress: share of the steps that is done, 0 to 1. Attention is judged from one half on.

    Returns:
        Sign to one sentence of explanation.
    """
    signs = {}
    loss = metrics.get("reconstruction_loss")
    for side, other in (("clean", "the other modality"), ("noisy", "the noisy features")):
        without = metrics.get(f"reconstruction_without_{side}")
        if loss is not None and without is not None and without - loss < FUSION_MARGIN * abs(loss):
            signs[f"fusion_ignores_{side}"] = (
                f"the reconstruction loss ({loss:.3f}) is hardly lower than with the {side} side of another image "
                f"({without:.3f}): the fusion encoder makes little use of {other}"
            )
    contrastive = metrics.get("contrastive_loss")
    if (
        contrastive is not None
        and previous_contrastive is not None
        and previous_contrastive - contrastive < PLATEAU_FALL * previous_contrastive
    ):
        signs["contrastive_plateau"] = (
            f"the contrastive loss has stopped falling ({previous_contrastive:.3f}, now {contrastive:.3f})"
        )
    lift = metrics.get("attention_lift")
    if lift is not None and progress >= 0.5 and lift < ATTENTION_LIFT:
        signs["attention_off_object"] = (
            f"attention is not on the object spoken of: {lift:.2f} times what uniform attention would put there"
        )
    return signs
