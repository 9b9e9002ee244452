"""What a training takes, measured: a few real steps on the recipe's data and on this machine, with nothing saved.

result = dry_run(Trainer(load_recipe("nano", ["--data.manifest", "scenes/manifest.parquet"])))
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
from saysee.tasks.contrastive import AllImages
from saysee.training.data import FeatureBatch
from saysee.training.objective import Objective, TrainingBatch
from saysee.training.records import device_name, peak_memory_mib
from saysee.training.trainer import Trainer, slices

MEASURED_STEPS = 10
MEASURED_SECONDS = 60.0
"""No further step starts after this much measured time."""
ENCODED_TOGETHER = 8
FEATURE_BYTES = 2
"""Bytes of a cached value: bf16 or fp16."""


@dataclass(frozen=True)
class DryRun:
    """What a training takes."""

    parameters: dict[str, dict[str, int]]  # part of the model to its number of parameters, "all" and "trained"
    device: str  # name of the device
    arithmetic: str  # "fp32" or "bf16"
    processes: int  # processes that share each batch
    steps: int  # of the whole training
    clips_per_second: float  # over all processes
    seconds_per_step: float  # median of the measured steps, with decoding, without evaluation and checkpoints
    hours: float  # from the first step to the last, without evaluation and checkpoints
    peak_memory_bytes: int | None  # of this process, in main memory; None where the system does not report it
    peak_gpu_memory_bytes: int | None  # of this process, on its GPU; None on a CPU
    recomputed: str | None  # why the features of the encoders are recomputed at each step; None when they are cached
    feature_bytes: int  # disk space of the cached features of the training and validation splits
    feature_hours: float  # to compute them before the first step

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def to_table(self) -> Table:
        """The result for people."""
        table = Table(title="dry run", show_header=False)
        for part, count in self.parameters.items():
            table.add_row(f"parameters, {part}", f"{count['all']:,}; {count['trained']:,} trained")
        table.add_row("device", f"{self.processes} × {self.device}, {self.arithmetic}")
        table.add_row("step", f"{self.seconds_per_step:.3g} s, {self.clips_per_second:,.4g} clips/s")
        for name, size in (("memory", self.peak_memory_bytes), ("GPU memory", self.peak_gpu_memory_bytes)):
            if size is not None:
                table.add_row(f"peak {name}", f"{size / 2**30:,.2f} GiB")
        features = f"recomputed at each step: {self.recomputed}"
        if self.recomputed is None:
            features = f"cached: {self.feature_bytes / 1e9:,.3g} GB, computed in {self.feature_hours:.3g} hours"
        table.add_row("features of the encoders", features)
        table.add_row("to the last step", f"{self.hours:,.3g} hours for {self.steps:,} steps")
        return table


def dry_run(trainer: Trainer) -> DryRun:
    """Takes a few steps of a training; the first, with the longest clips, counts for memory and not for time.

    No file is written: no run folder, no checkpoint, no cached features. Features that a training would cache are
    computed for the batches of these steps only. The trainer must have taken no step.
    """
    recipe, data, processes = trainer.recipe, trainer.data, trainer.processes
    cached = data.recomputed is None
    trainer.compare_with_all(lambda: _as_many_images(trainer))
    trainer.objective.train()
    batches = _batches_from_the_longest(trainer)
    step_seconds, encoding_seconds, clips = list[float](), 0.0, 0
    with processes.ending_together(), progress_bar("dry run", 1 + MEASURED_STEPS) as bar:
        while len(step_seconds) <= MEASURED_STEPS and not processes.any(sum(step_seconds[1:]) > MEASURED_SECONDS):
            start = time.perf_counter()
            of_step: Iterable[TrainingBatch] = itertools.islice(batches, recipe.optimizer.accumulate)
            if cached:
                of_step = [as_cached(trainer, batch) for batch in of_step if isinstance(batch, Batch)]
                encoding_seconds += time.perf_counter() - start
                start = time.perf_counter()
            _, clips = trainer.step(iter(of_step), recipe.training.steps - 1)  # every task in full force
            step_seconds.append(time.perf_counter() - start)
            bar.update()
    seconds_per_step = float(np.median(step_seconds[1:]))
    splits = [data.train_rows, data.val_rows]
    all_clips = sum(len({row.clip for row in rows}) for rows in splits)
    peak, on_gpu = peak_memory_mib(), trainer.accelerator.device.type == "cuda"
    return DryRun(
        parameters=_parameters(trainer.objective),
        device=device_name(trainer.accelerator.device),
        arithmetic=trainer.arithmetic,
        processes=processes.count,
        steps=recipe.training.steps,
        clips_per_second=clips / seconds_per_step,
        seconds_per_step=seconds_per_step,
        hours=recipe.training.steps * seconds_per_step / 3600,
        peak_memory_bytes=None if peak is None else int(peak * 2**20),
        peak_gpu_memory_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
        recomputed=data.recomputed,
        feature_bytes=sum(_feature_bytes(trainer.model, rows) for rows in splits) if cached else 0,
        # One process encodes them, and the clips of a step are those of all.
        feature_hours=encoding_seconds * processes.count / (clips * len(step_seconds)) * all_clips / 3600,
    )


def timed_batches(trainer: Trainer) -> list[TrainingBatch]:
    """The batches of the first step that is timed."""
    count = trainer.recipe.optimizer.accumulate
    batches: list[TrainingBatch] = list(itertools.islice(_batches_from_the_longest(trainer), count, 2 * count))
    if trainer.data.recomputed is None:
        return [as_cached(trainer, batch) for batch in batches if isinstance(batch, Batch)]
    return batches


def _as_many_images(trainer: Trainer) -> AllImages:
    """In place of all training images as many zeros, which take as long to compare with."""
    count = len(trainer.data.train_rows.images())
    return AllImages(torch.zeros(count, trainer.model.config.projection_dim), torch.arange(count))


def _batches_from_the_longest(trainer: Trainer) -> Iterator[TrainingBatch]:
    """The batches of the training in their order, from the one with the longest clip on: it takes the most memory."""
    loader = trainer.loader
    longest = [float(loader.plan.seconds[rows].max()) for rows in loader.plan.epoch(0)]
    loader.load_state_dict({**loader.state_dict(), "next_batch": int(np.argmax(longest))})
    trainer.state.mid_epoch = True
    return trainer.batches()


@torch.no_grad()
def as_cached(trainer: Trainer, batch: Batch) -> FeatureBatch:
    """The features of frozen encoders for a batch, as a training reads them from the cache.

    Computed a few clips at a time: the peak memory is that of a step, as it is where they are read.
    """
    states, masks, vectors, patches = [], [], [], []
    with trainer.accelerator.autocast():
        for rows in slices(len(batch), ENCODED_TOGETHER):
            part = batch.part(rows).to(trainer.accelerator.device)
            of_part, mask = trainer.model.speech_encoder.layer_states(part.waveforms, part.speech_mask)
            images = trainer.model.image_encoder(part.pixels)
            states.append(torch.stack(of_part))
            masks.append(mask)
            vectors.append(images.vector)
            patches.append(images.patches)
    ids = batch.image_ids.to(trainer.accelerator.device)
    joined = torch.cat(states, dim=1), torch.cat(masks), torch.cat(vectors), torch.cat(patches)
    pixels = batch.pixels.to(trainer.accelerator.device) if trainer.recipe.denoising.needs_pixels else None
    return FeatureBatch(*joined, ids, batch.rows, pixels)


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
