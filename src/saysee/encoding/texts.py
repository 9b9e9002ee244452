"""The text side of a model: CLIP's text encoder."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from saysee.model.image_encoder import ImageEncoder
from saysee.model.processor import SpeechImageProcessor

logger = logging.getLogger(__name__)

_REMEMBERED = 10_000
"""Texts of which it is remembered that their length was reported."""


class TextSide:
    """Texts through CLIP's text encoder, in the precision of its weights: a text takes too little time to gain from
    less."""

    kind = "text"

    def __init__(self, encoder: ImageEncoder, processor: SpeechImageProcessor, device: torch.device) -> None:
        config, tokenizer = encoder.clip.config.text_config, processor.tokenizer
        assert config is not None
        assert tokenizer is not None
        self.encoder, self.tokenizer, self.device = encoder, tokenizer, device
        self._limit = min(config.max_position_embeddings, tokenizer.limit)
        self._reported: set[str] = set()
        self._reporting = threading.Lock()  # texts are prepared in several threads

    def prepare(self, item: str) -> str:
        """A text. One that is longer than the encoder takes is logged as a warning, once."""
        if item not in self._reported and (used := self.used(item)) is not None:
            with self._reporting:
                is_new = item not in self._reported
                if len(self._reported) < _REMEMBERED:
                    self._reported.add(item)
            if is_new:
                logger.warning("the text is longer than the %d tokens of the model; used: %r", self._limit, used)
        return item

    def used(self, text: str) -> str | None:
        """The start of a text that is longer than the encoder takes, as far as it is used; None if all of it is."""
        return self.tokenizer.used(text, self._limit)

    @torch.inference_mode()
    def vectors(self, prepared: list[str]) -> Tensor:
        """Texts to unit vectors [N, D], fp32."""
        ids = self.tokenizer.ids(prepared, self._limit).to(self.device)
        return functional.normalize(self.encoder.encode_text(ids).float(), dim=-1)

    def passes(self, prepared: Sequence[Any], streams: int) -> list[list[int]]:
        """All texts at once."""
        del streams
        return [list(range(len(prepared)))] if prepared else []
