"""Sounds: any common audio file to 16 kHz mono float32, or a refusal that says why.

The decoder is chosen by a file's first bytes, not by its suffix: libsndfile for WAV, FLAC and Ogg (Vorbis, Opus),
FFmpeg by PyAV for WebM, MP4, AAC and MP3 (libsndfile's MP3 reader writes warnings to stderr). FFmpeg is always told
the format, so playlists and other formats that name further files or addresses are never followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import ArrayLike, NDArray

from saysee.errors import MediaError
from saysee.media.source import Source, opened, reason

SAMPLE_RATE = 16_000
"""Hz; what HuBERT was pre-trained on."""

FRAME_SAMPLES = 400
"""Samples one HuBERT frame sees (its receptive field, 25 ms): a shorter sound has no frame at all."""

MAX_SECONDS = 60.0
"""Default limit. Spoken captions and queries last 2 to 20 s; past a minute a file is a recording of something else,
and HuBERT's attention, quadratic in frames (3,000 at 60 s), would take the memory of its whole batch."""

SILENCE_PEAK = 1e-4
"""Largest departure from the mean that still counts as silence: −80 dB of full scale, three steps of 16 bits."""

MAX_CHANNELS = 8
"""Channels of an array (7.1 sound has eight); more in one axis reads as a batch of clips."""

_RATES = (1_000, 768_000)  # Hz: below any speech codec, above any recorder; outside, the header is wrong
_LOUDEST = 16.0  # +24 dB of full scale; above it a float sound is on the scale of its integers
_BLOCK_VALUES = 1 << 20  # samples times channels decoded at a time
_LOSSY_SLACK = 0.25  # seconds by which lossy streams may miss their header: encoder delay and padding
_FORMATS = "WAV, FLAC, Ogg, MP3, WebM, M4A, MP4, AAC"


@dataclass(frozen=True, slots=True)
class _Sound:
    """An opened sound: rate in Hz, seconds if the header can tell, and mono blocks, decoded as they are asked for."""

    rate: int
    seconds: float | None
    slack: float
    blocks: Iterator[NDArray[np.float32]]


def load_audio(source: Source, *, max_seconds: float = MAX_SECONDS) -> NDArray[np.float32]:
    """Decode a sound file.

    Channels are averaged. Samples of floating-point files may pass ±1; nothing is clipped or normalised.

    Args:
        source: a path, the bytes of a file, or a binary file object.
        max_seconds: limit of length, kept from the header on and while decoding; ``math.inf`` for none.

    Returns:
        [T] samples at 16 kHz, mono, float32, in −1..1.

    Raises:
        MediaError: of every kind but "too-large". "truncated" is a file cut short or damaged behind its header,
            which all formats show but streams that count nothing (live WebM, plain AAC) and are cut between frames;
            "not-finite", a single NaN or infinite sample; "silent", a departure of at most ``SILENCE_PEAK``.
    """
    with opened(source, "sound") as (file, name), _decoder(file, name) as sound:
        if sound.seconds is not None:
            _check_length(sound.seconds, max_seconds, name)
        samples = _decode(sound, max_seconds, name)
        return _finish(samples, sound.rate, name)


def check_waveform(
    waveform: ArrayLike, *, sampling_rate: int = SAMPLE_RATE, name: str = "array", max_seconds: float = MAX_SECONDS
) -> NDArray[np.float32]:
    """Bring an array of samples to what :func:`load_audio` gives, with the same refusals.

    Args:
        waveform: one clip: [T], or with up to ``MAX_CHANNELS`` channels as [T, C] or [C, T]; the shorter axis is the
            channels. Floats are in −1..1; int16, int32 and uint8 are scaled from their full range.
        sampling_rate: Hz; another than 16 kHz is resampled.
        name: what messages call the clip.
        max_seconds: limit of length; ``math.inf`` for none.

    Returns:
        [T] samples at 16 kHz, mono, float32.

    Raises:
        MediaError: empty, not finite, silent, too short, too long; "undecodable" for another type, shape or scale.
    """
    _check_rate(sampling_rate, name)
    samples = _to_float(np.asarray(waveform), name)
    if samples.ndim == 2 and samples.size and min(samples.shape) <= MAX_CHANNELS:
        samples = samples.mean(axis=int(np.argmin(samples.shape)), dtype=np.float32)
    if samples.ndim != 1 and samples.size:
        shape = list(samples.shape)
        raise MediaError(
            "undecodable", f"{name}: shape {shape} is not one clip; pass [T], [T, C] or [C, T], and several as a list"
        )
    samples = samples.reshape(-1)
    _check_length(samples.size / sampling_rate, max_seconds, name)
    return _finish(samples, sampling_rate, name)


def audio_seconds(source: Source) -> float:
    """Length of a sound in seconds, from its header; decoded only when the header cannot tell.

    Raises:
        MediaError: the file cannot be opened or is no sound. Samples are not looked at.
    """
    with opened(source, "sound") as (file, name), _decoder(file, name) as sound:
        if sound.seconds is not None:
            return sound.seconds
        return sum(block.size for block in _guarded(sound, name)) / sound.rate


def _decode(sound: _Sound, max_seconds: float, name: str) -> NDArray[np.float32]:
    """All blocks as one [T] array at the file's own rate; stops as soon as the limit is passed."""
    blocks = []
    count = 0
    for block in _guarded(sound, name):
        blocks.append(block)
        count += block.size
        _check_length(count / sound.rate, max_seconds, name)
    seconds = count / sound.rate
    if sound.seconds is not None and seconds < sound.seconds - sound.slack:
        raise _truncated(name, f"ends after {seconds:.2f} of {sound.seconds:.2f} s")
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)


def _guarded(sound: _Sound, name: str) -> Iterator[NDArray[np.float32]]:
    """The blocks of a sound whose header was good, so that an error of the decoder means damage behind it."""
    count = 0
    try:
        for block in sound.blocks:
            count += block.size
            yield block
    except Exception as error:
        raise _truncated(name, f"breaks off after {count / sound.rate:.2f} s: {reason(error)}") from None


def _finish(samples: NDArray[np.float32], rate: int, name: str) -> NDArray[np.float32]:
    """Check the samples [T] of one clip and resample them to 16 kHz."""
    if samples.size == 0:
        raise MediaError("empty", f"{name}: holds no samples; record it again")
    low, high = float(samples.min()), float(samples.max())
    if not np.isfinite([low, high]).all():  # minimum and maximum carry any NaN
        bad = int((~np.isfinite(samples)).sum())
        raise MediaError(
            "not-finite", f"{name}: {bad:,} of {samples.size:,} samples are NaN or infinite; export it again"
        )
    if max(high, -low) > _LOUDEST:
        raise MediaError(
            "undecodable", f"{name}: float samples reach {max(high, -low):.0f}, not −1..1; divide them by 32768"
        )
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    if samples.size < FRAME_SAMPLES:
        lasts = 1000 * samples.size / SAMPLE_RATE
        raise MediaError("too-short", f"{name}: lasts {lasts:.1f} ms, under one frame of 25 ms; record it again")
    if (high - low) / 2 <= SILENCE_PEAK:
        raise MediaError("silent", f"{name}: is silent (peak at most {SILENCE_PEAK:g}); check the microphone")
    return np.ascontiguousarray(samples, np.float32)


def _check_length(seconds: float, max_seconds: float, name: str) -> None:
    if seconds > max_seconds:
        raise MediaError("too-long", f"{name}: lasts over the limit of {max_seconds:g} s; cut it or raise max_seconds")


def _check_rate(rate: int, name: str) -> None:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise MediaError("undecodable", f"{name}: a sampling rate of {rate:,} Hz is not one of speech; export it again")


def _to_float(samples: NDArray[Any], name: str) -> NDArray[np.float32]:
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what overflows float32 is refused as infinite
            return samples.astype(np.float32, copy=False)
    if samples.dtype.kind == "i" and samples.dtype.itemsize in (2, 4):
        return np.asarray(samples / -float(np.iinfo(samples.dtype).min), np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - np.float32(128)) / np.float32(128)
    raise MediaError(
        "undecodable", f"{name}: samples of type {samples.dtype} have no known scale; pass floats in −1..1 or int16"
    )


# --- decoders ---------------------------------------------------------------------------------------------------------


@contextmanager
def _decoder(file: BinaryIO, name: str) -> Iterator[_Sound]:
    """Open ``file`` by the decoder that its first bytes ask for."""
    container = container_of(file)
    if container is None:
        raise MediaError("undecodable", f"{name}: is not a sound that can be read; convert it to one of {_FORMATS}")
    if container == "wav":
        _check_wav(file, name)
    if container == "ogg":
        _check_ogg(file, name)
    file.seek(0)
    with ExitStack() as stack:
        try:
            opening = _by_ffmpeg(file, container) if container in _FFMPEG else _by_libsndfile(file)
            sound = stack.enter_context(opening)
        except Exception as error:
            why = f"cannot be decoded as {container} ({reason(error)})"
            raise MediaError("undecodable", f"{name}: {why}; export it again") from None
        _check_rate(sound.rate, name)
        yield sound


_FFMPEG = ("matroska", "mov", "aac", "mp3", "streamed flac")


def container_of(file: BinaryIO) -> str | None:
    """The format of a sound by its first bytes; a tag of ID3, which may stand before them, is passed over."""
    start = _behind_tag(file)
    file.seek(start)
    head = file.read(26)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return "wav"
    if head[:4] == b"fLaC":  # libsndfile stumbles at the end of one whose header counts no samples
        return "flac" if len(head) < 26 or head[21] & 0x0F or any(head[22:]) else "streamed flac"
    if head[:4] == b"OggS":
        return "ogg"
    if head[:4] == b"\x1aE\xdf\xa3":  # WebM is a part of Matroska
        return "matroska"
    if head[4:8] == b"ftyp":
        return "mov"
    if len(head) >= 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:  # MPEG audio: layer 0 is AAC's ADTS
        return "mp3" if head[1] & 0x06 else "aac"
    return "mp3" if start else None


def _behind_tag(file: BinaryIO) -> int:
    """Where the sound begins: behind a tag of ID3, if there is one."""
    file.seek(0)
    head = file.read(10)
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))


@contextmanager
def _by_libsndfile(file: BinaryIO) -> Iterator[_Sound]:
    with soundfile.SoundFile(file) as sound:
        size = max(1, _BLOCK_VALUES // sound.channels)

        def blocks() -> Iterator[NDArray[np.float32]]:
            while (block := sound.read(size, dtype="float32", always_2d=True)).size:
                yield block[:, 0] if sound.channels == 1 else block.mean(axis=1, dtype=np.float32)

        yield _Sound(sound.samplerate, sound.frames / sound.samplerate, 0.0, blocks())


@contextmanager
def _by_ffmpeg(file: BinaryIO, container: str) -> Iterator[_Sound]:
    # Only these tell their length; of the rest, MP3 without a table and ADTS, it is guessed from the bit rate.
    told = container in ("matroska", "mov") or (container == "mp3" and _has_table(file))
    file.seek(0)
    with av.open(file, format=container.removeprefix("streamed ")) as media:
        if not media.streams.audio:
            raise ValueError("no audio stream in it")
        stream = media.streams.audio[0]

        def blocks() -> Iterator[NDArray[np.float32]]:
            planar = av.AudioResampler(format="fltp", rate=stream.rate)
            for frame in media.decode(stream):
                for part in planar.resample(frame):
                    yield part.to_ndarray().mean(axis=0, dtype=np.float32)

        seconds = None
        if told and stream.duration is not None:
            seconds = float(stream.duration * stream.time_base)
        elif told and media.duration is not None:
            seconds = media.duration / av.time_base
        yield _Sound(stream.rate, seconds, _LOSSY_SLACK, blocks())


def _has_table(file: BinaryIO) -> bool:
    """Whether an MP3 begins with the frame by which encoders tell how many follow."""
    file.seek(_behind_tag(file))
    frame = file.read(44)  # the longest way to the mark: a header, 32 bytes of side information, the mark
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))


def _check_wav(file: BinaryIO, name: str) -> None:
    """Refuse a WAV whose data stop short of what its header says: libsndfile plays it as if it were whole."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    order: Literal["big", "little"] = "big" if file.read(4) == b"RIFX" else "little"
    data_size = None  # of RF64, whose data chunk says 0xFFFFFFFF
    at = 12
    while at + 8 <= size:
        file.seek(at)
        chunk = file.read(8)
        length = int.from_bytes(chunk[4:], order)
        if chunk[:4] == b"ds64":
            data_size = int.from_bytes(file.read(16)[8:], "little")
        if chunk[:4] == b"data":
            if length == 0xFFFFFFFF:  # a stream's header, written before its length was known
                length = data_size or 0
            if at + 8 + length > size:
                raise _truncated(name, f"holds {size - at - 8:,} of the {length:,} bytes that its header tells")
            return
        at += 8 + length + length % 2
    if file.seek(8) and file.read(4) == b"WAVE":
        raise _truncated(name, "ends before its samples")


def _check_ogg(file: BinaryIO, name: str) -> None:
    """Refuse an Ogg whose last page is not whole: libsndfile plays it as if it ended one page before."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - (1 << 16) - 512)  # a page has at most 65,307 bytes
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"OggS")
    page = tail[at:]
    header = 27 + page[26] if len(page) > 26 else 27  # 27 bytes and the lengths of the page's segments
    if len(page) < header or len(page) < header + sum(page[27:header]):
        raise _truncated(name, "ends in the middle of a page")


def _truncated(name: str, how: str) -> MediaError:
    return MediaError("truncated", f"{name}: is cut short or damaged ({how}); copy or record it again")
