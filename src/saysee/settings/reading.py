"""Reading recipes: YAML files, dotted flags and presets to a checked :class:`Recipe`, and back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from saysee.errors import ConfigError
from saysee.files import write_text
from saysee.settings.recipe import DENOISING_PRESETS, Recipe

RECIPES = Path(__file__).parent / "recipes"

_RENAMED = {
    "model.head_layers": "head.layers",
    "model.head_heads": "head.heads",
    "model.head_feedforward": "head.feedforward",
    "model.head_dropout": "head.dropout",
    "model.normalize_hidden_states": "head.normalize_hidden_states",
    "model.speech_layers": "head.speech_layers",
}
"""Old names of settings, accepted in files and flags."""

_SECTIONS: dict[str, Any] = {name: kind for name, kind in get_type_hints(Recipe).items() if is_dataclass(kind)}


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies dotted overrides.

    Args:
        path: a YAML file of settings, or the name of a recipe of the package. What it does not set has the value of the
            recipe that it names as ``from``, if it names one, else its default. Relative paths in it, ``from`` too, are
            relative to the working directory.
        overrides: flags such as ``["--optimizer.lr", "3e-4", "--denoising.preset=off"]``; the last one wins.

    Raises ConfigError if the file cannot be read, a name is unknown, a value has the wrong type or is out of range, or
    two cannot be combined.
    """
    return resolve_recipe(_read_recipe(str(path)), overrides, where=f"recipe {path}")


def resolve_recipe(settings: Mapping[str, Any], overrides: Sequence[str] = (), where: str = "recipe") -> Recipe:
    """Turns plain settings (by section, as in a YAML file) and overrides into a recipe, as :func:`load_recipe` does.

    Error messages begin with ``where``.
    """
    from jsonargparse import ArgumentError

    sections = _sections(settings, where)
    flags = _take_preset(sections, overrides, where)
    parser = _parser()
    try:
        namespace = parser.parse_object(sections)
        if flags:  # parsing none takes as long as reading the sections
            namespace = parser.parse_args(flags, namespace=namespace)
        return Recipe(**vars(parser.instantiate_classes(namespace)))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{where}: {_reason(' '.join(str(error).split()))}") from error


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe as plain values, ready for YAML or JSON."""
    values = asdict(recipe)
    for name, kind in _SECTIONS.items():
        for derived in _derived(kind):
            del values[name][derived]
    return values


def flatten(settings: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested settings; the values of an encoder's configuration are one setting."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and not prefix.startswith("model."):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, old and new value of each setting that differs between two recipes as plain values."""
    before, now = dict(flatten(old)), dict(flatten(new))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            yield name, before.get(name), now.get(name)


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Writes every setting with its value, as YAML."""
    import yaml

    write_text(path, yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True))


def recipe_help() -> str:
    """Every setting with its type, default and description."""
    return str(_parser().format_help())


def read_yaml(file: Path, name: str, fix: str) -> dict[str, Any]:
    """The mapping that a YAML file holds; empty for an empty file.

    Raises ConfigError, which calls it ``name`` and advises ``fix``, if it cannot be read or holds no mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror or error}; {fix}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that is none
        raise ConfigError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict | None):
        raise ConfigError(f"{name} must be a mapping of names to values, such as 'data: {{manifest: ...}}'")
    return content or {}


def denoising_preset(name: object, where: str) -> dict[str, Any]:
    """The settings of a preset of denoising; ConfigError if there is none of this name."""
    preset = "off" if name is False else str(name)  # YAML 1.1 reads a bare off as false
    if preset not in DENOISING_PRESETS:
        raise ConfigError(f"{where}: denoising.preset is {preset!r}; give one of {', '.join(DENOISING_PRESETS)}")
    return dict(DENOISING_PRESETS[preset])


def _read_recipe(path: str, heirs: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a recipe and of those that it builds on; ``heirs`` build on it."""
    if path in heirs:
        raise ConfigError(f"recipe {path} builds on itself: {' from '.join((*heirs, path))}; remove one 'from'")
    file = RECIPES / f"{path}.yaml" if path in recipe_names() else Path(path)
    fix = f"give the path of a YAML file, or one of the package's recipes: {', '.join(recipe_names())}"
    own = read_yaml(file, f"recipe {path}", fix)
    base = own.pop("from", None)
    own = _sections(own, f"recipe {path}")
    if base is None:
        return own
    settings = _read_recipe(str(base), (*heirs, path))
    for name, value in own.items():
        starts_anew = name not in _SECTIONS or "preset" in value
        settings[name] = value if starts_anew else settings.get(name, {}) | value
    return settings


def _sections(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A copy of plain settings, with the names and values of older releases replaced."""
    sections: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in get_type_hints(Recipe):
            raise ConfigError(f"{where}: unknown setting {name!r}; a recipe has {', '.join(get_type_hints(Recipe))}")
        if name in _SECTIONS and not isinstance(value, Mapping | None):
            raise ConfigError(f"{where}: {name} is {value!r}; it is a section: give settings below it")
        sections[name] = dict(value or {}) if name in _SECTIONS else value
    for old, new in _RENAMED.items():
        old_section, old_name = old.split(".")
        if old_name in sections.get(old_section, {}):
            section, name = new.split(".")
            sections.setdefault(section, {})[name] = sections[old_section].pop(old_name)
    if sections.get("training", {}).pop("shard", False):
        raise ConfigError(f"{where}: training.shard (FSDP) is no longer supported; remove it")
    if sections.get("features", {}).get("keep") is False:
        sections["features"]["keep"] = "off"  # YAML 1.1 reads a bare off as false
    if sections.get("training", {}).get("best_by") == "recall":
        sections["training"]["best_by"] = "mean_R@1"
    return sections


def _take_preset(sections: dict[str, Any], overrides: Sequence[str], where: str) -> list[str]:
    """Replaces ``denoising.preset`` by its settings, and returns the other flags.

    A preset in a file is overridden by the settings beside it. A preset by flag replaces the file's own denoising
    settings.
    """
    flags: list[str] = []
    by_flag: str | None = None
    words = iter(overrides)
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--denoising.preset":
            by_flag = value if equals else next(words, "")
        else:
            flags.append(f"--{_RENAMED[name[2:]]}{equals}{value}" if name[2:] in _RENAMED else word)
    own = sections.get("denoising", {})
    preset = own.pop("preset", None)
    if by_flag is not None:
        sections["denoising"] = denoising_preset(by_flag, where)
    elif preset is not None:
        sections["denoising"] = denoising_preset(preset, where) | own
    return flags


@cache
def _parser() -> Any:
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the descriptions are below the fields
    parser = ArgumentParser(exit_on_error=False, prog="saysee train RECIPE", allow_abbrev=False)
    parser.add_class_arguments(Recipe, as_group=False, skip=set(_SECTIONS))
    for name, kind in _SECTIONS.items():
        parser.add_class_arguments(kind, name, skip=_derived(kind))
    return parser


def _derived(kind: Any) -> set[str]:
    return {item.name for item in fields(kind) if item.metadata.get("derived")}


def _reason(error: str) -> str:
    """jsonargparse's message, with the setting, its value and the choices in the words of a recipe."""
    if wrong := re.search(r'Parser key "(\w+)\.(\w+)".*(?:Got|Given) value: (.*)', error):
        section, name, value = wrong.groups()
        kind = get_type_hints(_SECTIONS[section])[name] if section in _SECTIONS else Any
        return f"{section}.{name} is {value!r}; give {_expected(kind)}"
    if unknown := re.search(r"Group '(\w+)' does not accept option '([\w.]+)'", error):
        section, name = unknown.groups()
        known = [item.name for item in fields(_SECTIONS[section]) if item.name not in _derived(_SECTIONS[section])]
        return f"unknown setting {section}.{name}; {section} has {', '.join(known)}"
    if unknown := re.search(r"unrecognized arguments: (.*)", error):
        return f"unknown setting {unknown[1]}; 'saysee train --settings' lists every setting"
    return error


def _expected(kind: Any) -> str:
    """The values of a type, in words."""
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) is Union:
        return " or ".join(_expected(member) for member in get_args(kind))
    if get_origin(kind) is list:
        return "a list of numbers"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    return names.get(kind, "a mapping of names to values")
