"""What a run records: metrics as JSON lines and for TensorBoard, its environment, and the facts for the model card."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from saysee.data.manifest import Manifest
from saysee.files import write_text
from saysee.settings.reading import recipe_to_dict
from saysee.settings.recipe import Recipe
from saysee.version import __version__

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """``metrics.jsonl`` and ``tensorboard/`` of a run.

    Args:
        folder: of the run.
        step: steps done when the run is resumed; lines beyond it, of a killed run, are removed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder / METRICS_FILE
        if path.exists():
            kept = [line for line in read_metrics(folder) if line["step"] <= step]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a line.

        Args:
            kind: "train" or "val".
            step: optimizer steps done.
            metrics: name to number.
        """
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
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def environment(seed: int) -> dict[str, Any]:
    """What is needed to reproduce a result, besides its recipe: seed, versions, machine, and git commit if known."""
    import torch

    packages = ("torch", "transformers", "accelerate", "numpy", "soundfile", "soxr", "pillow")
    return {
        "seed": seed,
        "command": sys.argv,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {"saysee": __version__, **{name: metadata.version(name) for name in packages}},
    }


def _git_commit() -> str | None:
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
    """What the model card reports of a run, as JSON values. It contains no path of the machine that trained.

    Args:
        recipe: its settings.
        manifest: of its corpus.
        environment: its ``environment.json``.
        step: whose weights these are.
        metrics: of the evaluation at that step.
    """
    images: dict[str, int] = {}
    for row in manifest.images():
        images[row.split] = images.get(row.split, 0) + 1
    settings = recipe_to_dict(recipe)
    settings["data"]["manifest"] = Path(recipe.data.manifest).name
    del settings["output"], settings["features"]
    for side in ("speech", "image"):
        place = settings["model"][side]
        if isinstance(place, str) and (Path(place).is_absolute() or Path(place).is_dir()):
            settings["model"][side] = Path(place).name
    path = Path(recipe.data.manifest)
    reported = ("seed", "git_commit", "python", "device", "versions", "arithmetic")
    return {
        "data": {
            "name": path.absolute().parent.name if path.stem == "manifest" else path.stem,
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
