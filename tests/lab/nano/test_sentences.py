"""Sentences: English by rule, wide, always the same, and with captions of scenes that no test split may show."""

from __future__ import annotations

import re

import pytest
from lab.nano.images import wide_scenes
from lab.nano.sentences import CAPTION_SHARE, in_words, lexicon, past, plural, present_participle, sentences

from lab.nano import sentences as module
from saysee.data.scenes.planning import in_test_half, novel_pairs
from saysee.data.scenes.world import COLORS


@pytest.fixture(scope="module")
def many():
    return [sentences(0, chunk, 1000) for chunk in range(3)]


def words_of(texts):
    return {word for text in texts for word in re.findall(r"[a-z']+", text.lower())}


@pytest.mark.parametrize(
    ("verb", "before", "now"),
    [
        ("stop", "stopped", "stopping"),
        ("drag", "dragged", "dragging"),
        ("beg", "begged", "begging"),
        ("stir", "stirred", "stirring"),
        ("wrap", "wrapped", "wrapping"),
        ("admit", "admitted", "admitting"),
        ("visit", "visited", "visiting"),
        ("offer", "offered", "offering"),
        ("open", "opened", "opening"),
        ("enter", "entered", "entering"),
        ("order", "ordered", "ordering"),
        ("cover", "covered", "covering"),
        ("label", "labeled", "labeling"),
        ("remember", "remembered", "remembering"),
        ("listen", "listened", "listening"),
        ("suffer", "suffered", "suffering"),
        ("develop", "developed", "developing"),
        ("look", "looked", "looking"),
        ("float", "floated", "floating"),
        ("help", "helped", "helping"),
        ("yell", "yelled", "yelling"),
        ("fix", "fixed", "fixing"),
        ("bow", "bowed", "bowing"),
        ("chew", "chewed", "chewing"),
        ("carry", "carried", "carrying"),
        ("cry", "cried", "crying"),
        ("dry", "dried", "drying"),
        ("play", "played", "playing"),
        ("obey", "obeyed", "obeying"),
        ("bake", "baked", "baking"),
        ("agree", "agreed", "agreeing"),
        ("argue", "argued", "arguing"),
        ("wish", "wished", "wishing"),
        ("add", "added", "adding"),
        ("own", "owned", "owning"),
        ("pay", "paid", "paying"),
        ("hang", "hung", "hanging"),
        ("shake", "shook", "shaking"),
    ],
)
def test_forms_of_verbs(verb, before, now):
    assert (past(verb), present_participle(verb)) == (before, now)


def test_no_verb_of_the_lexicon_doubles_after_an_unstressed_syllable():
    doubled = {verb for verb in lexicon()["verbs"] if present_participle(verb) == verb + verb[-1] + "ing"}
    short = ("admit", "beg", "clap", "drag", "grab", "hug", "plan", "rub", "shop", "skip", "slip", "step", "stir")
    assert doubled == {*short, "stop", "tap", "trip", "wrap"}
    assert present_participle("make") == "making"


@pytest.mark.parametrize(
    ("noun", "several"),
    [
        ("apple", "apples"), ("box", "boxes"), ("bus", "buses"), ("church", "churches"), ("dish", "dishes"),
        ("baby", "babies"), ("boy", "boys"), ("key", "keys"), ("child", "children"), ("knife", "knives"),
        ("leaf", "leaves"), ("man", "men"), ("woman", "women"), ("mouse", "mice"), ("potato", "potatoes"),
        ("tomato", "tomatoes"), ("photo", "photos"), ("radio", "radios"), ("sheep", "sheep"), ("scarf", "scarves"),
        ("shelf", "shelves"), ("roof", "roofs"), ("wolf", "wolves"), ("wife", "wives"), ("half", "halves"),
        ("stomach", "stomachs"), ("scissors", "scissors"), ("tooth", "teeth"),
    ],
)  # fmt: skip
def test_plurals(noun, several):
    assert plural(noun) == several


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (7, "seven"),
        (13, "thirteen"),
        (20, "twenty"),
        (21, "twenty one"),
        (99, "ninety nine"),
        (100, "one hundred"),
        (105, "one hundred and five"),
        (342, "three hundred and forty two"),
        (1000, "one thousand"),
        (1007, "one thousand and seven"),
        (1700, "one thousand seven hundred"),
        (12_345, "twelve thousand three hundred and forty five"),
        (999_999, "nine hundred and ninety nine thousand nine hundred and ninety nine"),
    ],
)
def test_numbers_in_words(number, words):
    assert in_words(number) == words


def test_every_number_is_said_in_its_own_way():
    numbers = [*range(2000), *range(2000, 1_000_000, 997)]
    assert len({in_words(number) for number in numbers}) == len(numbers)


def test_the_same_numbers_give_the_same_sentences_and_others_others(many):
    assert sentences(0, 1, 1000) == many[1]
    # Of a picture with one object there is little to say, so here and there two chunks say the same.
    assert len({text for text in set(many[0]) & set(many[1]) if len(text.split()) >= 6}) < 10
    assert sentences(1, 1, 100) != sentences(0, 1, 100)


def test_there_are_as_many_as_asked_for_and_each_can_be_said(many):
    for texts in many:
        assert len(texts) == 1000
        assert all(text.strip() and re.fullmatch(r"[A-Za-z' ,?]+", text) for text in texts)


def test_the_vocabulary_is_wide(many):
    assert len(words_of(text for texts in many for text in texts)) > 2000
    assert sum(map(len, lexicon().values())) > 1300
    assert all(word.isalpha() for words in lexicon().values() for word in words)


def test_a_and_an_stand_where_they_should(many):
    for texts in many:
        for text in texts:
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou ]", text), text


def test_no_phrase_has_a_pair_that_only_tests_show(many, monkeypatch):
    def named(texts):
        return [pair for pair in sorted(novel_pairs()) for text in texts if " ".join(pair) in text]

    assert not named(text for texts in many for text in texts)
    # Rare by chance, so from a lexicon where it would be often.
    small = {**lexicon(), "nouns": ("star", "moon", "house", "cross"), "adjectives": COLORS}
    monkeypatch.setattr(module, "lexicon", lambda: small)
    assert not named(sentences(0, 0, 400))
    monkeypatch.setattr(module, "novel_pairs", frozenset)
    assert named(sentences(0, 0, 400))


def test_captions_are_of_scenes_that_no_test_split_may_show(monkeypatch):
    shown = []

    def recorded(*numbers):
        found = list(wide_scenes(*numbers))
        shown.extend(found)
        return found

    monkeypatch.setattr(module, "wide_scenes", recorded)
    texts = [text for seed, chunk in ((0, 0), (0, 3), (5, 1)) for text in sentences(seed, chunk, 600)]
    assert len(shown) == 3 * 75
    for each in shown:
        assert not in_test_half(each.scene)
        assert not {(item.color, item.shape) for item in each.scene.objects} & novel_pairs()
    said = {text for each in shown for text in each.captions}
    captions = [text for text in texts if text in said]
    assert len(captions) == pytest.approx(CAPTION_SHARE * len(texts), rel=0.02)
    # Whatever else speaks of shapes as captions do must come from a scene too.
    rest = [text for text in texts if text not in said]
    assert not any(re.search(r"among them|to the (left|right) of", text) for text in rest)
