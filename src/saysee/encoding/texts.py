"""The text side of a model: CLIP's text encoder."""

from __future__ import annotations

import copy
import logging
import re
import threading
import unicodedata
from collections.abc import Sequence
from functools import cached_property
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
        self.encoder, self.processor, self.device = encoder, processor, device
        limit = encoder.clip.config.text_config.max_position_embeddings
        self._limit = int(min(limit, processor.tokenizer.model_max_length))
        self._reported: set[str] = set()
        self._reporting = threading.Lock()  # texts are prepared in several threads

    @cached_property
    def _tokenizer(self) -> Any:
        """A copy to look at texts with: a tokenizer keeps how it cuts and pads, and a batch may be padded meanwhile.

        Made when it is needed: most texts are short, and copying a vocabulary of 49,000 words takes over 50 ms.
        """
        return copy.deepcopy(self.processor.tokenizer)

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
        if len(text.encode(errors="replace")) <= self._limit - 2:  # a token has at least one byte; two are added
            return None
        tokens = self._tokenizer(text, return_offsets_mapping=True, verbose=False)
        if len(tokens["input_ids"]) <= self._limit:
            return None
        kept = tokens["offset_mapping"][: self._limit - 1]  # before the mark of the end
        return text[: max(end for _, end in kept)]

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text for which the tokenizer has one token only, that of all unknown words; each once.

        The tokenizers of published CLIPs know parts of words down to single bytes, and so all words.
        """
        whole = self.processor.tokenizer
        unknown = whole.unk_token_id
        if unknown is None or unknown in (whole.bos_token_id, whole.eos_token_id, whole.pad_token_id):
            return []
        tokenizer = self._tokenizer
        words = dict.fromkeys(re.findall(r"\w+(?:['’]\w+)*|[^\w\s]", text))
        shown = [word for word in words if not unicodedata.category(word[0]).startswith("P")]
        return [word for word in shown if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]

    @torch.inference_mode()
    def vectors(self, prepared: list[str]) -> Tensor:
        """Texts to unit vectors [N, D], fp32."""
        tokens = self.processor.prepare_text(prepared, self._limit)
        ids, mask = tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device)
        return functional.normalize(self.encoder.encode_text(ids, mask).float(), dim=-1)

    def passes(self, prepared: Sequence[Any], streams: int) -> list[list[int]]:
        """All texts at once."""
        del streams
        return [list(range(len(prepared)))] if prepared else []
