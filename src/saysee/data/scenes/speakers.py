"""Speakers: accents, voices, pitch and rate, and the pool of each split.

A speaker is an accent of a language in one of the synthesizer's voice variants, with a pitch and a rate. The pools
share no pair of accent and variant, so no voice of the test split occurs in training.
"""

from dataclasses import dataclass
from functools import lru_cache
from random import Random

ACCENTS = {
    "en": ("en-us", "en-us-nyc", "en", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029"),
    "de": ("de",),
    "es": ("es", "es-419"),
    "tr": ("tr",),
}
SPEAKERS_PER_VARIANT = 8  # in each language: one with fewer accents has several pitches and rates for each

# Of the synthesizer's 104 variants, these 71 are voiced, clear and of a usual pace in every accent: the root mean
# square of words is above 0.05, that of pauses below 1/20 of it. Excluded are whispers, robots, demons, variants that
# are nearly silent or nearly equal to another, and "Reed", which does not sound the same twice, because the synthesizer
# reads uninitialized memory for it.
VARIANTS = (
    "Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Jacky", "Lee", "Marco", "Mario",
    "Michael", "Mike", "Nguyen", "Storm", "Tweaky", "adam", "anika", "antonio", "aunty", "belinda", "benjamin",
    "boris", "david", "ed", "edward", "f1", "f2", "f3", "f4", "f5", "grandma", "gustave", "iven", "john", "kaukovalta",
    "klatt3", "klatt4", "klatt5", "klatt6", "linda", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "marcelo", "max",
    "michel", "miguel", "mike2", "norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby",
    "steph", "steph3", "travis", "victor", "zac", "edward2",
)  # fmt: skip

PITCHES = (30, 70)  # lowest and highest pitch in the pools, of 0 to 100; 50 is the pitch of the variant itself
RATES = (140, 200)  # slowest and fastest rate in the pools, in words per minute
POOL_SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


@dataclass(frozen=True)
class Speaker:
    """A voice of the synthesizer."""

    accent: str = "en-us"  # the synthesizer's name of a language or accent, such as "en-us" or "fr"
    variant: str = ""  # its name of a voice variant, such as "f3"; empty for the default voice of the accent
    pitch: int = 50  # see ``PITCHES``
    rate: int = 175  # in words per minute

    @property
    def voice(self) -> str:
        """The synthesizer's name of the voice."""
        return f"{self.accent}+{self.variant}" if self.variant else self.accent

    @property
    def id(self) -> str:
        """The name of the speaker in manifests, such as "en-us+f3-p55-r160"."""
        return f"{self.voice}-p{self.pitch}-r{self.rate}"


@lru_cache
def speaker_pools(language: str = "en") -> dict[str, tuple[Speaker, ...]]:
    """The speakers of each split: the same for every corpus, so that corpora of several seeds can be combined."""
    rng = Random(f"saysee scenes speakers{_suffix(language)}")
    accents = ACCENTS[language]
    voices = [
        [
            Speaker(accent, variant, rng.randint(*PITCHES), rng.randrange(RATES[0], RATES[1] + 1, 5))
            for _ in range(SPEAKERS_PER_VARIANT // len(accents))
        ]
        for accent in accents
        for variant in VARIANTS
    ]
    rng.shuffle(voices)  # whole voices: none is in two pools
    pools: dict[str, tuple[Speaker, ...]] = {}
    start = 0
    for split, share in POOL_SHARES.items():
        end = start + round(len(voices) * share)
        pools[split] = tuple(dict.fromkeys(speaker for voice in voices[start:end] for speaker in voice))
        start = end
    return pools


def speakers_of(seed: int, index: int, split: str, count: int, language: str = "en") -> list[Speaker]:
    """``count`` different speakers of a language for the image with this index."""
    rng = Random(f"saysee scenes {seed} {index} speakers{_suffix(language)}")
    return rng.sample(speaker_pools(language)[split], count)


def _suffix(language: str) -> str:
    return "" if language == "en" else f" {language}"
