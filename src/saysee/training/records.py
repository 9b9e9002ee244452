"""What a run measures and records: scores on the validation split, signs of failure, metrics, environment, facts."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from saysee.data.manifest import Manifest
from saysee.encoding.encoder import Encoder
from saysee.evaluation.localization import attention_on_rows
from saysee.evaluation.protocols import evaluate
from saysee.files import short_name, write_text
from saysee.settings.reading import recipe_to_dict
from saysee.settings.recipe import Recipe
from saysee.training.data import TrainingData
from saysee.training.objective import Objective
from saysee.version import __version__

METRICS_FILE = "metrics.jsonl"
FUSION_MARGIN = 0.02
"""The reconstruction loss must be lower by this share than with another image's features."""
PLATEAU_FALL = 0.01
"""Between two evaluations the contrastive loss must fall by this share."""
TRIVIAL = 0.1
"""The reconstruction loss must stay above this share of chance in the first half of the training."""
ATTENTION_LIFT = 1.05
"""Attention on the object spoken of must be this many times what uniform attention would put there."""


def validate(objective: Objective, data: TrainingData, recipe: Recipe) -> dict[str, float]:
    """Recall in percent, and the tasks' own metrics; leaves the objective in training mode."""
    objective.model.eval()
    encoder = Encoder(objective.model, cache=data.cache)
    result = evaluate(encoder, data.val_rows, split=recipe.data.val_split, resamples=0, progress=False, texts=False)
    scores = result.overall.to_dict()
    ways = ("speech_to_image", "image_to_speech")
    recall = {f"{way}/R@{k}": scores[way][f"R@{k}"] for way in ways for k in (1, 5, 10)}
    recall |= {f"mean_R@{k}": sum(scores[way][f"R@{k}"] for way in ways) / 2 for k in (1, 10)}
    diagnosis = _diagnose(objective, data)
    objective.train()
    return {**recall, **diagnosis}


@torch.no_grad()
def _diagnose(objective: Objective, data: TrainingData) -> dict[str, float]:
    """The tasks' own metrics on a batch of validation images, and the attention on the object spoken of."""
    model, rows = objective.model, data.val_rows.images()
    batch = data.val_batch().to(model.device)
    speech, images, inputs = objective.features(batch)
    metrics = objective.diagnose(speech, images, batch.image_ids, inputs)
    if model.fusion is not None and data.has_objects:
        maps = model.fusion.attend(speech, images)
        metrics |= attention_on_rows(
            [of_clip[mask] for of_clip, mask in zip(maps, speech.mask, strict=True)],
            [rows[row] for row in batch.rows],
            model.speech_encoder.feature_seconds,
        )
    return metrics


def find_signs(
    metrics: Mapping[str, float], previous_contrastive: float | None, progress: float, before: Collection[str] = ()
) -> dict[str, str]:
    """Signs of failure, each with a sentence: what to look at in a run that goes wrong without an error.

    Three are those that the method's authors name: a reconstruction no better than without the other modality, a
    contrastive loss that has stopped falling, and attention that is not on the region spoken of. The fourth is a
    reconstruction that is solved so early that it teaches nothing.

    Args:
        metrics: of an evaluation: ``reconstruction_*``, ``contrastive_loss`` (mean since the previous evaluation),
            ``attention_lift``; what is missing is not judged.
        previous_contrastive: ``contrastive_loss`` at the previous evaluation.
        progress: share of the steps that is done, 0 to 1. Attention is judged from one half on, and whether the task is
            trivial up to then.
        before: signs of the previous evaluation; a task that was trivial stays so.
    """
    signs = {}
    loss = metrics.get("reconstruction_loss")
    for side, other in (("clean", "the other modality"), ("noisy", "the noisy features")):
        without = metrics.get(f"reconstruction_without_{side}")
        if loss is not None and without is not None and without - loss < FUSION_MARGIN * abs(loss):
            signs[f"fusion_ignores_{side}"] = (
                f"the reconstruction loss ({loss:.3f}) is hardly lower than with the {side} side of another image "
                f"({without:.3f}): the fusion encoder makes little use of {other}"
            )
    chance = metrics.get("reconstruction_chance")
    if "task_trivial" in before or (
        loss is not None and chance is not None and progress <= 0.5 and loss < TRIVIAL * chance
    ):
        signs["task_trivial"] = (
            "rebuilding was nearly solved in the first half of the training (a loss below a tenth of chance): the task "
            "has little left to teach; raise denoising.share or choose a harder denoising.source"
        )
    contrastive, last = metrics.get("contrastive_loss"), previous_contrastive
    if contrastive is not None and last is not None and last - contrastive < PLATEAU_FALL * last:
        signs["contrastive_plateau"] = f"the contrastive loss has stopped falling ({last:.3f}, now {contrastive:.3f})"
    lift = metrics.get("attention_lift")
    if lift is not None and progress >= 0.5 and lift < ATTENTION_LIFT:
        signs["attention_off_object"] = (
            f"attention is not on the object spoken of: {lift:.2f} times what uniform attention would put there"
        )
    return signs


class MetricsLog:
    """``metrics.jsonl`` and ``tensorboard/`` of a run, without the lines that a killed run wrote beyond ``step``."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder / METRICS_FILE
        if path.exists():
            kept = [line for line in read_metrics(folder) if line["step"] <= step]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a line of metrics of the kind "train" or "val" after ``step`` optimizer steps."""
        self._file.write(json.dumps({"kind": kind, "step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Closes both."""
        self._file.close()
        self._board.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, in order; a line that a kill cut short is skipped."""
    lines = []
    for text in (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


def device_name(device: torch.device) -> str:
    """The name of a GPU, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def environment(seed: int, device: torch.device, **more: Any) -> dict[str, Any]:
    """What is needed to reproduce a result, besides its recipe: seed, versions, machine, commit if known, ``more``."""
    packages = ("torch", "transformers", "accelerate", "numpy", "soundfile", "soxr", "pillow")
    return {
        "seed": seed,
        "command": sys.argv,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device_name(device),
        "versions": {"saysee": __version__, **{name: metadata.version(name) for name in packages}},
        **more,
    }


def git_commit() -> str | None:
    """The commit of the running source, with ``+changes`` where files differ from it; None outside a checkout of it."""

    def git(*words: str) -> str:
        here = Path(__file__).resolve().parent
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # an installed copy may lie in the checkout of another project
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def training_facts(
    recipe: Recipe, manifest: Manifest, environment: Mapping[str, Any], step: int, metrics: Mapping[str, float]
) -> dict[str, Any]:
    """What the model card reports of a run, whose weights are those of ``step``, with the metrics of its evaluation.

    JSON values; none is a path of the machine that trained.
    """
    images = Counter(row.split for row in manifest.images())
    settings = recipe_to_dict(recipe)
    settings["data"]["manifest"] = Path(recipe.data.manifest).name
    del settings["output"], settings["features"]
    for side in ("speech", "image"):
        place = settings["model"][side]
        if isinstance(place, str) and (Path(place).is_absolute() or Path(place).is_dir()):
            settings["model"][side] = Path(place).name
    reported = ("seed", "git_commit", "python", "device", "versions", "arithmetic")
    return {
        "data": {
            "name": short_name(recipe.data.manifest),
            "splits": {split: {"clips": clips, "images": images[split]} for split, clips in manifest.splits().items()},
            "languages": sorted({row.language for row in manifest if row.language}),
            "speakers": len({row.speaker for row in manifest if row.speaker}),
        },
        "recipe": settings,
        "best": {"step": step, "split": recipe.data.val_split, "mean_R@1": metrics["mean_R@1"]},
        "run": {name: environment.get(name) for name in reported},
    }


def peak_memory_mib() -> float | None:
    """The peak memory of this process in MiB; None where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)
