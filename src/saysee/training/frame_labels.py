"""A small HuBERT trained from scratch to tell, frame by frame, which word is being spoken.

The paper starts from a HuBERT that was pre-trained to predict frame labels (arXiv 2106.07447). Where no checkpoint can
be had, this makes a small one from a manifest whose words have times, as the scenes corpus's have: HuBERT's
architecture, and the words themselves as labels in place of clusters. It is saved in the Hugging Face layout, so what
follows loads it as it would load any HuBERT.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import HubertConfig

from saysee.config import OptimizerSettings
from saysee.data.loader import build_loader
from saysee.data.manifest import Manifest, Row
from saysee.errors import ConfigError
from saysee.media.audio import SAMPLE_RATE
from saysee.model.configuration import HeadConfig
from saysee.model.processor import SpeechImageProcessor
from saysee.model.speech_encoder import SpeechEncoder
from saysee.progress import progress_bar
from saysee.training.attention_kernel import attention_kernel
from saysee.training.checkpoint import write_folder
from saysee.training.optimization import learning_rate_factor

SILENCE = 0
"""Label of a frame in which no word is spoken."""
NO_FRAME = -100
"""Label of a frame that only pads the batch: not counted."""


@dataclass(frozen=True)
class SmallHuBERTSettings:
    """Size and training of a small HuBERT.

    Attributes:
        width: width S; a multiple of 32.
        layers: transformer layers.
        steps: optimiser steps.
        batch_size: clips in a batch.
        lr: peak learning rate (AdamW, a tenth of the steps to warm up, then linear decay).
        workers: processes that decode.
        seed: of weights and order.
    """

    width: int = 128
    layers: int = 2
    steps: int = 160
    batch_size: int = 32
    lr: float = 2e-3
    workers: int = 1
    seed: int = 0


def train_small_hubert(manifest: Manifest, split: str, folder: Path, settings: SmallHuBERTSettings) -> dict[str, float]:
    """Trains and saves a small HuBERT with its feature extractor.

    Args:
        manifest: rows with ``words``: word, start and end in seconds.
        split: the split to train on.
        folder: where the model goes; it appears whole or not at all.
        settings: see :class:`SmallHuBERTSettings`.

    Returns:
        Seconds, and the share of spoken frames whose word was right over the last tenth of the steps.

    Raises:
        ConfigError: the manifest's words have no times.
    """
    if "words" not in manifest.extra_columns:
        raise ConfigError(
            "this manifest has no column 'words' with each word's start and end; the scenes corpus has one"
        )
    rows = manifest.select(split)
    labels = {word: number for number, word in enumerate(_vocabulary(rows), start=1)}
    started = time.perf_counter()
    torch.manual_seed(settings.seed)
    encoder = SpeechEncoder(small_hubert_config(settings.width, settings.layers), HeadConfig(heads=4), width=1)
    classifier = nn.Linear(settings.width, len(labels) + 1)
    processor = SpeechImageProcessor.from_sources(None, None, image_size=8, text=False)
    right = _train(encoder, classifier, rows, labels, processor, settings)

    def save(temporary: Path) -> None:
        encoder.hubert.save_pretrained(temporary)
        processor.feature_extractor.save_pretrained(temporary)

    write_folder(folder, save)
    tail = right[-max(len(right) // 10, 1) :]
    return {"seconds": time.perf_counter() - started, "frames_right": sum(tail) / len(tail)}


def small_hubert_config(width: int, layers: int) -> HubertConfig:
    """HuBERT's architecture at a size for two processor cores.

    The first convolution is coarser than HuBERT's (1,600 steps a second in place of 3,200), because its steps are what
    costs; a frame still stands for 20 ms and sees no more than 25.
    """
    return HubertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
        conv_dim=[32, 64, width, width],
        conv_kernel=[20, 8, 4, 2],
        conv_stride=[10, 4, 4, 2],
        num_feat_extract_layers=4,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=4,
        do_stable_layer_norm=True,
        initializer_range=0.06,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
    )


def frame_labels(rows: list[Row], mask: Tensor, labels: dict[str, int], stride: int, field: int) -> Tensor:
    """The label of each frame: the word that is spoken at the frame's middle.

    Args:
        rows: B rows with ``words``.
        mask: [B, F] real frames.
        labels: word to number, from 1.
        stride: samples between two frames.
        field: samples that a frame sees.

    Returns:
        [B, F] int, ``SILENCE`` between words and ``NO_FRAME`` where the mask is False.
    """
    middles = (torch.arange(mask.shape[1]) * stride + field / 2) / SAMPLE_RATE
    result = torch.full(mask.shape, SILENCE)
    for index, row in enumerate(rows):
        for word in row.extra["words"]:
            result[index, (middles >= word["start"]) & (middles < word["end"])] = labels[_key(word["word"])]
    return result.masked_fill(~mask, NO_FRAME)


def _vocabulary(rows: Manifest) -> list[str]:
    return sorted({_key(word["word"]) for row in rows for word in row.extra["words"]})


def _key(word: str) -> str:
    return word.lower().strip(".,;:!?")


def _train(
    encoder: SpeechEncoder,
    classifier: nn.Linear,
    rows: Manifest,
    labels: dict[str, int],
    processor: SpeechImageProcessor,
    settings: SmallHuBERTSettings,
) -> list[float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder.to(device).train()
    classifier.to(device)
    # The pictures of the rows come along, prepared once at 8 pixels: one loader for all is worth that.
    loader = build_loader(
        rows,
        prepare_speech=processor.prepare_speech,
        prepare_image=processor.prepare_image,
        batch_size=settings.batch_size,
        seed=settings.seed,
        workers=settings.workers,
        cache_images=2**26,
    )
    trained = [*encoder.hubert.parameters(), *encoder.layer_mix.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01)
    convolutions = encoder.hubert.config
    stride, field = 1, 1
    for kernel, step in zip(convolutions.conv_kernel, convolutions.conv_stride, strict=True):
        field += (kernel - 1) * stride
        stride *= step
    right: list[float] = []
    schedule = OptimizerSettings(warmup_steps=settings.steps // 10)
    with progress_bar("small HuBERT from spoken words", settings.steps) as bar, attention_kernel(device, bf16=True):
        while len(right) < settings.steps:
            for batch in loader:
                factor = learning_rate_factor(len(right), settings.steps, schedule)
                for group in optimizer.param_groups:
                    group["lr"] = settings.lr * factor
                with torch.autocast(device, dtype=torch.bfloat16):
                    states, mask = encoder.hidden_states(batch.waveforms.to(device), batch.speech_mask.to(device))
                    scores = classifier(states)
                target = frame_labels([rows.rows[row] for row in batch.rows], mask.cpu(), labels, stride, field).to(
                    device
                )
                loss = functional.cross_entropy(scores.float().flatten(0, 1), target.flatten(), ignore_index=NO_FRAME)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                spoken = target > SILENCE
                right.append(float((scores.argmax(dim=-1) == target)[spoken].float().mean()))
                bar.advance()
                if len(right) == settings.steps:
                    break
    encoder.to("cpu").eval()
    return right
