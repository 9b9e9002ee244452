"""Changes of speech: noise, rooms, levels, bands, codecs, speed and pitch, and lost parts.

Clips are [T] samples at 16 kHz. What is random is drawn from a generator that is given, or by the caller.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import reduce
from typing import Literal

import av
import numpy as np
import soxr
from numpy.typing import NDArray

from saysee.media.audio import SAMPLE_RATE, load_audio

Clip = NDArray[np.float32]
Noise = NDArray[np.float32] | NDArray[np.float64]

SPEED_OF_SOUND = 343.0  # m/s, in air at 20 °C
SPAN = SAMPLE_RATE // 10  # samples that :func:`spans_dropped` loses at once: 100 ms, about five lost packets of a call
_ENCODERS = {"opus": ("libopus", "ogg", "flt"), "mp3": ("libmp3lame", "mp3", "fltp")}
_SMALLEST, _LARGEST = (3.0, 2.5, 2.3), (8.0, 6.0, 3.5)  # of drawn rooms, in meters
_FROM_WALL = 0.4  # meters, of a speaker or microphone
_DECAY_BIN = 0.005  # seconds, over which the energy of reflections is summed to find the absorption


def with_noise(clip: Clip, noise: Noise, decibels: float) -> Clip:
    """A clip with noise [T], whose mean power is ``decibels`` below that of the whole clip."""
    scale = np.sqrt((clip**2).mean() / ((noise**2).mean() + 1e-12)) * 10 ** (-decibels / 20)
    return np.asarray(clip + scale * noise, dtype=np.float32)


def pink_noise(length: int, rng: np.random.Generator) -> Noise:
    """Noise whose power falls with frequency, 3 dB an octave."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    pink: Noise = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), length)
    return pink


def hum(length: int, hertz: float, amplitudes: Sequence[float]) -> Noise:
    """A tone and its harmonics, with the amplitude of each."""
    time = np.arange(length) / SAMPLE_RATE
    harmonics = [each * np.sin(2 * np.pi * hertz * n * time) for n, each in enumerate(amplitudes, 1)]
    total: Noise = np.sum(harmonics, axis=0)
    return total


def babble(length: int, others: Sequence[Clip]) -> Noise:
    """Other clips at once, each repeated or cut to the length."""
    total: Noise = reduce(np.add, [np.resize(other, length) for other in others], np.zeros(length))
    return total


def excerpt(noise: Noise, length: int, rng: np.random.Generator) -> Noise:
    """As much of a recorded noise, from a drawn place, starting over at its end."""
    return np.asarray(np.take(noise, np.arange(length) + rng.integers(len(noise)), mode="wrap"), dtype=np.float32)


def in_room(clip: Clip, response: Clip) -> Clip:
    """The sound in a room, by its impulse response; the sound keeps its time if the response begins with the direct."""
    size = 1 << (len(clip) + len(response) - 1).bit_length()
    wet = np.fft.irfft(np.fft.rfft(clip, size) * np.fft.rfft(response, size), size)[: len(clip)]
    return np.asarray(wet, dtype=np.float32)


def drawn_room(seconds: float, rng: np.random.Generator) -> Clip:
    """The response of a room of drawn size, from a drawn place to another; see :func:`room_response`."""
    size = rng.uniform(_SMALLEST, _LARGEST)
    source, microphone = (rng.uniform(_FROM_WALL, size - _FROM_WALL) for _ in range(2))
    return room_response(size, source, microphone, seconds)


def room_response(
    size: NDArray[np.float64], source: NDArray[np.float64], microphone: NDArray[np.float64], seconds: float
) -> Clip:
    """Impulse response of a box by image sources (Allen and Berkley, JASA 65(4), 1979); the direct sound has amplitude
    1.

    It starts with the direct sound. The walls reflect alike, as much as gives the reverberation time, ``seconds`` in
    which the sound falls by 60 dB. They invert the sound, without which the many late reflections would add up to a
    constant (Lehmann and Johansson, JASA 124(1), 2008). ``size`` [3], ``source`` and ``microphone`` [3] are in meters.
    """
    farthest = SPEED_OF_SOUND * 1.1 * seconds + float(np.linalg.norm(source - microphone))
    squares, counts = [], []
    for length, start, end in zip(size, source, microphone, strict=True):
        number = np.arange(-math.ceil(farthest / length) - 1, math.ceil(farthest / length) + 2)
        # Image n lies in the n-th box beside the room, as in a mirror if n is odd.
        place = number * length + np.where(number % 2, length - start, start)
        squares.append((place - end) ** 2)
        counts.append(np.abs(number))
    flat = (squares[1][:, None] + squares[2]).ravel()
    flat_counts = (counts[1][:, None] + counts[2]).ravel()
    distances, reflections = [], []
    for square, count in zip(squares[0], counts[0], strict=True):  # a layer at a time, to save memory
        near = np.flatnonzero(flat <= farthest**2 - square)
        distances.append(np.sqrt(square + flat[near]))
        reflections.append(count + flat_counts[near])
    distance, reflected = np.concatenate(distances), np.concatenate(reflections)
    reflection = _reflection(distance, reflected, seconds)
    delay = np.rint((distance - distance.min()) / SPEED_OF_SOUND * SAMPLE_RATE).astype(np.int64)
    powers = (-reflection) ** np.arange(reflected.max() + 1)
    response = np.bincount(delay, powers[reflected] * (distance.min() / distance))
    return np.asarray(response / response[0], dtype=np.float32)


def _reflection(distance: NDArray[np.float64], reflected: NDArray[np.int64], seconds: float) -> float:
    """The share of the amplitude that a wall reflects, for a reverberation time; of images [N] that reach so far."""
    time = ((distance - distance.min()) / SPEED_OF_SOUND / _DECAY_BIN).astype(np.int64)
    count = int(reflected.max()) + 1
    energy = np.bincount(time * count + reflected, distance**-2.0, (time.max() + 1) * count).reshape(-1, count)
    low, high = 0.0, 0.9999
    for _ in range(20):
        middle = (low + high) / 2
        decay = energy @ middle ** (2.0 * np.arange(count))
        low, high = (middle, high) if _decay_time(decay, _DECAY_BIN) < seconds else (low, middle)
    return (low + high) / 2


def reverberation_time(response: NDArray[np.float32]) -> float:
    """T60 in seconds of an impulse response at 16 kHz: from -5 to -35 dB, times two (ISO 3382, T30)."""
    return _decay_time(response.astype(np.float64) ** 2, 1 / SAMPLE_RATE)


def _decay_time(energy: NDArray[np.float64], step: float) -> float:
    """T60 by a line through the backward sums of the energy of each ``step`` seconds (Schroeder, JASA 37, 1965)."""
    left = np.cumsum(energy[::-1])[::-1]
    decibels = 10 * np.log10(left / left[0] + 1e-12)
    chosen = np.flatnonzero((decibels <= -5) & (decibels >= -35))
    if len(chosen) < 2:
        return 0.0
    slope = np.polyfit(chosen * step, decibels[chosen], 1)[0]
    return float(-60 / slope)


def recorded(clip: Clip, decibels: float) -> Clip:
    """A clip in 16 bits whose peak is at this level: above 0 dB of full scale it is clipped, far below it is coarse."""
    scaled = clip / (np.abs(clip).max() + 1e-12) * 10 ** (decibels / 20)
    return np.asarray(np.rint(np.clip(scaled, -1, 1) * 32767) / 32767, dtype=np.float32)


def low_pass(clip: Clip, hertz: float) -> Clip:
    """A clip without what lies above a frequency: resampled to twice that, and back."""
    narrow = soxr.resample(clip, SAMPLE_RATE, 2 * hertz)
    return of_length(soxr.resample(narrow, 2 * hertz, SAMPLE_RATE), len(clip))


def through_telephone(clip: Clip, bits: int = 8) -> Clip:
    """8 kHz and mu-law of eight bits, as in telephony (ITU-T G.711), or of fewer."""
    steps = 2 ** (bits - 1) - 1
    narrow = soxr.resample(clip, SAMPLE_RATE, 8000)
    peak = float(np.abs(narrow).max() + 1e-6)
    packed = np.sign(narrow) * np.log1p(255 * np.abs(narrow) / peak) / np.log(256)
    coarse = np.round(packed * steps) / steps
    narrow = np.sign(coarse) * np.expm1(np.abs(coarse) * np.log(256)) / 255 * peak
    return of_length(soxr.resample(narrow.astype(np.float32), 8000, SAMPLE_RATE), len(clip))


def through_codec(clip: Clip, codec: Literal["opus", "mp3"], kilobits: float) -> Clip:
    """Encoded at a bit rate, in kbit/s, and decoded."""
    packed = io.BytesIO()
    encoder, container, sample_format = _ENCODERS[codec]
    with av.open(packed, "w", format=container) as file:
        stream = file.add_stream(encoder, rate=SAMPLE_RATE, layout="mono")
        stream.bit_rate = round(1000 * kilobits)
        stream.codec_context.format = sample_format
        file.mux(stream.encode(audio_frame(np.clip(clip, -1, 1), sample_format)))
        file.mux(stream.encode(None))
    packed.seek(0)
    return of_length(load_audio(packed), len(clip))


def at_speed(clip: Clip, speed: float) -> Clip:
    """Spoken ``speed`` times as fast at the same pitch, by FFmpeg's ``atempo``, which overlaps similar waveforms."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=SAMPLE_RATE, format="flt", layout="mono")
    tempo, sink = graph.add("atempo", str(speed)), graph.add("abuffersink")
    source.link_to(tempo)
    tempo.link_to(sink)
    graph.configure()
    graph.push(audio_frame(clip, "flt"))
    graph.push(None)
    parts = []
    while True:
        try:
            parts.append(graph.pull().to_ndarray()[0])
        except av.error.EOFError:
            return of_length(np.concatenate(parts), round(len(clip) / speed))


def at_pitch(clip: Clip, semitones: float) -> Clip:
    """Higher or lower with the formants, in the same time."""
    ratio = 2 ** (semitones / 12)
    played = soxr.resample(clip, SAMPLE_RATE * ratio, SAMPLE_RATE)
    return of_length(at_speed(played, 1 / ratio), len(clip))


def cut(clip: Clip, percent: float) -> Clip:
    """The first part of a clip."""
    return clip[: max(1, round(len(clip) * percent / 100))]


def spans_dropped(clip: Clip, percent: float, rng: np.random.Generator) -> Clip:
    """A clip in which drawn spans of 100 ms are silent, so that ``percent`` of the spans are."""
    count = -(-len(clip) // SPAN)
    lost = np.zeros(count, np.bool_)
    lost[rng.choice(count, round(count * percent / 100), replace=False)] = True
    return np.where(np.repeat(lost, SPAN)[: len(clip)], np.float32(0), clip)


def of_length(clip: Clip, length: int) -> Clip:
    """Cut or padded with silence to a length."""
    return np.asarray(np.pad(clip[:length], (0, max(0, length - len(clip)))), dtype=np.float32)


def audio_frame(clip: Clip, sample_format: str) -> av.AudioFrame:
    """A clip as FFmpeg takes it, in a format of 32-bit floats such as "fltp"."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(clip[None]), format=sample_format, layout="mono")
    frame.sample_rate, frame.pts = SAMPLE_RATE, 0
    return frame
