"""Augmentation of speech: what each change does to a clip, and that it can be repeated."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from saysee.data.scenes.speakers import speaker_pools
from saysee.data.scenes.speech import SAMPLE_RATE, synthesize
from saysee.media import augmentation
from saysee.media.augmentation import augmented, rooms, varied, vocal_tract
from saysee.media.changes import in_room, through_telephone

pytest.importorskip("espeakng_loader", reason="needs the 'scenes' extra")


def spoken(text):
    return synthesize(text, speaker_pools()["train"][0]).samples


def power(sound):
    return float(np.mean(np.square(sound, dtype=np.float64)))


@pytest.fixture(scope="module")
def clean():
    return spoken("a small red star is above a blue circle")


@pytest.fixture(scope="module")
def others():
    return [spoken(text) for text in ("a green square", "there is a dotted ring", "here is a large pink flower")]


def test_augmentation_keeps_the_length_and_follows_its_numbers(clean, others):
    same = 0
    for seed in range(60):
        once, again = (augmented(clean, Random(seed), others) for _ in range(2))
        assert once.dtype == np.float32
        assert once.shape == clean.shape
        assert np.isfinite(once).all()
        assert (once == again).all()
        same += (once == clean).all()
    assert 4 <= same <= 24  # a fifth stay as they are
    assert len({augmented(clean, Random(seed), others).tobytes() for seed in range(60)}) == 61 - same


def test_augmentation_leaves_the_clip_that_it_was_given_alone(clean, others):
    before = clean.copy()
    for seed in range(20):
        augmented(clean, Random(seed), others)
    assert (clean == before).all()


class Fixed(Random):
    """Draws as ever, but the kind of noise and how far below the speech it lies are told."""

    def __init__(self, kind, decibels):
        super().__init__(5)
        self.kind, self.decibels = kind, decibels

    def choice(self, values):
        assert self.kind in values
        return self.kind

    def uniform(self, low, high):
        return self.decibels if high == 30 else super().uniform(low, high)


@pytest.mark.parametrize("decibels", [8, 20, 30])
@pytest.mark.parametrize("kind", ["white", "pink", "hum", "voices"])
def test_noise_lies_as_far_below_the_speech_as_asked(kind, decibels, clean, others):
    noisy = augmentation._noisy(clean, others, Fixed(kind, decibels), np.random.default_rng(1))
    added = noisy - clean
    assert 10 * np.log10(power(clean) / power(added)) == pytest.approx(decibels, abs=0.2)


def test_kinds_of_noise_are_what_they_are_called(clean, others):
    def spectrum(kind):
        noisy = augmentation._noisy(clean, others, Fixed(kind, 8), np.random.default_rng(1))
        return np.abs(np.fft.rfft((noisy - clean).astype(np.float64))) ** 2

    frequency = np.fft.rfftfreq(len(clean), 1 / SAMPLE_RATE)
    low, high = (frequency > 100) & (frequency < 900), frequency > 4000
    white, pink, hum = spectrum("white"), spectrum("pink"), spectrum("hum")
    assert 0.5 < white[low].mean() / white[high].mean() < 2
    assert pink[low].mean() / pink[high].mean() > 5
    assert hum[frequency < 700].sum() > 0.99 * hum.sum()
    assert hum.max() > 0.1 * hum.sum()


def test_a_room_keeps_the_time_of_the_sound_and_its_echo_dies_away():
    click = np.zeros(SAMPLE_RATE, np.float32)
    click[1000] = 1
    responses = rooms()[:5]
    for response in responses:
        wet = in_room(click, response)
        assert (np.abs(wet[:1000]) < 1e-4).all()
        assert wet[1000] == pytest.approx(1, abs=1e-4)
        assert 0 < power(wet[1000 + len(response) // 2 :]) < 0.1 * power(wet[1001 : 1000 + len(response) // 2])
    assert len({len(response) for response in responses}) > 1


def test_formants_move_and_the_pitch_stays():
    """A buzz at 125 Hz with one formant at 1000 Hz."""
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    buzz = sum(np.exp(-(((h * 125 - 1000) / 200) ** 2)) * np.sin(2 * np.pi * 125 * h * time) for h in range(1, 40))
    buzz = (0.1 * buzz).astype(np.float32)
    for ratio in (0.87, 1.15):
        moved = augmentation._formants_moved(buzz, ratio)
        assert len(moved) == len(buzz)
        spectrum = np.abs(np.fft.rfft(moved))
        harmonics = spectrum[125:2500:125]
        assert harmonics.sum() > 0.9 * spectrum[60:2500].sum() * 0.5  # the energy stays at multiples of 125 Hz
        center = float((harmonics * np.arange(1, len(harmonics) + 1)).sum() / harmonics.sum()) * 125
        assert center == pytest.approx(1000 * ratio, rel=0.06)
    assert np.abs(augmentation._formants_moved(buzz, 1.0) - buzz).max() < 1e-4


def test_another_timbre_changes_bands_by_at_most_ten_decibels(clean):
    noise = np.random.default_rng(0).normal(0, 0.1, 4 * SAMPLE_RATE).astype(np.float32)
    colored = augmentation._colored(noise, np.random.default_rng(1))
    ratio = [
        power(np.fft.irfft(np.fft.rfft(colored)[low:high], 4096))
        / power(np.fft.irfft(np.fft.rfft(noise)[low:high], 4096))
        for low, high in ((400, 800), (4000, 4800), (16_000, 17_000), (28_000, 30_000))
    ]
    decibels = 10 * np.log10(ratio)
    assert (np.abs(decibels) < 10.5).all()
    assert np.ptp(decibels) > 2
    assert augmentation._colored(clean, np.random.default_rng(1)).shape == clean.shape


def test_a_telephone_passes_nothing_above_4_khz():
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    low, high = (np.sin(2 * np.pi * hertz * time).astype(np.float32) * 0.5 for hertz in (1000, 6000))
    for sound, share in ((low, 1.0), (high, 0.0)):
        heard = through_telephone(sound)
        assert len(heard) == len(sound)
        assert power(heard) / power(sound) == pytest.approx(share, abs=0.03)
    assert 0 < power(through_telephone(low) - low) < 0.01 * power(low)


@pytest.mark.parametrize("codec", augmentation.CODECS)
def test_a_codec_gives_nearly_the_same_sound_at_the_same_times(clean, codec):
    heard = augmentation._through_codec(clean, codec)
    assert len(heard) == len(clean)
    assert not (heard == clean).all()
    shifts = [float(np.dot(clean[2000:-2000], heard[2000 + by : len(heard) - 2000 + by])) for by in range(-80, 81, 8)]
    assert int(np.argmax(shifts)) == 10  # not moved
    assert np.corrcoef(clean, heard)[0, 1] > 0.5


def test_another_throat_moves_pitch_and_formants_and_the_times_with_them():
    second = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    speeds = []
    for seed in range(60):
        played, speed = vocal_tract(second, Random(seed))
        assert len(played) == pytest.approx(16_000 / speed, abs=2)
        loudest = np.abs(np.fft.rfft(played)).argmax() * 16_000 / len(played)
        assert loudest == pytest.approx(1000 * speed, rel=0.002)
        speeds.append(speed)
    assert 0.3 < np.mean(np.array(speeds) == 1.0) < 0.7
    assert min(speeds) < 0.9
    assert max(speeds) > 1.1
    assert all(2**-0.22 <= speed <= 2**0.22 for speed in speeds)


def test_the_same_seed_gives_the_same_clip_and_another_seed_another(clean):
    clips = {varied(clean, str(seed)).tobytes() for seed in (*range(20), *range(20))}
    assert 12 <= len(clips) <= 20  # a few stay as they are
