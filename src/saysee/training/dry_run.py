"""What a training takes, measured: a few real steps on the recipe's data and on this machine, with nothing saved.

result = dry_run(load_recipe("nano", ["--data.manifest", "scenes/manifest.parquet"]))
rich.print(result.to_table())
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich.table import Table

from saysee.data.loader import Batch, clip_seconds
from saysee.data.manifest import Manifest
from saysee.log import progress_bar
from saysee.media.audio import SAMPLE_RATE
from saysee.model.retriever import SpeechImageModel
from saysee.settings.recipe import Recipe
from saysee.training.features import FeatureBatch
from saysee.training.log_records import peak_memory_mib
from saysee.training.objective import Objective
from saysee.training.trainer import Trainer

MEASURED_STEPS = 10
MEASURED_SECONDS = 60.0
"""No further step starts after this much measured time."""
FEATURE_BYTES = 2
"""Bytes of a kept value: bf16 or fp16."""


@dataclass(frozen=True)
class DryRun:
    """What a training takes.

    Attributes:
        parameters: part of the model to its number of parameters, "all" and "trained".
        device: name of the device.
        arithmetic: "fp32" or "bf16".
        processes: processes that share each batch.
        clips_per_step: over all processes and accumulated batches.
        steps: of the whole training.
        seconds_per_step: median of the measured steps, with decoding, without evaluation and checkpoints.
        hours: from the first step to the last, without evaluation and checkpoints.
        peak_memory_bytes: of this process, in main memory; None where the system does not report it.
        peak_gpu_memory_bytes: of this process, on its GPU; None on a CPU.
        recomputed: why the features of the encoders are recomputed at each step; None when they are kept on disk.
        feature_bytes: disk space of the kept features of the training and validation splits.
        feature_hours: to compute them before the first step.
    """

    parameters: dict[str, dict[str, int]]
    device: str
    arithmetic: str
    processes: int
    clips_per_step: int
    steps: int
    seconds_per_step: float
    hours: float
    peak_memory_bytes: int | None
    peak_gpu_memory_bytes: int | None
    recomputed: str | None
    feature_bytes: int
    feature_hours: float

    @property
    def clips_per_second(self) -> float:
        """Over all processes."""
        return self.clips_per_step / self.seconds_per_step

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "clips_per_second": self.clips_per_second}

    def to_table(self) -> Table:
        """The result for people."""
        table = Table(title="dry run", show_header=False)
        for part, count in self.parameters.items():
            table.add_row(f"parameters, {part}", f"{count['all']:,}; {count['trained']:,} trained")
        processes = "" if self.processes == 1 else f", {self.processes} processes"
        table.add_row("device", f"{self.device}, {self.arithmetic}{processes}")
        table.add_row("step", f"{self.seconds_per_step:.3g} s, {self.clips_per_second:,.4g} clips/s")
        if self.peak_memory_bytes is not None:
            table.add_row("peak memory", f"{self.peak_memory_bytes / 2**30:,.2f} GiB")
        if self.peak_gpu_memory_bytes is not None:
            table.add_row("peak GPU memory", f"{self.peak_gpu_memory_bytes / 2**30:,.2f} GiB")
        if self.recomputed is None:
            kept = f"{self.feature_bytes / 1e9:,.3g} GB on disk, computed in {self.feature_hours:.3g} hours"
            table.add_row("features of the encoders", kept)
        else:
            table.add_row("features of the encoders", f"recomputed at each step: {self.recomputed}")
        table.add_row("to the last step", f"{self.hours:,.3g} hours for {self.steps:,} steps")
        return table


def dry_run(recipe: Recipe) -> DryRun:
    """Takes a few steps of a training; the first ones, of the longest clips, are not timed.

    No file is written: no run folder, no checkpoint, no kept features. Features that a training would keep are computed
    for the batches of these steps only.

    Args:
        recipe: every setting.

    Raises:
        SaySeeError: as for :class:`saysee.training.trainer.Trainer`; or a step fails.
    """
    trainer = Trainer(recipe, name="dry run")
    processes, accumulate = trainer.processes, recipe.optimizer.accumulate
    objective, kept = trainer.objective.train(), trainer.data.recomputed is None
    batches = _batches_from_the_longest(trainer)
    step_seconds: list[float] = []
    encoding_seconds, clips = 0.0, 0
    last_step = recipe.training.steps - 1  # every task in full force
    with processes.ending_together(), progress_bar("dry run", 1 + MEASURED_STEPS) as bar:
        for number in range(1 + MEASURED_STEPS):
            start = time.perf_counter()
            of_step: Iterable[Batch | FeatureBatch] = itertools.islice(batches, accumulate)
            if kept:
                of_step = [_encode(objective, trainer, batch) for batch in of_step if isinstance(batch, Batch)]
                encoding_seconds += time.perf_counter() - start
                start = time.perf_counter()
            _, clips = trainer.step(iter(of_step), last_step)
            if number > 0:
                step_seconds.append(time.perf_counter() - start)
            bar.advance()
            if processes.any(sum(step_seconds) > MEASURED_SECONDS):
                break
    rows = [trainer.data.train_rows, trainer.data.val_rows]
    seconds_per_step = float(np.median(step_seconds))
    encoded = clips * (1 + len(step_seconds))
    peak, on_gpu = peak_memory_mib(), trainer.accelerator.device.type == "cuda"
    return DryRun(
        parameters=_parameters(objective),
        device=torch.cuda.get_device_name() if on_gpu else "CPU",
        arithmetic=trainer.arithmetic,
        processes=processes.count,
        clips_per_step=clips,
        steps=recipe.training.steps,
        seconds_per_step=seconds_per_step,
        hours=recipe.training.steps * seconds_per_step / 3600,
        peak_memory_bytes=None if peak is None else int(peak * 2**20),
        peak_gpu_memory_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
        recomputed=trainer.data.recomputed,
        feature_bytes=sum(_feature_bytes(trainer.model, part) for part in rows) if kept else 0,
        feature_hours=encoding_seconds / encoded * sum(len({row.clip for row in part}) for part in rows) / 3600,
    )


def _batches_from_the_longest(trainer: Trainer) -> Iterator[Batch | FeatureBatch]:
    """The batches of the training in their order, from the one with the longest clip on: it takes the most memory."""
    loader = trainer.loader
    longest = [float(loader.plan.seconds[rows].max()) for rows in loader.plan.epoch(0)]
    loader.load_state_dict({**loader.state_dict(), "next_batch": int(np.argmax(longest))})
    while True:
        yield from loader


@torch.no_grad()
def _encode(objective: Objective, trainer: Trainer, batch: Batch) -> FeatureBatch:
    """The features of frozen encoders for a batch, as a training reads them from disk."""
    batch = batch.to(trainer.accelerator.device)
    with trainer.accelerator.autocast():
        states, mask = objective.model.speech_encoder.layer_states(batch.waveforms, batch.speech_mask)
        images = objective.model.image_encoder(batch.pixels)
    return FeatureBatch(torch.stack(states), mask, images.vector, images.patches, batch.image_ids, batch.rows)


def _feature_bytes(model: SpeechImageModel, rows: Manifest) -> int:
    """Disk space of the features of a split's clips and images, each file once."""
    config, encoder = model.config, model.speech_encoder
    seconds = {row.clip: length for row, length in zip(rows, clip_seconds(rows, skip=True), strict=True)}
    samples = torch.tensor([round(length * SAMPLE_RATE) for length in seconds.values()])
    of_clips: int = int(encoder.frames(samples).sum()) * len(encoder.layers) * config.speech_config.hidden_size
    of_image: int = config.patch_grid**2 * config.vision_config.hidden_size + config.projection_dim
    return FEATURE_BYTES * (of_clips + len({row.image for row in rows}) * of_image)


def _parameters(objective: Objective) -> dict[str, dict[str, int]]:
    """The parameters of each part that the model has."""
    prefixes = {
        "HuBERT": "model.speech_encoder.hubert.",
        "CLIP image encoder": "model.image_encoder.clip.vis",
        "CLIP text encoder": "model.image_encoder.",
        "speech head": "model.speech_encoder.",
        "fusion encoder and tasks": "",
    }
    counts = {part: {"all": 0, "trained": 0} for part in ("all", *prefixes)}
    for name, parameter in objective.named_parameters():
        part = next(part for part, prefix in prefixes.items() if name.startswith(prefix))
        for count in (counts["all"], counts[part]):
            count["all"] += parameter.numel()
            count["trained"] += parameter.numel() * parameter.requires_grad
    return {part: count for part, count in counts.items() if count["all"]}
