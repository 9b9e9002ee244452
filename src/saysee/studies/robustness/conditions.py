"""What may happen to speech and images, by name and at several strengths."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import soundfile
import soxr
from PIL import Image, ImageEnhance, ImageFilter

from saysee.errors import ConfigError, MediaError
from saysee.media import changes
from saysee.media.audio import SAMPLE_RATE, load_audio
from saysee.media.changes import Clip, Noise
from saysee.media.folders import Listing
from saysee.media.formats import AUDIO_SUFFIXES

SNRS = (20.0, 10.0, 5.0, 0.0, -5.0)
_SNR, _ANY_DB = "signal-to-noise ratio (dB)", (-40.0, 60.0)
_T60 = "reverberation time T60 (s)"
VOICES = 6  # in babble
ROOMS = 8  # drawn for each reverberation time
FILES = 60  # of a user's folder that are drawn: MUSAN has 2,000, a set of responses 60,000
NOISE_SECONDS = 30  # kept of each of them
_BANDS = 3  # of reverberation times, into which a user's responses are divided


class Draw(NamedTuple):
    """What a change may draw from."""

    rng: np.random.Generator
    others: Sequence[Clip]  # some clips of other images


@dataclass(frozen=True)
class Condition:
    """A change of clips or images."""

    name: str
    title: str  # of its panel
    axis: str  # what its strength is, with the unit
    strengths: tuple[float, ...]
    clean: float  # the strength at which nothing is changed
    least: float  # of the strengths that are possible
    most: float
    change: Callable[[Any, float, Draw], Any]  # a clip [T] or an RGB image, at a strength
    family: str = ""  # a name for several
    kind: Literal["clip", "image"] = "clip"
    files: tuple[Path, ...] = ()  # of the user's own that it is made of

    def label(self, strength: float) -> str:
        """A strength as text."""
        return "clean" if strength == self.clean else f"{strength:g}"

    @property
    def ordered(self) -> list[float]:
        """The strengths and that of no change, from the mildest on, or ascending where they lie on both sides of it."""
        values = sorted({*self.strengths, self.clean})
        return values[::-1] if values[-1] == self.clean else values


def builtin_conditions() -> list[Condition]:
    """All conditions that need no files."""

    def noise(name: str, title: str, make: Callable[[int, Draw], Noise]) -> Condition:
        def change(clip: Clip, strength: float, draw: Draw) -> Clip:
            return changes.with_noise(clip, make(len(clip), draw), strength)

        return Condition(name, title, _SNR, SNRS, math.inf, *_ANY_DB, change, "noise")

    return [
        noise("white", "white noise", lambda length, draw: draw.rng.standard_normal(length)),
        noise("pink", "pink noise", lambda length, draw: changes.pink_noise(length, draw.rng)),
        noise("hum", "mains hum", lambda length, draw: changes.hum(length, 50, list(draw.rng.uniform(size=5)))),
        noise("babble", f"babble of {VOICES} clips", lambda length, draw: changes.babble(length, _some(draw, VOICES))),
        noise("talker", "a second speaker", lambda length, draw: changes.babble(length, _some(draw, 1))),
        Condition("room", "simulated rooms", _T60, (0.2, 0.4, 0.8, 1.2), 0, 0.1, 3, _in_room),
        Condition(
            "level", "recording level, 16 bits", "peak (dB of full scale)", (-70, -50, 12, 24), 0, -75, 60,
            lambda clip, strength, _: changes.recorded(clip, strength),
        ),
        Condition(
            "band", "low-pass", "highest frequency (kHz)", (4, 2, 1, 0.5), SAMPLE_RATE / 2000, 0.2, 7.9,
            lambda clip, strength, _: changes.low_pass(clip, 1000 * strength),
        ),
        Condition(
            "telephone", "telephone, 8 kHz mu-law", "bits a sample", (8, 6, 4, 3), 16, 2, 8,
            lambda clip, strength, _: changes.through_telephone(clip, round(strength)),
        ),
        Condition(
            "opus", "Opus", "bit rate (kbit/s)", (24, 12, 8, 6), math.inf, 6, 256,
            lambda clip, strength, _: changes.through_codec(clip, "opus", strength), "codec",
        ),
        Condition(
            "mp3", "MP3", "bit rate (kbit/s)", (32, 24, 16, 8), math.inf, 8, 160,
            lambda clip, strength, _: changes.through_codec(clip, "mp3", strength), "codec",
        ),
        Condition(
            "rate", "speaking rate", "times as fast", (0.7, 0.85, 1.2, 1.4), 1, 0.5, 3,
            lambda clip, strength, _: changes.at_speed(clip, strength),
        ),
        Condition(
            "pitch", "pitch and formants", "semitones", (-4, -2, 2, 4), 0, -12, 12,
            lambda clip, strength, _: changes.at_pitch(clip, strength),
        ),
        Condition(
            "cut", "only the first part", "percent of the clip", (75, 50, 25), 100, 1, 99,
            lambda clip, strength, _: changes.cut(clip, strength),
        ),
        Condition(
            "dropouts", "dropouts of 100 ms", "percent of the clip", (10, 25, 50, 75), 0, 1, 100,
            lambda clip, strength, draw: changes.spans_dropped(clip, strength, draw.rng),
        ),
        Condition(
            "blur", "image: blur", "radius (% of a side)", (0.5, 1, 2, 4), 0, 0.01, 50, _blurred, "image", "image"
        ),
        Condition("jpeg", "image: JPEG", "quality", (50, 20, 10, 5), math.inf, 1, 95, _jpeg, "image", "image"),
        Condition("crop", "image: crop", "percent of each side", (90, 75, 50), 100, 5, 99, _cropped, "image", "image"),
        Condition("gray", "image: less color", "percent of color", (50, 25, 0), 100, 0, 99, _grayed, "image", "image"),
    ]  # fmt: skip


def noise_conditions(folder: Path, seed: int) -> list[Condition]:
    """Noises of the user's own: a condition for each subfolder, as of MUSAN, or for the folder itself.

    Raises SaySeeError if it is no folder or has no audio file, or one of those drawn cannot be decoded.
    """
    found = []
    for name, paths in _by_subfolder(folder, "--noises").items():
        rng = np.random.default_rng(seed)
        drawn = _drawn(paths, rng)
        noises = [_longest(load_audio(path, max_seconds=math.inf), rng) for path in drawn]

        def change(clip: Clip, strength: float, draw: Draw, noises: Sequence[Clip] = noises) -> Clip:
            noise = noises[int(draw.rng.integers(len(noises)))]
            return changes.with_noise(clip, changes.excerpt(noise, len(clip), draw.rng), strength)

        about = f"noises:{name}", f"{name} of --noises", _SNR, SNRS, math.inf, *_ANY_DB
        found.append(Condition(*about, change, "noises", files=drawn))
    return found


def room_conditions(folder: Path, seed: int) -> list[Condition]:
    """Room responses of the user's own, as of RIRS_NOISES, for each subfolder, or for the folder itself.

    The strengths are the reverberation times of thirds of the responses, short, middle and long, by their medians.
    Raises as :func:`noise_conditions`.
    """
    found = []
    for name, paths in _by_subfolder(folder, "--rooms").items():
        drawn = _drawn(paths, np.random.default_rng(seed))
        responses = [_response(path) for path in drawn]
        responses.sort(key=changes.reverberation_time)
        bands: dict[float, list[Clip]] = {}
        for start in range(_BANDS):
            if part := responses[start * len(responses) // _BANDS : (start + 1) * len(responses) // _BANDS]:
                seconds = round(float(np.median([changes.reverberation_time(each) for each in part])), 2)
                bands.setdefault(max(seconds, 0.01), []).extend(part)

        def change(clip: Clip, strength: float, draw: Draw, bands: dict[float, list[Clip]] = bands) -> Clip:
            responses = bands[strength]
            return changes.in_room(clip, responses[int(draw.rng.integers(len(responses)))])

        about = f"rooms:{name}", f"{name} of --rooms", _T60, tuple(bands), 0, 1, 0
        found.append(Condition(*about, change, "rooms", files=drawn))
    return found


def choose(text: str, conditions: Sequence[Condition]) -> list[Condition]:
    """The conditions of a list such as ``noise=20,0,room,telephone``, by name or family; all of an empty one.

    Those of the user's own folders are always among them. Raises ConfigError if there is no such name, or a strength is
    no number or not possible.
    """
    asked: dict[str, list[float]] = {}
    name = ""
    for word in text.replace("=", ",").split(",") if text.strip() else ():
        if (number := _number(word)) is None:
            name = word.strip()
            asked.setdefault(name, [])
        elif not name:
            raise ConfigError(f"--conditions begins with {word.strip()!r}; give a name first, such as noise=20,0")
        else:
            asked[name].append(number)
    known = dict.fromkeys(name for each in conditions for name in (each.name, each.family) if name)
    if unknown := [name for name in asked if name not in known]:
        raise ConfigError(f"--conditions: no condition {unknown[0]!r}; there are: {', '.join(known)}")
    chosen = []
    for condition in conditions:
        named = [strengths for name, strengths in asked.items() if name in (condition.name, condition.family)]
        if named or not asked or condition.family in ("noises", "rooms"):
            strengths = tuple(dict.fromkeys(strength for each in named for strength in each))
            chosen.append(_at(condition, strengths) if strengths else condition)
    return chosen


def _at(condition: Condition, strengths: tuple[float, ...]) -> Condition:
    low, high = condition.least, condition.most
    for strength in strengths:
        if not low <= strength <= high:
            possible = f"{low:g} to {high:g} of {condition.axis}" if low < high else "none: they are those of the files"
            raise ConfigError(f"--conditions: {condition.name}={strength:g} is not possible; there are {possible}")
    return replace(condition, strengths=strengths)


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _some(draw: Draw, count: int) -> list[Clip]:
    """Some of the other clips, none twice; fewer if there are fewer."""
    chosen = draw.rng.choice(len(draw.others), min(count, len(draw.others)), replace=False)
    return [draw.others[number] for number in chosen]


def _in_room(clip: Clip, strength: float, draw: Draw) -> Clip:
    return changes.in_room(clip, _room(strength, int(draw.rng.integers(ROOMS))))


@lru_cache(256)
def _room(seconds: float, number: int) -> Clip:
    """The same rooms for every time: only the walls differ."""
    return changes.drawn_room(seconds, np.random.default_rng(number))


def _by_subfolder(folder: Path, option: str) -> dict[str, list[str]]:
    """Audio files by the subfolder that holds them, or by the name of the folder itself."""
    listing = Listing(folder, option)
    found: dict[str, list[str]] = {}
    for path in listing.files(AUDIO_SUFFIXES):
        inside = listing.relative(path).split("/")
        found.setdefault(inside[0] if len(inside) > 1 else folder.absolute().name, []).append(path)
    if not found:
        fix = "name the folder of an unpacked MUSAN or RIRS_NOISES"
        raise ConfigError(f"{option} {folder}: no audio file in it; {fix}")
    return found


def _drawn(paths: Sequence[str], rng: np.random.Generator) -> tuple[Path, ...]:
    return tuple(Path(paths[n]) for n in sorted(rng.choice(len(paths), min(FILES, len(paths)), replace=False)))


def _longest(noise: Clip, rng: np.random.Generator) -> Clip:
    """A drawn part of a noise that is not longer than what is kept."""
    length = NOISE_SECONDS * SAMPLE_RATE
    start = int(rng.integers(max(1, len(noise) - length)))
    return noise[start : start + length].copy()


def _response(path: Path) -> Clip:
    """A response from its direct sound on, which has amplitude 1; of several microphones, the first."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise MediaError("undecodable", f"{path}: cannot be decoded ({error}); save it as WAV") from None
    response = np.asarray(soxr.resample(samples[:, 0], rate, SAMPLE_RATE), dtype=np.float32)
    if not response.any():
        raise MediaError("silent", f"{path}: is silent, and no room response; remove it from --rooms")
    direct = int(np.abs(response).argmax())
    return np.asarray(response[direct:] / response[direct], dtype=np.float32)


def _blurred(image: Image.Image, strength: float, _: Draw) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(min(image.size) * strength / 100))


def _jpeg(image: Image.Image, strength: float, _: Draw) -> Image.Image:
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=round(strength))
    return Image.open(packed).convert("RGB")


def _cropped(image: Image.Image, strength: float, draw: Draw) -> Image.Image:
    """A drawn part."""
    width, height = (max(1, round(side * strength / 100)) for side in image.size)
    left, top = (int(draw.rng.integers(free + 1)) for free in (image.width - width, image.height - height))
    return image.crop((left, top, left + width, top + height))


def _grayed(image: Image.Image, strength: float, _: Draw) -> Image.Image:
    return ImageEnhance.Color(image).enhance(strength / 100)
