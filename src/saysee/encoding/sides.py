"""The sides of a model, speech, image and text: how each prepares one item and computes a batch of them.

A side computes with the weights as they were when it was made. Vectors are unit vectors of the joint space. *Features*
are what frozen encoders give before anything that is trained: HuBERT's hidden states that the head mixes, and CLIP's
image vector with its patches.

Shapes: N items, B batch, T samples, F frames, L hidden states that are mixed, S width of HuBERT, P patches, V width of
the vision transformer, D width of the joint space.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from saysee.encoding.cache import Values
from saysee.encoding.precision import Precision, arithmetic_of
from saysee.encoding.streams import clips_of_a_pass, takes_several
from saysee.errors import SaySeeError
from saysee.files import fingerprint
from saysee.media.audio import MAX_SECONDS, SAMPLE_RATE, check_waveform, load_audio
from saysee.media.images import MAX_PIXELS, load_image
from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.model.image_encoder import ImageEncoder
from saysee.model.processor import SpeechImageProcessor
from saysee.model.speech_encoder import SpeechEncoder

Kind = Literal["clip", "image", "text"]

LEAST_COSINE = 0.9995
"""Of a vector in bf16 to the same in fp32; encoders of the published sizes have 0.9999."""
FEATURES_FORMAT = 2
"""Part of every key of cached features: raise it when the same input comes to give other features."""
_LEAST_WIDTH = 64
"""Layers narrower than this gain nothing from bf16."""
_PASS_SECONDS = 160.0
"""Most speech in one forward pass of a GPU, padding counted: HuBERT base keeps some 10 MB a second."""
_ALIKE = 0.8
"""The shortest clip of a pass is at least this share of the longest: padding is computed too."""
_PIXELS_TO_ONE = 3
"""Pixels along a side of an image for each that the model sees that are kept in decoding: with 3 the vectors of
clip-nano have a cosine of 0.9999 and more to those of the whole image, with 2 of 0.999."""
_IMAGE_SETTINGS = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std",
)  # fmt: skip


class Side(ABC):
    """One side of a model.

    Args:
        network: what computes.
        precision: "auto" is bf16 where the device has it and the vectors stay the same, else fp32; "autocast" is the
            bf16 of a training step.
        device: where the network is.

    Attributes:
        kind: of the items that it encodes.
        precision: that it computes in.
    """

    kind: Kind

    def __init__(self, network: nn.Module, precision: Precision, device: torch.device) -> None:
        self.device = device
        self._live = network
        self._network, self.precision = self._in_precision(network, precision)

    @abstractmethod
    def prepare(self, item: Any) -> Any:
        """One item to what :meth:`vectors` takes; called in several threads at once.

        Raises:
            MediaError: the item cannot be used.
        """

    @abstractmethod
    def vectors(self, prepared: list[Any]) -> Tensor:
        """One forward pass: prepared items to unit vectors [N, D], fp32."""

    @abstractmethod
    def passes(self, prepared: Sequence[Any], streams: int) -> list[list[int]]:
        """Positions of the prepared items that go through the network together.

        Args:
            prepared: the items.
            streams: passes that may run beside each other, one core each.
        """

    @property
    @abstractmethod
    def _preprocessing(self) -> dict[str, Any]: ...

    @property
    @abstractmethod
    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name, as in the whole model, and value of each weight that makes the vectors."""

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights and the preprocessing that make the vectors; an index is of one fingerprint."""
        return _fingerprint(self._preprocessing, sorted(self._weights))

    @abstractmethod
    def _example(self) -> tuple[Tensor, ...]:
        """A batch of noise, to compare precisions on."""

    @abstractmethod
    def _vectors_of(self, network: nn.Module, *inputs: Tensor) -> Tensor: ...

    @contextmanager
    def _forward_pass(self) -> Iterator[None]:
        """The modes of torch in every thread that computes."""
        autocast = self.precision == "autocast"
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
            yield

    def _in_precision(self, network: nn.Module, precision: Precision) -> tuple[Any, Precision]:
        dtype = next(network.parameters()).dtype
        if dtype == torch.bfloat16:
            return network, "bf16"
        if precision in ("fp32", "autocast") or dtype != torch.float32:
            return network, "autocast" if precision == "autocast" else "fp32"
        if precision == "auto" and (arithmetic_of("auto", self.device.type) == "fp32" or self._width < _LEAST_WIDTH):
            return network, "fp32"
        quick = self._copy().bfloat16().eval()
        # Not every kernel of every release and CPU computes bf16 right (see ``ExactPositions`` in the speech encoder).
        if precision == "auto" and not self._agree(quick, network):
            return network, "fp32"
        return quick, "bf16"

    @torch.inference_mode()
    def _agree(self, quick: nn.Module, exact: nn.Module) -> bool:
        was_training = exact.training
        example = self._example()
        cosines = (self._vectors_of(quick, *example) * self._vectors_of(exact.eval(), *example)).sum(dim=-1)
        exact.train(was_training)
        return bool((cosines >= LEAST_COSINE).all())  # False for NaN too

    @property
    @abstractmethod
    def _width(self) -> int: ...

    def _copy(self) -> nn.Module:
        return copy.deepcopy(self._live)


class SpeechSide(Side):
    """Clips through HuBERT and the head."""

    kind = "clip"

    def __init__(
        self, encoder: SpeechEncoder, processor: SpeechImageProcessor, precision: Precision, device: torch.device
    ) -> None:
        self.encoder, self.processor = encoder, processor
        super().__init__(encoder, precision, device)
        rounded = self.precision != "fp32"
        self.features_dtype = torch.bfloat16 if rounded else torch.float16
        """Hidden states in bf16 are kept as they are; in fp32 as fp16, which has three bits more than bf16."""

    def prepare(
        self, item: Any, *, sampling_rate: int = SAMPLE_RATE, max_seconds: float = MAX_SECONDS
    ) -> NDArray[np.float32]:
        """A path, the contents of an audio file or samples [T] to samples at 16 kHz as HuBERT takes them."""
        if isinstance(item, np.ndarray):
            waveform = check_waveform(item, sampling_rate=sampling_rate)
        else:
            waveform = load_audio(item, max_seconds=max_seconds)
        return self.processor.prepare_speech(waveform)

    def vectors(self, prepared: list[Any]) -> Tensor:
        """See :meth:`Side.vectors`."""
        with self._forward_pass():
            return self._vectors_of(self._network, *self._padded(prepared))

    def tokens(self, prepared: list[Any]) -> SpeechFeatures:
        """Global vectors, frames and their mask of a batch of clips, fp32."""
        with self._forward_pass():
            waveforms, mask = self._padded(prepared)
            features = self._network(waveforms.to(_dtype(self._network)), mask)
            return SpeechFeatures(features.vector.float(), features.frames.float(), features.mask)

    def features(self, prepared: list[Any]) -> list[Tensor]:
        """HuBERT's hidden states [L * F * S] of each clip's own frames, flat."""
        with self._forward_pass():
            waveforms, mask = self._padded(prepared)
            states, frame_mask = self._network.layer_states(waveforms.to(_dtype(self._network)), mask)
            stacked = torch.stack([_rounded(state, self.features_dtype) for state in states], dim=1)
            frames = frame_mask.sum(1).tolist()
            return [of_clip[:, :count].flatten() for of_clip, count in zip(stacked, frames, strict=True)]

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

    def vectors_of_features(self, items: Sequence[Values]) -> Tensor:
        """Cached features of B clips to unit vectors [B, D], by the head."""
        states, mask = self.gather(items)
        with self._forward_pass():
            states = states.to(self.device, _dtype(self._network))
            return _unit(self._network.from_layer_states(states, mask.to(self.device)).vector)

    def features_size(self, seconds: float) -> int:
        """Values that the features of a clip of so many seconds have."""
        frames = int(self.encoder.frames(torch.tensor(round(seconds * SAMPLE_RATE)))) if seconds else 0
        return frames * len(self.encoder.layers) * self._width

    def passes(self, prepared: Sequence[Any], streams: int) -> list[list[int]]:
        """See :meth:`Side.passes`.

        On a CPU a wide HuBERT takes each clip alone: that is faster than a batch with padding, and gives a clip the
        same vector beside any other, bit for bit. A narrow one takes several; their vectors then differ by rounding.
        """
        if self.device.type != "cpu":
            return _alike(prepared, len(prepared))
        if len(prepared) == 1 or not takes_several(self.encoder.hubert.config):
            return _alike(prepared, 1)
        return _alike(prepared, clips_of_a_pass(len(prepared), streams))

    @property
    def about_features(self) -> dict[str, Any]:
        """All that the features depend on beside the contents of a file."""
        hubert = self.encoder.hubert
        return {
            **_about(self),
            "kept as": str(self.features_dtype),
            "hidden states": self.encoder.layers,
            "preprocessing": self.processor.feature_extractor.to_dict(),
            "encoder": _encoder_fingerprint(hubert.config, hubert.state_dict()),
        }

    def _padded(self, prepared: list[Any]) -> tuple[Tensor, Tensor]:
        waveforms, mask = self.processor.pad(prepared)
        return waveforms.to(self.device), mask.to(self.device)

    def _vectors_of(self, network: nn.Module, *inputs: Tensor) -> Tensor:
        waveforms, mask = inputs
        return _unit(network(waveforms.to(_dtype(network)), mask).vector)

    def _example(self) -> tuple[Tensor, ...]:
        noise = torch.randn(2, SAMPLE_RATE, generator=torch.Generator().manual_seed(0)).to(self.device)
        mask = torch.ones_like(noise, dtype=torch.bool)
        mask[1, SAMPLE_RATE // 2 :] = False
        return noise * mask, mask

    @property
    def _width(self) -> int:
        return int(self.encoder.hubert.config.hidden_size)

    @property
    def _preprocessing(self) -> dict[str, Any]:
        return {"do_normalize": self.processor.feature_extractor.do_normalize}

    @property
    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        return ((f"speech_encoder.{name}", weight) for name, weight in self.encoder.state_dict().items())


class ImageSide(Side):
    """Images through CLIP's vision transformer."""

    kind = "image"
    features_dtype = torch.float16
    """CLIP's residual stream is fp32 under autocast too, and its values are small."""

    def __init__(
        self, encoder: ImageEncoder, processor: SpeechImageProcessor, precision: Precision, device: torch.device
    ) -> None:
        self.encoder, self.processor = encoder, processor
        self._config = encoder.vision_config
        self._dimension = int(encoder.clip.config.projection_dim)
        super().__init__(encoder, precision, device)

    def prepare(self, item: Any, *, max_pixels: int = MAX_PIXELS) -> Tensor:
        """A path, the contents of an image file, an open file or a Pillow image to pixels [3, H, W]."""
        enough = _PIXELS_TO_ONE * int(self._config.image_size)
        return self.processor.prepare_image(load_image(item, max_pixels=max_pixels, at_least=enough))

    def vectors(self, prepared: list[Any]) -> Tensor:
        """See :meth:`Side.vectors`."""
        with self._forward_pass():
            return self._vectors_of(self._network, torch.stack(prepared).to(self.device))

    def tokens(self, prepared: list[Any]) -> ImageFeatures:
        """Global vectors and patches of a batch of images, fp32."""
        with self._forward_pass():
            images = self._network(torch.stack(prepared).to(self.device, _dtype(self._network)))
            return ImageFeatures(images.vector.float(), images.patches.float())

    def features(self, prepared: list[Any]) -> list[Tensor]:
        """Vector and patches [D + P * V] of each image, flat."""
        with self._forward_pass():
            images = self._network(torch.stack(prepared).to(self.device, _dtype(self._network)))
            return list(_rounded(torch.cat([images.vector, images.patches.flatten(1)], dim=1), self.features_dtype))

    def gather(self, items: Sequence[Values]) -> tuple[Tensor, Tensor]:
        """Cached features of B images to vectors [B, D] and patches [B, P, V]."""
        values = torch.from_numpy(np.stack(items)).view(self.features_dtype)
        vectors, patches = values[:, : self._dimension], values[:, self._dimension :]
        return vectors, patches.reshape(len(items), -1, self._width)

    def vectors_of_features(self, items: Sequence[Values]) -> Tensor:
        """Cached features of B images to unit vectors [B, D]."""
        return _unit(self.gather(items)[0])

    def features_size(self) -> int:
        """Values that the features of an image have."""
        patches = (self._config.image_size // self._config.patch_size) ** 2
        return self._dimension + int(patches) * self._width

    def passes(self, prepared: Sequence[Any], streams: int) -> list[list[int]]:
        """See :meth:`Side.passes`."""
        count = min(len(prepared), streams if self.device.type == "cpu" else 1)
        return [part.tolist() for part in np.array_split(np.arange(len(prepared)), count)] if count else []

    @property
    def about_features(self) -> dict[str, Any]:
        """All that the features depend on beside the contents of a file."""
        weights = {name: value for name, value in self.encoder.clip.state_dict().items() if name.startswith("vis")}
        return {
            **_about(self),
            "kept as": str(self.features_dtype),
            "preprocessing": self.processor.image_processor.to_dict(),
            "encoder": _encoder_fingerprint(self._config, weights),
        }

    def _vectors_of(self, network: nn.Module, *inputs: Tensor) -> Tensor:
        (pixels,) = inputs
        return _unit(network(pixels.to(_dtype(network))).vector)

    def _example(self) -> tuple[Tensor, ...]:
        side = int(self._config.image_size)
        return (torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(self.device),)

    def _copy(self) -> nn.Module:
        # The text encoder, which has no part in this, is not copied: deepcopy takes None for it.
        text = getattr(self.encoder.clip, "text_model", None)
        return copy.deepcopy(self.encoder, {id(text): None} if text is not None else {})

    @property
    def _width(self) -> int:
        return int(self._config.hidden_size)

    @property
    def _preprocessing(self) -> dict[str, Any]:
        return {name: getattr(self.processor.image_processor, name, None) for name in _IMAGE_SETTINGS}

    @property
    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        seen = ("clip.vision_model.", "clip.visual_projection.")
        for name, weight in self.encoder.state_dict().items():
            if name.startswith(seen):
                yield f"image_encoder.{name}", weight


class TextSide:
    """Texts through CLIP's text encoder, in the precision of its weights: a text takes too little time to gain from
    less."""

    kind: Kind = "text"

    def __init__(self, encoder: ImageEncoder, processor: SpeechImageProcessor, device: torch.device) -> None:
        self.encoder, self.processor, self.device = encoder, processor, device

    def prepare(self, item: Any) -> str:
        """A text."""
        return str(item)

    @torch.inference_mode()
    def vectors(self, prepared: list[str]) -> Tensor:
        """Texts to unit vectors [N, D], fp32."""
        tokens = self.processor.prepare_text(prepared)
        ids, mask = tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device)
        return _unit(self.encoder.encode_text(ids, mask))

    def passes(self, prepared: Sequence[Any], streams: int) -> list[list[int]]:
        """All texts at once."""
        del streams
        return [list(range(len(prepared)))] if prepared else []


def _alike(waveforms: Sequence[Any], most: int) -> list[list[int]]:
    """Positions in groups of like length, none with too much speech or too many clips; the longest come first."""
    groups: list[list[int]] = []
    longest = 0
    for row in sorted(range(len(waveforms)), key=lambda row: len(waveforms[row]), reverse=True):
        length = len(waveforms[row])
        rows = len(groups[-1]) if groups else most
        full = rows >= most or (rows + 1) * longest > _PASS_SECONDS * SAMPLE_RATE
        if full or length < _ALIKE * longest:
            groups.append([])
            longest = length
        groups[-1].append(row)
    return groups


def _unit(vectors: Any) -> Tensor:
    return functional.normalize(vectors.float(), dim=-1)


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = values.to(dtype)
    if not torch.isfinite(rounded).all():
        largest = values.abs().max().item()
        raise SaySeeError(
            f"an encoder gives a value of {largest:.3g}, which {dtype} cannot hold; set features.keep to off"
        )
    return rounded


def _about(side: Side) -> dict[str, Any]:
    return {"format": FEATURES_FORMAT, "transformers": transformers.__version__, "precision": side.precision}


def _encoder_fingerprint(config: Any, weights: Mapping[str, Tensor]) -> str:
    """Of all that an encoder computes from: the values of its configuration and its weights."""
    # What says where a model came from, or how fast it shall be, changes nothing that it gives.
    aside = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "_attn_implementation"}
    values = {name: value for name, value in config.to_dict().items() if name not in aside}
    return _fingerprint(values, sorted(weights.items()))


def _fingerprint(settings: dict[str, Any], weights: Sequence[tuple[str, Tensor]]) -> str:
    parts: list[bytes | memoryview] = [json.dumps(settings, sort_keys=True, default=_plain).encode()]
    for name, weight in weights:
        flat = weight.detach().cpu().contiguous().reshape(-1)
        parts += [f"{name} {weight.dtype} {list(weight.shape)}".encode(), flat.view(torch.uint8).numpy().data]
    return fingerprint(*parts)


def _plain(value: Any) -> Any:
    """A processor's value as JSON: sizes are mappings of a class of their own, some settings enumerations."""
    return {name: value[name] for name in sorted(value)} if hasattr(value, "keys") else str(value)
