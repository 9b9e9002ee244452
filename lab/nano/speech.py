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
from lab.nano.rooms import room_responses
from lab.nano.sentences import sentences
from lab.nano.voices import TRAINED, UNHEARD, speak
from saysee.data.scenes.speakers import Speaker, speaker_pools
from saysee.data.scenes.speech import SAMPLE_RATE, Utterance, synthesize
from saysee.errors import SaySeeError
from saysee.files import write_folder, write_text

CHUNK = 250  # sentences that are spoken and written at once
CODECS = ("VORBIS", "OPUS")
PITCHES, RATES = (25, 75), (125, 215)
"""Wider than the corpus's speakers."""
VOCAL_TRACT = 0.22
"""Octaves by which all of a voice, its formants too, is moved up or down at most: from a man's to a child's is some
0.4."""
FORMANTS = 0.2
"""Octaves by which the formants alone are moved at most."""
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
    """A clip with other formants or timbre, in a room, with noise, by telephone or codec; a fifth stay unchanged.

    The length and the times of phones and words stay the same.

    Args:
        clean: [T] samples.
        others: clips that may be mixed in as babble.
        rng: of all random draws.
    """
    if rng.random() < 0.2:
        return clean
    noise = np.random.default_rng(rng.getrandbits(63))
    waveform = clean
    if rng.random() < 0.3:
        waveform = _formants_moved(waveform, 2 ** rng.uniform(-FORMANTS, FORMANTS))
    if rng.random() < 0.5:
        waveform = _colored(waveform, noise)
    if rng.random() < 0.3:
        waveform = in_room(waveform, rng.choice(room_responses()))
    if rng.random() < 0.5:
        waveform = _noisy(waveform, others, rng, noise)
    if rng.random() < 0.15:
        waveform = through_telephone(waveform)
    if rng.random() < 0.1:
        waveform = _through_codec(waveform, rng.choice(CODECS))
    if rng.random() < 0.1:  # too loud for the microphone
        limit = rng.uniform(0.3, 0.8) * float(np.abs(waveform).max() + 1e-6)
        waveform = np.clip(waveform, -limit, limit)
    return np.asarray(waveform * rng.uniform(0.1, 1.0), dtype=np.float32)


def _formants_moved(waveform: NDArray[np.float32], ratio: float) -> NDArray[np.float32]:
    """The spectral envelope stretched by ``ratio``, at the same pitch: a longer or shorter vocal tract.

    The envelope of each frame of 32 ms is its cepstrum up to 1.9 ms, so that the harmonics of voices up to 500 Hz are
    not part of it.
    """
    window, hop, kept = np.hanning(513)[:512], 128, 30
    padded = np.pad(waveform, (512, 512 + -len(waveform) % hop))
    spectrum = np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, 512)[::hop] * window)
    cepstrum = np.fft.irfft(np.log(np.abs(spectrum) + 1e-4))
    cepstrum[:, kept : 512 - kept + 1] = 0
    envelope = np.fft.rfft(cepstrum).real
    bins = np.minimum(np.arange(257) / ratio, 256)
    low = np.minimum(bins.astype(int), 255)
    moved = envelope[:, low] + (bins - low) * (envelope[:, low + 1] - envelope[:, low])
    frames = np.fft.irfft(spectrum * np.exp(moved - envelope)) * window
    total = np.zeros(len(padded))
    for part in range(4):  # frames that lie beside each other, not over each other
        chosen = frames[part::4]
        total[part * hop : part * hop + chosen.size] += chosen.reshape(-1)
    return np.asarray(total[512 : 512 + len(waveform)] / 1.5, dtype=np.float32)  # the squared windows add up to 1.5


def _colored(waveform: NDArray[np.float32], noise: np.random.Generator) -> NDArray[np.float32]:
    """Another timbre: each of eight bands from 60 Hz to 8 kHz up to 10 dB louder or softer, with smooth transitions."""
    spectrum = np.fft.rfft(waveform, 1 << (len(waveform) + 1024).bit_length())
    octaves = np.log2(np.maximum(np.linspace(0, SAMPLE_RATE / 2, len(spectrum)), 1) / 60)
    decibels = np.interp(octaves, np.arange(8), noise.uniform(-10, 10, 8))
    return np.asarray(np.fft.irfft(spectrum * 10 ** (decibels / 20))[: len(waveform)], dtype=np.float32)


def in_room(waveform: NDArray[np.float32], response: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sound in a room; the direct sound keeps its time."""
    size = 1 << (len(waveform) + len(response) - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(waveform, size) * np.fft.rfft(response, size), size)[: len(waveform)]
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


def through_telephone(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """8 kHz and eight bits of mu-law, as in telephony (ITU-T G.711)."""
    narrow = soxr.resample(waveform, SAMPLE_RATE, 8000)
    peak = float(np.abs(narrow).max() + 1e-6)
    packed = np.sign(narrow) * np.log1p(255 * np.abs(narrow) / peak) / np.log(256)
    coarse = np.round(packed * 127) / 127
    narrow = np.sign(coarse) * np.expm1(np.abs(coarse) * np.log(256)) / 255 * peak
    return _of_length(soxr.resample(narrow.astype(np.float32), 8000, SAMPLE_RATE), len(waveform))


def _through_codec(waveform: NDArray[np.float32], codec: str) -> NDArray[np.float32]:
    """Encoded in Ogg at the codec's lowest quality, and decoded."""
    packed = io.BytesIO()
    clipped = np.clip(waveform, -1, 1)
    soundfile.write(packed, clipped, SAMPLE_RATE, format="OGG", subtype=codec, compression_level=1.0)
    packed.seek(0)
    decoded, rate = soundfile.read(packed, dtype="float32")
    if rate != SAMPLE_RATE:
        raise SaySeeError(f"{codec} of {SAMPLE_RATE} Hz was decoded at {rate} Hz; install another libsndfile")
    return _of_length(decoded, len(waveform))


def _of_length(waveform: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Cut or padded with silence to a length."""
    return np.asarray(np.pad(waveform[:length], (0, max(0, length - len(waveform)))), dtype=np.float32)
