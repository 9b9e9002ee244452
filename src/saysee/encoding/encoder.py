"""Encoder: the one way from files and texts to the vectors and features of a model."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from saysee.encoding.cache import FeatureCache
from saysee.encoding.features import BATCH_VALUES, CachedFeatures, CachedSide, Missing
from saysee.encoding.inputs import NAMES, checked
from saysee.encoding.precision import Precision, attention_kernel
from saysee.encoding.reading import or_error, read_ahead
from saysee.encoding.recognizer import SpeechRecognizer, TranscribedSide, Transcript
from saysee.encoding.sides import ImageSide, Kind, Side, SpeechSide
from saysee.encoding.streams import streams
from saysee.encoding.texts import TextSide
from saysee.errors import MediaError, SaySeeError
from saysee.hardware import torch_device, usable_cores
from saysee.log import progress_bar
from saysee.media.audio import SAMPLE_RATE
from saysee.model.loading import load_model

logger = logging.getLogger(__name__)

Vectors = NDArray[np.float32]

BATCH = 64
"""Items that are read together; the model encodes them in one pass or several."""


class Encoder:
    """A model that encodes clips, images and texts: for training, evaluation, indexing and every query.

    The same item has the same vector in all of these, because decoding, preprocessing and precision are done here. An
    item that is encoded alone has the same vector bit for bit on one machine; beside others the vector differs by
    rounding at most.

    Args:
        model: a model, or the folder or hub name of one. In fp32 a model's own weights are used, in bf16 a copy of them
            as they were at the first use.
        device: where the model runs, as torch names it; "auto": where it is, or for a name a GPU if there is one.
        precision: "auto" is bf16 where the device has it and the vectors stay the same (cosine of 0.9995), else fp32;
            "autocast" is the bf16 of a training step.
        cache: keeps the features of frozen encoders, which must not be trained while it is in use.
        workers: threads that read and decode; None: one per core, at most eight.
        recognizer: clips are transcribed by it, and the transcripts encoded by the text encoder, in place of the
            model's speech encoder.
        augment: clips are changed by :func:`saysee.media.augmentation.varied` first, each always alike; for training.

    Attributes:
        model: the model.
        name: its folder or hub name.
        dimension: D, width of the joint space.

    Raises:
        CheckpointError: there is no model of that name.
        ConfigError: the device is a GPU and there is none.
    """

    def __init__(
        self,
        model: Any,
        device: str = "auto",
        precision: Precision = "auto",
        cache: FeatureCache | None = None,
        workers: int | None = None,
        recognizer: SpeechRecognizer | None = None,
        augment: bool = False,
    ) -> None:
        is_place = isinstance(model, str | os.PathLike)
        if is_place or device != "auto":
            device = torch_device(device)  # before the long loading
        self.name = os.fspath(model) if is_place else str(getattr(model, "name_or_path", "") or "model")
        self.model = load_model(model) if is_place else model
        if device != "auto":
            self.model = self.model.to(device)
        self.cache = cache
        self.dimension = int(self.model.image_encoder.clip.config.projection_dim)
        self.workers = workers or min(8, usable_cores())
        self.recognizer, self._augment = recognizer, augment
        self._precision = precision
        self._sides: dict[str, Any] = {}
        self._making_sides = threading.Lock()

    @property
    def warning(self) -> str | None:
        """What a user must know of the model before its results; None if nothing."""
        if not getattr(self.model, "untrained", False):
            return None
        return f"the speech head of {self.name} was never trained: speech gives random results"

    def encode_speech(
        self, clips: Sequence[Any], *, batch_size: int = BATCH, sampling_rate: int = SAMPLE_RATE, progress: bool = True
    ) -> Vectors:
        """Clips to unit vectors [N, D], in the order given.

        Args:
            clips: paths, contents of audio files, open files, arrays or tensors [T] of samples, (array, rate), or the
                audio of rows of ``datasets``, in any mix.
            batch_size: clips that are read and encoded together; it changes the vectors by rounding at most.
            sampling_rate: of arrays that come without one, in Hz.
            progress: show a progress bar on stderr when it takes over two seconds.

        Raises:
            InputTypeError: an item is no clip, or ``clips`` no list; a TypeError that names its place.
            MediaError: a clip cannot be used; the message names it.
            SaySeeError: the model has no speech side.
        """
        return self.encode(  # type: ignore[no-any-return]
            "clip", clips, batch_size=batch_size, sampling_rate=sampling_rate, progress=progress
        )

    def encode_images(self, images: Sequence[Any], *, batch_size: int = BATCH, progress: bool = True) -> Vectors:
        """Images to unit vectors [N, D], in the order given.

        Args:
            images: paths, contents of image files, open files, Pillow images, arrays or tensors of uint8 ([H, W],
                [H, W, C] or [C, H, W]), or the images of rows of ``datasets``, in any mix.
            batch_size, progress: as for :meth:`encode_speech`.

        Raises:
            InputTypeError: as for :meth:`encode_speech`.
            MediaError: an image cannot be used; the message names it.
        """
        return self.encode("image", images, batch_size=batch_size, progress=progress)  # type: ignore[no-any-return]

    def encode_text(self, texts: Sequence[str], *, batch_size: int = BATCH, progress: bool = True) -> Vectors:
        """Texts to unit vectors [N, D] by CLIP's text encoder, in the order given.

        A text that is longer than the encoder takes is cut, with a warning in the log; see :meth:`used_text`.

        Raises:
            InputTypeError: as for :meth:`encode_speech`.
            SaySeeError: the model has no text encoder or no tokenizer.
        """
        return self.encode("text", texts, batch_size=batch_size, progress=progress)  # type: ignore[no-any-return]

    def encode(
        self,
        kind: Kind,
        items: Iterable[Any],
        want: Literal["vector", "features"] = "vector",
        *,
        batch_size: int = BATCH,
        sampling_rate: int = SAMPLE_RATE,
        bad: dict[int, MediaError] | None = None,
        progress: bool = True,
        transcripts: dict[int, Transcript] | None = None,
    ) -> Any:
        """Items of one kind to vectors or features, in the order given.

        Files are read ahead in threads and encoded in passes of like length. With a cache, files are looked up by their
        contents, and only what is missing goes through the encoders.

        Args:
            kind: of the items.
            items: as for :meth:`encode_speech`, :meth:`encode_images` or :meth:`encode_text`.
            want: "vector": unit vectors [N, D]; "features": ``CachedFeatures`` of the frozen encoders, for training;
                requires a cache and paths.
            batch_size, sampling_rate, progress: as for :meth:`encode_speech`.
            bad: collects the errors of items that cannot be used by position; the vector of such an item is NaN. None
                raises the first error.
            transcripts: collects what the recognizer heard in each clip, by position.

        Raises:
            InputTypeError: as for :meth:`encode_speech`; also with ``bad``.
            MediaError: an item cannot be used, and ``bad`` is None.
            ConfigError: the cache would grow over its limit.
            SaySeeError: the model does not have this side; features without a cache, or of transcribed clips.
        """
        items = checked(items, kind)
        if batch_size < 1:
            raise SaySeeError(f"batch_size is {batch_size}; it must be at least 1")
        side = self.side(kind)
        paths_only = all(isinstance(item, str | os.PathLike) for item in items)
        if self.cache is not None and isinstance(side, Side) and paths_only:
            features = self._cached(kind).features([os.fspath(item) for item in items], bad, progress)
            return features if want == "features" else self._vectors_of_features(features, batch_size, progress)
        if want == "features":
            raise SaySeeError(
                "features are of the model's own encoders: give a cache, no recognizer, and paths of files"
            )
        options = {"sampling_rate": sampling_rate} if kind == "clip" else {}
        vectors = np.full((len(items), self.dimension), np.nan, np.float32)

        def prepare(position: int) -> Any:
            return side.prepare(items[position], **options)

        batches = (range(start, min(start + batch_size, len(items))) for start in range(0, len(items), batch_size))
        with progress_bar(f"encoding {NAMES[kind]}", len(items), enabled=progress) as bar:
            for positions, results in read_ahead(batches, or_error(prepare), self.workers):
                prepared = {}
                for position, result in zip(positions, results, strict=True):
                    if not isinstance(result, MediaError):
                        prepared[position] = result
                    elif bad is None:
                        raise result
                    else:
                        bad[position] = result
                if transcripts is not None and isinstance(side, TranscribedSide):
                    transcripts |= prepared
                if prepared:
                    vectors[list(prepared)] = self.encode_prepared(kind, list(prepared.values()))
                bar.update(len(positions))
        return vectors

    def prepare(self, kind: Kind, item: Any, **limits: Any) -> Any:
        """Prepares an item as of :meth:`encode` for :meth:`encode_prepared`; may be called in several threads at once.

        ``limits`` are ``max_seconds`` and ``sampling_rate`` for a clip, ``max_pixels`` for an image. Raises MediaError
        if the item cannot be used.
        """
        return self.side(kind).prepare(item, **limits)

    def encode_prepared(self, kind: Kind, prepared: Sequence[Any]) -> Vectors:
        """A batch of items that :meth:`prepare` returned to unit vectors [N, D]."""
        side = self.side(kind)
        vectors = np.empty((len(prepared), self.dimension), np.float32)
        for position, vector in enumerate(self._compute(side, prepared, side.vectors)):
            vectors[position] = vector
        return vectors

    def tokens(self, kind: Kind, item: Any, **limits: Any) -> Any:
        """``SpeechFeatures`` or ``ImageFeatures`` of one clip or image, as a batch of one in fp32.

        ``limits`` and errors as of :meth:`prepare`; SaySeeError for clips if a recognizer transcribes them.
        """
        side = self.side(kind)
        if not isinstance(side, Side):
            raise SaySeeError("transcribed clips have no frames; make the encoder without a recognizer")
        with self.evaluating():
            return side.tokens([side.prepare(item, **limits)])

    def side(self, kind: Kind) -> Any:
        """The side of the model that encodes a kind of item, made at the first use.

        Raises SaySeeError if it does not have it.
        """
        with self._making_sides:
            if kind not in self._sides:
                self._sides[kind] = self._make_side(kind)
            return self._sides[kind]

    def fingerprint(self, kind: Kind) -> str:
        """Of the weights and the preprocessing that make the vectors of a kind: "clip" or "image".

        That of images stays the same when only the speech side is trained further. Empty for clips if they are
        transcribed, or the model has no speech encoder.
        """
        without = kind == "clip" and (self.recognizer is not None or not self.has_speech)
        return "" if without else str(self.side(kind).fingerprint)

    @property
    def has_speech(self) -> bool:
        """Whether the model has a speech encoder."""
        return hasattr(self.model, "speech_encoder")

    @property
    def has_text(self) -> bool:
        """Whether texts can be encoded."""
        return self.model.processor.tokenizer is not None and bool(self.model.image_encoder.has_text)

    @property
    def trained_on(self) -> str | None:
        """What the image encoder was trained on, if its configuration says so and it knows no more than that."""
        return getattr(self.model.image_encoder.clip.config, "trained_on", None)

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that the text encoder does not know, each once."""
        words: list[str] = self.side("text").tokenizer.unknown_words(text)
        return words

    def used_text(self, text: str) -> str | None:
        """The start of a text that is longer than the model takes, as far as it is used; None if all of it is."""
        used: str | None = self.side("text").used(text)
        return used

    def missing(self, kind: Kind, paths: Sequence[str], progress: bool = True) -> Missing:
        """The files whose features are not in the cache, one of each content."""
        return self._cached(kind).missing(paths, progress)

    def _cached(self, kind: Kind) -> CachedSide:
        assert self.cache is not None
        return CachedSide(self.side(kind), self.cache, self._compute, self.workers)

    def _vectors_of_features(self, features: CachedFeatures, batch_size: int, progress: bool) -> Vectors:
        vectors = np.full((len(features), self.dimension), np.nan, np.float32)
        good = [position for position, key in enumerate(features.keys) if key is not None]
        good.sort(key=features.size, reverse=True)
        with progress_bar("scoring features", len(good), enabled=progress) as bar, self.evaluating():
            start = 0
            while start < len(good):
                longest = features.size(good[start])  # all are padded to it
                positions = good[start : start + min(batch_size, max(1, BATCH_VALUES // longest))]
                start += len(positions)
                batch = features.side.tokens_of_features([features[position] for position in positions]).vector
                vectors[positions] = functional.normalize(batch, dim=-1).cpu().numpy()
                bar.update(len(positions))
        return vectors

    def _compute(self, side: Any, prepared: Sequence[Any], forward: Callable[[list[Any]], Any]) -> list[Any]:
        """Runs prepared items through ``forward`` in passes; returns the result of each item, in order."""

        def run(positions: list[int]) -> Any:
            computed = forward([prepared[position] for position in positions])
            return computed.cpu() if isinstance(computed, Tensor) else computed

        parts = side.passes(prepared, streams().count)
        at_once = len(parts) > 1 and side.device.type == "cpu"
        with self.evaluating(), attention_kernel(side.device.type, self._precision == "autocast"):
            passes = list(streams().map(run, parts) if at_once else map(run, parts))
        results: dict[int, Any] = {}
        for positions, computed in zip(parts, passes, strict=True):
            results.update(zip(positions, computed, strict=True))
        return [results[position] for position in range(len(prepared))]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model in evaluation mode, where it was given in training mode."""
        if not self.model.training:
            yield
            return
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()

    def _make_side(self, kind: Kind) -> Any:
        model, processor, device = self.model, self.model.processor, self.model.device
        with self.evaluating():
            if kind == "image":
                return ImageSide(model.image_encoder, processor, self._precision, device)
            if kind == "text":
                if not self.has_text:
                    raise SaySeeError(
                        f"the model {self.name} has no text encoder; make it from a CLIP that has one "
                        "(from_encoders(..., text=True))"
                    )
                return TextSide(model.image_encoder, processor, device)
            if self.recognizer is not None:
                return TranscribedSide(self.recognizer, self._make_side("text"))
            if not self.has_speech:
                raise SaySeeError(f"the model {self.name} has no speech side; give a SaySee model, or a recognizer")
            return SpeechSide(model.speech_encoder, processor, self._precision, device, augment=self._augment)
