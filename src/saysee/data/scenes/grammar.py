"""Sentences: what captions claim, said in a language. ``languages/*.yaml`` has the grammar of each.

A file of a grammar has:

- ``columns``: what a word agrees with: gender (``m``, ``f``, ``n``) or ``s``, and of several things gender with ``p``,
  or ``p`` alone. Articles, endings and the lists of adjectives have one form a column; ``-`` is no word.
- ``phrase``: the order of a noun phrase. ``articles`` and ``endings`` are by ``a`` or ``the``, and by case if it
  matters.
  An adjective is a list, or one form, of which ``~`` is the ending.
- ``nouns``: ``gender``, and forms by number (``s``, ``p``), by case, or by both; what is missing is as the singular.
- ``openings``: of sentences; the name in braces, where the sentence goes, is the case of its phrases.
- ``relations``: two ways to say each. ``tails``: where the second phrase lies, after "with".
- ``forms``: the sentences. ``{b dat}`` is a phrase in that case. ``(is|are)`` agrees with the first phrase.
- ``joins``: neighboring words that become others, as regular expressions.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from saysee.data.scenes.captions import Caption, Group, NounPhrase
from saysee.errors import ConfigError

Word = tuple[str, Group]  # a word with the objects that it describes

_FILES = Path(__file__).parent / "languages"
LANGUAGES = tuple(sorted(path.stem for path in _FILES.glob("*.yaml")))
"""ISO 639-1 codes of the languages that there are."""


@dataclass(frozen=True)
class Sentence:
    """A caption in words, each with the objects that it describes; a comma belongs to the word before it."""

    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        """The sentence."""
        return " ".join(word for word, _ in self.words)


def say(caption: Caption, language: str = "en") -> Sentence:
    """The sentence of a caption. Raises ConfigError if there is no such language."""
    return _grammar(language).sentence(caption)


@lru_cache
def _grammar(language: str) -> "_Grammar":
    if language not in LANGUAGES:
        raise ConfigError(f"there are no captions in the language {language!r}; give some of: {', '.join(LANGUAGES)}")
    return _Grammar(yaml.safe_load((_FILES / f"{language}.yaml").read_text(encoding="utf-8")))


class _Grammar:
    """The contents of a file of ``languages``."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    def sentence(self, caption: Caption) -> Sentence:
        """The caption in words."""
        case, template = self._template(caption)
        phrases = dict(zip("abcd", caption.phrases, strict=False))
        if caption.total is not None:
            phrases["total"] = NounPhrase((), tuple(range(caption.total)))
        article = "the" if caption.form == "the_beside_the" else "a"
        words: list[Word] = []
        for name, own_case, comma, word in re.findall(r"\{(\w+) ?(\w*)\}(,?)|(\S+)", template):
            found = [(word, ())] if word else self._phrase(phrases[name], article, own_case or case)
            words += [*found[:-1], (found[-1][0] + comma, found[-1][1])]
        return Sentence(tuple(self._joined(words)))

    def _template(self, caption: Caption) -> tuple[str, str]:
        """The case of the phrases, and the sentence with its phrases by name."""
        data, count = self.data, len(caption.phrases)
        if caption.form == "listed":
            names = [f"{{{name}}}" for name in "abcd"[:count]]
            text = f"{', '.join(names[:-1])} {data['and']} {names[-1]}"
        else:
            text = data["forms"][caption.form]
        for _, where, _ in caption.relations:
            text = text.replace("{where}", data["relations"][where][caption.wording])
            text = text.replace("{tail}", data["tails"][where])
        for name, (_, place) in zip(("{place}", "{other}"), caption.places, strict=False):
            text = text.replace(name, data["places"][place])
        opening = "{nom}" if caption.opening is None else data["openings"][caption.opening]
        case = re.findall(r"\{(\w+)\}", opening)[0]
        text = opening.replace(f"{{{case}}}", text)
        number = 1 if len(caption.phrases[0].objects) == 1 else 2
        return case, re.sub(r"\(([^|)]*)\|([^)]*)\)", rf"\{number}", text)

    def _phrase(self, phrase: NounPhrase, article: str, case: str) -> list[Word]:
        """The words of a noun phrase; the article describes no object."""
        data, values, count = self.data, dict(phrase.description), len(phrase.objects)
        noun = values.pop("shape", "shape")
        # English, also of further shapes: the name itself, and a plural by rule.
        forms = data["nouns"].get(noun) or {"s": noun, "p": noun + ("es" if noun.endswith("s") else "s")}
        number = "s" if count == 1 else "p"
        gender = forms.get("gender", "")
        agreement = [gender or "s"] if count == 1 else [f"{gender}p", "p"]
        column: int = next(data["columns"].index(name) for name in agreement if name in data["columns"])

        def of_column(table: dict[str, str]) -> str:
            return str(table.get(f"{article} {case}", table[article]).split()[column])

        said = {
            "article": of_column(data["articles"]).strip("-"),
            "number": data["numbers"][count - 1] if count > 1 else "",
            "shape": next(forms[key] for key in (f"{number} {case}", case, number, "s") if key in forms),
        }
        for name, value in values.items():
            adjective = data["adjectives"].get(value, value)
            form = adjective if isinstance(adjective, str) else adjective[column]
            said[name] = form.replace("~", of_column(data["endings"])) if "~" in form else form
        return [
            (word, () if name == "article" else phrase.objects)
            for name in re.findall(r"\w+", data["phrase"])
            for word in said.get(name, "").split()
        ]

    def _joined(self, words: list[Word]) -> list[Word]:
        """The words after the joins of neighbors; a joined word describes what its last part does."""
        done: list[Word] = []
        for word, objects in words:
            for pattern, replacement in self.data["joins"].items():
                if done and (found := re.fullmatch(pattern, f"{done[-1][0]} {word}")):
                    *first, word = found.expand(replacement).split()
                    before = done.pop()
                    done += [(each, before[1]) for each in first]
                    break
            done.append((word, objects))
        return done
