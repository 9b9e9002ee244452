"""Speech recognition: clips to texts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCTC, AutoModelForSpeechSeq2Seq, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

from saysee.errors import CheckpointError, SaySeeError
from saysee.log import progress_bar
from saysee.media.audio import SAMPLE_RATE, load_audio
from saysee.model.loading import FIX, first_line, load_weights, read_config

File = str | os.PathLike[str]
ENCODER_DECODERS = ("whisper",)
"""Kinds that generate text token by token; of the many in transformers, those whose windows have a fixed length."""


class SpeechRecognizer:
    """A recognizer of transformers, decoded greedily: a Whisper, or one with CTC (wav2vec 2.0, HuBERT, WavLM, …).

    The text does not depend on the batch. Whisper takes windows of 30 s, several at once; a longer clip is cut into
    windows whose texts are joined. CTC recognizers take one clip at a time, because padding changes their output.

    Args:
        place: folder or hub name of the recognizer.
        language: the spoken language, as a tag such as "en", for a recognizer of several languages; None detects it in
            each window.
        device: where it runs, such as "cpu" or "cuda".

    Raises:
        CheckpointError: there is no recognizer at that place.
        SaySeeError: it does not know the language.
    """

    def __init__(self, place: File, *, language: str | None = None, device: str = "cpu") -> None:
        kind = read_config(place, (*ENCODER_DECODERS, *MODEL_FOR_CTC_MAPPING_NAMES), "speech recognizer", FIX)
        self.generates = kind in ENCODER_DECODERS
        loader = AutoModelForSpeechSeq2Seq if self.generates else AutoModelForCTC
        self.model = load_weights(loader, place, "speech recognizer", FIX).eval().to(device)
        self.processor = _load_processor(place)
        self.window: int | None = self.processor.feature_extractor.n_samples if self.generates else None
        self._language = {} if language is None else self._language_options(language, place)

    def transcribe(self, clips: Sequence[File], *, batch_size: int = 32, progress: bool = True) -> list[str]:
        """Audio files to texts, in order; a clip in which nothing is recognized gives an empty text.

        Args:
            clips: paths of audio files.
            batch_size: windows that Whisper takes together.
            progress: show a progress bar on stderr when it takes over two seconds.

        Raises:
            MediaError: a file cannot be decoded.
        """
        if batch_size < 1:
            raise SaySeeError(f"batch_size is {batch_size}; it must be at least 1")
        found: list[list[str]] = [[] for _ in clips]
        windows = self._windows(clips)
        with progress_bar("recognizing clips", len(clips), enabled=progress) as bar:
            while batch := list(islice(windows, batch_size if self.window else 1)):
                numbers, samples = zip(*batch, strict=True)
                for number, text in zip(numbers, self._recognize(list(samples)), strict=True):
                    if not found[number]:
                        bar.advance()
                    found[number].append(text.strip())
        return [" ".join(filter(None, texts)) for texts in found]

    @torch.inference_mode()
    def _recognize(self, windows: list[NDArray[np.float32]]) -> list[str]:
        inputs = self.processor(windows, sampling_rate=SAMPLE_RATE, return_tensors="pt").to(self.model.device)
        if not self.generates:
            return list(self.processor.batch_decode(self.model(**inputs).logits.argmax(dim=-1)))
        tokens = self.model.generate(**inputs, do_sample=False, num_beams=1, **self._language)
        return list(self.processor.batch_decode(tokens, skip_special_tokens=True))

    def _windows(self, clips: Sequence[File]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for number, clip in enumerate(clips):
            samples = load_audio(clip)
            length = self.window or len(samples)
            for start in range(0, len(samples), length):
                yield number, samples[start : start + length]

    def _language_options(self, language: str, place: File) -> dict[str, str]:
        generation = getattr(self.model, "generation_config", None)  # recognizers with CTC have none
        known = [token.strip("<|>") for token in getattr(generation, "lang_to_id", None) or ()]
        if language not in known:
            fix = (
                f"it knows {', '.join(sorted(known))}" if known else "its language cannot be chosen; remove --language"
            )
            raise SaySeeError(f"the speech recognizer at {os.fspath(place)} has no language {language!r}; {fix}")
        return {"language": language, "task": "transcribe"}


def _load_processor(place: File) -> Any:
    """The recognizer's own processor; a CheckpointError if there is none, or it is unusable here."""
    try:
        processor = AutoProcessor.from_pretrained(os.fspath(place))
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise CheckpointError(f"no processor of a speech recognizer at {place}: {first_line(error)}; {FIX}") from error
    extractor = getattr(processor, "feature_extractor", None)
    if extractor is None or not hasattr(processor, "tokenizer"):
        raise CheckpointError(f"the processor at {place} is not of a speech recognizer; {FIX}")
    if extractor.sampling_rate != SAMPLE_RATE:
        raise CheckpointError(
            f"the speech recognizer at {place} takes {extractor.sampling_rate} Hz; give one of {SAMPLE_RATE} Hz"
        )
    return processor
