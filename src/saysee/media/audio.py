"""Audio decoding: any common audio file to a 16 kHz mono float32 waveform, or a :class:`MediaError` that says why not.

The first bytes of a file choose the decoder, not its suffix: libsndfile for WAV, FLAC and Ogg (Vorbis, Opus); FFmpeg
(PyAV) for WebM, MP4, AAC and MP3, because libsndfile's MP3 decoder writes warnings to stderr. FFmpeg is always told the
format, so it never follows playlists or other formats that name further files or URLs.
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
from saysee.media.formats import READABLE_AUDIO, audio_container, tags_end
from saysee.media.source import Source, opened, reason

SAMPLE_RATE = 16_000
"""Hz; the rate on which HuBERT was pre-trained."""

FRAME_SAMPLES = 400
"""Receptive field of one HuBERT frame in samples (25 ms). A shorter waveform has no frame."""

MAX_SECONDS = 60.0
"""Default limit of length: captions and queries last 2 to 20 s, and the memory of HuBERT grows with its square."""

SILENCE_PEAK = 1e-4
"""Largest deviation from the mean that still counts as silence: −80 dB of full scale, three steps of 16 bits."""

MAX_CHANNELS = 8
"""Largest number of channels of an array (7.1 surround has eight). A longer axis is taken for a batch of clips."""

_RATES = (1_000, 768_000)  # Hz: below any speech codec, above any recorder; outside, the header is wrong
_MAX_PEAK = 16.0  # +24 dB of full scale; a float waveform above it has the scale of integers
_BLOCK_VALUES = 1 << 20  # samples times channels decoded at a time
_LOSSY_SLACK = 0.25  # seconds by which a lossy stream may be shorter than its header says: encoder delay and padding


def load_audio(source: Source, *, max_seconds: float = MAX_SECONDS) -> NDArray[np.float32]:
    """Decode an audio file.

    Channels are averaged. Samples of floating-point files may exceed ±1; nothing is clipped or normalized.

    Args:
        source: a path, the bytes of a file, or a binary file object.
        max_seconds: limit of length, checked in the header and while decoding; ``math.inf`` for none.

    Returns:
        [T] samples at 16 kHz, mono, float32, in −1..1.

    Raises:
        MediaError: with any code but "too-large". "truncated" means cut short or damaged after the header. It is
            detected in all formats except streams that do not count their frames (live WebM, plain AAC) and are cut
            between two frames. "not-finite" means at least one NaN or infinite sample; "silent", no sample deviates
            from the mean by more than ``SILENCE_PEAK``.
    """
    with opened(source, "audio") as (file, name), _open_decoder(file, name) as stream:
        if stream.seconds is not None:
            _check_length(stream.seconds, max_seconds, name)
        samples = _decode(stream, max_seconds, name)
        return _finish(samples, stream.rate, name)


def check_waveform(
    waveform: ArrayLike, *, sampling_rate: int = SAMPLE_RATE, name: str = "array", max_seconds: float = MAX_SECONDS
) -> NDArray[np.float32]:
    """Convert an array of samples to what :func:`load_audio` returns, with the same checks.

    Args:
        waveform: one clip: [T], or with up to ``MAX_CHANNELS`` channels [T, C] or [C, T]; the shorter axis is the
            channels. Floats are in −1..1; int16, int32 and uint8 are scaled from their full range.
        sampling_rate: Hz; any rate but 16 kHz is resampled.
        name: of the clip, in error messages.
        max_seconds: limit of length; ``math.inf`` for none.

    Raises:
        MediaError: empty, not-finite, silent, too-short, too-long; "undecodable" for another type, shape or scale.
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
    """Length of an audio file in seconds, from its header; the file is decoded only if the header does not say.

    Raises:
        MediaError: the file cannot be opened or is not audio. Samples are not checked.
    """
    with opened(source, "audio") as (file, name), _open_decoder(file, name) as stream:
        if stream.seconds is not None:
            return stream.seconds
        return sum(block.size for block in _guarded_blocks(stream, name)) / stream.rate


@dataclass(frozen=True, slots=True)
class _Stream:
    """An open audio file, of which mono samples are decoded on demand."""

    rate: int  # Hz
    seconds: float | None  # by the header, if it says
    slack: float  # seconds by which the decoded length may be shorter
    blocks: Iterator[NDArray[np.float32]]


def _decode(stream: _Stream, max_seconds: float, name: str) -> NDArray[np.float32]:
    """All blocks as one [T] array at the file's own rate. Stops once the limit is exceeded."""
    blocks = []
    count = 0
    for block in _guarded_blocks(stream, name):
        blocks.append(block)
        count += block.size
        _check_length(count / stream.rate, max_seconds, name)
    seconds = count / stream.rate
    if stream.seconds is not None and seconds < stream.seconds - stream.slack:
        raise _truncated(name, f"ends after {seconds:.2f} of {stream.seconds:.2f} s")
    return np.concatenate(blocks) if blocks else np.empty(0, np.float32)


def _guarded_blocks(stream: _Stream, name: str) -> Iterator[NDArray[np.float32]]:
    """The blocks of a stream. Its header was valid, so any error of the decoder means damage after it."""
    count = 0
    try:
        for block in stream.blocks:
            count += block.size
            yield block
    except Exception as error:
        raise _truncated(name, f"decoding stops after {count / stream.rate:.2f} s: {reason(error)}") from None


def _finish(samples: NDArray[np.float32], rate: int, name: str) -> NDArray[np.float32]:
    """Checks the samples [T] of one clip and resamples them to 16 kHz."""
    if samples.size == 0:
        raise MediaError("empty", f"{name}: has no samples; record it again")
    low, high = float(samples.min()), float(samples.max())
    if not np.isfinite([low, high]).all():  # any NaN appears in the minimum and the maximum
        bad = int((~np.isfinite(samples)).sum())
        raise MediaError(
            "not-finite", f"{name}: {bad:,} of {samples.size:,} samples are NaN or infinite; export it again"
        )
    if max(high, -low) > _MAX_PEAK:
        raise MediaError(
            "undecodable", f"{name}: float samples reach {max(high, -low):.0f}, not −1..1; divide them by 32768"
        )
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    if samples.size < FRAME_SAMPLES:
        milliseconds = 1000 * samples.size / SAMPLE_RATE
        raise MediaError(
            "too-short", f"{name}: is {milliseconds:.1f} ms long, less than one frame of 25 ms; record it again"
        )
    if (high - low) / 2 <= SILENCE_PEAK:
        raise MediaError("silent", f"{name}: is silent (peak at most {SILENCE_PEAK:g}); check the microphone")
    return np.ascontiguousarray(samples, np.float32)


def _check_length(seconds: float, max_seconds: float, name: str) -> None:
    if seconds > max_seconds:
        raise MediaError(
            "too-long", f"{name}: is longer than the limit of {max_seconds:g} s; cut it or raise max_seconds"
        )


def _check_rate(rate: int, name: str) -> None:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise MediaError(
            "undecodable", f"{name}: a sampling rate of {rate:,} Hz is outside the range of speech; export it again"
        )


def _to_float(samples: NDArray[Any], name: str) -> NDArray[np.float32]:
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):  # values too large for float32 become infinite, which _finish rejects
            return samples.astype(np.float32, copy=False)
    if samples.dtype.kind == "i" and samples.dtype.itemsize in (2, 4):
        return np.asarray(samples / -float(np.iinfo(samples.dtype).min), np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - np.float32(128)) / np.float32(128)
    raise MediaError(
        "undecodable", f"{name}: samples of type {samples.dtype} have no known scale; pass floats in −1..1 or int16"
    )


_BY_FFMPEG = ("matroska", "mov", "aac", "mp3", "amr", "streamed flac")


@contextmanager
def _open_decoder(file: BinaryIO, name: str) -> Iterator[_Stream]:
    """Opens ``file`` with the decoder that fits its first bytes."""
    container = audio_container(file)
    if container is None:
        raise MediaError("undecodable", f"{name}: is not an audio file; convert it to one of {READABLE_AUDIO}")
    if container == "wav":
        _check_wav(file, name)
    if container == "ogg":
        _check_ogg(file, name)
    file.seek(0)
    with ExitStack() as stack:
        try:
            decoder = _open_ffmpeg(file, container) if container in _BY_FFMPEG else _open_libsndfile(file)
            stream = stack.enter_context(decoder)
        except Exception as error:
            why = f"cannot be decoded as {container} ({reason(error)})"
            raise MediaError("undecodable", f"{name}: {why}; export it again") from None
        _check_rate(stream.rate, name)
        yield stream


@contextmanager
def _open_libsndfile(file: BinaryIO) -> Iterator[_Stream]:
    with soundfile.SoundFile(file) as audio:
        size = max(1, _BLOCK_VALUES // audio.channels)

        def blocks() -> Iterator[NDArray[np.float32]]:
            while (block := audio.read(size, dtype="float32", always_2d=True)).size:
                yield block[:, 0] if audio.channels == 1 else block.mean(axis=1, dtype=np.float32)

        yield _Stream(audio.samplerate, audio.frames / audio.samplerate, 0.0, blocks())


@contextmanager
def _open_ffmpeg(file: BinaryIO, container: str) -> Iterator[_Stream]:
    # For the others (ADTS, and MP3 without a frame count) FFmpeg guesses the length from the bit rate.
    has_length = container in ("matroska", "mov") or (container == "mp3" and _counts_frames(file))
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
        if has_length and stream.duration is not None:
            seconds = float(stream.duration * stream.time_base)
        elif has_length and media.duration is not None:
            seconds = media.duration / av.time_base
        yield _Stream(stream.rate, seconds, _LOSSY_SLACK, blocks())


def _counts_frames(file: BinaryIO) -> bool:
    """Whether an MP3 starts with the frame in which encoders write how many frames follow."""
    file.seek(tags_end(file))
    frame = file.read(44)  # the mark is at most 36 bytes in: after a header and 32 bytes of side information
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))


def _check_wav(file: BinaryIO, name: str) -> None:
    """Rejects a WAV file with fewer bytes of samples than its header says: libsndfile plays it as if complete."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    order: Literal["big", "little"] = "big" if file.read(4) == b"RIFX" else "little"
    data_size = None  # of an RF64 file, whose data chunk says 0xFFFFFFFF
    position = 12
    while position + 8 <= size:
        file.seek(position)
        chunk = file.read(8)
        length = int.from_bytes(chunk[4:], order)
        if chunk[:4] == b"ds64":
            data_size = int.from_bytes(file.read(16)[8:], "little")
        if chunk[:4] == b"data":
            if length == 0xFFFFFFFF:  # header of a stream, written before its length was known
                length = data_size or 0
            if position + 8 + length > size:
                raise _truncated(name, f"has {size - position - 8:,} of the {length:,} bytes that its header announces")
            return
        position += 8 + length + length % 2
    if file.seek(8) and file.read(4) == b"WAVE":
        raise _truncated(name, "ends before its samples")


def _check_ogg(file: BinaryIO, name: str) -> None:
    """Rejects an Ogg file whose last page is incomplete: libsndfile plays it as if it ended one page earlier."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - (1 << 16) - 512))  # a page has at most 65,307 bytes
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    header = 27 + page[26] if len(page) > 26 else 27  # 27 bytes and the lengths of the page's segments
    if len(page) < header or len(page) < header + sum(page[27:header]):
        raise _truncated(name, "ends within a page")


def _truncated(name: str, how: str) -> MediaError:
    return MediaError("truncated", f"{name}: is cut short or damaged ({how}); copy or record it again")
