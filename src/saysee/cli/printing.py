"""Results on stdout, messages on stderr."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EXIT_DONE, EXIT_MISTAKE = 0, 2

_SKIPPED_SHOWN = 20  # further skipped files are only counted


@dataclass
class Result:
    """The result of a verb."""

    values: Mapping[str, Any]  # printed by ``--json``
    text: Sequence[Any]  # for people: lines, tables of rich, or functions that print
    skipped: Sequence[str] = ()  # a line for each file that was skipped, with the reason
    failures: Sequence[str] = ()  # problems that the verb found; with any, the exit code is 2


def print_result(result: Result, as_json: bool) -> int:
    """Prints a result on stdout, and what was skipped or failed on stderr; returns the exit code."""
    if as_json:
        print(json.dumps(result.values), flush=True)
    else:
        for part in result.text:
            if callable(part):
                part()
            elif isinstance(part, str):
                print(part, flush=True)
            else:
                print_table(part)
    more = len(result.skipped) - _SKIPPED_SHOWN
    summary = [f"{more:,} more files skipped; --json lists all"] if more > 0 else []
    for message in (*result.skipped[:_SKIPPED_SHOWN], *summary, *result.failures):
        print_message(message)
    return EXIT_MISTAKE if result.failures else EXIT_DONE


def print_message(message: object) -> None:
    """Prints one line on stderr."""
    print(f"saysee: {' '.join(str(message).split())}", file=sys.stderr)


def print_table(table: Any) -> None:
    """Prints a table of rich on stdout."""
    from rich.console import Console

    # A pipe has no width of its own; tables must not be folded there.
    Console(width=None if sys.stdout.isatty() else 300).print(table)
