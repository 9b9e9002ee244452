"""Word error rate: how far what a recogniser heard is from what was said.

Both texts are normalised first: lower case; dashes, hyphens too, become spaces; all other punctuation goes (so that
"dog's" is "dogs"); words are what stands between spaces. Numbers and spellings stay as they are written.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class WordErrors:
    """The errors of many clips together.

    Attributes:
        errors: fewest substitutions, deletions and insertions of words that turn what was said into what was heard.
        words: number of words said.
        clips: number of clips whose text is known.
    """

    errors: int
    words: int
    clips: int

    @property
    def rate(self) -> float:
        """Errors in percent of the words said; insertions can take it above 100."""
        return 100.0 * self.errors / self.words

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"rate": self.rate, "errors": self.errors, "words": self.words, "clips": self.clips}


def count_word_errors(pairs: Iterable[tuple[str | None, str]]) -> WordErrors | None:
    """The word errors of (said, heard) pairs; pairs whose first text is None or has no word are left out.

    Returns:
        None where no pair is left.
    """
    errors = words = clips = 0
    for said, heard in pairs:
        reference = words_of(said or "")
        if reference:
            errors += word_edits(reference, words_of(heard))
            words += len(reference)
            clips += 1
    return WordErrors(errors, words, clips) if clips else None


def words_of(text: str) -> list[str]:
    """The words of a text, normalised as the module says."""
    return "".join(_plain(character) for character in text.lower()).split()


def word_edits(said: Sequence[str], heard: Sequence[str]) -> int:
    """Fewest substitutions, deletions and insertions that turn ``said`` into ``heard`` (Levenshtein's distance)."""
    row = list(range(len(heard) + 1))
    for place, word in enumerate(said, start=1):
        diagonal, row[0] = row[0], place
        for column, other in enumerate(heard, start=1):
            kept = diagonal if word == other else diagonal + 1
            diagonal, row[column] = row[column], min(kept, row[column] + 1, row[column - 1] + 1)
    return row[-1]


def _plain(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Pd":
        return " "
    return "" if category.startswith("P") else character
