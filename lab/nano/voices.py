"""Synthesizers other than espeak-ng: flite and festival, Debian's packages, with the times of phones and words.

Their voices are of people's recordings, cut into units or modelled by HMMs. :data:`TRAINED` speak in pre-training,
:data:`UNHEARD` never do: they show how hubert-nano hears voices that are new to it. No person is in both lists: ``slt``
and ``kal`` are voices of both synthesizers.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import tempfile
from collections.abc import Sequence
from ctypes.util import find_library
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import soundfile
import soxr

from saysee.data.scenes.speech import SAMPLE_RATE, Spoken, Utterance
from saysee.errors import SaySeeError

STRETCHES, OCTAVES = (0.7, 1.25), (-0.3, 0.4)
"""How much longer than usual the phones are, and how far the pitch is moved."""


@dataclass(frozen=True)
class Voice:
    """A voice of a synthesizer, its usual mean pitch in Hz, and its share of the utterances among those of its list."""

    synthesizer: str
    name: str
    pitch: float
    share: float = 1.0


TRAINED = (
    Voice("flite", "cmu_us_awb", 130, 0.32),
    Voice("flite", "cmu_us_slt", 175, 0.3),
    Voice("flite", "cmu_us_kal16", 105, 0.13),
    Voice("festival", "cmu_us_slt_arctic_hts", 175, 0.12),
    Voice("festival", "kal_diphone", 105, 0.13),
)
UNHEARD = (Voice("flite", "cmu_us_rms", 100), Voice("festival", "ked_diphone", 105))

_ESPEAK = {
    "aa": "0", "ae": "a", "ah": "V", "ao": "O:", "aw": "aU", "ax": "@", "ay": "aI", "ch": "tS", "dh": "D", "dx": "t#",
    "eh": "E", "er": "3", "ey": "eI", "hh": "h", "ih": "I", "iy": "i:", "jh": "dZ", "ng": "N", "ow": "oU", "oy": "OI",
    "sh": "S", "th": "T", "uh": "U", "uw": "u:", "y": "j", "zh": "Z",
}  # fmt: skip
"""Phones of both synthesizers that espeak-ng has by another name in American English."""
_BEFORE_R = {"aa": "A@", "ao": "O@", "eh": "e@", "ih": "i@3"}
"""Vowels that espeak-ng has as one phone with an r behind it, if no vowel follows."""
_PAUSES = ("pau", "ssil", "sil", "brth", "#", "h#")


def speak(texts: Sequence[str], voices: Sequence[Voice], rng: Random) -> list[Utterance]:
    """Speaks each text by a voice drawn by its share, at a drawn pitch and pace; phones have espeak-ng's names.

    Raises:
        SaySeeError: a synthesizer or a voice is not installed, or festival failed.
    """
    drawn = [
        (voice, rng.uniform(*STRETCHES), voice.pitch * 2 ** rng.uniform(*OCTAVES))
        for voice in rng.choices(voices, [voice.share for voice in voices], k=len(texts))
    ]
    found: dict[int, Utterance] = {}
    for number, (text, (voice, stretch, pitch)) in enumerate(zip(texts, drawn, strict=True)):
        if voice.synthesizer == "flite":
            found[number] = _by_flite(text, voice, stretch, pitch)
    left = [number for number in range(len(texts)) if number not in found]
    found |= zip(left, _by_festival([(texts[each], *drawn[each]) for each in left]), strict=True)
    return [found[number] for number in range(len(texts))]


@dataclass(frozen=True)
class _Segment:
    """A phone by the synthesizer's name, when it ends, and the number and name of its word (-1 in a pause)."""

    name: str
    end: float
    word: int
    word_name: str


def _utterance(samples: Any, rate: int, segments: list[_Segment]) -> Utterance:
    waveform = np.asarray(samples, dtype=np.float32) / 32768
    waveform = np.clip(soxr.resample(waveform, rate, SAMPLE_RATE), -1, 1).astype(np.float32)
    phones: list[Spoken] = []
    words: dict[int, Spoken] = {}
    start = 0.0
    for place, segment in enumerate(segments):
        end = min(segment.end, len(waveform) / SAMPLE_RATE)
        if segment.name not in _PAUSES:
            phones.append(Spoken(_espeak_name(segments, place), start, end))
            first = words.get(segment.word, phones[-1]).start
            words[segment.word] = Spoken(segment.word_name, first, end)
        start = end
    return Utterance(waveform, tuple(words.values()), tuple(phones))


def _espeak_name(segments: list[_Segment], place: int) -> str:
    """espeak-ng's name of the phone at a place."""
    name, before, after, later = (
        segments[each].name if 0 <= each < len(segments) else "pau" for each in (place, place - 1, place + 1, place + 2)
    )
    if name in _BEFORE_R and after == "r" and not _is_vowel(later):
        return _BEFORE_R[name]
    if name == "r" and before in _BEFORE_R and not _is_vowel(after):
        return _BEFORE_R[before]
    return _ESPEAK.get(name, name)


def _is_vowel(name: str) -> bool:
    return name[0] in "aeiou"


class _FliteVoice(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("features", ctypes.c_void_p))


class _FliteWave(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_char_p),
        ("rate", ctypes.c_int),
        ("count", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )


@cache
def _flite() -> ctypes.CDLL:
    """The library, with the types of what is called (flite.h)."""
    pointer, text, real = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float
    library = _library("flite")
    for name in ("flite_usenglish", "flite_cmulex"):
        _library(name)
    for name, result, *arguments in (
        ("flite_synth_text", pointer, text, pointer),
        ("utt_wave", ctypes.POINTER(_FliteWave), pointer),
        ("utt_relation", pointer, pointer, text),
        ("relation_head", pointer, pointer),
        ("item_next", pointer, pointer),
        ("item_as", pointer, pointer, text),
        ("item_parent", pointer, pointer),
        ("item_feat_string", text, pointer, text),
        ("item_feat_float", real, pointer, text),
        ("feat_set_float", None, pointer, text, real),
        ("delete_utterance", None, pointer),
    ):
        function = getattr(library, str(name))
        function.restype, function.argtypes = result, arguments
    library.flite_init()
    return library


def _library(name: str) -> ctypes.CDLL:
    file = find_library(name)
    if file is None:
        raise SaySeeError(f"the voices of pre-training need lib{name}; install Debian's package flite")
    return ctypes.CDLL(file, ctypes.RTLD_GLOBAL)


@cache
def _flite_voice(name: str) -> Any:
    register = getattr(_library(f"flite_{name}"), f"register_{name}")
    register.restype, register.argtypes = ctypes.POINTER(_FliteVoice), [ctypes.c_char_p]
    return register(None)


def _by_flite(text: str, voice: Voice, stretch: float, pitch: float) -> Utterance:
    flite = _flite()
    handle = _flite_voice(voice.name)
    for feature, value in ((b"duration_stretch", stretch), (b"int_f0_target_mean", pitch)):
        flite.feat_set_float(handle.contents.features, feature, value)
    utterance = flite.flite_synth_text(text.encode(), ctypes.cast(handle, ctypes.c_void_p))
    try:
        wave = flite.utt_wave(utterance).contents
        samples, rate = np.ctypeslib.as_array(wave.samples, (wave.count,)).copy(), wave.rate
        segments: list[_Segment] = []
        numbers: dict[int, int] = {}
        item = flite.relation_head(flite.utt_relation(utterance, b"Segment"))
        while item:
            inside = flite.item_as(item, b"SylStructure")
            word = flite.item_parent(flite.item_parent(inside)) if inside else None
            number = numbers.setdefault(word, len(numbers)) if word else -1
            name = flite.item_feat_string(word, b"name").decode() if word else ""
            phone = flite.item_feat_string(item, b"name").decode()
            segments.append(_Segment(phone, flite.item_feat_float(item, b"end"), number, name))
            item = flite.item_next(item)
    finally:
        flite.delete_utterance(utterance)
    return _utterance(samples, rate, segments)


_FESTIVAL = """
(define (say voice stretch mean octaves text wave)
  (eval (list voice))
  (Parameter.set 'Duration_Stretch stretch)
  (if (equal? voice 'voice_cmu_us_slt_arctic_hts)
    (set! hts_engine_params
      (append (list (list "-r" (/ 1.0 stretch)) (list "-fm" (* 12.0 octaves))) hts_engine_params))
    (set! int_lr_params
      (list (list 'target_f0_mean mean) '(target_f0_std 15) '(model_f0_mean 170) '(model_f0_std 34))))
  (set! utt (eval (list 'Utterance 'Text text)))
  (utt.synth utt)
  (utt.save.wave utt wave 'riff)
  (set! number 0)
  (mapcar (lambda (word) (item.set_feat word 'number number) (set! number (+ number 1))) (utt.relation.items utt 'Word))
  (mapcar
    (lambda (phone)
      (let ((word (item.parent (item.parent (item.relation phone 'SylStructure)))))
        (if word
          (format t "%s %f %d %s\\n" (item.name phone) (item.feat phone 'end) (item.feat word 'number) (item.name word))
          (format t "%s %f -1 -\\n" (item.name phone) (item.feat phone 'end)))))
    (utt.relation.items utt 'Segment))
  (format t "----\\n"))
"""


def _by_festival(asked: list[tuple[str, Voice, float, float]]) -> list[Utterance]:
    if not asked:
        return []
    with tempfile.TemporaryDirectory() as folder:
        lines = [_FESTIVAL]
        for number, (text, voice, stretch, pitch) in enumerate(asked):
            octaves = float(np.log2(pitch / voice.pitch))
            wave = f"{folder}/{number}.wav"
            values = f"{stretch:.3f} {pitch:.1f} {octaves:.3f} {json.dumps(text)} {json.dumps(wave)}"
            lines.append(f"(say 'voice_{voice.name} {values})")
        script = Path(folder, "say.scm")
        script.write_text("\n".join(lines), encoding="ascii")
        try:
            done = subprocess.run(["festival", "-b", str(script)], capture_output=True, text=True, check=True)
        except FileNotFoundError:
            fix = "install Debian's packages festival, festvox-kallpc16k, festvox-kdlpc16k and festvox-us-slt-hts"
            raise SaySeeError(f"the voices of pre-training need festival; {fix}") from None
        except subprocess.CalledProcessError as error:
            raise SaySeeError(f"festival failed: {error.stderr.strip().splitlines()[-1:]}") from None
        parts = done.stdout.split("----\n")[:-1]
        found = []
        for number, part in enumerate(parts):
            samples, rate = soundfile.read(f"{folder}/{number}.wav", dtype="int16")
            fields = [line.split() for line in part.splitlines()]
            segments = [_Segment(name, float(end), int(word), label) for name, end, word, label in fields]
            found.append(_utterance(samples, rate, segments))
    return found
