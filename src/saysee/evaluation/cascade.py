"""The cascade that a user would pick instead: a speech recognizer writes texts, CLIP's text encoder searches.

    clip, recognizer = Encoder("openai/clip-vit-base-patch32"), SpeechRecognizer("openai/whisper-small")
    result = evaluate_cascade(clip, manifest, recognizer)

It is scored as a model is: same files, same protocol, same table. With the manifest's own texts in place of a
recognizer it gives the upper reference: a recognizer without errors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from saysee.data.manifest import Manifest
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
    """Scores a cascade as ``evaluate`` scores a model, and counts its word errors where the manifest has texts.

    Args:
        encoder: of a CLIP with a text encoder.
        manifest: of the corpus.
        recognizer: None takes the manifest's own texts; then no word errors are counted.
        split: which rows to score.
        by: as for ``evaluate``.
        batch_size: items that are recognized or encoded together.
        progress: show progress bars.

    Raises:
        CheckpointError: the CLIP has no text encoder.
        SaySeeError: a clip has no text, without a recognizer; else as for ``evaluate``.
    """
    if not encoder.has_text:
        raise CheckpointError(f"the CLIP at {encoder.name} has no text encoder; give one that has")
    rows = manifest.select(split)
    for column in by:
        rows.column(column)  # an unknown column is refused before the long work
    start = time.perf_counter()
    if recognizer is None:
        texts = [_text_of(rows, number) for number in range(len(rows))]
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


def _text_of(rows: Manifest, number: int) -> str:
    row = rows.rows[number]
    if not row.text:
        raise SaySeeError(
            f"{rows.clip_path(row)}: the manifest has no text for it; give a recognizer, as cascade:ASR+CLIP"
        )
    return row.text
