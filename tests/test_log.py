"""Log messages and progress bars: what reaches stderr, and when."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from saysee import log


class Terminal(io.StringIO):
    """A stderr that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Makes stderr a terminal; called within the test, for pytest sets stderr anew before each test."""

    def make() -> Terminal:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(log, "PATIENCE_SECONDS", 0.0)
        monkeypatch.setattr(sys, "stderr", Terminal())
        assert isinstance(sys.stderr, Terminal)
        return sys.stderr

    return make


@pytest.fixture
def configured() -> Iterator[logging.Logger]:
    """The package's logger as the command line has it; afterwards as it was."""
    logger = logging.getLogger("saysee")
    handlers, level = list(logger.handlers), logger.level
    log.configure_command_line()
    log.configure_command_line()  # a second call must not print everything twice
    yield logging.getLogger("saysee.somewhere")
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_messages_are_lines_with_their_level(configured: Any, capsys: pytest.CaptureFixture[str]) -> None:
    configured.debug("hidden")
    configured.info("two\nlines of %s", "text")
    configured.warning("careful")
    assert capsys.readouterr().err.splitlines() == ["saysee: two lines of text", "saysee: warning: careful"]


def test_an_exception_is_logged_with_its_traceback(configured: Any, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("deep down")
    except ValueError:
        configured.exception("failed")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "saysee: error: failed"
    assert lines[-1] == "ValueError: deep down"


def test_messages_appear_whole_above_a_live_bar(configured: Any, terminal: Any) -> None:
    stderr = terminal()
    with log.progress_bar("indexing", 3) as bar, log.progress_bar("within", 2) as other:
        bar.update()
        other.update()
        configured.info("skipped one.wav")
    assert "indexing" in stderr.getvalue()
    assert "within" in stderr.getvalue()
    assert "saysee: skipped one.wav\n" in stderr.getvalue()
    assert sys.stderr is stderr


def test_a_message_does_not_show_a_bar_before_its_time(
    configured: Any, terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = terminal()
    monkeypatch.setattr(log, "PATIENCE_SECONDS", 60.0)
    with log.progress_bar("indexing", 3) as bar:
        bar.update()
        configured.info("skipped one.wav")
    assert stderr.getvalue() == "saysee: skipped one.wav\n"


def test_what_earlier_runs_have_done_does_not_count_for_the_speed(terminal: Any) -> None:
    stderr = terminal()
    with log.progress_bar("training", 1_000, 900) as bar:
        bar.start_t -= 10
        bar.n += 10
        bar.refresh()
    assert "910/1000 [00:10<01:30" in stderr.getvalue()


@pytest.mark.parametrize("way", ["argument", "rank", "dumb"])
def test_a_bar_can_be_turned_off(way: str, terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal()
    if way == "rank":
        monkeypatch.setenv("RANK", "1")
    if way == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    with log.progress_bar("indexing", 2, enabled=way != "argument") as bar:
        bar.update()
    assert stderr.getvalue() == ""


def test_python_users_can_turn_all_bars_off(terminal: Any) -> None:
    stderr = terminal()
    log.set_progress(False)
    try:
        with log.progress_bar("work", 2) as bar:
            bar.update()
    finally:
        log.set_progress(True)
    assert stderr.getvalue() == ""


def test_a_pipe_gets_no_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(log, "PATIENCE_SECONDS", 0.0)
    with log.progress_bar("indexing", 2) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_without_color_a_bar_has_none(terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    with log.progress_bar("indexing", 2) as bar:
        bar.update()
    assert "indexing" in stderr.getvalue()
    assert "\x1b[3" not in stderr.getvalue()


def test_libraries_are_silenced_whether_imported_before_or_after() -> None:
    program = (
        "import sys\nfrom saysee.log import configure_command_line\n"
        "if sys.argv[1] == 'before': import transformers.utils\n"
        "configure_command_line()\n"
        "from transformers.utils import logging\nimport huggingface_hub.utils as hub\n"
        "assert logging.get_verbosity() == logging.ERROR\n"
        "assert not logging.is_progress_bar_enabled()\n"
        "assert hub.are_progress_bars_disabled()\n"
        "assert hub.logging.get_verbosity() == logging.ERROR\n"
    )
    for order in ("before", "after"):
        done = subprocess.run([sys.executable, "-c", program, order], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
