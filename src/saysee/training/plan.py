"""What a recipe will take, before anything is run: parameters, FLOPs, memory, hours, disk.

    plan = plan_training(load_recipe("flickr8k-base"), peak="h100")
    rich.print(plan.to_table())

Nothing is loaded but configurations and, where it is there, the manifest. What is counted is said by
:mod:`saysee.training.plan_trace`; what is assumed is a share of the chip's peak, which a plan states.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.table import Table

from saysee.encoding.precision import Arithmetic, arithmetic_of
from saysee.errors import ConfigError
from saysee.settings.recipe import Recipe
from saysee.training.objective import Objective
from saysee.training.plan_chips import HERE, Chip, chip_of
from saysee.training.plan_data import ClipLengths, DiskNeed, clip_lengths, disk_need, why_not_kept
from saysee.training.plan_encoders import without_weights
from saysee.training.plan_trace import StepCount, trace_step

DEFAULT_PEAK = "a100"
DEFAULT_SHARE = 0.3
"""Of the peak. A guess: a step's matrix products alone reach more, HuBERT's convolutions and the norms less. A few
measured steps know better."""


@dataclass(frozen=True)
class TrainingPlan:
    """What a training will take.

    Attributes:
        recipe: of the training; encoders by name.
        parameters: name of a part to how many it has, all and trainable.
        lengths: of the clips.
        recomputed: why features are not kept, in words for people; None when they are.
        step: what one card takes in a step whose clips are all as long as the longest.
        flops: of an optimiser step on all cards, with clips of mean length.
        chip: what it runs on; ``cards`` of them.
        arithmetic: of the networks.
        share: of the peak that is reached.
        disk: what kept features take.
    """

    recipe: Recipe
    parameters: dict[str, tuple[int, int]]
    lengths: ClipLengths
    recomputed: str | None
    step: StepCount
    flops: int
    chip: Chip
    cards: int
    arithmetic: Arithmetic
    share: float
    disk: DiskNeed

    @property
    def clips(self) -> int:
        """Pairs in an optimiser step."""
        return self.recipe.data.batch_size * self.recipe.optimizer.accumulate

    @property
    def seconds_per_step(self) -> float:
        """Without decoding, evaluation and checkpoints."""
        return self.flops / (self.chip.peak(self.arithmetic) * 1e12 * self.share * self.cards)

    @property
    def hours(self) -> float:
        """To the last step."""
        return self.recipe.training.steps * self.seconds_per_step / 3600

    def warnings(self) -> list[str]:
        """What will not go, each in one line."""
        found = []
        room = self.chip.memory_gib
        if room is not None and self.step.peak > room * 2**30:
            found.append(
                f"{self.step.peak / 2**30:.1f} GiB do not fit into the {room:g} GiB of the {self.chip.name}: lower "
                "data.chunk_size, which keeps all negatives, or take more cards"
            )
        limit = self.recipe.features.limit_gb * 1e9
        if self.disk.total is not None and self.disk.total > limit:
            found.append(
                f"kept features take {self.disk.total / 1e9:,.1f} GB, over features.limit_gb "
                f"({self.recipe.features.limit_gb:g}); raise it, or keep fewer hidden states by model.speech_layers"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values: bytes, seconds, FLOPs."""
        return {
            "parameters": {
                name: {"all": count, "trainable": trainable} for name, (count, trainable) in self.parameters.items()
            },
            "batch_size": self.recipe.data.batch_size,
            "accumulate": self.recipe.optimizer.accumulate,
            "chunk_size": self.recipe.data.chunk_size,
            "clip_seconds": {
                "mean": self.lengths.mean,
                "longest": self.lengths.longest,
                "source": self.lengths.source,
            },
            "features_kept": self.recomputed is None,
            "why_recomputed": self.recomputed,
            "flops_per_step": self.flops,
            "flops_per_clip": self.flops / self.clips,
            "memory_bytes": {name: value for name, value in asdict(self.step).items() if name != "flops"},
            "chip": self.chip.name,
            "cards": self.cards,
            "arithmetic": self.arithmetic,
            "peak_tflops": self.chip.peak(self.arithmetic),
            "share": self.share,
            "seconds_per_step": self.seconds_per_step,
            "clips_per_second": self.clips / self.seconds_per_step,
            "steps": self.recipe.training.steps,
            "hours": self.hours,
            "disk_bytes": asdict(self.disk),
            "warnings": self.warnings(),
        }

    def to_table(self) -> Table:
        """The plan for people."""
        table = Table(title=f"Plan of {self.recipe.output}", show_header=False)
        for section in (self._model_rows(), self._step_rows(), self._memory_rows(), self._time_rows()):
            for row in section:
                table.add_row(*row)
            table.add_section()
        for warning in self.warnings():
            table.add_row("warning", warning)
        return table

    def _model_rows(self) -> Iterator[tuple[str, str]]:
        for name, (count, trainable) in self.parameters.items():
            yield f"parameters, {name}", f"{count:,}; {trainable:,} trained"

    def _step_rows(self) -> Iterator[tuple[str, str]]:
        data, lengths = self.recipe.data, self.lengths
        batches = f", {self.recipe.optimizer.accumulate} batches" if self.recipe.optimizer.accumulate > 1 else ""
        chunks = f", in chunks of {data.chunk_size}" if data.chunk_size else ""
        cards = f", over {self.cards} cards" if self.cards > 1 else ""
        yield "a step", f"{data.batch_size} pairs{batches}{cards}{chunks}"
        yield "clips", f"{lengths.mean:.3g} s, the longest {lengths.longest:.3g} s ({lengths.source})"
        yield "features", "kept" if self.recomputed is None else f"recomputed at each step: {self.recomputed}"
        yield "computing", f"{self.flops / 1e12:,.3g} TFLOP a step, {self.flops / self.clips / 1e9:,.3g} GFLOP a clip"

    def _memory_rows(self) -> Iterator[tuple[str, str]]:
        step = self.step
        for name in ("weights", "gradients", "optimizer", "activations"):
            yield f"memory, {name}", _binary(getattr(step, name))
        room = "" if self.chip.memory_gib is None else f" of {self.chip.memory_gib:g} GiB"
        each = " on each card" if self.cards > 1 else ""
        beside = "" if self.recipe.training.device == "cpu" else "; what CUDA itself takes comes on top"
        yield "memory, the most at once", f"{_binary(step.peak)}{room}{each}{beside}"

    def _time_rows(self) -> Iterator[tuple[str, str]]:
        peak = self.chip.peak(self.arithmetic)
        cards = f"{self.cards} × " if self.cards > 1 else ""
        yield "at", f"{self.share:.0%} of {cards}{peak:,.4g} TFLOP/s ({self.chip.name}, {self.arithmetic})"
        yield "speed", f"{self.clips / self.seconds_per_step:,.4g} clips/s, {self.seconds_per_step:.3g} s a step"
        steps = self.recipe.training.steps
        yield "to the end", f"{self.hours:,.3g} hours of {steps:,} steps, without decoding and evaluation"
        disk = self.disk
        speech, pictures = (f"{size / 1e9:,.3g} GB" for size in (disk.hour_of_speech, disk.thousand_pictures))
        each = f"{speech} an hour of speech, {pictures} 1,000 pictures"
        if self.recomputed is not None:
            yield "disk for features", f"none; kept, they would take {each}"
        else:
            total = "" if disk.total is None else f"{disk.total / 1e9:,.3g} GB: "
            yield "disk for features", f"{total}{each}"


def plan_training(
    recipe: Recipe,
    *,
    peak: str | None = None,
    share: float = DEFAULT_SHARE,
    clip_seconds: float | None = None,
    cards: int = 1,
) -> TrainingPlan:
    """Plans a training.

    Args:
        recipe: every setting. Names of encoders are looked up in folders and in the hub's cache on this disk, and among
            those that are known.
        peak: name of a card, TFLOP/s as a number, or "here" to measure this machine; None is an A100, or "here" where
            the recipe stays on the processor.
        share: of the peak that is reached, 0 to 1.
        clip_seconds: mean length of a clip, where the manifest does not tell or is not there.
        cards: processes with a card each, which share the batch.

    Raises:
        ConfigError: a value is out of range, or a configuration or a length is nowhere to be found.
        ManifestError: the manifest is there and cannot be read.
        SaySeeError: the model cannot be what the recipe says.
    """
    _check(recipe, share, clip_seconds, cards)
    on_processor = recipe.training.device == "cpu"
    chip = _chip(recipe, peak)
    arithmetic = (
        arithmetic_of(recipe.training.precision, "cpu") if on_processor else chip.arithmetic(recipe.training.precision)
    )
    lengths = clip_lengths(recipe, clip_seconds)
    recomputed = why_not_kept(recipe, lengths)
    built = replace(recipe, model=without_weights(recipe.model))

    def trace(seconds: float) -> tuple[Objective, StepCount]:
        return trace_step(
            built,
            size=recipe.data.batch_size // cards,
            seconds=seconds,
            kept=recomputed is None,
            arithmetic=arithmetic,
            as_accelerator=not on_processor,
        )

    objective, step = trace(lengths.longest)
    mean = step if lengths.mean == lengths.longest else trace(lengths.mean)[1]
    return TrainingPlan(
        recipe=recipe,
        parameters=_parameters(objective),
        lengths=lengths,
        recomputed=recomputed,
        step=step,
        flops=mean.flops * cards,
        chip=chip,
        cards=cards,
        arithmetic=arithmetic,
        share=share,
        disk=disk_need(objective.model, recipe, lengths, kept=recomputed is None),
    )


def _check(recipe: Recipe, share: float, clip_seconds: float | None, cards: int) -> None:
    if not 0 < share <= 1:
        raise ConfigError(f"--share is {share:g}; give the share of the peak that is reached, above 0 and at most 1")
    if clip_seconds is not None and not 0 < clip_seconds < float("inf"):
        raise ConfigError(f"--clip-seconds is {clip_seconds:g}; give a number of seconds above 0")
    if cards < 1 or recipe.data.batch_size % cards or recipe.data.batch_size // cards < 2:
        raise ConfigError(
            f"--cards is {cards}; give a number that shares data.batch_size ({recipe.data.batch_size}) evenly, "
            "at least 2 pairs each"
        )
    if recipe.training.shard:
        raise ConfigError(
            "training.shard is not planned for yet; set it to false to see what each card takes unsharded"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a plan takes one process: start it without torchrun, and say how many cards by --cards")


def _chip(recipe: Recipe, peak: str | None) -> Chip:
    import torch

    if recipe.training.device == "cpu":
        chip = chip_of(peak or HERE, recipe.training.precision, "cpu")
        if chip.memory_gib is not None:
            raise ConfigError(f"--peak is {peak!r}, and training.device is cpu; give TFLOP/s as a number, or 'here'")
        return chip
    return chip_of(peak or DEFAULT_PEAK, recipe.training.precision, "cuda" if torch.cuda.is_available() else "cpu")


def _parameters(objective: Objective) -> dict[str, tuple[int, int]]:
    """Parameters of each part that is there, all and trainable."""
    parts = {
        "HuBERT": ("model.speech_encoder.hubert.",),
        "CLIP's image side": ("model.image_encoder.clip.vis",),
        "CLIP's text side": ("model.image_encoder.",),
        "speech head": ("model.speech_encoder.",),
        "fusion encoder and tasks": ("model.fusion.", "tasks."),
    }
    counts = dict.fromkeys(("all", *parts), (0, 0))
    for name, parameter in objective.named_parameters():
        part = next(part for part, prefixes in parts.items() if name.startswith(prefixes))
        trained = parameter.numel() * parameter.requires_grad
        for key in ("all", part):
            counts[key] = (counts[key][0] + parameter.numel(), counts[key][1] + trained)
    return {part: count for part, count in counts.items() if count[0]}


def _binary(size: float) -> str:
    """Bytes of memory for people."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
