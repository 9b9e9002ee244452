"""What an evaluation during training measures: recall on the validation split, and the tasks' own figures."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from saysee.data.loader import Batch, build_loader
from saysee.data.manifest import Manifest
from saysee.evaluation.localization import attention_on_rows
from saysee.evaluation.protocols import evaluate
from saysee.model.retriever import SpeechImageModel
from saysee.settings.recipe import Recipe
from saysee.training.feature_loader import FeatureBatch, FeatureLoader
from saysee.training.features import KeptFeatures
from saysee.training.objective import Objective


class Validation:
    """Scores an objective's model on the validation split.

    Args:
        recipe: every setting.
        rows: the validation split.

    Attributes:
        kept: kept features of the split, where there are any.
    """

    def __init__(self, recipe: Recipe, rows: Manifest) -> None:
        self._recipe, self._rows = recipe, rows
        self.kept: KeptFeatures | None = None

    def figures(self, objective: Objective) -> dict[str, float]:
        """Recall in percent, and what the tasks say of themselves; leaves the objective in training mode."""
        objective.model.eval()
        encoder = self.kept or objective.model
        result = evaluate(encoder, self._rows, split=self._recipe.data.val_split, resamples=0, progress=False)
        scores = result.overall.to_dict()
        recall = {
            f"{way}/R@{k}": scores[way][f"R@{k}"] for way in ("speech_to_image", "image_to_speech") for k in (1, 5, 10)
        }
        diagnosis = self._diagnose(objective)
        objective.train()
        return {"mean_R@1": scores["mean_R@1"], **recall, **diagnosis}

    @torch.no_grad()
    def _diagnose(self, objective: Objective) -> dict[str, float]:
        """The tasks' own figures on a batch of validation pictures, and attention on the object spoken of."""
        model = objective.model
        rows = self._rows.images()[: self._recipe.data.batch_size]
        batch = self._batch_of(Manifest(rows, self._rows.root), model).to(model.device)
        speech, images = objective.features(batch)
        figures = objective.diagnose(speech, images, batch.image_ids)
        if model.fusion is not None and {"words", "objects"} <= set(self._rows.extra_columns):
            maps = model.fusion.attend(speech, images)
            found = attention_on_rows(
                [of_clip[mask] for of_clip, mask in zip(maps, speech.mask, strict=True)],
                [rows[row] for row in batch.rows],
                model.speech_encoder.frame_seconds,
            )
            if found is not None:
                figures |= {"attention_mass": found.mass, "attention_lift": found.lift}
        return figures

    def _batch_of(self, manifest: Manifest, model: SpeechImageModel) -> Batch | FeatureBatch:
        """All rows of a manifest, whole, in one batch."""
        data = self._recipe.data
        files = build_loader(
            manifest,
            prepare_speech=model.processor.prepare_speech,
            prepare_image=model.processor.prepare_image,
            batch_size=data.batch_size,
            seed=self._recipe.training.seed,
            bucket_batches=data.bucket_batches,
            on_bad_file=data.on_bad_file,
            drop_last=False,
        )
        batches: Iterator[Batch | FeatureBatch] = iter(files)
        if self.kept is not None:
            batches = iter(FeatureLoader(files.plan, manifest, self.kept, {}))
        return next(batches)
