"""Data that pre-training makes for itself: in chunks, on several cores, and gone on with after a kill."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from saysee.data.scenes.making import start_worker
from saysee.errors import SaySeeError
from saysee.hardware import usable_cores
from saysee.log import progress_bar
from saysee.training.checkpoint import clean_folder

MOST_PROCESSES = 16
"""Processes at most, however many cores there are: each takes 300 MB."""


@dataclass(frozen=True)
class Chunk:
    """Part of the data: where it is kept, its number from 0, and how many items it holds."""

    folder: Path
    number: int
    count: int


def chunks_of(folder: Path, items: int, size: int, seed: int) -> list[Chunk]:
    """The chunks of so many items below ``folder``, ``size`` in each but the last, which has what is left."""
    chunks = []
    for number in range(max(1, -(-items // size))):
        count = max(1, min(size, items - number * size))
        name = f"chunk-{seed}-{number:05d}" + (f"-of-{count}" if count < size else "")
        chunks.append(Chunk(folder / name, number, count))
    return chunks


def make_missing(what: str, chunks: list[Chunk], make: Callable[[Chunk], None]) -> None:
    """Makes the chunks that are not there, on all cores (16 at most).

    Args:
        what: what the progress bar says.
        chunks: all of one folder.
        make: makes one; it must write its folder as a whole (``checkpoint.write_folder``), and other processes run it.

    Raises:
        SaySeeError: a process died.
    """
    parent = chunks[0].folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    clean_folder(parent)
    missing = [chunk for chunk in chunks if not chunk.folder.exists()]
    if not missing:
        return
    with progress_bar(what, sum(chunk.count for chunk in chunks)) as bar:
        bar.advance(sum(chunk.count for chunk in chunks) - sum(chunk.count for chunk in missing))
        if len(missing) == 1:  # a process takes longer to start
            make(missing[0])
            bar.advance(missing[0].count)
            return
        # Spawned, not forked: a fork would copy the synthesiser's state and any locks that other threads hold.
        context = multiprocessing.get_context("spawn")
        try:
            cores = min(usable_cores(), len(missing), MOST_PROCESSES)
            with ProcessPoolExecutor(cores, mp_context=context, initializer=start_worker) as processes:
                for chunk, _ in zip(missing, processes.map(make, missing), strict=True):
                    bar.advance(chunk.count)
        except BrokenProcessPool:
            raise SaySeeError(f"{parent}: a worker process died; run it again, what is finished is kept") from None
