"""Log messages and progress bars on stderr.

Library code logs through ``logging.getLogger(__name__)`` and shows progress by :func:`progress_bar`. Only the command
line prints; it calls :func:`configure_command_line` once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

PATIENCE_SECONDS = 2.0
"""Work that finishes sooner has no bar."""

_progress_shown = True
_bars: set[tqdm] = set()  # those that are open
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
def progress_bar(what: str, total: int, done: int = 0, *, enabled: bool = True) -> Iterator[tqdm]:
    """A bar of tqdm that appears once a ``with`` block has taken over two seconds, if stderr is a terminal.

    ``what`` is shown beside the bar. Of the ``total``, earlier runs have ``done`` a part, which does not count for the
    time that is left. A bar that is not ``enabled`` is not shown; nor are those of training processes but rank 0.
    """
    from tqdm import tqdm

    shown = enabled and _progress_shown and is_rank_0() and os.environ.get("TERM") != "dumb"
    options = {"delay": PATIENCE_SECONDS, "leave": False, "dynamic_ncols": True, "disable": None if shown else True}
    with tqdm(desc=what, total=total, initial=done, **options) as bar:
        _bars.add(bar)
        try:
            yield bar
        finally:
            _bars.remove(bar)


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
            _write_above_bars(lines + "\n")
        except Exception:
            self.handleError(record)


def _write_above_bars(lines: str) -> None:
    """Writes to stderr at once, which keeps the lines of several processes apart."""
    seen = [bar for bar in list(_bars) if not bar.disable and bar.last_print_t >= bar.start_t + bar.delay]
    with seen[0].get_lock() if seen else nullcontext():
        for bar in seen:
            bar.clear(nolock=True)
        sys.stderr.write(lines)
        sys.stderr.flush()
        for bar in seen:
            bar.refresh(nolock=True)


def is_rank_0() -> bool:
    """Whether this is the only process, or the one of those started by torchrun that reports."""
    return os.environ.get("RANK", "0") == "0"
