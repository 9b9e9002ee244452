"""Whether a plan's time holds: the share of the peak that one training reaches, and what others then take.

    python benchmarks/plan.py flickr8k-base --data.batch_size 4 --training.precision fp32

RECIPE is as for ``saysee train``, with its dotted overrides; no corpus is needed and no weight is read. On this
processor, with random weights and random clips, it measures the peak by products of matrices, takes real steps of the
recipe with the shortest of ``--seconds``, and takes from these the share. With that share the recipe is planned at each
length, and with HuBERT's last two layers trained; real steps tell how far off that is. Times are the processor's own
(CPU seconds), so that what else the machine does falls out; give it one thread (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from dataclasses import replace
from typing import Any


def main() -> None:
    """Measures and prints one line of JSON."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file of settings, or a recipe of the package")
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.0, 4.0], metavar="S", help="clips (2 4)")
    parser.add_argument("--steps", type=int, default=3, metavar="N", help="steps timed of each (%(default)s)")
    options, overrides = parser.parse_known_args()
    print(json.dumps(measure(options, overrides)))


def measure(options: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    """The share that the first training reaches, and each training's planned and measured seconds a step."""
    from saysee.encoding.precision import arithmetic_of
    from saysee.settings.recipe import load_recipe
    from saysee.training.plan import plan_training

    recipe = load_recipe(options.recipe, [*overrides, "--training.device=cpu", "--data.manifest=none.parquet"])
    arithmetic = arithmetic_of(recipe.training.precision, "cpu")
    peak = peak_of_cpu_seconds(arithmetic)
    found, share = [], None
    for trained in (0, 2):
        for seconds in sorted(options.seconds):
            recipe.data.crop_seconds, recipe.model.speech_trainable = seconds, trained
            measured = seconds_per_step(copy.deepcopy(recipe), seconds, options.steps)
            share = share or plan_training(recipe, peak=str(peak), share=1.0).seconds_per_step / measured
            planned = plan_training(recipe, peak=str(peak), share=share).seconds_per_step
            what = f"{seconds:g} s, {trained} layers trained"
            print(f"{what}: planned {planned:.2f} s a step, measured {measured:.2f}", file=sys.stderr)
            found.append({"what": what, "planned": planned, "measured": measured, "ratio": planned / measured})
    return {"peak_tflops": peak, "arithmetic": arithmetic, "share": share, "trainings": found}


def peak_of_cpu_seconds(arithmetic: str) -> float:
    """TFLOP in a CPU second."""
    import torch

    width = 2048
    matrix = torch.randn(width, width, dtype=torch.bfloat16 if arithmetic == "bf16" else torch.float32)
    return 2 * width**3 / min(cpu_seconds(lambda: matrix @ matrix) for _ in range(10)) / 1e12


def seconds_per_step(recipe: Any, seconds: float, steps: int) -> float:
    """CPU seconds of a real step, the median of some behind a first one."""
    import torch

    from saysee.data.loader import Batch
    from saysee.encoding.precision import arithmetic_of
    from saysee.training.attention_kernel import attention_kernel
    from saysee.training.objective import Objective, build_model, build_tasks
    from saysee.training.plan_encoders import without_weights
    from saysee.training.processes import Processes
    from saysee.training.steps import Steps

    recipe = replace(recipe, model=without_weights(recipe.model))
    model = build_model(recipe)
    objective = Objective(model, build_tasks(recipe, model)).train()
    processes = Processes(arithmetic_of(recipe.training.precision, "cpu"), cpu=True)
    takes = Steps(objective, recipe, processes)
    size, side = recipe.data.batch_size, model.config.vision_config.image_size
    waveforms = torch.randn(size, round(16_000 * seconds))
    mask = torch.ones_like(waveforms, dtype=torch.bool)
    batch = Batch(waveforms, mask, torch.randn(size, 3, side, side), torch.arange(size), list(range(size)))
    batches = [batch] * recipe.optimizer.accumulate
    with attention_kernel("cpu", processes.accelerator.mixed_precision == "bf16"):
        times = [cpu_seconds(lambda: takes.take(iter(batches), 0)) for _ in range(steps + 1)]
    return statistics.median(times[1:])


def cpu_seconds(work: Any) -> float:
    """What some work takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
