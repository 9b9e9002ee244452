"""Other synthesizers: what is said, by whom, and where its phones and words lie."""

from __future__ import annotations

import shutil
from ctypes.util import find_library
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from lab.nano.voices import TRAINED, UNHEARD, Voice, _espeak_name, _Segment, speak

from saysee.data.scenes.speech import SAMPLE_RATE

needs_voices = pytest.mark.skipif(
    shutil.which("festival") is None or find_library("flite") is None,
    reason="needs Debian's packages flite, festival, festvox-kallpc16k, festvox-kdlpc16k, festvox-us-slt-hts",
)
TEXT = "The boy isn't near a large red car."
WORDS = ["the", "boy", "isnt", "near", "a", "large", "red", "car"]


def named(*phones):
    segments = [_Segment(phone, 0.0, 0, "") for phone in phones]
    return [_espeak_name(segments, place) for place in range(len(segments))]


def test_phones_have_espeak_s_names():
    assert named("b", "oy") == ["b", "OI"]
    assert named("k", "aa", "r", "pau") == ["k", "A@", "A@", "pau"]
    assert named("v", "eh", "r", "iy") == ["v", "E", "r", "i:"]  # an r between vowels is one
    assert named("r", "eh", "d") == ["r", "E", "d"]


def test_no_person_speaks_in_training_and_in_the_test_of_voices():
    people = [{voice.name.removeprefix("cmu_us_").split("_")[0][:3] for voice in each} for each in (TRAINED, UNHEARD)]
    assert not people[0] & people[1]


@needs_voices
@pytest.mark.parametrize("voice", TRAINED + UNHEARD, ids=lambda voice: voice.name)
def test_words_and_phones_lie_in_the_sound(voice: Voice):
    once, again = (speak([TEXT], [voice], Random(3))[0] for _ in range(2))
    assert (once.words, once.phones) == (again.words, again.phones)
    assert np.corrcoef(once.samples, again.samples)[0, 1] > 0.9  # flite's noise is another at each call
    assert 1.0 < once.seconds < 5.0
    assert 0.05 < np.abs(once.samples).max() <= 1
    assert [word.name.lower().replace("'", "") for word in once.words] == WORDS
    for found in (once.words, once.phones):
        assert all(each.start < each.end <= once.seconds + 1e-6 for each in found)
        assert all(before.end <= after.start + 1e-6 for before, after in pairwise(found))
    assert [phone.name for phone in once.phones][:4] == ["D", "@", "b", "OI"]
    # Speech where the words are, and near silence before the first.
    first = round(once.words[0].start * SAMPLE_RATE)
    assert np.square(once.samples[: first // 2]).mean() < 0.01 * np.square(once.samples[first:]).mean()


@needs_voices
def test_pace_and_pitch_vary_and_the_order_of_texts_is_kept():
    texts = ["one", "a very long sentence with many words in it"] * 4
    spoken = speak(texts, TRAINED, Random(0))
    assert [len(each.words) for each in spoken] == [1, 9] * 4
    assert len({round(each.seconds, 2) for each in spoken}) == 8
