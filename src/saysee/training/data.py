"""Where the batches of a training come from: the files of a manifest, or cached features of frozen encoders.

Shapes: B batch, F frames, L hidden states that are mixed, S width of HuBERT, P patches, V width of the vision
transformer, D width of the joint space.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from saysee.data.loader import Batch, Loaded, Plan, ResumableLoader, SpeechImageLoader, files_checksum
from saysee.data.manifest import Manifest
from saysee.data.verify import verify
from saysee.encoding.cache import FeatureCache, gigabytes
from saysee.encoding.encoder import Encoder
from saysee.encoding.features import CachedFeatures, Missing
from saysee.encoding.precision import Arithmetic, Precision
from saysee.encoding.reading import read_ahead
from saysee.errors import ManifestError, MediaError, SaySeeError
from saysee.evaluation.localization import check_words
from saysee.model.pretrained.configuration import HubertConfig
from saysee.model.retriever import SpeechImageModel
from saysee.settings.recipe import FeatureSettings, Recipe
from saysee.tasks.contrastive import AllImages
from saysee.training.processes import Processes

logger = logging.getLogger(__name__)


class TrainingData:
    """The training and validation splits of a recipe.

    Raises SaySeeError if a split is missing, or a setting does not fit the data.

    Attributes:
        train_rows, val_rows: of the splits; :meth:`check_validation` drops those that cannot be used.
        files: the loader of files.
        recomputed: why the features of the encoders are recomputed at each step; None when they can be cached.
        cache: of the features of both splits, once :meth:`cache_features` has computed them.
    """

    def __init__(
        self, recipe: Recipe, manifest: Manifest, model: SpeechImageModel, processes: Processes, arithmetic: Arithmetic
    ) -> None:
        self._recipe, self._manifest, self._model = recipe, manifest, model
        self._processes, self._arithmetic = processes, arithmetic
        self.train_rows = manifest.select(recipe.data.train_split, "--data.train_split", recipe.data.language)
        self.val_rows = manifest.select(recipe.data.val_split, "--data.val_split", recipe.data.language)
        self.val_checksum = files_checksum(self.val_rows)
        self.files = self._loader(self.train_rows, recipe.data.workers)
        self.recomputed = why_recomputed(recipe, self.files.plan, model.config.speech_config)
        self.cache: FeatureCache | None = None
        self._feature_loader: FeatureLoader | None = None
        self._bad_of_validation: dict[str, str] | None = None

    @property
    def loader(self) -> ResumableLoader[Batch] | ResumableLoader[FeatureBatch]:
        """The loader to train with: of cached features once they are computed, else of files; the same rows in the same
        order."""
        return self._feature_loader or self.files

    def cache_features(self) -> Path:
        """Computes what is missing of the features, which must not be :attr:`recomputed`; returns their folder.

        Raises ConfigError if they would take more disk space than allowed or free, MediaError if a file cannot be used
        and bad files are not to be skipped.
        """
        # The other ranks find the features computed; on a machine that does not share the folder, they compute them.
        train, self._bad_of_validation, self.cache = self._processes.on_rank_0_first(self._cached_features)
        rank, count = self._processes.rank, self._processes.count
        self._feature_loader = FeatureLoader(self.files, train, self._recipe.denoising.needs_pixels, rank, count)
        return self.cache.folder

    def all_images(self) -> AllImages:
        """The images of the training split, by the frozen encoder, without those that are skipped.

        Raises MediaError if one cannot be used, and bad files are not to be skipped.
        """
        bad: dict[int, MediaError] | None = {} if self._recipe.data.on_bad_file == "skip" else None
        encoder = Encoder(self._model, precision=self._precision, cache=self.cache)
        paths = [str(self.train_rows.image_path(row)) for row in self.train_rows.images()]
        vectors = encoder.encode("image", paths, bad=bad)
        ids = [number for number in range(len(paths)) if number not in (bad or {})]
        return AllImages(torch.from_numpy(vectors[ids]), torch.tensor(ids))

    @property
    def _precision(self) -> Precision:
        """Training reads features in its own precision, validation as every evaluation does."""
        return "autocast" if self._arithmetic == "bf16" else "fp32"

    def check_validation(self) -> dict[str, str]:
        """Drops the rows of the validation split whose files cannot be used, before any step waits for them.

        Returns path and reason of each such file. Raises MediaError if there is one, and bad files are not to be
        skipped; SaySeeError if no row is left.
        """
        bad, split = self._bad_of_validation, self._recipe.data.val_split
        if bad is None:  # no features were computed: nothing has opened the files yet
            problems = self._processes.on_rank_0(lambda: verify(self.val_rows))
            if problems and self._recipe.data.on_bad_file == "stop":
                more = f"; {len(problems) - 1} more in this split, see 'saysee data verify'" if problems[1:] else ""
                raise MediaError(problems[0].kind, f"split {split!r}: {problems[0].message}{more}")
            bad = {problem.path: problem.message for problem in problems}
        if bad:
            paths = zip(*_paths(self.val_rows), strict=True)
            kept = [row for row, files in zip(self.val_rows, paths, strict=True) if not bad.keys() & set(files)]
            if not kept:
                raise SaySeeError(f"no file of split {split!r} can be used; see 'saysee data verify'")
            self.val_rows = Manifest(kept, self.val_rows.root)
        return bad

    @cached_property
    def has_objects(self) -> bool:
        """Whether :meth:`val_batch` has words that name objects with boxes; logs once what is wrong with them."""
        if not {"words", "objects"} <= set(self.val_rows.extra_columns):
            return False
        try:
            check_words(self.val_rows.images()[: self._recipe.data.batch_size])
        except ManifestError as error:
            logger.warning("attention on objects is not measured: %s", error)
            return False
        return True

    def val_batch(self) -> Batch | FeatureBatch:
        """One batch of validation images, each with a clip, of at most the batch size."""
        rows = Manifest(self.val_rows.images()[: self._recipe.data.batch_size], self.val_rows.root)
        files = self._loader(rows, workers=0, training=False)
        if self.cache is None:
            return next(iter(files))
        encoder = Encoder(self._model, cache=self.cache)
        (features,) = cache_features([(encoder, rows, False)], self._model, progress=False)
        return next(iter(FeatureLoader(files, features, self._recipe.denoising.needs_pixels))).float()

    def _cached_features(self) -> tuple[RowFeatures, dict[str, str], FeatureCache]:
        """The features of the training split, the bad files of the validation split, and the cache that has both."""
        cache = feature_cache(self._recipe.features, self._manifest.root)
        train = Encoder(self._model, precision=self._precision, cache=cache, augment=self._recipe.data.augment)
        skip = self._recipe.data.on_bad_file == "skip"
        wanted = [(train, self.train_rows, skip), (Encoder(self._model, cache=cache), self.val_rows, skip)]
        of_train, of_validation = cache_features(wanted, self._model)
        return of_train, of_validation.bad, cache

    def _loader(self, rows: Manifest, workers: int, training: bool = True) -> SpeechImageLoader:
        data, processor = self._recipe.data, self._model.processor
        return SpeechImageLoader(
            rows,
            prepare_speech=processor.prepare_speech,
            prepare_image=processor.prepare_image,
            batch_size=data.batch_size,
            seed=self._recipe.training.seed,
            workers=workers,
            crop_seconds=data.crop_seconds if training else None,
            augment=data.augment and training,
            bucket_batches=data.bucket_batches,
            on_bad_file=data.on_bad_file,
            drop_last=training,
            cache_images=data.cache_images_mb * 2**20 if training else 0,
            rank=self._processes.rank if training else 0,
            world_size=self._processes.count if training else 1,
        )


DROPOUTS = ("feat_proj_dropout", "hidden_dropout", "attention_dropout", "activation_dropout")
"""The settings of a ``HubertConfig`` that are on in training."""


def why_recomputed(recipe: Recipe, plan: Plan, hubert: HubertConfig) -> str | None:
    """Why a recipe's features cannot be cached, in words for people; None when they can."""
    if recipe.features.keep == "off":
        return "features.keep is off"
    for setting in ("speech_trainable", "image_trainable"):
        if (count := getattr(recipe.model, setting)) != 0:
            return f"model.{setting} is {count}, and the features of an encoder change while it is trained"
    if recipe.model.frozen_dropout and any(getattr(hubert, dropout) for dropout in DROPOUTS):
        return "model.frozen_dropout is on, and HuBERT's dropout differs at each step; set it to false to cache them"
    longest = float(plan.seconds.max())
    if plan.crop_seconds is not None and longest > plan.crop_seconds:
        crop = f"data.crop_seconds is {plan.crop_seconds:g}"
        return f"{crop}, and each step takes another part of the longest clip ({longest:.1f} s)"
    return None


def feature_cache(settings: FeatureSettings, root: Path) -> FeatureCache:
    """The cache that settings name, by default a folder beside the manifest; SaySeeError if it cannot be used."""
    return FeatureCache(Path(settings.folder) if settings.folder else root / "features", settings.limit_gb)


@dataclass(frozen=True)
class RowFeatures:
    """The cached features of some rows, position by position."""

    # clips, images: of each row
    clips: CachedFeatures
    images: CachedFeatures
    bad: dict[str, str]  # path and reason of each file that could not be used


def cache_features(
    wanted: Sequence[tuple[Encoder, Manifest, bool]], model: SpeechImageModel, *, progress: bool = True
) -> list[RowFeatures]:
    """Computes the features that are missing of some rows, once it has reported how much that is.

    ``wanted`` has an encoder with a cache, the rows, and whether files that cannot be used are skipped; all of one
    model and one cache. Raises ConfigError if the features would not fit, MediaError if a file cannot be used and is
    not to be skipped.
    """
    missing: dict[str, Missing] = {"clips": Missing([]), "images": Missing([])}
    for encoder, rows, _ in wanted:
        clips, images = _paths(rows)
        missing["clips"].files.extend(encoder.missing("clip", clips, progress).files)
        missing["images"].files.extend(encoder.missing("image", images, progress).files)
    cache = wanted[0][0].cache
    assert cache is not None
    if missing["clips"].files or missing["images"].files:
        parts = [f"{len(each.files):,} {name} ({gigabytes(each.bytes)})" for name, each in missing.items()]
        logger.info("features of the frozen encoders to compute: %s, at most %g GB", ", ".join(parts), cache.limit_gb)
        advice = _fewer_layers(model, missing["clips"].bytes)
        cache.check_room(sum(each.bytes for each in missing.values()), advice)
    found = []
    for encoder, rows, skip in wanted:
        clips, images = _paths(rows)
        bad_clips: dict[int, MediaError] | None = {} if skip else None
        bad_images: dict[int, MediaError] | None = {} if skip else None
        of_clips = encoder.encode("clip", clips, "features", bad=bad_clips, progress=progress)
        of_images = encoder.encode("image", images, "features", bad=bad_images, progress=progress)
        bad = {clips[row]: str(error) for row, error in (bad_clips or {}).items()}
        bad |= {images[row]: str(error) for row, error in (bad_images or {}).items()}
        found.append(RowFeatures(of_clips, of_images, bad))
    return found


@dataclass(slots=True)
class FeatureBatch:
    """Some clips with their images, as the frozen encoders give them."""

    states: Tensor  # [L, B, F, S] the hidden states that the head mixes, zero beyond a clip's end
    frame_mask: Tensor  # [B, F] bool, True on real frames
    vectors: Tensor  # [B, D] image vectors
    patches: Tensor  # [B, P, V]
    # image_ids, rows: as of :class:`saysee.data.loader.Batch`
    image_ids: Tensor
    rows: list[int]
    pixels: Tensor | None = None  # [B, 3, H, W] where a task makes image features again

    def to(self, device: torch.device | str) -> FeatureBatch:
        """The batch on ``device``, in the precision that it was computed in: what was kept as fp16 becomes fp32."""
        moved = self._changed(lambda tensor: tensor.to(device))
        return moved._changed(lambda tensor: tensor.float() if tensor.dtype == torch.float16 else tensor)

    def float(self) -> FeatureBatch:
        """The batch in fp32."""
        return self._changed(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)

    def part(self, rows: slice) -> FeatureBatch:
        """Some of its pairs, padded as they are."""
        some = self._changed(lambda tensor: tensor[:, rows] if tensor is self.states else tensor[rows])
        return replace(some, rows=self.rows[rows])

    def _changed(self, change: Callable[[Tensor], Tensor]) -> FeatureBatch:
        states, frame_mask, vectors = change(self.states), change(self.frame_mask), change(self.vectors)
        patches, image_ids = change(self.patches), change(self.image_ids)
        pixels = None if self.pixels is None else change(self.pixels)
        return FeatureBatch(states, frame_mask, vectors, patches, image_ids, self.rows, pixels)

    def __len__(self) -> int:
        return len(self.rows)


class FeatureLoader(ResumableLoader[FeatureBatch]):
    """Batches of cached features, the same rows in the same order as those of the file loader ``files``.

    ``features`` are of its rows; those with a bad file are skipped. ``with_pixels`` reads the images too. Each of
    ``world_size`` processes gathers its share of every batch.
    """

    def __init__(
        self,
        files: SpeechImageLoader,
        features: RowFeatures,
        with_pixels: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(files.plan)
        self._features, self._rank, self._world_size = features, rank, world_size
        self._pixels, self._with_pixels = files.pixels, with_pixels

    def _load(self, epoch: int, batches: list[list[int]]) -> Iterator[Loaded[FeatureBatch]]:
        del epoch  # features have no random crops
        shares = ([rows[self._rank :: self._world_size]] for rows in batches)
        for _, (loaded,) in read_ahead(shares, self._gather, workers=1):
            yield loaded

    def _gather(self, rows: list[int]) -> Loaded[FeatureBatch]:
        bad: dict[str, str] = {}
        good = []
        for row in rows:
            paths = (self.plan.clips[row], self._pixels.paths[row])
            path = next((path for path in paths if path in self._features.bad), None)
            if path is None:
                good.append(row)
            else:
                bad[path] = self._features.bad[path]
        if not good:
            return Loaded(None, bad)
        states, mask = self._features.clips.gather(good)
        vectors, patches = self._features.images.gather(good)
        ids = torch.tensor([self._pixels.image_ids[row] for row in good])
        pixels = torch.stack([self._pixels.read(row) for row in good]) if self._with_pixels else None
        return Loaded(FeatureBatch(states, mask, vectors, patches, ids, good, pixels), bad)


def _paths(rows: Manifest) -> tuple[list[str], list[str]]:
    return [str(rows.clip_path(row)) for row in rows], [str(rows.image_path(row)) for row in rows]


def _fewer_layers(model: SpeechImageModel, clip_bytes: int) -> str:
    """Advice to keep fewer of HuBERT's hidden states, with what they take; empty where they were chosen."""
    count = len(model.speech_encoder.layers)
    if model.config.head["speech_layers"] is not None or not clip_bytes or count == 1:
        return ""
    parts = [f"all {count} take {gigabytes(clip_bytes)}"]
    for fewer in (4, 1):
        if fewer < count:
            chosen = ", ".join(str(-number) for number in range(fewer, 0, -1))
            parts.append(f"[{chosen}] {gigabytes(clip_bytes * fewer / count)}")
    return f"keep fewer of HuBERT's hidden states by head.speech_layers ({', '.join(parts)}), "
