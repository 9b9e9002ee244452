"""The grid of an ablation: rows, each a name and settings that override the recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saysee.errors import ConfigError
from saysee.settings.reading import RECIPES, denoising_preset, read_yaml

DEFAULT_GRID = RECIPES / "ablation" / "default.yaml"
BASELINE = "baseline"
"""A row of this name is the baseline; if there is none, the first row is."""
ROW_SECTIONS = ("contrastive", "denoising", "fusion", "optimizer")
"""What a row may set. Other settings would change the start, the data or the budget."""


def read_grid(path: Path) -> dict[str, dict[str, Any]]:
    """Reads a grid: dotted settings by row, the baseline first.

    Args:
        path: a YAML file that maps names to settings, nested or dotted. ``denoising.preset`` stands for the settings of
            that preset; the row's own settings override them.

    Raises:
        ConfigError: the file cannot be read, or is no such mapping.
    """
    content = read_yaml(path, f"grid {path}", "give the path of a YAML file of rows")
    if len(content) < 2:
        raise ConfigError(f"grid {path} has {len(content)} rows; give at least two, such as 'a: {{}}'")
    slugs: dict[str, str] = {}
    grid: dict[str, dict[str, Any]] = {}
    for name, row in content.items():
        where = f"grid {path}: row {name!r}"
        if not isinstance(name, str) or "," in name or not slug(name):
            raise ConfigError(f"{where} must have a name of letters and digits, without commas")
        other = slugs.setdefault(slug(name), name)
        if other != name:
            raise ConfigError(f"{where} and row {other!r} would share a folder; rename one")
        if not isinstance(row, Mapping | None):
            raise ConfigError(f"{where} is {row!r}; give settings, or {{}} for the recipe as it is")
        grid[name] = _row_settings(row or {}, where)
    first = BASELINE if BASELINE in grid else next(iter(grid))
    return {first: grid.pop(first), **grid}


def choose_rows(grid: Mapping[str, Any], rows: Sequence[str] | None, file: Path) -> list[str]:
    """The chosen rows and the baseline, in the order of the grid; None chooses all.

    Raises:
        ConfigError: no such row.
    """
    baseline, *others = grid
    for name in rows or ():
        if name not in grid:
            raise ConfigError(f"--rows: {name!r} is no row of {file}; give some of: {', '.join(grid)}")
    return [baseline, *(name for name in others if rows is None or name in rows)]


def check_overrides(grid: Mapping[str, Mapping[str, Any]], overrides: Sequence[str], file: Path) -> None:
    """Checks that no flag sets what a row sets too: it would have no effect on that row.

    Raises:
        ConfigError: a flag does.
    """
    for word in overrides:
        flag = word.removeprefix("--").partition("=")[0]
        for row, settings in grid.items():
            if word.startswith("--") and (flag in settings or flag == "denoising.preset"):
                raise ConfigError(f"--{flag} is set by row {row!r} of {file}; to change it, give another --grid")


def _row_settings(row: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Dotted settings of a row, with those of its preset: a row overrides settings, not whole sections."""
    settings = dict(flatten(row))
    for dotted in settings:
        section, _, name = dotted.partition(".")
        if section not in ROW_SECTIONS or not name or dotted == "optimizer.accumulate":
            raise ConfigError(
                f"{where} sets {dotted}; rows share start, data and budget, so a row may only set "
                f"{', '.join(ROW_SECTIONS)} (not optimizer.accumulate); set it in the recipe, for every row"
            )
    preset = settings.pop("denoising.preset", None)
    if preset is None:
        return settings
    return {f"denoising.{name}": value for name, value in denoising_preset(preset, where).items()} | settings


def flatten(settings: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested settings."""
    for key, value in settings.items():
        # The values of an encoder's configuration are one setting.
        if isinstance(value, Mapping) and not prefix.startswith("model."):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def slug(name: str) -> str:
    """The name of a row as part of a folder name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
