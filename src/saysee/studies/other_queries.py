"""Asking in other ways than the test split does: in writing, by other voices, in another accent, at another pace.

Each way is scored as speech-to-image R@1 over the same gallery, the pictures of the test split, on the same captions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saysee.data.manifest import Manifest, Row
from saysee.data.scenes.speakers import Speaker
from saysee.data.scenes.speech import synthesise
from saysee.encoding.encoder import Encoder
from saysee.evaluation.recall import retrieval_measures, retrieval_ranks
from saysee.media.audio import load_audio
from saysee.model.retriever import SpeechImageModel

FLITE = Path(__file__).with_name("flite")
"""Captions of the demo's test split as another synthesiser speaks them (flite 2.2, voice slt), with ``clips.json``."""


@dataclass(frozen=True)
class OtherQueries:
    """One way of asking.

    Attributes:
        way: what it is called in the report.
        queries: how many there were.
        recall_at_1, recall_at_10: percent of the queries whose picture was first, or among the first ten.
        back_at_1: percent of the pictures that find one of their queries first; None where some pictures have none.
        note: what there is to say of it.
    """

    way: str
    queries: int
    recall_at_1: float
    recall_at_10: float
    back_at_1: float | None
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def ask_otherwise(
    model: SpeechImageModel, test: Manifest, images: NDArray[Any], *, queries: int, seed: int
) -> list[OtherQueries]:
    """Scores a model on other ways of asking.

    Args:
        model: with a text encoder.
        test: rows of the test split of a scenes corpus.
        images: [M, D] vectors of ``test.images()``.
        queries: captions that each spoken way takes, drawn by the seed.
        seed: which.

    Raises:
        MissingExtraError: the synthesiser is not installed.
    """
    rows = [test.rows[i] for i in sorted(Random(seed).sample(range(len(test)), min(queries, len(test))))]
    asked = _Asked(model, test, images)
    speakers = [parse_speaker(row.speaker or "") for row in rows]

    def spoken(way: str, note: str, **changes: Any) -> OtherQueries:
        clips = [
            synthesise(row.text or "", replace(speaker, **changes)).samples
            for row, speaker in zip(rows, speakers, strict=True)
        ]
        return asked.by_waveforms(way, rows, clips, note)

    found = [
        asked.by_text(test.rows),
        spoken("the split's own voices", "none of them was heard in training"),
        spoken("the same, fast", "250 words a minute; training: 140 to 200", rate=250),
        spoken("the same, slow", "100 words a minute; training: 140 to 200", rate=100),
        spoken("the same, high", "pitch 90 of 100; training: 30 to 70", pitch=90),
        asked.by_waveforms(
            "a German voice reading English",
            rows,
            [synthesise(row.text or "", Speaker("de", "", 50, 150)).samples for row in rows],
            "German sounds for English letters; training: eight accents of English",
        ),
    ]
    others = _flite_rows(test)
    if others:
        clips = [load_audio(FLITE / file) for file, _ in others]
        note = "flite 2.2, voice slt: recorded speech in pieces; training: formants of espeak-ng"
        found.append(asked.by_waveforms("another synthesiser", [row for _, row in others], clips, note))
    return found


class _Asked:
    """Queries against one gallery."""

    def __init__(self, model: SpeechImageModel, test: Manifest, images: NDArray[Any]) -> None:
        self._encoder, self._images = Encoder(model), images
        self._number = {row.image_id: number for number, row in enumerate(test.images())}

    def by_text(self, rows: Sequence[Row]) -> OtherQueries:
        """Written captions, through CLIP's text encoder."""
        texts = [row.text or "" for row in rows]
        vectors = self._encoder.encode_text(texts, progress=False)
        note = "CLIP's own text encoder, which this training did not touch"
        return self._score("in writing", rows, vectors, note)

    def by_waveforms(self, way: str, rows: Sequence[Row], clips: Sequence[Any], note: str) -> OtherQueries:
        """Clips [T] of 16 kHz samples, one a row."""
        return self._score(way, rows, self._encoder.encode_speech(clips, progress=False), note)

    def _score(self, way: str, rows: Sequence[Row], vectors: NDArray[Any], note: str) -> OtherQueries:
        own = np.array([self._number[row.image_id] for row in rows])
        measures = retrieval_measures(retrieval_ranks(vectors, self._images, own), resamples=0)
        there, back = measures.speech_to_image, measures.image_to_speech
        whole = back is not None and len(np.unique(own)) == len(self._images)
        return OtherQueries(
            way, len(rows), there["R@1"], there["R@10"], back["R@1"] if whole and back is not None else None, note
        )


def parse_speaker(name: str) -> Speaker:
    """The speaker of a name such as "en-us+f3-p55-r160"."""
    voice, pitch, rate = name.rsplit("-", 2)
    accent, _, variant = voice.partition("+")
    return Speaker(accent, variant, int(pitch.removeprefix("p")), int(rate.removeprefix("r")))


def _flite_rows(test: Manifest) -> list[tuple[str, Row]]:
    """The clips of the package with the rows whose captions they speak: none where the corpus is another."""
    told = json.loads((FLITE / "clips.json").read_text(encoding="utf-8"))
    rows = {(row.image_id, row.text): row for row in test.rows}
    return [(each["file"], rows[key]) for each in told if (key := (each["image_id"], each["text"])) in rows]
