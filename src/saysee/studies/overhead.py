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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from saysee.data.loader import Batch
from saysee.data.manifest import Manifest
from saysee.encoding.encoder import Encoder
from saysee.errors import ConfigError
from saysee.evaluation.statistics import image_interval
from saysee.evaluation.table import Table, number, write_tables
from saysee.files import write_bytes
from saysee.hardware import torch_device
from saysee.log import progress_bar
from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.settings.reading import load_recipe
from saysee.settings.recipe import Recipe
from saysee.studies.plots import bars_png
from saysee.studies.processes import interrupted_once, run_alone
from saysee.tasks.contrastive import ContrastiveTask
from saysee.tasks.denoising import DenoisingTask
from saysee.training.dry_run import as_cached, dry_run, timed_batches
from saysee.training.objective import TrainingBatch, build_model
from saysee.training.records import environment
from saysee.training.trainer import Trainer, slices

QUERIES, REPEATS = 16, 10  # clips that are encoded as queries by both models in turn, and how often
SPEECH, IMAGE, HEAD = "speech encoder", "image encoder", "speech head"
CONTRASTIVE, FUSION, LOSS, REST = "contrastive loss", "fusion encoder", "denoising loss", "rest"


@dataclass(frozen=True)
class Overhead:
    """The result of :func:`run_overhead`."""

    recipe: str
    rows: Sequence[Mapping[str, Any]]  # as of :func:`_row`, the baseline before CMD with the same batches and features
    recomputed: str | None  # why there are no rows with cached features
    query: Mapping[str, Any]  # as of :func:`_time_queries`
    environment: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def to_tables(self) -> list[Table]:
        """Time and memory, and FLOPs by part."""
        parts = list(dict.fromkeys(part for row in self.rows for part in row["turns"][0]["flops"]))
        measured, counted, sections = [], [], []
        for place, row in enumerate(self.rows):
            first = [str(row["batch_size"]), "cached" if row["cached"] else "recomputed", row["model"]]
            times = [number(row[key][0], n, interval=row[key][1:]) for key, n in (("seconds", 3), ("ratio", 2))]
            mib = None if row["memory"] is None else row["memory"] / 2**20
            cells = [number(mib, 0), number(row["memory_ratio"], 2), number(row["flops"] / 1e9, 2)]
            measured.append([*first, *times, *cells, number(row["flops_ratio"], 2)])
            of_parts = (row["turns"][0]["flops"].get(part) for part in parts)
            counted.append([*first, *(number(found and found / 1e9, 3) for found in of_parts)])
            sections += [place] if place and not row["layers"] else []
        turns = self.rows[0]["turns"]
        about = f"{turns[0]['device']}, {turns[0]['arithmetic']}; median (lowest to highest) of {len(turns)} rounds"
        notes = [f"{about} in turn", "ratio: to the baseline with the same batch size and features, in the same round"]
        notes += [] if self.recomputed is None else [f"no cached features: {self.recomputed}"]
        heads = ["batch", "features", "model"]
        columns = ["seconds a step", "ratio", "peak MiB", "ratio", "GFLOPs", "ratio"]
        return [
            Table(f"Training step of {self.recipe}", [*heads, *columns], measured, 3, notes, sections),
            Table("GFLOPs of a step by part, forward and backward", [*heads, *parts], counted, 3, (), sections),
        ]

    def to_line(self) -> str:
        """The query."""
        query = self.query
        times = f"{1000 * query['baseline']:.1f} ms by the baseline and {1000 * query['cmd']:.1f} ms by CMD"
        gflops = " and ".join(f"{count / 1e9:.4g}" for count in query["flops"])
        return f"a query: {times}, ratio {number(query['ratio'], 3, interval=query['interval'])}; {gflops} GFLOPs"

    def write(self, folder: Path) -> None:
        """Writes ``table.md``, ``results.json`` and ``overhead.png`` into a folder, which need not exist."""
        title = f"Overhead of cross-modal denoising: {self.recipe}"
        write_tables(folder, title, self.to_tables(), self.to_dict(), [self.to_line()])
        write_bytes(folder / "overhead.png", self._picture())

    def _picture(self) -> bytes:
        places = list(dict.fromkeys(_place(row["batch_size"], row) for row in self.rows))
        seconds: dict[str, list[Any]] = {row["model"]: [] for row in self.rows}
        memory: dict[str, list[Any]] = {row["model"]: [] for row in self.rows}
        for row in self.rows:
            seconds[row["model"]].append(row["seconds"])
            memory[row["model"]].append(((row["memory"] or 0) / 2**30,) * 3)
        size = self.rows[-1]["batch_size"]
        largest = {
            _place(row["model"], row): row["turns"][0]["flops"] for row in self.rows if row["batch_size"] == size
        }
        parts = dict.fromkeys(part for flops in largest.values() for part in flops)
        stacked = {part: [(flops.get(part, 0) / 1e9,) * 3 for flops in largest.values()] for part in parts}
        panels = [
            ("seconds a step, by batch size", places, seconds, False),
            ("peak memory, GiB", places, memory, False),
            (f"GFLOPs a step of {size} pairs, by part", list(largest), stacked, True),
        ]
        return bars_png(f"Cost of cross-modal denoising, {self.recipe}", panels)


@interrupted_once()
def run_overhead(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    batch_sizes: Sequence[int] = (32, 64),
    depths: Sequence[int] = (1, 2),
    rounds: int = 3,
) -> Overhead:
    """Measures every row, and a query.

    ``recipe``, a YAML file of settings or the name of a packaged recipe, is one with denoising; ``depths`` are numbers
    of fusion layers, and ``rounds`` the turns of each row.

    Raises SaySeeError if a setting cannot be used, or a dry run fails.
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
    turns: dict[tuple[int, bool, int], list[dict[str, Any]]] = {key: [] for key in keys}
    recomputed = None
    with progress_bar("turns", rounds * len(keys)) as bar:
        for taken in range(rounds):
            for key in keys if taken % 2 == 0 else keys[::-1]:
                bar.update()
                if key[1] and recomputed is not None:
                    continue
                turn = run_alone(_take_turn, recipes[key], taken == 0)
                if key[1] and turn["recomputed"] is not None:
                    recomputed = turn["recomputed"]
                else:
                    turns[key].append(turn)
    rows = [_row(*key, of_row, turns[(*key[:2], 0)]) for key, of_row in turns.items() if of_row]
    query = run_alone(_time_queries, recipes[keys[0]], recipes[keys[-1]])
    settings = recipes[keys[0]].training
    machine = environment(settings.seed, torch.device(torch_device(settings.device)))
    return Overhead(recipe, rows, recomputed, query, machine)


def _recipe(recipe: str, overrides: Sequence[str], batch_size: int, cached: bool, layers: int) -> Recipe:
    depth = f"--fusion.layers={layers}" if layers else "--denoising.weight=0"
    keep = "auto" if cached else "off"
    return load_recipe(recipe, [*overrides, f"--data.batch_size={batch_size}", f"--features.keep={keep}", depth])


def _row(
    batch_size: int, cached: bool, layers: int, turns: list[dict[str, Any]], of_baseline: list[dict[str, Any]]
) -> dict[str, Any]:
    """A row as plain values; the baseline has 0 layers.

    Of a step: ``seconds`` and their ``ratio`` to the baseline in the same round are median, lowest and highest over the
    rounds; ``memory`` is the median of the peaks, in bytes.
    """
    peaks = [[turn["memory"] for turn in each if turn["memory"] is not None] for each in (turns, of_baseline)]
    memory, base_memory = (statistics.median(each) if each else None for each in peaks)
    flops, base_flops = (sum(each[0]["flops"].values()) for each in (turns, of_baseline))
    pairs = zip(turns, of_baseline, strict=True)
    return {
        "model": f"CMD, {layers} layer{'s' * (layers != 1)}" if layers else "baseline",
        "batch_size": batch_size,
        "cached": cached,
        "layers": layers,
        "seconds": _spread([turn["seconds"] for turn in turns]),
        "ratio": _spread([turn["seconds"] / base["seconds"] for turn, base in pairs]),
        "memory": memory,
        "memory_ratio": memory / base_memory if memory and base_memory else None,
        "flops": flops,
        "flops_ratio": flops / base_flops,
        "turns": turns,
    }


def _place(what: Any, row: Mapping[str, Any]) -> str:
    """What the picture calls a row."""
    return f"{what}\n{'cached' if row['cached'] else 'recomputed'}"


def _take_turn(recipe: Recipe, count: bool) -> dict[str, Any]:
    """A dry run, in a process of its own; then, if asked for, the FLOPs of its first timed step by part.

    ``memory`` is the peak in bytes: of the GPU where there is one; None where it is not reported.
    """
    trainer = Trainer(recipe, name="overhead")
    run = dry_run(trainer)
    return {
        "seconds": run.seconds_per_step,
        "memory": run.peak_memory_bytes if run.peak_gpu_memory_bytes is None else run.peak_gpu_memory_bytes,
        "flops": flops_of_step(trainer, timed_batches(trainer)) if count else {},
        **{name: getattr(run, name) for name in ("recomputed", "device", "arithmetic")},
    }


def _time_queries(baseline: Recipe, cmd: Recipe) -> dict[str, Any]:
    """Encodes clips of the validation split as queries by both models in turn, in a process of its own.

    Seconds of both are medians over clips and repeats; ``ratio`` is the mean over clips of the ratio of their medians,
    with its 95 % bootstrap interval; ``flops`` are those of the first clip by both.
    """
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
    return {
        "baseline": float(np.median(seconds[0])),
        "cmd": float(np.median(seconds[1])),
        "ratio": float(ratios.mean()),
        "interval": image_interval(ratios, np.arange(len(clips))),
        "flops": [count_flops(partial(encoder.encode_prepared, "clip", clips[:1])) for encoder in encoders],
    }


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def count_flops(compute: Callable[[], Any]) -> int:
    """FLOPs of calling ``compute``, and of the backward pass through the tensors that it returns.

    They are its result, or in a tuple, list or dictionary of it; those without gradient are ignored. Matrix products
    and convolutions count: [A, B] by [B, C] as 2ABC. Attention is computed in its plain form, as the counter does not
    know the fast kernels of CPUs.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = compute()
        outputs = list(result.values()) if isinstance(result, dict) else result
        outputs = outputs if isinstance(outputs, tuple | list) else [outputs]
        if trained := [each for each in outputs if isinstance(each, Tensor) and each.requires_grad]:
            torch.autograd.backward(trained, [torch.ones_like(each) for each in trained])
    return int(counter.get_total_flops())


def flops_of_step(trainer: Trainer, batches: Sequence[TrainingBatch]) -> dict[str, int]:
    """FLOPs by part, forward and backward, of an optimizer step on its accumulated batches, which is taken.

    Each part runs alone on what it gets in a step, so that its backward pass is its own. "rest" is what the whole step
    takes beyond the parts: with ``data.chunk_size``, the first of the two passes over each chunk.
    """
    parts = dict.fromkeys((SPEECH, IMAGE, HEAD, CONTRASTIVE, FUSION, LOSS), 0)
    with trainer.accelerator.autocast():
        for batch in batches:
            encoded = []
            for rows in slices(len(batch), trainer.recipe.data.chunk_size or len(batch)):
                encoded.append(_add_chunk(parts, trainer, batch.part(rows).to(trainer.accelerator.device)))
            _add_contrastive(parts, trainer, encoded)
    trainer.optimizer.zero_grad()
    whole = count_flops(partial(trainer.step, iter(batches), trainer.recipe.training.steps - 1))
    parts[REST] = whole - sum(parts.values())
    return {part: count for part, count in parts.items() if count}


Encoded = tuple[SpeechFeatures, ImageFeatures, Tensor]


def _add_chunk(parts: dict[str, int], trainer: Trainer, batch: TrainingBatch) -> Encoded:
    """Adds what a chunk costs but for the contrastive loss; returns its features as the tasks get them."""
    objective, model = trainer.objective, trainer.model
    cached = batch
    if isinstance(batch, Batch):
        parts[SPEECH] += count_flops(lambda: model.speech_encoder.layer_states(batch.waveforms, batch.speech_mask)[0])
        parts[IMAGE] += count_flops(lambda: vars(model.image_encoder(batch.pixels)))
        cached = as_cached(trainer, batch)
        if trainer.recipe.model.speech_trainable:
            cached.states.requires_grad_()
        if trainer.recipe.model.image_trainable:
            cached.vectors.requires_grad_()
            cached.patches.requires_grad_()
    parts[HEAD] += count_flops(lambda: objective.features(cached)[0].vector)
    speech, images, inputs = objective.features(cached)
    vector, frames = (each.detach().requires_grad_() for each in (speech.vector, speech.frames))
    speech = replace(speech, vector=vector, frames=frames)
    arguments = speech, images, batch.image_ids
    for task in objective.tasks.values():
        if isinstance(task, DenoisingTask):
            fused = sum(
                count_flops(partial(task.reconstruct, side, *arguments, inputs=inputs)) for side in task.noisy_sides
            )
            parts[FUSION] += fused
            parts[LOSS] += count_flops(partial(task, *arguments, inputs)) - fused
    return arguments


def _add_contrastive(parts: dict[str, int], trainer: Trainer, encoded: Sequence[Encoded]) -> None:
    """Adds the contrastive loss of a whole batch."""
    own = torch.cat([speech.vector for speech, *_ in encoded]).detach().requires_grad_()
    other = torch.cat([images.vector for _, images, _ in encoded])
    # Gradients of vectors are computed for chunks even where no encoder is trained.
    other = other.detach().requires_grad_(len(encoded) > 1 or other.requires_grad)
    vectors = replace(encoded[0][0], vector=own), replace(encoded[0][1], vector=other)
    ids = torch.cat([of_chunk for *_, of_chunk in encoded])
    for task in trainer.objective.tasks.values():
        if isinstance(task, ContrastiveTask):
            parts[CONTRASTIVE] += count_flops(partial(task, *vectors, ids))
