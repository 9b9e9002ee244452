"""Captions are true of their image, by a parser that shares no code with the writer."""

import re
from random import Random

import pytest

from saysee.data.scenes.captions import write_captions
from saysee.data.scenes.grammar import say
from saysee.data.scenes.planning import plan
from saysee.data.scenes.world import Background, Scene, SceneObject

NOUNS = (
    "circle",
    "square",
    "triangle",
    "diamond",
    "star",
    "heart",
    "ring",
    "cross",
    "moon",
    "arrow",
    "flower",
    "house",
)
PHRASE = re.compile(
    r"\b(?P<the>the )?(?:(?P<count>two|three|four) |(?P<article>an?) )?(?P<size>small |large )?"
    r"(?P<fill>plain |striped |dotted )?(?P<color>red |orange |yellow |green |blue |purple |pink |brown )?"
    rf"(?P<noun>shape|{'|'.join(NOUNS)})(?P<plural>e?s)?(?![a-z])"
)
COUNTS = {None: 1, "two": 2, "three": 3, "four": 4}


@pytest.fixture(scope="module")
def planned():
    return list(plan(5, {"train": 250, "val": 10, "test": 60}))


def center(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def lies(where, a, b):
    """Whether box ``a`` has the relation to box ``b``."""
    (ax, ay), (bx, by) = center(a), center(b)
    sideways, upright = abs(ax - bx) > 1.15 * abs(ay - by), abs(ay - by) > 1.15 * abs(ax - bx)
    return {
        "left": a[2] <= b[0] and sideways,
        "right": a[0] >= b[2] and sideways,
        "above": a[3] <= b[1] and upright,
        "below": a[1] >= b[3] and upright,
    }[where]


def named_objects(match, objects):
    """The objects that a noun phrase fits."""
    wanted = {name: match[name].strip() for name in ("size", "fill", "color") if match[name]}
    if match["noun"] != "shape":
        wanted["shape"] = match["noun"]
    return [i for i, item in enumerate(objects) if all(getattr(item, name) == value for name, value in wanted.items())]


def direction(text):
    """The relation in a part of the sentence, if any."""
    words = {"left": "left", "right": "right", "above": "above", "over": "above", "below": "below", "under": "below"}
    return next((words[word] for word in text.split() if word in words), None)


def half_of(text, box):
    """Whether a box is in the half that the text names."""
    return {
        "on the left": box[2] <= 0.5,
        "on the right": box[0] >= 0.5,
        "at the top": box[3] <= 0.5,
        "at the bottom": box[1] >= 0.5,
    }[text]


def read_claims(text, objects):
    """Checks every claim of a sentence against the objects, and returns the kinds of claim that it made."""
    phrases = list(PHRASE.finditer(text))
    boxes = [item.box for item in objects]
    named = [named_objects(match, objects) for match in phrases]
    kinds = set()
    for match, found in zip(phrases, named, strict=True):
        count = COUNTS[match["count"]]
        assert len(found) == count, (text, match[0])
        assert bool(match["plural"]) == (count > 1), text
        if count == 1:
            following = re.sub(r"^(the |an? )", "", match[0])
            assert match["the"] or match["article"] == ("an" if following[0] in "aeiou" else "a"), text
        else:
            kinds.add("count")
    between = [
        text[a.end() : b.start()].strip(" ,")
        for a, b in zip(phrases, [*phrases[1:], re.search("$", text)], strict=True)
    ]
    if between[0] == "with":
        where = direction(between[1])
        kinds.add("with")
        assert all(lies(where, boxes[b], boxes[a]) for a in named[0] for b in named[1]), text
    elif between[0].split()[:1] in (["on"], ["at"]):
        kinds.add("place")
        for found, words in zip(named, between, strict=True):
            assert all(half_of(re.sub(r",? and$", "", words), boxes[i]) for i in found), text
        if len(phrases) == 1:  # a single object and its half of the image would be true of too many images
            assert len(named[0]) == len(objects), text
    elif between[0] == "among them":
        kinds.add("total")
        assert len(phrases) == 3
        assert phrases[0]["noun"] == "shape"
        assert between[1:] == ["and", ""], text
        assert len(named[0]) == len(objects), text
        assert not set(named[1]) & set(named[2]), text
    elif where := direction(between[0]):
        kinds.add("relation")
        assert len(phrases) == 2
        assert all(lies(where, boxes[a], boxes[b]) for a in named[0] for b in named[1]), text
    else:
        kinds.add("list")
        assert all(words in ("", "and") for words in between), text
        assert sorted(i for found in named for i in found) == list(range(len(objects))), text
    return kinds, phrases, named


def test_every_caption_is_true_of_its_image_and_every_form_occurs(planned):
    kinds = set()
    for each in planned:
        for caption in each.captions:
            kinds |= read_claims(say(caption).text, each.scene.objects)[0]
    assert kinds == {"count", "with", "place", "total", "relation", "list"}


def test_each_word_describes_the_objects_that_its_phrase_names(planned):
    for each in planned:
        for caption in each.captions:
            _, phrases, named = read_claims(say(caption).text, each.scene.objects)
            assert [word for word, _ in say(caption).words] == say(caption).text.split()
            at = 0
            for word, objects in say(caption).words:
                covering = [found for m, found in zip(phrases, named, strict=True) if m.start() <= at < m.end()]
                expected = [] if not covering or word in ("a", "an", "the") else covering[0]
                assert list(objects) == expected, (say(caption).text, word)
                at += len(word) + 1


def test_the_five_captions_of_an_image_differ(planned):
    for each in planned:
        assert len({say(caption).text for caption in each.captions}) == 5


def test_captions_are_long_enough_and_rarely_repeat(planned):
    texts = [say(caption).text for each in planned for caption in each.captions]
    assert len(set(texts)) > 0.9 * len(texts)
    assert 8 < sum(len(text.split()) for text in texts) / len(texts) < 16


def thing(shape, color, x, y, size="small", fill="plain"):
    return SceneObject(shape, color, size, fill, x, y, 0.2, 0, 0)


def test_two_equal_objects_are_called_two_and_an_precedes_a_vowel():
    objects = (thing("ring", "blue", 0.7, 0.3), thing("ring", "blue", 0.7, 0.7), thing("arrow", "orange", 0.2, 0.5))
    scene = Scene(objects, Background("plain", 0, 0))
    texts = [say(caption).text for i in range(30) for caption in write_captions(scene, Random(i)) or ()]
    assert any(text.endswith("left of two small plain blue rings") for text in texts)
    assert any(re.search(r"\ban (orange )?arrow", text) for text in texts)
    assert not any(re.search(r"\ban? (small )?(plain )?(blue )?ring", text) for text in texts)


def test_no_caption_is_true_of_the_scene_to_be_false_of():
    objects = (thing("star", "red", 0.2, 0.5), thing("moon", "blue", 0.8, 0.5))
    scene = Scene(objects, Background("plain", 0, 0))
    mirrored = Scene((thing("star", "red", 0.8, 0.5), thing("moon", "blue", 0.2, 0.5)), scene.background)
    captions = write_captions(scene, Random(1), false_of=mirrored)
    assert captions is not None
    assert all(caption.could_describe(scene) and not caption.could_describe(mirrored) for caption in captions)
    assert write_captions(scene, Random(1), false_of=scene) is None
