"""What a plan must know of encoders that may not be here yet: their configurations, never their weights."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import CLIPConfig, CLIPVisionConfig, HubertConfig

from saysee.errors import CheckpointError, ConfigError
from saysee.model.loading import read_config
from saysee.model.packaged import place_of
from saysee.settings.recipe import ModelSettings

_LAYER_NORM: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
_HUBERT_LARGE = _LAYER_NORM | {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
_HUBERT_XLARGE = _LAYER_NORM | {
    "hidden_size": 1280,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "intermediate_size": 5120,
}
KNOWN_HUBERTS: dict[str, dict[str, Any]] = {
    "facebook/hubert-base-ls960": {},  # what transformers takes for a HuBERT when nothing is said
    "facebook/hubert-large-ll60k": _HUBERT_LARGE,
    "facebook/hubert-large-ls960-ft": _HUBERT_LARGE,
    "facebook/hubert-xlarge-ll60k": _HUBERT_XLARGE,
    "facebook/hubert-xlarge-ls960-ft": _HUBERT_XLARGE,
}
"""Values of the HubertConfigs of checkpoints on the hub, as published (arXiv 2106.07447, table 1)."""


def _clip(width: int, layers: int, patch: int, text: int, text_layers: int = 12, side: int = 224) -> dict[str, Any]:
    """Values of a CLIPConfig whose attention heads are 64 wide (of the text: 64, of ViT-H's vision: 80)."""

    def tower(width: int, layers: int) -> dict[str, Any]:
        heads = 16 if width > 1024 else width // 64
        sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
        return sizes | {"intermediate_size": 4 * width}

    return {
        "vision_config": tower(width, layers) | {"patch_size": patch, "image_size": side},
        "text_config": tower(text, text_layers),
        "projection_dim": text,
    }


KNOWN_CLIPS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-base-patch32": _clip(768, 12, 32, 512),
    "openai/clip-vit-base-patch16": _clip(768, 12, 16, 512),
    "openai/clip-vit-large-patch14": _clip(1024, 24, 14, 768),
    "openai/clip-vit-large-patch14-336": _clip(1024, 24, 14, 768, side=336),
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": _clip(768, 12, 32, 512),
    "laion/CLIP-ViT-L-14-laion2B-s32B-b82K": _clip(1024, 24, 14, 768),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": _clip(1280, 32, 14, 1024, 24),
}
"""Values of the CLIPConfigs of checkpoints on the hub, as published (arXiv 2103.00020, table 20; laion's beside it)."""


def without_weights(settings: ModelSettings) -> ModelSettings:
    """A recipe's model with configurations in place of the encoders' names, so that it is built with random weights.

    Raises:
        ConfigError: a configuration is neither here nor known.
        CheckpointError: the package has no encoder of that name.
    """
    speech: Any = settings.speech
    if isinstance(speech, str):
        found = _find(speech, "model.speech", ("hubert",), "HuBERT", KNOWN_HUBERTS)
        speech = HubertConfig(**KNOWN_HUBERTS[speech]) if found is None else HubertConfig.from_pretrained(found[1])
    image: Any = settings.image
    if isinstance(image, str):
        found = _find(image, "model.image", ("clip", "clip_vision_model"), "CLIP", KNOWN_CLIPS)
        if found is None:
            image = CLIPConfig(**KNOWN_CLIPS[image])
        else:
            kind = CLIPVisionConfig if found[0] == "clip_vision_model" else CLIPConfig
            image = kind.from_pretrained(found[1])
    return replace(settings, speech=speech, image=image)


def _find(
    name: str, setting: str, kinds: tuple[str, ...], what: str, known: dict[str, dict[str, Any]]
) -> tuple[str, str] | None:
    """Kind and place of a configuration on this disk; None where it is not here but known."""
    place = place_of(name)
    mend = "a plan reads no more than config.json: put it into the hub's cache (hf download NAME config.json)"
    try:
        return read_config(place, kinds, what, mend, local_files_only=True), place
    except CheckpointError as error:
        if name in known:
            return None
        if Path(place).exists() or os.path.isabs(place) or place.startswith("."):
            raise ConfigError(f"{setting}: {error}") from error
        raise ConfigError(
            f"{setting}: the configuration of {what} {name} is not on this disk, and it is none of those known "
            f"({', '.join(known)}); {mend}"
        ) from error
