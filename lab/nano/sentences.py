"""English sentences for hubert-nano: far more varied than the captions of the scenes corpus.

Words come from ``lexicon.txt`` (about 1,400, with their forms 2,700), with names, places, numbers, spellings and
captions of wide scenes. No caption describes a scene that a corpus's test split may show, and no phrase has a pair of
color and shape that only test splits show.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

from lab.nano.images import wide_scenes
from saysee.data.scenes.planning import novel_pairs

LEXICON = Path(__file__).with_name("lexicon.txt")
CAPTION_SHARE = 0.3
"""Share of the sentences that are captions of wide scenes."""

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


@cache
def lexicon() -> dict[str, tuple[str, ...]]:
    """Part of speech to its words."""
    words: dict[str, dict[str, None]] = {}
    part = ""
    for line in LEXICON.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            part = line.strip("[]")
        elif not line.startswith("#"):
            words.setdefault(part, {}).update(dict.fromkeys(line.split()))
    return {part: tuple(found) for part, found in words.items()}


def sentences(seed: int, chunk: int, count: int) -> list[str]:
    """``count`` sentences of a chunk; the same arguments give the same sentences."""
    rng = Random(f"saysee sentences {seed} {chunk}")
    captions = [text for scene in wide_scenes(seed + 1_000_003, chunk, max(1, count // 8)) for text in scene.captions]
    rng.shuffle(captions)
    texts = captions[: round(count * CAPTION_SHARE)]
    texts += [_FORMS[rng.randrange(len(_FORMS))](rng) for _ in range(count - len(texts))]
    rng.shuffle(texts)
    return texts


def in_words(number: int) -> str:
    """A number below a million in words."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens = _TENS[number // 10 - 2]
        return tens if number % 10 == 0 else f"{tens} {_ONES[number % 10]}"
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = number % size
            joint = " and " if rest < 100 else " "  # "a thousand and two", but "a thousand two hundred"
            return f"{in_words(number // size)} {name}" + (f"{joint}{in_words(rest)}" if rest else "")
    raise AssertionError(number)


_PLURALS = {
    "child": "children", "half": "halves", "knife": "knives", "leaf": "leaves", "man": "men",
    "mouse": "mice", "news": "news", "police": "police", "potato": "potatoes", "scarf": "scarves",
    "scissors": "scissors", "sheep": "sheep", "shelf": "shelves", "stomach": "stomachs", "tomato": "tomatoes",
    "tooth": "teeth", "wife": "wives", "wolf": "wolves", "woman": "women",
}  # fmt: skip
_PASTS = {"hang": "hung", "pay": "paid", "shake": "shook"}
_STRESSED_AT_THE_END = frozenset({"admit"})
_ONE_SHORT_SYLLABLE = re.compile(r"(?:qu|[^aeiou])*[aeiou][^aeiouwxyh]")
"""Ends in one vowel letter and one consonant: "stop", not "visit", "look" or "help"."""


def plural(noun: str) -> str:
    """The plural of a noun of the lexicon."""
    if noun in _PLURALS:
        return _PLURALS[noun]
    if noun.endswith(("s", "x", "ch", "sh", "z")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2] not in "aeiou" else noun + "s"


def past(verb: str) -> str:
    """The past of a verb of the lexicon."""
    if verb in _PASTS:
        return _PASTS[verb]
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return _doubled(verb) + "ed"


def present_participle(verb: str) -> str:
    """The -ing form of a verb of the lexicon."""
    return (verb[:-1] if verb.endswith("e") and not verb.endswith("ee") else _doubled(verb)) + "ing"


def _doubled(verb: str) -> str:
    """The verb with its last consonant doubled where English doubles it: "stop" to "stopp"."""
    return verb + verb[-1] if _ONE_SHORT_SYLLABLE.fullmatch(verb) or verb in _STRESSED_AT_THE_END else verb


def _word(rng: Random, part: str) -> str:
    words = lexicon()[part]
    return words[rng.randrange(len(words))]


def _noun_phrase(rng: Random) -> str:
    noun, adjective = _word(rng, "nouns"), _word(rng, "adjectives")
    if (adjective, noun) in novel_pairs():
        adjective = "old"  # not drawn again, so that other draws stay the same
    kind = rng.randrange(5)
    if kind == 0:
        return f"the {noun}"
    if kind == 1:
        return f"the {adjective} {noun}"
    if kind == 2:
        return f"{in_words(rng.randint(2, 20))} {adjective} {plural(noun)}"
    if kind == 3:
        return f"{rng.choice(('my', 'your', 'his', 'her', 'our', 'their'))} {noun}"
    words = f"{adjective} {noun}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _who(rng: Random) -> str:
    return _word(rng, "names") if rng.random() < 0.5 else _noun_phrase(rng)


def _where(rng: Random) -> str:
    if rng.random() < 0.3:
        return f"in {_word(rng, 'places')}"
    places = ("near", "under", "over", "behind", "in front of", "next to", "beside", "above", "below", "left of")
    return f"{rng.choice(places)} {_noun_phrase(rng)}"


_FORMS: tuple[Callable[[Random], str], ...] = (
    lambda rng: f"{_who(rng)} {past(_word(rng, 'verbs'))} {_noun_phrase(rng)}",
    lambda rng: f"{_who(rng)} is {present_participle(_word(rng, 'verbs'))} {_where(rng)}",
    lambda rng: f"{_word(rng, 'adverbs')} {_who(rng)} {past(_word(rng, 'verbs'))} {_where(rng)}",
    lambda rng: f"can you {_word(rng, 'verbs')} {_noun_phrase(rng)}?",
    lambda rng: f"there is {_noun_phrase(rng)} {_where(rng)}",
    lambda rng: f"I {past(_word(rng, 'verbs'))} {_noun_phrase(rng)} and {_noun_phrase(rng)}",
    lambda rng: f"they want to {_word(rng, 'verbs')} {_word(rng, 'adverbs')} with {_who(rng)}",
    lambda rng: f"the number is {in_words(rng.randrange(10 ** rng.randint(1, 6)))}",
    lambda rng: f"{_word(rng, 'names')} lives in {_word(rng, 'places')}",
    lambda rng: f"{_noun_phrase(rng)} {_where(rng)} looks {_word(rng, 'adjectives')}",
    lambda rng: ", ".join(_word(rng, rng.choice(("nouns", "verbs", "adjectives"))) for _ in range(rng.randint(3, 6))),
)
