"""Training speed with kept features against recomputed ones: same recipe, same batches, one run.

    python -m benchmarks.kept_features RECIPE --data.manifest scenes/manifest.parquet --steps 40

RECIPE is as for ``saysee train``, with its dotted overrides; both encoders must be frozen. Speed does not depend on the
weights, so encoders given as values of a configuration, with random weights, are enough. Both take turns, so that other
load on the machine affects both; the first steps of each turn are not timed. Features are kept in a temporary folder,
unless ``--features.folder`` names one, and computing them is timed separately.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lab.programs import run_program


def main() -> int:
    """Measures, prints one line of JSON, and returns the exit code."""

    def action() -> None:
        parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
        parser.add_argument("recipe", metavar="RECIPE", help="a YAML file of settings, or a recipe of the package")
        parser.add_argument("--steps", type=int, default=40, metavar="N", help="timed steps of each turn (%(default)s)")
        parser.add_argument("--warm-up", type=int, default=10, metavar="N", help="steps before them (%(default)s)")
        parser.add_argument("--rounds", type=int, default=2, metavar="N", help="turns of each (%(default)s)")
        options, overrides = parser.parse_known_args()
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(measure(options, overrides, Path(scratch))))

    return run_program("benchmarks.kept_features", action)


def measure(options: argparse.Namespace, overrides: list[str], scratch: Path) -> dict[str, Any]:
    """Trains both in turn; returns rates in clips a second, and their ratio."""
    from saysee.settings.reading import load_recipe
    from saysee.training.trainer import Trainer

    steps = options.warm_up + options.steps
    settings = [
        f"--features.folder={scratch / 'features'}",
        *overrides,
        f"--training.steps={steps}",
        f"--training.eval_every={10 * steps}",
        f"--training.checkpoint_every={10 * steps}",
        "--training.log_every=1",
    ]
    rates: dict[str, list[float]] = {"off": [], "auto": []}
    keeping = 0.0
    for turn in range(options.rounds):
        for keep, found in rates.items():
            run = scratch / f"{keep}-{turn}"
            trainer = Trainer(load_recipe(options.recipe, [*settings, f"--features.keep={keep}", f"--output={run}"]))
            if keep == "auto" and trainer.data.recomputed is not None:
                sys.exit(f"kept_features: this recipe's features cannot be kept: {trainer.data.recomputed}")
            if keep == "auto" and turn == 0:
                start = time.perf_counter()
                trainer.cache_features()
                keeping = time.perf_counter() - start
            trainer.fit()
            found.append(clips_per_second(run, _clips_a_step(trainer.recipe), options.warm_up))
            print(f"round {turn + 1}, features.keep {keep}: {found[-1]:.0f} clips/s", file=sys.stderr)
    recomputed, kept = (statistics.median(rates[keep]) for keep in ("off", "auto"))
    return {
        "recomputed_clips_per_second": round(recomputed, 1),
        "kept_clips_per_second": round(kept, 1),
        "ratio": round(kept / recomputed, 2),
        "rounds": {keep: [round(rate, 1) for rate in found] for keep, found in rates.items()},
        "seconds_to_keep": round(keeping, 1),
        "steps": options.steps,
        "cpus": os.cpu_count(),
    }


def clips_per_second(run: Path, clips: int, warm_up: int) -> float:
    """Rate of the steps after the warm-up, of ``clips`` each; the log has the rate over all steps so far."""
    from saysee.training.records import read_metrics

    seconds = {
        line["step"]: line["step"] * clips / line["clips_per_second"]
        for line in read_metrics(run)
        if line["kind"] == "train"
    }
    last = max(seconds)
    return float(clips * (last - warm_up) / (seconds[last] - seconds.get(warm_up, 0.0)))


def _clips_a_step(recipe: Any) -> int:
    count: int = recipe.data.batch_size * recipe.optimizer.accumulate
    return count


if __name__ == "__main__":
    sys.exit(main())
