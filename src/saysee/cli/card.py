"""``saysee card``: a model's card, with its scores."""

from __future__ import annotations

import argparse
from typing import Any

from saysee.cli.parsing import verb
from saysee.cli.printing import EXIT_DONE, print_result


def add_verbs(verbs: Any) -> None:
    """Adds ``card``."""
    card = verb(verbs, "card", _card, "write the model card of a trained model, with scores")
    card.add_argument("model", metavar="MODEL", help="folder of a SaySee model, such as runs/first/best")
    card.add_argument(
        "--scores",
        action="append",
        default=[],
        metavar="FILE",
        help="what 'saysee evaluate … --json' printed, of this model or of a cascade; repeatable",
    )
    card.add_argument("--to", metavar="FILE", help="the card; left out, README.md in the model's folder")
    card.add_argument("--name", dest="model_name", metavar="NAME", help="of the model; left out, the name of its run")
    card.add_argument("--license", metavar="NAME", help="of the weights, as the hub names it, such as apache-2.0")


def _card(options: argparse.Namespace) -> int:
    from saysee.model.card import read_scores, write_card

    scores = [score for path in options.scores for score in read_scores(path)]
    path = write_card(options.model, scores, to=options.to, name=options.model_name, license=options.license)
    print_result(options, {"card": str(path), "scores": len(scores)}, str(path))
    return EXIT_DONE
