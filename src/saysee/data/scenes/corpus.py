"""The whole corpus in a folder: made on all cores, resumed after a kill, and never mixed with anything else.

The folder contains ``scenes.json`` (the settings, written first), ``images/``, ``clips/``, ``manifest.parquet``
(written last), and ``records/`` until it is complete. An image is finished once its record exists. A killed run is
resumed with the other images, and the corpus is the same, byte for byte, as that of a run that was never killed.
"""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from saysee.data.manifest import Manifest, Row
from saysee.data.scenes.drawing import IMAGE_SIZE
from saysee.data.scenes.grammar import LANGUAGES
from saysee.data.scenes.making import RECORDS, make_images, read_record, write_file
from saysee.data.scenes.planning import PlannedScene, plan, split_sizes
from saysee.data.scenes.speech import synthesizer_version
from saysee.errors import ConfigError, SaySeeError
from saysee.files import UNFINISHED
from saysee.hardware import usable_cores
from saysee.log import progress_bar
from saysee.signals import on_signals, start_worker

GENERATOR_VERSION = 2  # increased by any change that gives other images, captions or clips for the same seed

MARKER = "scenes.json"
MANIFEST = "manifest.parquet"
MIN_IMAGE_SIZE = 32  # pixels: in smaller images, shapes and fills cannot be distinguished
LARGEST_BATCH = 4  # images that a worker makes at a time: a third of a second, so Ctrl-C takes effect quickly


def build_scenes(
    folder: str | os.PathLike[str],
    *,
    images: int = 3000,
    seed: int = 0,
    val_images: int | None = None,
    test_images: int | None = None,
    image_size: int = IMAGE_SIZE,
    languages: Sequence[str] = ("en",),
    workers: int | None = None,
) -> Path:
    """Make the corpus of drawn scenes, or what is missing of it; a complete one is returned at once.

    In addition to a manifest's own columns, each row has: ``seconds`` (length of the clip), ``accent``, ``novel_pair``
    (the image has a pair of color and shape that is not in training), ``hard_twin`` and ``twin_of`` (image id of the
    test image that differs in one attribute of one object; no caption is true of both), ``objects`` (shape, color,
    size, fill, and box as left, top, right, bottom in fractions of the image side), ``words`` (word, start and end in
    seconds, indices of the objects that it describes).

    Args:
        folder: of the corpus; new, empty, or with an earlier run of the same settings.
        images: number of images, with five clips each in each language.
        seed: another seed gives other images and captions.
        val_images, test_images: number of images for validation (by default 5 %) and testing (15 %).
        image_size: image side in pixels, at least 32.
        languages: of ``LANGUAGES``; the same five things are said of an image in each, by other speakers.
        workers: number of processes; by default one per core.

    Returns the path of the manifest. Raises SaySeeError for invalid numbers, if the folder contains something else or
    cannot be written, or if the synthesizer is not installed.
    """
    folder = Path(folder)
    sizes = split_sizes(images, val_images, test_images)
    if image_size < MIN_IMAGE_SIZE:
        raise ConfigError(f"image_size is {image_size}; set it to at least {MIN_IMAGE_SIZE} (usually {IMAGE_SIZE})")
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; set it to at least 1, or omit it for one per core")
    if not languages or not set(languages) <= set(LANGUAGES) or len(set(languages)) < len(languages):
        raise ConfigError(f"languages is {','.join(languages)!r}; give some of {', '.join(LANGUAGES)}, each once")
    settings: dict[str, Any] = {"version": GENERATOR_VERSION, "seed": seed, "images": sizes, "picture_size": image_size}
    settings["languages"] = list(languages)
    manifest = folder / MANIFEST
    found = _read_settings(folder)
    if found is not None:
        _check_same(folder, found, settings)
        if manifest.is_file():
            shutil.rmtree(folder / RECORDS, ignore_errors=True)  # left by a run that was killed at its end
            return manifest
    # A complete corpus needs no synthesizer; an incomplete one needs the same version, so that all clips are alike.
    settings["speech"] = synthesizer_version()
    try:
        if found is None:
            write_file(folder / MARKER, json.dumps(settings, indent=2).encode() + b"\n")
        else:
            _check_same(folder, found, settings)
        for leftover in [*folder.rglob(f"{UNFINISHED}*")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        missing = {index for index in range(images) if read_record(folder, index) is None}
        with progress_bar("drawing and speaking", images, images - len(missing)) as bar:
            make = partial(make_images, folder, seed, image_size, languages)
            scenes = (planned for planned in plan(seed, sizes) if planned.index in missing)
            _make_all(scenes, len(missing), make, workers or usable_cores(), bar)
        rows = _rows(folder, images)
        if hasattr(os, "sync"):
            os.sync()  # otherwise a power cut soon after could leave a manifest of files that are not on disk yet
        Manifest(rows, folder).write(manifest)
        shutil.rmtree(folder / RECORDS)
    except BrokenProcessPool:
        fix = "run it again, what is finished is kept (in a script, call it under `if __name__ == '__main__':`)"
        raise SaySeeError(f"{folder}: a worker process died; {fix}") from None
    except OSError as error:
        reason = f"{error.filename or folder}: {error.strerror or error}"
        raise SaySeeError(f"{reason}; fix that and run it again, what is finished is kept") from None
    return manifest


def _rows(folder: Path, images: int) -> list[Row]:
    records = [read_record(folder, index) for index in range(images)]
    if None in records:
        lost = f"files of image {records.index(None)} disappeared while the corpus was made"
        raise SaySeeError(f"{folder}: {lost}; run it again")
    return [Row(**row) for record in records for row in record or ()]


def _read_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of an earlier run; None if the folder is new or empty."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise SaySeeError(f"{folder}: is a file; name a new or empty folder for the scenes corpus")
    try:
        settings = json.loads((folder / MARKER).read_bytes())
    except FileNotFoundError:
        other = next((path.name for path in sorted(folder.iterdir()) if not path.name.startswith(UNFINISHED)), None)
        if other is None:
            return None
        raise SaySeeError(f"{folder}: contains {other!r}, not a scenes corpus; name a new or empty folder") from None
    except (OSError, ValueError):
        settings = None
    if not isinstance(settings, dict):
        raise SaySeeError(f"{folder / MARKER}: cannot be read; name a new or empty folder, or delete this one")
    return {"languages": ["en"]} | settings  # corpora of earlier versions are in English


def _check_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Rejects a corpus with other settings, naming the first that differs."""
    for name, value in wanted.items():
        if found.get(name) != value:
            other = f"{name.replace('picture', 'image')}={_describe(found.get(name))}, not {_describe(value)}"
            raise SaySeeError(f"{folder}: has a scenes corpus with {other}; use the same settings, or a new folder")


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        return "/".join(f"{n} {split}" for split, n in value.items())
    return ",".join(value) if isinstance(value, list) else str(value)


def _make_all(
    scenes: Iterator[PlannedScene], count: int, make: Callable[[list[PlannedScene]], int], workers: int, bar: tqdm
) -> None:
    """Lets workers make the images. On Ctrl-C or an error, they finish their batch and start no other."""
    if count == 0:
        return
    size = max(1, min(LARGEST_BATCH, count // (2 * workers)))
    batches = iter(lambda: list(itertools.islice(scenes, size)), [])
    first = list(itertools.islice(batches, 2 * workers))  # planned here, where Ctrl-C is heard
    # Spawned, not forked: a fork would copy the state of the synthesizer and locks of other threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, count), mp_context=context, initializer=start_worker)
    pending: set[Future[int]] = set()
    try:
        with on_signals(signal.SIG_IGN, signal.SIGINT):  # the processes start here, and ignore Ctrl-C from then on
            pending |= {pool.submit(make, batch) for batch in first}
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                bar.update(future.result())
            for batch in itertools.islice(batches, len(done)):
                pending.add(pool.submit(make, batch))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
