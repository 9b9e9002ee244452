"""The folder of a run, its checkpoints, and the state that a resumed run continues from."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from saysee.data.loader import ResumableLoader
from saysee.errors import CheckpointError
from saysee.files import clean_folder, set_default_mode, unfinished, write_folder, write_text
from saysee.settings.reading import changed_settings, load_recipe, recipe_to_dict, save_recipe
from saysee.settings.recipe import Recipe
from saysee.tasks.base import Task
from saysee.training.objective import Objective
from saysee.training.processes import Processes
from saysee.training.records import peak_memory_mib

STATE_FILE, TASKS_FILE = "state.pt", "tasks.safetensors"
_STEP = re.compile(r"step-(\d{8})")
FREE_TO_CHANGE = (
    "training.keep_checkpoints",
    "training.log_every",
    "data.workers",
    "data.on_bad_file",
    "data.cache_images_mb",
    "features.keep",
    "features.folder",
    "features.limit_gb",
    "output",
)
"""Settings that a resumed run may change: no weight depends on them (features: only to numerical noise; on_bad_file: a
run that a damaged file has stopped is resumed without it)."""


class RunFolder:
    """The folder of a run.

    It holds ``recipe.yaml`` (resolved), ``environment.json``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/``,
    ``best/`` (the model that ``training.best_by`` chose, ready for ``from_pretrained``) and, at the end,
    ``result.json``. A kill leaves each of them complete or absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._recipe, self._result = path / "recipe.yaml", path / "result.json"
        self._environment = path / "environment.json"

    def result(self, recipe: Recipe, resume: str) -> dict[str, Any] | None:
        """The result of a finished run; None where there is a run to resume, or none.

        Raises CheckpointError if the folder holds a run of another recipe, or one that is not to be resumed.
        """
        if self._recipe.exists():
            if resume != "auto":
                raise CheckpointError(
                    f"{self.path} already holds a run; resume it with --resume auto, or give another --output"
                )
            for name, old, new in changed_settings(*map(recipe_to_dict, (load_recipe(self._recipe), recipe))):
                if name not in FREE_TO_CHANGE:
                    raise CheckpointError(
                        f"{self.path} holds a run with another {name} ({old!r}, now {new!r}); give another --output, "
                        "or the same settings"
                    )
        if not self._result.exists():
            return None
        result: dict[str, Any] = json.loads(self._result.read_text(encoding="utf-8"))
        return result

    def claim(self, recipe: Recipe, environment: Callable[[], dict[str, Any]]) -> None:
        """Removes what a kill left incomplete, and writes recipe and environment of a new run."""
        clean_folder(self.path)
        clean_folder(self.checkpoints)
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._recipe.exists():
            _write_json(self._environment, environment())
            save_recipe(recipe, self._recipe)

    def environment(self) -> dict[str, Any]:
        """What :meth:`claim` wrote when the run began."""
        content: dict[str, Any] = json.loads(self._environment.read_text(encoding="utf-8"))
        return content

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Marks the run as finished."""
        _write_json(self._result, result)


class TrainingState:
    """Steps, clips, seconds, scores and signs of a run so far: plain values, part of every checkpoint."""

    def __init__(self) -> None:
        self.step = 0
        self.clips = 0
        self.seconds = 0.0
        self.best_score = -1.0
        self.best_recall = -1.0
        self.best_step = 0
        self.worse_evaluations = 0
        self.stopped_early = False
        self.recall: float | None = None
        self.previous_contrastive: float | None = None
        self.signs: list[str] = []
        self.mid_epoch = False
        self.reported_bad_files = 0
        self._log_sums: dict[str, list[float]] = {}
        self._interval_sums: dict[str, list[float]] = {}

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a :meth:`state_dict`."""
        vars(self).update(state)

    def add_step(self, metrics: dict[str, float], clips: int, seconds: float) -> None:
        """Counts an optimizer step."""
        self.step += 1
        self.clips += clips
        self.seconds += seconds
        self.mid_epoch = True
        for sums in (self._log_sums, self._interval_sums):
            for key, value in metrics.items():
                total = sums.setdefault(key, [0.0, 0.0])
                total[0] += value
                total[1] += 1

    @property
    def clips_per_second(self) -> float:
        """Over the whole run, without evaluation."""
        return self.clips / self.seconds if self.seconds else 0.0

    def take_log_means(self) -> dict[str, float]:
        """Means of the metrics since the last line of the log."""
        sums, self._log_sums = self._log_sums, {}
        return {key: total / count for key, (total, count) in sums.items()}

    def take_interval_means(self) -> dict[str, float]:
        """Means of the losses since the last evaluation."""
        sums, self._interval_sums = self._interval_sums, {}
        return {key: total / count for key, (total, count) in sums.items() if key.endswith("loss")}

    def add_evaluation(self, metrics: Mapping[str, float], patience: int, best_by: str) -> bool:
        """Counts an evaluation; True when its model is the best so far by ``training.best_by``."""
        self.recall = metrics["mean_R@1"]
        score = self.step if best_by == "step" else metrics[best_by]
        if score > self.best_score:
            self.best_score, self.best_recall, self.best_step, self.worse_evaluations = score, self.recall, self.step, 0
            return True
        self.worse_evaluations += 1
        self.stopped_early = bool(patience) and self.worse_evaluations >= patience
        return False

    def result(self, bad_files: list[tuple[str, str]]) -> dict[str, Any]:
        """The result of a finished run."""
        return {
            "steps": self.step,
            "stopped_early": self.stopped_early,
            "best_step": self.best_step,
            "best_val_mean_R@1": self.best_recall,
            "training_seconds": self.seconds,
            "seconds_per_step": self.seconds / max(self.step, 1),
            "clips": self.clips,
            "clips_per_second": self.clips_per_second,
            "peak_memory_mib": peak_memory_mib(),
            "signs_at_the_end": self.signs,
            "skipped_files": [{"path": path, "reason": reason} for path, reason in bad_files],
        }


@dataclass(frozen=True)
class Resumable:
    """The parts of a run that change while it trains; restored, the run ends as if it had never stopped."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    loader: ResumableLoader[Any]
    state: TrainingState
    processes: Processes
    val_checksum: int
    frozen: str  # fingerprint of the frozen weights, which no checkpoint holds

    def state_dict(self) -> dict[str, Any]:
        """Everything as tensors and plain values, without frozen weights. All processes must call it."""
        frozen = {name for name, parameter in self.objective.named_parameters() if not parameter.requires_grad}
        gpu = self._gpu
        of_gpu = [] if gpu is None else [torch.cuda.get_rng_state(gpu)]
        draws = self.processes.gather((torch.get_rng_state(), of_gpu))
        return {
            "weights": {name: value for name, value in self.objective.state_dict().items() if name not in frozen},
            "optimizer": self.optimizer.state_dict(),
            "loader": self.loader.state_dict(),
            "validation": self.val_checksum,
            "frozen": self.frozen,
            "progress": self.state.state_dict(),
            "draws": [{"cpu": on_cpu, "cuda": on_gpu} for on_cpu, on_gpu in draws],
        }

    def load(self, checkpoint: Path, seed: int) -> int:
        """Restores a checkpoint, and returns how many processes the run had. All processes must call it.

        ``seed`` is of new draws, for a run that had another number of processes. Raises CheckpointError if it cannot be
        read, or belongs to another model or another order of the data.
        """
        state = load_checkpoint(checkpoint)
        if "validation" not in state:
            raise CheckpointError(f"{checkpoint} was written by an older release; give another --output")
        if state["validation"] != self.val_checksum:
            raise CheckpointError(
                f"{checkpoint}: the validation split has other clips, images or image ids than when the run began; set "
                "them back, or give another --output"
            )
        if state.get("frozen", self.frozen) != self.frozen:  # an earlier release saved none
            raise CheckpointError(
                f"{checkpoint}: the frozen encoders have other weights than when the run began; set model.speech and "
                "model.image back, or give another --output"
            )
        try:
            missing, unexpected = self.objective.load_state_dict(state["weights"], strict=False)
        except RuntimeError:
            raise CheckpointError(f"{checkpoint} has weights of other shapes; give another --output") from None
        trained = {name for name, parameter in self.objective.named_parameters() if parameter.requires_grad}
        if unexpected or trained & set(missing):
            raise CheckpointError(f"{checkpoint} belongs to another model; give another --output")
        self.optimizer.load_state_dict(state["optimizer"])
        self.loader.load_state_dict(state["loader"])
        self.state.load_state_dict(state["progress"])
        processes = len(state["draws"])
        if processes != self.processes.count:
            self.processes.seed_draws(seed + self.state.step)
            return processes
        own = state["draws"][self.processes.rank]
        torch.set_rng_state(own["cpu"])
        of_gpus, gpu = own["cuda"], self._gpu
        if of_gpus and gpu is not None:
            # An earlier release saved the state of every GPU of the machine, and not of the run's alone.
            torch.cuda.set_rng_state(of_gpus[min(gpu.index or 0, len(of_gpus) - 1)], gpu)
        return processes

    @property
    def _gpu(self) -> torch.device | None:
        """The GPU of this process; None on a CPU."""
        device = self.processes.accelerator.device
        return device if device.type == "cuda" else None


def save_checkpoint(parent: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Writes ``parent/step-<step>`` atomically and removes all but the newest ``keep``."""
    folder = parent / f"step-{step:08d}"
    write_folder(folder, lambda temporary: torch.save(state, temporary / STATE_FILE))
    for old in find_checkpoints(parent)[:-keep]:
        # Renamed first: a kill must not leave a half removed folder under the name of a checkpoint.
        shutil.rmtree(old.rename(unfinished(old)))
    return folder


def find_checkpoints(parent: Path) -> list[Path]:
    """The checkpoints below ``parent``, the oldest first."""
    return sorted(path for path in parent.glob("step-*") if _STEP.fullmatch(path.name))


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Reads what :func:`save_checkpoint` wrote, and runs no code of it; CheckpointError if it cannot be read."""
    try:
        state: dict[str, Any] = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        raise CheckpointError(
            f"checkpoint {folder} cannot be read ({type(error).__name__}); remove it to resume from the previous one"
        ) from error
    return state


def save_tasks(folder: Path, tasks: nn.ModuleDict) -> None:
    """Writes the tasks' own weights into the folder of a model, for studies of its fusion encoder."""
    save_file(tasks.state_dict(), folder / TASKS_FILE)
    set_default_mode(folder / TASKS_FILE)


def load_task(folder: Path, step: int, task: Task) -> None:
    """Gives a task, built as for training, its weights of the model in a folder, which are those of ``step``.

    A model of an earlier release has none, but the checkpoint of its run does. Raises CheckpointError if there are
    none, or they are of another task.
    """
    checkpoint, prefix = folder.absolute().parent / "checkpoints" / f"step-{step:08d}", f"{task.name}."
    if (folder / TASKS_FILE).exists():
        weights = load_file(folder / TASKS_FILE)
    elif checkpoint.exists():
        weights, prefix = load_checkpoint(checkpoint)["weights"], f"tasks.{prefix}"
    else:
        raise CheckpointError(
            f"{folder} has no {TASKS_FILE}, which training.save_fusion: true saves with a model; train it again"
        )
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    try:
        task.load_state_dict(own)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: the weights of the task {task.name!r} are of another model") from error


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
