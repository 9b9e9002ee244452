"""Progress on stderr, for work that takes over two seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE_SECONDS = 2.0
"""Work that is done sooner shows no bar."""


class ProgressBar:
    """A bar that shows itself only once the work has taken over two seconds."""

    def __init__(self, what: str, total: int, enabled: bool = True) -> None:
        self._what, self._total, self._done = what, total, 0
        self._start = time.monotonic() if enabled else float("inf")
        self._progress: Progress | None = None

    def advance(self, count: int = 1) -> None:
        """Tells that ``count`` more are done."""
        self._done += count
        if self._progress is None:
            if time.monotonic() - self._start < PATIENCE_SECONDS:
                return
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task(self._what, total=self._total)
        self._progress.update(self._task, completed=self._done)

    def close(self) -> None:
        """Takes the bar away."""
        if self._progress is not None:
            self._progress.stop()


@contextmanager
def progress_bar(what: str, total: int, enabled: bool = True) -> Iterator[ProgressBar]:
    """A :class:`ProgressBar` for the time of a ``with`` block; disabled, it only counts."""
    bar = ProgressBar(what, total, enabled)
    try:
        yield bar
    finally:
        bar.close()
