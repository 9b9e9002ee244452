"""``saysee`` in processes of its own, forked from one that has imported torch and the package already.

They are killed, interrupted and ended like those of a shell; each saves three seconds of imports.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

_IMPORTED_ONCE = [
    "saysee.search.service.app",
    "saysee.training.trainer",
    # What torch and accelerate import at the first step of a training.
    "torch._dynamo",
    "torch.distributed.tensor",
    "torch.utils.tensorboard",
    "uvicorn",
]


class Process:
    """What tests use of :class:`subprocess.Popen`, in a session of its own; stdout and stderr are text."""

    def __init__(self, words: Sequence[object], program: str | None = None, **variables: str) -> None:
        """Starts ``saysee words`` or a Python program, with environment variables in addition to this process's."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_IMPORTED_ONCE)
        outputs = [context.Pipe(duplex=False) for _ in range(2)]
        run = context.Process(
            target=_run,
            args=(program, [*map(str, words)], *(writer for _, writer in outputs), {**os.environ, **variables}),
        )
        run.start()
        self._run = run
        self.pid: int = run.pid or 0
        for _, writer in outputs:
            writer.close()
        self.stdout, self.stderr = (_text(reader) for reader, _ in outputs)

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        return self._run.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._run.join(timeout)
        if self._run.exitcode is None:
            raise subprocess.TimeoutExpired("saysee", timeout or 0)
        return self._run.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that is still to read, after the end."""
        texts = ["", ""]

        def read(number: int, file: IO[str]) -> None:
            texts[number] = "" if file.closed else file.read()

        readers = [
            threading.Thread(target=read, args=each, daemon=True) for each in enumerate((self.stdout, self.stderr))
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired("saysee", timeout or 0)
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Started = Process | subprocess.Popen[str]


def start_saysee(*words: object, program: str | None = None, **variables: str) -> Started:
    """``saysee`` with these words, or a Python program, with environment variables in addition."""
    if sys.platform == "linux":
        return Process(words, program, **variables)
    return subprocess.Popen(
        [sys.executable, *(["-m", "saysee"] if program is None else ["-c", program]), *map(str, words)],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], process: Started, seconds: float = 240) -> None:
    """Waits until a condition holds; a process that ends before fails."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended too early: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.001)


def has_ended(pid: str) -> bool:
    """Whether a process has ended, also if its parent has not waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def _text(reader: Connection) -> IO[str]:
    file = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
    reader.close()
    return file


def _run(
    program: str | None, words: list[str], stdout: Connection, stderr: Connection, environment: Mapping[str, str]
) -> None:
    os.setsid()
    os.fsync = lambda file: None  # as in conftest.py
    multiprocessing.set_start_method(None, force=True)  # not that of this process, which a forkserver started
    os.environ.clear()
    os.environ.update(environment)
    for number, end in ((1, stdout), (2, stderr)):
        os.dup2(end.fileno(), number)
        end.close()
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv = ["saysee", *words]
    try:
        if program is None:
            runpy.run_module("saysee", run_name="__main__", alter_sys=True)
        else:
            exec(program, {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()
