"""Files and texts to vectors: preparing one file, which threads do, and encoding a batch, which the model does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from saysee.encoding.inference import Inference
from saysee.encoding.streams import Streams, takes_several
from saysee.errors import SaySeeError
from saysee.files import fingerprint
from saysee.media.audio import MAX_SECONDS, SAMPLE_RATE, load_audio
from saysee.media.images import MAX_PIXELS, load_image
from saysee.media.source import Source
from saysee.model.retriever import SpeechImageModel
from saysee.search.index.store import KINDS, About, Kind, Vectors

_BATCH_SECONDS = 160.0
"""Most speech in one forward pass of an accelerator, padding counted: HuBERT base keeps some 10 MB a second."""
_ALIKE = 0.8
"""How much shorter than the longest clip of such a pass another may be: what it lacks is computed all the same."""
_PIXELS_TO_ONE = 3
"""Pixels across a picture for each that the model sees that are kept in decoding: with 3 the vectors of clip-nano have
a cosine of 0.9999 and more to those of the whole picture, with 2 of 0.999."""
_PICTURE_SETTINGS = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std",
)  # fmt: skip

_WEIGHTS: dict[Kind, tuple[str, ...]] = {
    "image": ("image_encoder.clip.vision_model.", "image_encoder.clip.visual_projection."),
    "clip": ("speech_encoder.",),
}
"""What a kind's vectors are made by. Neither the text encoder, nor the fusion encoder, nor the logit scale."""


class Encoder:
    """A model as the index uses it.

    Args:
        model: on the device where it is to run; it is put into evaluation mode.
        name: folder or hub name that it came from.

    Attributes:
        fingerprints: by kind, of the weights and the preprocessing that make its vectors: those of pictures stay the
            same when only the speech side is trained further.
        dimension: D of its vectors.
    """

    def __init__(self, model: SpeechImageModel, name: str) -> None:
        self.model, self.name = model.eval(), name
        self.fingerprints: dict[Kind, str] = {kind: _fingerprint(model, kind) for kind in KINDS}
        self.dimension = int(model.config.projection_dim)

    @classmethod
    def load(cls, name: str, device: str = "cpu") -> Encoder:
        """The model of a folder or hub name.

        Raises:
            CheckpointError: there is none.
        """
        return cls(SpeechImageModel.from_pretrained(name).to(device), name)

    def check(self, about: About, where: object, kind: Kind = "image") -> None:
        """Compares the model with that of an index.

        The picture side must be the same in any case: it is the space that all vectors lie in.

        Args:
            about: of the index.
            where: it is, for messages.
            kind: the vectors that are to be compared with this model's; "clip" asks for the same speech side as well.

        Raises:
            SaySeeError: it is another one.
        """
        if self.dimension != about.dimension:
            raise SaySeeError(
                f"{where}: its vectors have {about.dimension} dimensions, those of the model {self.name} "
                f"{self.dimension}; give the index's own model ({about.model})"
            )
        if self.fingerprints["image"] != about.fingerprints["image"]:
            raise SaySeeError(
                f"{where}: its vectors are of another model than {self.name} (weights or preprocessing of the picture "
                f"side differ from {about.model} as it was); give that model, or index anew to another place"
            )
        if kind == "clip" and self.fingerprints["clip"] != about.fingerprints["clip"]:
            raise SaySeeError(
                f"{where}: its clips were encoded by another speech side than that of {self.name}; give 'saysee index' "
                "with this model, which encodes them anew, or search for pictures"
            )

    def prepare(
        self, kind: Kind, source: Source, *, max_seconds: float = MAX_SECONDS, max_pixels: int = MAX_PIXELS
    ) -> Any:
        """A picture to pixels [3, H, W], a clip to samples [T]; may run in several threads at once.

        Args:
            kind: picture or clip.
            source: a path, or the content of a file.
            max_seconds: limit of a clip.
            max_pixels: limit of a picture.

        Raises:
            MediaError: the file cannot be used.
        """
        if kind == "image":
            enough = _PIXELS_TO_ONE * int(self.model.config.vision_config.image_size)
            return self.model.processor.prepare_image(load_image(source, max_pixels=max_pixels, at_least=enough))
        return self.model.processor.prepare_speech(load_audio(source, max_seconds=max_seconds))

    @cached_property
    def inference(self) -> Inference:
        """What runs the model, made when first asked for."""
        return Inference(self.model)

    @cached_property
    def _streams(self) -> Streams:
        return Streams()

    def encode(self, kind: Kind, prepared: Sequence[Any]) -> Vectors:
        """A batch of what :meth:`prepare` gave to unit vectors [N, D]."""
        vectors = np.empty((len(prepared), self.dimension), np.float32)

        def fill(rows: list[int]) -> None:
            vectors[rows] = self._forward(kind, [prepared[row] for row in rows])

        parts = self._parts(kind, prepared)
        if len(parts) > 1 and self._on_processor:
            self._streams.run(fill, parts)
        else:
            for rows in parts:
                fill(rows)
        return vectors

    @torch.inference_mode()
    def _forward(self, kind: Kind, prepared: list[Any]) -> Vectors:
        if kind == "image":
            vectors = self.inference.images(torch.stack(prepared))
        else:
            vectors = self.inference.speech(*self.model.processor.pad(prepared))
        return np.asarray(vectors.cpu().numpy())

    @property
    def _on_processor(self) -> bool:
        return bool(self.model.device.type == "cpu")

    def _parts(self, kind: Kind, prepared: Sequence[Any]) -> list[list[int]]:
        """Rows that go through the model at once.

        On a processor a wide HuBERT takes each clip alone: that is faster than a batch with padding, and gives a clip
        the very same vector beside any other. A narrow one takes several; their vectors then differ by rounding.
        """
        if kind == "clip":
            if not self._on_processor:
                return _alike(prepared, len(prepared))
            hubert = self.model.config.speech_config
            if len(prepared) == 1 or not takes_several(hubert):
                return _alike(prepared, 1)
            return _alike(prepared, self._streams.clips_of_a_pass(len(prepared)))
        count = min(len(prepared), self._streams.count if self._on_processor else 1)
        return [part.tolist() for part in np.array_split(np.arange(len(prepared)), count)] if count else []


def _alike(waveforms: Sequence[Any], most: int) -> list[list[int]]:
    """Rows in groups of like length, none with too much speech or too many rows; the longest come first."""
    groups: list[list[int]] = []
    longest = 0
    for row in sorted(range(len(waveforms)), key=lambda row: len(waveforms[row]), reverse=True):
        length = len(waveforms[row])
        rows = len(groups[-1]) if groups else most
        full = rows >= most or (rows + 1) * longest > _BATCH_SECONDS * SAMPLE_RATE
        if full or length < _ALIKE * longest:
            groups.append([])
            longest = length
        groups[-1].append(row)
    return groups


def _fingerprint(model: SpeechImageModel, kind: Kind) -> str:
    processor = model.processor
    settings: dict[str, Any]
    if kind == "image":
        settings = {name: getattr(processor.image_processor, name, None) for name in _PICTURE_SETTINGS}
    else:
        settings = {"do_normalize": processor.feature_extractor.do_normalize}
    parts: list[bytes | memoryview] = [json.dumps(settings, sort_keys=True, default=_plain).encode()]
    for name, weight in sorted(model.state_dict().items()):
        if name.startswith(_WEIGHTS[kind]):
            flat = weight.detach().cpu().contiguous().reshape(-1)
            parts += [f"{name} {weight.dtype} {list(weight.shape)}".encode(), flat.view(torch.uint8).numpy().data]
    return fingerprint(*parts)


def _plain(value: Any) -> Any:
    """A processor's value as JSON: sizes are mappings of a class of their own, some settings enumerations."""
    return {name: value[name] for name in sorted(value)} if hasattr(value, "keys") else str(value)
