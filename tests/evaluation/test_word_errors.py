"""Word error rate against an independent count, and by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saysee.evaluation.word_errors import count_word_errors, word_edits, words_of

WORDS = st.lists(st.sampled_from("abc"), max_size=5)


def fewest_edits(said, heard):
    """By the definition: every first edit, then the rest."""
    if not said or not heard:
        return len(said) + len(heard)
    if said[0] == heard[0]:
        return fewest_edits(said[1:], heard[1:])
    return 1 + min(fewest_edits(said[1:], heard), fewest_edits(said, heard[1:]), fewest_edits(said[1:], heard[1:]))


@given(WORDS, WORDS)
def test_edits_are_the_fewest_that_any_way_of_editing_needs(said, heard):
    assert word_edits(said, heard) == fewest_edits(said, heard)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A Dog's ball, red!", ["a", "dogs", "ball", "red"]),
        ("black-and-white – or not", ["black", "and", "white", "or", "not"]),
        ("  two\tgreen\nstars ", ["two", "green", "stars"]),
        ("ÄRGER “zitiert”", ["ärger", "zitiert"]),
        ("...", []),
    ],
)
def test_case_and_punctuation_do_not_count(text, words):
    assert words_of(text) == words


def test_the_rate_is_of_all_words_together_and_may_pass_100():
    pairs = [("A red square.", "a red circle"), ("one", "one two three four"), (None, "unknown"), ("!", "sound")]
    found = count_word_errors(pairs)
    assert (found.errors, found.words, found.clips) == (4, 4, 2)
    assert found.to_dict() == {"rate": 100.0, "errors": 4, "words": 4, "clips": 2}
    assert count_word_errors([("one", "two three")]).rate == 200
    assert count_word_errors([("a b", "")]).rate == 100


def test_without_any_text_there_is_nothing_to_count():
    assert count_word_errors([(None, "one"), ("", "two")]) is None
