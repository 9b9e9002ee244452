"""The cascade to compare a model with: a speech recognizer, then CLIP's text encoder.

    clip, recognizer = Encoder("openai/clip-vit-base-patch32"), SpeechRecognizer("openai/whisper-small")
    result = evaluate_cascade(clip, manifest, recognizer)

It is scored by the same protocol as a model. With the manifest's texts instead of a recognizer the scores are those of
a recognizer without errors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from saysee.data.manifest import Manifest, Row
from saysee.encoding.encoder import Encoder
from saysee.encoding.recognizer import SpeechRecognizer
from saysee.errors import CheckpointError, SaySeeError
from saysee.evaluation.protocols import EvaluationResult, evaluate_vectors
from saysee.evaluation.word_errors import count_word_errors


def evaluate_cascade(
    encoder: Encoder,
    manifest: Manifest,
    recognizer: SpeechRecognizer | None,
    *,
    split: str = "test",
    by: Sequence[str] = (),
    batch_size: int = 32,
    progress: bool = True,
) -> EvaluationResult:
    """Scores a cascade as ``evaluate`` scores a model, with its word errors if the manifest has texts.

    Args:
        encoder: of a CLIP with a text encoder.
        manifest: of the corpus.
        recognizer: None is the texts of the manifest, without word errors.
        split: rows to score.
        by: as in ``evaluate``.
        batch_size: items that are recognized or encoded together.
        progress: show progress bars.

    Raises:
        CheckpointError: the CLIP has no text encoder.
        SaySeeError: a clip has no text and there is no recognizer; otherwise as in ``evaluate``.
    """
    if not encoder.has_text:
        raise CheckpointError(f"the CLIP at {encoder.name} has no text encoder; give one that has")
    rows = manifest.select(split)
    for column in by:
        rows.column(column)  # raises for an unknown column before the long work
    start = time.perf_counter()
    if recognizer is None:
        texts = [_text_of(row, rows) for row in rows]
    else:
        clips = [rows.clip_path(row) for row in rows]
        texts = recognizer.transcribe(clips, batch_size=batch_size, progress=progress)
    speech = encoder.encode_text(texts, batch_size=batch_size, progress=progress)
    speech_end = time.perf_counter()
    images = encoder.encode_images([rows.image_path(row) for row in rows.images()], progress=progress)
    images_end = time.perf_counter()
    result = replace(
        evaluate_vectors(speech, images, rows, by=by),
        split=split,
        encode_speech_seconds=speech_end - start,
        encode_images_seconds=images_end - speech_end,
    )
    if recognizer is None:
        return result
    pairs = ((row.text, text) for row, text in zip(rows, texts, strict=True))
    return replace(result, word_errors=count_word_errors(pairs))


def _text_of(row: Row, rows: Manifest) -> str:
    if not row.text:
        raise SaySeeError(
            f"{rows.clip_path(row)}: the manifest has no text for it; give a recognizer, as cascade:ASR+CLIP"
        )
    return row.text
