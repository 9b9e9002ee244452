"""Signs of failure: what to look at in a run that goes wrong without an error.

They are the three that the method's authors name: a reconstruction no better than without the other modality, a
contrastive loss that has stopped falling, and attention that does not fall on the region spoken of.
"""

from __future__ import annotations

from collections.abc import Mapping

FUSION_MARGIN = 0.02
"""The reconstruction loss must be lower by this share than with another image's features."""
PLATEAU_FALL = 0.01
"""Between two evaluations the contrastive loss must fall by this share."""
ATTENTION_LIFT = 1.05
"""Attention on the object spoken of must be this many times what a uniform attention would put there."""


def find_signs(figures: Mapping[str, float], previous_contrastive: float | None, progress: float) -> dict[str, str]:
    """The signs that show at an evaluation.

    Args:
        figures: the evaluation's figures: ``reconstruction_*``, ``contrastive_loss`` (mean since the last evaluation),
            ``attention_lift``; what is missing is not judged.
        previous_contrastive: ``contrastive_loss`` at the evaluation before.
        progress: share of the steps that is done, 0 to 1. Attention is judged from the half on.

    Returns:
        Sign to one sentence of explanation.
    """
    signs = {}
    loss = figures.get("reconstruction_loss")
    for side, other in (("clean", "the other modality"), ("noisy", "the noisy features")):
        without = figures.get(f"reconstruction_without_{side}")
        if loss is not None and without is not None and without - loss < FUSION_MARGIN * abs(loss):
            signs[f"fusion_ignores_{side}"] = (
                f"the reconstruction ({loss:.3f}) is hardly better than with another image's {side} side "
                f"({without:.3f}): the fusion encoder makes little use of {other}"
            )
    contrastive = figures.get("contrastive_loss")
    if (
        contrastive is not None
        and previous_contrastive is not None
        and previous_contrastive - contrastive < PLATEAU_FALL * previous_contrastive
    ):
        signs["contrastive_plateau"] = (
            f"the contrastive loss has stopped falling ({previous_contrastive:.3f}, now {contrastive:.3f})"
        )
    lift = figures.get("attention_lift")
    if lift is not None and progress >= 0.5 and lift < ATTENTION_LIFT:
        signs["attention_off_object"] = (
            f"attention does not fall on the object spoken of: {lift:.2f} times what uniform attention would put there"
        )
    return signs
