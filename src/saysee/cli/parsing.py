"""From the words of a command line to the arguments of a typed function.

jsonargparse derives types, defaults and help from the signature and the docstring of a verb's function, and checks the
values; this module assigns words to parameters. Those before the ``*`` of the signature are positional, those after it
flags: ``batch_size`` is ``--batch-size``, ``k`` is ``-k``, ``for_`` is ``--for``. A flag takes one value, except for

- ``bool``: none.
- ``float | bool``: one or, for True, none.
- ``Sequence[X]``: one, and the flag may be repeated. A positional argument of this type takes all words that are left.
- ``tuple[X, ...]``: all words up to the next flag.
- ``Mapping[str, str]``: one NAME=VALUE, and the flag may be repeated.

Two parameters are not flags: ``overrides`` collects the flags that the function does not have (settings of a recipe),
and ``command`` is the command line itself.
"""

from __future__ import annotations

import collections.abc
import inspect
import os
import re
import shlex
import shutil
import sys
from collections import deque
from collections.abc import Callable, Sequence
from inspect import Parameter
from pathlib import Path
from textwrap import fill
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from saysee.errors import ConfigError, did_you_mean

_COMMON = {"json": "print the result as JSON", "debug": "show the traceback of an error"}
_METAVARS = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}
_INDENT = " " * 24


class Verb:
    """A verb of the command line, such as ``data scenes``, and the function that runs it."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self._function = f"saysee {name}", function
        self._parameters = inspect.signature(function).parameters
        hidden = {"overrides", "command"} & self._parameters.keys()
        # Resolved here: for annotations that are text, jsonargparse imports all that is under TYPE_CHECKING.
        function.__annotations__ = get_type_hints(function)
        self._parser = ArgumentParser(exit_on_error=False)
        self._parser.add_function_arguments(function, as_group=False, skip={*hidden})
        texts = _COMMON | {each.dest: (each.help or "").replace("``", "").rstrip(".") for each in self._parser._actions}
        kinds = dict.fromkeys(_COMMON, bool) | function.__annotations__
        common = {name: Parameter(name, Parameter.KEYWORD_ONLY, default=False) for name in _COMMON}
        arguments = [
            _Argument(parameter, kinds[name], texts[name])
            for name, parameter in (dict(self._parameters) | common).items()
            if name not in hidden
        ]
        self._positional = [argument for argument in arguments if argument.flag is None]
        self._flags = {argument.flag: argument for argument in arguments if argument.flag is not None}

    def parse(self, words: Sequence[str]) -> tuple[dict[str, Any], bool]:
        """The arguments of the function, and whether ``--json`` is given.

        Raises ConfigError if a flag is unknown, or a value is missing or of the wrong type.
        """
        values: dict[str, Any] = {}
        overrides: list[str] = []
        positional: deque[str] = deque()
        left = deque(words)
        while left:
            word = left.popleft()
            flag, equals, value = word.partition("=")
            if flag not in self._flags and word[:2] in self._flags:
                flag, equals, value = word[:2], "=", word[2:]  # -k5
            if flag in self._flags:
                most = self._flags[flag].most
                self._assign(values, self._flags[flag], [value] if equals else self._take(left, most))
            elif word == "--":
                positional += left
                left.clear()
            elif not word.startswith("-") or word == "-" or os.path.lexists(word):
                positional.append(word)
            elif "overrides" in self._parameters and word.startswith("--"):
                overrides.append(word if equals else "=".join([word, *self._take(left, 1)]))
            else:
                self._fail(f"unknown flag {flag!r}{did_you_mean(flag, self._flags)}")
        for argument in self._positional:
            if positional:
                count = min(argument.most, len(positional))
                self._assign(values, argument, [positional.popleft() for _ in range(count)])
        if positional:
            self._fail(f"unexpected argument {positional[0]!r}")
        arguments = self._check({name: value for name, value in values.items() if name in self._parameters})
        arguments |= {"overrides": tuple(overrides), "command": shlex.join([*self.name.split(), *words])}
        return {name: arguments[name] for name in self._parameters}, values.get("json", False)

    def help(self) -> str:
        """What the verb does, and its arguments."""
        width = min(shutil.get_terminal_size().columns, 100)
        paragraphs = (inspect.getdoc(self._function) or "").replace("``", "").partition("\n\nArgs:")[0].split("\n\n")
        arguments = [*self._positional, *self._flags.values()]
        needed = [each.usage for each in arguments if each.required]
        optional = [f"[{each.usage}]" for each in self._positional if not each.required]
        rows = []
        for each in arguments:
            text = fill(each.help, width, initial_indent=_INDENT, subsequent_indent=_INDENT)
            name = f"  {each.usage:<21} "
            rows.append(name + text[len(name) :] if len(name) == len(_INDENT) else f"{name.rstrip()}\n{text}")
        usage = " ".join(["usage:", self.name, "[options]", *needed, *optional])
        return "\n\n".join([usage, *(fill(paragraph, width) for paragraph in paragraphs), "\n".join(rows)])

    def _take(self, left: deque[str], most: int) -> list[str]:
        """Takes the values of a flag off the words after it. A value may begin with a dash, but not be a flag."""
        values: list[str] = []
        while left and len(values) < most and not (left[0][:2] == "--" or left[0].partition("=")[0] in self._flags):
            values.append(left.popleft())
        return values

    def _assign(self, values: dict[str, Any], argument: _Argument, given: list[str]) -> None:
        if not argument.least <= len(given) <= argument.most:
            self._fail(f"{argument.shown} {'needs a value' if argument.most else 'takes no value'}")
        if argument.is_list:
            values[argument.name] = [*values.get(argument.name, []), *given]
        else:
            values[argument.name] = given[0] if given else True

    def _check(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values in their types, with the defaults of the others."""
        arguments = {argument.name: argument for argument in [*self._positional, *self._flags.values()]}
        missing = [each.usage for each in arguments.values() if each.required and each.name not in values]
        if missing:
            self._fail(f"give {' and '.join(missing)}")
        for argument in arguments.values():
            if argument.is_mapping and argument.name in values:
                words = {word: word.partition("=") for word in values[argument.name]}
                if wrong := next((word for word, (name, _, value) in words.items() if not name or not value), None):
                    self._fail(f"{argument.shown} is {wrong!r}; give {argument.expected}")
                values[argument.name] = {name: value for name, _, value in words.values()}
        try:
            checked: dict[str, Any] = self._parser.parse_object(dict(values)).as_dict()
        except ArgumentError as error:
            wrong = re.match(r'Parser key "(\w+)"', str(error))
            if wrong is None:
                self._fail(str(error))
            argument = arguments[wrong[1]]
            self._fail(f"{argument.shown} is {values[wrong[1]]!r}; give {argument.expected}")
        for argument in arguments.values():
            if argument.name in values and checked.get(argument.name, "") is None:  # jsonargparse takes "null" for None
                if argument.kind not in (str, Path):
                    self._fail(f"{argument.shown} is {values[argument.name]!r}; give {argument.expected}")
                checked[argument.name] = argument.kind(values[argument.name])
        return checked

    def _fail(self, message: str) -> NoReturn:
        raise ConfigError(f"{' '.join(message.split())}; see '{self.name} --help'")


class _Argument:
    """A parameter as the command line has it."""

    def __init__(self, parameter: Parameter, kind: Any, text: str) -> None:
        self.name, self.help, default = parameter.name, text, parameter.default
        words = self.name.rstrip("_").replace("_", "-")
        self.flag = None  # such as --batch-size; None for a positional argument
        if parameter.kind is Parameter.KEYWORD_ONLY:
            self.flag = f"-{words}" if len(words) == 1 else f"--{words}"
        self.shown = self.flag or words.upper()  # the flag, or the name of a positional argument
        self.required = default is Parameter.empty
        if isinstance(default, int | float | str | Path) and not isinstance(default, bool):
            self.help += f" (default: {default})"
        kind = _first(kind)
        self.is_mapping = get_origin(kind) is collections.abc.Mapping  # whether its values are NAME=VALUE
        # Whether its values are collected.
        self.is_list = self.is_mapping or get_origin(kind) in (tuple, collections.abc.Sequence)
        many = get_origin(kind) is (tuple if self.flag else collections.abc.Sequence)
        self.least = 0 if isinstance(default, bool) else 1  # number of values that it needs
        self.most = 0 if kind is bool else sys.maxsize if many else 1  # number that it takes
        self.kind = kind = _first(get_args(kind)[0]) if self.is_list else kind
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        self.expected = " or ".join(choices) or ("a whole number" if kind is int else "a number")  # of a value
        metavar = f"{{{','.join(choices)}}}" if choices else _METAVARS.get(kind, "")
        if self.is_mapping:
            self.expected = metavar = f"NAME={words.upper()}"
        metavar = f"[{metavar}]" if metavar and not self.least else metavar
        # How it is given, such as --batch-size N.
        self.usage = " ".join(filter(None, [self.shown, metavar if self.flag else "", "..." if many else ""]))


def _first(kind: Any) -> Any:
    """The type of a value: of ``X | None`` and ``float | bool`` the first, of ``str | os.PathLike[str]`` a path."""
    union = get_origin(kind) in (Union, UnionType)
    members = [member for member in get_args(kind) if member is not NoneType] if union else [kind]
    is_path = members[0] is str and any(get_origin(member) is os.PathLike for member in members)
    return Path if is_path else members[0]
