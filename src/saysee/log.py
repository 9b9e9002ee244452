"""Log messages and progress bars on stderr.

Library code logs through ``logging.getLogger(__name__)`` and shows progress by :func:`progress_bar`. Only the command
line prints; it calls :func:`configure_command_line` once.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PATIENCE_SECONDS = 2.0
"""Work that finishes sooner has no bar."""

_progress_shown = True
_QUIET_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DATASETS_VERBOSITY": "critical",  # damaged files are reported by SaySee
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}


def set_progress(shown: bool) -> None:
    """Turns all progress bars of this process on or off; they are on by default."""
    global _progress_shown
    _progress_shown = shown


@contextmanager
def progress_bar(what: str, total: int, enabled: bool = True) -> Iterator[ProgressBar]:
    """A bar that appears once a ``with`` block has taken over two seconds, if stderr is a terminal.

    Of several training processes only rank 0 shows bars. Bars that are open at the same time share one display.

    Args:
        what: description shown beside the bar.
        total: number of items.
        enabled: False shows no bar.
    """
    bar = ProgressBar(what, total, enabled and _progress_shown and is_rank_0())
    try:
        yield bar
    finally:
        if bar.task is not None:
            _display.remove(bar.task)


class ProgressBar:
    """Counts the items of a :func:`progress_bar`."""

    def __init__(self, what: str, total: int, shown: bool) -> None:
        self._what, self._total, self._done = what, total, 0
        self._shown_from = time.monotonic() + PATIENCE_SECONDS if shown else float("inf")
        self.task: TaskID | None = None

    def advance(self, count: int = 1) -> None:
        """Counts ``count`` more items as done."""
        self._done += count
        if self.task is None and time.monotonic() >= self._shown_from:
            self.task = _display.add(self._what, self._total)
            self._shown_from = float("inf")
        if self.task is not None:
            _display.update(self.task, self._done)


class _Display:
    """The one live display of this process: rich cannot draw two at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._progress: Progress | None = None

    def add(self, what: str, total: int) -> TaskID | None:
        """Adds a bar; None if stderr cannot show one."""
        from rich.console import Console

        console = Console(stderr=True)
        if not console.is_terminal or console.is_dumb_terminal:
            return None
        with self._lock:
            if self._progress is None:
                from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

                columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
                # While the display is live, what is written to stderr appears above it. Stdout stays as it is: it may
                # be a pipe that takes the result.
                self._progress = Progress(*columns, console=console, transient=True, redirect_stdout=False)
                self._progress.start()
            return self._progress.add_task(what, total=total)

    def update(self, task: TaskID, done: int) -> None:
        if self._progress is not None:
            self._progress.update(task, completed=done)

    def remove(self, task: TaskID) -> None:
        with self._lock:
            if self._progress is None:
                return
            if len(self._progress.tasks) > 1:
                self._progress.remove_task(task)
            else:
                self._progress.stop()
                self._progress = None


_display = _Display()


def configure_command_line(*packages: str) -> None:
    """Writes the log messages of the package (and of further ``packages``) to stderr, and silences its libraries.

    An INFO message becomes the line ``saysee: message``, a WARNING ``saysee: warning: message``. Training processes
    other than rank 0 write warnings and errors only. May be called more than once, and before or after the libraries
    are imported; processes started later inherit the silence.
    """
    for name in ("saysee", *packages):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO if is_rank_0() else logging.WARNING)
        if not is_configured(name):
            logger.addHandler(_CommandLineHandler())
    for variable, value in _QUIET_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    if "transformers" in sys.modules:  # it has read the environment already
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
    if "huggingface_hub" in sys.modules:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def is_configured(package: str = "saysee") -> bool:
    """Whether :func:`configure_command_line` was called in this process."""
    return any(isinstance(handler, _CommandLineHandler) for handler in logging.getLogger(package).handlers)


class _CommandLineHandler(logging.Handler):
    """Writes each message as one line, and a traceback below it if the record has one."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
            lines = f"saysee: {level}{' '.join(record.getMessage().split())}"
            if record.exc_info:
                lines += "\n" + logging.Formatter().formatException(record.exc_info)
            # Read here: a live progress bar replaces sys.stderr, and so do tests. One write keeps the lines of several
            # processes apart.
            sys.stderr.write(lines + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def is_rank_0() -> bool:
    """Whether this is the only process, or the one of those started by torchrun that reports."""
    return os.environ.get("RANK", "0") == "0"
