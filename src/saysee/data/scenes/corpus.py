"""The whole corpus in a folder: made on all cores, resumed after a kill, and never mixed with anything else.

In the folder: ``scenes.json`` (the settings, written first), ``images/``, ``clips/``, ``manifest.parquet`` (written
last), and ``records/`` while it is being made. An image is finished when its record is there; a run that was killed
goes on with the others, and the corpus is the same, byte for byte, as one that was never killed.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saysee.data.manifest import Manifest, Row
from saysee.data.scenes.drawing import PICTURE_SIZE
from saysee.data.scenes.making import RECORDS, UNFINISHED, make_images, read_record, start_worker, write_whole
from saysee.data.scenes.planning import PlannedScene, plan, split_sizes
from saysee.data.scenes.speech import synthesiser_version
from saysee.errors import ConfigError, SaySeeError
from saysee.hardware import usable_cores
from saysee.log import ProgressBar, progress_bar

GENERATOR_VERSION = 2
"""Goes up with any change that gives other pictures, captions or clips for the same seed."""

MARKER = "scenes.json"
MANIFEST = "manifest.parquet"
LARGEST_BATCH = 8  # images that a worker makes at a time: a third of a second, so Ctrl-C is answered promptly


def build_scenes(
    folder: str | os.PathLike[str],
    *,
    images: int = 3000,
    seed: int = 0,
    val_images: int | None = None,
    test_images: int | None = None,
    picture_size: int = PICTURE_SIZE,
    workers: int | None = None,
) -> Path:
    """Makes the corpus of drawn scenes, or what is missing of it; a finished one is returned at once.

    Beyond a manifest's own columns, each row has: ``seconds`` (length of the clip), ``accent``, ``novel_pair`` (the
    picture has a pair of color and shape that training never shows), ``hard_twin`` and ``twin_of`` (the image id of the
    test picture that differs in one attribute of one object; no caption is true of both), ``objects`` (shape, color,
    size, fill, and box as left, top, right, bottom in shares of the side), ``words`` (word, start and end in seconds,
    numbers of the objects).

    Args:
        folder: where; new, empty, or holding an earlier run of the same settings.
        images: pictures in all; each has five clips.
        seed: another seed gives other pictures and captions.
        val_images: how many of the pictures are for validation; by default 5 %.
        test_images: how many are for testing; by default 15 %.
        picture_size: side of the pictures in pixels, at least 32.
        workers: processes; by default one a core.

    Returns:
        The path of the manifest.

    Raises:
        ConfigError: if the numbers do not go together.
        SaySeeError: if the folder holds something else, or cannot be written.
        MissingExtraError: if the synthesiser is not installed.
    """
    folder = Path(folder)
    sizes = split_sizes(images, val_images, test_images)
    if picture_size < 32:
        raise ConfigError(f"picture_size={picture_size}: below 32 pixels nothing can be told apart; 224 is usual")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers}: at least one is needed; leave it out for one a core")
    settings = {"version": GENERATOR_VERSION, "seed": seed, "images": sizes, "picture_size": picture_size}
    manifest = folder / MANIFEST
    found = _settings_found(folder)
    if found is not None:
        _refuse_others(folder, found, settings)
        if manifest.is_file():
            shutil.rmtree(folder / RECORDS, ignore_errors=True)  # left by a run that was killed in its last moment
            return manifest
    # A finished corpus needs no synthesiser; an unfinished one needs the same, or the clips would not be of one kind.
    settings["speech"] = synthesiser_version()
    try:
        if found is None:
            write_whole(folder / MARKER, lambda path: path.write_text(json.dumps(settings, indent=2) + "\n"))
        else:
            _refuse_others(folder, found, settings)
        for leftover in folder.rglob(f"{UNFINISHED}*"):
            leftover.unlink(missing_ok=True)
        todo = (each for each in plan(seed, sizes) if read_record(folder, each.index) is None)
        with progress_bar("drawing and speaking", images) as bar:
            _make_all(_counted(todo, bar, images), folder, seed, picture_size, workers or usable_cores(), bar)
        rows = _rows(folder, images)
        if hasattr(os, "sync"):
            os.sync()  # else a power cut soon after could leave a manifest of files that are not on disk yet
        Manifest(rows, folder).write(manifest)
        shutil.rmtree(folder / RECORDS)
    except BrokenProcessPool:
        raise SaySeeError(
            f"{folder}: a worker process died; run it again, what is finished is kept "
            "(from a script, call it under `if __name__ == '__main__':`)"
        ) from None
    except OSError as error:
        raise SaySeeError(
            f"{error.filename or folder}: {error.strerror or error}; "
            "mend that and run it again, what is finished is kept"
        ) from None
    return manifest


def _rows(folder: Path, images: int) -> list[Row]:
    """The rows of all images, in order."""
    rows: list[Row] = []
    for index in range(images):
        record = read_record(folder, index)
        if record is None:
            raise SaySeeError(f"{folder}: files of image {index} vanished while the corpus was made; run it again")
        rows += (Row(**row) for row in record)
    return rows


def _settings_found(folder: Path) -> dict[str, Any] | None:
    """The settings of an earlier run; None if the folder is new or empty.

    Raises:
        SaySeeError: if it holds something else.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise SaySeeError(f"{folder} is a file: name a new or empty folder for the scenes corpus")
    try:
        settings = json.loads((folder / MARKER).read_bytes())
    except FileNotFoundError:
        other = next((path.name for path in sorted(folder.iterdir()) if not path.name.startswith(UNFINISHED)), None)
        if other is None:
            return None
        raise SaySeeError(
            f"{folder} holds something else than a scenes corpus ({other!r}): name a new or empty folder"
        ) from None
    except (OSError, ValueError):
        settings = None
    if not isinstance(settings, dict):
        raise SaySeeError(f"{folder / MARKER} cannot be read: name a new or empty folder, or remove this one")
    return settings


def _refuse_others(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuses a corpus of other settings, naming the first that differs."""
    for name, value in wanted.items():
        if found.get(name) != value:
            raise SaySeeError(
                f"{folder} holds a scenes corpus with {name}={_told(found.get(name))}, not {_told(value)}: "
                "take the same settings, or a new folder"
            )


def _told(value: Any) -> str:
    return "/".join(f"{n} {split}" for split, n in value.items()) if isinstance(value, dict) else str(value)


def _counted(todo: Iterator[PlannedScene], bar: ProgressBar, images: int) -> Iterator[PlannedScene]:
    """Passes on what is to do, and advances the bar by what it skipped."""
    before = 0
    for planned in todo:
        bar.advance(planned.index - before)
        before = planned.index + 1
        yield planned
    bar.advance(images - before)


def _make_all(
    todo: Iterator[PlannedScene], folder: Path, seed: int, picture_size: int, workers: int, bar: ProgressBar
) -> None:
    """Has workers make the images; on Ctrl-C or an error, they end their batch and no more is begun."""
    first = list(itertools.islice(todo, workers * LARGEST_BATCH))
    if not first:
        return
    size = max(1, min(LARGEST_BATCH, len(first) // (2 * workers)))
    batches = _batches(itertools.chain(first, todo), size)
    # Spawned, not forked: a fork would copy the synthesiser's state and any locks that other threads hold.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(first)), mp_context=context, initializer=start_worker)
    pending: set[Future[int]] = set()
    try:
        with _interrupts_ignored():  # processes start here, and inherit that
            for batch in itertools.islice(batches, 2 * workers):
                pending.add(pool.submit(make_images, folder, seed, picture_size, batch))
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                bar.advance(future.result())
            for batch in itertools.islice(batches, len(done)):
                pending.add(pool.submit(make_images, folder, seed, picture_size, batch))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(todo: Iterator[PlannedScene], size: int) -> Iterator[list[PlannedScene]]:
    while batch := list(itertools.islice(todo, size)):
        yield batch


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignores Ctrl-C for a moment, so that processes started meanwhile ignore it from their first instruction."""
    if threading.current_thread() is not threading.main_thread():  # other threads may not set signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
