"""Each change of speech does what its number says: an SNR, a T60, a level, a bandwidth, a speed, a pitch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from saysee.media import changes

RATE = 16_000


def tone(hertz: float, seconds: float = 1.0, amplitude: float = 0.5) -> Any:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(int(RATE * seconds)) / RATE)).astype(np.float32)


def power(samples: Any) -> float:
    return float((np.asarray(samples, np.float64) ** 2).mean())


def pitch_of(samples: Any) -> float:
    """The frequency with the most power, in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax()) * RATE / len(samples)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.mark.parametrize("decibels", [20, 0, -5])
@pytest.mark.parametrize("kind", ["white", "pink", "hum", "babble"])
def test_noise_has_the_signal_to_noise_ratio_asked_for(kind: str, decibels: float, rng: np.random.Generator) -> None:
    clip = tone(440, 2) * np.linspace(0, 1, 2 * RATE, dtype=np.float32)
    noise = {
        "white": rng.standard_normal(len(clip)),
        "pink": changes.pink_noise(len(clip), rng),
        "hum": changes.hum(len(clip), 50, [1, 0.5]),
        "babble": changes.babble(len(clip), [tone(300, 0.3), tone(500, 5)]),
    }[kind]
    added = changes.with_noise(clip, noise, decibels).astype(np.float64) - clip
    assert 10 * np.log10(power(clip) / power(added)) == pytest.approx(decibels, abs=0.01)


def test_pink_noise_falls_by_three_decibels_an_octave(rng: np.random.Generator) -> None:
    spectrum = np.abs(np.fft.rfft(changes.pink_noise(60 * RATE, rng))) ** 2
    hertz = np.fft.rfftfreq(60 * RATE, 1 / RATE)
    octaves = [spectrum[(hertz >= low) & (hertz < 2 * low)].mean() for low in (250, 500, 1000, 2000)]
    assert np.diff(10 * np.log10(octaves)) == pytest.approx([-3.01] * 3, abs=0.15)


def test_an_excerpt_starts_over_at_the_end_of_the_noise(rng: np.random.Generator) -> None:
    noise = np.arange(10.0)
    found = changes.excerpt(noise, 25, rng)
    assert (np.diff(found) % 10 == 1).all()
    assert len({float(changes.excerpt(noise, 1, rng)[0]) for _ in range(100)}) == 10  # any place


@pytest.mark.parametrize("seconds", [0.2, 0.4, 0.8, 1.2])
def test_a_room_has_the_reverberation_time_asked_for(seconds: float) -> None:
    measured = [changes.reverberation_time(changes.drawn_room(seconds, np.random.default_rng(n))) for n in range(3)]
    assert measured == pytest.approx([seconds] * 3, rel=0.1)


def test_the_reverberation_time_of_an_exponential_decay_is_its_own(rng: np.random.Generator) -> None:
    time = np.arange(2 * RATE) / RATE
    decay = (10 ** (-3 * time / 0.7)).astype(np.float32)  # 60 dB in 0.7 s
    assert changes.reverberation_time(decay) == pytest.approx(0.7, rel=1e-3)
    assert changes.reverberation_time(decay * rng.standard_normal(len(decay)).astype(np.float32)) == pytest.approx(
        0.7, rel=0.05
    )


def test_the_first_reflection_comes_from_the_nearest_wall() -> None:
    """The floor is 1 m below both, which are 2 m apart: by the floor it is 2 √2 m. The other walls are far away."""
    size, source, microphone = np.array([60.0, 60, 60]), np.array([29.0, 30, 1]), np.array([31.0, 30, 1])
    response = changes.room_response(size, source, microphone, 0.5)
    delay = round((2 * 2**0.5 - 2) / 343 * RATE)
    assert response[0] == 1
    assert np.flatnonzero(response)[1] == delay
    assert -1 < response[delay] * 2**0.5 < 0  # a wall absorbs and inverts, and the sound goes √2 times as far


def test_a_room_keeps_the_time_of_the_direct_sound() -> None:
    click = np.zeros(RATE, np.float32)
    click[1000] = 1
    response = changes.drawn_room(0.3, np.random.default_rng(0))
    wet = changes.in_room(click, response)
    assert np.abs(wet[:1000]).max() < 1e-5
    assert wet[1000 : 1000 + len(response)] == pytest.approx(response, abs=1e-5)


def test_a_recording_has_its_peak_is_clipped_above_full_scale_and_coarse_far_below() -> None:
    clip = tone(100, amplitude=0.3)
    assert np.abs(changes.recorded(clip, -20)).max() == pytest.approx(0.1, rel=1e-3)
    clipped = changes.recorded(clip, 20 * np.log10(2))  # a sine of twice full scale is above it for two thirds
    assert (np.abs(clipped) == 1).mean() == pytest.approx(2 / 3, abs=0.01)
    assert len(np.unique(changes.recorded(clip, 20 * np.log10(3 / 32767)))) == 7  # three steps up, three down, zero


@pytest.mark.parametrize("limit", [4000, 1000])
def test_a_low_pass_keeps_what_lies_below_and_nothing_above(limit: float) -> None:
    for hertz, share in ((0.5 * limit, 1), (1.5 * limit, 0)):
        heard = changes.low_pass(tone(hertz), limit)
        assert len(heard) == RATE
        assert power(heard) / power(tone(hertz)) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (4, 7), (2, 1)])
def test_a_telephone_has_as_many_steps_as_its_bits(bits: int, most: int) -> None:
    """A sound of 1 Hz stays on a step for many samples, so that resampling keeps the steps."""
    slow = tone(1, 1, 0.8)
    heard = changes.through_telephone(slow, bits)[RATE // 10 : -RATE // 10]
    packed = np.sign(heard) * np.log1p(255 * np.abs(heard) / 0.8) / np.log(256) * most
    assert np.median(np.abs(packed - np.rint(packed))) < 0.06
    assert power(changes.through_telephone(tone(6000), bits)) < 1e-3


@pytest.mark.parametrize(("codec", "rates"), [("opus", (6, 12, 24)), ("mp3", (8, 16, 32))])
def test_a_codec_loses_less_at_higher_rates_and_moves_nothing(codec: Any, rates: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    clip = tone(220, 2, 0.2) + tone(1300, 2, 0.1) + 0.02 * rng.standard_normal(2 * RATE).astype(np.float32)
    heard = [changes.through_codec(clip, codec, rate) for rate in rates]
    assert {len(each) for each in heard} == {len(clip)}
    errors = [power(each - clip) / power(clip) for each in heard]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1  # a shift by two samples would give more


@pytest.mark.parametrize("speed", [0.7, 1.0, 1.4])
def test_another_speed_changes_the_time_and_not_the_pitch(speed: float) -> None:
    clip = np.concatenate([tone(440, 1), tone(660, 1)])
    heard = changes.at_speed(clip, speed)
    assert len(heard) == round(2 * RATE / speed)
    for part, hertz in ((heard[: len(heard) // 2 - 800], 440), (heard[len(heard) // 2 + 800 :], 660)):
        assert pitch_of(part) == pytest.approx(hertz, abs=4)


@pytest.mark.parametrize("semitones", [-4, 4, 12])
def test_another_pitch_changes_the_pitch_and_not_the_time(semitones: float) -> None:
    clip = np.concatenate([tone(440, 1), tone(660, 1)])
    heard = changes.at_pitch(clip, semitones)
    assert len(heard) == len(clip)
    for part, hertz in ((heard[: RATE - 800], 440), (heard[RATE + 800 :], 660)):
        assert pitch_of(part) == pytest.approx(hertz * 2 ** (semitones / 12), rel=0.01)


def test_a_cut_keeps_the_first_part() -> None:
    clip = tone(440, 2)
    assert (changes.cut(clip, 25) == clip[: RATE // 2]).all()


def test_dropouts_silence_as_many_spans_as_asked(rng: np.random.Generator) -> None:
    clip = np.ones(2 * RATE, np.float32)
    heard = changes.spans_dropped(clip, 25, rng)
    spans = heard.reshape(20, -1)
    assert (spans.min(axis=1) == spans.max(axis=1)).all()
    assert (spans[:, 0] == 0).sum() == 5
    assert (clip == 1).all()
