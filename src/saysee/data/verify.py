"""Opening every file of a manifest, to find the bad ones before training does."""

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from saysee.data.manifest import Manifest, check_suffix
from saysee.errors import ConfigError, MediaCode, MediaError, SaySeeError
from saysee.hardware import usable_cores
from saysee.log import progress_bar
from saysee.media.audio import MAX_SECONDS, SAMPLE_RATE, load_audio
from saysee.media.formats import Kind
from saysee.media.images import load_image
from saysee.signals import on_signals, start_worker

_INLINE = 500  # files: fewer take about 5 s, and starting processes costs more than it saves
_CHUNK = 32  # files passed to a process at a time


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that cannot be used."""

    row: int  # the first row that names it, from 1
    column: Kind  # "clip" or "image"
    path: str  # the file
    kind: MediaCode  # one of ``MediaError.CODES``
    message: str  # what is wrong, where, and how to fix it, in one line


_File = tuple[int, Kind, str]  # row, column and path of a file to open
_Opened = Problem | float  # what is wrong with a file; or the length of a clip in seconds, 0 for an image


def verify(
    manifest: Manifest,
    *,
    max_seconds: float = MAX_SECONDS,
    workers: int | None = None,
    to: str | os.PathLike[str] | None = None,
) -> list[Problem]:
    """Decode every clip and every image completely, each image once; the problems are in order of the rows.

    Args:
        manifest: of the files.
        max_seconds: limit of a clip; one shorter than a frame (25 ms) is a problem too.
        workers: number of processes; by default one per core. Small manifests are read in this process.
        to: a manifest to write of the rows that can be used, with the length of each clip in the column ``seconds``, so
            that training need not read the header of every clip.

    Raises ConfigError if a number is out of range, ManifestError if no row can be used or ``to`` cannot be written,
    SaySeeError if a process is killed.
    """
    if to is not None:
        check_suffix(to)  # before the long work
    if not max_seconds > 0:
        raise ConfigError(f"max_seconds is {max_seconds:g}; set it above 0")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; set it to at least 1")
    files = list(_files(manifest))
    opened = _open_all(files, partial(_open, max_seconds=max_seconds), workers or usable_cores())
    problems = [found for found in opened if isinstance(found, Problem)]
    if to is not None:
        bad = bad_rows(manifest, problems)
        lengths = (found for found, (_, column, _) in zip(opened, files, strict=True) if column == "clip")
        rows = enumerate((replace(row, extra={**row.extra, "seconds": next(lengths)}) for row in manifest), 1)
        Manifest((row for number, row in rows if number not in bad), manifest.root).write(to)
    return problems


def bad_rows(manifest: Manifest, problems: Sequence[Problem]) -> set[int]:
    """The numbers, from 1, of all rows of which the clip or the image cannot be used."""
    clips, images = ({problem.path for problem in problems if problem.column == kind} for kind in ("clip", "image"))
    return {
        number
        for number, row in enumerate(manifest, 1)
        if os.fspath(manifest.clip_path(row)) in clips or os.fspath(manifest.image_path(row)) in images
    }


def problems_table(problems: Sequence[Problem]) -> Table:
    """The problems as a table for the terminal."""
    table = Table("row", "column", "kind", "what")
    for each in problems:  # Text, not markup: a name may contain [brackets]
        table.add_row(str(each.row), each.column, each.kind, Text(each.message))
    return table


def problems_to_dict(manifest: Manifest, problems: Sequence[Problem]) -> dict[str, Any]:
    """The result as plain values for JSON: numbers of files, bad rows and problems of each kind, and each problem."""
    return {
        "clips": len(manifest),
        "images": len(manifest.images()),
        "bad_rows": len(bad_rows(manifest, problems)),
        "kinds": dict(Counter(problem.kind for problem in problems).most_common()),
        "problems": [asdict(problem) for problem in problems],
    }


def _open_all(files: Sequence[_File], check: Callable[[_File], _Opened], processes: int) -> list[_Opened]:
    opened: list[_Opened] = []
    with progress_bar("opening files", len(files)) as bar, ExitStack() as stack:
        results: Iterator[_Opened] = map(check, files)
        if processes > 1 and len(files) >= _INLINE:
            # Spawned, not forked: the caller may hold threads or a GPU.
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(processes, mp_context=context, initializer=start_worker)
            stack.callback(pool.shutdown, cancel_futures=True)  # after Ctrl-C, open no other files first
            with on_signals(signal.SIG_IGN, signal.SIGINT):  # the processes start here, and ignore Ctrl-C from then on
                results = pool.map(check, files, chunksize=_CHUNK)
        try:
            for found in results:
                opened.append(found)
                bar.update()
        except BrokenProcessPool:
            raise SaySeeError(
                "a process that opens files was killed, most likely because memory ran out; give fewer --workers"
            ) from None
    return opened


def _files(manifest: Manifest) -> Iterator[_File]:
    seen: set[Path] = set()
    for number, row in enumerate(manifest, 1):
        image = manifest.image_path(row)
        yield number, "clip", os.fspath(manifest.clip_path(row))
        if image not in seen:
            seen.add(image)
            yield number, "image", os.fspath(image)


def _open(file: _File, max_seconds: float) -> _Opened:
    """Opens one file. An error is returned as plain values, which travel between processes."""
    row, column, path = file
    try:
        if column == "clip":
            return load_audio(path, max_seconds=max_seconds).size / SAMPLE_RATE
        load_image(path)
        return 0.0
    except MediaError as error:
        return Problem(row, column, path, error.code, str(error))
