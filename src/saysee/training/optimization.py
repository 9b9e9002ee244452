"""Parameter groups and the learning rate's course."""

from __future__ import annotations

import math
from typing import Any

from saysee.settings.recipe import OptimizerSettings
from saysee.training.objective import Objective


def parameter_groups(objective: Objective, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """AdamW's groups: encoders and the rest, each with and without weight decay.

    Biases, norms and scalars (all that has under two dimensions) are not decayed. Frozen parameters are left out. Each
    group carries ``peak_lr``, the learning rate at the end of the warm-up.
    """
    groups: dict[tuple[bool, bool], list[Any]] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            encoder = name.startswith(("model.speech_encoder.hubert.", "model.image_encoder."))
            groups.setdefault((encoder, parameter.dim() > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "peak_lr": settings.encoder_lr if encoder else settings.lr,
            "lr": 0.0,
            "weight_decay": settings.weight_decay if decayed else 0.0,
        }
        for (encoder, decayed), parameters in groups.items()
    ]


def learning_rate_factor(step: int, steps: int, settings: OptimizerSettings) -> float:
    """The share of the peak learning rate at an optimiser step (0 is the first).

    It depends on the step alone, so a resumed run needs no state for it.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return 1.0
    left = 1 - (step - settings.warmup_steps) / max(steps - settings.warmup_steps, 1)
    left = max(left, 0.0)
    return left if settings.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))
