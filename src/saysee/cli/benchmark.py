"""``saysee benchmark``: what the project says of its speed, measured where you are."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from saysee.cli.parsing import Parser, numbers, verb
from saysee.cli.printing import EXIT_DONE
from saysee.errors import ConfigError


def add_verbs(verbs: Any) -> None:
    """Adds ``benchmark``."""
    benchmark = verbs.add_parser("benchmark", help="measure speed on this machine")
    kinds = benchmark.add_subparsers(title="benchmarks", metavar="WHAT", required=True, parser_class=Parser)
    search = verb(kinds, "search", _search, "encoding, searching and whole spoken queries, against the plain ways")
    search.add_argument(
        "--parts", default="encoding,queries,spoken", metavar="LIST", help="which of these (%(default)s)"
    )
    search.add_argument("--sizes", default="nano,base", metavar="LIST", help="of the encoders (%(default)s)")
    search.add_argument("--pictures", type=int, default=256, metavar="N", help="to encode (%(default)s)")
    search.add_argument("--clips", type=int, default=64, metavar="N", help="to encode (%(default)s)")
    search.add_argument("--picture-size", default="640x480", metavar="WxH", help="in pixels (%(default)s)")
    search.add_argument("--rows", default="10000,100000,1000000", metavar="LIST", help="vectors (%(default)s)")
    search.add_argument(
        "--pgvector-rows", type=int, default=100_000, metavar="N", help="most that pgvector indexes (%(default)s)"
    )
    search.add_argument("--queries", type=int, default=500, metavar="N", help="single searches (%(default)s)")
    search.add_argument("--spoken-rows", type=int, default=10_000, metavar="N", help="behind HTTP (%(default)s)")
    search.add_argument("--rounds", type=int, default=3, metavar="N", help="turns; ten times for HTTP (%(default)s)")


def _search(options: argparse.Namespace) -> int:
    from benchmarks.search_speed.comparison import PARTS, SIZES, SearchSpeedSettings, compare_search

    settings = SearchSpeedSettings(
        parts=_chosen("--parts", options.parts, PARTS),
        sizes=_chosen("--sizes", options.sizes, SIZES),
        pictures=options.pictures,
        clips=options.clips,
        picture_size=_size(options.picture_size),
        rows=[int(number) for number in numbers("--rows", options.rows)],
        pgvector_rows=options.pgvector_rows,
        queries=options.queries,
        spoken_rows=options.spoken_rows,
        rounds=options.rounds,
    )
    result = compare_search(settings, lambda text: print(f"saysee: {text}", file=sys.stderr, flush=True))
    print(json.dumps(result.to_dict()) if options.json else result.to_markdown())
    return EXIT_DONE


def _chosen(flag: str, text: str, choices: Any) -> Any:
    words = text.split(",")
    if unknown := [word for word in words if word not in choices]:
        raise ConfigError(f"{flag} has {unknown[0]!r}; give some of {', '.join(choices)}, with commas between")
    return words


def _size(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and 16 <= int(side) <= 8_000 for side in sides):
        raise ConfigError(f"--picture-size is {text!r}; give width and height such as 640x480")
    return int(sides[0]), int(sides[1])
