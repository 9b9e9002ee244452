"""``saysee train`` and ``ablate``."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from saysee.cli.parsing import numbers, verb
from saysee.cli.printing import EXIT_DONE, print_result, print_rich
from saysee.errors import ConfigError

if TYPE_CHECKING:
    from saysee.settings.recipe import Recipe


def add_verbs(verbs: Any) -> None:
    """Adds the verbs that make models."""
    train = verb(
        verbs,
        "train",
        _train,
        "train what a recipe describes; --data.batch_size 64 and the like override it",
        takes_settings=True,
    )
    train.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="a YAML file of settings, or a recipe of the package"
    )
    train.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="never",
        help="auto goes on with the run in the output folder; never refuses a folder that holds one (%(default)s)",
    )
    train.add_argument(
        "--dry-run",
        action="store_true",
        help="take a few steps and save nothing: print parameters, seconds a step, memory, disk, hours to the end",
    )
    train.add_argument("--settings", action="store_true", help="list every setting with its default")

    ablate = verb(
        verbs,
        "ablate",
        _ablate,
        "compare rows of settings over a recipe, seed by seed; --data.manifest and the like too",
        takes_settings=True,
    )
    ablate.add_argument("recipe", metavar="RECIPE", help="a YAML file of settings, or a recipe of the package")
    ablate.add_argument("--to", required=True, metavar="DIR", help="folder of runs and tables; what is done is kept")
    ablate.add_argument("--seeds", type=int, default=5, metavar="N", help="runs of each row (%(default)s)")
    ablate.add_argument("--rows", metavar="NAME,NAME", help="run these rows only, and the baseline")
    ablate.add_argument("--grid", metavar="FILE", help="a YAML file of rows; left out, the package's own")
    ablate.add_argument(
        "--sizes", default="", metavar="SHARE,SHARE", help="train on shares of the pictures too, such as 0.25,0.5,1"
    )
    ablate.add_argument("--split", default="test", help="which split scores them: val to choose (%(default)s)")


def _train(options: argparse.Namespace) -> int:
    if options.settings:
        from saysee.settings.recipe import recipe_help

        print(recipe_help())
        return EXIT_DONE
    if options.recipe is None:
        raise ConfigError("which recipe? 'saysee train RECIPE.yaml'; 'saysee train --settings' lists every setting")
    from saysee.settings.recipe import load_recipe

    recipe = load_recipe(options.recipe, options.rest)
    if options.dry_run:
        return _dry_run(options, recipe)
    from saysee.training.trainer import Trainer

    trainer = Trainer(recipe)
    result = trainer.fit(resume=options.resume)
    if not trainer.processes.is_first:
        return EXIT_DONE
    text = (
        f"{recipe.output}/best: mean R@1 {result['best_val_mean_R@1']:.1f} % on {recipe.data.val_split} at step "
        f"{result['best_step']} of {result['steps']}, {result['training_seconds']:.0f} s"
    )
    print_result(options, {"model": f"{recipe.output}/best", **result}, text)
    return EXIT_DONE


def _dry_run(options: argparse.Namespace, recipe: Recipe) -> int:
    from saysee.training.dry_run import dry_run

    result = dry_run(recipe)
    if int(os.environ.get("RANK", "0")):
        return EXIT_DONE
    if options.json:
        print(json.dumps(result.to_dict()))
    else:
        print_rich(result.to_table())
    return EXIT_DONE


def _ablate(options: argparse.Namespace) -> int:
    import shlex
    from pathlib import Path

    from saysee.studies.ablation import AblationSettings, run_ablation

    result = run_ablation(
        options.recipe,
        options.to,
        AblationSettings(
            overrides=tuple(options.rest),
            seeds=options.seeds,
            rows=None if options.rows is None else tuple(name.strip() for name in options.rows.split(",")),
            grid=None if options.grid is None else Path(options.grid),
            sizes=tuple(numbers("--sizes", options.sizes)),
            split=options.split,
            command=shlex.join(["saysee", *options.words]),
        ),
    )
    if options.json:
        print(json.dumps(result.to_dict()))
    else:
        for table in result.to_tables():
            print_rich(table)
        print(f"table: {result.folder / 'table.md'}")
    return EXIT_DONE
