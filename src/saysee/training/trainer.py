"""The training loop.

A run is a folder: ``recipe.yaml`` (resolved), ``environment.json``, ``metrics.jsonl``, ``tensorboard/``,
``checkpoints/``, ``best/`` (the model with the best mean R@1 on the validation split, ready for ``from_pretrained``)
and, at its end, ``result.json``. Killed at any moment and resumed, it ends with the same weights as if it had never
been killed.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from saysee.config import Recipe, load_recipe, recipe_to_dict, save_recipe
from saysee.data.loader import Batch, ResumableLoader, SpeechImageLoader, build_loader
from saysee.data.manifest import Manifest
from saysee.errors import CheckpointError, ConfigError, SaySeeError
from saysee.evaluation.attention import attention_on_rows
from saysee.evaluation.protocols import evaluate
from saysee.files import write_text
from saysee.training.arithmetic import Arithmetic, arithmetic_of
from saysee.training.attention_kernel import attention_kernel
from saysee.training.checkpoint import clean_folder, find_checkpoints, load_checkpoint, save_checkpoint, write_folder
from saysee.training.count import RunCount
from saysee.training.feature_loader import FeatureBatch, FeatureLoader
from saysee.training.features import KeptFeatures, keep_features, why_recomputed
from saysee.training.objective import Objective, build_model, build_tasks
from saysee.training.optimization import learning_rate_factor, parameter_groups
from saysee.training.record import ProgressLine, RunRecord, surroundings
from saysee.training.signs import find_signs

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
        recipe: every setting; see :class:`saysee.config.Recipe`.
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
        self.manifest = Manifest.read(recipe.data.manifest)
        self.train_rows = self.manifest.select(recipe.data.train_split)
        self.val_rows = self.manifest.select(recipe.data.val_split)
        device = "cpu" if recipe.training.device == "cpu" or not torch.cuda.is_available() else "cuda"
        self.arithmetic = arithmetic_of(recipe.training.precision, device)
        AcceleratorState._reset_state()  # Accelerate keeps the arithmetic of the first trainer of a process otherwise
        self.accelerator = Accelerator(
            mixed_precision="bf16" if self.arithmetic == "bf16" else "no",
            cpu=recipe.training.device == "cpu",
        )
        if self.accelerator.num_processes > 1:
            raise ConfigError("training in several processes is not there yet; start one process, without torchrun")
        self.model = build_model(recipe)
        self.objective = Objective(self.model, build_tasks(recipe, self.model))
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.objective, recipe.optimizer),
            betas=(recipe.optimizer.betas[0], recipe.optimizer.betas[1]),
        )
        # Dropout and noise start from the same place whatever was built before.
        torch.manual_seed(recipe.training.seed + 1)
        files = self._build_loader()
        self.loader: ResumableLoader[Batch] | ResumableLoader[FeatureBatch] = files
        self.recomputed = why_recomputed(recipe, files.plan)
        self._val_features: KeptFeatures | None = None
        self.prepared, self.optimizer = self.accelerator.prepare(self.objective, self.optimizer)
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
        result_file = self.folder / RESULT_FILE
        self._refuse_other_run(resume)
        if result_file.exists():  # finished: its recipe and surroundings stay those that it ran with
            result: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
            return result
        self.keep_features()  # before the folder holds a run: what is refused here asks for other settings
        self._claim_folder()
        self._restore()
        record, line = RunRecord(self.folder, self.progress.step), ProgressLine(self.name, self.recipe.training.steps)
        device = self.accelerator.device.type
        try:
            with self._stopping_gently(), attention_kernel(device, self.arithmetic == "bf16"):
                self._run(record, line)
            self._tell_skipped(line)
        finally:
            record.close()
            line.close()
        result = self.progress.result(self.loader.bad_files)
        _write_json(result_file, result)
        return result

    # ------------------------------------------------------------------ the loop

    def _run(self, record: RunRecord, line: ProgressLine) -> None:
        settings, state = self.recipe.training, self.progress
        batches = self._batches(line)
        self.prepared.train()
        while state.step < settings.steps and not state.stopped_early:
            started = time.perf_counter()
            figures, clips = self._step(batches)
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
            if self._stop:
                self._save()
                raise KeyboardInterrupt

    def _step(self, batches: Iterator[Batch | FeatureBatch]) -> tuple[dict[str, float], int]:
        """One optimiser step; its figures and how many clips it took."""
        settings, step = self.recipe.optimizer, self.progress.step
        factor = learning_rate_factor(step, self.recipe.training.steps, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        weights = self.objective.weights_at(step)
        sums: dict[str, float] = {}
        clips = 0
        for _ in range(settings.accumulate):
            batch = next(batches).to(self.accelerator.device)
            clips += len(batch.image_ids)
            figures: dict[str, Tensor] = self.prepared(batch, weights)
            self.accelerator.backward(figures["loss"] / settings.accumulate)
            for key, value in figures.items():
                sums[key] = sums.get(key, 0.0) + float(value.detach()) / settings.accumulate
        if not torch.isfinite(torch.tensor(sums["loss"])):
            raise SaySeeError(
                f"the loss is {sums['loss']} at step {step + 1}; lower optimizer.lr, or use training.precision fp32"
            )
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {**sums, "gradient_norm": float(norm), "lr_factor": factor}, clips

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
        self.model.eval()
        encoder = self._val_features or self.model
        result = evaluate(encoder, self.val_rows, split=self.recipe.data.val_split, resamples=0, progress=False)
        scores = result.overall.to_dict()
        figures = {
            "mean_R@1": scores["mean_R@1"],
            **{
                f"{way}/R@{k}": scores[way][f"R@{k}"]
                for way in ("speech_to_image", "image_to_speech")
                for k in (1, 5, 10)
            },
            **state.take_interval_means(),
            **self._diagnose(),
        }
        self.objective.train()
        signs = find_signs(figures, state.previous_contrastive, state.step / settings.steps)
        for sign, why in signs.items():
            if sign not in state.signs:
                line.say(f"{self.name}: step {state.step}: warning: {why}")
        state.signs = sorted(signs)
        state.previous_contrastive = figures.get("contrastive_loss")
        record.write("val", state.step, {**figures, **{f"sign/{sign}": 1.0 for sign in signs}})
        if state.judge(figures["mean_R@1"], settings.patience):
            keep_fusion = settings.save_fusion
            write_folder(
                self.folder / "best",
                lambda folder: self.model.save_pretrained(folder, fusion=keep_fusion),
            )

    @torch.no_grad()
    def _diagnose(self) -> dict[str, float]:
        """The tasks' own figures on a batch of validation pictures, and attention on the object spoken of."""
        rows = self.val_rows.images()[: self.recipe.data.batch_size]
        manifest = Manifest(rows, self.val_rows.root)
        files = self._build_loader(manifest, whole=True)
        batches: Iterator[Batch | FeatureBatch] = iter(files)
        if self._val_features is not None:
            batches = iter(FeatureLoader(files.plan, manifest, self._val_features, {}))
        batch = next(batches).to(self.accelerator.device)
        speech, images = self.objective.features(batch)
        figures = self.objective.diagnose(speech, images, batch.image_ids)
        if self.model.fusion is not None and {"words", "objects"} <= set(self.val_rows.extra_columns):
            maps = self.model.fusion.attend(speech, images)
            found = attention_on_rows(
                [of_clip[mask] for of_clip, mask in zip(maps, speech.mask, strict=True)],
                [rows[row] for row in batch.rows],
                self.model.speech_encoder.frame_seconds,
            )
            if found is not None:
                figures |= {"attention_mass": found.mass, "attention_lift": found.lift}
        return figures

    # ------------------------------------------------------------------ the folder and its checkpoints

    def _refuse_other_run(self, resume: str) -> None:
        recipe_file = self.folder / RECIPE_FILE
        if recipe_file.exists():
            if resume != "auto":
                raise CheckpointError(
                    f"{self.folder} already holds a run; go on with it by --resume auto, or give another --output"
                )
            _refuse_other_recipe(load_recipe(recipe_file), self.recipe, self.folder)

    def _claim_folder(self) -> None:
        recipe_file = self.folder / RECIPE_FILE
        clean_folder(self.folder)
        clean_folder(self.folder / "checkpoints")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not recipe_file.exists():
            environment = {**surroundings(self.recipe.training.seed), "arithmetic": self.arithmetic}
            _write_json(self.folder / ENVIRONMENT_FILE, environment)
            save_recipe(self.recipe, recipe_file)

    def _save(self) -> None:
        frozen = {name for name, parameter in self.objective.named_parameters() if not parameter.requires_grad}
        state = {
            "weights": {name: value for name, value in self.objective.state_dict().items() if name not in frozen},
            "optimizer": self.optimizer.state_dict(),
            "loader": self.loader.state_dict(),
            "progress": self.progress.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all(),
        }
        save_checkpoint(self.folder / "checkpoints", self.progress.step, state, self.recipe.training.keep_checkpoints)

    def _restore(self) -> None:
        checkpoints = find_checkpoints(self.folder / "checkpoints")
        if not checkpoints:
            return
        state = load_checkpoint(checkpoints[-1])
        missing, unexpected = self.objective.load_state_dict(state["weights"], strict=False)
        trained = {name for name, parameter in self.objective.named_parameters() if parameter.requires_grad}
        if unexpected or trained & set(missing):
            raise CheckpointError(f"{checkpoints[-1]} is of another model; give another --output")
        self.optimizer.load_state_dict(state["optimizer"])
        self.loader.load_state_dict(state["loader"])
        self.progress.load_state_dict(state["progress"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])

    # ------------------------------------------------------------------ helpers

    def keep_features(self) -> None:
        """Takes kept features in place of files where that changes nothing, once they are all there."""
        if self.recomputed is not None:
            print(f"{self.name}: features are recomputed at each step: {self.recomputed}", file=sys.stderr)
            return
        data, settings = self.recipe.data, self.recipe.features

        def features(arithmetic: Arithmetic) -> KeptFeatures:
            return KeptFeatures(self.model, settings, self.manifest.root, arithmetic, workers=data.workers)

        train = features(self.arithmetic)
        val = features("fp32")  # validation is scored in fp32, as any evaluation is
        bad = keep_features(
            [(train, self.train_rows, data.on_bad_file == "skip"), (val, self.val_rows, False)], settings
        )
        print(f"{self.name}: features of the frozen encoders are taken from {train.folder}", file=sys.stderr)
        self.loader = FeatureLoader(self.loader.plan, self.train_rows, train, bad)
        self._val_features = val

    def _build_loader(self, manifest: Manifest | None = None, whole: bool = False) -> SpeechImageLoader:
        """The training loader, or a loader of all of ``manifest`` in one uncropped batch."""
        data, processor = self.recipe.data, self.model.processor
        return build_loader(
            manifest or self.train_rows,
            prepare_speech=processor.prepare_speech,
            prepare_image=processor.prepare_image,
            batch_size=data.batch_size,
            seed=self.recipe.training.seed,
            workers=0 if whole else data.workers,
            crop_seconds=None if whole else data.crop_seconds,
            bucket_batches=data.bucket_batches,
            on_bad_file=data.on_bad_file,
            drop_last=not whole,
            cache_images=0 if whole else data.cache_images_mb * 2**20,
        )

    @contextmanager
    def _stopping_gently(self) -> Iterator[None]:
        """Turns SIGINT and SIGTERM into a stop between two steps; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            del number, frame
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True

        before = {kind: signal.signal(kind, stop) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)


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
