"""What cross-modal denoising costs: time, memory and FLOPs of a training step, and the time of a query.

    result = run_overhead("nano", ["--data.manifest", "scenes/manifest.parquet"])
    result.write(Path("overhead"))

Rows are the baseline and CMD with each number of fusion layers, at each batch size, with cached features and with
features recomputed at each step. They take turns, each turn a dry run in a process of its own, so that other load on
the machine meets all of them, and memory is that of the row alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from saysee.data.manifest import Manifest
from saysee.encoding.encoder import Encoder
from saysee.errors import ConfigError
from saysee.evaluation.statistics import image_interval
from saysee.evaluation.table import NONE, Table, number, write_tables
from saysee.files import write_bytes
from saysee.hardware import torch_device
from saysee.log import progress_bar
from saysee.settings.reading import load_recipe
from saysee.settings.recipe import Recipe
from saysee.studies.flops import count_flops, flops_of_step
from saysee.studies.plots import bars_png
from saysee.studies.processes import run_alone
from saysee.training.dry_run import rehearse, timed_batches
from saysee.training.objective import build_model
from saysee.training.records import environment
from saysee.training.trainer import Trainer

QUERIES, REPEATS = 16, 10
"""Clips that are encoded as queries by both models in turn, and how often."""


@dataclass(frozen=True)
class Turn:
    """A dry run."""

    seconds: float  # of a step: the median of the timed ones
    memory: int | None  # bytes at the peak: of the GPU where there is one; None where it is not reported
    recomputed: str | None  # why features are recomputed; None when they are cached
    flops: Mapping[str, int]  # of a step by part; empty but in the first round
    device: str
    arithmetic: str


@dataclass(frozen=True)
class Row:
    """A row: the baseline has 0 layers."""

    batch_size: int
    cached: bool
    layers: int
    turns: Sequence[Turn]

    @property
    def model(self) -> str:
        """Its name."""
        return f"CMD, {self.layers} layer{'s' * (self.layers != 1)}" if self.layers else "baseline"

    @property
    def seconds(self) -> tuple[float, float, float]:
        """Median, lowest and highest seconds of a step over the rounds."""
        return _spread([turn.seconds for turn in self.turns])

    @property
    def memory(self) -> float | None:
        """Peak memory in bytes: the median over the rounds."""
        found = [turn.memory for turn in self.turns if turn.memory is not None]
        return statistics.median(found) if found else None

    @property
    def flops(self) -> Mapping[str, int]:
        """Of a step by part."""
        return self.turns[0].flops

    def over(self, baseline: Row) -> tuple[float, float, float]:
        """Median, lowest and highest ratio to the baseline's seconds in the same round."""
        return _spread([a.seconds / b.seconds for a, b in zip(self.turns, baseline.turns, strict=True)])


@dataclass(frozen=True)
class Query:
    """A spoken query: a clip of some seconds to its vector."""

    baseline: float  # seconds: the median over clips and repeats
    cmd: float
    ratio: float  # mean over clips of the ratio of their medians
    interval: tuple[float, float]  # 95 %, bootstrap over clips
    flops: tuple[int, int]  # of the first clip, by the baseline and by CMD


@dataclass(frozen=True)
class Overhead:
    """The result of :func:`run_overhead`."""

    recipe: str
    rows: Sequence[Row]
    recomputed: str | None  # why there are no rows with cached features
    query: Query
    environment: Mapping[str, Any]

    def baseline(self, row: Row) -> Row:
        """The baseline with a row's batch size and features."""
        same = (row.batch_size, row.cached, 0)
        return next(each for each in self.rows if (each.batch_size, each.cached, each.layers) == same)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        rows = []
        for row in self.rows:
            measured = {"seconds": row.seconds, "ratio": row.over(self.baseline(row)), "memory": row.memory}
            rows.append({"model": row.model, **measured, "flops": sum(row.flops.values()), **asdict(row)})
        return {**asdict(self), "rows": rows}

    def to_tables(self) -> list[Table]:
        """Time and memory, and FLOPs by part."""
        parts = list(dict.fromkeys(part for row in self.rows for part in row.flops))
        measured, counted, sections = [], [], []
        for place, row in enumerate(self.rows):
            first = [str(row.batch_size), "cached" if row.cached else "recomputed", row.model]
            base, (seconds, *spread) = self.baseline(row), row.seconds
            ratio, *ratios = row.over(base)
            flops, of_base = sum(row.flops.values()), sum(base.flops.values())
            more = row.memory / base.memory if row.memory and base.memory else None
            mib = None if row.memory is None else row.memory / 2**20
            cells = [number(mib, 0), number(more, 2), number(flops / 1e9, 2), number(flops / of_base, 2)]
            measured.append([*first, number(seconds, 3, interval=spread), number(ratio, 2, interval=ratios), *cells])
            of_parts = (row.flops.get(part) for part in parts)
            counted.append([*first, *(NONE if found is None else number(found / 1e9, 3) for found in of_parts)])
            sections += [place] if place and not row.layers else []
        turn, rounds = self.rows[0].turns[0], len(self.rows[0].turns)
        about = f"{turn.device}, {turn.arithmetic}; median (lowest to highest) of {rounds} rounds in turn"
        notes = [about, "ratio: to the baseline with the same batch size and features, in the same round"]
        if self.recomputed is not None:
            notes.append(f"no cached features: {self.recomputed}")
        heads = ["batch", "features", "model"]
        times = ["seconds a step", "ratio", "peak MiB", "ratio", "GFLOPs", "ratio"]
        return [
            Table(f"Training step of {self.recipe}", [*heads, *times], measured, 3, notes, sections),
            Table("GFLOPs of a step by part, forward and backward", [*heads, *parts], counted, 3, (), sections),
        ]

    def to_line(self) -> str:
        """The query."""
        query = self.query
        times = f"{1000 * query.baseline:.1f} ms by the baseline and {1000 * query.cmd:.1f} ms by CMD"
        gflops = " and ".join(f"{count / 1e9:.4g}" for count in query.flops)
        return f"a query: {times}, ratio {number(query.ratio, 3, interval=query.interval)}; {gflops} GFLOPs"

    def write(self, folder: Path) -> None:
        """Writes ``table.md``, ``results.json`` and ``overhead.png`` into a folder, which need not exist."""
        title = f"Overhead of cross-modal denoising: {self.recipe}"
        write_tables(folder, title, self.to_tables(), self.to_dict(), [self.to_line()])
        write_bytes(folder / "overhead.png", self._picture())

    def _picture(self) -> bytes:
        models = list(dict.fromkeys(row.model for row in self.rows))
        kinds = list(dict.fromkeys((row.batch_size, row.cached) for row in self.rows))
        found = {(row.batch_size, row.cached, row.model): row for row in self.rows}
        by_model: dict[str, list[Row]] = {model: [found[(*kind, model)] for kind in kinds] for model in models}
        places = [f"{size}\n{'cached' if cached else 'recomputed'}" for size, cached in kinds]
        seconds = {model: [row.seconds for row in rows] for model, rows in by_model.items()}
        memory = {model: [((row.memory or 0) / 2**30,) * 3 for row in rows] for model, rows in by_model.items()}
        largest = [row for row in self.rows if row.batch_size == kinds[-1][0]]
        bars = [f"{row.model}\n{'cached' if row.cached else 'recomputed'}" for row in largest]
        parts = {part: None for row in largest for part in row.flops}
        flops = {part: [(row.flops.get(part, 0) / 1e9,) * 3 for row in largest] for part in parts}
        panels = [
            ("seconds a step, by batch size", places, seconds, False),
            ("peak memory, GiB", places, memory, False),
            (f"GFLOPs a step of {kinds[-1][0]} pairs, by part", bars, flops, True),
        ]
        return bars_png(f"Cost of cross-modal denoising, {self.recipe}", panels)


def run_overhead(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    batch_sizes: Sequence[int] = (32, 64),
    depths: Sequence[int] = (1, 2),
    rounds: int = 3,
) -> Overhead:
    """Measures every row, and a query.

    Args:
        recipe: a YAML file of settings, or the name of a packaged recipe; with denoising.
        overrides: of the recipe, as dotted flags.
        batch_sizes: of the rows.
        depths: numbers of fusion layers.
        rounds: turns of each row.

    Raises:
        SaySeeError: a setting cannot be used, or a dry run fails.
    """
    for name, values, least in (("--batch-sizes", batch_sizes, 2), ("--depths", depths, 1)):
        if not values or min(values) < least or len(set(values)) < len(values):
            raise ConfigError(f"{name} is {','.join(map(str, values))}; give different numbers of at least {least}")
    if rounds < 1:
        raise ConfigError(f"--rounds is {rounds}; give at least 1")
    if not load_recipe(recipe, overrides).denoising.weight:
        raise ConfigError(f"denoising is off in {recipe}; turn it on by --denoising.preset paper")
    keys = list(product(batch_sizes, (True, False), (0, *depths)))
    recipes = {key: _recipe(recipe, overrides, *key) for key in keys}  # errors come before the long work
    turns: dict[tuple[int, bool, int], list[Turn]] = {key: [] for key in keys}
    recomputed = None
    with progress_bar("turns", rounds * len(keys)) as bar:
        for taken in range(rounds):
            for key in keys if taken % 2 == 0 else keys[::-1]:
                bar.advance()
                if key[1] and recomputed is not None:
                    continue
                turn = run_alone(_take_turn, recipes[key], taken == 0)
                if key[1] and turn.recomputed is not None:
                    recomputed = turn.recomputed
                else:
                    turns[key].append(turn)
    rows = [Row(*key, of_row) for key, of_row in turns.items() if of_row]
    query = run_alone(_time_queries, recipes[keys[0]], recipes[keys[-1]])
    return Overhead(recipe, rows, recomputed, query, environment(recipes[keys[0]].training.seed))


def _recipe(recipe: str, overrides: Sequence[str], batch_size: int, cached: bool, layers: int) -> Recipe:
    depth = f"--fusion.layers={layers}" if layers else "--denoising.weight=0"
    keep = "auto" if cached else "off"
    return load_recipe(recipe, [*overrides, f"--data.batch_size={batch_size}", f"--features.keep={keep}", depth])


def _take_turn(recipe: Recipe, count: bool) -> Turn:
    """A dry run, in a process of its own; then, if asked for, the FLOPs of its first timed step."""
    trainer = Trainer(recipe, name="overhead")
    run = rehearse(trainer)
    flops = flops_of_step(trainer, timed_batches(trainer)) if count else {}
    memory = run.peak_memory_bytes if run.peak_gpu_memory_bytes is None else run.peak_gpu_memory_bytes
    return Turn(run.seconds_per_step, memory, run.recomputed, flops, run.device, run.arithmetic)


def _time_queries(baseline: Recipe, cmd: Recipe) -> Query:
    """Encodes clips of the validation split by both models in turn, in a process of its own."""
    rows = Manifest.read(baseline.data.manifest).select(baseline.data.val_split)
    device = torch_device(baseline.training.device)
    encoders = [Encoder(build_model(recipe).to(device)) for recipe in (baseline, cmd)]
    clips = [encoders[0].prepare("clip", rows.clip_path(row)) for row in list(rows)[:QUERIES]]
    seconds = np.zeros((2, len(clips), REPEATS))
    for repeat in range(-1, REPEATS):  # the first pass is not timed
        for place, clip in enumerate(clips):
            for which in (0, 1) if repeat % 2 else (1, 0):
                start = time.perf_counter()
                encoders[which].encode_prepared("clip", [clip])
                seconds[which, place, repeat] = time.perf_counter() - start
    medians = np.median(seconds, axis=2)
    ratios = medians[1] / medians[0]
    flops = [count_flops(partial(encoder.encode_prepared, "clip", clips[:1])) for encoder in encoders]
    return Query(
        float(np.median(seconds[0])),
        float(np.median(seconds[1])),
        float(ratios.mean()),
        image_interval(ratios, np.arange(len(clips))),
        (flops[0], flops[1]),
    )


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)
