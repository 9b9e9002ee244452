"""What frozen encoders give for each file, computed once and kept on disk for all runs.

Kept are HuBERT's hidden states that the head mixes (before their normalisation and mix, which are trained) and CLIP's
image vector with its patches. An entry is found by what it was made from: the encoder's weights and configuration, the
preprocessing, the arithmetic and the file's contents. So nothing is ever stale: what has changed has another place, and
is computed there.

Training asks for features in its own arithmetic, evaluation in fp32, each as without kept features. Hidden states of
HuBERT under bf16 autocast are kept as bf16, which they are already; all else as fp16, which has three bits more.

Shapes: B batch, F frames, N kept hidden states, S width of HuBERT, P patches, V width of the vision transformer, D
width of the joint space.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from saysee.config import FeatureSettings, Recipe
from saysee.data.loader import Loaded, Plan, ResumableLoader, clip_seconds, start_worker
from saysee.data.manifest import Manifest
from saysee.errors import ConfigError, MediaError, SaySeeError
from saysee.evaluation.protocols import EvaluationResult, evaluate
from saysee.media.audio import SAMPLE_RATE, load_audio
from saysee.media.images import load_image
from saysee.model.processor import SpeechImageProcessor
from saysee.model.retriever import SpeechImageModel
from saysee.progress import progress_bar
from saysee.training.arithmetic import Arithmetic
from saysee.training.attention_kernel import attention_kernel
from saysee.training.feature_store import FeatureStore, FileFingerprints, Values, chunks, fingerprint, folder_bytes

FORMAT = 1
"""Part of every place: raise it when this package's encoders come to give something else for the same input."""
SHARD_BYTES = 256 * 2**20
SHARD_FILES = 256
"""A shard is written when it holds so many bytes or files: at most so much is lost at a kill."""
BATCH_FILES = 32
BATCH_SECONDS = 100
"""Clips computed at once: HuBERT base's first layer takes 6.5 MB a second of sound in fp32."""
AHEAD = 2
"""Batches gathered ahead of the training step."""
PICTURE_DTYPE = torch.float16
"""CLIP's residual stream is fp32 under autocast too, and its values are small."""

Prepared = NDArray[np.float32]


def why_recomputed(recipe: Recipe, plan: Plan) -> str | None:
    """Why a recipe's features cannot be kept, in words for people; None when they can."""
    if recipe.features.keep == "off":
        return "features.keep is off"
    for setting in ("speech_trainable", "image_trainable"):
        if (count := getattr(recipe.model, setting)) != 0:
            return f"model.{setting} is {count}, and what an encoder gives changes while it is trained"
    longest = float(plan.seconds.max())
    if plan.crop_seconds is not None and longest > plan.crop_seconds:
        return (
            f"data.crop_seconds is {plan.crop_seconds:g}, and of the longest clip ({longest:.1f} s) each step hears "
            "another stretch"
        )
    return None


def evaluate_kept(
    model: SpeechImageModel,
    manifest: Manifest,
    *,
    features: FeatureSettings | None = None,
    workers: int = 1,
    split: str = "test",
    by: Sequence[str] = (),
    seed: int = 0,
    resamples: int = 1000,
    batch_size: int = 32,
    progress: bool = True,
    keep_vectors: bool = False,
) -> EvaluationResult:
    """As :func:`saysee.evaluation.protocols.evaluate`, with kept features: models that share their encoders run the
    split's files through them once, together.

    The scores are the same to the noise of fp16. The result has no times of encoding.

    Args:
        model: its encoders may have been trained; then no other model shares them.
        manifest, split, by, seed, resamples, batch_size, progress, keep_vectors: as for ``evaluate``.
        features: where features are kept, and the limit; None takes the defaults. With ``keep`` off this is
            ``evaluate``.
        workers: processes that decode what is to be computed.

    Raises:
        ConfigError: the features would grow over the limit.
        ManifestError, MediaError, SaySeeError: as for ``evaluate``.
    """
    settings = features or FeatureSettings()
    scoring: dict[str, Any] = {
        "split": split,
        "by": by,
        "seed": seed,
        "resamples": resamples,
        "batch_size": batch_size,
        "progress": progress,
        "keep_vectors": keep_vectors,
    }
    if settings.keep == "off":
        return evaluate(model, manifest, **scoring)
    rows = manifest.select(split)
    for column in by:
        rows.column(column)  # an unknown column is refused before the long work
    kept = KeptFeatures(model, settings, manifest.root, "fp32", workers=workers)
    keep_features([(kept, rows, False)], settings, progress=progress)
    return replace(
        evaluate(kept, manifest, **scoring),
        encode_speech_seconds=None,
        encode_images_seconds=None,
    )


# --- what is kept -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class FeatureBatch:
    """Some clips with their pictures, as the encoders give them.

    Attributes:
        states: [N, B, F, S] the hidden states that the head mixes, zero where a clip has ended.
        frame_mask: [B, F] bool, True on real frames.
        vectors: [B, D] image vectors.
        patches: [B, P, V].
        image_ids, rows: as of :class:`saysee.data.loader.Batch`.
    """

    states: Tensor
    frame_mask: Tensor
    vectors: Tensor
    patches: Tensor
    image_ids: Tensor
    rows: list[int]

    def to(self, device: torch.device | str) -> FeatureBatch:
        """The batch on ``device``, in the arithmetic that it was computed in: what was kept as fp16 becomes fp32."""

        def move(tensor: Tensor) -> Tensor:
            moved = tensor.to(device)
            return moved.float() if moved.dtype == torch.float16 else moved

        states, vectors, patches = move(self.states), move(self.vectors), move(self.patches)
        return FeatureBatch(states, self.frame_mask.to(device), vectors, patches, self.image_ids.to(device), self.rows)

    def __len__(self) -> int:
        return len(self.rows)


class KeptFeatures:
    """What the encoders of one model give, in one arithmetic. It is an ``Encoder`` for evaluation, too.

    Args:
        model: its encoders are used as they are now; they must not be trained while this is in use.
        settings: where features are kept.
        root: the manifest's folder.
        arithmetic: "bf16" computes under autocast; "fp32" in the model's own type, as evaluation does.
        workers: processes that decode.

    Attributes:
        folder: where the features of all runs lie.
        layers: numbers of the N hidden states that are kept.
    """

    def __init__(
        self, model: SpeechImageModel, settings: FeatureSettings, root: Path, arithmetic: Arithmetic, *, workers: int
    ) -> None:
        self.folder = Path(settings.folder) if settings.folder else root / "features"
        self.layers = model.speech_encoder.layers
        self.all_layers = model.config.head["speech_layers"] is None
        self.workers = workers
        self._model = model
        self._autocast = arithmetic == "bf16"
        rounded = self._autocast or model.dtype == torch.bfloat16
        self._clip_dtype = torch.bfloat16 if rounded else torch.float16
        vision, self._width = model.config.vision_config, model.config.speech_config.hidden_size
        self._patches = (model.config.patch_grid**2, vision.hidden_size, model.config.projection_dim)
        self._keys: dict[str, str] = {}
        about = {
            "format": FORMAT,
            "transformers": transformers.__version__,
            "arithmetic": "bf16 autocast" if self._autocast else str(model.dtype),
        }
        hubert, clip, processor = model.speech_encoder.hubert, model.image_encoder.clip, model.processor
        seen = {name: value for name, value in clip.state_dict().items() if name.startswith("vis")}
        speech = {
            **about,
            "kept as": str(self._clip_dtype),
            "hidden states": self.layers,
            "preprocessing": processor.feature_extractor.to_dict(),
            "encoder": _encoder_fingerprint(hubert.config, hubert.state_dict()),
        }
        images = {
            **about,
            "kept as": str(PICTURE_DTYPE),
            "preprocessing": processor.image_processor.to_dict(),
            "encoder": _encoder_fingerprint(vision, seen),
        }
        try:
            self._clips = _Side(
                "clips",
                _open_store(self.folder, "speech", speech),
                partial(_prepare_clip, processor),
                self._encode_clips,
                round(BATCH_SECONDS / model.speech_encoder.frame_seconds) * len(self.layers) * self._width,
            )
            self._pictures = _Side(
                "pictures",
                _open_store(self.folder, "image", images),
                partial(_prepare_image, processor),
                self._encode_pictures,
                SHARD_BYTES,
            )
            self._fingerprints = FileFingerprints(self.folder / "files.json")
        except OSError as error:
            raise SaySeeError(
                f"{self.folder}: features cannot be kept there ({error.strerror or error}); name another place by "
                "features.folder, or set features.keep to off"
            ) from None

    def missing(self, rows: Manifest, *, skip: bool, progress: bool) -> Missing:
        """The files of ``rows`` whose features are not there yet.

        Args:
            rows: rows of a manifest.
            skip: a file that cannot be read is left out; else it is refused.
            progress: show bars.
        """
        clips = [str(rows.clip_path(row)) for row in rows]
        images = [str(rows.image_path(row)) for row in rows]
        found = self._fingerprints.of([*clips, *images], progress)
        self._keys |= {path: key for path, key in found.items() if key is not None}
        new_clips = _first_of_each(clips, found, self._clips.store)
        wanted_clips: list[_Wanted] = []
        if new_clips:
            samples = np.round(clip_seconds(rows, skip=skip) * SAMPLE_RATE).astype(np.int64).tolist()
            long = dict(zip(clips, samples, strict=True))
            frames = self._model.speech_encoder.frames(torch.tensor([long[path] for path in new_clips])).clamp_min(0)
            sizes = (frames * len(self.layers) * self._width).tolist()
            wanted_clips = [_Wanted(path, found[path], size) for path, size in zip(new_clips, sizes, strict=True)]
        patches, width, vector = self._patches
        new_images = _first_of_each(images, found, self._pictures.store)
        return Missing(
            kept=self,
            clips=sorted(wanted_clips, key=lambda clip: clip.values),  # clips of like length make the least padding
            pictures=[_Wanted(path, found[path], patches * width + vector) for path in new_images],
            paths=[*clips, *images],
            skip=skip,
        )

    def compute(self, missing: Missing, *, progress: bool) -> dict[str, str]:
        """Computes and keeps what is missing.

        Returns:
            Path and reason of each file that was left out.
        """
        was_training = self._model.training
        self._model.eval()
        bad: dict[str, str] = {}
        try:
            with torch.inference_mode(), self._arithmetic():
                for side, wanted in ((self._clips, missing.clips), (self._pictures, missing.pictures)):
                    keys, refused = _compute(side, wanted, missing.skip, self.workers, progress)
                    self._keys |= keys
                    bad |= refused
        finally:
            self._model.train(was_training)
        # A file of the same contents is as bad, and was not looked at.
        reasons = {self._keys[path]: reason for path, reason in bad.items() if path in self._keys}
        return {path: reasons[self._keys[path]] for path in missing.paths if self._keys.get(path) in reasons} | bad

    def batch(self, clips: Sequence[str], images: Sequence[str], image_ids: Tensor, rows: list[int]) -> FeatureBatch:
        """The features of B clips and of their pictures, from the disk."""
        states, mask = self._gather_clips([self._clips.store.read(self._keys[path]) for path in clips])
        vectors, patches = self._gather_images([self._pictures.store.read(self._keys[path]) for path in images])
        return FeatureBatch(states, mask, vectors, patches, image_ids, rows)

    @torch.inference_mode()
    def encode_speech(
        self, clips: Sequence[os.PathLike[str]], *, batch_size: int, progress: bool
    ) -> NDArray[np.float32]:
        """Unit vectors [N, D] of clips whose features are kept, by the model's head."""
        model = self._model
        keys = [self._keys[os.fspath(path)] for path in clips]
        order = sorted(range(len(keys)), key=lambda number: self._clips.store.size(keys[number]), reverse=True)
        vectors = np.empty((len(keys), model.config.projection_dim), np.float32)
        was_training = model.training
        model.eval()
        try:
            with progress_bar("scoring clips", len(keys), enabled=progress) as bar:
                for start in range(0, len(order), batch_size):
                    numbers = order[start : start + batch_size]
                    states, mask = self._gather_clips([self._clips.store.read(keys[number]) for number in numbers])
                    speech = model.speech_encoder.from_layer_states(
                        states.to(model.device, model.dtype), mask.to(model.device)
                    )
                    vectors[numbers] = functional.normalize(speech.vector.float(), dim=-1).cpu().numpy()
                    bar.advance(len(numbers))
        finally:
            model.train(was_training)
        return vectors

    def encode_images(
        self, pictures: Sequence[os.PathLike[str]], *, batch_size: int, progress: bool
    ) -> NDArray[np.float32]:
        """Unit vectors [N, D] of pictures whose features are kept."""
        del progress  # they only have to be read
        parts = []
        for start in range(0, len(pictures), batch_size):
            paths = [os.fspath(path) for path in pictures[start : start + batch_size]]
            vectors, _ = self._gather_images([self._pictures.store.read(self._keys[path]) for path in paths])
            parts.append(functional.normalize(vectors.float(), dim=-1))
        return torch.cat(parts).numpy()

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """That of a training step, down to the attention kernel: in bf16 another one rounds otherwise."""
        if not self._autocast:
            yield
            return
        device = self._model.device.type
        with torch.autocast(device, torch.bfloat16), attention_kernel(device, bf16=True):
            yield

    def _encode_clips(self, clips: list[Prepared]) -> list[Tensor]:
        """Prepared clips to [N * F * S] of each clip's own frames."""
        model = self._model
        waveforms, mask = model.processor.pad(clips)
        states, frame_mask = model.speech_encoder.layer_states(
            waveforms.to(model.device, model.dtype), mask.to(model.device)
        )
        stacked = torch.stack([_rounded(state, self._clip_dtype) for state in states], dim=1)
        return [
            of_clip[:, :frames].flatten() for of_clip, frames in zip(stacked, frame_mask.sum(1).tolist(), strict=True)
        ]

    def _encode_pictures(self, pictures: list[Prepared]) -> list[Tensor]:
        """Prepared pictures to [D + P * V]: vector and patches."""
        model = self._model
        images = model.image_encoder(torch.from_numpy(np.stack(pictures)).to(model.device, model.dtype))
        return list(_rounded(torch.cat([images.vector, images.patches.flatten(1)], dim=1), PICTURE_DTYPE))

    def _gather_clips(self, items: list[Values]) -> tuple[Tensor, Tensor]:
        """Flat values of clips to [N, B, F, S] and [B, F]."""
        layers, width = len(self.layers), self._width
        clips = [item.reshape(layers, -1, width) for item in items]
        frames = torch.tensor([clip.shape[1] for clip in clips])
        longest = int(frames.max())
        states = np.empty((layers, len(clips), longest, width), np.int16)
        for number, clip in enumerate(clips):
            states[:, number, : clip.shape[1]] = clip
            states[:, number, clip.shape[1] :] = 0
        return torch.from_numpy(states).view(self._clip_dtype), torch.arange(longest) < frames[:, None]

    def _gather_images(self, items: list[Values]) -> tuple[Tensor, Tensor]:
        """Flat values of pictures to [B, D] and [B, P, V]."""
        patches, width, vector = self._patches
        values = torch.from_numpy(np.stack(items)).view(PICTURE_DTYPE)
        return values[:, :vector], values[:, vector:].reshape(-1, patches, width)


class FeatureLoader(ResumableLoader[FeatureBatch]):
    """Batches of kept features, the same rows in the same order as the file loader whose plan it has.

    Args:
        plan: of the file loader.
        rows: the rows that the plan is of.
        kept: holds the features of all of them but the bad files'.
        bad: path and reason of each file that could not be read; rows with one are left out.
    """

    def __init__(self, plan: Plan, rows: Manifest, kept: KeptFeatures, bad: Mapping[str, str]) -> None:
        super().__init__(plan)
        self._kept, self._unreadable = kept, bad
        self._images = [str(rows.image_path(row)) for row in rows]
        numbers: dict[str, int] = {}
        self._image_ids = [numbers.setdefault(row.image_id, len(numbers)) for row in rows]

    def _load(self, epoch: int, batches: list[list[int]]) -> Iterator[Loaded[FeatureBatch]]:
        del epoch  # nothing is drawn anew
        ahead: deque[Future[Loaded[FeatureBatch]]] = deque()
        with ThreadPoolExecutor(1) as thread:
            for rows in batches:
                ahead.append(thread.submit(self._gather, rows))
                if len(ahead) > AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _gather(self, rows: list[int]) -> Loaded[FeatureBatch]:
        bad: dict[str, str] = {}
        good = []
        for row in rows:
            path = next((path for path in (self.plan.clips[row], self._images[row]) if path in self._unreadable), None)
            if path is None:
                good.append(row)
            else:
                bad[path] = self._unreadable[path]
        if not good:
            return Loaded(None, bad)
        clips, images = [self.plan.clips[row] for row in good], [self._images[row] for row in good]
        ids = torch.tensor([self._image_ids[row] for row in good])
        return Loaded(self._kept.batch(clips, images, ids, good), bad)


# --- computing it -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Wanted:
    """A file whose features are to be computed: its path, its key (None if it cannot be read), and how many values its
    features will have."""

    path: str
    key: str | None
    values: int


@dataclass(frozen=True)
class _Side:
    """One encoder and where its features go.

    Attributes:
        what: what its files are called.
        store: where its features lie.
        prepare: a file to what the encoder takes; picklable.
        encode: a batch of these to the features of each, flat.
        batch_values: values of a batch.
    """

    what: str
    store: FeatureStore
    prepare: Callable[[Any], Prepared]
    encode: Callable[[list[Prepared]], list[Tensor]]
    batch_values: int


@dataclass(frozen=True)
class Missing:
    """What is to be computed.

    Attributes:
        kept: where it goes.
        clips, pictures: the files, one of each content.
        paths: all files that were asked for.
        skip: files that cannot be read are left out.
    """

    kept: KeptFeatures
    clips: list[_Wanted]
    pictures: list[_Wanted]
    paths: list[str]
    skip: bool


def keep_features(
    wanted: Sequence[tuple[KeptFeatures, Manifest, bool]], settings: FeatureSettings, *, progress: bool = True
) -> dict[str, str]:
    """Computes what is missing of the features of some rows, once it has said how much that is.

    Two runs that want the same at once share the work: each takes notice of the shards that the other has finished.

    Args:
        wanted: features, the rows that they are wanted of, and whether files that cannot be read are left out; else
            the first one is refused. All in one folder.
        settings: the limit.
        progress: show bars.

    Returns:
        Path and reason of each file that was left out.

    Raises:
        ConfigError: the folder would grow over the limit, or over what is free on its disk.
        MediaError: a file cannot be read and is not to be left out.
    """
    todo = [kept.missing(rows, skip=skip, progress=progress) for kept, rows, skip in wanted]
    clips = [clip.values for missing in todo for clip in missing.clips]
    images = [picture.values for missing in todo for picture in missing.pictures]
    if not clips and not images:
        return {}
    folder, held = wanted[0][0].folder, folder_bytes(wanted[0][0].folder)
    need = 2 * (sum(clips) + sum(images))
    print(
        f"features of frozen encoders: {len(clips):,} clips ({_gigabytes(2 * sum(clips))}) and {len(images):,} "
        f"pictures ({_gigabytes(2 * sum(images))}) to compute; {folder} then holds {_gigabytes(held + need)} of at "
        f"most {settings.limit_gb:g} GB",
        file=sys.stderr,
    )
    choices = _layer_choices(wanted[0][0], 2 * sum(clips))
    if choices:
        print(f"features of frozen encoders: of HuBERT's hidden states, {choices}", file=sys.stderr)
    fewer = f"keep fewer of HuBERT's hidden states by model.speech_layers ({choices}), " if choices else ""
    if held + need > settings.limit_gb * 1e9:
        raise ConfigError(
            f"{folder} would hold {_gigabytes(held + need)} of features, over features.limit_gb "
            f"({settings.limit_gb:g}); raise it, {fewer}or set features.keep to off"
        )
    free = shutil.disk_usage(folder).free
    if need > free:
        raise ConfigError(
            f"{folder} needs {_gigabytes(need)} for features, and {_gigabytes(free)} are free on its disk; make room, "
            f"name another place by features.folder, {fewer}or set features.keep to off"
        )
    bad: dict[str, str] = {}
    for missing in todo:
        bad |= missing.kept.compute(missing, progress=progress)
    return bad


def _layer_choices(kept: KeptFeatures, clip_bytes: int) -> str:
    """What all, the last four and the last one of HuBERT's hidden states take; empty where they were chosen."""
    count = len(kept.layers)
    if not kept.all_layers or not clip_bytes or count == 1:
        return ""
    parts = [f"all {count} take {_gigabytes(clip_bytes)}"]
    for fewer in (4, 1):
        if fewer < count:
            chosen = ", ".join(str(-number) for number in range(fewer, 0, -1))
            parts.append(f"[{chosen}] {_gigabytes(clip_bytes * fewer / count)}")
    return ", ".join(parts)


def _gigabytes(size: float) -> str:
    """Bytes for people, in GB of 10 to the 9th bytes."""
    return f"{size / 1e9:.3g} GB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def _open_store(folder: Path, side: str, about: dict[str, Any]) -> FeatureStore:
    place = fingerprint(json.dumps(about, sort_keys=True, default=str).encode())
    return FeatureStore(folder / f"{side}-{place[:16]}", about)


def _encoder_fingerprint(config: Any, weights: Mapping[str, Tensor]) -> str:
    """A fingerprint of all that an encoder computes from: its configuration's values and its weights."""
    # What names where a model came from, or how fast it shall be, changes nothing that it gives.
    aside = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "_attn_implementation"}
    values = {name: value for name, value in config.to_dict().items() if name not in aside}
    parts: list[bytes | memoryview] = [json.dumps(values, sort_keys=True, default=str).encode()]
    for name, weight in sorted(weights.items()):
        flat = weight.detach().cpu().contiguous().flatten()
        parts += [f"{name} {weight.dtype} {tuple(weight.shape)}".encode(), flat.view(torch.uint8).numpy().data]
    return fingerprint(*parts)


def _first_of_each(paths: Sequence[str], found: Mapping[str, str | None], store: FeatureStore) -> list[str]:
    """A path of each content that the store lacks, and each path that cannot be read: computing says why."""
    first: dict[str, str] = {}
    for path in paths:
        key = found[path]
        if key is None or key not in store:
            first.setdefault(key or path, path)
    return list(first.values())


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = values.to(dtype)
    if not torch.isfinite(rounded).all():
        largest = values.abs().max().item()
        raise SaySeeError(
            f"an encoder gives a value of {largest:.3g}, which {dtype} cannot keep; set features.keep to off"
        )
    return rounded


@dataclass
class _Prepared:
    """What a worker makes of some files of a shard: for each its path, its key, and what it holds or why it was
    refused."""

    shard: int
    files: list[tuple[str, str, Prepared | tuple[str, str]]]


@dataclass
class _Files(Dataset[_Prepared]):
    """Reads and prepares files; a copy of it lives in each worker."""

    prepare: Callable[[Any], Prepared]

    def __getitem__(self, request: tuple[int, list[str]]) -> _Prepared:
        shard, paths = request
        return _Prepared(shard, [(path, *self._read(path)) for path in paths])

    def _read(self, path: str) -> tuple[str, Prepared | tuple[str, str]]:
        try:
            try:
                # Read once, so that fingerprint and features are of the same contents.
                content = Path(path).read_bytes()
            except (OSError, ValueError):
                return "", self.prepare(Path(path))  # refuses it in its own words
            return fingerprint(content), self.prepare(_Named(content, path))
        except MediaError as error:
            return "", (error.kind, str(error))


class _Named(io.BytesIO):
    """The contents of a file, under the name that messages call it by."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


def _prepare_clip(processor: SpeechImageProcessor, source: Any) -> Prepared:
    return processor.prepare_speech(load_audio(source))


def _prepare_image(processor: SpeechImageProcessor, source: Any) -> Prepared:
    pixels: Prepared = processor.prepare_image(load_image(source)).numpy()
    return pixels


def _compute(
    side: _Side, wanted: Sequence[_Wanted], skip: bool, workers: int, progress: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """Runs files through an encoder into its store, shard by shard.

    Returns:
        Path and key of each file that was computed; path and reason of each that was left out.
    """
    keys: dict[str, str] = {}
    bad: dict[str, str] = {}
    if not wanted:
        return keys, bad
    with progress_bar(f"features of {side.what}", len(wanted), enabled=progress) as bar:
        loader: DataLoader[_Prepared] = DataLoader(
            _Files(side.prepare),
            batch_size=None,
            sampler=_Requests(side, wanted, bar.advance),
            num_workers=workers,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # its own, so that this does not move torch's global one
        )
        shard, arrays = -1, dict[str, Values]()
        try:
            for prepared in loader:
                if prepared.shard != shard:
                    side.store.write(arrays)
                    shard, arrays = prepared.shard, {}
                good = []
                for path, key, content in prepared.files:
                    if isinstance(content, np.ndarray):
                        good.append((key, content))
                        keys[path] = key
                    elif skip:
                        bad[path] = content[1]
                    else:
                        raise MediaError(*content)
                if good:
                    features = side.encode([content for _, content in good])
                    for (key, _), values in zip(good, features, strict=True):
                        arrays[key] = values.cpu().contiguous().view(torch.int16).numpy()
                bar.advance(len(prepared.files))
        finally:
            side.store.write(arrays)  # when it is broken off too, what is done stays
    return keys, bad


class _Requests:
    """The sampler: what is not yet there of each shard to make, in batches."""

    def __init__(self, side: _Side, wanted: Sequence[_Wanted], already: Callable[[int], None]) -> None:
        self._side, self._wanted, self._already = side, wanted, already

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        shards = chunks([file.values for file in self._wanted], SHARD_BYTES // 2, SHARD_FILES)
        # Two runs that start at once begin at different shards, so that each finds some of the other's done.
        first = secrets.randbelow(len(shards))
        for shard in [*range(first, len(shards)), *range(first)]:
            self._side.store.refresh()
            files = [self._wanted[number] for number in shards[shard]]
            left = [file for file in files if file.key is None or file.key not in self._side.store]
            self._already(len(files) - len(left))
            for batch in chunks([file.values for file in left], self._side.batch_values, BATCH_FILES):
                yield shard, [left[number].path for number in batch]
