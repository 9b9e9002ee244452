"""Who speaks: accents, voices, pitch and rate, and which speakers belong to which split.

A speaker is an accent of English in one of the synthesiser's voice variants, with a pitch and a rate of their own. The
three pools share no pair of accent and variant, so a test speaker's voice was never heard in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random

ACCENTS = (
    "en-us", "en-us-nyc", "en", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029",
)  # fmt: skip

# Of the synthesiser's 104 variants, these 71 are voiced, clear and of a usual pace in every accent: root mean square of
# the words over 0.05, of the pauses below a twentieth of that. Left out are whispers, robots, demons, those that are
# nearly silent or nearly another's double, and "Reed", for which the synthesiser reads memory that it never wrote: it
# does not sound the same twice.
VARIANTS = (
    "Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Jacky", "Lee", "Marco", "Mario",
    "Michael", "Mike", "Nguyen", "Storm", "Tweaky", "adam", "anika", "antonio", "aunty", "belinda", "benjamin",
    "boris", "david", "ed", "edward", "f1", "f2", "f3", "f4", "f5", "grandma", "gustave", "iven", "john", "kaukovalta",
    "klatt3", "klatt4", "klatt5", "klatt6", "linda", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "marcelo", "max",
    "michel", "miguel", "mike2", "norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby",
    "steph", "steph3", "travis", "victor", "zac", "edward2",
)  # fmt: skip

PITCHES = (30, 70)
"""The lowest and highest pitch of a pool's speakers; 50 is the variant's own, from 0 to 100."""
RATES = (140, 200)
"""The slowest and fastest rate of a pool's speakers, in words a minute."""
POOL_SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


@dataclass(frozen=True)
class Speaker:
    """One voice of the synthesiser.

    Attributes:
        accent: the synthesiser's name of a language or accent, such as "en-us" or "fr".
        variant: its name of a voice variant, such as "f3"; empty for the accent's own voice.
        pitch: from 0 to 100; 50 is the variant's own.
        rate: in words a minute.
    """

    accent: str = "en-us"
    variant: str = ""
    pitch: int = 50
    rate: int = 175

    @property
    def voice(self) -> str:
        """The name by which the synthesiser knows the voice."""
        return f"{self.accent}+{self.variant}" if self.variant else self.accent

    @property
    def id(self) -> str:
        """The name by which manifests know the speaker, such as "en-us+f3-p55-r160"."""
        return f"{self.voice}-p{self.pitch}-r{self.rate}"


@lru_cache(maxsize=1)
def speaker_pools() -> dict[str, tuple[Speaker, ...]]:
    """The speakers of each split: the same for every corpus, so that corpora of several seeds may be used together."""
    rng = Random("saysee scenes speakers")
    speakers = [
        Speaker(accent, variant, rng.randint(*PITCHES), rng.randrange(RATES[0], RATES[1] + 1, 5))
        for accent in ACCENTS
        for variant in VARIANTS
    ]
    rng.shuffle(speakers)
    pools: dict[str, tuple[Speaker, ...]] = {}
    start = 0
    for split, share in POOL_SHARES.items():
        end = start + round(len(speakers) * share)
        pools[split] = tuple(speakers[start:end])
        start = end
    return pools


def speakers_of(seed: int, index: int, split: str, count: int) -> list[Speaker]:
    """``count`` different speakers for the picture of this number."""
    return Random(f"saysee scenes {seed} {index} speakers").sample(speaker_pools()[split], count)
