"""Waveforms, images and texts to tensors; saved beside the weights."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from saysee.files import write_text
from saysee.media.padding import pad
from saysee.model.pretrained.tokenizer import TextTokenizer
from saysee.model.pretrained.weights import read_json

_FILE, _OTHER_FILE = "processor_config.json", "preprocessor_config.json"
_SIDES = ("height", "width")
_SPEECH, _IMAGES = "feature_extractor", "image_processor"


@dataclass
class SpeechPreparation:
    """How HuBERT's waveforms are prepared, with the names of ``preprocessor_config.json``."""

    do_normalize: bool = True


@dataclass
class ImagePreparation:
    """How CLIP's images are prepared, with the names and the defaults of ``preprocessor_config.json``."""

    do_resize: bool = True
    size: dict[str, int] = field(default_factory=lambda: {"shortest_edge": 224})
    resample: int = int(Image.Resampling.BICUBIC)
    do_center_crop: bool = True
    crop_size: dict[str, int] = field(default_factory=lambda: {"height": 224, "width": 224})
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: list[float] = field(default_factory=lambda: [0.48145466, 0.4578275, 0.40821073])
    image_std: list[float] = field(default_factory=lambda: [0.26862954, 0.26130258, 0.27577711])

    @classmethod
    def of(cls, values: dict[str, Any]) -> ImagePreparation:
        """Of the values of a ``preprocessor_config.json``; ValueError if one is of a wrong type."""
        known = {each.name: values[each.name] for each in fields(cls) if values.get(each.name) is not None}
        for name, forms in (("size", (("shortest_edge",), _SIDES)), ("crop_size", (_SIDES,))):
            if name in known:
                known[name] = _sides(name, known[name], forms)
        made = cls(**known)
        try:
            made(Image.new("RGB", (8, 8)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"images cannot be prepared as {_OTHER_FILE} says: {error}") from error
        return made

    def check(self, side: int) -> None:
        """ValueError unless images of all shapes become ``side`` pixels wide and high."""
        found = self(Image.new("RGB", (side, 2 * side))).shape[1:]
        if found != (side, side):
            raise ValueError(
                f"images become {found[1]} x {found[0]} pixels and the model takes {side} x {side}: give these in size "
                f"and crop_size of {_OTHER_FILE}"
            )

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image before it is cropped."""
        if not self.do_resize:
            return width, height
        if "height" in self.size:
            return self.size["width"], self.size["height"]
        short, edge = min(width, height), self.size["shortest_edge"]
        return int(edge * width / short), int(edge * height / short)

    def crop_corner(self, width: int, height: int) -> tuple[int, int]:
        """Left and top, in a resized image, of what is kept; negative where a margin is added."""
        if not self.do_center_crop:
            return 0, 0
        return (width - self.crop_size["width"]) // 2, (height - self.crop_size["height"]) // 2

    def __call__(self, image: Image.Image) -> Tensor:
        """One image to pixels [3, H, W]."""
        image = image.convert("RGB")
        if self.do_resize:
            image = image.resize(self.resized(*image.size), Image.Resampling(self.resample))
        if self.do_center_crop:
            left, top = self.crop_corner(*image.size)
            image = image.crop((left, top, left + self.crop_size["width"], top + self.crop_size["height"]))
        pixels = np.asarray(image)
        scaled: Any = pixels.astype(np.float64) * self.rescale_factor if self.do_rescale else pixels
        values: NDArray[Any] = scaled.astype(np.float32)
        if self.do_normalize:
            values = (values - np.array(self.image_mean, np.float32)) / np.array(self.image_std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


class SpeechImageProcessor:
    """Prepares waveforms, images and, with a tokenizer, texts for a model."""

    def __init__(
        self,
        feature_extractor: SpeechPreparation,
        image_processor: ImagePreparation,
        tokenizer: TextTokenizer | None = None,
    ) -> None:
        self.feature_extractor, self.image_processor, self.tokenizer = feature_extractor, image_processor, tokenizer

    @classmethod
    def from_sources(
        cls, speech: str | None, image: str | None, image_size: int, text: bool, raw_speech: bool = False
    ) -> SpeechImageProcessor:
        """The processor of two encoders by hub name or folder, with the tokenizer if the model takes ``text``.

        Without a HuBERT waveforms are normalized; ``raw_speech`` turns that off, whatever the HuBERT says. Without a
        CLIP images get CLIP's own steps. ``image_size`` is the side of the square image that the vision transformer
        takes, in pixels. Raises OSError or ValueError if a file is missing or damaged, or makes images of another size
        than the model takes.
        """
        values = {} if speech is None else _values(read_json(speech, _FILE), speech, _SPEECH)
        extractor = SpeechPreparation(not raw_speech and bool(values.get("do_normalize", True)))
        if image is None:
            size, crop = {"shortest_edge": image_size}, {"height": image_size, "width": image_size}
            return cls(extractor, ImagePreparation(size=size, crop_size=crop))
        tokenizer = TextTokenizer.load(image) if text else None
        images = ImagePreparation.of(_values(read_json(image, _FILE), image, _IMAGES))
        images.check(image_size)
        return cls(extractor, images, tokenizer)

    @classmethod
    def from_pretrained(cls, place: str | os.PathLike[str], **hub: Any) -> SpeechImageProcessor:
        """Reads what :meth:`save_pretrained` wrote, from a folder or the hub; errors as :meth:`from_sources`."""
        saved = read_json(place, _FILE, **hub)
        extractor, images = (_values(saved, place, part, **hub) for part in (_SPEECH, _IMAGES))
        tokenizer = TextTokenizer.load(place, **hub) if saved.get("has_text") else None
        return cls(SpeechPreparation(bool(extractor.get("do_normalize", True))), ImagePreparation.of(images), tokenizer)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the files of the processor, and of the tokenizer if it has one, into a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        values: dict[str, Any] = {_SPEECH: asdict(self.feature_extractor), _IMAGES: asdict(self.image_processor)}
        values["has_text"] = self.tokenizer is not None
        write_text(Path(folder) / _FILE, json.dumps(values, indent=2) + "\n")
        if self.tokenizer is not None:
            self.tokenizer.save(Path(folder))

    def prepare_speech(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """One waveform [T] at 16 kHz, normalized as HuBERT was trained: [T]."""
        if not self.feature_extractor.do_normalize:
            return waveform
        return np.asarray((waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7), dtype=np.float32)

    def prepare_image(self, image: Image.Image) -> Tensor:
        """One RGB image to pixels [3, H, W]."""
        return self.image_processor(image)

    @staticmethod
    def pad(waveforms: Sequence[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
        """Prepared clips of any lengths to zero-padded waveforms [B, T] and their exact mask [B, T]."""
        return pad(waveforms)


def _values(saved: dict[str, Any], place: str | os.PathLike[str], part: str, **hub: Any) -> dict[str, Any]:
    """One part of ``processor_config.json``, which ``saved`` is, or of the other file that transformers writes."""
    values = saved.get(part) or read_json(place, _OTHER_FILE, **hub)
    if not values:
        raise FileNotFoundError(f"{place} has no {_OTHER_FILE}")
    return dict(values)


def _sides(name: str, value: Any, forms: Sequence[tuple[str, ...]]) -> dict[str, int]:
    """A size as numbers of pixels by side; older files have one number or a list."""
    found = value
    if isinstance(value, int):
        found = dict.fromkeys(forms[0], value)
    elif isinstance(value, list) and len(value) == len(_SIDES):
        found = dict(zip(_SIDES, value, strict=True))
    sides = {side: pixels for side, pixels in found.items() if pixels is not None} if isinstance(found, dict) else {}
    known = any(set(sides) == set(form) for form in forms)
    if not known or not all(type(pixels) is int and pixels > 0 for pixels in sides.values()):
        raise ValueError(f"{name} of images is {value!r}; give {', or '.join(' and '.join(form) for form in forms)}")
    return sides
