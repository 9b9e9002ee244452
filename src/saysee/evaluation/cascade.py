"""The cascade that a user would pick instead: a speech recogniser writes down, CLIP's text encoder searches.

    cascade = Cascade("openai/clip-vit-base-patch32", SpeechRecognizer("openai/whisper-small"))
    result = evaluate_cascade(cascade, Manifest.read("flickr8k.parquet"))

It is scored as a model is: same files, same protocol, same table. With the manifest's own texts in place of a
recogniser (``ManifestTexts``) it gives the upper reference: a recogniser without errors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCTC, AutoModelForSpeechSeq2Seq, AutoProcessor, CLIPModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

from saysee.data.manifest import Manifest
from saysee.errors import CheckpointError, SaySeeError
from saysee.evaluation.protocols import EvaluationResult, evaluate
from saysee.evaluation.word_errors import count_word_errors
from saysee.log import progress_bar
from saysee.media.audio import SAMPLE_RATE, load_audio
from saysee.media.images import load_image
from saysee.model.loading import MEND, first_line, load_clip, load_weights, read_config
from saysee.model.packaged import place_of
from saysee.model.processor import SpeechImageProcessor

File: TypeAlias = os.PathLike[str]
ENCODER_DECODERS = ("whisper",)
"""Kinds that write text token by token; of the many in transformers, those whose windows have a fixed length."""


class Transcriber(Protocol):
    """What the cascade asks of a recogniser."""

    def transcribe(self, clips: Sequence[File], *, batch_size: int, progress: bool) -> list[str]:
        """Sound files to texts, in order."""


class SpeechRecognizer:
    """A recogniser of transformers, greedy: a Whisper, or one with CTC (wav2vec 2.0, HuBERT, WavLM and the like).

    What it hears does not depend on the batch. Whisper takes windows of 30 s, several at once; a longer clip is cut
    into windows whose texts are joined. CTC recognisers take one clip at a time: padding changes what they hear.

    Args:
        place: folder or hub name of the recogniser.
        language: the language spoken, as a tag such as "en", for a recogniser that knows several; None lets it find out
            for each window.
        device: where it runs, such as "cpu" or "cuda".

    Raises:
        CheckpointError: there is no recogniser at that place.
        SaySeeError: it does not know the language.
    """

    def __init__(self, place: str | File, *, language: str | None = None, device: str = "cpu") -> None:
        kind = read_config(place, (*ENCODER_DECODERS, *MODEL_FOR_CTC_MAPPING_NAMES), "speech recogniser", MEND)
        self.generates = kind in ENCODER_DECODERS
        loader = AutoModelForSpeechSeq2Seq if self.generates else AutoModelForCTC
        self.model = load_weights(loader, place, "speech recogniser", MEND).eval().to(device)
        self.processor = _load_processor(place)
        self.window: int | None = self.processor.feature_extractor.n_samples if self.generates else None
        self._spoken = {} if language is None else self._speaking(language, place)

    def transcribe(self, clips: Sequence[File], *, batch_size: int = 32, progress: bool = True) -> list[str]:
        """Sound files to texts, in order; a clip in which nothing is recognised gives an empty text.

        Args:
            clips: paths of sound files.
            batch_size: windows that Whisper hears together.
            progress: show a bar on stderr when it takes over two seconds.

        Raises:
            MediaError: a file cannot be decoded.
        """
        heard: list[list[str]] = [[] for _ in clips]
        with progress_bar("recognising clips", len(clips), enabled=progress) as bar:
            for batch in _batches(self._windows(clips), batch_size if self.window else 1):
                numbers, windows = zip(*batch, strict=True)
                for number, text in zip(numbers, self._hear(list(windows)), strict=True):
                    if not heard[number]:
                        bar.advance()
                    heard[number].append(text.strip())
        return [" ".join(filter(None, texts)) for texts in heard]

    @torch.inference_mode()
    def _hear(self, windows: list[NDArray[np.float32]]) -> list[str]:
        inputs = self.processor(windows, sampling_rate=SAMPLE_RATE, return_tensors="pt").to(self.model.device)
        if not self.generates:
            return list(self.processor.batch_decode(self.model(**inputs).logits.argmax(dim=-1)))
        tokens = self.model.generate(**inputs, do_sample=False, num_beams=1, **self._spoken)
        return list(self.processor.batch_decode(tokens, skip_special_tokens=True))

    def _windows(self, clips: Sequence[File]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for number, clip in enumerate(clips):
            samples = load_audio(clip)
            length = self.window or len(samples)
            for start in range(0, len(samples), length):
                yield number, samples[start : start + length]

    def _speaking(self, language: str, place: str | File) -> dict[str, str]:
        generation = getattr(self.model, "generation_config", None)  # recognisers with CTC have none
        known = [token.strip("<|>") for token in getattr(generation, "lang_to_id", None) or ()]
        if language not in known:
            mend = f"it knows {', '.join(sorted(known))}" if known else "it cannot be told one; leave --language out"
            raise SaySeeError(f"the speech recogniser at {os.fspath(place)} has no language {language!r}; {mend}")
        return {"language": language, "task": "transcribe"}


class ManifestTexts:
    """The texts that manifests give, in place of a recogniser.

    Args:
        manifests: whose clips may be asked for.
    """

    def __init__(self, manifests: Iterable[Manifest]) -> None:
        self._texts = {os.fspath(rows.clip_path(row)): row.text for rows in manifests for row in rows}

    def transcribe(self, clips: Sequence[File], *, batch_size: int = 32, progress: bool = True) -> list[str]:
        """The text of each clip, in order.

        Raises:
            SaySeeError: a clip has none.
        """
        del batch_size, progress
        texts = []
        for clip in clips:
            text = self._texts.get(os.fspath(clip))
            if not text:
                raise SaySeeError(
                    f"{os.fspath(clip)}: the manifest has no text for it; give a recognizer: cascade:ASR+CLIP"
                )
            texts.append(text)
        return texts


class Cascade:
    """A recogniser and CLIP, as an ``Encoder`` of the protocol.

    Args:
        clip: folder or hub name of a CLIP with its text encoder, or a name of the package such as ``saysee/clip-nano``.
        transcriber: turns sound files into texts.
        device: where CLIP runs, such as "cpu" or "cuda".

    Attributes:
        heard: text of each clip encoded so far, by its path.

    Raises:
        CheckpointError: there is no CLIP with a text encoder at that place.
    """

    def __init__(self, clip: str | File, transcriber: Transcriber, *, device: str = "cpu") -> None:
        place = place_of(clip)
        model = load_clip(place, text=True)
        if not isinstance(model, CLIPModel):
            raise CheckpointError(f"the CLIP at {place} has no text encoder; give one that has")
        self.clip: Any = model.eval().to(device)
        try:
            size = model.config.vision_config.image_size
            self.processor = SpeechImageProcessor.from_sources(None, place, size, text=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"no processor of a CLIP at {place}: {first_line(error)}; {MEND}") from error
        self.transcriber = transcriber
        self.heard: dict[str, str] = {}

    def encode_speech(self, clips: Sequence[File], *, batch_size: int = 32, progress: bool = True) -> NDArray[Any]:
        """Sound files to CLIP's unit text vectors [N, D] of what was recognised, in order.

        Raises:
            MediaError: a file cannot be decoded.
            SaySeeError: a clip has no text (``ManifestTexts``).
        """
        texts = self.transcriber.transcribe(clips, batch_size=batch_size, progress=progress)
        self.heard |= {os.fspath(clip): text for clip, text in zip(clips, texts, strict=True)}

        def encode(batch: list[str]) -> Tensor:
            tokens = {name: values.to(self.clip.device) for name, values in self.processor.prepare_text(batch).items()}
            vectors: Tensor = self.clip.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            return vectors

        return self._encode(texts, encode, "texts", batch_size, progress)

    def encode_images(self, pictures: Sequence[File], *, batch_size: int = 32, progress: bool = True) -> NDArray[Any]:
        """Picture files to CLIP's unit vectors [M, D], in order.

        Raises:
            MediaError: a file cannot be decoded.
        """

        def encode(batch: list[File]) -> Tensor:
            pixels = torch.stack([self.processor.prepare_image(load_image(picture)) for picture in batch])
            vectors: Tensor = self.clip.get_image_features(pixel_values=pixels.to(self.clip.device)).pooler_output
            return vectors

        return self._encode(pictures, encode, "pictures", batch_size, progress)

    @torch.inference_mode()
    def _encode(self, inputs: Sequence[Any], encode: Any, what: str, batch_size: int, progress: bool) -> NDArray[Any]:
        parts = []
        with progress_bar(f"encoding {what}", len(inputs), enabled=progress) as bar:
            for batch in _batches(inputs, batch_size):
                parts.append(functional.normalize(encode(batch).float(), dim=-1).cpu())
                bar.advance(len(batch))
        return torch.cat(parts).numpy()


def evaluate_cascade(
    cascade: Cascade,
    manifest: Manifest,
    *,
    split: str = "test",
    by: Sequence[str] = (),
    batch_size: int = 32,
    progress: bool = True,
) -> EvaluationResult:
    """Score a cascade as ``evaluate`` scores a model, and count its word errors where the manifest has texts.

    Args:
        cascade: the recogniser and CLIP.
        manifest: of the corpus.
        split: which rows to score.
        by: as for ``evaluate``.
        batch_size: as for ``evaluate``.
        progress: as for ``evaluate``.

    Returns:
        As for ``evaluate``; with ``ManifestTexts`` there is nothing to count, and ``word_errors`` is None.

    Raises:
        SaySeeError: as for ``evaluate``.
    """
    result = evaluate(cascade, manifest, split=split, by=by, batch_size=batch_size, progress=progress)
    if isinstance(cascade.transcriber, ManifestTexts):
        return result
    rows = manifest.select(split)
    pairs = ((row.text, cascade.heard[os.fspath(rows.clip_path(row))]) for row in rows)
    return replace(result, word_errors=count_word_errors(pairs))


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    if size < 1:
        raise SaySeeError(f"batch_size is {size}; it must be at least 1")
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _load_processor(place: str | File) -> Any:
    """The recogniser's own processor.

    Raises:
        CheckpointError: there is none, it needs a package that is not here, or it wants another sampling rate.
    """
    try:
        processor = AutoProcessor.from_pretrained(os.fspath(place))
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise CheckpointError(f"no processor of a speech recogniser at {place}: {first_line(error)}; {MEND}") from error
    extractor = getattr(processor, "feature_extractor", None)
    if extractor is None or not hasattr(processor, "tokenizer"):
        raise CheckpointError(f"the processor at {place} is of no speech recogniser; {MEND}")
    if extractor.sampling_rate != SAMPLE_RATE:
        raise CheckpointError(
            f"the speech recogniser at {place} hears {extractor.sampling_rate} Hz; give one of {SAMPLE_RATE} Hz"
        )
    return processor
