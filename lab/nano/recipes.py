"""The recipes of the package's encoders: which there are, and from a YAML file to settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.nano.clip_nano import ClipNanoSettings, pretrain_clip_nano
from lab.nano.hubert_nano import HubertNanoSettings, pretrain_hubert_nano
from saysee.errors import ConfigError


@dataclass(frozen=True)
class Encoder:
    """What can be pre-trained.

    Attributes:
        settings: class of its settings.
        pretrain: from a folder and settings to the last figures.
    """

    settings: type[Any]
    pretrain: Callable[[Path, Any], dict[str, Any]]


ENCODERS = {
    "hubert": Encoder(HubertNanoSettings, pretrain_hubert_nano),
    "clip": Encoder(ClipNanoSettings, pretrain_clip_nano),
}


def load_settings(encoder: str, recipe: str | None, overrides: Sequence[str]) -> Any:
    """The settings of a pre-training.

    Args:
        encoder: one of ``ENCODERS``.
        recipe: a YAML file; None takes the package's own, by which the shipped encoder was made.
        overrides: dotted flags, such as ``["--loop.steps", "100"]``.

    Raises:
        ConfigError: the file cannot be read, a name is unknown or a value has the wrong type.
    """
    import yaml
    from jsonargparse import ArgumentError, ArgumentParser

    file = Path(recipe) if recipe is not None else Path(__file__).with_name(f"{encoder}.yaml")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"recipe {file}: {error.strerror or error}; leave it out for the package's own") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {file} is not a mapping of settings to values")
    parser = ArgumentParser(exit_on_error=False, prog=f"saysee pretrain {encoder}")
    parser.add_class_arguments(ENCODERS[encoder].settings, as_group=False)
    try:
        namespace = parser.parse_args(list(overrides), namespace=parser.parse_object(values))
        return ENCODERS[encoder].settings(**vars(parser.instantiate_classes(namespace)))
    except (ArgumentError, ConfigError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"recipe {file}: {' '.join(str(error).split())}") from error
