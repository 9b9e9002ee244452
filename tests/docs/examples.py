"""The fenced examples of the documentation's pages, in order."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(sh|python|yaml|json)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A command, a Python program, or the content of a file.

    Attributes:
        page: name of the page, such as "train.md".
        language: "sh" (one command), "python", "yaml" or "json".
        text: as it is written; a command has its continuation lines joined.
    """

    page: str
    language: str
    text: str

    @property
    def words(self) -> list[str]:
        """The words of a command, without its comment."""
        return shlex.split(self.text, comments=True)


def examples_of(page: Path) -> Iterator[Example]:
    """The examples of a page; a shell variable is replaced by its value."""
    for language, block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language != "sh":
            yield Example(page.name, language, block)
            continue
        variables: dict[str, str] = {}
        for line in block.replace("\\\n", " ").splitlines():
            if assignment := re.fullmatch(r'([A-Z]+)="(.*)"', line):
                variables[assignment[1]] = assignment[2]
                continue
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            if line.strip():
                yield Example(page.name, language, line)


def commands(first_word: str) -> list[Example]:
    """The commands of all pages that start with a word."""
    return [
        example
        for page in PAGES
        for example in examples_of(page)
        if example.language == "sh" and example.words[0] == first_word
    ]
