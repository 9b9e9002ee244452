"""The training loop.

A step: :meth:`Trainer.step` takes batches and moves the weights; :meth:`saysee.training.objective.Objective.forward`
turns a batch into features and these into the weighted sum of the tasks' losses (``saysee.tasks``).
"""

from __future__ import annotations

import itertools
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saysee.data.loader import Batch, ResumableLoader
from saysee.data.manifest import Manifest
from saysee.encoding.precision import arithmetic_of, attention_kernel
from saysee.errors import CheckpointError, ConfigError, SaySeeError
from saysee.files import fingerprint, write_folder
from saysee.log import progress_bar
from saysee.settings.recipe import Recipe
from saysee.signals import on_signals
from saysee.tasks.contrastive import AllImages, CachedChunk, ContrastiveTask
from saysee.training.checkpoint import (
    Resumable,
    RunFolder,
    TrainingState,
    find_checkpoints,
    save_checkpoint,
    save_tasks,
)
from saysee.training.data import FeatureBatch, TrainingData
from saysee.training.objective import TrainingBatch, build_objective, learning_rate_factor, parameter_groups
from saysee.training.processes import Processes
from saysee.training.records import MetricsLog, environment, find_signs, training_facts, validate

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
"""A line of progress is logged at most this often."""


class Trainer:
    """Trains what a recipe describes; ``name`` is the run's in log messages, by default that of its folder.

    Raises SaySeeError if the manifest, an encoder or a setting cannot be used.
    """

    def __init__(self, recipe: Recipe, name: str | None = None) -> None:
        if not recipe.data.manifest:
            raise ConfigError("data.manifest is not set; give the path of a manifest: --data.manifest PATH")
        self.recipe = recipe
        self.folder = RunFolder(Path(recipe.output))
        self.name = name or self.folder.path.name
        device = "cpu" if recipe.training.device == "cpu" or not torch.cuda.is_available() else "cuda"
        self.arithmetic = arithmetic_of(recipe.training.precision, device)
        self.processes = Processes(self.arithmetic, cpu=recipe.training.device == "cpu")
        self.accelerator = self.processes.accelerator
        _check_shares(recipe, self.processes.count)
        with self.processes.ending_together():
            self.manifest = Manifest.read(recipe.data.manifest)
            self.objective = build_objective(recipe)
            self.model = self.objective.model
            self.data = TrainingData(recipe, self.manifest, self.model, self.processes, self.arithmetic)
            self._leave_gaps_out()
            self._prepared = self.accelerator.prepare_model(self.objective)
        (beta1, beta2), decay = recipe.optimizer.betas, recipe.optimizer.weight_decay
        groups = parameter_groups(self.objective, recipe.optimizer)
        adam = torch.optim.Adam(groups, betas=(beta1, beta2), weight_decay=decay)
        self.optimizer: Any = self.accelerator.prepare_optimizer(adam)
        # Dropout and noise start from the same state whatever was built before, and from another in each process.
        self.processes.seed_draws(recipe.training.seed + 1)
        self.state = TrainingState()
        self._signals = set[int]()

    def _leave_gaps_out(self) -> None:
        noise = self.recipe.speech_noise
        epochs = self.recipe.training.steps * self.recipe.optimizer.accumulate / len(self.loader)
        if noise.clips and epochs < noise.min_epochs:
            self.objective.speech_noise = replace(noise, clips=0.0)
            words = "%s: gaps in speech are off: each clip is seen %.1f times, fewer than speech_noise.min_epochs (%g)"
            logger.info(words, self.name, epochs, noise.min_epochs)

    @property
    def loader(self) -> ResumableLoader[Batch] | ResumableLoader[FeatureBatch]:
        """The loader to train with; see :attr:`TrainingData.loader`."""
        return self.data.loader

    def cache_features(self) -> None:
        """Computes what is missing of the features that can be cached, to read them from disk at each step."""
        if self.data.recomputed is not None:
            logger.info("%s: features are recomputed at each step: %s", self.name, self.data.recomputed)
            return
        folder = self.data.cache_features()
        logger.info("%s: features of the frozen encoders are read from %s", self.name, folder)

    def compare_with_all(self, all_images: Callable[[], AllImages] | None = None) -> None:
        """Gives the contrastive task all training images, or others, where the recipe compares clips with all."""
        for task in self.objective.tasks.values():
            if isinstance(task, ContrastiveTask) and self.recipe.contrastive.negatives == "all":
                task.among = (all_images or self.data.all_images)().to(self.accelerator.device)

    def fit(self, resume: str = "never") -> dict[str, Any]:
        """Trains to the end.

        Args:
            resume: "auto" resumes the run in the output folder, and returns the result of a finished one; "never" fails
                if the folder already holds a run.

        Returns the content of ``result.json``: steps, best step, its mean R@1 on the validation split in percent,
        training seconds (without evaluation), clips a second, peak memory in MiB, skipped files.

        Raises CheckpointError if the folder holds another run; KeyboardInterrupt after SIGINT or SIGTERM, when a
        checkpoint is written.
        """
        processes = self.processes
        with processes.ending_together():
            result = processes.on_rank_0(partial(self.folder.result, self.recipe, resume))
            if result is not None:
                return result
            self.cache_features()  # before the folder holds a run: an error here asks for other settings
            self.compare_with_all()
            bad_of_validation = list(self.data.check_validation().items())
            self._report_skipped(bad_of_validation)
            about = partial(
                environment,
                self.recipe.training.seed,
                self.accelerator.device,
                arithmetic=self.arithmetic,
                processes=processes.count,
                recomputed=self.data.recomputed,
            )
            processes.on_rank_0(partial(self.folder.claim, self.recipe, about))
            self._restore()
        with on_signals(self._stop_between_steps, signal.SIGINT, signal.SIGTERM), processes.ending_together():
            self._run()
            result = self.state.result(bad_of_validation + self.loader.bad_files)
            processes.on_rank_0(partial(self.folder.write_result, result))
        return result

    def _run(self) -> None:
        if (count := self.processes.count) > 1:
            batch = self.recipe.data.batch_size
            shares = f"{batch // count} pairs each, {batch} together (global batch)"
            logger.info("%s: %d processes, %s", self.name, count, shares)
        own_log = closing(MetricsLog(self.folder.path, self.state.step)) if self.processes.is_first else nullcontext()
        with own_log as log, attention_kernel(self.accelerator.device.type, self.arithmetic == "bf16"):
            self._take_steps(log)
        self._report_bad_files()

    def _take_steps(self, log: MetricsLog | None) -> None:
        settings, state = self.recipe.training, self.state
        eval_every = settings.eval_every or max(1, len(self.loader) // self.recipe.optimizer.accumulate)
        batches = self.batches()
        self.objective.train()
        reported = time.monotonic()
        with progress_bar(self.name, settings.steps, state.step) as bar:
            while state.step < settings.steps and not state.stopped_early:
                started = time.perf_counter()
                metrics, clips = self.step(batches, state.step)
                state.add_step(metrics, clips, time.perf_counter() - started)
                bar.update()
                last = state.step == settings.steps
                if log is not None and (last or state.step % settings.log_every == 0):
                    means = {**state.take_log_means(), "clips_per_second": state.clips_per_second}
                    log.write("train", state.step, means)
                if time.monotonic() - reported > SECONDS_BETWEEN_LINES:
                    reported = time.monotonic()
                    self._report_progress(metrics["loss"])
                if last or state.step % eval_every == 0:
                    self._evaluate(log)
                if last or state.stopped_early or state.step % settings.checkpoint_every == 0:
                    self._save()
                if self.processes.any(bool(self._signals)):
                    self._save()
                    raise KeyboardInterrupt

    def step(self, batches: Iterator[TrainingBatch], number: int) -> tuple[dict[str, float], int]:
        """Takes the optimizer step after ``number`` others, on this process's shares of the next batches.

        Returns the metrics, as means over processes and accumulated batches, and how many clips all processes took
        together. Raises SaySeeError if the loss or a gradient is not finite, or the memory of the GPU is too small.
        """
        settings = self.recipe.optimizer
        factor = learning_rate_factor(number, self.recipe.training.steps, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        weights = self.objective.weights_at(number)
        sums: dict[str, float] = {}
        clips = 0
        for accumulated in range(1, settings.accumulate + 1):
            batch = next(batches)
            clips += len(batch)
            try:
                of_batch = self._backward(batch, weights, last=accumulated == settings.accumulate)
            except torch.OutOfMemoryError:
                raise SaySeeError(
                    f"the memory of the GPU is too small for step {number + 1}; set data.chunk_size below its "
                    f"{len(batch)} pairs, or lower data.batch_size"
                ) from None
            for key, value in of_batch.items():
                sums[key] = sums.get(key, 0.0) + value / settings.accumulate
        means = self.processes.mean(sums)
        norm = float(self.accelerator.clip_grad_norm_(self.objective.parameters(), settings.clip_norm))
        for name, value in (("loss", means["loss"]), ("norm of the gradient", norm)):
            if not math.isfinite(value):
                raise SaySeeError(
                    f"the {name} is {value} at step {number + 1}; lower optimizer.lr, or set training.precision to fp32"
                )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {**means, "gradient_norm": norm, "lr_factor": factor}, clips * self.processes.count

    def _backward(self, batch: TrainingBatch, weights: Mapping[str, float], last: bool) -> dict[str, float]:
        """Adds the gradients of a batch, in chunks if the recipe says so, and returns its metrics.

        After the ``last`` batch of a step the gradients are averaged over all processes.
        """
        chunks = [batch.part(rows) for rows in slices(len(batch), self.recipe.data.chunk_size or len(batch))]
        cached: Sequence[CachedChunk | None] = [None]
        if len(chunks) > 1:
            with self.accelerator.autocast():
                cached = self.objective.cache(chunks)
        metrics: dict[str, float] = {}
        for number, chunk in enumerate(chunks):
            share = len(chunk) / len(batch)
            averaging = last and number == len(chunks) - 1
            with nullcontext() if averaging else self.accelerator.no_sync(self._prepared):
                on_device = chunk.to(self.accelerator.device)
                results: dict[str, Tensor] = self._prepared(on_device, weights, cached[number])
                self.accelerator.backward(results["loss"] * (share / self.recipe.optimizer.accumulate))
            for key, value in results.items():
                metrics[key] = metrics.get(key, 0.0) + share * float(value.detach())
        return metrics

    def batches(self) -> Iterator[TrainingBatch]:
        """Batches without end, epoch after epoch; logs the files that were skipped at the end of each.

        Raises SaySeeError if every file of an epoch was skipped.
        """
        while True:
            empty = True
            for batch in self.loader:
                empty = False
                yield batch
            self._report_bad_files()
            if empty and not self.state.mid_epoch:
                raise SaySeeError(
                    f"every file of split {self.recipe.data.train_split!r} was skipped; "
                    "'saysee data verify' reports what is wrong with them"
                )
            self.state.mid_epoch = False

    def _evaluate(self, log: MetricsLog | None) -> None:
        state, settings = self.state, self.recipe.training
        measured = self.processes.on_rank_0(lambda: validate(self.objective, self.data, self.recipe))
        metrics = {**measured, **state.take_interval_means()}
        signs = find_signs(metrics, state.previous_contrastive, state.step / settings.steps, state.signs)
        for sign, explanation in signs.items():
            if sign not in state.signs:
                logger.warning("%s: step %d: %s", self.name, state.step, explanation)
        state.signs = sorted(signs)
        state.previous_contrastive = metrics.get("contrastive_loss")
        if log is not None:
            log.write("val", state.step, {**metrics, **{f"sign/{sign}": 1.0 for sign in signs}})
        if state.add_evaluation(metrics, settings.patience, settings.best_by):
            self.processes.on_rank_0(
                partial(write_folder, self.folder.path / "best", partial(self._save_model, metrics))
            )

    def _save_model(self, metrics: Mapping[str, float], folder: Path) -> None:
        environment = self.folder.environment()
        self.model.trained = training_facts(self.recipe, self.manifest, environment, self.state.step, metrics)
        self.model.save_pretrained(folder, fusion=self.recipe.training.save_fusion)
        if self.recipe.training.save_fusion:
            save_tasks(folder, self.objective.tasks)

    def _save(self) -> None:
        state, keep = self._resumable().state_dict(), self.recipe.training.keep_checkpoints
        self.processes.on_rank_0(lambda: save_checkpoint(self.folder.checkpoints, self.state.step, state, keep))

    def _restore(self) -> None:
        checkpoints = find_checkpoints(self.folder.checkpoints)
        if checkpoints:
            before, now = self._resumable().load(checkpoints[-1], self.recipe.training.seed + 1), self.processes.count
            if before != now:
                change = "dropout and noise are drawn anew; denoising and matching work on shares of another size"
                logger.info("%s: a run of %d processes is resumed by %d: %s", self.name, before, now, change)
        steps = self.processes.gather(self.state.step)
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"{self.folder.path}: the processes find checkpoints of different steps {steps}; put the run on a disk "
                "that all machines share"
            )

    def _resumable(self) -> Resumable:
        parts = (self.objective, self.optimizer, self.loader, self.state, self.processes)
        return Resumable(*parts, self.data.val_checksum, self._frozen)

    @cached_property
    def _frozen(self) -> str:
        """A fingerprint of the weights that training does not change."""
        frozen = [weight.detach() for weight in self.objective.parameters() if not weight.requires_grad]
        return fingerprint(*(weight.cpu().flatten().view(torch.uint8).numpy().data for weight in frozen))

    def _report_progress(self, loss: float) -> None:
        state, steps = self.state, self.recipe.training.steps
        recall = "" if state.recall is None else f"mean R@1 {state.recall:.1f} %, "
        left = int((steps - state.step) * state.seconds / state.step)
        speed = f"{state.clips_per_second:.0f} clips/s, {left // 60}:{left % 60:02d} left"
        logger.info("%s: step %d of %d, loss %.3f, %s%s", self.name, state.step, steps, loss, recall, speed)

    def _report_bad_files(self) -> None:
        """Logs the training files that were skipped since the last time."""
        bad = self.loader.bad_files
        self._report_skipped(bad[self.state.reported_bad_files :])
        self.state.reported_bad_files = len(bad)

    def _report_skipped(self, files: Sequence[tuple[str, str]]) -> None:
        if files:
            logger.warning("%s: %d files skipped", self.name, len(files))
        for path, reason in files:
            logger.warning("%s: skipped %s: %s", self.name, path, reason)

    def _stop_between_steps(self, kind: int, *_: object) -> None:
        """Handles SIGINT and SIGTERM; a second one of the same kind stops a single process at once.

        A training of a study receives one of each: from the terminal, and from the study. Each of several processes
        receives two: from the terminal or the scheduler, and from torchrun.
        """
        if kind in self._signals and self.processes.count == 1:
            raise KeyboardInterrupt
        self._signals.add(kind)


def slices(count: int, most: int) -> list[slice]:
    """0 to ``count`` in as few slices of at most ``most`` as possible, of sizes that differ by at most 1."""
    parts = -(-count // most)
    edges = [count * part // parts for part in range(parts + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(edges)]


def _check_shares(recipe: Recipe, processes: int) -> None:
    """Raises ConfigError where several processes leave one pair each to a task that needs another image."""
    share = recipe.data.batch_size // processes
    if share < 2 and (recipe.denoising.weight or recipe.matching.weight):
        raise ConfigError(
            f"data.batch_size is {recipe.data.batch_size} over {processes} processes, {share} each; denoising and "
            "matching work on each process's own pairs and need at least 2"
        )
