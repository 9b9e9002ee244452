"""``saysee demo``: the whole way."""

from __future__ import annotations

import argparse
import json
from typing import Any

from saysee.cli.parsing import verb
from saysee.cli.printing import EXIT_DONE, print_rich


def add_verbs(verbs: Any) -> None:
    """Adds ``demo``."""
    demo = verb(verbs, "demo", _demo, "the whole way: make scenes, train baseline and CMD, score both, write a report")
    demo.add_argument("--to", default="demo", metavar="DIR", help="folder of all it makes (%(default)s)")
    demo.add_argument("--seed", type=int, default=0, metavar="S", help="of the corpus and the training (%(default)s)")


def _demo(options: argparse.Namespace) -> int:
    from saysee.studies.demo import DemoSettings, run_demo

    result = run_demo(options.to, DemoSettings(seed=options.seed))
    if options.json:
        print(json.dumps(result.to_dict()))
    else:
        print_rich(result.to_table())
        print(f"report: {result.report}")
    return EXIT_DONE
