"""Word error rate of a speech recognizer, by jiwer.

Both texts are normalized first: lower case; dashes and hyphens become spaces; other punctuation is removed (so "dog's"
is "dogs"). Numbers and spellings stay as they are written.
"""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class WordErrors:
    """The word errors of a set of clips."""

    errors: int  # substitutions, deletions and insertions, the fewest that turn the reference into the hypothesis
    words: int  # number of reference words
    clips: int  # number of clips with a reference

    @property
    def rate(self) -> float:
        """Errors in percent of the reference words; insertions can make it larger than 100."""
        return 100.0 * self.errors / self.words

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"rate": self.rate, "errors": self.errors, "words": self.words, "clips": self.clips}


def count_word_errors(pairs: Iterable[tuple[str | None, str]]) -> WordErrors | None:
    """Counts the word errors of pairs (reference, hypothesis); None if no reference has a word."""
    import jiwer

    normalized = [(normalize_text(reference or ""), normalize_text(hypothesis)) for reference, hypothesis in pairs]
    normalized = [pair for pair in normalized if pair[0]]
    if not normalized:
        return None
    references, hypotheses = zip(*normalized, strict=True)
    found = jiwer.process_words(list(references), list(hypotheses))
    errors = found.substitutions + found.deletions + found.insertions
    return WordErrors(errors, found.hits + found.substitutions + found.deletions, len(normalized))


def normalize_text(text: str) -> str:
    """The text as the module describes, with single spaces between words."""
    pairs = ((character, unicodedata.category(character)) for character in text.lower())
    plain = (
        " " if category == "Pd" else character
        for character, category in pairs
        if category[0] != "P" or category == "Pd"
    )
    return " ".join("".join(plain).split())
