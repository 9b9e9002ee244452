"""Steps of a study in processes of their own, so that their memory, threads and device are their own too."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from saysee.errors import SaySeeError
from saysee.hardware import torch_device, usable_cores
from saysee.log import configure_command_line, is_configured
from saysee.settings.reading import save_recipe
from saysee.settings.recipe import Recipe
from saysee.signals import EXIT_INTERRUPTED, on_signals, start_worker

_POLL_SECONDS = 0.2
_GPUS, _THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"

Result = TypeVar("Result")
Item = TypeVar("Item")

_variables: ContextVar[dict[str, str]] = ContextVar("variables")
"""Environment variables that give the processes that this thread starts a device of their own."""
_stopping = threading.Event()


def on_devices(function: Callable[[Item], None], items: Sequence[Item], devices: Sequence[str]) -> None:
    """Calls a function for each item, as many at once as there are devices; in turn for none or one.

    The processes that the function starts see one device each (``cpu``, ``cuda`` or ``cuda:N``; one may be there
    several times), so that their settings are those of a run in turn; those on the CPU share its cores, unless
    ``OMP_NUM_THREADS`` is set. The first error stops the other calls, as an interrupt does.
    """
    free: SimpleQueue[dict[str, str]] = SimpleQueue()
    bars = {"TERM": "dumb"} if len(devices) > 1 else {}  # bars of several processes would overwrite each other
    for device in devices or [""]:
        free.put(bars | _alone_on(device, devices.count("cpu")))

    def call(item: Item) -> None:
        variables = free.get()
        before = _variables.set(variables)
        try:
            if not _stopping.is_set():
                function(item)
        except BaseException:
            _stopping.set()
            raise
        finally:
            _variables.reset(before)
            free.put(variables)

    try:
        if len(devices) < 2:
            for item in items:
                call(item)
            return
        with ThreadPoolExecutor(len(devices)) as pool:
            calls = [pool.submit(call, item) for item in items]
            try:
                for done in as_completed(calls):
                    done.result()
            except BaseException:  # the pool ends when the calls that have begun have ended
                _stopping.set()
                raise
    finally:
        _stopping.clear()


def cpu_shares(most: int) -> list[str]:
    """The CPU once per core, at most ``most`` times, as devices; none where a GPU takes the items in turn."""
    return [] if torch_device() == "cuda" else ["cpu"] * min(most, usable_cores())


def _alone_on(device: str, at_once: int) -> dict[str, str]:
    """The variables with which a process computes on a device, the CPU as one of ``at_once``; none for any device."""
    kind, _, number = device.partition(":")
    if kind == "cpu":
        threads = {} if at_once == 1 or _THREADS in os.environ else {_THREADS: str(max(1, usable_cores() // at_once))}
        return {_GPUS: "", **threads}
    visible = os.environ.get(_GPUS)
    gpu = (number or "0") if visible is None else visible.split(",")[int(number or 0)]
    return {_GPUS: gpu} if kind == "cuda" else {}


def run_alone(function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls a function of a module in a process of its own, which frees its memory when it ends.

    The function, its arguments and its result are pickled. An interrupt ends the process. Raises SaySeeError if the
    system killed it.
    """
    others = set(multiprocessing.active_children())  # of whoever called, and not to be ended
    with ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_step,
        initargs=(is_configured(), _variables.get({})),
    ) as process:
        called = process.submit(function, *arguments)
        try:
            while not wait([called], _POLL_SECONDS).done:
                if _stopping.is_set():
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            raise
        try:
            return called.result()
        except BrokenProcessPool:
            raise SaySeeError(
                "a process of the study was killed, most likely because memory ran out; free memory, or use smaller "
                "batches, and run the command again"
            ) from None


def train_alone(recipe: Recipe, recipe_file: Path, what: str) -> dict[str, Any]:
    """Runs ``saysee train`` in a process of its own; resumes the run in the recipe's output folder.

    A finished run of the same recipe starts no process. The recipe is written to ``recipe_file``; ``what`` is the name
    of the run for the error message. Returns the run's ``result.json``, and ``model``, the path of its best model.

    Raises SaySeeError if the training failed, whose error is on stderr; KeyboardInterrupt if it was interrupted, and
    has written its checkpoint.
    """
    result_file = Path(recipe.output) / "result.json"
    before = recipe_file.read_bytes() if recipe_file.exists() else None
    save_recipe(recipe, recipe_file)
    is_finished = result_file.exists() and recipe_file.read_bytes() == before
    if not is_finished and run_saysee(["train", str(recipe_file), "--resume", "auto"]):
        raise SaySeeError(f"training {what} failed; fix the error above and run the command again to resume")
    return {"model": f"{recipe.output}/best", **json.loads(result_file.read_text(encoding="utf-8"))}


def run_saysee(words: Sequence[str], output: Path | None = None, folder: Path | None = None) -> int:
    """Runs a command line in a process of its own, in a folder (None: this one), and returns its exit code.

    ``words`` follow ``saysee``; ``output`` is the file of what it prints on stdout (None: none).

    Raises KeyboardInterrupt if it or this process was interrupted.
    """
    command, environment = [sys.executable, "-m", "saysee", *words], {**os.environ, **_variables.get({})}
    with open(output or os.devnull, "wb") as stdout:
        process = subprocess.Popen(command, stdout=stdout, cwd=folder, env=environment)
    try:
        while (code := process.poll()) is None:
            if _stopping.wait(_POLL_SECONDS):
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        process.terminate()  # for a training the same request as the SIGINT of a terminal, if that has come to it too
        process.wait()
        raise
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    return code


def _interrupt_once(*_: object) -> None:
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)
    raise KeyboardInterrupt


interrupted_once = partial(on_signals, _interrupt_once, signal.SIGINT, signal.SIGTERM)
"""Within a ``with`` block the first SIGINT or SIGTERM raises KeyboardInterrupt, and others are ignored: a terminal and
a parent may both send one, and the child must be waited for. A terminal's second one reaches the child, and ends its
training."""


def _start_step(as_command_line: bool, variables: dict[str, str]) -> None:
    os.environ.update(variables)  # before torch reads them
    start_worker()
    if as_command_line:
        configure_command_line()
