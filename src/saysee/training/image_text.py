"""A small CLIP trained from scratch on pictures and their written captions.

The paper aligns speech with an image encoder that is already CLIP's. Where no checkpoint can be had, this makes a small
one from a manifest's training split: CLIP's architecture, CLIP's loss (arXiv 2103.00020), words as tokens. It is saved
in the Hugging Face layout, so what follows loads it as it would load any CLIP.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, PreTrainedTokenizerFast

from saysee.config import OptimizerSettings
from saysee.data.manifest import Manifest, Row
from saysee.errors import ConfigError
from saysee.media.images import load_image
from saysee.model.processor import SpeechImageProcessor
from saysee.progress import progress_bar
from saysee.tasks.contrastive import info_nce
from saysee.training.attention_kernel import attention_kernel
from saysee.training.checkpoint import write_folder
from saysee.training.optimization import learning_rate_factor

MAX_WORDS = 40
"""Longest caption in tokens, the begin and end marks included; longer ones are cut."""


@dataclass(frozen=True)
class SmallCLIPSettings:
    """Size and training of a small CLIP.

    Attributes:
        width: width of both towers; a multiple of 32. layers: transformer layers of the vision tower; the text tower
        has half of them, at least one. projection: D, width of the joint space. image_size: side of the picture in
        pixels. patch_size: side of a patch in pixels. steps: optimiser steps. batch_size: pairs in a batch. lr: peak
        learning rate (AdamW, a tenth of the steps to warm up, then linear decay). temperature: fixed temperature of the
        loss. seed: of weights and order.
    """

    width: int = 128
    layers: int = 3
    projection: int = 128
    image_size: int = 64
    patch_size: int = 8
    steps: int = 360
    batch_size: int = 128
    lr: float = 1e-3
    temperature: float = 0.07
    seed: int = 0


def train_small_clip(manifest: Manifest, split: str, folder: Path, settings: SmallCLIPSettings) -> dict[str, float]:
    """Trains and saves a small CLIP with its tokenizer and image processor.

    Args:
        manifest: rows with ``text``.
        split: the split to train on.
        folder: where the model goes; it appears whole or not at all.
        settings: see :class:`SmallCLIPSettings`.

    Returns:
        Seconds and the mean loss of the last tenth of the steps.

    Raises:
        ConfigError: a row has no text, or the split has fewer pictures than a batch.
    """
    rows = manifest.select(split)
    if any(row.text is None for row in rows):
        raise ConfigError(f"a row of split {split!r} has no text; a CLIP needs written captions")
    by_image: dict[str, list[Row]] = {}
    for row in rows:
        by_image.setdefault(row.image_id, []).append(row)
    if len(by_image) < settings.batch_size:
        raise ConfigError(f"split {split!r} has {len(by_image)} pictures; a batch wants {settings.batch_size}")

    started = time.perf_counter()
    torch.manual_seed(settings.seed)
    tokenizer = word_tokenizer([row.text or "" for row in rows])
    processor = SpeechImageProcessor.from_sources(None, None, settings.image_size, text=False)
    images = list(by_image.values())
    pixels = torch.stack([processor.prepare_image(load_image(rows.image_path(captions[0]))) for captions in images])
    tokens = [_tokenize(tokenizer, captions) for captions in images]
    model = CLIPModel(_config(settings, tokenizer))
    losses = _train(model, pixels, tokens, settings)

    def save(temporary: Path) -> None:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        processor.image_processor.save_pretrained(temporary)

    write_folder(folder, save)
    tail = losses[-max(len(losses) // 10, 1) :]
    return {"seconds": time.perf_counter() - started, "loss": sum(tail) / len(tail)}


def word_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words of ``texts``, in the frame that CLIP's text encoder expects."""
    marks = ["<pad>", "<unknown>", "<begin>"]
    words = sorted({word for text in texts for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text.lower())})
    # CLIP's text encoder reads its vector at the end mark, which has the highest number.
    vocabulary = {word: number for number, word in enumerate([*marks, *words, "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    from tokenizers.normalizers import Lowercase

    tokenizer.normalizer = Lowercase()
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


def _config(settings: SmallCLIPSettings, tokenizer: PreTrainedTokenizerFast) -> CLIPConfig:
    heads = settings.width // 32
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=4 * settings.width,
        num_hidden_layers=max(settings.layers // 2, 1),
        num_attention_heads=heads,
        max_position_embeddings=MAX_WORDS,
        projection_dim=settings.projection,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=settings.width,
        intermediate_size=4 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=heads,
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        projection_dim=settings.projection,
    )
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=settings.projection)


def _tokenize(tokenizer: PreTrainedTokenizerFast, captions: list[Row]) -> tuple[Tensor, Tensor]:
    """Ids [captions, MAX_WORDS] and their mask."""
    encoded = tokenizer(
        [row.text for row in captions], padding="max_length", truncation=True, max_length=MAX_WORDS, return_tensors="pt"
    )
    return encoded["input_ids"], encoded["attention_mask"]


def _train(
    model: CLIPModel, pixels: Tensor, tokens: list[tuple[Tensor, Tensor]], settings: SmallCLIPSettings
) -> list[float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01)
    draw = random.Random(settings.seed)
    schedule = OptimizerSettings(warmup_steps=settings.steps // 10)
    losses = []
    with progress_bar("small CLIP from written captions", settings.steps) as bar, attention_kernel(device, bf16=True):
        for step in range(settings.steps):
            factor = learning_rate_factor(step, settings.steps, schedule)
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * factor
            # Each picture at most once in a batch: no false negatives.
            chosen = draw.sample(range(len(tokens)), settings.batch_size)
            captions = [draw.randrange(len(tokens[index][0])) for index in chosen]
            ids = torch.stack([tokens[index][0][caption] for index, caption in zip(chosen, captions, strict=True)])
            mask = torch.stack([tokens[index][1][caption] for index, caption in zip(chosen, captions, strict=True)])
            longest = int(mask.sum(dim=1).max())
            with torch.autocast(device, dtype=torch.bfloat16):
                text = model.get_text_features(
                    input_ids=ids[:, :longest].to(device), attention_mask=mask[:, :longest].to(device)
                ).pooler_output
                image = model.get_image_features(pixel_values=pixels[chosen].to(device)).pooler_output
            loss = info_nce(text, image, 1 / settings.temperature, torch.arange(len(chosen), device=device))
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            bar.advance()
    model.to("cpu").eval()
    return losses
