"""Speech: real sound, the same every time, with each word's time."""

import hashlib
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from saysee.data.scenes.grammar import say
from saysee.data.scenes.planning import plan
from saysee.data.scenes.speakers import ACCENTS, VARIANTS, Speaker, speaker_pools, speakers_of
from saysee.data.scenes.speech import SAMPLE_RATE, synthesize, synthesizer_version
from saysee.errors import MissingExtraError, SaySeeError

pytest.importorskip("espeakng_loader", reason="needs the 'scenes' extra")

SENTENCE = "a large striped red star left of two small blue rings, and there is a heart on the left"


def rms(samples):
    return float(np.sqrt(np.mean(np.square(samples)))) if len(samples) else 0.0


def digest(utterance):
    return hashlib.sha256(utterance.samples.tobytes()).hexdigest()


def of_words(utterance):
    """For each sample, whether it belongs to a word, [T]."""
    inside = np.zeros(len(utterance.samples), bool)
    for word in utterance.words:
        inside[int(word.start * SAMPLE_RATE) : int(word.end * SAMPLE_RATE)] = True
    return inside


@pytest.mark.parametrize(
    "speaker", [Speaker(), Speaker("en-gb-scotland", "f3", 60, 190), Speaker("en", "klatt4", 40, 150)]
)
def test_samples_are_finite_16_khz_speech_of_a_plausible_length(speaker):
    said = synthesize(SENTENCE, speaker)
    assert said.samples.dtype == np.float32
    assert said.samples.ndim == 1
    assert np.isfinite(said.samples).all()
    assert np.abs(said.samples).max() <= 1
    assert 3 < said.seconds == len(said.samples) / 16_000 < 9


def test_each_accent_and_variant_is_audible_and_its_words_are_in_order_inside_the_clip():
    speakers = [
        Speaker(accent, variant) for accent, variant in zip(itertools.cycle(ACCENTS["en"]), VARIANTS, strict=False)
    ]
    text = "a small dotted ring above two large pink stars"
    for speaker in speakers:
        said = synthesize(text, speaker)
        times = [(word.start, word.end) for word in said.words]
        assert [word.name for word in said.words] == text.split()
        assert all(0 <= start < end <= said.seconds for start, end in times), speaker
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times)), speaker
        assert 1.5 < said.seconds < 6, speaker
        spoken = of_words(said)
        assert rms(said.samples[spoken]) > 0.04, speaker
        assert rms(said.samples[~spoken]) < 0.1 * rms(said.samples[spoken]), speaker


def test_phones_are_in_order_inside_the_clip_without_pauses():
    for speaker in (Speaker("en-us", "f3"), Speaker("en-gb-scotland", "m3", 60, 190)):
        said = synthesize(SENTENCE, speaker)
        times = [(phone.start, phone.end) for phone in said.phones]
        assert all(0 <= start < end <= said.seconds for start, end in times)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))
        assert len(said.phones) > 2.5 * len(said.words)
        assert len({phone.name for phone in said.phones}) > 15
        assert not any(phone.name.startswith("_") or not phone.name for phone in said.phones)
        comma = (said.words[10].end, said.words[11].start)
        assert not any(start < comma[1] - 0.01 and end > comma[0] + 0.01 for start, end in times)
        # Words and phones come from different events, and must agree: phones fill every word.
        for word in said.words[:11]:
            covered = sum(max(0.0, min(end, word.end) - max(start, word.start)) for start, end in times)
            assert covered > 0.9 * (word.end - word.start), word


def test_a_phone_sounds_like_itself_where_its_time_says():
    said = synthesize("sister", Speaker("en-us", "m3"))
    hiss = []
    for phone in said.phones:
        part = said.samples[int(phone.start * SAMPLE_RATE) : int(phone.end * SAMPLE_RATE)]
        power = np.abs(np.fft.rfft(part)) ** 2
        hiss.append((phone.name, power[np.fft.rfftfreq(len(part), 1 / SAMPLE_RATE) > 3500].sum() / power.sum()))
    of_s = [share for name, share in hiss if name == "s"]
    of_vowels = [share for name, share in hiss if name[0] in "I3@"]
    assert len(of_s) == 2
    assert of_vowels
    assert min(of_s) > 5 * max(of_vowels), hiss


def test_a_comma_is_silence_between_the_words_beside_it():
    said = synthesize(SENTENCE, Speaker("en-us", "f3"))
    before, after = said.words[10], said.words[11]
    assert (before.name, after.name) == ("rings", "and")
    assert after.start - before.end > 0.1
    pause = said.samples[int(before.end * SAMPLE_RATE) : int(after.start * SAMPLE_RATE)]
    words = [said.samples[int(w.start * SAMPLE_RATE) : int(w.end * SAMPLE_RATE)] for w in said.words]
    assert all(rms(word) > 5 * rms(pause) for word in words)


def test_a_word_sounds_like_itself_where_its_time_says():
    """The hiss of "s" at the end of "stars" is in the last third of the word, above 4 kHz."""
    said = synthesize("a red moon and two blue stars and a green arrow", Speaker("en-us", "m3"))
    word = next(word for word in said.words if word.name == "stars")
    share = {}
    for name, (start, end) in {
        "hiss": (word.end - (word.end - word.start) / 4, word.end),
        "vowel": (word.start + (word.end - word.start) * 0.4, word.start + (word.end - word.start) * 0.6),
    }.items():
        part = said.samples[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)]
        power = np.abs(np.fft.rfft(part)) ** 2
        share[name] = power[np.fft.rfftfreq(len(part), 1 / SAMPLE_RATE) > 4000].sum() / power.sum()
    assert share["hiss"] > 10 * share["vowel"]


def test_words_are_those_of_the_text_also_where_the_synthesizer_joins_them():
    for text in ("on the left of the picture", "it's 12 blue-green rings, isn't it?", "there are two; look!", "ring"):
        said = synthesize(text, Speaker())
        assert [word.name for word in said.words] == [part.strip(",;!?") for part in text.split()]
        assert all(word.end > word.start for word in said.words)


def test_same_text_and_speaker_same_samples_in_any_order_and_process():
    speakers = [
        Speaker(accent, variant) for accent, variant in zip(itertools.cycle(ACCENTS["en"]), VARIANTS, strict=False)
    ]
    here = [digest(synthesize("a ring above two pink stars", speaker)) for speaker in speakers]
    code = (
        "import hashlib, sys\n"
        "from saysee.data.scenes.speech import synthesize\n"
        "from saysee.data.scenes.speakers import Speaker\n"
        f"for speaker in {speakers[::-1]!r}:\n"
        "    said = synthesize('a ring above two pink stars', speaker)\n"
        "    print(hashlib.sha256(said.samples.tobytes()).hexdigest())"
    )
    # glibc then fills memory with an unusual byte: a voice that reads uninitialized memory would sound different.
    environment = {**os.environ, "MALLOC_PERTURB_": "165"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.split()[::-1] == here
    assert len(set(here)) == len(here)


def test_captions_and_their_speech_have_the_same_words():
    for planned in plan(9, {"train": 8, "val": 1, "test": 2}):
        for caption, speaker in zip(planned.captions, speakers_of(9, planned.index, planned.split, 5), strict=True):
            said = [word.name for word in synthesize(say(caption).text, speaker).words]
            assert said == [word.rstrip(",") for word, _ in say(caption).words]


def test_the_pools_differ_in_accent_pitch_and_rate():
    for pool in speaker_pools().values():
        assert {speaker.accent for speaker in pool} == set(ACCENTS["en"])
        assert len({speaker.pitch for speaker in pool}) > 20
        assert len({speaker.rate for speaker in pool}) > 8


def test_the_speaker_id_has_accent_variant_pitch_and_rate():
    assert Speaker("en-us", "f3", 55, 160).id == "en-us+f3-p55-r160"


def test_text_that_cannot_be_spoken_is_rejected_in_one_line():
    for text, speaker, what in [
        ("  ", Speaker(), "no words"),
        ("a ring", Speaker("xx-none"), "'xx-none'"),
    ]:
        with pytest.raises(SaySeeError, match=what) as error:
            synthesize(text, speaker)
        assert "\n" not in str(error.value)
    assert synthesize("a ring", Speaker()).seconds > 0.3


def test_without_the_synthesizer_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    for call in (synthesizer_version, lambda: synthesize("a ring", Speaker())):
        with pytest.raises(MissingExtraError, match=r"saysee\[scenes\]"):
            call()
