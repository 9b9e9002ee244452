"""Steps of a study in processes of their own, so that each step's memory and threads are its own."""

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
from types import FrameType
from typing import Any, TypeVar

from saysee.errors import SaySeeError
from saysee.settings.recipe import Recipe, save_recipe

PATIENCE_SECONDS = 10
"""How long an interrupted training may take to end its step and write its checkpoint before it is told again."""

Result = TypeVar("Result")


def alone(work: Callable[..., Result], *arguments: Any) -> Result:
    """Does work in a process of its own, so that the memory it took is free for the next step.

    Args:
        work: a function of a module; it and what it is given and gives can be pickled.
        arguments: what it is given.
    """
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=_leave_interrupts_to_the_parent
    ) as process:
        return process.submit(work, *arguments).result()


def train_alone(recipe: Recipe, recipe_file: Path, what: str) -> dict[str, Any]:
    """``saysee train`` in a process of its own; goes on with the run in the recipe's output folder.

    Args:
        recipe: of the run.
        recipe_file: where to write it.
        what: what is trained, for the message of a failure.

    Returns:
        The run's ``result.json``.

    Raises:
        SaySeeError: the training failed; it has told why on stderr.
        KeyboardInterrupt: the run was interrupted; it has written its checkpoint.
    """
    save_recipe(recipe, recipe_file)
    code, text = _run([sys.executable, "-m", "saysee", "train", str(recipe_file), "--resume", "auto", "--json"])
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise SaySeeError(f"training {what} failed, for the reason above; mend it and give the command again to go on")
    result: dict[str, Any] = json.loads(text)
    return result


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Within a ``with`` block SIGTERM does what Ctrl-C does, so that a scheduler's stop reaches the step's process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(command: list[str]) -> tuple[int, str]:
    """Exit code and stdout. At Ctrl-C the process, which a terminal tells too, is given time to write its
    checkpoint."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        output, _ = process.communicate()
    except KeyboardInterrupt:
        try:
            process.wait(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()  # nobody told it
            process.wait()
        raise
    return process.returncode, output


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
