"""CLIP's tokenizer: texts to token ids, and what of a text they stand for."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from saysee.files import write_text
from saysee.model.pretrained.weights import find, first_line, read_json

_FILE, _SETTINGS = "tokenizer.json", "tokenizer_config.json"


class TextTokenizer:
    """The tokenizer of a checkpoint. It keeps nothing between calls, so several threads may use it."""

    def __init__(self, tokens: Tokenizer, settings: dict[str, Any]) -> None:
        self._tokens, self._settings = tokens, settings
        self._added = tokens.num_special_tokens_to_add(False)
        tokens.no_truncation()
        tokens.no_padding()
        limit = settings.get("model_max_length") or 1e30
        if not isinstance(limit, int | float) or limit <= self._added:
            raise ValueError(f"model_max_length in {_SETTINGS} is {limit!r}; give a number above {self._added}")
        self.limit = int(limit)  # most tokens of a text that it was made for

    @classmethod
    def load(cls, place: str | os.PathLike[str], **hub: Any) -> TextTokenizer:
        """That of a folder or a name on the hub; OSError if it has none, ValueError if its files are damaged."""
        file = find(place, _FILE, **hub)
        if file is None and find(place, "merges.txt", **hub) is None:
            raise FileNotFoundError(f"{place} has no tokenizer files")
        try:
            if file is not None:
                tokens = Tokenizer.from_file(os.fspath(file))
            else:
                from transformers import AutoTokenizer  # the form before tokenizer.json

                tokens = AutoTokenizer.from_pretrained(place, **hub).backend_tokenizer
        except Exception as error:  # tokenizers raises Exception itself
            raise ValueError(
                f"{_FILE if file else 'vocab.json or merges.txt'} is damaged ({first_line(error)})"
            ) from error
        return cls(tokens, read_json(place, _SETTINGS, **hub))

    def save(self, folder: Path) -> None:
        """Writes its files into a folder."""
        write_text(folder / _FILE, self._tokens.to_str(pretty=True))
        write_text(folder / _SETTINGS, json.dumps(self._settings, indent=2) + "\n")

    def ids(self, texts: Sequence[str], limit: int) -> Tensor:
        """Token ids [B, N] of texts, cut to ``limit`` tokens before the mark of their end; 0 after it."""
        rows = []
        for text in texts:
            encoding = self._encode(text)
            encoding.truncate(min(limit, self.limit) - self._added)
            rows.append(self._tokens.post_process(encoding).ids)
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])

    def used(self, text: str, limit: int) -> str | None:
        """The start of a text that is longer than ``limit`` tokens, as far as it is used; None if all of it is."""
        most = min(limit, self.limit) - self._added
        if len(text.encode(errors="replace")) <= most:  # a token has at least one byte
            return None
        offsets = self._encode(text).offsets
        return None if len(offsets) <= most else text[: max(end for _, end in offsets[:most])]

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text for which there is one token only, that of all unknown words; each once.

        The tokenizers of published CLIPs know parts of words down to single bytes, and so all words.
        """
        mark = getattr(self._tokens.model, "unk_token", None)
        unknown = None if mark is None else self._tokens.token_to_id(mark)
        if unknown is None or unknown in self._tokens.encode("").ids:
            return []
        words = dict.fromkeys(re.findall(r"\w+(?:['’]\w+)*|[^\w\s]", _valid(text)))
        shown = [word for word in words if not unicodedata.category(word[0]).startswith("P")]
        return [word for word in shown if unknown in self._encode(word).ids]

    def _encode(self, text: str) -> Encoding:
        return self._tokens.encode(_valid(text), add_special_tokens=False)


def _valid(text: str) -> str:
    """As many characters, a question mark for each half of one, which odd arguments and files may have."""
    return text.encode(errors="replace").decode()
