"""What the programs of a checkout share: the package's exit codes, and errors in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from saysee.errors import SaySeeError
from saysee.log import configure_command_line


def run_program(name: str, action: Callable[[], None]) -> int:
    """Runs a program and returns its exit code: 0 done, 2 for a user's mistake, 130 when interrupted.

    Args:
        name: module that was started, for the error message.
        action: parses the arguments, computes, prints.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # both for the reasons in saysee.cli
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    configure_command_line("lab", "benchmarks")
    try:
        action()
    except SaySeeError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; finished work is kept", file=sys.stderr)
        return 130
    return 0
