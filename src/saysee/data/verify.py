"""Opening every file of a manifest, to know before training which of them are bad."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from saysee.data.manifest import Manifest
from saysee.errors import ConfigError, MediaError
from saysee.hardware import usable_cores
from saysee.log import ProgressBar, progress_bar
from saysee.media.audio import MAX_SECONDS, SAMPLE_RATE, load_audio
from saysee.media.images import MAX_PIXELS, load_image

Column = Literal["clip", "image"]

_INLINE = 500  # files: under it, some 5 s of decoding, starting processes costs more than it saves
_CHUNK = 32  # files handed to a process at a time


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that cannot be used.

    Attributes:
        row: the first row that names it, from 1.
        column: "clip" or "image".
        path: the file.
        kind: one of ``MediaError.CODES``.
        message: what is wrong, where, and the mend, in one line.
    """

    row: int
    column: Column
    path: str
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class _Check:
    """One file to open, with the limits it must keep."""

    row: int
    column: Column
    path: str
    min_seconds: float
    max_seconds: float
    max_pixels: int


def verify(
    manifest: Manifest,
    *,
    min_seconds: float = 0.0,
    max_seconds: float = MAX_SECONDS,
    max_pixels: int = MAX_PIXELS,
    workers: int | None = None,
) -> list[Problem]:
    """Decode every clip, and every picture once, from the first byte to the last.

    Args:
        manifest: whose files to open.
        min_seconds: a clip that lasts less is a problem; one frame (25 ms) is asked for in any case.
        max_seconds: a clip that lasts longer is a problem; ``math.inf`` for no limit.
        max_pixels: a picture of more pixels is a problem.
        workers: processes; none for as many as there are cores. Small manifests are read in this one.

    Returns:
        the problems in order of the rows; empty when all is well.

    Raises:
        ConfigError: the limits exclude each other, or ``workers`` is under 1.
    """
    if not 0 <= min_seconds < max_seconds:
        raise ConfigError(
            f"min_seconds {min_seconds:g} and max_seconds {max_seconds:g} leave no clip; set 0 <= min < max"
        )
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; set it to at least 1")
    checks = list(_checks(manifest, min_seconds, max_seconds, max_pixels))
    processes = workers or usable_cores()
    with progress_bar("opening files", len(checks)) as bar:
        if processes == 1 or len(checks) < _INLINE:
            return _collect(map(_open, checks), bar)
        # Spawned, not forked: a caller may hold threads or a GPU.
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                return _collect(pool.map(_open, checks, chunksize=_CHUNK), bar)
            except BaseException:  # Ctrl-C too: do not open the rest first
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def problems_table(problems: Sequence[Problem]) -> Table:
    """The problems as a table for the terminal."""
    table = Table("row", "column", "kind", "what")
    for problem in problems:
        table.add_row(
            str(problem.row), problem.column, problem.kind, Text(problem.message)
        )  # a name may hold [brackets]
    return table


def problems_to_dict(manifest: Manifest, problems: Sequence[Problem]) -> dict[str, Any]:
    """The outcome as plain values for JSON: what was opened, how many problems of each kind, and each of them."""
    return {
        "clips": len(manifest),
        "images": len(manifest.images()),
        "kinds": dict(Counter(problem.kind for problem in problems).most_common()),
        "problems": [asdict(problem) for problem in problems],
    }


def _collect(results: Iterable[Problem | None], bar: ProgressBar) -> list[Problem]:
    problems = []
    for found in results:
        bar.advance()
        if found is not None:
            problems.append(found)
    return problems


def _checks(manifest: Manifest, min_seconds: float, max_seconds: float, max_pixels: int) -> Iterator[_Check]:
    seen: set[Path] = set()
    for number, row in enumerate(manifest, 1):
        picture = manifest.image_path(row)
        yield _Check(number, "clip", os.fspath(manifest.clip_path(row)), min_seconds, max_seconds, max_pixels)
        if picture not in seen:
            seen.add(picture)
            yield _Check(number, "image", os.fspath(picture), min_seconds, max_seconds, max_pixels)


def _open(check: _Check) -> Problem | None:
    """Open one file. A refusal is returned as plain values, which travel between processes."""
    try:
        if check.column == "image":
            load_image(check.path, max_pixels=check.max_pixels)
        else:
            seconds = load_audio(check.path, max_seconds=check.max_seconds).size / SAMPLE_RATE
            if seconds < check.min_seconds and not math.isclose(seconds, check.min_seconds, abs_tol=1e-4):
                mend = "record it again or lower min_seconds"
                raise MediaError(
                    "too-short", f"{check.path}: lasts {seconds:.2f} s, under {check.min_seconds:g} s; {mend}"
                )
    except MediaError as error:
        return Problem(check.row, check.column, check.path, error.code, str(error))
    return None
