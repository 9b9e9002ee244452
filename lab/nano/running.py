"""The command line of ``python -m lab.nano.hubert`` and ``python -m lab.nano.clip``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from safetensors.torch import save_file

from lab.programs import run_program
from saysee.files import write_text
from saysee.model.pretrained.clip import CLIP
from saysee.model.pretrained.hubert import Hubert
from saysee.model.processor import ImagePreparation, SpeechPreparation


def run(
    settings: type[Any],
    defaults: Path,
    pretrain: Callable[[Path, Any], dict[str, Any]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Pre-trains an encoder by what the command line says, and prints the last metrics as JSON.

    Args:
        settings: class of the settings; each is a flag, such as ``--loop.steps 100``.
        defaults: YAML file of the settings by which the packaged encoder was made. ``--config FILE`` overrides it, and
            flags override both.
        pretrain: from a folder and settings to the last metrics.
        arguments: of the command line; None takes the process's own.

    Returns:
        The exit code.
    """
    name = f"lab.nano.{defaults.stem}"

    def action() -> None:
        options = parser(settings, defaults).parse_args(arguments)
        options = parser(settings, defaults).instantiate(options)
        to, chosen = options.to, {field: options[field] for field in settings.__dataclass_fields__}
        metrics = pretrain(to, settings(**chosen))
        print(json.dumps({"model": str(to / "model"), **metrics}))

    return run_program(name, action)


def parser(settings: type[Any], defaults: Path) -> ArgumentParser:
    """The parser of one encoder's settings."""
    made = ArgumentParser(
        prog=f"python -m lab.nano.{defaults.stem}",
        description=f"Pre-trains an encoder like {defaults.stem}-nano of the package.",
        default_config_files=[str(defaults)],
    )
    made.add_argument("--to", type=Path, required=True, help="folder of data, log, checkpoints and model")
    made.add_argument("--config", action="config")
    made.add_class_arguments(settings, as_group=False)
    return made


def save_encoder(encoder: Hubert | CLIP, prepares: SpeechPreparation | ImagePreparation, folder: Path) -> None:
    """Writes an encoder in fp16 and how its inputs are prepared, in the Hugging Face layout, for transformers too."""
    weights = {name: value.to("cpu", torch.float16).contiguous() for name, value in encoder.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    if isinstance(encoder, CLIP):
        kind, type_of_preparation = "CLIPModel", {"image_processor_type": "CLIPImageProcessor"}
    else:
        kind, type_of_preparation = "HubertModel", {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}
    # Of transformers, which would hide frames and skip layers in training.
    plain = {} if isinstance(encoder, CLIP) else {"apply_spec_augment": False, "layerdrop": 0.0}
    config = encoder.config.to_dict() | plain | {"architectures": [kind], "dtype": "float16"}
    values = asdict(prepares) | type_of_preparation
    for name, content in (("config.json", config), ("preprocessor_config.json", values)):
        write_text(folder / name, json.dumps(content, indent=2, sort_keys=True) + "\n")
