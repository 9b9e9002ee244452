"""Audio decoding: any common audio file to a 16 kHz mono float32 waveform, or a :class:`MediaError` that says why not.

The first bytes of a file choose the decoder, not its suffix: libsndfile, or FFmpeg (PyAV) for what libsndfile cannot
read, and for MP3, about which libsndfile writes warnings to stderr. FFmpeg is always told the format, so it never
follows playlists or other formats that name further files or URLs.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import ArrayLike, NDArray

from saysee.errors import MediaError
from saysee.media.containers import how_cut, mp3_lacks_bytes, repaired
from saysee.media.formats import READABLE_AUDIO, audio_container, tags_end
from saysee.media.source import Source, opened, reason

SAMPLE_RATE = 16_000  # Hz; the rate on which HuBERT was pre-trained
FRAME_SAMPLES = 400  # receptive field of one HuBERT frame in samples (25 ms). A shorter waveform has no frame.
MAX_SECONDS = 60.0  # default limit: captions and queries last 2 to 20 s, and HuBERT's memory grows with the square
SILENCE_PEAK = 1e-4  # largest deviation from the mean in silence: −80 dB of full scale, three steps of 16 bits
MAX_CHANNELS = 8  # of an array (7.1 surround has eight); a longer axis is taken for a batch of clips
CANCELLED = 0.1  # channels cancel each other where their sum has less of the power that independent ones would have
_RATES = (1_000, 768_000)  # Hz: below any speech codec, above any recorder; outside, the header is wrong
_MOST_VALUES = 800_000  # a second, of all channels: eight at 96 kHz. The limit of seconds so is one of memory.
_MAX_PEAK = 16.0  # +24 dB of full scale; a float waveform above it has the scale of integers
_ENCODER_DELAY = 0.25  # seconds by which a decoder of MP3 may give less than the header counts: delay and padding
_BLOCK_VALUES = 1 << 20  # samples times channels decoded at a time


def load_audio(source: Source, *, max_seconds: float = MAX_SECONDS) -> NDArray[np.float32]:
    """Decode an audio file.

    Channels are averaged; where they cancel each other (``CANCELLED``), as when one is inverted, the one with the most
    power is taken. Samples of floating-point files may exceed ±1; nothing is clipped or normalized.

    Args:
        source: a path, the bytes of a file, or a binary file object.
        max_seconds: limit of length, checked in the header where that counts samples, and while decoding; ``math.inf``
            for none.

    Returns:
        [T] samples at 16 kHz, mono, float32, in −1..1.

    Raises MediaError: with any code but "too-large". "truncated": bytes which the file announces are missing, or a part
    of it cannot be decoded; a stream that does not count its parts (live WebM, plain AAC, WAV from a pipe) may be cut
    between two without a sign. "silent": no sample deviates from the mean by more than ``SILENCE_PEAK``.
    """
    with opened(source, "audio") as (file, name), _open_decoder(file, name) as stream:
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

    Raises MediaError: empty, not-finite, silent, too-short, too-long; "undecodable" for another type, shape or scale.
    """
    _check_rate(sampling_rate, name)
    samples = _to_float(np.asarray(waveform), name)
    if samples.ndim == 2 and samples.size and min(samples.shape) <= MAX_CHANNELS:
        samples = _mono(samples, 1 - int(np.argmin(samples.shape)))
    if samples.ndim != 1 and samples.size:
        what = f"{name}: shape {list(samples.shape)} is not one clip"
        raise MediaError("undecodable", f"{what}; pass [T], [T, C] or [C, T], and several as a list")
    samples = samples.reshape(-1)
    _check_length(samples.size / sampling_rate, max_seconds, name)
    return _finish(samples, sampling_rate, name)


def audio_seconds(source: Source) -> float:
    """Length of an audio file in seconds, from its header; the file is decoded only if the header does not say.

    Raises MediaError if the file cannot be opened or is not audio. Samples are not checked.
    """
    with opened(source, "audio") as (file, name), _open_decoder(file, name) as stream:
        if stream.seconds is not None:
            return stream.seconds
        samples: int = sum(block.shape[stream.time] for block in _guarded_blocks(stream, name))
        return samples / stream.rate


@dataclass(frozen=True, slots=True)
class _Stream:
    """An open audio file, of which blocks of samples are decoded on demand."""

    rate: int  # Hz
    time: int  # axis of the samples in a block; the other one is the channels
    blocks: Iterator[NDArray[np.float32]]
    seconds: float | None  # by the header, if it says
    measured: bool = False  # by the header that counts samples or their bytes, not by that of a container
    least: float = 0.0  # seconds, of a file that is not cut short


def _decode(stream: _Stream, max_seconds: float, name: str) -> NDArray[np.float32]:
    """All blocks as one [T] array at the file's own rate. Stops once the limit is exceeded."""
    if stream.seconds is not None and stream.measured:
        _check_length(stream.seconds, max_seconds, name)
    blocks = []
    count = 0
    for block in _guarded_blocks(stream, name):
        channels = block.shape[1 - stream.time]
        if channels * stream.rate > _MOST_VALUES:
            how = f"{channels} channels at {stream.rate:,} Hz are more than a recording of speech has"
            raise MediaError("undecodable", f"{name}: {how}; export it again")
        blocks.append(block)
        count += block.shape[stream.time]
        _check_length(count / stream.rate, max_seconds, name)
    seconds = count / stream.rate
    if seconds < stream.least:
        raise _truncated(name, f"ends after {seconds:.2f} of {stream.seconds:.2f} s")
    return _mono(np.concatenate(blocks, axis=stream.time), stream.time) if blocks else np.empty(0, np.float32)


def _guarded_blocks(stream: _Stream, name: str) -> Iterator[NDArray[np.float32]]:
    """The blocks of a stream. Its header was valid, so bad data after it is damage."""
    count = 0
    try:
        for block in stream.blocks:
            count += block.shape[stream.time]
            yield block
    except Exception as error:
        is_damage = isinstance(error, av.error.InvalidDataError | av.error.EOFError | soundfile.SoundFileError)
        why = f"decoding stops after {count / stream.rate:.2f} s: {reason(error)}"
        raise (_truncated if is_damage else _undecodable)(name, why) from None


def _mono(samples: NDArray[np.float32], time: int) -> NDArray[np.float32]:
    """The average [T] of channels; where they cancel each other, the one with most power. ``time`` is the axis of T."""
    channels = samples.shape[1 - time]
    if channels == 1:
        return samples.reshape(-1)
    average: NDArray[np.float32] = samples.mean(axis=1 - time, dtype=np.float32)
    with np.errstate(all="ignore"):  # of samples that are not finite, which _finish rejects
        powers = samples.var(axis=time)
        if not average.var() * channels**2 < CANCELLED * powers.sum():
            return average
    return samples[:, powers.argmax()] if time == 0 else samples[powers.argmax()]


def _finish(samples: NDArray[np.float32], rate: int, name: str) -> NDArray[np.float32]:
    """Checks the samples [T] of one clip and resamples them to 16 kHz."""
    if samples.size == 0:
        raise MediaError("empty", f"{name}: has no samples; record it again")
    low, high = float(samples.min()), float(samples.max())
    if not np.isfinite([low, high]).all():  # any NaN appears in the minimum and the maximum
        bad = f"{(~np.isfinite(samples)).sum():,} of {samples.size:,} samples are NaN or infinite"
        raise MediaError("not-finite", f"{name}: {bad}; export it again")
    if (peak := max(high, -low)) > _MAX_PEAK:
        raise MediaError("undecodable", f"{name}: float samples reach {peak:.0f}, not −1..1; divide them by 32768")
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    if samples.size < FRAME_SAMPLES:
        how = f"is {1000 * samples.size / SAMPLE_RATE:.1f} ms long, less than one frame of 25 ms"
        raise MediaError("too-short", f"{name}: {how}; record it again")
    if (high - low) / 2 <= SILENCE_PEAK:
        raise MediaError("silent", f"{name}: is silent (peak at most {SILENCE_PEAK:g}); check the microphone")
    return np.ascontiguousarray(samples, np.float32)


def _check_length(seconds: float, max_seconds: float, name: str) -> None:
    if seconds > max_seconds:
        fix = f"cut it: ffmpeg -i FILE -t {max_seconds:g} SHORT.wav"
        raise MediaError("too-long", f"{name}: is longer than the limit of {max_seconds:g} s; {fix}")


def _check_rate(rate: int, name: str) -> None:
    if not _RATES[0] <= rate <= _RATES[1]:
        how = f"a sampling rate of {rate:,} Hz is outside the range of speech"
        raise MediaError("undecodable", f"{name}: {how}; export it again")


def _to_float(samples: NDArray[Any], name: str) -> NDArray[np.float32]:
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):  # values too large for float32 become infinite, which _finish rejects
            return samples.astype(np.float32, copy=False)
    if samples.dtype.kind == "i" and samples.dtype.itemsize in (2, 4):
        return np.asarray(samples / -float(np.iinfo(samples.dtype).min), np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - np.float32(128)) / np.float32(128)
    how = f"samples of type {samples.dtype} have no known scale"
    raise MediaError("undecodable", f"{name}: {how}; pass floats in −1..1 or int16")


_BY_LIBSNDFILE = ("wav", "flac", "ogg", "aiff", "caf", "au", "w64", "nistsphere")


@contextmanager
def _open_decoder(file: BinaryIO, name: str) -> Iterator[_Stream]:
    """Opens ``file`` with the first decoder that can read it."""
    container = audio_container(file)
    if container is None:
        raise MediaError("undecodable", f"{name}: is not an audio file; convert it to one of {READABLE_AUDIO}")
    start = tags_end(file)
    if (how := how_cut(file, container, start)) is not None:
        raise _truncated(name, how)
    file = repaired(file, container, start)
    with ExitStack() as stack:
        decoders = [_open_libsndfile, _open_ffmpeg] if container in _BY_LIBSNDFILE else [_open_ffmpeg]
        for decoder in decoders:
            file.seek(0)
            try:
                stream = stack.enter_context(decoder(file, container))
                break
            except Exception as error:
                why = reason(error)
        else:
            raise _undecodable(name, f"as {container}: {why}")
        _check_rate(stream.rate, name)
        yield stream


@contextmanager
def _open_libsndfile(file: BinaryIO, container: str) -> Iterator[_Stream]:
    with soundfile.SoundFile(file) as audio:
        if audio.subtype == "MPEG_LAYER_III":
            raise ValueError("libsndfile writes warnings about MP3 to stderr")
        size = max(1, _BLOCK_VALUES // audio.channels)

        def blocks() -> Iterator[NDArray[np.float32]]:
            while (block := audio.read(size, dtype="float32", always_2d=True)).size:
                yield block

        seconds = audio.frames / audio.samplerate
        # An Ogg file may count from the start of the broadcast that it was recorded from.
        measured, least = container != "ogg", seconds if container == "flac" else 0.0
        yield _Stream(audio.samplerate, 0, blocks(), seconds, measured, least)


@contextmanager
def _open_ffmpeg(file: BinaryIO, container: str) -> Iterator[_Stream]:
    lacks_bytes = mp3_lacks_bytes(file) if container == "mp3" else None
    file.seek(0)
    with av.open(file, format=container.removeprefix("streamed ")) as media:
        if not media.streams.audio:
            raise ValueError("there is no sound in it")
        stream = media.streams.audio[0]
        if stream.codec_context is None:
            raise ValueError("there is no decoder for its codec")
        seconds, least = None, 0.0
        # FFmpeg guesses the length of ADTS, and of MP3 without a count, from the bit rate; that of Matroska is of its
        # longest track, that of a live MP4 (which counts no frames) includes the time before the sound.
        if stream.duration and (lacks_bytes is not None or (container == "mov" and stream.frames)):
            seconds = float(stream.duration * stream.time_base)
            least = seconds - _ENCODER_DELAY if lacks_bytes else 0.0
        yield _Stream(stream.rate, 1, _ffmpeg_blocks(media, stream, container), seconds, least=least)


def _ffmpeg_blocks(media: Any, stream: Any, container: str) -> Iterator[NDArray[np.float32]]:
    """Blocks [C, T], all of the rate of the stream and the channels of its first frame."""
    source = layout = failed = None
    planar: Any = None
    for packet in media.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError as error:
            # A recording of a broadcast starts within a frame; tags and padding between or after frames are no frames.
            if planar is not None and (container not in ("mp3", "aac") or bytes(packet)[:1] == b"\xff"):
                raise
            failed = error
            continue
        for frame in frames:
            layout = layout or frame.layout.name
            if source != (source := (frame.format.name, frame.layout.name, frame.sample_rate)):
                planar = av.AudioResampler(format="fltp", layout=layout, rate=stream.rate)
            for part in planar.resample(frame):
                yield part.to_ndarray()
    if planar is None and failed is not None:
        raise failed


def _truncated(name: str, how: str) -> MediaError:
    return MediaError("truncated", f"{name}: is cut short or damaged ({how}); copy or record it again")


def _undecodable(name: str, why: str) -> MediaError:
    return MediaError("undecodable", f"{name}: cannot be decoded ({why}); save it as WAV in another program")
