"""Steps of a study in processes of their own, so that their memory and threads are their own too."""

from __future__ import annotations

import json
import multiprocessing
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from saysee.errors import SaySeeError
from saysee.log import configure_command_line, is_configured
from saysee.settings.reading import save_recipe
from saysee.settings.recipe import Recipe

PATIENCE_SECONDS = 10
"""Time for an interrupted training to finish its step and write its checkpoint, before it is terminated."""

Result = TypeVar("Result")


def run_alone(function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls a function of a module in a process of its own, which frees its memory when it ends.

    The function, its arguments and its result are pickled.
    """
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=_start_step, initargs=(is_configured(),)
    ) as process:
        return process.submit(function, *arguments).result()


def train_alone(recipe: Recipe, recipe_file: Path, what: str) -> dict[str, Any]:
    """Runs ``saysee train`` in a process of its own; resumes the run in the recipe's output folder.

    A finished run of the same recipe starts no process.

    Args:
        recipe: of the run.
        recipe_file: where the recipe is written.
        what: name of the run, for the error message.

    Returns:
        The run's ``result.json``, and ``model``, the path of its best model.

    Raises:
        SaySeeError: the training failed; its error is on stderr.
        KeyboardInterrupt: interrupted; the training has written its checkpoint.
    """
    result_file = Path(recipe.output) / "result.json"
    before = recipe_file.read_bytes() if recipe_file.exists() else None
    save_recipe(recipe, recipe_file)
    if not result_file.exists() or recipe_file.read_bytes() != before:
        _train(recipe_file, what)
    return {"model": f"{recipe.output}/best", **json.loads(result_file.read_text(encoding="utf-8"))}


def _train(recipe_file: Path, what: str) -> None:
    command = [sys.executable, "-m", "saysee", "train", str(recipe_file), "--resume", "auto"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        code = process.wait()
    except KeyboardInterrupt:  # a terminal interrupts the process too
        try:
            process.wait(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        raise
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise SaySeeError(f"training {what} failed; fix the error above and run the command again to resume")


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Within a ``with`` block SIGTERM raises KeyboardInterrupt, so that a scheduler's stop reaches the child too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _start_step(as_command_line: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if as_command_line:
        configure_command_line()
