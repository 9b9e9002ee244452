"""A recording ends when it is enough; what is missing for one is told in one line."""

from __future__ import annotations

import json
import sys
import threading
import time

import numpy as np
import pytest
import soundfile

from saysee.cli import main
from saysee.errors import MediaError, MissingExtraError, SaySeeError
from saysee.search.index.updating import update_index
from saysee.search.terminal import microphone
from saysee.search.terminal.microphone import Listener, Microphone

RATE = 48_000


def tone(seconds: float, loudness: float, rate: int = RATE) -> np.ndarray:
    rng = np.random.default_rng(0)
    hiss = 1e-4 * rng.standard_normal(round(seconds * rate))
    return (hiss + loudness * np.sin(np.arange(round(seconds * rate)) / 20)).astype(np.float32)


class Library:
    """In place of sounddevice: a microphone that hears given samples, faster than time."""

    class PortAudioError(Exception):
        pass

    def __init__(self, samples: np.ndarray | None, refuses: str | None = None) -> None:
        self.samples, self.refuses, self.closed = samples, refuses, 0

    def query_devices(self, kind: str) -> dict[str, float]:
        if self.samples is None:
            raise self.PortAudioError("Error querying device -1")
        return {"default_samplerate": float(RATE)}

    def InputStream(self, samplerate, channels, dtype, blocksize, callback):
        if self.refuses:
            raise self.PortAudioError(self.refuses)
        assert (samplerate, channels, dtype) == (RATE, 1, "float32")

        def feed() -> None:
            memory = np.empty((blocksize, 1), np.float32)  # PortAudio uses it again for the next block
            for start in range(0, len(self.samples) - blocksize, blocksize):
                memory[:, 0] = self.samples[start : start + blocksize]
                callback(memory, blocksize, None, None)

        return _Stream(self, feed)


class _Stream:
    def __init__(self, library: Library, feed) -> None:
        self.library, self.thread = library, threading.Thread(target=feed)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *error):
        self.thread.join()
        self.library.closed += 1


@pytest.fixture
def hears(monkeypatch):
    def install(samples: np.ndarray | None, refuses: str | None = None) -> Library:
        library = Library(samples, refuses)
        monkeypatch.setitem(sys.modules, "sounddevice", library)
        return library

    return install


def seconds_until_enough(samples: np.ndarray, seconds: float | None = None) -> float | None:
    listener, block = Listener(RATE, seconds), RATE // 20
    for start in range(0, len(samples), block):
        if listener.add(samples[start : start + block]):
            return (start + block) / RATE
    return None


def test_ends_at_silence_behind_speech_and_not_at_pauses_or_clicks():
    before, words, pause, after = tone(2, 0), tone(1, 0.1), tone(1, 0), tone(3, 0)
    spoken = np.concatenate([before, words, pause, words, after])
    assert seconds_until_enough(spoken) == pytest.approx(5 + microphone.SILENCE_SECONDS, abs=0.1)
    assert seconds_until_enough(np.concatenate([words, after])) == pytest.approx(2.5, abs=0.1)
    assert seconds_until_enough(np.concatenate([before, tone(0.1, 0.5), after, after])) is None


def test_ends_behind_the_given_seconds_whatever_is_heard():
    assert seconds_until_enough(np.concatenate([tone(0.5, 0.1), tone(9, 0)]), 3.0) == 3.0
    assert seconds_until_enough(tone(70, 0.1)) == 60.0


def test_recording_is_at_16_khz_and_leaves_the_microphone_free(hears):
    library = hears(np.concatenate([tone(1, 0.1), tone(3, 0)]))
    assert len(Microphone().record(2.0)) == 32_000
    assert library.closed == 1
    recording = Microphone().record()
    assert len(recording) == pytest.approx(2.5 * 16_000, abs=1_600)
    assert np.abs(recording[:16_000]).max() == pytest.approx(0.1, abs=0.01)


def test_enter_ends_but_not_one_from_before(hears, monkeypatch):
    hears(tone(20, 0.1))
    lines = iter([True, True, False, False, True])  # two before the recording, one in its second block
    monkeypatch.setattr(microphone, "_enter_pressed", lambda: next(lines))
    assert len(Microphone().record()) == 1_600


def test_interrupted_it_leaves_the_microphone_free(encoder, photos, tmp_path, hears, monkeypatch, capsys):
    update_index(encoder, photos, tmp_path / "index")
    library = hears(tone(20, 0.1))

    calls = iter([False])

    def interrupt() -> bool:
        for none_yet in calls:
            return none_yet
        raise KeyboardInterrupt

    monkeypatch.setattr(microphone, "_enter_pressed", interrupt)
    assert main(["search", str(tmp_path / "index"), "--record"]) == 130
    assert library.closed == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="terminals of Windows have no pty")
def test_enter_is_taken_from_the_terminal(monkeypatch):
    import os
    import pty

    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r") as terminal, os.fdopen(ours, "w") as keyboard:
        monkeypatch.setattr(sys, "stdin", terminal)
        assert not microphone._enter_pressed()
        keyboard.write("\n")
        keyboard.flush()
        deadline = time.monotonic() + 10
        while not microphone._enter_pressed():
            assert time.monotonic() < deadline
        assert not microphone._enter_pressed()
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert not microphone._enter_pressed()


def test_what_is_missing_is_told(hears, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingExtraError, match=r"saysee\[microphone\]"):
        Microphone()

    class WithoutPortAudio:
        def find_spec(self, name, path=None, target=None):
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice")
    monkeypatch.setattr(sys, "meta_path", [WithoutPortAudio(), *sys.meta_path])
    with pytest.raises(SaySeeError, match="PortAudio"):
        Microphone()
    hears(None)
    with pytest.raises(SaySeeError, match="--record: no microphone"):
        Microphone()
    hears(tone(1, 0.1), refuses="Device unavailable")
    with pytest.raises(SaySeeError, match="Device unavailable"):
        Microphone().record()
    hears(np.zeros(4 * RATE, np.float32))
    with pytest.raises(MediaError, match="microphone: is silent"):
        Microphone().record(1.0)
    monkeypatch.setattr(microphone, "_STALLED_SECONDS", 0.05)
    hears(tone(0, 0))
    with pytest.raises(SaySeeError, match="--record: the microphone delivers no"):
        Microphone().record()


def test_command_searches_for_what_is_spoken(encoder, photos, tmp_path, hears, capsys):
    update_index(encoder, photos, tmp_path / "index")
    samples, rate = soundfile.read(photos / "clips/1.wav", dtype="float32")
    hears(np.repeat(samples, RATE // rate))
    seconds = 0.9 * len(samples) / rate
    words = ["search", str(tmp_path / "index"), "--record", str(seconds), "--for", "clips", "--json"]
    assert main(words) == 0
    output, errors = capsys.readouterr()
    (result,) = json.loads(output)["results"]
    assert (result["query"], len(result["hits"])) == ("microphone", 3)
    assert "speak now for" in errors
    for bad in ("-1", "nan", "inf", "90"):
        assert main([*words[:3], bad]) == 2
        errors = capsys.readouterr().err
        assert "--record" in errors
        assert "speak now" not in errors
