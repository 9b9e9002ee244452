"""The sides of a model (speech, image and text): how each prepares one item and encodes a batch of them.

A side computes with the weights that the model had when the side was made. Vectors are unit vectors of the joint space.
*Features* are the output of the frozen encoders before any part that is trained: the hidden states of HuBERT that the
head mixes, and CLIP's image vector with its patches.

Shapes: N items, B batch, T samples, F frames, L hidden states that are mixed, S width of HuBERT, P patches, V width of
the vision transformer, D width of the joint space.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from saysee.encoding.cache import Values
from saysee.encoding.precision import Precision, arithmetic_of
from saysee.encoding.streams import alike, clips_of_a_pass, takes_several
from saysee.errors import MediaError, SaySeeError
from saysee.files import fingerprint
from saysee.media.audio import MAX_SECONDS, SAMPLE_RATE, audio_seconds, check_waveform, load_audio
from saysee.media.augmentation import varied
from saysee.media.images import MAX_PIXELS, load_image
from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.model.image_encoder import ImageEncoder
from saysee.model.processor import SpeechImageProcessor
from saysee.model.speech_encoder import SpeechEncoder

Kind = Literal["clip", "image", "text"]

LEAST_COSINE = 0.9995
"""Of a vector in bf16 to the same in fp32; encoders of the published sizes have 0.9999."""
FEATURES_FORMAT = 2
"""Part of every key of cached features: increase it when the features of the same input change."""
AUGMENTATION_FORMAT = 1
"""The same for clips that are augmented."""
_LEAST_WIDTH = 64
"""Layers narrower than this gain nothing from bf16."""
_PIXELS_TO_ONE = 3
"""Pixels along a side of an image, for each that the model sees, that are kept in decoding: with 3 the vectors of
clip-nano have a cosine of 0.9999 and more to those of the whole image, with 2 of 0.999."""


class Side(ABC):
    """The speech or image side of a model: its encoder, with the processor that prepares items of its kind.

    Attributes:
        precision: that it computes in: for "auto" bf16 where the device has it and the vectors stay the same, else
            fp32; "autocast" is the bf16 of a training step.
        sizes: of the features of files that the cache lacks, by their key, so that a header is read once.
    """

    kind: Kind

    def __init__(
        self, encoder: Any, processor: SpeechImageProcessor, precision: Precision, device: torch.device
    ) -> None:
        self.encoder, self.processor, self.device = encoder, processor, device
        self._config = encoder.config  # of HuBERT or of the vision transformer
        self._width = int(self._config.hidden_size)
        self._network, self.precision = self._in_precision(precision)
        self.sizes: dict[str, int] = {}

    @abstractmethod
    def prepare(self, item: Any) -> Any:
        """One item to what :meth:`vectors` takes; called in several threads at once.

        Raises MediaError if it cannot be used.
        """

    @abstractmethod
    def passes(self, prepared: Sequence[Any], streams: int) -> list[list[int]]:
        """Positions of prepared items that go through the network together.

        ``streams`` passes may run at the same time, one core each.
        """

    def vectors(self, prepared: list[Any]) -> Tensor:
        """One forward pass: prepared items to unit vectors [N, D], fp32."""
        with self._forward_pass():
            return self._vectors_of(self._network, *self._inputs(prepared))

    def tokens(self, prepared: list[Any]) -> Any:
        """One forward pass: prepared items to ``SpeechFeatures`` or ``ImageFeatures``, fp32."""
        with self._forward_pass():
            return _in_fp32(self._network(*self._inputs(prepared)))

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights and the preprocessing that make the vectors; an index is of one fingerprint."""
        return _fingerprint(*self._sources_of_vectors())

    @abstractmethod
    def _sources_of_vectors(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The settings and the weights, named as in the whole model, that make the vectors."""

    @abstractmethod
    def _inputs(self, prepared: list[Any]) -> tuple[Tensor, ...]:
        """A batch as the network takes it."""

    @abstractmethod
    def _example(self) -> tuple[Tensor, ...]:
        """A batch of noise in fp32, to compare precisions on."""

    def _vectors_of(self, network: nn.Module, *inputs: Tensor) -> Tensor:
        return _unit(network(*inputs).vector)

    @contextmanager
    def _forward_pass(self) -> Iterator[None]:
        """The modes of torch in every thread that computes."""
        autocast = self.precision == "autocast"
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
            yield

    def _to_device(self, values: Tensor) -> Tensor:
        return values.to(self.device, next(self._network.parameters()).dtype)

    def _in_precision(self, precision: Precision) -> tuple[Any, Precision]:
        dtype = next(self.encoder.parameters()).dtype
        if dtype == torch.bfloat16:
            return self.encoder, "bf16"
        if precision in ("fp32", "autocast") or dtype != torch.float32:
            return self.encoder, "autocast" if precision == "autocast" else "fp32"
        if precision == "auto" and (arithmetic_of("auto", self.device.type) == "fp32" or self._width < _LEAST_WIDTH):
            return self.encoder, "fp32"
        rounded = self._copy().bfloat16().eval()
        # Not every kernel of every release and CPU computes bf16 right (see ``Positions`` of HuBERT).
        if precision == "auto" and not self._agrees(rounded):
            return self.encoder, "fp32"
        return rounded, "bf16"

    @torch.inference_mode()
    def _agrees(self, rounded: nn.Module) -> bool:
        was_training = self.encoder.training
        values, *others = self._example()
        exact = self._vectors_of(self.encoder.eval(), values, *others)
        cosines = (self._vectors_of(rounded, values.bfloat16(), *others) * exact).sum(dim=-1)
        self.encoder.train(was_training)
        return bool((cosines >= LEAST_COSINE).all())  # False for NaN too

    def _copy(self) -> Any:
        return copy.deepcopy(self.encoder)


class SpeechSide(Side):
    """Clips through HuBERT and the head."""

    kind = "clip"
    encoder: SpeechEncoder

    def __init__(self, *of_side: Any, augment: bool = False) -> None:
        super().__init__(*of_side)
        self._augment = augment

    @property
    def features_dtype(self) -> torch.dtype:
        """Hidden states in bf16 are kept as they are, those in fp32 as fp16, which has three bits more than bf16."""
        return torch.float16 if self.precision == "fp32" else torch.bfloat16

    def prepare(
        self, item: Any, *, sampling_rate: int = SAMPLE_RATE, max_seconds: float = MAX_SECONDS
    ) -> NDArray[np.float32]:
        """A path, the contents of an audio file, samples [T], or samples with their rate, to samples at 16 kHz."""
        return self.of_waveform(waveform_of(item, sampling_rate, max_seconds))

    def of_waveform(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """What :meth:`prepare` makes of a decoded clip [T] at 16 kHz."""
        if self._augment:
            waveform = varied(waveform, fingerprint(np.ascontiguousarray(waveform).data))
        return self.processor.prepare_speech(waveform)

    def passes(self, prepared: Sequence[Any], streams: int) -> list[list[int]]:
        """See :meth:`Side.passes`.

        On a CPU a wide HuBERT takes each clip alone: that is faster than a batch with padding, and a clip has the same
        vector beside any others, bit for bit. A narrow one takes several; their vectors then differ by rounding, as
        does that of a clip without others, which has all cores.
        """
        if self.device.type != "cpu":
            return alike(prepared, len(prepared))
        if len(prepared) == 1 or not takes_several(self._config):
            return alike(prepared, 1)
        return alike(prepared, clips_of_a_pass(len(prepared), streams))

    def features(self, prepared: list[Any]) -> list[Tensor]:
        """Hidden states [L * F * S] of each clip's own frames, flat."""
        with self._forward_pass():
            states, mask = self._network.layer_states(*self._inputs(prepared))
            stacked = torch.stack([_rounded(state, self.features_dtype) for state in states], dim=1)
            frames = mask.sum(1).tolist()
            return [of_clip[:, :count].flatten() for of_clip, count in zip(stacked, frames, strict=True)]

    def features_size(self, path: str) -> int:
        """Number of values of the features of a file; 0 if it cannot be read."""
        try:
            samples = round(audio_seconds(path) * SAMPLE_RATE)
        except MediaError:
            return 0
        return int(self.encoder.frames(torch.tensor(samples))) * len(self.encoder.layers) * self._width

    def gather(self, items: Sequence[Values]) -> tuple[Tensor, Tensor]:
        """Cached features of B clips to hidden states [L, B, F, S], zero-padded, and their mask [B, F]."""
        layers, width = len(self.encoder.layers), self._width
        clips = [item.reshape(layers, -1, width) for item in items]
        frames = torch.tensor([clip.shape[1] for clip in clips])
        longest = int(frames.max())
        states = np.empty((layers, len(clips), longest, width), np.int16)
        for number, clip in enumerate(clips):
            states[:, number, : clip.shape[1]] = clip
            states[:, number, clip.shape[1] :] = 0
        return torch.from_numpy(states).view(self.features_dtype), torch.arange(longest) < frames[:, None]

    def tokens_of_features(self, items: Sequence[Values]) -> SpeechFeatures:
        """Cached features of B clips to what :meth:`tokens` gives, by the head."""
        states, mask = self.gather(items)
        with self._forward_pass():
            clips = self._network.from_layer_states(self._to_device(states), mask.to(self.device))
            found: SpeechFeatures = _in_fp32(clips)
            return found

    @cached_property
    def about_features(self) -> dict[str, Any]:
        """Everything that the features depend on besides the contents of a file."""
        about = _about(self, self.processor.feature_extractor, self.encoder.hubert.state_dict())
        if self.encoder.unnormed_last:
            about["last hidden state"] = "before the final norm"
        if self._augment:
            about["augmentation"] = AUGMENTATION_FORMAT
        return about | {"hidden states": self.encoder.layers}

    def _sources_of_vectors(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        weights = {f"speech_encoder.{name}": weight for name, weight in self.encoder.state_dict().items()}
        settings: dict[str, Any] = {"do_normalize": self.processor.feature_extractor.do_normalize}
        head = {"pooling": self.encoder.head.pooling, "stride": self.encoder.head.stride}
        if head != {"pooling": "cls", "stride": 1}:  # as all heads were once, so that indexes of that time stay valid
            settings |= head
        return settings, weights

    def _inputs(self, prepared: list[Any]) -> tuple[Tensor, ...]:
        waveforms, mask = self.processor.pad(prepared)
        return self._to_device(waveforms), mask.to(self.device)

    def _example(self) -> tuple[Tensor, ...]:
        noise = torch.randn(2, SAMPLE_RATE, generator=torch.Generator().manual_seed(0)).to(self.device)
        mask = torch.ones_like(noise, dtype=torch.bool)
        mask[1, SAMPLE_RATE // 2 :] = False
        return noise * mask, mask


class ImageSide(Side):
    """Images through CLIP's vision transformer."""

    kind = "image"
    encoder: ImageEncoder
    features_dtype = torch.float16
    """CLIP's residual stream is fp32 under autocast too, and its values are small."""

    def prepare(self, item: Any, *, max_pixels: int = MAX_PIXELS) -> Tensor:
        """A path, the contents of an image file, an open file or a Pillow image to pixels [3, H, W]."""
        enough = _PIXELS_TO_ONE * int(self._config.image_size)
        return self.processor.prepare_image(load_image(item, max_pixels=max_pixels, at_least=enough))

    def passes(self, prepared: Sequence[Any], streams: int) -> list[list[int]]:
        """See :meth:`Side.passes`."""
        count = min(len(prepared), streams if self.device.type == "cpu" else 1)
        return [part.tolist() for part in np.array_split(np.arange(len(prepared)), count)] if count else []

    def features(self, prepared: list[Any]) -> list[Tensor]:
        """Vector and patches [D + P * V] of each image, flat."""
        with self._forward_pass():
            images = self._network(*self._inputs(prepared))
            return list(_rounded(torch.cat([images.vector, images.patches.flatten(1)], dim=1), self.features_dtype))

    def features_size(self, path: str) -> int:
        """Number of values of the features of a file: the same for every image."""
        del path
        patches = (self._config.image_size // self._config.patch_size) ** 2
        return self._dimension + int(patches) * self._width

    def gather(self, items: Sequence[Values]) -> tuple[Tensor, Tensor]:
        """Cached features of B images to vectors [B, D] and patches [B, P, V]."""
        values = torch.from_numpy(np.stack(items)).view(self.features_dtype)
        vectors, patches = values[:, : self._dimension], values[:, self._dimension :]
        return vectors, patches.reshape(len(items), -1, self._width)

    def tokens_of_features(self, items: Sequence[Values]) -> ImageFeatures:
        """Cached features of B images to what :meth:`tokens` gives."""
        return ImageFeatures(*(values.to(self.device, torch.float32) for values in self.gather(items)))

    @cached_property
    def about_features(self) -> dict[str, Any]:
        """Everything that the features depend on besides the contents of a file."""
        weights = {name: value for name, value in self.encoder.clip.state_dict().items() if name.startswith("vis")}
        return _about(self, self.processor.image_processor, weights)

    @property
    def _dimension(self) -> int:
        return int(self.encoder.clip.config.projection_dim)

    def _sources_of_vectors(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        parts = ("clip.vision_model.", "clip.visual_projection.")
        found = self.encoder.state_dict().items()
        weights = {f"image_encoder.{name}": weight for name, weight in found if name.startswith(parts)}
        settings = asdict(self.processor.image_processor)
        return settings | {name: _size_in_indexes(settings[name]) for name in ("size", "crop_size")}, weights

    def _inputs(self, prepared: list[Any]) -> tuple[Tensor, ...]:
        return (self._to_device(torch.stack(prepared)),)

    def _example(self) -> tuple[Tensor, ...]:
        side = int(self._config.image_size)
        return (torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(self.device),)

    def _copy(self) -> Any:
        # The text encoder, which has no part in this, is not copied: deepcopy takes None for it.
        text = getattr(self.encoder.clip, "text_model", None)
        return copy.deepcopy(self.encoder, {id(text): None} if text is not None else {})


def waveform_of(item: Any, sampling_rate: int, max_seconds: float) -> NDArray[np.float32]:
    """A path, the contents of an audio file, samples [T], or samples with their rate, to samples at 16 kHz."""
    samples, rate = item if isinstance(item, tuple) else (item, sampling_rate)
    if hasattr(samples, "get_all_samples"):  # the AudioDecoder of datasets
        try:
            decoded = samples.get_all_samples()
        except Exception as error:  # FFmpeg's errors have many types
            raise MediaError("undecodable", f"a clip of datasets cannot be decoded ({error})") from error
        samples, rate = decoded.data.numpy(), int(decoded.sample_rate)
    if isinstance(samples, np.ndarray):
        return check_waveform(samples, sampling_rate=rate, max_seconds=max_seconds)
    return load_audio(samples, max_seconds=max_seconds)


def _in_fp32(features: Any) -> Any:
    """Features of clips or images with vectors and tokens in fp32; a mask stays."""
    return replace(features, **{name: value.float() for name, value in vars(features).items() if name != "mask"})


def _unit(vectors: Tensor) -> Tensor:
    return functional.normalize(vectors.float(), dim=-1)


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = values.to(dtype)
    if not torch.isfinite(rounded).all():
        largest = values.abs().max().item()
        raise SaySeeError(
            f"an encoder gives a value of {largest:.3g}, which {dtype} cannot hold; set features.keep to off"
        )
    return rounded


def _about(side: SpeechSide | ImageSide, prepares: Any, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What cached features depend on: the side's encoder with its weights, and the processor that prepares items."""
    return {
        "format": FEATURES_FORMAT,
        "precision": side.precision,
        "kept as": str(side.features_dtype),
        "preprocessing": asdict(prepares),
        "encoder": _fingerprint(asdict(side._config), weights),
    }


def _size_in_indexes(size: Mapping[str, int]) -> str:
    """A size as transformers wrote it, which prepared images once: indexes of that time stay valid."""
    names = ["height", "width", "longest_edge", "shortest_edge", "max_height", "max_width", "min_pixels", "max_pixels"]
    return f"SizeDict({', '.join(f'{name}={size.get(name)}' for name in names)})"


def _fingerprint(settings: dict[str, Any], weights: Mapping[str, Tensor]) -> str:
    parts: list[bytes | memoryview] = [json.dumps(settings, sort_keys=True).encode()]
    for name, weight in sorted(weights.items()):
        flat = weight.detach().cpu().contiguous().reshape(-1)
        parts += [f"{name} {weight.dtype} {list(weight.shape)}".encode(), flat.view(torch.uint8).numpy().data]
    return fingerprint(*parts)
