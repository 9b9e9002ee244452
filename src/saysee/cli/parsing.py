"""From the words of a command line to the arguments of a typed function.

Flags, types and help come from the signature and the docstring of a verb's function. A parameter before the ``*`` is a
positional argument, one after it a flag: ``batch_size`` is ``--batch-size``, ``k`` is ``-k``, ``for_`` is ``--for``.
The type says which values it takes:

- ``bool``: none.
- ``float | bool``: a number, or none for True.
- ``Sequence[X]``: one, and the flag may be repeated; a positional argument takes any number.
- ``tuple[X, ...]``: all words up to the next flag.

Two parameters are not flags: ``overrides`` collects the flags that the function does not have (settings of a recipe),
and ``command`` is the command line itself.
"""

from __future__ import annotations

import argparse
import collections.abc
import inspect
import os
import re
import shlex
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser

from saysee.cli.printing import did_you_mean
from saysee.errors import ConfigError

_METAVARS = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}


class VerbParser(ArgumentParser):
    """The parser of one verb.

    Args:
        name: the verb, such as ``data scenes``.
        function: the function that runs it.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        doc = docstring_parser.parse(function.__doc__ or "")
        super().__init__(prog=f"saysee {name}", description=doc.description, formatter_class=_HelpFormatter)
        self._parameters = inspect.signature(function).parameters
        kinds, texts = get_type_hints(function), {param.arg_name: param.description for param in doc.params}
        for parameter in self._parameters.values():
            if parameter.name not in ("overrides", "command"):
                flag, options = _argument(parameter, kinds[parameter.name])
                self.add_argument(flag, help=texts[parameter.name], **options)
        for flag, text in (("json", "print the result as JSON"), ("debug", "show the traceback of an error")):
            if flag not in self._parameters:
                self.add_argument(f"--{flag}", action="store_true", help=text)
        self.usage = " ".join([self.prog, "[options]", *_usages(self._actions)])

    def parse_words(self, words: Sequence[str]) -> tuple[dict[str, Any], bool] | None:
        """The arguments of the function and whether ``--json`` is given; None if help is asked for, which is printed.

        Raises:
            ConfigError: a flag is unknown, or a value is missing or of the wrong type.
        """
        flags: list[str] = []
        positional: list[str] = []
        overrides: list[str] = []
        left = deque(words)
        while left:
            word = left.popleft()
            flag, equals, _ = word.partition("=")
            action = self._option_string_actions.get(flag)
            if word == "--":
                positional += left
                left.clear()
            elif word in ("-h", "--help"):
                self.print_help()
                return None
            elif action is not None:
                values = [] if equals else self._values(left, action.nargs)
                flags += [f"{word}={value}" for value in values] or [word]  # argparse takes no such value for a flag
            elif not word.startswith("-") or word == "-" or os.path.lexists(word):
                positional.append(word)
            elif word[:2] in self._option_string_actions:  # -k5
                flags.append(word)
            elif "overrides" in self._parameters and word.startswith("--"):
                overrides.append(word if equals else "=".join([word, *self._values(left, None)]))
            else:
                self.error(f"unknown flag {flag!r}{did_you_mean(flag, self._option_string_actions)}")
        parsed: dict[str, Any] = self.parse_args([*flags, *(["--", *positional] if positional else [])]).as_dict()
        parsed |= {"overrides": tuple(overrides), "command": shlex.join([*self.prog.split(), *words])}
        return {name: parsed[name] for name in self._parameters}, parsed["json"]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises what is wrong as one line, where argparse prints the usage and exits.

        Raises:
            ConfigError: always.
        """
        if wrong := re.match(r'Parser key "(\w+)":.*(?:Got|Given) value: (.*)', message, re.DOTALL):
            action = next(action for action in self._actions if action.dest == wrong[1])
            message = f"{_name(action)} is {wrong[2]!r}; give {_expected(action)}"
        elif missing := re.match(r"the following arguments are required: (.*)", message):
            names = missing[1].split(", ")
            message = "give " + " and ".join(_name(action) for action in self._actions if action.dest in names)
        raise ConfigError(f"{' '.join(message.split())}; see '{self.prog} --help'") from ex

    def _values(self, left: deque[str], nargs: int | str | None) -> list[str]:
        """Takes the values of a flag off the words behind it. A value may begin with a dash, but not be a flag."""
        most = 0 if nargs == 0 else len(left) if nargs == "+" else 1
        values: list[str] = []
        while left and len(values) < most and not self._is_flag(left[0]):
            values.append(left.popleft())
        return values

    def _is_flag(self, word: str) -> bool:
        return word.startswith("--") or word.partition("=")[0] in self._option_string_actions


def _argument(parameter: inspect.Parameter, kind: Any) -> tuple[str, dict[str, Any]]:
    """Name and options of ``add_argument`` for a parameter of a type."""
    is_flag, has_default = parameter.kind is parameter.KEYWORD_ONLY, parameter.default is not parameter.empty
    members = [member for member in get_args(kind) if member is not NoneType]
    if get_origin(kind) is not Literal and len(members) == 1 and NoneType in get_args(kind):
        kind = members[0]  # X | None would read the text "null" as None
    options: dict[str, Any] = {}
    if has_default:
        options["default"] = [] if parameter.default == () else parameter.default  # argparse appends to it
    if get_origin(kind) is collections.abc.Sequence:
        kind = members[0]
        options |= {"action": "extend", "nargs": 1} if is_flag else {"nargs": "*" if has_default else "+"}
    elif get_origin(kind) is tuple:
        kind = members[0]
        options |= {"action": "extend", "nargs": "+"}
    elif kind == float | bool:
        options |= {"nargs": "?", "const": True}
    elif has_default and not is_flag:
        options |= {"nargs": "?"}
    options |= {"action": "store_true"} if kind is bool else {"type": kind}
    if not is_flag:
        return parameter.name, options | {"metavar": parameter.name.upper()}
    if kind is not bool and get_origin(kind) is not Literal:
        options |= {"metavar": _METAVARS.get(kind, "NUMBER")}
    if not has_default:
        options |= {"required": True}
    words = parameter.name.rstrip("_").replace("_", "-")
    return f"-{words}" if len(words) == 1 else f"--{words}", options | {"dest": parameter.name}


def _usages(actions: Iterable[argparse.Action]) -> Iterable[str]:
    """How the positional arguments and the required flags are given."""
    for action in actions:
        if not action.option_strings:
            many = " ..." if action.nargs in ("*", "+") else ""
            yield f"[{action.metavar}{many}]" if action.nargs in ("?", "*") else f"{action.metavar}{many}"
        elif action.required:
            yield f"{action.option_strings[0]} {action.metavar}"


def _name(action: argparse.Action) -> str:
    return action.option_strings[0] if action.option_strings else str(action.metavar)


def _expected(action: argparse.Action) -> str:
    kind = getattr(action, "_typehint", None)
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    return "a whole number" if kind is int else "a number"


class _HelpFormatter(argparse.HelpFormatter):
    """Shows default values, and keeps the paragraphs of a docstring."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(fill(paragraph, width, indent) for paragraph in text.split("\n\n"))

    def _expand_help(self, action: argparse.Action) -> str:
        shown = action.option_strings and action.nargs != 0 and isinstance(action.default, int | float | str | Path)
        return f"{action.help} (default: {action.default})" if shown else action.help or ""
