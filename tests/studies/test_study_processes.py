"""Steps of a study in processes of their own."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from saysee.errors import SaySeeError
from saysee.log import is_configured
from saysee.settings.reading import resolve_recipe
from saysee.studies import processes
from saysee.studies.processes import interrupted_once, on_devices, run_alone, run_saysee, train_alone


@pytest.mark.parametrize("configured", [True, False])
def test_a_function_runs_in_another_process_which_logs_as_this_one(
    configured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "is_configured", lambda: configured)
    assert run_alone(is_configured) is configured
    assert run_alone(os.getpid) != os.getpid()


def test_a_killed_process_is_an_error_of_one_line() -> None:
    with pytest.raises(SaySeeError, match="memory"):
        run_alone(os._exit, 9)


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_step_ends_with_a_killed_parent(tmp_path: Path) -> None:
    program = """
import os, time
from saysee.studies.processes import run_alone
if __name__ == "__main__":
    run_alone(time.sleep, 600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")

    def steps() -> list[str]:
        found = children.read_text().split()
        return [pid for pid in found if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]

    deadline = time.monotonic() + 120
    while (
        not (found := steps()) or len(os.listdir(f"/proc/{found[0]}/task")) < 2
    ):  # the thread that waits for the parent
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in found):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_training_is_quiet_and_a_finished_one_starts_no_process(
    tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_settings["training"] |= {"steps": 1, "eval_every": 1}
    recipe = resolve_recipe(tiny_settings)
    result = train_alone(recipe, tmp_path / "tiny.yaml", "tiny")
    of_run = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result == {"model": str(tmp_path / "run" / "best"), **of_run}
    output = capfd.readouterr()
    assert output.out == ""
    assert all(line.startswith("saysee: ") for line in output.err.splitlines()), output.err

    def no_process(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(processes.subprocess, "Popen", no_process)
    assert train_alone(recipe, tmp_path / "tiny.yaml", "tiny") == result
    tiny_settings["optimizer"]["lr"] = 0.5
    with pytest.raises(AssertionError):  # the training reports what is wrong with another recipe in this folder
        train_alone(resolve_recipe(tiny_settings), tmp_path / "tiny.yaml", "tiny")


def test_as_many_run_at_once_as_there_are_devices_and_each_sees_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    together, seen = threading.Barrier(3, timeout=60), {}

    def call(number: int) -> None:
        together.wait()
        seen[number] = run_alone(os.getenv, "CUDA_VISIBLE_DEVICES")

    on_devices(call, range(3), ["cpu", "cuda:0", "cuda:1"])
    assert sorted(seen.values()) == ["", "5", "7"]
    order: list[int] = []
    on_devices(order.append, range(5), [])
    assert order == list(range(5))
    on_devices(lambda _: order.append(run_alone(os.getenv, "CUDA_VISIBLE_DEVICES")), [0], [])
    assert order[-1] == "5,7", "without devices a process sees what this one sees"


@pytest.mark.parametrize(
    ("at_once", "of_user", "expected"), [(1, None, None), (2, None, "3"), (8, None, "1"), (2, "4", "4")]
)
def test_processes_on_the_cpu_share_its_cores(
    at_once: int, of_user: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "usable_cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if of_user:
        monkeypatch.setenv("OMP_NUM_THREADS", of_user)
    seen = []
    on_devices(lambda _: seen.append(run_alone(os.getenv, "OMP_NUM_THREADS")), [0], ["cpu"] * at_once)
    assert seen == [expected]


def test_the_first_error_ends_the_other_process() -> None:
    done = []
    caller_s = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    caller_s.start()
    before = set(multiprocessing.active_children())

    def call(item: str) -> None:
        if item == "long":
            run_alone(time.sleep, 60)
            done.append(item)
        while set(multiprocessing.active_children()) <= before:
            time.sleep(0.01)
        raise SaySeeError("row fails")

    with pytest.raises(SaySeeError, match="row fails"):
        on_devices(call, ["long", "fails"], ["cpu", "cpu"])
    assert set(multiprocessing.active_children()) <= before
    assert caller_s.is_alive()
    caller_s.kill()
    assert done == []


def test_the_first_error_stops_the_training_on_the_other_device(
    tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = subprocess.Popen, list[Any]()
    sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]

    def popen(command: Any, **keywords: Any) -> Any:
        started.append(start(sleeps, **keywords))
        return started[-1]

    monkeypatch.setattr(processes.subprocess, "Popen", popen)
    done = []

    def call(item: str) -> None:
        if item == "fails":
            while not started:
                time.sleep(0.01)
            raise SaySeeError("row fails")
        if item == "long":
            train_alone(resolve_recipe(tiny_settings), tmp_path / "tiny.yaml", item)
        done.append(item)

    with pytest.raises(SaySeeError, match="row fails"):
        on_devices(call, ["long", "fails", "never"], ["cpu", "cpu"])
    assert started[0].poll() is not None
    assert done == []
    on_devices(done.append, ["later", "again"], ["cpu", "cpu"])
    assert sorted(done) == ["again", "later"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without a signal")
def test_an_interrupted_process_ends_in_its_own_time_whatever_signals_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import signal, time; from pathlib import Path; asked = []\n"
        "signal.signal(signal.SIGTERM, lambda *_: asked.append(1))\n"
        "Path('started').touch()\n"
        "while not asked: time.sleep(0.01)\n"
        "time.sleep(1); Path('checkpoint').write_text(str(len(asked)))"
    )
    start = subprocess.Popen
    command = [sys.executable, "-c", script]
    monkeypatch.setattr(processes.subprocess, "Popen", lambda _, **keywords: start(command, **keywords))

    def interrupt() -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), kind)
            time.sleep(0.1)

    signals = threading.Thread(target=interrupt)
    signals.start()
    with pytest.raises(KeyboardInterrupt), interrupted_once():
        run_saysee([], folder=tmp_path)
    signals.join()
    assert (tmp_path / "checkpoint").read_text() == "1"


@pytest.mark.parametrize(("code", "error"), [(2, SaySeeError), (130, KeyboardInterrupt)])
def test_a_failed_training_is_an_error_and_an_interrupted_one_interrupts(
    code: int,
    error: type[BaseException],
    tiny_settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exits = [sys.executable, "-c", f"raise SystemExit({code})"]
    start = subprocess.Popen
    monkeypatch.setattr(processes.subprocess, "Popen", lambda command, **keywords: start(exits, **keywords))
    with pytest.raises(error, match="row 3" if code == 2 else None):
        train_alone(resolve_recipe(tiny_settings), tmp_path / "tiny.yaml", "row 3")
