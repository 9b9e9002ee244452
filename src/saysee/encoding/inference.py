"""The two encoders of a model as an index runs them: in bf16 where the chip has it and the vectors stay the same."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from saysee.encoding.precision import Arithmetic, arithmetic_of
from saysee.media.audio import SAMPLE_RATE
from saysee.model.retriever import SpeechImageModel

LEAST_COSINE = 0.9995
"""Of a vector in bf16 to the same in fp32; encoders of the published sizes have 0.9999."""
_LEAST_WIDTH = 64
"""Layers narrower than this gain nothing by bf16."""


class Inference:
    """A model's encoders, ready to run.

    bf16 takes half of the time of fp32 or less. It is tried on noise first, because not every kernel of every release
    and chip computes it right (see ``ExactPositions`` in the speech encoder); a side that fails stays in fp32.

    Args:
        model: in evaluation mode, on its device.

    Attributes:
        speech_arithmetic, image_arithmetic: "bf16" or "fp32".
    """

    speech_arithmetic: Arithmetic = "fp32"
    image_arithmetic: Arithmetic = "fp32"

    @torch.inference_mode()
    def __init__(self, model: SpeechImageModel) -> None:
        self._device = model.device
        self._speech, self._image = model.speech_encoder, model.image_encoder
        if model.dtype != torch.float32 or arithmetic_of("auto", model.device.type) == "fp32":
            return
        if model.config.speech_config.hidden_size >= _LEAST_WIDTH:
            self._try_speech()
        if model.config.vision_config.hidden_size >= _LEAST_WIDTH:
            self._try_images(model.config.vision_config.image_size)

    def speech(self, waveforms: Tensor, mask: Tensor) -> Tensor:
        """Waveforms [B, T] and their mask to unit vectors [B, D], in fp32."""
        return _speech_vectors(self._speech, waveforms.to(self._device), mask.to(self._device))

    def images(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] to unit vectors [B, D], in fp32."""
        return _image_vectors(self._image, pixels.to(self._device))

    def _try_speech(self) -> None:
        noise = torch.randn(2, SAMPLE_RATE, generator=torch.Generator().manual_seed(0)).to(self._device)
        mask = torch.ones_like(noise, dtype=torch.bool)
        mask[1, SAMPLE_RATE // 2 :] = False
        noise = noise * mask
        quick = copy.deepcopy(self._speech).bfloat16()
        if _agree(_speech_vectors(quick, noise, mask), _speech_vectors(self._speech, noise, mask)):
            self._speech, self.speech_arithmetic = quick, "bf16"

    def _try_images(self, side: int) -> None:
        noise = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(self._device)
        # A text encoder, which has no part in this, is not copied: deepcopy takes None for it.
        text = getattr(self._image.clip, "text_model", None)
        quick = copy.deepcopy(self._image, {id(text): None} if text is not None else {}).bfloat16()
        if _agree(_image_vectors(quick, noise), _image_vectors(self._image, noise)):
            self._image, self.image_arithmetic = quick, "bf16"


def _speech_vectors(encoder: nn.Module, waveforms: Tensor, mask: Tensor) -> Tensor:
    return _unit(encoder(waveforms.to(_dtype(encoder)), mask).vector)


def _image_vectors(encoder: nn.Module, pixels: Tensor) -> Tensor:
    return _unit(encoder(pixels.to(_dtype(encoder))).vector)


def _unit(vectors: Any) -> Tensor:
    return functional.normalize(vectors.float(), dim=-1)


def _dtype(encoder: nn.Module) -> torch.dtype:
    return next(encoder.parameters()).dtype


def _agree(quick: Tensor, exact: Tensor) -> bool:
    return bool(((quick * exact).sum(dim=-1) >= LEAST_COSINE).all())  # NaN does not agree either
