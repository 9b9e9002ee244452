"""Checkpoints that a kill cannot harm.

A folder is written under a temporary name, flushed to the disk and renamed: whoever finds a folder under its own name
finds it whole.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from saysee.errors import CheckpointError
from saysee.files import flush

STATE_FILE = "state.pt"
_STEP = re.compile(r"step-(\d{8})")
_TEMPORARY, _OLD = ".writing-", ".old-"


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Makes or replaces a folder as a whole.

    Args:
        folder: where it shall be. A kill leaves the old one, the new one, or (between two renames) the old one under
            another name, which :func:`clean_folder` brings back.
        write: fills the empty folder that it is given.
    """
    temporary, old = folder.with_name(_TEMPORARY + folder.name), folder.with_name(_OLD + folder.name)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    for path in [*temporary.rglob("*"), temporary]:
        flush(path)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    temporary.rename(folder)
    flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def clean_folder(parent: Path) -> None:
    """Removes what a kill left half written below ``parent``, and brings back what it left between two names."""
    if not parent.is_dir():
        return
    for path in sorted(parent.iterdir()):
        if path.name.startswith(_TEMPORARY):
            shutil.rmtree(path)
        elif path.name.startswith(_OLD):
            whole = path.with_name(path.name.removeprefix(_OLD))
            if whole.exists():
                shutil.rmtree(path)
            else:
                path.rename(whole)


def save_checkpoint(parent: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Writes ``parent/step-<step>`` and removes all but the newest ``keep``.

    Args:
        parent: folder of the checkpoints.
        step: optimiser steps done.
        state: tensors and plain values, nested as you like.
        keep: how many stay.
    """
    folder = parent / f"step-{step:08d}"
    write_folder(folder, lambda temporary: torch.save(state, temporary / STATE_FILE))
    for old in find_checkpoints(parent)[:-keep]:
        # Under another name first: a kill must not leave a half removed folder under a checkpoint's name.
        shutil.rmtree(old.rename(parent / (_TEMPORARY + old.name)))
    return folder


def find_checkpoints(parent: Path) -> list[Path]:
    """The checkpoints below ``parent``, the oldest first."""
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if _STEP.fullmatch(path.name))


def load_checkpoint(folder: Path) -> dict[str, Any]:
    """Reads what :func:`save_checkpoint` wrote; no code of the file is run.

    Raises:
        CheckpointError: the folder holds no readable state.
    """
    try:
        state: dict[str, Any] = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        raise CheckpointError(
            f"checkpoint {folder} cannot be read ({type(error).__name__}); remove it to resume from the one before"
        ) from error
    return state
