"""Captions: what is said of a scene, in several forms, all of it true. ``grammar`` says it in a language.

Each noun phrase names exactly the objects that fit it ("two small rings" if there are two and no more, "the star" if
there is one), so it is never in doubt which objects a word describes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from random import Random
from typing import TypeVar

from saysee.data.scenes.world import ATTRIBUTES, OPPOSITE, PLACES, Scene, might_be_at, might_lie, places, relation

T = TypeVar("T")

CAPTIONS_PER_IMAGE = 5
FULL_SHARE = 0.6  # of the phrases say everything about their objects; the others omit words, as people do

OPENINGS = 3  # ways to open a sentence; some forms also stand without one
WORDINGS = 2  # ways to say a relation

Group = tuple[int, ...]  # indices of objects
Description = tuple[tuple[str, str], ...]  # attributes with their values, in the order of ``ATTRIBUTES``


@dataclass(frozen=True)
class NounPhrase:
    """A description and all objects of the scene that fit it."""

    description: Description
    objects: Group


@dataclass(frozen=True)
class Caption:
    """What a sentence claims, and the choices of how it is said, which are the same in each language."""

    form: str  # of the sentences of a grammar
    phrases: tuple[NounPhrase, ...]  # the noun phrases
    # (phrase, relation, phrase) by index: each object of the first has the relation to each of the second
    relations: tuple[tuple[int, str, int], ...] = ()
    places: tuple[tuple[int, str], ...] = ()  # (phrase, place): each object of the phrase is in that half of the image
    total: int | None = None  # the number of objects in the image, if the sentence says it
    opening: int | None = None  # index of an opening of the grammar; None for no opening
    wording: int = 0  # index of a way to say the relation

    def could_describe(self, scene: Scene) -> bool:
        """Whether a listener might accept the sentence for ``scene``: enough objects fit, where the sentence says."""
        if self.total is not None and self.total != len(scene.objects):
            return False
        fitting = [combinations(scene.matching(dict(each.description)), len(each.objects)) for each in self.phrases]
        return any(self._fits(scene, chosen) for chosen in product(*fitting))

    def _fits(self, scene: Scene, chosen: tuple[Group, ...]) -> bool:
        named, objects = [i for group in chosen for i in group], scene.objects
        return (
            len(named) == len(set(named))
            and all(
                might_lie(objects[a], where, objects[b])
                for first, where, second in self.relations
                for a, b in product(chosen[first], chosen[second])
            )
            and all(might_be_at(objects[a], place) for phrase, place in self.places for a in chosen[phrase])
        )


def write_captions(scene: Scene, rng: Random, false_of: Scene | None = None) -> tuple[Caption, ...] | None:
    """Five different captions that are true of ``scene``, in as many forms as it allows, and not of ``false_of``.

    None if too little can be said (of four equal objects without a clear relation).
    """
    forms = _Writer(scene, rng).forms
    rng.shuffle(forms)
    captions: dict[Caption, None] = {}
    for form in forms * 40:
        caption = form()
        if caption is not None and not (false_of and caption.could_describe(false_of)):
            captions[caption] = None
        if len(captions) == CAPTIONS_PER_IMAGE:
            return tuple(captions)
    return None


class _Writer:
    """Writes sentences about one scene; each form returns None if the scene does not allow it."""

    def __init__(self, scene: Scene, rng: Random) -> None:
        self.scene, self.rng = scene, rng
        self.descriptions = _descriptions(scene)
        self.groups = sorted(self.descriptions)
        self.related = _related(scene, self.groups)
        where = [set(places(item)) for item in scene.objects]
        self.placed = [
            (group, place) for group in self.groups for place in PLACES if all(place in where[i] for i in group)
        ]
        self.forms: list[Callable[[], Caption | None]] = [
            *(self.beside, self.there_is_beside, self.the_beside_the, self.with_beside),
            *(self.in_halves, self.listed, self.counted),
        ]

    def beside(self) -> Caption | None:
        """For example "a large striped red star left of two small blue rings"."""
        return self._related_caption("beside", full=True)

    def there_is_beside(self) -> Caption | None:
        """For example "there are two rings under a dotted green heart"."""
        return self._related_caption("there_is_beside", opened=True)

    def the_beside_the(self) -> Caption | None:
        """For example "the blue house is to the right of the striped moon"."""
        return self._related_caption("the_beside_the")

    def with_beside(self) -> Caption | None:
        """For example "a yellow cross with a small pink arrow above it"."""
        if not self.related:
            return None
        a, where, b = self._relation()
        return Caption("with_beside", (a, b), ((1, OPPOSITE[where], 0),), opening=self._opening(bare=True))

    def in_halves(self) -> Caption | None:
        """For example "a brown flower on the left, and a circle at the bottom"."""
        if not self.placed:
            return None
        group, place = self._pick(self.placed)
        a = self._phrase(group)
        opening = self._opening(bare=True)
        others = [other for other in self.placed if other[1] != place and not set(other[0]) & set(group)]
        if not others:
            if len(group) < len(self.scene.objects):
                return None  # one object and its half of the image: true of too many images
            return Caption("in_half", (a,), places=((0, place),), opening=opening)
        other_group, other_place = self._pick(others)
        both = (a, self._phrase(other_group))
        return Caption("in_halves", both, places=((0, place), (1, other_place)), opening=opening)

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
        return Caption("listed", tuple(phrases), opening=self._opening(bare=True))

    def counted(self) -> Caption | None:
        """For example "three shapes, among them a small brown house and a dotted ring"."""
        pairs = [(a, b) for a in self.groups for b in self.groups if not set(a) & set(b)]
        if not pairs:
            return None
        first, second = self._pick(pairs)
        return Caption("counted", (self._phrase(first), self._phrase(second)), total=len(self.scene.objects))

    def _phrase(self, group: Group, full: bool | None = None) -> NounPhrase:
        """A phrase that names ``group``; if ``full``, it says everything about the group, if None, perhaps."""
        choices = self.descriptions[group]
        full = self.rng.random() < FULL_SHARE if full is None else full
        return NounPhrase(choices[0] if full else self._pick(choices), group)

    def _relation(self, full: bool | None = None) -> tuple[NounPhrase, str, NounPhrase]:
        first, where, second = self._pick(self.related)
        return self._phrase(first, full), where, self._phrase(second, full)

    def _related_caption(self, form: str, full: bool | None = None, opened: bool = False) -> Caption | None:
        if not self.related:
            return None
        a, where, b = self._relation(full)
        opening = self._opening() if opened else None
        return Caption(form, (a, b), ((0, where, 1),), opening=opening, wording=self.rng.randrange(WORDINGS))

    def _opening(self, bare: bool = False) -> int | None:
        """An opening; if ``bare``, in half of the cases none."""
        chosen = self.rng.randrange(2 * OPENINGS if bare else OPENINGS)
        return chosen if chosen < OPENINGS else None

    def _pick(self, values: Sequence[T]) -> T:
        return values[self.rng.randrange(len(values))]


def _descriptions(scene: Scene) -> dict[Group, list[Description]]:
    """Every group of objects that a description names exactly, with its descriptions, the fullest first.

    A description without shape and color ("a small shape") is skipped: it says too little for a caption.
    """
    found: dict[Group, list[Description]] = {}
    names = tuple(ATTRIBUTES)
    kept = [each for size in range(len(names), 0, -1) for each in combinations(names, size)]
    for chosen, item in product([each for each in kept if {"shape", "color"} & {*each}], scene.objects):
        description = tuple((name, getattr(item, name)) for name in chosen)
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
            where, *others = {between[pair] for pair in product(first, second)}
            if where is not None and not others:
                related.append((first, where, second))
    return related
