"""The language of a corpus: only what its files prove. Everything else is unknown, and ``--language`` says it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice

_NAMES = {"english": "en", "hindi": "hi", "japanese": "ja", "jpn": "ja", "yoruba": "yo"}
_LAST_LATIN = "\u024f"  # of the Unicode blocks of Latin letters
_LETTERS = 10_000  # enough to tell a script


def named_language(name: str) -> str | None:
    """The language in the name of a file, folder or key, such as ``hindi_wav``; None if it has none, or several."""
    found = {tag for word, tag in _NAMES.items() if word in name.casefold()}
    return found.pop() if len(found) == 1 else None


def can_be_english(texts: Iterable[str | None]) -> bool:
    """Whether texts are in Latin letters. A translated copy often keeps the files and names of the English corpus."""
    letters = list(islice(filter(str.isalpha, chain.from_iterable(filter(None, texts))), _LETTERS))
    return 2 * sum(letter <= _LAST_LATIN for letter in letters) >= len(letters)
