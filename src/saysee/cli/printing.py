"""How the verbs tell their result, and what went wrong."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

EXIT_DONE, EXIT_MISTAKE, EXIT_INTERRUPTED = 0, 2, 130

_REASONS = 20
"""Files that cannot be used are told one by one up to here."""


def print_result(options: Namespace, result: dict[str, Any], text: str) -> None:
    """Prints a result: as JSON where that was asked for, else its text."""
    print(json.dumps(result) if options.json else text)


def print_refused(reasons: Sequence[str]) -> None:
    """Tells on stderr which files cannot be used, and why."""
    for reason in reasons[:_REASONS]:
        print(f"saysee: {' '.join(reason.split())}", file=sys.stderr)
    if len(reasons) > _REASONS:
        print(f"saysee: {len(reasons) - _REASONS:,} more files cannot be used; --json lists all", file=sys.stderr)


def print_rich(content: Any) -> None:
    """Prints a table of rich."""
    from rich.console import Console

    # A pipe has no width of its own; tables must not be folded there.
    Console(width=None if sys.stdout.isatty() else 160).print(content)


def refuse(message: object) -> int:
    """Tells a mistake in one line on stderr, and gives its exit code."""
    print(f"saysee: {' '.join(str(message).split())}", file=sys.stderr)
    return EXIT_MISTAKE
