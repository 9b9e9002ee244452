"""Word error rate against a count by the definition, and by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saysee.evaluation.word_errors import count_word_errors, normalize_text

WORDS = st.lists(st.sampled_from("abc"), max_size=5)


def fewest_edits(reference, hypothesis):
    """By the definition: every first edit, then the rest."""
    if not reference or not hypothesis:
        return len(reference) + len(hypothesis)
    if reference[0] == hypothesis[0]:
        return fewest_edits(reference[1:], hypothesis[1:])
    rest = [(reference[1:], hypothesis), (reference, hypothesis[1:]), (reference[1:], hypothesis[1:])]
    return 1 + min(fewest_edits(*pair) for pair in rest)


@given(st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=4))
def test_errors_are_the_fewest_edits_summed_over_clips(pairs):
    found = count_word_errors((" ".join(reference), " ".join(hypothesis)) for reference, hypothesis in pairs)
    assert found.errors == sum(fewest_edits(*pair) for pair in pairs)
    assert (found.words, found.clips) == (sum(len(reference) for reference, _ in pairs), len(pairs))


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("A Dog's ball, red!", "a dogs ball red"),
        ("black-and-white – or not", "black and white or not"),
        ("  two\tgreen\nstars ", "two green stars"),
        ("ÄRGER “zitiert”", "ärger zitiert"),
        ("...", ""),
    ],
)
def test_case_and_punctuation_do_not_count(text, normalized):
    assert normalize_text(text) == normalized


def test_the_rate_is_of_all_words_together_and_may_exceed_100():
    pairs = [("A red square.", "a red circle"), ("one", "one two three four"), (None, "unknown"), ("!", "sound")]
    found = count_word_errors(pairs)
    assert (found.errors, found.words, found.clips) == (4, 4, 2)
    assert found.to_dict() == {"rate": 100.0, "errors": 4, "words": 4, "clips": 2}
    assert count_word_errors([("one", "two three")]).rate == 200
    assert count_word_errors([("a b", "")]).rate == 100


def test_without_a_reference_there_is_no_rate():
    assert count_word_errors([(None, "one"), ("", "two")]) is None
