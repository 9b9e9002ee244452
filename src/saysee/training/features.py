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

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
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

from saysee.data.loader import Plan, clip_seconds
from saysee.data.manifest import Manifest
from saysee.encoding.cache import FeatureStore, FileFingerprints, Values, folder_bytes
from saysee.encoding.precision import Arithmetic
from saysee.encoding.streams import Streams, takes_several
from saysee.errors import ConfigError, SaySeeError
from saysee.evaluation.protocols import EvaluationResult, evaluate
from saysee.files import fingerprint
from saysee.log import progress_bar
from saysee.media.audio import SAMPLE_RATE
from saysee.model.retriever import SpeechImageModel
from saysee.settings.recipe import FeatureSettings, Recipe
from saysee.training.attention_kernel import attention_kernel
from saysee.training.feature_computing import (
    SHARD_BYTES,
    Prepared,
    Side,
    Wanted,
    compute_side,
    prepare_clip,
    prepare_image,
)
from saysee.training.feature_loader import FeatureBatch

FORMAT = 1
"""Part of every place: raise it when this package's encoders come to give something else for the same input."""
BATCH_SECONDS = 100
"""Clips computed at once: HuBERT base's first layer takes 6.5 MB a second of sound in fp32."""
PICTURE_DTYPE = torch.float16
"""CLIP's residual stream is fp32 under autocast too, and its values are small."""


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
        self._streams: Streams | None = None  # while features are computed
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
            self._clips = Side(
                "clips",
                _open_store(self.folder, "speech", speech),
                partial(prepare_clip, processor),
                self._encode_clips,
                round(BATCH_SECONDS / model.speech_encoder.frame_seconds) * len(self.layers) * self._width,
            )
            self._pictures = Side(
                "pictures",
                _open_store(self.folder, "image", images),
                partial(prepare_image, processor),
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
        wanted_clips: list[Wanted] = []
        if new_clips:
            samples = np.round(clip_seconds(rows, skip=skip) * SAMPLE_RATE).astype(np.int64).tolist()
            long = dict(zip(clips, samples, strict=True))
            frames = self._model.speech_encoder.frames(torch.tensor([long[path] for path in new_clips])).clamp_min(0)
            sizes = (frames * len(self.layers) * self._width).tolist()
            wanted_clips = [Wanted(path, found[path], size) for path, size in zip(new_clips, sizes, strict=True)]
        patches, width, vector = self._patches
        new_images = _first_of_each(images, found, self._pictures.store)
        return Missing(
            kept=self,
            clips=sorted(wanted_clips, key=lambda clip: clip.values),  # clips of like length make the least padding
            pictures=[Wanted(path, found[path], patches * width + vector) for path in new_images],
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
            # The attention kernel of a training step, in all threads: in bf16 another one rounds otherwise.
            with self._beside_each_other(), attention_kernel(self._model.device.type, self._autocast):
                for side, wanted in ((self._clips, missing.clips), (self._pictures, missing.pictures)):
                    keys, refused = compute_side(side, wanted, missing.skip, self.workers, progress)
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
    def _beside_each_other(self) -> Iterator[None]:
        """Lets a small HuBERT on a processor run several times at once."""
        if self._model.device.type != "cpu" or not takes_several(self._model.config.speech_config):
            yield
            return
        self._streams = Streams()
        try:
            yield
        finally:
            self._streams.close()
            self._streams = None

    @contextmanager
    def _forward_pass(self) -> Iterator[None]:
        """What torch must be told in each thread that runs the model: no gradients, and the arithmetic."""
        with torch.inference_mode(), torch.autocast(self._model.device.type, torch.bfloat16, enabled=self._autocast):
            yield

    def _encode_clips(self, clips: list[Prepared]) -> list[Tensor]:
        """Prepared clips, the shorter first, to [N * F * S] of each clip's own frames."""
        if self._streams is None:
            return self._states_of(clips)
        most = self._streams.clips_of_a_pass(len(clips))
        parts = [clips[start : start + most] for start in range(0, len(clips), most)]
        return [states for part in self._streams.run(self._states_of, parts) for states in part]

    def _states_of(self, clips: list[Prepared]) -> list[Tensor]:
        """A batch of clips to the kept hidden states of each."""
        model = self._model
        with self._forward_pass():
            waveforms, mask = model.processor.pad(clips)
            states, frame_mask = model.speech_encoder.layer_states(
                waveforms.to(model.device, model.dtype), mask.to(model.device)
            )
            stacked = torch.stack([_rounded(state, self._clip_dtype) for state in states], dim=1)
            frames = frame_mask.sum(1).tolist()
            return [of_clip[:, :count].flatten() for of_clip, count in zip(stacked, frames, strict=True)]

    def _encode_pictures(self, pictures: list[Prepared]) -> list[Tensor]:
        """Prepared pictures to [D + P * V]: vector and patches."""
        model = self._model
        with self._forward_pass():
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


# --- computing it -----------------------------------------------------------------------------------------------------


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
    clips: list[Wanted]
    pictures: list[Wanted]
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
