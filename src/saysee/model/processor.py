"""Waveforms, images and texts to tensors; saved beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessorPil, ProcessorMixin, Wav2Vec2FeatureExtractor

from saysee.media.audio import SAMPLE_RATE
from saysee.media.padding import pad
from saysee.model.packaged import place_of


class SpeechImageProcessor(ProcessorMixin):  # type: ignore[misc]
    """Prepares waveforms, images and texts for a model.

    Args:
        feature_extractor: HuBERT's own, which says whether waveforms are normalized.
        image_processor: CLIP's own: resizing, cropping, normalizing.
        has_text: whether a tokenizer is saved beside it.
    """

    def __init__(
        self,
        feature_extractor: Wav2Vec2FeatureExtractor,
        image_processor: CLIPImageProcessorPil,
        has_text: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_extractor, image_processor, **kwargs)
        self.has_text = has_text
        self.tokenizer: Any = None

    @classmethod
    def from_sources(
        cls, speech: str | None, image: str | None, image_size: int, text: bool, raw_speech: bool = False
    ) -> SpeechImageProcessor:
        """The processor of two encoders.

        Args:
            speech: hub name or folder of the HuBERT; None: an extractor that normalizes.
            image: hub name or folder of the CLIP; None: CLIP's own steps at ``image_size``.
            image_size: side of the square image that the vision transformer takes, in pixels.
            text: take the tokenizer too (``image`` must have one).
            raw_speech: do not normalize waveforms, whatever the extractor says.

        Raises:
            OSError: a file of a source is missing.
        """
        if speech is None:
            options = {"sampling_rate": SAMPLE_RATE, "do_normalize": True, "return_attention_mask": True}
            extractor = Wav2Vec2FeatureExtractor(**options)
        else:
            extractor = Wav2Vec2FeatureExtractor.from_pretrained(place_of(speech))
        extractor.do_normalize = extractor.do_normalize and not raw_speech
        if image is None:
            crop = {"height": image_size, "width": image_size}
            images = CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=crop)
        else:
            image = place_of(image)
            images = CLIPImageProcessorPil.from_pretrained(image)
        processor = cls(extractor, images, has_text=text)
        if text:
            tokenizer = AutoTokenizer.from_pretrained(image)
            # Without tokenizer files, transformers makes a tokenizer of special tokens only.
            if len(tokenizer) <= len(tokenizer.all_special_tokens):
                raise OSError(f"{image} has no tokenizer files")
            processor.tokenizer = tokenizer
        return processor

    def prepare_speech(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """One waveform [T] at 16 kHz, normalized as HuBERT was trained: [T]."""
        if not self.feature_extractor.do_normalize:
            return waveform
        # As Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm, but without lists.
        return np.asarray((waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7), dtype=np.float32)

    def prepare_image(self, image: Image.Image) -> Tensor:
        """One RGB image to pixels [3, H, W]."""
        pixels = self.image_processor(image, return_tensors="pt")["pixel_values"][0]
        assert isinstance(pixels, Tensor)
        return pixels

    def prepare_text(self, texts: Sequence[str], limit: int) -> dict[str, Tensor]:
        """Texts to ``input_ids`` and ``attention_mask``, both [B, N].

        Args:
            texts: the texts.
            limit: tokens that the text encoder takes. A tokenizer may know less, or not know its limit.
        """
        limit = min(limit, self.tokenizer.model_max_length)
        options = {"padding": True, "truncation": True, "max_length": limit, "return_tensors": "pt"}
        return dict(self.tokenizer(list(texts), **options))

    @staticmethod
    def pad(waveforms: Sequence[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
        """Prepared clips of any lengths to zero-padded waveforms [B, T] and their exact mask [B, T]."""
        return pad(waveforms)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Writes the files of the processor, and of the tokenizer if it has one, into a folder."""
        files = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)
        return files

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> SpeechImageProcessor:
        """Reads what :meth:`save_pretrained` wrote, from a folder or the hub."""
        place = place_of(pretrained_model_name_or_path)
        processor: SpeechImageProcessor = super().from_pretrained(place, **kwargs)
        if processor.has_text:
            processor.tokenizer = AutoTokenizer.from_pretrained(place, **kwargs)
        return processor
