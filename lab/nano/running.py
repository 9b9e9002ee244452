"""The command line of ``python -m lab.nano.hubert`` and ``python -m lab.nano.clip``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from lab.programs import run_program


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
