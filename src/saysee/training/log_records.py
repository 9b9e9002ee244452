"""What a run leaves to read: metrics as JSON lines and TensorBoard, the surroundings it ran in, and a line of
progress."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from saysee.files import write_text
from saysee.version import __version__

METRICS_FILE = "metrics.jsonl"
SECONDS_BETWEEN_LINES = 10.0
"""Where stderr is no terminal, a line of progress at most this often."""


class RunRecord:
    """The log of a run.

    Args:
        folder: the run's folder.
        step: steps done when the run goes on; lines beyond it, of a run that was killed, are dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / METRICS_FILE
        if self._path.exists():
            kept = [line for line in read_metrics(folder) if line["step"] <= step]
            write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        """Adds a line.

        Args:
            kind: "train" or "val".
            step: optimiser steps done.
            figures: name to number.
        """
        self._file.write(json.dumps({"kind": kind, "step": step, **figures}) + "\n")
        self._file.flush()
        for name, value in figures.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Ends the log."""
        self._file.close()
        self._board.close()


class NoRecord(RunRecord):
    """Keeps no log: another process does."""

    def __init__(self) -> None:
        pass

    def write(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, in order; a line that a kill cut short is left out."""
    lines = []
    for text in (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


class ProgressLine:
    """One line on stderr: step, loss, R@1, clips a second, time left; ``quiet`` shows nothing."""

    def __init__(self, name: str, steps: int, quiet: bool = False) -> None:
        self._name, self._steps = name, steps
        self._console = Console(stderr=True, quiet=quiet)
        self._shown = 0.0
        self._status = self._console.status("") if self._console.is_terminal else None
        if self._status is not None:
            self._status.start()

    def show(self, step: int, loss: float, recall: float | None, clips_a_second: float, seconds_left: float) -> None:
        """Shows how far the run is; ``recall`` is the last mean R@1 in percent, None before the first evaluation."""
        text = (
            f"{self._name}: step {step}/{self._steps} · loss {loss:.3f} · "
            f"mean R@1 {'–' if recall is None else f'{recall:.1f} %'} · {clips_a_second:.0f} clips/s · "
            f"{int(seconds_left // 60)}:{int(seconds_left % 60):02d} left"
        )
        if self._status is not None:
            self._status.update(text)
        elif time.monotonic() - self._shown > SECONDS_BETWEEN_LINES:
            self._shown = time.monotonic()
            self._console.print(text, highlight=False)

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(text, highlight=False)

    def close(self) -> None:
        """Takes the line away."""
        if self._status is not None:
            self._status.stop()


def surroundings(seed: int) -> dict[str, Any]:
    """What a result needs beside its recipe to be had again: seed, versions, machine, and git commit where there is
    one."""
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
    """The commit of the source that runs, with ``+changes`` where files differ from it; None outside its checkout."""

    def git(*words: str) -> str:
        here = Path(__file__).resolve().parent
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # an installed copy may lie in somebody else's checkout
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def peak_memory_mib() -> float | None:
    """The most memory that this process has held, in MiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)
