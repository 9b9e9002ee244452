"""Captions: sentences in several forms that are true of a scene, with the objects that each word describes.

Each noun phrase names exactly the objects that fit it ("two small rings" if there are two and no more, "the star" if
there is one), so it is never in doubt which objects a word describes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from random import Random
from typing import TypeVar

from saysee.data.scenes.world import ATTRIBUTES, OPPOSITE, Scene, might_be_at, might_lie, places, relation

T = TypeVar("T")

CAPTIONS_PER_IMAGE = 5
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
FULL_SHARE = 0.6  # of the phrases say everything about their objects; the others omit words, as people do

SPOKEN_RELATIONS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
SPOKEN_PLACES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
WITH_RELATIONS = {"left of": "to {} left", "right of": "to {} right", "above": "above {}", "below": "below {}"}

Group = tuple[int, ...]  # indices of objects
Description = tuple[tuple[str, str], ...]  # attributes with their values, in the order of ``ATTRIBUTES``
Word = tuple[str, Group]  # a word with the objects that it describes


@dataclass(frozen=True)
class NounPhrase:
    """A description and all objects of the scene that fit it."""

    description: Description
    objects: Group

    @property
    def be(self) -> str:
        """The verb that agrees with it."""
        return "is" if len(self.objects) == 1 else "are"

    def words(self, definite: bool = False) -> list[Word]:
        """The phrase as words; if ``definite``, it starts with "the"."""
        values = dict(self.description)
        noun = values.pop("shape", "shape")
        spoken = [*values.values(), noun if len(self.objects) == 1 else plural(noun)]
        words: list[Word] = [(word, self.objects) for word in spoken]
        if len(self.objects) > 1:
            words.insert(0, (NUMBERS[len(self.objects)], self.objects))
        if definite:
            words.insert(0, ("the", ()))
        elif len(self.objects) == 1:
            words.insert(0, ("an" if spoken[0][0] in "aeiou" else "a", ()))
        return words


@dataclass(frozen=True)
class Caption:
    """A sentence and what it claims."""

    words: tuple[Word, ...]  # in order, each with the objects that it describes; a comma belongs to the word before it
    phrases: tuple[NounPhrase, ...]  # the noun phrases
    # (phrase, relation, phrase) by index: each object of the first has the relation to each of the second
    relations: tuple[tuple[int, str, int], ...] = ()
    places: tuple[tuple[int, str], ...] = ()  # (phrase, place): each object of the phrase is in that half of the image
    total: int | None = None  # the number of objects in the image, if the sentence says it

    @property
    def text(self) -> str:
        """The sentence."""
        return " ".join(word for word, _ in self.words)

    def could_describe(self, scene: Scene) -> bool:
        """Whether a listener might accept the sentence for ``scene``: enough objects fit, where the sentence says."""
        if self.total is not None and self.total != len(scene.objects):
            return False
        fitting = [
            combinations(scene.matching(dict(phrase.description)), len(phrase.objects)) for phrase in self.phrases
        ]
        return any(self._fits(scene, chosen) for chosen in product(*fitting))

    def _fits(self, scene: Scene, chosen: tuple[Group, ...]) -> bool:
        named = [i for group in chosen for i in group]
        objects = scene.objects
        return (
            len(named) == len(set(named))
            and all(
                might_lie(objects[a], where, objects[b])
                for first, where, second in self.relations
                for a in chosen[first]
                for b in chosen[second]
            )
            and all(might_be_at(objects[a], place) for phrase, place in self.places for a in chosen[phrase])
        )


def plural(noun: str) -> str:
    """The plural of the name of a shape."""
    return noun + "es" if noun.endswith("s") else noun + "s"


def write_captions(scene: Scene, rng: Random, false_of: Scene | None = None) -> tuple[Caption, ...] | None:
    """Five different captions that are true of ``scene``, in as many forms as it allows, and not of ``false_of``.

    None if five were not found, because too little can be said (of four equal objects without a clear relation).
    """
    forms = _Writer(scene, rng).forms
    rng.shuffle(forms)
    captions: dict[str, Caption] = {}
    for attempt in range(40 * len(forms)):
        caption = forms[attempt % len(forms)]()
        if caption is not None and not (false_of and caption.could_describe(false_of)):
            captions.setdefault(caption.text, caption)
        if len(captions) == CAPTIONS_PER_IMAGE:
            return tuple(captions.values())
    return None


class _Writer:
    """Writes sentences about one scene; each form returns None if the scene does not allow it."""

    def __init__(self, scene: Scene, rng: Random) -> None:
        self.scene = scene
        self.rng = rng
        self.descriptions = _descriptions(scene)
        self.groups = sorted(self.descriptions)
        self.related = _related(scene, self.groups)
        self.placed = [
            (group, place)
            for group in self.groups
            for place in SPOKEN_PLACES
            if all(place in places(scene.objects[i]) for i in group)
        ]
        self.forms: list[Callable[[], Caption | None]] = [
            self.beside,
            self.there_is_beside,
            self.the_beside_the,
            self.with_beside,
            self.in_halves,
            self.listed,
            self.counted,
        ]

    def beside(self) -> Caption | None:
        """For example "a large striped red star left of two small blue rings"."""
        if not self.related:
            return None
        a, where, b = self._relation(full=True)
        return _related_caption([*a.words(), *self._spoken(where), *b.words()], a, where, b)

    def there_is_beside(self) -> Caption | None:
        """For example "there are two rings under a dotted green heart"."""
        if not self.related:
            return None
        a, where, b = self._relation()
        return _related_caption([*self._opening(a), *a.words(), *self._spoken(where), *b.words()], a, where, b)

    def the_beside_the(self) -> Caption | None:
        """For example "the blue house is to the right of the striped moon"."""
        if not self.related:
            return None
        a, where, b = self._relation()
        words = [*a.words(definite=True), (a.be, ()), *self._spoken(where), *b.words(definite=True)]
        return _related_caption(words, a, where, b)

    def with_beside(self) -> Caption | None:
        """For example "a yellow cross with a small pink arrow above it"."""
        if not self.related:
            return None
        a, where, b = self._relation()
        one, sideways = len(a.objects) == 1, where in ("left of", "right of")
        pronoun = ("its" if one else "their") if sideways else ("it" if one else "them")
        tail = WITH_RELATIONS[OPPOSITE[where]].format(pronoun)
        words = [*self._opening(a, bare=True), *a.words(), ("with", ()), *b.words(), *_plain_words(tail)]
        return Caption(tuple(words), (a, b), relations=((1, OPPOSITE[where], 0),))

    def in_halves(self) -> Caption | None:
        """For example "a brown flower on the left, and a circle at the bottom"."""
        if not self.placed:
            return None
        group, place = self._pick(self.placed)
        a = self._phrase(group)
        words = [*self._opening(a, bare=True), *a.words(), *_plain_words(SPOKEN_PLACES[place])]
        others = [other for other in self.placed if other[1] != place and not set(other[0]) & set(group)]
        if not others:
            if len(group) < len(self.scene.objects):
                return None  # one object and its half of the image: true of too many images
            return Caption(tuple(words), (a,), places=((0, place),))
        other_group, other_place = self._pick(others)
        b = self._phrase(other_group)
        words = [*_with_comma(words), ("and", ()), *b.words(), *_plain_words(SPOKEN_PLACES[other_place])]
        return Caption(tuple(words), (a, b), places=((0, place), (1, other_place)))

    def listed(self) -> Caption | None:
        """For example "a house, two purple arrows and a large ring": everything in the image."""
        left = set(range(len(self.scene.objects)))
        groups: list[Group] = []
        while left:
            groups.append(self._pick([group for group in self.groups if set(group) <= left]))
            left -= set(groups[-1])
        if len(groups) == 1:
            return None  # "two rings": true, but not a list
        # Three or four full phrases would make a sentence that nobody says in one breath.
        phrases = [self._phrase(group, full=None if len(groups) == 2 else False) for group in groups]
        words = self._opening(phrases[0], bare=True)
        for i, each in enumerate(phrases):
            if i == len(phrases) - 1:
                words.append(("and", ()))
            words += each.words() if i >= len(phrases) - 2 else _with_comma(each.words())
        return Caption(tuple(words), tuple(phrases))

    def counted(self) -> Caption | None:
        """For example "three shapes, among them a small brown house and a dotted ring"."""
        everything = tuple(range(len(self.scene.objects)))
        pairs = [(a, b) for a in self.groups for b in self.groups if not set(a) & set(b)]
        if not pairs:
            return None
        first, second = self._pick(pairs)
        a, b = self._phrase(first), self._phrase(second)
        count = NUMBERS[len(everything)]
        words: list[Word] = [(count, everything), ("shapes,", everything), *_plain_words("among them"), *a.words()]
        return Caption((*words, ("and", ()), *b.words()), (a, b), total=len(everything))

    def _phrase(self, group: Group, full: bool | None = None) -> NounPhrase:
        """A phrase that names ``group``; if ``full``, it says everything about the group, if None, perhaps."""
        choices = self.descriptions[group]
        if full is None:
            full = self.rng.random() < FULL_SHARE
        return NounPhrase(choices[0] if full else choices[self.rng.randrange(len(choices))], group)

    def _relation(self, full: bool | None = None) -> tuple[NounPhrase, str, NounPhrase]:
        first, where, second = self._pick(self.related)
        return self._phrase(first, full), where, self._phrase(second, full)

    def _opening(self, phrase: NounPhrase, bare: bool = False) -> list[Word]:
        openings = [f"there {phrase.be}", "I can see", f"here {phrase.be}", *([""] * 3 if bare else [])]
        return _plain_words(self._pick(openings))

    def _spoken(self, where: str) -> list[Word]:
        return _plain_words(self._pick(SPOKEN_RELATIONS[where]))

    def _pick(self, values: Sequence[T]) -> T:
        return values[self.rng.randrange(len(values))]


def _related_caption(words: list[Word], a: NounPhrase, where: str, b: NounPhrase) -> Caption:
    return Caption(tuple(words), (a, b), relations=((0, where, 1),))


def _plain_words(text: str) -> list[Word]:
    """Words that describe no object."""
    return [(word, ()) for word in text.split()]


def _with_comma(words: list[Word]) -> list[Word]:
    return [*words[:-1], (words[-1][0] + ",", words[-1][1])]


def _descriptions(scene: Scene) -> dict[Group, list[Description]]:
    """Every group of objects that a description names exactly, with its descriptions, the fullest first.

    A description without shape and color ("a small shape") is skipped: it says too little for a caption.
    """
    found: dict[Group, list[Description]] = {}
    names = tuple(ATTRIBUTES)
    for size in range(len(names), 0, -1):
        for kept in combinations(names, size):
            if "shape" not in kept and "color" not in kept:
                continue
            for item in scene.objects:
                description = tuple((name, getattr(item, name)) for name in kept)
                group = found.setdefault(scene.matching(dict(description)), [])
                if description not in group:
                    group.append(description)
    return found


def _related(scene: Scene, groups: list[Group]) -> list[tuple[Group, str, Group]]:
    """The pairs of groups where each object of the first has the same relation to each of the second."""
    objects = tuple(enumerate(scene.objects))
    between = {(i, j): relation(a, b) for i, a in objects for j, b in objects if i != j}
    related = []
    for first, second in product(groups, groups):
        if not set(first) & set(second):
            where, *others = {between[i, j] for i in first for j in second}
            if where is not None and not others:
                related.append((first, where, second))
    return related
