"""Synthesized speech for hubert-nano, with the times of phones and words, and its augmentation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.nano.chunks import Chunk, chunks_of, make_missing
from lab.nano.sentences import sentences
from lab.nano.voices import TRAINED, UNHEARD, speak
from saysee.data.scenes.speakers import Speaker, speaker_pools
from saysee.data.scenes.speech import Utterance, synthesize
from saysee.files import write_folder, write_text

CHUNK = 250  # sentences that are spoken and written at once
PITCHES, RATES = (25, 75), (125, 215)
"""Wider than the corpus's speakers."""
ESPEAK, MANY, UNHEARD_VOICES = "espeak", "many", "unheard"
"""Whose voices a pool has: espeak-ng's alone, those and :data:`lab.nano.voices.TRAINED` half and half, or
:data:`lab.nano.voices.UNHEARD`."""


@dataclass(frozen=True)
class SpokenItem:
    """One utterance of the pool: place of its samples, and (label, start, end) of phones and words, in seconds."""

    offset: int
    length: int
    phones: list[tuple[str, float, float]]
    words: list[tuple[str, float, float]]


class SpeechPool:
    """Sentences, synthesized once and kept in a folder; an interrupted pool is completed.

    Args:
        folder: of the chunks.
        utterances: number of sentences.
        seed: another seed gives other sentences and speakers.
        split: of the scenes corpus, whose accents and voice variants espeak-ng speaks with.
        voices: "espeak", "many" (each sentence is spoken by espeak-ng and by a voice of another synthesizer), or
            "unheard".

    Attributes:
        samples: int16 samples at 16 kHz of all utterances, one after the other.
        items: one for each utterance.
        pairs: numbers of utterances of one sentence, by espeak-ng and by another synthesizer; of "many" voices only.

    Raises:
        MissingExtraError: the synthesizer is not installed.
        SaySeeError: a process died.
    """

    def __init__(self, folder: Path, utterances: int, seed: int, split: str, voices: str = ESPEAK) -> None:
        chunks = chunks_of(folder, utterances, CHUNK, seed)
        make_missing("speaking sentences", chunks, partial(_speak_chunk, seed, split, voices))
        self.items: list[SpokenItem] = []
        self.pairs: list[tuple[int, int]] = []
        offset = 0
        for chunk in chunks:
            if voices == MANY:
                first, espeak = len(self.items), -(-chunk.count // 2)
                self.pairs += [(first + each, first + espeak + each) for each in range(chunk.count // 2)]
            for item in json.loads((chunk.folder / "items.json").read_text(encoding="utf-8")):
                self.items.append(SpokenItem(offset, item["length"], item["phones"], item["words"]))
                offset += item["length"]
        self.samples: NDArray[np.int16] = np.concatenate([np.load(chunk.folder / "samples.npy") for chunk in chunks])

    def waveform(self, number: int) -> NDArray[np.float32]:
        """[T] samples of an utterance at 16 kHz, between -1 and 1."""
        item = self.items[number]
        samples = self.samples[item.offset : item.offset + item.length]
        return samples.astype(np.float32) / np.float32(32768)


def _speak_chunk(seed: int, split: str, voices: str, chunk: Chunk) -> None:
    rng = Random(f"saysee pretraining speakers {seed} {chunk.number}")
    spoken: list[Utterance] = []
    by_espeak = {ESPEAK: chunk.count, MANY: -(-chunk.count // 2), UNHEARD_VOICES: 0}[voices]
    texts = sentences(seed, chunk.number, by_espeak or chunk.count)
    pool = speaker_pools()[split]
    for text in texts[:by_espeak]:
        voice = pool[rng.randrange(len(pool))]
        speaker = Speaker(voice.accent, voice.variant, rng.randint(*PITCHES), rng.randint(*RATES))
        spoken.append(synthesize(text, speaker))
    if left := texts[: chunk.count - by_espeak]:
        spoken += speak(left, UNHEARD if voices == UNHEARD_VOICES else TRAINED, rng)
    items: list[dict[str, Any]] = []
    samples: list[NDArray[np.int16]] = []
    for utterance in spoken:
        samples.append(np.clip(np.rint(utterance.samples * 32768), -32768, 32767).astype(np.int16))
        items.append(
            {
                "length": len(utterance.samples),
                "phones": [(phone_name(each.name), each.start, each.end) for each in utterance.phones],
                "words": [(word_name(each.name), each.start, each.end) for each in utterance.words],
            }
        )

    def write(temporary: Path) -> None:
        np.save(temporary / "samples.npy", np.concatenate(samples))
        write_text(temporary / "items.json", json.dumps(items))

    write_folder(chunk.folder, write)


def phone_name(name: str) -> str:
    """A phone of the synthesizer without its stress marks."""
    return name.lstrip("',%=") or name


def word_name(name: str) -> str:
    """A word as all synthesizers write it: without apostrophes, in lower case."""
    return name.lower().replace("'", "")
