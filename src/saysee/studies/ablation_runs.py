"""The parts of an ablation's run that have a process of their own, and the training data of its sizes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saysee.data.manifest import Manifest
from saysee.settings.reading import load_recipe
from saysee.settings.recipe import Recipe
from saysee.studies.ablation_table import images_in_share
from saysee.training.log_records import read_metrics

BREAKDOWN = ("novel_pair", "hard_twin")


def cache_features(recipe: Recipe) -> None:
    """Caches the features of frozen encoders; the first run would otherwise need more memory than the others."""
    from saysee.training.trainer import Trainer

    Trainer(recipe, name="ablate").cache_features()


def score_run(folder: Path, split: str) -> dict[str, Any]:
    """Scores the best model of a finished run on a split of its manifest.

    Returns:
        ``evaluation``, from ``EvaluationResult.to_dict``, and ``measures``: its main values and the cost of training,
        without those that the corpus or the row does not have.
    """
    from saysee.encoding.encoder import Encoder
    from saysee.evaluation.protocols import evaluate
    from saysee.training.features import feature_cache

    recipe = load_recipe(folder / "recipe.yaml")
    manifest = Manifest.read(recipe.data.manifest)
    cached = recipe.features.keep != "off" and is_frozen(recipe)  # other features are of no use to another run
    cache = feature_cache(recipe.features, manifest.root) if cached else None
    encoder = Encoder(folder / "best", recipe.training.device, cache=cache)
    by = [column for column in BREAKDOWN if column in manifest.extra_columns]
    evaluation = evaluate(encoder, manifest, split=split, by=by, resamples=0, texts=False).to_dict()
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {"measures": _measures(evaluation, result, _attention_lift(folder, result)), "evaluation": evaluation}


def share_of_images(manifest: Manifest, split: str, share: float) -> Manifest:
    """The manifest with a share of the images of one split, each with all its clips; other splits are whole.

    The choice depends on nothing but the image ids, and a smaller share is part of a larger one. At least one image
    stays.
    """
    ids = {row.image_id for row in manifest.select(split)}
    drawn = sorted(ids, key=lambda image_id: hashlib.sha256(image_id.encode("utf-8", "surrogateescape")).digest())
    kept = set(drawn[: images_in_share(len(ids), share)])
    return Manifest([row for row in manifest if row.split != split or row.image_id in kept], manifest.root)


def is_frozen(recipe: Recipe) -> bool:
    """Whether both encoders are frozen."""
    return recipe.model.speech_trainable == 0 and recipe.model.image_trainable == 0


def _measures(evaluation: Mapping[str, Any], result: Mapping[str, Any], lift: float | None) -> dict[str, float]:
    overall, twins = evaluation["overall"], evaluation["twin_accuracy"]
    novel = evaluation["by"].get("novel_pair", {}).get("True")
    found = {
        "mean_R@1": overall["mean_R@1"],
        **{
            f"{way}_R@{k}": overall[way][f"R@{k}"]
            for way in ("speech_to_image", "image_to_speech")
            for k in (1, 5, 10)
            if overall[way] is not None
        },
        "hard_twins": twins and twins["accuracy"],
        "novel_pairs_R@1": novel and novel["speech_to_image"]["R@1"],
        "attention_lift": lift,
        **{name: result[name] for name in ("steps", "best_step", "training_seconds", "seconds_per_step")},
        "peak_memory_mib": result["peak_memory_mib"],
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _attention_lift(folder: Path, result: Mapping[str, Any]) -> float | None:
    """The lift on validation images at the best step; None without a fusion encoder."""
    for line in read_metrics(folder):
        if line["kind"] == "val" and line["step"] == result["best_step"]:
            return line.get("attention_lift")
    return None
