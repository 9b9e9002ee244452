"""A tokenizer of whole words, for a text tower that has learned few of them."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

MAX_WORDS = 40
"""Longest caption in tokens, the begin and end marks included; longer ones are cut."""


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words of ``texts``, in the frame that CLIP's text encoder expects."""
    marks = ["<pad>", "<unknown>", "<begin>"]
    words = sorted({word for text in texts for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text.lower())})
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


def tokenize(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> list[list[int]]:
    """The token numbers of each caption."""
    ids: list[list[int]] = tokenizer(captions, truncation=True, max_length=MAX_WORDS)["input_ids"]
    return ids


def drawn_captions(tokens: list[list[list[int]]], chosen: list[int], draw: Random) -> Tensor:
    """[B, N] int: of each chosen picture one of its captions, drawn at random."""
    return padded([captions[draw.randrange(len(captions))] for captions in (tokens[number] for number in chosen)])


def padded(ids: list[list[int]]) -> Tensor:
    """[B, N] int, filled up with 0, the tokenizer's padding."""
    longest = max(len(row) for row in ids)
    return torch.tensor([row + [0] * (longest - len(row)) for row in ids])
