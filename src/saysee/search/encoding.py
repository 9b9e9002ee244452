"""Files and texts to vectors: preparing one file, which threads do, and encoding a batch, which the model does."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from saysee.errors import SaySeeError
from saysee.files import fingerprint
from saysee.media.audio import SAMPLE_RATE, load_audio
from saysee.media.images import load_image
from saysee.model.retriever import SpeechImageModel
from saysee.search.store import About, Kind, Vectors

_BATCH_SECONDS = 160.0
"""Most speech in one forward pass, padding counted: HuBERT base keeps some 10 MB a second."""
_PICTURE_SETTINGS = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std",
)  # fmt: skip


class Encoder:
    """A model as the index uses it.

    Args:
        model: on the device where it is to run; it is put into evaluation mode.
        name: folder or hub name that it came from.

    Attributes:
        fingerprint: of its weights (those of retrieval: a fusion encoder does not count) and its preprocessing.
        dimension: D of its vectors.
    """

    def __init__(self, model: SpeechImageModel, name: str) -> None:
        self.model, self.name = model.eval(), name
        self.fingerprint = _fingerprint(model)
        self.dimension = int(model.config.projection_dim)

    @classmethod
    def load(cls, name: str, device: str = "cpu") -> Encoder:
        """The model of a folder or hub name.

        Raises:
            CheckpointError: there is none.
        """
        return cls(SpeechImageModel.from_pretrained(name).to(device), name)

    def check(self, about: About, where: object) -> None:
        """Compares the model with that of an index.

        Raises:
            SaySeeError: it is another one.
        """
        if self.dimension != about.dimension:
            raise SaySeeError(
                f"{where}: its vectors have {about.dimension} dimensions, those of the model {self.name} "
                f"{self.dimension}; give the index's own model ({about.model})"
            )
        if self.fingerprint != about.fingerprint:
            raise SaySeeError(
                f"{where}: its vectors are of another model than {self.name} (weights or preprocessing differ from "
                f"{about.model} as it was); give that model, or index anew into another folder"
            )

    def prepare(self, kind: Kind, path: str | os.PathLike[str]) -> Any:
        """A picture to pixels [3, H, W], a clip to samples [T]; may run in several threads at once.

        Raises:
            MediaError: the file cannot be used.
        """
        if kind == "image":
            return self.model.processor.prepare_image(load_image(path))
        return self.model.processor.prepare_speech(load_audio(path))

    @torch.inference_mode()
    def encode(self, kind: Kind, prepared: Sequence[Any]) -> Vectors:
        """A batch of what :meth:`prepare` gave to unit vectors [N, D]."""
        vectors = np.empty((len(prepared), self.dimension), np.float32)
        for rows in self._together(kind, prepared):
            encoded = self._forward(kind, [prepared[row] for row in rows])
            vectors[rows] = functional.normalize(encoded.float(), dim=-1).cpu().numpy()
        return vectors

    def _forward(self, kind: Kind, prepared: list[Any]) -> Tensor:
        device, dtype = self.model.device, self.model.dtype
        if kind == "image":
            vector = self.model.image_encoder(torch.stack(prepared).to(device, dtype)).vector
        else:
            waveforms, mask = self.model.processor.pad(prepared)
            vector = self.model.speech_encoder(waveforms.to(device, dtype), mask.to(device)).vector
        assert isinstance(vector, Tensor)
        return vector

    @staticmethod
    def _together(kind: Kind, prepared: Sequence[Any]) -> list[list[int]]:
        """Rows that go through the model at once: clips of like length, and not too much speech."""
        if kind == "image":
            return [list(range(len(prepared)))] if prepared else []
        groups: list[list[int]] = []
        longest = 0
        for row in sorted(range(len(prepared)), key=lambda row: len(prepared[row]), reverse=True):
            if not groups or (len(groups[-1]) + 1) * longest > _BATCH_SECONDS * SAMPLE_RATE:
                groups.append([])
                longest = len(prepared[row])
            groups[-1].append(row)
        return groups


def _fingerprint(model: SpeechImageModel) -> str:
    processor = model.processor
    pictures = {name: getattr(processor.image_processor, name, None) for name in _PICTURE_SETTINGS}
    settings = {"pictures": pictures, "normalised speech": processor.feature_extractor.do_normalize}
    parts: list[bytes | memoryview] = [json.dumps(settings, sort_keys=True, default=_plain).encode()]
    for name, weight in sorted(model.state_dict().items()):
        if not name.startswith("fusion."):
            flat = weight.detach().cpu().contiguous().reshape(-1)
            parts += [f"{name} {weight.dtype} {list(weight.shape)}".encode(), flat.view(torch.uint8).numpy().data]
    return fingerprint(*parts)


def _plain(value: Any) -> Any:
    """A processor's value as JSON: sizes are mappings of a class of their own, some settings enumerations."""
    return {name: value[name] for name in sorted(value)} if hasattr(value, "keys") else str(value)
