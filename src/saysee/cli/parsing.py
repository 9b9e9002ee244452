"""What the verbs' parsers share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from saysee.cli.printing import EXIT_MISTAKE
from saysee.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """See :meth:`argparse.ArgumentParser.error`."""
        self.exit(EXIT_MISTAKE, f"{self.prog}: {message}; see '{self.prog} --help'\n")


def verb(
    parsers: Any, name: str, run: Any, text: str, *, takes_settings: bool = False, collects: str | None = None
) -> argparse.ArgumentParser:
    """Adds a verb.

    Args:
        parsers: what ``add_subparsers`` gave.
        name: of the verb.
        run: what runs it: options in, exit code out.
        text: what the help says of it.
        takes_settings: words that the parser does not know are dotted settings, left in ``options.rest``.
        collects: the list among its options that may go on behind a flag.
    """
    parser: argparse.ArgumentParser = parsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(
        verb=run, name=parser.prog.removeprefix("saysee "), takes_settings=takes_settings, collects=collects
    )
    return parser


def numbers(flag: str, text: str) -> list[float]:
    """The numbers of a flag such as ``0.25,0.5,1``."""
    try:
        return [float(word) for word in text.split(",")] if text else []
    except ValueError as error:
        raise ConfigError(f"{flag} is {text!r}; give numbers with commas between, such as 0.25,0.5,1") from error


def refuse_beside(flag: str, options: argparse.Namespace, others: Sequence[str]) -> None:
    """Refuses what does not go with a flag that stands alone."""
    for name in others:
        if getattr(options, name) is not None:
            raise ConfigError(f"{flag} INDEX stands alone; leave out {name.replace('_', '-')}")
