"""The cascade to compare a model with: a speech recognizer, then CLIP's text encoder.

clip, recognizer = Encoder("openai/clip-vit-base-patch32"), SpeechRecognizer("small")
result = evaluate_cascade(clip, manifest, recognizer)
"""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saysee.data.manifest import Manifest
from saysee.encoding.encoder import Encoder
from saysee.encoding.recognizer import SpeechRecognizer, Transcript
from saysee.errors import CheckpointError, MediaError, SaySeeError
from saysee.evaluation.protocols import EvaluationResult, evaluate
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

    Without a recognizer the texts are those of the manifest: the scores of a recognizer without errors. Raises
    CheckpointError if the CLIP has no text encoder; SaySeeError if a clip has no text and there is no recognizer, and
    as ``evaluate`` does.
    """
    check_has_text(encoder)
    cascade = _Cascade(encoder, recognizer, manifest.select(split))
    result = evaluate(cascade, manifest, split=split, by=by, batch_size=batch_size, progress=progress)
    if recognizer is None:
        return result
    pairs = ((row.text, text) for row, text in zip(cascade.rows, cascade.texts, strict=True))
    return replace(result, word_errors=count_word_errors(pairs))


def check_has_text(encoder: Encoder) -> None:
    """Raises CheckpointError if the CLIP of a cascade has no text encoder."""
    if not encoder.has_text:
        raise CheckpointError(f"the CLIP at {encoder.name} has no text encoder; give one that has")


class _Cascade:
    """A ``RetrievalModel`` of the clips of ``rows``, which keeps their ``texts``."""

    def __init__(self, encoder: Encoder, recognizer: SpeechRecognizer | None, rows: Manifest) -> None:
        self.encoder, self.recognizer, self.rows = encoder, recognizer, rows
        self.encode_images, self.encode_text = encoder.encode_images, encoder.encode_text
        self.has_text = recognizer is not None  # the manifest's texts among themselves would score nothing
        self.texts: list[str] = []

    def encode_speech(self, clips: Sequence[PathLike[str]], /, *, batch_size: int, progress: bool) -> NDArray[Any]:
        if self.recognizer is not None:
            heard: dict[int, Transcript] = {}
            encoder = Encoder(self.encoder.model, recognizer=self.recognizer)
            vectors, _ = heard_vectors(encoder, clips, batch_size=batch_size, progress=progress, transcripts=heard)
            self.texts = [heard[place].text if place in heard else "" for place in range(len(clips))]
            return vectors
        self.texts = [row.text or "" for row in self.rows]
        for clip, text in zip(clips, self.texts, strict=True):
            if not text:
                raise SaySeeError(f"{clip}: it has no text in the manifest; give a recognizer: cascade:ASR+CLIP")
        return self.encoder.encode_text(self.texts, batch_size=batch_size, progress=progress)


def heard_vectors(encoder: Encoder, clips: Sequence[PathLike[str]], **options: Any) -> tuple[NDArray[Any], int]:
    """Vectors [N, D] of clips, zero where a recognizer hears no words, which finds nothing; and how many those are.

    ``options`` are those of :meth:`Encoder.encode`. Raises MediaError if a clip cannot be used.
    """
    unheard = _Unheard()
    vectors = encoder.encode("clip", clips, bad=unheard, **options)
    return np.nan_to_num(vectors), len(unheard)


class _Unheard(dict[int, MediaError]):
    """The errors of clips in which nothing is heard; another is raised at once, not after hours of recognition."""

    def __setitem__(self, position: int, error: MediaError) -> None:
        if error.code != "no-speech":
            raise error
        super().__setitem__(position, error)
