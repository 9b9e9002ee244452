"""Augmentation of speech for training: other vocal tracts, microphones, rooms, noise and lines.

The same sentence sounds as if another person spoke it elsewhere, so that what is learned from few voices serves more.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from random import Random

import numpy as np
import soundfile
import soxr

from saysee.media import changes
from saysee.media.audio import SAMPLE_RATE
from saysee.media.changes import Clip, Noise

VOCAL_TRACT = 0.22  # octaves by which a voice is moved with its formants at most: a man's to a child's is some 0.4
FORMANTS = 0.2  # octaves by which the formants alone are moved at most
ROOMS, REVERBERATION = 60, (0.15, 0.7)  # number of rooms, and their reverberation times in seconds
CODECS = ("VORBIS", "OPUS")


def varied(clean: Clip, seed: str) -> Clip:
    """A clip [T] at 16 kHz as :func:`vocal_tract` and :func:`augmented` change it; the same seed gives the same."""
    rng = Random(seed)
    return augmented(vocal_tract(clean, rng)[0], rng)


def vocal_tract(clean: Clip, rng: Random) -> tuple[Clip, float]:
    """Half of the clips as if from a vocal tract of another length: played up to a sixth faster or slower.

    Returns the samples, and the speed: a sound at t seconds is now at t / speed.
    """
    if rng.random() < 0.5:
        return clean, 1.0
    speed = 2 ** rng.uniform(-VOCAL_TRACT, VOCAL_TRACT)
    played = soxr.resample(clean, SAMPLE_RATE * speed, SAMPLE_RATE, quality="LQ")
    return np.asarray(played, dtype=np.float32), speed


def augmented(clean: Clip, rng: Random, others: Sequence[Clip] = ()) -> Clip:
    """A clip [T] at 16 kHz with other formants or timbre, in a room, with noise, by telephone or codec; or as it is.

    A fifth stay unchanged. The length and the times of phones and words stay the same. ``others`` are clips that may be
    mixed in as babble.
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
        waveform = changes.in_room(waveform, rng.choice(rooms()))
    if rng.random() < 0.5:
        waveform = _noisy(waveform, others, rng, noise)
    if rng.random() < 0.15:
        waveform = changes.through_telephone(waveform)
    if rng.random() < 0.1:
        waveform = _through_codec(waveform, rng.choice(CODECS))
    if rng.random() < 0.1:  # too loud for the microphone
        limit = rng.uniform(0.3, 0.8) * float(np.abs(waveform).max() + 1e-6)
        waveform = np.clip(waveform, -limit, limit)
    return np.asarray(waveform * rng.uniform(0.1, 1.0), dtype=np.float32)


def _formants_moved(waveform: Clip, ratio: float) -> Clip:
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


def _colored(waveform: Clip, noise: np.random.Generator) -> Clip:
    """Another timbre: each of eight bands from 60 Hz to 8 kHz up to 10 dB louder or softer, with smooth transitions."""
    spectrum = np.fft.rfft(waveform, 1 << (len(waveform) + 1024).bit_length())
    octaves = np.log2(np.maximum(np.linspace(0, SAMPLE_RATE / 2, len(spectrum)), 1) / 60)
    decibels = np.interp(octaves, np.arange(8), noise.uniform(-10, 10, 8))
    return np.asarray(np.fft.irfft(spectrum * 10 ** (decibels / 20))[: len(waveform)], dtype=np.float32)


def _noisy(clip: Clip, others: Sequence[Clip], rng: Random, noise: np.random.Generator) -> Clip:
    """White or pink noise, hum, or other voices, at 0 to 30 dB below the speech (voices at 8 to 30)."""
    kind = rng.choice(("white", "pink", "hum", *(["voices"] if others else [])))
    if kind == "white":
        added: Noise = noise.standard_normal(len(clip))
    elif kind == "pink":
        added = changes.pink_noise(len(clip), noise)
    elif kind == "hum":
        base = rng.uniform(45, 130)
        added = changes.hum(len(clip), base, [rng.random() for _ in range(5)])
    else:
        added = changes.babble(len(clip), rng.sample(others, min(3, len(others))))
    return changes.with_noise(clip, added, rng.uniform(8 if kind == "voices" else 0, 30))


def _through_codec(clip: Clip, codec: str) -> Clip:
    """Encoded in Ogg at the codec's lowest quality, and decoded."""
    packed = io.BytesIO()
    soundfile.write(packed, np.clip(clip, -1, 1), SAMPLE_RATE, format="OGG", subtype=codec, compression_level=1.0)
    packed.seek(0)
    return changes.of_length(soundfile.read(packed, dtype="float32")[0], len(clip))


@cache
def rooms() -> list[Clip]:
    """Responses of rooms of drawn size and reverberation."""
    rng = np.random.default_rng(0)
    return [changes.drawn_room(rng.uniform(*REVERBERATION), rng) for _ in range(ROOMS)]
