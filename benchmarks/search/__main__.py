"""Runs the search benchmark and prints its tables.

python -m benchmarks.search                                   # everything: a quarter of an hour or more
python -m benchmarks.search --parts encoding --sizes nano --rounds 2
python -m benchmarks.search --parts queries --rows 10000,100000 --json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import pairwise

from jsonargparse import ArgumentParser
from lab.programs import run_program

from benchmarks.search.comparison import SearchSpeedSettings, compare_search

_LISTS = ("--parts", "--sizes", "--rows", "--image_size")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        arguments: of the command line; None takes the process's own.
    """

    def action() -> None:
        parser = ArgumentParser(prog="python -m benchmarks.search", description="Measures the speed of an index.")
        parser.add_class_arguments(SearchSpeedSettings, as_group=False)
        parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
        words = list(sys.argv[1:] if arguments is None else arguments)
        for place, (flag, value) in enumerate(pairwise(words), start=1):
            if flag in _LISTS and not value.startswith("["):
                words[place] = f"[{value}]"  # as jsonargparse reads a list
        options = parser.parse_args(words)
        settings = SearchSpeedSettings(**{name: options[name] for name in SearchSpeedSettings.__dataclass_fields__})
        result = compare_search(settings)
        print(json.dumps(result.to_dict()) if options.json else result.to_markdown())

    return run_program("benchmarks.search", action)


if __name__ == "__main__":
    sys.exit(main())
