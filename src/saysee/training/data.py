"""Where the batches of a training come from: the files of a manifest, or kept features of frozen encoders."""

from __future__ import annotations

from pathlib import Path

from saysee.data.loader import Batch, ResumableLoader, SpeechImageLoader, build_loader
from saysee.data.manifest import Manifest
from saysee.encoding.precision import Arithmetic
from saysee.model.retriever import SpeechImageModel
from saysee.settings.recipe import Recipe
from saysee.training.feature_loader import FeatureBatch, FeatureLoader
from saysee.training.features import KeptFeatures, keep_features, why_recomputed
from saysee.training.processes import Processes


class TrainingData:
    """The training and validation splits of a recipe.

    Args:
        recipe: every setting.
        manifest: of the corpus.
        model: prepares files, and computes kept features.
        processes: that share each batch.
        arithmetic: of the training.

    Raises:
        SaySeeError: a split is missing, or a setting does not fit the data.

    Attributes:
        train_rows, val_rows: the rows of the splits.
        files: the loader of the training split's files.
        recomputed: why features are recomputed at each step; None when they can be kept.
        val_features: kept features of the validation split, once :meth:`keep_features` has computed them.
    """

    def __init__(
        self, recipe: Recipe, manifest: Manifest, model: SpeechImageModel, processes: Processes, arithmetic: Arithmetic
    ) -> None:
        self._recipe, self._manifest, self._model = recipe, manifest, model
        self._processes, self._arithmetic = processes, arithmetic
        self.train_rows = manifest.select(recipe.data.train_split)
        self.val_rows = manifest.select(recipe.data.val_split)
        self.files = self._file_loader()
        self.recomputed = why_recomputed(recipe, self.files.plan)
        self.val_features: KeptFeatures | None = None
        self._feature_loader: FeatureLoader | None = None

    @property
    def loader(self) -> ResumableLoader[Batch] | ResumableLoader[FeatureBatch]:
        """The loader to train with: of kept features once they are computed, else of files; the same rows in the same
        order."""
        return self._feature_loader or self.files

    def keep_features(self) -> Path:
        """Computes what is missing of the features, which must not be :attr:`recomputed`.

        Returns:
            The folder of the features.

        Raises:
            ConfigError: the features would take more disk space than allowed or free.
            MediaError: a file cannot be used, and bad files are not to be skipped.
        """
        # The other ranks find the features computed; on a machine that does not share the folder, they compute them.
        train, self.val_features, bad = self._processes.on_rank_0_first(self._kept_features)
        rank, count = self._processes.rank, self._processes.count
        self._feature_loader = FeatureLoader(self.files.plan, self.train_rows, train, bad, rank, count)
        return train.folder

    def val_batch(self) -> Batch | FeatureBatch:
        """One batch of validation images, each with a clip, of at most the batch size."""
        rows = Manifest(self.val_rows.images()[: self._recipe.data.batch_size], self.val_rows.root)
        data, processor = self._recipe.data, self._model.processor
        files = build_loader(
            rows,
            prepare_speech=processor.prepare_speech,
            prepare_image=processor.prepare_image,
            batch_size=data.batch_size,
            seed=self._recipe.training.seed,
            bucket_batches=data.bucket_batches,
            on_bad_file=data.on_bad_file,
            drop_last=False,
        )
        if self.val_features is None:
            return next(iter(files))
        return next(iter(FeatureLoader(files.plan, rows, self.val_features, {})))

    def _kept_features(self) -> tuple[KeptFeatures, KeptFeatures, dict[str, str]]:
        """Complete features of the training and validation splits, and the skipped files."""
        data, settings = self._recipe.data, self._recipe.features

        def features(arithmetic: Arithmetic) -> KeptFeatures:
            return KeptFeatures(self._model, settings, self._manifest.root, arithmetic, workers=data.workers)

        train = features(self._arithmetic)
        val = features("fp32")  # validation is scored in fp32, as every evaluation is
        bad = keep_features(
            [(train, self.train_rows, data.on_bad_file == "skip"), (val, self.val_rows, False)], settings
        )
        return train, val, bad

    def _file_loader(self) -> SpeechImageLoader:
        data, processor = self._recipe.data, self._model.processor
        return build_loader(
            self.train_rows,
            prepare_speech=processor.prepare_speech,
            prepare_image=processor.prepare_image,
            batch_size=data.batch_size,
            seed=self._recipe.training.seed,
            workers=data.workers,
            crop_seconds=data.crop_seconds,
            bucket_batches=data.bucket_batches,
            on_bad_file=data.on_bad_file,
            cache_images=data.cache_images_mb * 2**20,
            rank=self._processes.rank,
            world_size=self._processes.count,
        )
