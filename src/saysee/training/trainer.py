"""The training loop.

A run is a folder: ``recipe.yaml`` (resolved), ``environment.json``, ``metrics.jsonl``, ``tensorboard/``,
``checkpoints/``, ``best/`` (the model that ``training.best_by`` chose, ready for ``from_pretrained``) and, at its end,
``result.json``. Killed at any moment and resumed, it ends with the same weights as if it had never been killed.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from saysee.data.loader import Batch, ResumableLoader, SpeechImageLoader, build_loader
from saysee.data.manifest import Manifest
from saysee.encoding.precision import Arithmetic, arithmetic_of
from saysee.errors import CheckpointError, ConfigError, SaySeeError
from saysee.files import write_text
from saysee.settings.recipe import Recipe, load_recipe, recipe_to_dict, save_recipe
from saysee.training.attention_kernel import attention_kernel
from saysee.training.checkpoint import clean_folder, find_checkpoints, save_checkpoint, write_folder
from saysee.training.count import RunCount
from saysee.training.facts import training_facts
from saysee.training.feature_loader import FeatureBatch, FeatureLoader
from saysee.training.features import KeptFeatures, keep_features, why_recomputed
from saysee.training.log_records import NoRecord, ProgressLine, RunRecord, surroundings
from saysee.training.objective import Objective, build_model, build_tasks
from saysee.training.processes import Processes
from saysee.training.signs import find_signs
from saysee.training.state import RunState
from saysee.training.steps import Steps
from saysee.training.validation import Validation

RECIPE_FILE, ENVIRONMENT_FILE, RESULT_FILE = "recipe.yaml", "environment.json", "result.json"
FREE_TO_CHANGE = (
    "training.keep_checkpoints",
    "training.log_every",
    "data.workers",
    "data.cache_images_mb",
    "features.keep",
    "features.folder",
    "features.limit_gb",
    "output",
)
"""Settings that a resumed run may change: no weight depends on them, or (features) only to numerical noise."""


class Trainer:
    """Trains what a recipe describes.

    Args:
        recipe: every setting; see :class:`saysee.settings.recipe.Recipe`.
        name: what the progress line calls the run; None takes the folder's name.

    Raises:
        SaySeeError: the manifest, an encoder or a setting cannot be used.
    """

    def __init__(self, recipe: Recipe, name: str | None = None) -> None:
        if not recipe.data.manifest:
            raise ConfigError("data.manifest is not set; give the path of a manifest: --data.manifest PATH")
        self.recipe = recipe
        self.folder = Path(recipe.output)
        self.name = name or self.folder.name
        device = "cpu" if recipe.training.device == "cpu" or not torch.cuda.is_available() else "cuda"
        self.arithmetic = arithmetic_of(recipe.training.precision, device)
        self.processes = Processes(self.arithmetic, cpu=recipe.training.device == "cpu")
        self.accelerator = self.processes.accelerator
        with self.processes.ending_together():
            self._build()

    def _build(self) -> None:
        recipe, processes = self.recipe, self.processes
        self.manifest = Manifest.read(recipe.data.manifest)
        self.train_rows = self.manifest.select(recipe.data.train_split)
        self.val_rows = self.manifest.select(recipe.data.val_split)
        _refuse_small_shares(recipe, processes.count)
        self.model = build_model(recipe)
        self.objective = Objective(self.model, build_tasks(recipe, self.model))
        self.steps = Steps(self.objective, recipe, processes)
        # Dropout and noise start from the same place whatever was built before, and from another in each process.
        processes.seed_draws(recipe.training.seed + 1)
        files = self._build_loader()
        self.loader: ResumableLoader[Batch] | ResumableLoader[FeatureBatch] = files
        self.recomputed = why_recomputed(recipe, files.plan)
        self.validation = Validation(recipe, self.val_rows)
        self.progress = RunCount()
        self._stop = False

    def fit(self, resume: str = "never") -> dict[str, Any]:
        """Runs to the end, or goes on with a run that was broken off.

        Args:
            resume: "never" refuses a folder that holds a run; "auto" goes on with it, and returns a finished run's
            result.

        Returns:
            What ``result.json`` holds: steps, best step, best mean R@1 on the validation split in percent, training
            seconds (without evaluation), clips a second, peak memory in MiB, files that were skipped.

        Raises:
            CheckpointError: the folder holds another run.
            KeyboardInterrupt: after SIGINT or SIGTERM, once a checkpoint of what is done is written.
        """
        processes = self.processes
        with processes.ending_together():
            result = processes.on_rank_0(partial(self._result_there, resume))
            if result is None:
                self.keep_features()  # before the folder holds a run: what is refused here asks for other settings
                processes.on_rank_0(self._claim_folder)
                self._restore()
        if result is None:
            with self._stopping_gently(), processes.ending_together():
                self._run()
                result = processes.on_rank_0(self._write_result)
        return result

    # ------------------------------------------------------------------ the loop

    def _run(self) -> None:
        device, first = self.accelerator.device.type, self.processes.is_first
        record = RunRecord(self.folder, self.progress.step) if first else NoRecord()
        line = ProgressLine(self.name, self.recipe.training.steps, quiet=not first)
        if self.processes.count > 1:
            line.say(f"{self.name}: {_shares(self.recipe, self.processes.count)}")
        try:
            with attention_kernel(device, self.arithmetic == "bf16"):
                self._take_steps(record, line)
            self._tell_skipped(line)
        finally:
            record.close()
            line.close()

    def _take_steps(self, record: RunRecord, line: ProgressLine) -> None:
        settings, state = self.recipe.training, self.progress
        batches = self._batches(line)
        self.objective.train()
        while state.step < settings.steps and not state.stopped_early:
            started = time.perf_counter()
            figures, clips = self.steps.take(batches, state.step)
            state.count(figures, clips, time.perf_counter() - started)
            if state.step % settings.log_every == 0 or state.step == settings.steps:
                record.write(
                    "train", state.step, {**state.take_log_means(), "clips_per_second": state.clips_per_second}
                )
            left = (settings.steps - state.step) * state.seconds / state.step
            line.show(state.step, figures["loss"], state.recall, state.clips_per_second, left)
            if state.step % settings.eval_every == 0 or state.step == settings.steps:
                self._evaluate(record, line)
            if state.step % settings.checkpoint_every == 0 or state.step == settings.steps or state.stopped_early:
                self._save()
            if self.processes.any(self._stop):
                self._save()
                raise KeyboardInterrupt

    def _batches(self, line: ProgressLine) -> Iterator[Batch | FeatureBatch]:
        """Batches without end, epoch after epoch; tells at each one's end of the files that were skipped."""
        while True:
            empty = True
            for batch in self.loader:
                empty = False
                yield batch
            self._tell_skipped(line)
            if empty and not self.progress.mid_epoch:
                raise SaySeeError(
                    f"every file of split {self.recipe.data.train_split!r} was skipped; "
                    "'saysee data verify' tells what is wrong with them"
                )
            self.progress.mid_epoch = False

    def _tell_skipped(self, line: ProgressLine) -> None:
        """Counts and lists the files that were skipped since the last time."""
        bad = self.loader.bad_files
        new = bad[self.progress.told_bad_files :]
        if new:
            line.say(f"{self.name}: {len(new)} more files skipped, {len(bad)} in all")
        for path, reason in new:
            line.say(f"{self.name}: skipped {path}: {reason}")
        self.progress.told_bad_files = len(bad)

    def _evaluate(self, record: RunRecord, line: ProgressLine) -> None:
        state, settings = self.progress, self.recipe.training
        objective = self.objective
        measured = self.processes.on_rank_0(lambda: self.validation.figures(objective))
        figures = {**measured, **state.take_interval_means()}
        signs = find_signs(figures, state.previous_contrastive, state.step / settings.steps)
        for sign, why in signs.items():
            if sign not in state.signs:
                line.say(f"{self.name}: step {state.step}: warning: {why}")
        state.signs = sorted(signs)
        state.previous_contrastive = figures.get("contrastive_loss")
        record.write("val", state.step, {**figures, **{f"sign/{sign}": 1.0 for sign in signs}})
        if state.judge(figures["mean_R@1"], settings.patience, settings.best_by):

            def save(folder: Path) -> None:
                environment = self.folder / ENVIRONMENT_FILE
                objective.model.trained = training_facts(self.recipe, self.manifest, environment, state.step, figures)
                objective.model.save_pretrained(folder, fusion=settings.save_fusion)

            self.processes.on_rank_0(lambda: write_folder(self.folder / "best", save))

    # ------------------------------------------------------------------ the folder and its checkpoints

    def _result_there(self, resume: str) -> dict[str, Any] | None:
        """The result of a run that is finished; None where there is one to go on with, or none."""
        recipe_file, result_file = self.folder / RECIPE_FILE, self.folder / RESULT_FILE
        if recipe_file.exists():
            if resume != "auto":
                raise CheckpointError(
                    f"{self.folder} already holds a run; go on with it by --resume auto, or give another --output"
                )
            _refuse_other_recipe(load_recipe(recipe_file), self.recipe, self.folder)
        if not result_file.exists():
            return None
        # Finished: its recipe and surroundings stay those that it ran with.
        result: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
        return result

    def _claim_folder(self) -> None:
        recipe_file = self.folder / RECIPE_FILE
        clean_folder(self.folder)
        clean_folder(self.folder / "checkpoints")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not recipe_file.exists():
            environment = {
                **surroundings(self.recipe.training.seed),
                "arithmetic": self.arithmetic,
                "processes": self.processes.count,
            }
            _write_json(self.folder / ENVIRONMENT_FILE, environment)
            save_recipe(self.recipe, recipe_file)

    def _write_result(self) -> dict[str, Any]:
        result = self.progress.result(self.loader.bad_files)
        _write_json(self.folder / RESULT_FILE, result)
        return result

    def _save(self) -> None:
        state, keep = self._state().take(), self.recipe.training.keep_checkpoints
        self.processes.on_rank_0(lambda: save_checkpoint(self.folder / "checkpoints", self.progress.step, state, keep))

    def _restore(self) -> None:
        checkpoints = find_checkpoints(self.folder / "checkpoints")
        if checkpoints:
            before = self._state().put(checkpoints[-1], self.recipe.training.seed + 1)
            if before != self.processes.count and self.processes.is_first:
                print(
                    f"{self.name}: {self.processes.count} processes go on with a run of {before}: dropout and noise "
                    "are drawn anew, and denoising works on shares of another size",
                    file=sys.stderr,
                )
        steps = self.processes.gather(self.progress.step)
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"{self.folder}: the processes find checkpoints of different steps {steps}; put the run on a disk that "
                "all machines share"
            )

    def _state(self) -> RunState:
        return RunState(self.objective, self.steps.optimizer, self.loader, self.progress, self.processes)

    # ------------------------------------------------------------------ helpers

    def keep_features(self) -> None:
        """Takes kept features in place of files where that changes nothing, once they are all there."""
        first = self.processes.is_first
        if self.recomputed is not None:
            if first:
                print(f"{self.name}: features are recomputed at each step: {self.recomputed}", file=sys.stderr)
            return
        # The others find the features computed; on a machine that does not share the folder, they compute them.
        train, val, bad = self.processes.on_rank_0_first(self._kept_features)
        if first:
            print(f"{self.name}: features of the frozen encoders are taken from {train.folder}", file=sys.stderr)
        processes = self.processes
        self.loader = FeatureLoader(self.loader.plan, self.train_rows, train, bad, processes.rank, processes.count)
        self.validation.kept = val

    def _kept_features(self) -> tuple[KeptFeatures, KeptFeatures, dict[str, str]]:
        """The features of the training and the validation split, all there, and the files that were left out."""
        data, settings = self.recipe.data, self.recipe.features

        def features(arithmetic: Arithmetic) -> KeptFeatures:
            return KeptFeatures(self.model, settings, self.manifest.root, arithmetic, workers=data.workers)

        train = features(self.arithmetic)
        val = features("fp32")  # validation is scored in fp32, as any evaluation is
        bad = keep_features(
            [(train, self.train_rows, data.on_bad_file == "skip"), (val, self.val_rows, False)], settings
        )
        return train, val, bad

    def _build_loader(self) -> SpeechImageLoader:
        data, processor = self.recipe.data, self.model.processor
        return build_loader(
            self.train_rows,
            prepare_speech=processor.prepare_speech,
            prepare_image=processor.prepare_image,
            batch_size=data.batch_size,
            seed=self.recipe.training.seed,
            workers=data.workers,
            crop_seconds=data.crop_seconds,
            bucket_batches=data.bucket_batches,
            on_bad_file=data.on_bad_file,
            cache_images=data.cache_images_mb * 2**20,
            rank=self.processes.rank,
            world_size=self.processes.count,
        )

    @contextmanager
    def _stopping_gently(self) -> Iterator[None]:
        """Turns SIGINT and SIGTERM into a stop between two steps; a second one stops a process that is alone at once.

        Of several, each gets two: the terminal's, or the scheduler's, and torchrun's own.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            del number, frame
            if self._stop and self.processes.count == 1:
                raise KeyboardInterrupt
            self._stop = True

        before = {kind: signal.signal(kind, stop) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)


def _refuse_small_shares(recipe: Recipe, processes: int) -> None:
    """Raises ConfigError where several processes leave denoising one pair each: it needs another image."""
    share = recipe.data.batch_size // processes
    if recipe.denoising.weight and share < 2:
        raise ConfigError(
            f"data.batch_size is {recipe.data.batch_size} over {processes} processes, {share} each; denoising works on "
            "each process's own pairs and needs at least 2"
        )


def _shares(recipe: Recipe, processes: int) -> str:
    """How several processes share the work, in words for people."""
    batch = recipe.data.batch_size
    return f"{processes} processes, {batch // processes} pairs each, {batch} together (global batch)"


def _refuse_other_recipe(there: Recipe, here: Recipe, folder: Path) -> None:
    """Raises CheckpointError when two recipes differ in a setting that weights depend on."""
    old, new = _flat(recipe_to_dict(there)), _flat(recipe_to_dict(here))
    for name in sorted(old.keys() | new.keys()):
        if name not in FREE_TO_CHANGE and old.get(name) != new.get(name):
            raise CheckpointError(
                f"{folder} holds a run with another {name} ({old.get(name)!r}, now {new.get(name)!r}); "
                "give another --output, or the same settings"
            )


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
