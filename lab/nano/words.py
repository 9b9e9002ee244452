"""A tokenizer of whole words, for a text encoder with a small vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

MAX_WORDS = 40
"""Longest caption in tokens, the begin and end marks included; longer ones are cut off."""


def split_words(text: str) -> list[str]:
    """The words of a text as the tokenizer takes them; a comma is one."""
    return [word for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text.lower())]


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words of ``texts``, between the marks that CLIP's text encoder expects."""
    marks = ["<pad>", "<unknown>", "<begin>"]
    words = sorted({word for text in texts for word in split_words(text)})
    # CLIP's text encoder reads its vector at the end mark, which has the highest number.
    vocabulary = {word: number for number, word in enumerate([*marks, *words, "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<begin> $A <end>",
        special_tokens=[("<begin>", vocabulary["<begin>"]), ("<end>", vocabulary["<end>"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unknown>",
        bos_token="<begin>",
        eos_token="<end>",
        model_max_length=MAX_WORDS,
    )


@dataclass(frozen=True)
class WordNumbers:
    """Captions as numbers of their words in a sorted list: tokens for captions before the whole vocabulary is known.

    Attributes:
        words: the list, sorted.
        numbers: [C, MAX_WORDS - 2] uint16, counted from 1 and padded with 0.
    """

    words: list[str]
    numbers: NDArray[np.uint16]

    @classmethod
    def of(cls, captions: list[str]) -> WordNumbers:
        """The word numbers of C captions."""
        split = [split_words(text)[: MAX_WORDS - 2] for text in captions]
        words = sorted({word for caption in split for word in caption})
        number = {word: 1 + place for place, word in enumerate(words)}
        numbers = np.zeros((len(captions), MAX_WORDS - 2), dtype=np.uint16)
        for row, caption in zip(numbers, split, strict=True):
            row[: len(caption)] = [number[word] for word in caption]
        return cls(words, numbers)

    def tokens(self, tokenizer: PreTrainedTokenizerFast) -> NDArray[np.uint16]:
        """[C, MAX_WORDS] tokens of the captions, as the tokenizer gives them, padded."""
        vocabulary = tokenizer.get_vocab()
        token = [tokenizer.pad_token_id, *(vocabulary.get(word, tokenizer.unk_token_id) for word in self.words)]
        tokens = np.full((len(self.numbers), MAX_WORDS), tokenizer.pad_token_id, dtype=np.uint16)
        tokens[:, 0] = tokenizer.bos_token_id
        tokens[:, 1:-1] = np.array(token, dtype=np.uint16)[self.numbers]
        tokens[np.arange(len(tokens)), 1 + (self.numbers > 0).sum(axis=1)] = tokenizer.eos_token_id
        return tokens


@dataclass(frozen=True)
class SceneTokens:
    """The captions of N scenes as token numbers.

    Attributes:
        tokens: [C, MAX_WORDS] uint16, padded with 0; the captions of a scene are adjacent.
        first: [N + 1] the number of each scene's first caption, and C.
    """

    tokens: NDArray[np.uint16]
    first: NDArray[np.intp]

    def drawn(self, chosen: NDArray[np.intp], rng: np.random.Generator) -> Tensor:
        """[B, W] int: one random caption of each chosen scene; W is the length of the longest."""
        return self._rows(rng.integers(self.first[chosen], self.first[chosen + 1]))

    def firsts(self, start: int, stop: int) -> Tensor:
        """[B, W] int: the first caption of each of these scenes."""
        return self._rows(self.first[start : min(stop, len(self.first) - 1)])

    def _rows(self, captions: NDArray[np.intp]) -> Tensor:
        tokens = self.tokens[captions]
        return torch.from_numpy(tokens[:, : int((tokens > 0).sum(axis=1).max())].astype(np.int64))
