"""What a run tells of itself in its model's folder: data, recipe, where the weights are from. The card is made of it.

It goes wherever the model goes, so it has no path of the machine that trained it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saysee.data.manifest import Manifest
from saysee.settings.recipe import Recipe, recipe_to_dict

_RUN = ("seed", "git_commit", "python", "device", "versions", "arithmetic")


def training_facts(
    recipe: Recipe, manifest: Manifest, environment: Path, step: int, figures: Mapping[str, float]
) -> dict[str, Any]:
    """The facts of a run, as JSON has them.

    Args:
        recipe: its settings.
        manifest: of its corpus.
        environment: its ``environment.json``.
        step: whose weights these are.
        figures: of the evaluation at that step.
    """
    images: dict[str, int] = {}
    for row in manifest.images():
        images[row.split] = images.get(row.split, 0) + 1
    settings = recipe_to_dict(recipe)
    settings["data"]["manifest"] = Path(recipe.data.manifest).name
    del settings["output"], settings["features"]
    for side in ("speech", "image"):
        place = settings["model"][side]
        if isinstance(place, str) and (Path(place).is_absolute() or Path(place).is_dir()):
            settings["model"][side] = Path(place).name
    path = Path(recipe.data.manifest)
    surroundings = json.loads(environment.read_text(encoding="utf-8"))
    return {
        "data": {
            "name": path.absolute().parent.name if path.stem == "manifest" else path.stem,
            "splits": {split: {"clips": clips, "images": images[split]} for split, clips in manifest.splits().items()},
            "languages": sorted({row.language for row in manifest if row.language}),
            "speakers": len({row.speaker for row in manifest if row.speaker}),
        },
        "recipe": settings,
        "best": {"step": step, "split": recipe.data.val_split, "mean_R@1": figures["mean_R@1"]},
        "run": {name: surroundings.get(name) for name in _RUN},
    }
