"""Where the batches of a training come from: the files of a manifest, or cached features of frozen encoders."""

from __future__ import annotations

from pathlib import Path

from saysee.data.loader import Batch, ResumableLoader, SpeechImageLoader
from saysee.data.manifest import Manifest
from saysee.encoding.cache import FeatureCache
from saysee.encoding.encoder import Encoder
from saysee.encoding.precision import Arithmetic, Precision
from saysee.model.retriever import SpeechImageModel
from saysee.settings.recipe import Recipe
from saysee.training.features import (
    FeatureBatch,
    FeatureLoader,
    RowFeatures,
    cache_features,
    feature_cache,
    why_recomputed,
)
from saysee.training.processes import Processes


class TrainingData:
    """The training and validation splits of a recipe.

    Args:
        recipe: every setting.
        manifest: of the corpus.
        model: prepares files, and computes cached features.
        processes: that share each batch.
        arithmetic: of the training.

    Raises:
        SaySeeError: a split is missing, or a setting does not fit the data.

    Attributes:
        train_rows, val_rows: the rows of the splits.
        files: the loader of the training split's files.
        recomputed: why features are recomputed at each step; None when they can be cached.
        cache: of the features of both splits, once :meth:`cache_features` has computed them.
    """

    def __init__(
        self, recipe: Recipe, manifest: Manifest, model: SpeechImageModel, processes: Processes, arithmetic: Arithmetic
    ) -> None:
        self._recipe, self._manifest, self._model = recipe, manifest, model
        self._processes, self._arithmetic = processes, arithmetic
        self.train_rows = manifest.select(recipe.data.train_split, "--data.train_split")
        self.val_rows = manifest.select(recipe.data.val_split, "--data.val_split")
        self.files = self._file_loader()
        self.recomputed = why_recomputed(recipe, self.files.plan, model.config.speech_config)
        self.cache: FeatureCache | None = None
        self._feature_loader: FeatureLoader | None = None

    @property
    def loader(self) -> ResumableLoader[Batch] | ResumableLoader[FeatureBatch]:
        """The loader to train with: of cached features once they are computed, else of files; the same rows in the same
        order."""
        return self._feature_loader or self.files

    def cache_features(self) -> Path:
        """Computes what is missing of the features, which must not be :attr:`recomputed`.

        Returns:
            The folder of the features.

        Raises:
            ConfigError: the features would take more disk space than allowed or free.
            MediaError: a file cannot be used, and bad files are not to be skipped.
        """
        # The other ranks find the features computed; on a machine that does not share the folder, they compute them.
        train, self.cache = self._processes.on_rank_0_first(self._cached_features)
        rank, count = self._processes.rank, self._processes.count
        self._feature_loader = FeatureLoader(self.files.plan, self.train_rows, train, rank, count)
        return self.cache.folder

    def val_batch(self) -> Batch | FeatureBatch:
        """One batch of validation images, each with a clip, of at most the batch size."""
        rows = Manifest(self.val_rows.images()[: self._recipe.data.batch_size], self.val_rows.root)
        data, processor = self._recipe.data, self._model.processor
        files = SpeechImageLoader(
            rows,
            prepare_speech=processor.prepare_speech,
            prepare_image=processor.prepare_image,
            batch_size=data.batch_size,
            seed=self._recipe.training.seed,
            bucket_batches=data.bucket_batches,
            on_bad_file=data.on_bad_file,
            drop_last=False,
        )
        if self.cache is None:
            return next(iter(files))
        encoder = Encoder(self._model, cache=self.cache)
        (features,) = cache_features([(encoder, rows, False)], self._model, progress=False)
        return next(iter(FeatureLoader(files.plan, rows, features))).float()

    def _cached_features(self) -> tuple[RowFeatures, FeatureCache]:
        """The features of the training split, and the cache that has those of the validation split too."""
        cache = feature_cache(self._recipe.features, self._manifest.root)
        # Training reads features in its own precision, validation as every evaluation does.
        precision: Precision = "autocast" if self._arithmetic == "bf16" else "fp32"
        train = Encoder(self._model, precision=precision, cache=cache)
        skip = self._recipe.data.on_bad_file == "skip"
        wanted = [(train, self.train_rows, skip), (Encoder(self._model, cache=cache), self.val_rows, False)]
        return cache_features(wanted, self._model)[0], cache

    def _file_loader(self) -> SpeechImageLoader:
        data, processor = self._recipe.data, self._model.processor
        return SpeechImageLoader(
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
