"""clip-nano: a small CLIP, pre-trained on varied drawn scenes and their written captions.

    python -m lab.nano.clip --to runs/clip-nano

CLIP's loss (arXiv 2103.00020) on images and captions. In addition linear layers, which are discarded at the end,
predict the content of each patch: from the features of the first transformer layer which of its pixels an object
covers, from the last ones the object's shape, color, size and fill, its place, and its neighbors. Without them so small
a vision transformer spends most of its steps on learning to see. ``docs/nano.md`` reports what each part is worth.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from lab.nano.images import LABELS, SURROUNDINGS, ImagePool
from lab.nano.loop import LoopSettings, check_same_run, run_steps
from lab.nano.running import run, save_encoder
from lab.nano.words import MAX_WORDS, word_tokenizer
from saysee.errors import ConfigError
from saysee.files import write_folder
from saysee.model.pretrained.clip import CLIP
from saysee.model.pretrained.configuration import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from saysee.model.processor import SpeechImageProcessor
from saysee.tasks.contrastive import info_nce

MAX_LOGIT_SCALE = 100.0
"""The learned temperature never falls below 1/100, as in CLIP (arXiv 2103.00020, section 2.5)."""

HEAD_WIDTH = 64
"""Width of an attention head, as in CLIP; half of it was a sixth slower and no better."""

_ARRAYS = ("pixels", "labels", "silhouettes", "surroundings")
"""Arrays of a pool that are trained on, beside its captions."""


@dataclass(frozen=True)
class ClipNanoSettings:
    """Size and pre-training of clip-nano.

    Attributes:
        width: width V of the vision tower; a multiple of 32 that its attention heads divide.
        layers: its transformer layers.
        text_width: width of the text tower; like ``width``.
        text_layers: its transformer layers.
        feed_forward: width of the feed-forward layers of both towers.
        projection: D, width of the joint space.
        image_size: side of the image in pixels.
        patch_size: side of a patch in pixels.
        scenes: number of scenes that are drawn to train on.
        held_out: number of further scenes that are drawn for the learning curve.
        patch_weight: weight of the loss on patches, relative to CLIP's loss.
        silhouette_weight: weight of the pixels that an object covers, within the loss on patches.
        surroundings_weight: weight of the object's place and neighbors, within the loss on patches.
        seeing_steps: steps at the start that train on the loss on patches only.
        seeing_batch: images in a batch of these steps.
        loop: see :class:`lab.nano.loop.LoopSettings`.
    """

    width: int = 192
    layers: int = 6
    text_width: int = 192
    text_layers: int = 4
    feed_forward: int = 512
    projection: int = 256
    image_size: int = 64
    patch_size: int = 8
    scenes: int = 320_000
    held_out: int = 1_000
    patch_weight: float = 0.5
    silhouette_weight: float = 4.0
    surroundings_weight: float = 2.0
    seeing_steps: int = 1500
    seeing_batch: int = 512
    loop: LoopSettings = field(
        default_factory=lambda: LoopSettings(
            steps=10_500, batch_size=2048, lr=1.5e-3, warmup_steps=500, evaluate_every=500
        )
    )

    def __post_init__(self) -> None:
        """Raises ConfigError for a size that no network can have."""
        for name in ("width", "text_width"):
            width = getattr(self, name)
            if width < 32 or width % 32 or width % _heads(width):
                raise ConfigError(
                    f"{name} is {width}; it must be a multiple of 32, and of its {_heads(width)} attention heads (one "
                    f"for each {HEAD_WIDTH} channels)"
                )
        counts = ("layers", "text_layers", "feed_forward", "projection", "image_size", "patch_size")
        for name in (*counts, "held_out", "seeing_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.image_size % self.patch_size:
            raise ConfigError(f"patch_size is {self.patch_size}; it must divide image_size, {self.image_size}")
        if self.scenes < 2:
            raise ConfigError(f"scenes is {self.scenes}; it must be at least 2: contrastive learning compares scenes")


def pretrain_clip_nano(folder: Path, settings: ClipNanoSettings) -> dict[str, Any]:
    """Pre-trains clip-nano, and saves it with its tokenizer and image processor as ``folder/model``.

    Args:
        folder: of the drawn scenes, the log, the checkpoints and the model; an interrupted run is resumed.
        settings: see :class:`ClipNanoSettings`.

    Returns:
        The last metrics of the log.

    Raises:
        SaySeeError: as :func:`lab.nano.loop.run_steps` does.
    """
    whole = asdict(settings)
    check_same_run(folder, settings.loop, whole)
    grid = settings.image_size // settings.patch_size
    pool = ImagePool(folder / "scenes", settings.scenes, settings.image_size, grid, settings.loop.seed)
    held_out = ImagePool(folder / "held-out", settings.held_out, settings.image_size, grid, settings.loop.seed + 1)
    torch.manual_seed(settings.loop.seed)
    tokenizer = word_tokenizer(pool.words)
    processor = SpeechImageProcessor.from_sources(None, None, settings.image_size, text=False).image_processor
    training = _Training(settings, tokenizer, pool, held_out, processor)
    metrics = run_steps("clip-nano", folder, training.parts, settings.loop, training.loss_of, training.evaluate, whole)

    def save(temporary: Path) -> None:
        save_encoder(training.clip, processor, temporary)
        tokenizer.save_pretrained(temporary)

    write_folder(folder / "model", save)
    return metrics


def clip_nano_config(settings: ClipNanoSettings, tokenizer: PreTrainedTokenizerFast) -> CLIPConfig:
    """CLIP's architecture at the size of the settings.

    The activation is the plain GELU: CLIP's quick GELU takes three passes over memory on a CPU.
    """
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.text_width,
        intermediate_size=settings.feed_forward,
        num_hidden_layers=settings.text_layers,
        num_attention_heads=_heads(settings.text_width),
        max_position_embeddings=MAX_WORDS,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=settings.width,
        intermediate_size=settings.feed_forward,
        num_hidden_layers=settings.layers,
        num_attention_heads=_heads(settings.width),
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        hidden_act="gelu",
    )
    return CLIPConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=settings.projection,
        trained_on="drawn scenes of colored shapes, not photographs",  # shown by `saysee index` and the page
    )


def _heads(width: int) -> int:
    return max(1, width // HEAD_WIDTH)


class _Training:
    """The parts that are trained, and their data."""

    def __init__(
        self,
        settings: ClipNanoSettings,
        tokenizer: PreTrainedTokenizerFast,
        pool: ImagePool,
        held_out: ImagePool,
        processor: Any,
    ) -> None:
        self.settings, self.pool, self.held_out = settings, pool, held_out
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.clip = CLIP(clip_nano_config(settings, tokenizer))
        self.clip.vision_model.embeddings.position_embedding.weight.data[1:] = _places(
            settings.image_size // settings.patch_size, settings.width
        )
        self.clip.logit_scale.data.fill_(math.log(1 / 0.07))  # CLIP's own start
        self.parts = nn.ModuleDict(
            {
                "clip": self.clip,
                "label": nn.Linear(settings.width, sum(len(values) + 1 for values in LABELS.values())),
                "silhouette": nn.Linear(settings.width, settings.patch_size**2),
                "surroundings": nn.Linear(settings.width, len(SURROUNDINGS)),
            }
        ).to(self.device)
        self.tokens, self.held_out_tokens = pool.tokens(tokenizer), held_out.tokens(tokenizer)
        self.held_out_pixels = torch.from_numpy(held_out.pixels)
        self.mean = torch.tensor(processor.image_mean, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(processor.image_std, device=self.device).view(1, 3, 1, 1)

    def loss_of(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """CLIP's loss and the loss on patches, on the batch of this step."""
        rng = np.random.default_rng((self.settings.loop.seed, step))
        noise = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        seeing = step < self.settings.seeing_steps
        size = self.settings.seeing_batch if seeing else self.settings.loop.batch_size
        numbers = self.pool.draw(rng, size)
        chosen = torch.from_numpy(numbers)
        if self._kept["pixels"].device.type != "cpu":
            chosen = self._moved(chosen)
        pixels = self._normalized(augmented(_pixels(self._rows("pixels", chosen)), noise))
        states = self.clip.vision_model(pixels)
        patch_loss, metrics = self._patch_loss(states[1][:, 1:], states[-1][:, 1:], chosen)
        if seeing:
            return patch_loss, metrics
        ids = self._moved(self.tokens.drawn(numbers, rng))
        image = self.clip.image_vectors(states[-1])
        # The parameter itself is bounded: a clamp behind it would stop its gradient, and with it the way back.
        with torch.no_grad():
            self.clip.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
        scale = self.clip.logit_scale.exp()
        contrast = info_nce(text_vectors(self.clip, ids), image, scale, torch.arange(len(chosen), device=self.device))
        metrics |= {"contrastive": contrast.detach(), "scale": scale.detach()}
        return contrast + self.settings.patch_weight * patch_loss, metrics

    def evaluate(self) -> dict[str, float]:
        """R@1 of the held-out scenes, one caption each, in both directions, in percent."""
        images, texts = [], []
        for start in range(0, len(self.held_out_pixels), 250):
            pixels = _pixels(self.held_out_pixels[start : start + 250].to(self.device))
            images.append(self.clip.encode_image(self._normalized(pixels))[0])
            texts.append(text_vectors(self.clip, self.held_out_tokens.firsts(start, start + 250)))
        image, text = (functional.normalize(torch.cat(each), dim=-1) for each in (images, texts))
        scores = text @ image.T
        own = scores.diagonal()
        return {
            "text_to_image_R@1": 100 * float(((scores >= own[:, None]).sum(dim=1) == 1).float().mean()),
            "image_to_text_R@1": 100 * float(((scores >= own[None, :]).sum(dim=0) == 1).float().mean()),
        }

    def _normalized(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std

    @cached_property
    def _kept(self) -> dict[str, Tensor]:
        """The pool's arrays: on the device if they take at most half of its free memory."""
        kept = {name: torch.from_numpy(getattr(self.pool, name)) for name in _ARRAYS}
        if self.device == "cuda" and 2 * sum(array.nbytes for array in kept.values()) <= torch.cuda.mem_get_info()[0]:
            kept = {name: array.to(self.device) for name, array in kept.items()}
        return kept

    def _moved(self, tensor: Tensor) -> Tensor:
        """On the device, without waiting for its current work."""
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device == "cuda" else tensor

    def _rows(self, name: str, chosen: Tensor) -> Tensor:
        """Rows of the chosen images of one of the pool's arrays, on the device."""
        rows = self._kept[name][chosen]
        return rows if rows.device.type == self.device else self._moved(rows)

    def _patch_loss(self, first: Tensor, last: Tensor, chosen: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss on the patches of the chosen images, and the share of object patches that are classified right.

        Label 0 of the shape means that there is no object. Patches with an object are averaged apart from the others,
        and so are patches that an outline crosses: the others are many, and easy.

        Args:
            first: [B, P, V] features after the first transformer layer.
            last: [B, P, V] features after the last.
            chosen: [B] int, numbers of the images.
        """
        labels = self._rows("labels", chosen).long()
        scores = self.parts["label"](last).float().split([len(values) + 1 for values in LABELS.values()], dim=-1)
        has_object = labels[:, 0] > 0
        loss = _cross_entropy(scores[0], labels[:, 0], ~has_object)
        right = {}
        for number, name in enumerate(LABELS):
            guess, true = scores[number], labels[:, number]
            loss = loss + _cross_entropy(guess, true, has_object)
            right[f"{name}s_right"] = _mean((guess.detach().argmax(dim=-1) == true).float(), has_object)
        target = _bits(self._rows("silhouettes", chosen), self.settings.patch_size**2)
        share = target.mean(dim=-1)
        crossed = (share > 0) & (share < 1)
        each = functional.binary_cross_entropy_with_logits(
            self.parts["silhouette"](first).float(), target, reduction="none"
        ).mean(dim=-1)
        silhouette = _mean(each, crossed) + _mean(each, ~crossed)
        holds = _bits(self._rows("surroundings", chosen), len(SURROUNDINGS)) > 0
        each = functional.binary_cross_entropy_with_logits(
            self.parts["surroundings"](last).float(), holds.float(), reduction="none"
        )
        # There are thirty times as many that do not hold, and they are easy.
        around = _mean(each, holds) + _mean(each, has_object[..., None] & ~holds)
        metrics = {"labels": loss.detach(), "silhouettes": silhouette.detach(), "surroundings": around.detach()}
        loss = loss + self.settings.silhouette_weight * silhouette + self.settings.surroundings_weight * around
        return loss, metrics | right


def text_vectors(clip: CLIP, ids: Tensor) -> Tensor:
    """[B, D] vectors, not normalized, of captions [B, N] int that are padded after the end mark."""
    return clip.encode_text(ids.to(clip.logit_scale.device))


def _pixels(pixels: Tensor) -> Tensor:
    """[B, H, W, 3] bytes as [B, 3, H, W] between 0 and 1."""
    return pixels.permute(0, 3, 1, 2).float() / 255


def _bits(packed: Tensor, count: int) -> Tensor:
    """[..., count] float of [..., bytes]: what ``np.packbits`` packed."""
    places = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> places) & 1).flatten(-2)[..., :count].float()


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean of the values there, 0 if there are none. Indexing would make a GPU wait for their number."""
    return (values * where).sum() / where.sum().clamp_min(1)


def _cross_entropy(scores: Tensor, labels: Tensor, where: Tensor) -> Tensor:
    """Mean over the patches of ``where`` [B, P], of scores [B, P, C] and labels [B, P]."""
    each = functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none")
    return _mean(each, where.flatten())


def _places(grid: int, width: int) -> Tensor:
    """Initial values of the learned position embeddings: sines and cosines of row and column, [grid * grid, width].

    From CLIP's own start, small random values, places were not learned even when all else was: patches of a small
    vision transformer have much larger features.
    """
    frequencies = 100.0 ** -torch.linspace(0, 1, width // 4)
    angles = torch.arange(grid)[:, None] * frequencies
    along = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = along[:, None].expand(-1, grid, -1), along[None].expand(grid, -1, -1)
    return 0.3 * torch.cat([rows, columns], dim=2).reshape(grid * grid, -1)


def augmented(pixels: Tensor, noise: torch.Generator) -> Tensor:
    """Images [B, 3, H, W] between 0 and 1 with a little other brightness, contrast, tint and grain.

    ``noise`` is a generator on the device of the images.
    """
    uniform = partial(torch.rand, generator=noise, device=pixels.device)
    count = len(pixels)
    gain = 1 + 0.2 * (uniform(count, 1, 1, 1) - 0.5)
    tint = 1 + 0.1 * (uniform(count, 3, 1, 1) - 0.5)
    lift = 0.1 * (uniform(count, 1, 1, 1) - 0.5)
    grain = 0.03 * uniform(count, 1, 1, 1) * torch.randn(pixels.shape, generator=noise, device=pixels.device)
    return (pixels * gain * tint + lift + grain).clamp(0, 1)


if __name__ == "__main__":
    sys.exit(run(ClipNanoSettings, Path(__file__).with_suffix(".yaml"), pretrain_clip_nano))
