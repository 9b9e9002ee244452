"""Training data generated in chunks on several cores; finished chunks are kept when the process is killed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from saysee.errors import SaySeeError
from saysee.files import clean_folder
from saysee.hardware import usable_cores
from saysee.log import progress_bar
from saysee.signals import start_worker

MOST_PROCESSES = 16
"""Limit on the number of processes: each takes 300 MB."""


@dataclass(frozen=True)
class Chunk:
    """Part of the data: its folder, its number from 0, and its number of items."""

    folder: Path
    number: int
    count: int


def chunks_of(folder: Path, items: int, size: int, seed: int) -> list[Chunk]:
    """The chunks of ``items`` below ``folder``: ``size`` in each, the rest in the last."""
    chunks = []
    for number in range(max(1, -(-items // size))):
        count = max(1, min(size, items - number * size))
        name = f"chunk-{seed}-{number:05d}" + (f"-of-{count}" if count < size else "")
        chunks.append(Chunk(folder / name, number, count))
    return chunks


def make_missing(what: str, chunks: list[Chunk], make: Callable[[Chunk], None]) -> None:
    """Makes the missing chunks on all cores, 16 at most.

    Args:
        what: title of the progress bar.
        chunks: all of one folder.
        make: makes one, in another process; it must write its folder atomically (``checkpoint.write_folder``).

    Raises:
        SaySeeError: a process died.
    """
    parent = chunks[0].folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    clean_folder(parent)
    missing = [chunk for chunk in chunks if not chunk.folder.exists()]
    if not missing:
        return
    total, left = (sum(chunk.count for chunk in some) for some in (chunks, missing))
    with progress_bar(what, total, total - left) as bar:
        if len(missing) == 1:  # starting a process takes longer
            make(missing[0])
            bar.update(missing[0].count)
            return
        # Spawned, not forked: a fork would copy the synthesizer's state and any locks that other threads hold.
        context = multiprocessing.get_context("spawn")
        try:
            cores = min(usable_cores(), len(missing), MOST_PROCESSES)
            with ProcessPoolExecutor(cores, mp_context=context, initializer=start_worker) as processes:
                for chunk, _ in zip(missing, processes.map(make, missing), strict=True):
                    bar.update(chunk.count)
        except BrokenProcessPool:
            raise SaySeeError(f"{parent}: a worker process died; run it again, finished chunks are kept") from None
