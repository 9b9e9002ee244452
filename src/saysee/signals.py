"""Handling signals of the system in another way for a while."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

EXIT_INTERRUPTED = 130
"""The exit code of a command that SIGINT or SIGTERM has stopped."""


@contextmanager
def on_signals(handler: Callable[..., Any] | signal.Handlers, *kinds: signal.Signals) -> Iterator[None]:
    """Handles signals by ``handler`` within a ``with`` block of the main thread; others may not set handlers."""
    is_main = threading.current_thread() is threading.main_thread()
    before = {kind: signal.signal(kind, handler) for kind in kinds if is_main}
    try:
        yield
    finally:
        for kind, handled in before.items():
            signal.signal(kind, handled)


def start_worker() -> None:
    """Initializes a worker process: only the parent handles Ctrl-C, and a worker ends with a killed parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
