"""Speech synthesis with the time of each word: espeak-ng, from the ``espeakng-loader`` package.

The library keeps state between utterances (noise, phases of oscillators), so it is loaded again for each, which takes
about 1.5 ms: the samples then depend on nothing but the text, the speaker and the version of the package. This does not
hold if another package has loaded the same library into this process, because it then cannot be unloaded.
"""

import _ctypes
import ctypes
import os
import re
import shutil
import sys
import tempfile
import threading
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from itertools import pairwise
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from saysee.data.scenes.speakers import Speaker
from saysee.errors import SaySeeError, extra_needed

SAMPLE_RATE = 16_000  # Hz; of the speech encoders

# From espeak-ng's speak_lib.h.
_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE = 0x0001 | 0x8000  # phoneme events; return an error rather than end the process
_RATE, _PITCH = 1, 3
_CHARACTERS_UTF8 = 1
_LIST_TERMINATED, _WORD, _PHONEME = 0, 1, 7


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # in characters, from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # in milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_EXTRA = partial(extra_needed, "the speech of the scenes corpus", "scenes")
_lock = threading.Lock()  # the library's state is global


@dataclass(frozen=True)
class Spoken:
    """A word or a phone, with its time in the utterance in seconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """Synthesized speech."""

    samples: NDArray[np.float32]  # [T] float32 at 16 kHz, between -1 and 1
    words: tuple[Spoken, ...]  # one for each part of ``text.split()``, in order, without punctuation around it
    phones: tuple[Spoken, ...]  # by the synthesizer's own names ("I2", "t#"), in order, without pauses

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.samples) / SAMPLE_RATE


def synthesize(text: str, speaker: Speaker) -> Utterance:
    """Speaks a text in the language of the speaker's accent; the same arguments give the same samples in any process.

    Raises SaySeeError if the synthesizer is not installed or has no such voice, or the text has no words.
    """
    if not text.strip():
        raise SaySeeError("the text to synthesize has no words; give a sentence")
    raw, rate, events = _speak(text, speaker)
    if not raw:
        raise SaySeeError(f"the synthesizer gave no audio for {text!r}; is it in the language of {speaker.accent!r}?")
    spoken = np.frombuffer(raw, dtype=np.int16).astype(np.float32) / 32768
    samples: NDArray[np.float32] = np.clip(soxr.resample(spoken, rate, SAMPLE_RATE), -1.0, 1.0)
    # Resampling may round the length down; a word must not end after the last sample.
    seconds = min(len(spoken) / rate, len(samples) / SAMPLE_RATE)
    return Utterance(samples, tuple(_timed_words(text, events, rate, seconds)), tuple(_phones(events, rate, seconds)))


def synthesizer_version() -> str:
    """Name and version of the synthesizer, on which the samples depend; MissingExtraError if it is not installed."""
    with _EXTRA():
        import espeakng_loader  # noqa: F401

        return f"espeakng-loader {metadata.version('espeakng-loader')}"  # its PackageNotFoundError is an ImportError


def _speak(text: str, speaker: Speaker) -> tuple[bytes, int, list[tuple[int, int, int, bytes]]]:
    """Speaks with the library in its initial state.

    Returns samples as 16-bit integers, their rate in Hz, and events: (type, character from 0, sample, phoneme).
    """
    chunks: list[bytes] = []
    events: list[tuple[int, int, int, bytes]] = []

    def receive(wave: Any, count: int, event: Any) -> int:
        if wave and count > 0:
            chunks.append(ctypes.string_at(wave, 2 * count))
        i = 0
        while event[i].type != _LIST_TERMINATED:
            kind = event[i].type
            if kind in (_WORD, _PHONEME):
                phoneme = event[i].id.string if kind == _PHONEME else b""
                events.append((kind, event[i].text_position - 1, event[i].sample, phoneme))
            i += 1
        return 0

    callback = _Callback(receive)
    encoded = text.encode()
    with _lock:
        library, data, folders = _load()
        try:
            rate = library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data), _INITIALIZE)
            if rate <= 0:
                raise SaySeeError(f"{data}: the synthesizer cannot read its voices; reinstall espeakng-loader")
            try:
                library.espeak_SetSynthCallback(callback)
                library.espeak_ng_SetRandSeed(ctypes.c_long(1))
                if library.espeak_SetVoiceByName((folders.get(speaker.accent, "") + speaker.voice).encode()) != 0:
                    fix = "use an accent such as 'en-us', 'en' or 'fr'"
                    raise SaySeeError(f"the synthesizer has no voice {speaker.voice!r}; {fix}")
                library.espeak_SetParameter(_RATE, speaker.rate, 0)
                library.espeak_SetParameter(_PITCH, speaker.pitch, 0)
                size = ctypes.c_size_t(len(encoded) + 1)
                if library.espeak_Synth(encoded, size, 0, 0, 0, _CHARACTERS_UTF8, None, None) != 0:
                    raise SaySeeError(f"the synthesizer cannot say {text!r}; change the text")
            finally:
                library.espeak_Terminate()
        finally:
            _unload(library)
    return b"".join(chunks), rate, events


def _load() -> tuple[ctypes.CDLL, str, dict[str, str]]:
    """The library, and what :func:`_lower_case` gives."""
    with _EXTRA():
        import espeakng_loader
    try:
        return ctypes.CDLL(espeakng_loader.get_library_path()), *_lower_case(espeakng_loader.get_data_path())
    except (OSError, RuntimeError) as error:
        raise SaySeeError(f"the synthesizer cannot be loaded ({error}); reinstall espeakng-loader") from None


@cache
def _lower_case(data: str) -> tuple[str, dict[str, str]]:
    """The data under names in lower case, until this process ends, and the folder of each accent.

    The synthesizer first opens the file of a voice's name in lower case. If there is none it reads all of its 240
    voices, which took a third of the time of an utterance.
    """
    folders = {path.name.lower(): f"{path.parent.name}/" for path in Path(data, "lang").glob("*/*")}
    if sys.platform == "win32":  # names in any case find a file
        return data, folders
    links = Path(tempfile.mkdtemp(prefix="saysee-voices-"))
    Finalize(None, shutil.rmtree, (links, True), exitpriority=0)  # worker processes do not call atexit
    shutil.copytree(data, links, copy_function=os.symlink, dirs_exist_ok=True)
    for path in list((links / "lang").glob("*/*")):
        path.rename(path.with_name(path.name.lower()))
    return str(links), folders


def _unload(library: ctypes.CDLL) -> None:
    if sys.platform == "win32":
        _ctypes.FreeLibrary(library._handle)
    else:
        _ctypes.dlclose(library._handle)


def _timed_words(text: str, events: list[tuple[int, int, int, bytes]], rate: int, seconds: float) -> list[Spoken]:
    """Each word with its time: from its event to the next, or to a pause before that.

    The synthesizer joins some small words ("of the"); they share the time of the first in proportion to their letters.
    """
    words = [(word[0], word.start()) for word in re.finditer(r"\S+", text)]
    begins: list[int | None] = []
    for i, (_, position) in enumerate(words):
        following = words[i + 1][1] if i + 1 < len(words) else len(text)
        begins.append(next((at for kind, p, at, _ in events if kind == _WORD and position <= p < following), None))
    if begins[0] is None:
        begins[0] = 0
    known = [i for i, begin in enumerate(begins) if begin is not None]
    pauses = sorted(at for kind, _, at, phoneme in events if kind == _PHONEME and phoneme.startswith(b"_"))
    timed = []
    for i, following_known in pairwise([*known, len(words)]):
        begin = float(begins[i] or 0)
        end = seconds * rate if following_known == len(words) else float(begins[following_known] or 0)
        end = max(begin, min([end, *(at for at in pauses if at > begin)]))
        letters = [len(word) for word, _ in words[i:following_known]]
        for j, (word, _) in enumerate(words[i:following_known]):
            share = [sum(letters[:k]) / sum(letters) for k in (j, j + 1)]
            start_at, end_at = (min((begin + part * (end - begin)) / rate, seconds) for part in share)
            bare = word.strip(",.;:!?\"'()") or word
            timed.append(Spoken(bare, round(start_at, 4), min(round(end_at, 4), seconds)))
    return timed


def _phones(events: list[tuple[int, int, int, bytes]], rate: int, seconds: float) -> list[Spoken]:
    """Each phone, from its event to the next."""
    timed = [(at / rate, name.decode("utf-8", "replace")) for kind, _, at, name in events if kind == _PHONEME]
    ends = [*(start for start, _ in timed[1:]), seconds]
    return [
        Spoken(name, round(start, 4), round(min(end, seconds), 4))
        for (start, name), end in zip(timed, ends, strict=True)
        if name and not name.startswith("_") and end > start
    ]
