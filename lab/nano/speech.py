"""Synthesized speech for hubert-nano, with the times of phones and words, and its augmentation."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from lab.nano.chunks import Chunk, chunks_of, make_missing
from lab.nano.sentences import sentences
from saysee.data.scenes.speakers import Speaker, speaker_pools
from saysee.data.scenes.speech import SAMPLE_RATE, synthesize
from saysee.errors import SaySeeError
from saysee.files import write_folder, write_text

CHUNK = 250  # sentences that are spoken and written at once
PITCHES, RATES = (25, 75), (125, 215)
"""Wider than the corpus's speakers."""
VOCAL_TRACT = 0.22
"""Octaves by which all of a voice, its formants too, is moved up or down at most: from a man's to a child's is some
0.4."""


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
        voices: split of the scenes corpus whose accents and voice variants are used.

    Attributes:
        samples: int16 samples at 16 kHz of all utterances, one after the other.
        items: one for each utterance.

    Raises:
        MissingExtraError: the synthesizer is not installed.
        SaySeeError: a process died.
    """

    def __init__(self, folder: Path, utterances: int, seed: int, voices: str) -> None:
        chunks = chunks_of(folder, utterances, CHUNK, seed)
        make_missing("speaking sentences", chunks, partial(_speak_chunk, seed, voices))
        self.items: list[SpokenItem] = []
        offset = 0
        for chunk in chunks:
            for item in json.loads((chunk.folder / "items.json").read_text(encoding="utf-8")):
                self.items.append(SpokenItem(offset, item["length"], item["phones"], item["words"]))
                offset += item["length"]
        self.samples: NDArray[np.int16] = np.concatenate([np.load(chunk.folder / "samples.npy") for chunk in chunks])

    def waveform(self, number: int) -> NDArray[np.float32]:
        """[T] samples of an utterance at 16 kHz, between -1 and 1."""
        item = self.items[number]
        samples = self.samples[item.offset : item.offset + item.length]
        return samples.astype(np.float32) / np.float32(32768)


def _speak_chunk(seed: int, voices: str, chunk: Chunk) -> None:
    rng = Random(f"saysee pretraining speakers {seed} {chunk.number}")
    pool = speaker_pools()[voices]
    items: list[dict[str, Any]] = []
    samples: list[NDArray[np.int16]] = []
    for text in sentences(seed, chunk.number, chunk.count):
        voice = pool[rng.randrange(len(pool))]
        speaker = Speaker(voice.accent, voice.variant, rng.randint(*PITCHES), rng.randint(*RATES))
        spoken = synthesize(text, speaker)
        samples.append(np.clip(np.rint(spoken.samples * 32768), -32768, 32767).astype(np.int16))
        items.append(
            {
                "length": len(spoken.samples),
                "phones": [(phone_name(each.name), each.start, each.end) for each in spoken.phones],
                "words": [(each.name.lower(), each.start, each.end) for each in spoken.words],
            }
        )

    def write(temporary: Path) -> None:
        np.save(temporary / "samples.npy", np.concatenate(samples))
        write_text(temporary / "items.json", json.dumps(items))

    write_folder(chunk.folder, write)


def phone_name(name: str) -> str:
    """A phone of the synthesizer without its stress marks."""
    return name.lstrip("',%=") or name


def vocal_tract(clean: NDArray[np.float32], rng: Random) -> tuple[NDArray[np.float32], float]:
    """Half of the clips as if from a vocal tract of another length: played up to a sixth faster or slower.

    Returns:
        The samples, and the speed: a sound at t seconds is now at t / speed.
    """
    if rng.random() < 0.5:
        return clean, 1.0
    speed = 2 ** rng.uniform(-VOCAL_TRACT, VOCAL_TRACT)
    played = soxr.resample(clean, SAMPLE_RATE * speed, SAMPLE_RATE, quality="LQ")
    return np.asarray(played, dtype=np.float32), speed


def augmented(clean: NDArray[np.float32], others: list[NDArray[np.float32]], rng: Random) -> NDArray[np.float32]:
    """A clip with reverberation, noise, a telephone or a codec; a third of the clips are unchanged.

    The length and the times of phones and words stay the same.

    Args:
        clean: [T] samples.
        others: clips that may be mixed in as babble.
        rng: of all random draws.
    """
    if rng.random() < 1 / 3:
        return clean
    noise = np.random.default_rng(rng.getrandbits(63))
    waveform = clean
    if rng.random() < 0.3:
        waveform = _reverberant(waveform, rng.uniform(0.1, 0.6), noise)
    if rng.random() < 0.6:
        waveform = _noisy(waveform, others, rng, noise)
    if rng.random() < 0.15:
        waveform = _through_telephone(waveform)
    if rng.random() < 0.1:
        waveform = _through_codec(waveform)
    if rng.random() < 0.1:  # too loud for the microphone
        limit = rng.uniform(0.3, 0.8) * float(np.abs(waveform).max() + 1e-6)
        waveform = np.clip(waveform, -limit, limit)
    return np.asarray(waveform * rng.uniform(0.1, 1.0), dtype=np.float32)


def _reverberant(waveform: NDArray[np.float32], seconds: float, noise: np.random.Generator) -> NDArray[np.float32]:
    """Reverberation that falls by 60 dB in ``seconds``, after the direct sound."""
    length = int(seconds * SAMPLE_RATE)
    tail = noise.standard_normal(length).astype(np.float32) * 10 ** (-3 * np.arange(length) / length)
    tail *= 0.5 / np.sqrt((tail**2).sum())
    tail[0] = 1.0
    size = 1 << (len(waveform) + length - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(tail, size), size)[: len(waveform)]
    return np.asarray(wet, dtype=np.float32)


def _noisy(
    waveform: NDArray[np.float32], others: list[NDArray[np.float32]], rng: Random, noise: np.random.Generator
) -> NDArray[np.float32]:
    """White or pink noise, hum, or other voices, at 0 to 30 dB below the speech (voices at 8 to 30)."""
    kind = rng.choice(("white", "pink", "hum", "voices"))
    if kind == "white":
        added = noise.standard_normal(len(waveform))
    elif kind == "pink":
        spectrum = np.fft.rfft(noise.standard_normal(len(waveform)))
        added = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), len(waveform))
    elif kind == "hum":
        time = np.arange(len(waveform)) / SAMPLE_RATE
        base = rng.uniform(45, 130)
        added = np.sum([rng.random() * np.sin(2 * np.pi * base * n * time) for n in range(1, 6)], axis=0)
    else:
        added = np.zeros(len(waveform))
        for other in rng.sample(others, min(3, len(others))):
            added += np.resize(other, len(waveform))
    decibels = rng.uniform(8 if kind == "voices" else 0, 30)
    scale = np.sqrt((waveform**2).mean() / ((added**2).mean() + 1e-12)) * 10 ** (-decibels / 20)
    return np.asarray(waveform + scale * added, dtype=np.float32)


def _through_telephone(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """8 kHz and eight bits of mu-law, as in telephony (ITU-T G.711)."""
    narrow = soxr.resample(waveform, SAMPLE_RATE, 8000)
    peak = float(np.abs(narrow).max() + 1e-6)
    packed = np.sign(narrow) * np.log1p(255 * np.abs(narrow) / peak) / np.log(256)
    coarse = np.round(packed * 127) / 127
    narrow = np.sign(coarse) * np.expm1(np.abs(coarse) * np.log(256)) / 255 * peak
    return _of_length(soxr.resample(narrow.astype(np.float32), 8000, SAMPLE_RATE), len(waveform))


def _through_codec(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Encoded as Ogg Vorbis at its lowest quality, and decoded."""
    packed = io.BytesIO()
    soundfile.write(
        packed, np.clip(waveform, -1, 1), SAMPLE_RATE, format="OGG", subtype="VORBIS", compression_level=1.0
    )
    packed.seek(0)
    decoded, rate = soundfile.read(packed, dtype="float32")
    if rate != SAMPLE_RATE:
        raise SaySeeError(f"Ogg Vorbis of {SAMPLE_RATE} Hz was decoded at {rate} Hz; install another libsndfile")
    return _of_length(decoded, len(waveform))


def _of_length(waveform: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Cut or padded with silence to a length."""
    return np.asarray(np.pad(waveform[:length], (0, max(0, length - len(waveform)))), dtype=np.float32)
