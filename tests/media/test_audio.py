"""Audio files of every format decode to the same 16 kHz mono waveform; every bad one is rejected with its reason."""

from __future__ import annotations

import io
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from saysee.errors import MediaError
from saysee.media.audio import FRAME_SAMPLES, SAMPLE_RATE, audio_seconds, check_waveform, load_audio
from saysee.media.images import load_image

SOUNDFILE = {"a.wav": ("WAV", "PCM_16"), "f.wav": ("WAV", "FLOAT"), "a.flac": ("FLAC", None)}
SOUNDFILE |= {"v.ogg": ("OGG", "VORBIS"), "o.opus": ("OGG", "OPUS"), "a.mp3": ("MP3", None), "w64.wav": ("RF64", None)}
PYAV = {"a.webm": "libopus", "a.m4a": "aac", "a.mp4": "aac", "a.aac": "aac"}


def tone(seconds: float = 1.0, rate: int = 48_000) -> np.ndarray:
    """A chirp with a silent start: shifts and changes of speed show in a correlation."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (200 + 300 * t) * t) * (t > 0.2 * seconds)).astype(np.float32)


def make(path: Path, samples: np.ndarray | None = None, rate: int = 48_000, **options: str) -> Path:
    samples = tone() if samples is None else samples
    if path.name in SOUNDFILE or path.suffix in (".wav", ".flac"):
        form, subtype = SOUNDFILE.get(path.name, (path.suffix[1:].upper(), None))
        soundfile.write(path, samples, rate, format=form, subtype=subtype)
        return path
    with av.open(str(path), "w", options=options) as media:
        stream = media.add_stream(PYAV.get(path.name, "aac"), rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        media.mux(stream.encode(frame))
        media.mux(stream.encode(None))
    return path


def cut(path: Path, keep: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def rejection(source: object, **options: float) -> MediaError:
    with pytest.raises(MediaError) as caught:
        load_audio(source, **options)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value), "the message holds a fix"
    return caught.value


@pytest.mark.parametrize("name", [*SOUNDFILE, *PYAV])
def test_every_format_decodes_to_the_same_waveform(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name)
    samples = load_audio(path)
    expected = tone(rate=SAMPLE_RATE)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert abs(len(samples) / SAMPLE_RATE - 1.0) < 0.06  # AAC pads its last frames
    shift = max(range(0, 1600, 2), key=lambda at: float(np.dot(samples[at : at + 14_000], expected[:14_000])))
    start, end = samples[shift : shift + 14_000], expected[:14_000]
    assert np.corrcoef(start, end[: len(start)])[0, 1] > 0.99
    assert abs(audio_seconds(path) - 1.0) < 0.06


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.webm"])
def test_paths_bytes_and_file_objects_give_the_same_samples(tmp_path: Path, name: str, capfd: object) -> None:
    path = make(tmp_path / name)
    samples = load_audio(path)
    np.testing.assert_array_equal(samples, load_audio(str(path)))
    np.testing.assert_array_equal(samples, load_audio(path.read_bytes()))
    with path.open("rb") as file:
        np.testing.assert_array_equal(samples, load_audio(file))
        assert not file.closed
    assert capfd.readouterr().err == ""


def test_the_suffix_does_not_choose_the_decoder(tmp_path: Path) -> None:
    path = make(tmp_path / "a.webm").rename(tmp_path / "a.wav")
    assert len(load_audio(path)) == SAMPLE_RATE


def test_channels_are_averaged(tmp_path: Path) -> None:
    left = tone(rate=SAMPLE_RATE)
    soundfile.write(tmp_path / "s.wav", np.stack([left, np.zeros_like(left)], 1), SAMPLE_RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "s.wav"), left / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 96_000])
def test_any_rate_keeps_the_length_in_seconds(tmp_path: Path, rate: int) -> None:
    assert len(load_audio(make(tmp_path / "r.wav", tone(rate=rate), rate))) == SAMPLE_RATE


def test_an_mp3_after_a_tag_with_an_image(tmp_path: Path) -> None:
    data = make(tmp_path / "a.mp3").read_bytes()
    tag = b"ID3\x03\x00\x00" + bytes([0, 0, 2, 0]) + bytes(256)
    np.testing.assert_array_equal(load_audio(tag + data), load_audio(data))


@pytest.mark.parametrize("name", [*SOUNDFILE, *PYAV])
@pytest.mark.parametrize("keep", [0.4, 0.7])
def test_a_file_cut_short_is_rejected(tmp_path: Path, name: str, keep: float) -> None:
    samples = np.random.default_rng(0).normal(size=4 * 48_000).astype(np.float32) / 10
    path = cut(make(tmp_path / name, samples), keep)
    if name == "a.aac" and len(load_whole_frames(path)) == 0:
        return
    assert rejection(path).code == "truncated"


def load_whole_frames(path: Path) -> bytes:
    """What follows the last whole ADTS frame: an AAC stream cut between two frames cannot be told from a whole one."""
    data = path.read_bytes()
    at = 0
    while at + 7 <= len(data):
        at += (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
    return data[at:] if at < len(data) else (data[-1:] if at > len(data) else b"")


def test_an_mp4_with_its_index_in_front_is_rejected_when_cut(tmp_path: Path) -> None:
    path = make(tmp_path / "f.m4a", tone(4.0), movflags="+faststart")
    assert len(load_audio(path)) > 4 * SAMPLE_RATE
    assert rejection(cut(path, 0.6)).code == "truncated"


def test_a_wav_written_by_a_stream_of_unknown_length_is_read(tmp_path: Path) -> None:
    data = bytearray(make(tmp_path / "a.wav").read_bytes())
    at = data.index(b"data")
    data[4:8] = data[at + 4 : at + 8] = b"\xff\xff\xff\xff"
    assert len(load_audio(bytes(data))) == SAMPLE_RATE


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "v.ogg", "a.mp3", "a.webm", "a.m4a", "a.aac"])
def test_over_the_limit_is_too_long(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name, tone(2.0))
    assert len(load_audio(path, max_seconds=2.1)) > 1.9 * SAMPLE_RATE
    assert rejection(path, max_seconds=1.5).code == "too-long"


def test_hours_are_rejected_by_the_header_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hours.flac"
    with soundfile.SoundFile(path, "w", 16_000, 1) as file:
        for _ in range(60):
            file.write(np.zeros(16_000 * 60, np.int16))
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("decoded"))
    assert audio_seconds(path) == 3600
    assert rejection(path).code == "too-long"


def test_a_stream_without_a_length_is_stopped_while_decoding(tmp_path: Path) -> None:
    data = bytearray(make(tmp_path / "a.flac", np.tile(tone(rate=16_000), 200), 16_000).read_bytes())
    data[21] &= 0xF0  # the number of samples in STREAMINFO: 0 is unknown
    data[22:26] = bytes(4)
    assert audio_seconds(bytes(data)) == 200
    error = rejection(bytes(data), max_seconds=10)
    assert error.code == "too-long"


def test_files_that_are_not_audio(tmp_path: Path) -> None:
    for data in (b"hello, world, this is text", os.urandom(5) + bytes(400), b"RIFF\x10\0\0\0WEBPVP8 1234567890"):
        assert rejection(data).code in ("undecodable", "truncated")
    assert rejection(b"#EXTM3U\nfile:///etc/passwd\n").code == "undecodable"
    image = io.BytesIO()
    from PIL import Image

    for form in ("PNG", "JPEG", "WEBP"):
        image.seek(0)
        Image.new("RGB", (64, 64), "red").save(image, form)
        assert rejection(image.getvalue()).code == "undecodable"


def test_a_video_without_audio_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as media:
        stream = media.add_stream("mpeg4", rate=24)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        media.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        media.mux(stream.encode(None))
    error = rejection(path)
    assert error.code == "undecodable"


def test_garbage_after_valid_first_bytes_never_leaks_a_library_error() -> None:
    rng = np.random.default_rng(0)
    heads = (b"RIFF\xff\0\0\0WAVEfmt ", b"fLaC\0\0\0\x22", b"OggS\0\2", b"\x1aE\xdf\xa3", b"\0\0\0\x20ftypM4A ")
    for head in (*heads, b"\xff\xfb\x90\xc4", b"\xff\xf1\x50\x80", b"ID3\x03\0\0\0\0\0\x10"):
        for size in (0, 3, 40, 2000):
            with pytest.raises(MediaError):
                load_audio(head + rng.bytes(size))


def test_silence_is_rejected_also_with_dither_or_an_offset(tmp_path: Path) -> None:
    silent = np.zeros(16_000, np.int16)
    dither = np.random.default_rng(0).integers(-2, 3, 16_000).astype(np.int16)
    for samples in (silent, dither, silent + np.int16(500)):
        assert rejection(make(tmp_path / "s.wav", samples, 16_000)).code == "silent"
    whisper = make(tmp_path / "w.wav", (tone(rate=16_000) / 400).astype(np.float32), 16_000)
    assert load_audio(whisper).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_sample_that_is_not_finite_is_rejected(tmp_path: Path, bad: float) -> None:
    samples = tone()
    samples[100] = bad
    path = tmp_path / "n.wav"
    soundfile.write(path, samples, 48_000, subtype="FLOAT")
    error = rejection(path)
    assert error.code == "not-finite"
    assert "1 of 48,000" in str(error)


def test_a_float_file_with_the_scale_of_integers_is_rejected(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "i.wav", tone() * 32768, 48_000, subtype="FLOAT")
    assert "32768" in str(rejection(tmp_path / "i.wav"))


def test_one_frame_is_enough_and_a_sample_less_is_too_short(tmp_path: Path) -> None:
    samples = tone(rate=16_000)[8_000:]
    assert load_audio(make(tmp_path / "a.wav", samples[:FRAME_SAMPLES], 16_000)).shape == (FRAME_SAMPLES,)
    assert rejection(make(tmp_path / "b.wav", samples[: FRAME_SAMPLES - 1], 16_000)).code == "too-short"
    assert rejection(make(tmp_path / "c.wav", samples[:0], 16_000)).code == "empty"


def test_paths_that_hold_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "broken.wav").symlink_to("nowhere.wav")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    kinds = {"empty": "empty", "broken": "broken-link", "loop": "broken-link", "folder": "directory"}
    for stem, kind in (kinds | {"pipe": "unreadable", "nothing": "missing"}).items():
        error = rejection(tmp_path / f"{stem}.wav")
        assert error.code == kind
        assert f"{stem}.wav" in str(error)
    assert rejection(tmp_path / "empty.wav" / "x").code == "missing"
    assert rejection(tmp_path / "two\nlines.wav").code == "missing"
    assert rejection(tmp_path / "null\0byte").code == "unreadable"
    assert rejection(b"").code == "empty"


def test_no_permission_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "a.wav")
    path.chmod(0)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    if os.geteuid() == 0:  # root may read all
        monkeypatch.setattr(Path, "open", denied)
    assert rejection(path).code == "unreadable"
    with pytest.raises(MediaError, match=r"a\.wav"):
        audio_seconds(path)


def test_a_file_that_opens_and_cannot_be_read_is_unreadable() -> None:
    """As on a bad sector, or on a network drive that has gone."""
    for load in (load_audio, audio_seconds, load_image):
        with pytest.raises(MediaError, match="/proc/self/mem") as caught:
            load("/proc/self/mem")
        assert caught.value.code == "unreadable"


def test_more_samples_a_second_than_speech_has_are_rejected_however_small_the_file(tmp_path: Path) -> None:
    still = np.zeros((9_600, 8), np.float32)
    assert rejection(make(tmp_path / "a.flac", still, 192_000)).code == "undecodable"
    assert rejection(make(tmp_path / "b.flac", still, 96_000)).code == "silent"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16", "int32", "uint8"])
def test_arrays_of_every_scale_give_the_same_waveform(dtype: str) -> None:
    expected = tone(rate=SAMPLE_RATE)
    scale = {"int16": 2**15, "int32": 2**31, "uint8": 2**7}.get(dtype, 1)
    array = (expected.astype(np.float64) * scale + (128 if dtype == "uint8" else 0)).astype(dtype)
    np.testing.assert_allclose(check_waveform(array), expected, atol=0.01 if dtype == "uint8" else 1e-3)


def test_arrays_with_channels_in_either_axis_are_averaged_and_resampled() -> None:
    mono = tone()
    stereo = np.stack([mono, mono])
    expected = check_waveform(mono, sampling_rate=48_000)
    assert expected.shape == (SAMPLE_RATE,)
    for array in (stereo, stereo.T, mono[None], mono[:, None]):
        np.testing.assert_allclose(check_waveform(array, sampling_rate=48_000), expected, atol=1e-6)


def test_arrays_are_rejected_like_files() -> None:
    good = tone(rate=SAMPLE_RATE)
    bad = {
        "empty": good[:0],
        "too-short": good[:399],
        "silent": good * 0,
        "not-finite": np.full(16_000, np.nan),
        "too-long": np.tile(good, 61),
    }
    for kind, array in bad.items():
        with pytest.raises(MediaError, match=r"query 3") as caught:
            check_waveform(array, name="query 3")
        assert caught.value.code == kind
    for array in (
        np.arange(16_000),
        np.zeros((3, 4, 5)),
        good[None].repeat(20, 0),
        good * 32768,
        good.astype("complex"),
    ):
        with pytest.raises(MediaError) as caught:
            check_waveform(array)
        assert caught.value.code == "undecodable"
    with pytest.raises(MediaError, match="rate"):
        check_waveform(good, sampling_rate=0)


def test_a_header_with_an_absurd_rate_is_rejected(tmp_path: Path) -> None:
    data = bytearray(make(tmp_path / "a.wav").read_bytes())
    struct.pack_into("<I", data, 24, 4_000_000_000)
    assert rejection(bytes(data)).code == "undecodable"


def video(form: str, codec: str, *, sound: tuple[float, float], pictures: float, **options: str) -> bytes:
    """A video of ``pictures`` seconds, whose sound starts and ends at these seconds. Packets go out as they come."""
    out = io.BytesIO()
    with av.open(out, "w", format=form, options=options) as media:
        speech = media.add_stream(codec, rate=48_000, layout="mono")
        drawn = media.add_stream("libvpx" if form == "webm" else "mpeg4", rate=10)
        drawn.width = drawn.height = 64
        drawn.pix_fmt = "yuv420p"
        packets = []
        for number in range(round(pictures * 10)):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            packets += drawn.encode(frame)
        samples = tone(sound[1] - sound[0])[None]
        for at in range(0, samples.shape[1], 960):
            frame = av.AudioFrame.from_ndarray(samples[:, at : at + 960].copy(), format="flt", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, at + round(sound[0] * 48_000), Fraction(1, 48_000)
            if codec == "aac":
                frame = av.AudioResampler(format="fltp").resample(frame)[0]
            packets += speech.encode(frame)
        packets += [*drawn.encode(None), *speech.encode(None)]
        media.mux(sorted(packets, key=lambda packet: float((packet.dts or 0) * packet.time_base)))
    return out.getvalue()


@pytest.mark.parametrize(
    ("form", "codec", "options"),
    [
        ("webm", "libopus", {}),
        ("webm", "libopus", {"live": "1"}),
        ("matroska", "aac", {}),
        ("mp4", "aac", {}),
        ("mov", "aac", {}),
        ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov"}),
    ],
    ids=["webm", "live webm", "matroska", "mp4", "mov", "live mp4"],
)
def test_the_sound_of_a_video_counts_and_not_its_pictures(form: str, codec: str, options: dict[str, str]) -> None:
    for sound, pictures in ((0.0, 2.0), 3.0), ((1.0, 3.0), 4.0), ((0.0, 2.0), 1.0):
        data = video(form, codec, sound=sound, pictures=pictures, **options)
        assert abs(len(load_audio(data)) / SAMPLE_RATE - 2.0) < 0.05
        assert abs(audio_seconds(data) - 2.0) < 0.05
        assert rejection(data[: len(data) * 3 // 4]).code == "truncated"


def test_an_edit_list_that_hides_the_start_is_followed() -> None:
    options = {"use_editlist": "1", "avoid_negative_ts": "disabled"}
    data = video("mp4", "aac", sound=(-1.0, 2.0), pictures=3.0, **options)
    assert abs(len(load_audio(data)) / SAMPLE_RATE - 2.0) < 0.05


def encoded(form: str, codec: str, rate: int = 48_000) -> bytes:
    """A second of the tone, by an encoder of FFmpeg."""
    out = io.BytesIO()
    with av.open(out, "w", format=form) as media:
        stream = media.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(rate=rate)[None], format="flt", layout="mono")
        frame.sample_rate = rate
        for part in av.AudioResampler(format=stream.codec_context.format, frame_size=1152).resample(frame):
            media.mux(stream.encode(part))
        media.mux(stream.encode(None))
    return out.getvalue()


@pytest.mark.parametrize(
    "codec", ["libmp3lame", "mp2", "adpcm_ms", "adpcm_ima_wav", "pcm_alaw", "pcm_mulaw", "pcm_s24le", "g722"]
)
def test_a_wav_may_hold_any_codec(codec: str) -> None:
    data = encoded("wav", codec, 16_000 if codec == "g722" else 48_000)
    assert abs(len(load_audio(data)) / SAMPLE_RATE - 1.0) < 0.08
    assert rejection(data[: len(data) // 2]).code == "truncated"


@pytest.mark.parametrize("form", ["WAV", "RF64", "AIFF", "CAF", "AU", "W64", "NIST"])
def test_uncompressed_formats_have_their_samples_and_are_rejected_when_cut(form: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, tone(rate=SAMPLE_RATE), SAMPLE_RATE, format=form, subtype="PCM_16")
    np.testing.assert_allclose(load_audio(file.getvalue()), tone(rate=SAMPLE_RATE), atol=1e-4)
    assert rejection(file.getvalue()[:20_000]).code == "truncated"


@pytest.mark.parametrize("size", [0, 0x7F000000, 0x7FFFF000, 0x7FFFFFDB, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("form", ["WAV", "AIFF", "AU"])
def test_a_size_that_stands_for_unknown_is_no_damage(form: str, size: int) -> None:
    file = io.BytesIO()
    soundfile.write(file, tone(rate=SAMPLE_RATE), SAMPLE_RATE, format=form, subtype="PCM_16")
    data, order = bytearray(file.getvalue()), "<" if form == "WAV" else ">"
    whole = load_audio(bytes(data))
    for total in {size, 0, len(data) - 8}:
        if form == "AU":
            struct.pack_into(">I", data, 8, size)
        else:
            struct.pack_into(order + "I", data, 4, total)
            struct.pack_into(order + "I", data, data.index(b"data" if form == "WAV" else b"SSND") + 4, size)
        np.testing.assert_array_equal(load_audio(bytes(data)), whole)


def test_a_wav_is_cut_short_only_if_its_file_is(tmp_path: Path) -> None:
    data = bytearray(make(tmp_path / "a.wav").read_bytes())
    whole, at = load_audio(bytes(data)), data.index(b"data")
    assert rejection(bytes(data[:-4_000])).code == "truncated"
    struct.pack_into("<I", data, at + 4, len(data))  # a writer that counted the header too
    np.testing.assert_array_equal(load_audio(bytes(data)), whole)
    struct.pack_into("<I", data, at + 4, 0)
    assert rejection(bytes(data[: at + 8]) + b"LIST\4\0\0\0INFO").code == "empty"


def test_a_chunk_of_odd_size_may_lack_its_padding(tmp_path: Path) -> None:
    data = make(tmp_path / "a.wav").read_bytes()
    at = data.index(b"data")
    for odd in (b"LIST\5\0\0\0abcde", b"LIST\5\0\0\0abcde\0", 2 * b"note\3\0\0\0abc"):
        np.testing.assert_array_equal(load_audio(data[:at] + odd + data[at:]), load_audio(data))


def test_tags_padding_and_junk_around_an_mp3_change_nothing(tmp_path: Path) -> None:
    data = make(tmp_path / "a.mp3").read_bytes()
    id3 = b"ID3\x04\0\0\0\0\0\x0a" + bytes(10)
    ape = b"APETAGEX" + struct.pack("<IIII", 2000, 64, 1, 0) + bytes(8) + b"x" * 64
    for before in (
        bytes(3_000),
        bytes(60_000),
        b"TAG" + bytes(125),
        2 * id3,
        id3 + bytes(999),
        id3 + ape,
        data[999:1200],
    ):
        np.testing.assert_array_equal(load_audio(before + data), load_audio(data))
        assert audio_seconds(before + data) == audio_seconds(data)
        assert rejection(before + data[: len(data) // 2]).code == "truncated"
    for after in (bytes(5_000), b"TAG" + bytes(125), ape):
        assert abs(len(load_audio(data + after)) - len(load_audio(data))) < 1600


def test_channels_that_cancel_give_the_one_with_the_most_power(tmp_path: Path) -> None:
    left, noise = tone(rate=SAMPLE_RATE), np.random.default_rng(0).normal(0, 0.02, SAMPLE_RATE).astype(np.float32)
    for right in (-left, -0.9 * left, -left + noise, 0.2 - left):
        path = tmp_path / "s.wav"
        soundfile.write(path, np.stack([left, right], 1), SAMPLE_RATE, subtype="FLOAT")
        for samples in (load_audio(path), check_waveform(np.stack([left, right]))):
            assert abs(np.corrcoef(samples, left)[0, 1]) > 0.98
            assert samples.std() > 0.9 * left.std()
    for right in (left, 0.5 * left, -0.5 * left, 3 * noise, 0 * left):
        np.testing.assert_array_equal(check_waveform(np.stack([left, right])), np.stack([left, right]).mean(0))
