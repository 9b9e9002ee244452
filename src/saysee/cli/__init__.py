"""The command line: parse, call, print.

Every verb shows its progress on stderr and one result on stdout (``--json`` for machines). Exit codes: 0 done, 2 a
mistake of the user's, told in one line, 130 interrupted. A verb imports what it needs when it is called, so that
``saysee --help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from saysee.cli import card, data, demo, evaluate, search, serve, train
from saysee.cli.parsing import Parser
from saysee.cli.printing import EXIT_INTERRUPTED, refuse
from saysee.errors import ConfigError, SaySeeError
from saysee.log import configure_command_line
from saysee.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: the words after ``saysee``; None takes the process's own.

    Returns:
        The exit code.
    """
    # OpenMP's threads spin while they wait by default. With a loader's process beside them on few cores that made a
    # training step two to ten times slower; sleeping threads cost nothing measurable. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # oneDNN keeps what it compiled for the last 1,024 shapes. Batches of speech hardly ever have the same one twice, so
    # that only filled memory: half a gigabyte in sixteen steps of a small HuBERT.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    configure_command_line()
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    parser = build_parser()
    try:
        options, rest = parser.parse_known_args([word for word in words if word != "--debug"])
        if options.collects is not None:  # argparse leaves over those words of a list that stand behind a flag
            getattr(options, options.collects).extend(word for word in rest if not word.startswith("-"))
            rest = [word for word in rest if word.startswith("-")]
        if rest and not options.takes_settings:
            raise ConfigError(f"unknown argument {rest[0]!r}; see 'saysee {options.name} --help'")
        if options.name != "train" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                f"only 'saysee train' works in several processes; leave out torchrun for {options.name!r}"
            )
        options.rest, options.words = rest, words
        code: int = options.verb(options)
        return code
    except SaySeeError as error:
        if debug:
            raise
        return refuse(error)
    except OSError as error:
        if debug:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return refuse(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        print("saysee: interrupted; what is finished is kept", file=sys.stderr)
        return EXIT_INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """The parser of every verb; ``options.verb`` of what it reads runs the verb."""
    parser = Parser(
        prog="saysee",
        description="Say what you want to see, and find the picture; show a picture, and find the speech.",
        epilog="Every verb takes --json, for a result that machines read, and --debug, for the traceback of an error.",
    )
    parser.add_argument("--version", action="version", version=f"saysee {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=Parser)
    for room in (data, train, evaluate, card, search, serve, demo):
        room.add_verbs(verbs)
    return parser
