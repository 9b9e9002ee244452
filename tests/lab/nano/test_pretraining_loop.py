"""The step loop: a run that was killed ends with the very weights of one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from lab.nano.loop import LOG_FILE, LoopSettings, run_steps, schedule
from torch import nn

from lab.nano import loop
from saysee.errors import CheckpointError, ConfigError, SaySeeError
from saysee_process import wait_for

SETTINGS = LoopSettings(steps=11, batch_size=4, lr=1e-2, warmup_steps=3, evaluate_every=4, checkpoint_every=3)


class Killed(BaseException):
    """As a kill: nothing below may catch it."""


class Task:
    """A small network whose batch follows from the step."""

    def __init__(self, break_at=None, pause=0.0):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
        self.break_at, self.pause, self.steps, self.modes = break_at, pause, [], []

    def loss_of(self, step):
        if step == self.break_at:
            raise Killed
        time.sleep(self.pause)
        self.steps.append(step)
        self.modes.append(self.model.training)
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        loss = (self.model(x) - x[:, :2]).square().mean()
        return loss, {"half": float(loss.detach()) / 2}

    def evaluate(self):
        assert not self.model.training
        assert not torch.is_grad_enabled()
        return {"held_out": float(self.model(torch.ones(1, 6)).sum())}

    def run(self, folder, settings=SETTINGS, **more):
        return run_steps("test", folder, self.model, settings, self.loss_of, self.evaluate, **more)


def log_of(folder):
    return [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]


def without_time(lines):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.fixture
def whole(tmp_path):
    """A run that was never broken off."""
    task = Task()
    task.run(tmp_path / "whole")
    return task, log_of(tmp_path / "whole")


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


# Before the first checkpoint, right after one, between two, and in the last step.
@pytest.mark.parametrize("broken_at", [[2], [3], [5], [10], [1, 2, 4, 7, 8]])
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(broken_at, tmp_path, whole):
    for step in broken_at:
        with pytest.raises(Killed):
            Task(break_at=step).run(tmp_path / "run")
    task = Task()
    metrics = task.run(tmp_path / "run")
    assert task.steps[0] == broken_at[-1] // 3 * 3
    assert same_weights(task.model, whole[0].model)
    assert without_time(log_of(tmp_path / "run")) == without_time(whole[1])
    assert [line["step"] for line in whole[1]] == list(range(1, 12))
    assert metrics["step"] == 11
    assert metrics["held_out"] == whole[1][-1]["held_out"]


@pytest.fixture
def asked_together(monkeypatch):
    """Figures are asked for after several steps at once, as on an accelerator."""
    monkeypatch.setattr(loop, "_fetch_every", lambda device: 20)


@pytest.mark.parametrize("broken_at", [[2], [3], [5], [10]])
def test_metrics_that_are_fetched_together_are_logged_once_each(broken_at, tmp_path, whole, asked_together):
    for step in broken_at:
        with pytest.raises(Killed):
            Task(break_at=step).run(tmp_path / "run")
        # What was asked for is what a checkpoint or an evaluation needed.
        assert [line["step"] for line in log_of(tmp_path / "run")] == list(
            range(1, max(step // 3 * 3, step // 4 * 4) + 1)
        )
    task = Task()
    task.run(tmp_path / "run")
    assert without_time(log_of(tmp_path / "run")) == without_time(whole[1])
    assert same_weights(task.model, whole[0].model)


def test_metrics_that_are_fetched_together_are_logged_without_a_checkpoint_too(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(loop, "_fetch_every", lambda device: 2)
    with pytest.raises(Killed):
        Task(break_at=5).run(tmp_path, replace(SETTINGS, evaluate_every=100, checkpoint_every=100))
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2, 3, 4]


def test_a_loss_that_is_not_finite_is_reported_with_its_step_and_never_saved(tmp_path, asked_together):
    task = Task()

    def loss_of(step):
        loss, metrics = task.loss_of(step)
        return loss * (float("nan") if step == 4 else 1), metrics

    refused(
        lambda: run_steps("test", tmp_path, task.model, SETTINGS, loss_of, task.evaluate), "step 5", kind=SaySeeError
    )
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2, 3, 4]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


def test_a_gradient_that_is_not_finite_is_never_saved(tmp_path):
    task = Task()

    def loss_of(step):
        loss, metrics = task.loss_of(step)
        if step == 5:
            loss = loss + (0 * task.model[0].weight.sum()).sqrt()  # 0, with a gradient that is not a number
        return loss, metrics

    refused(
        lambda: run_steps("test", tmp_path, task.model, SETTINGS, loss_of, task.evaluate),
        "gradient norm is nan at step 6",
        "lower loop.lr",
        kind=SaySeeError,
    )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


RUN = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from test_pretraining_loop import Task
task = Task(pause=0.05)
task.run(Path(sys.argv[2]))
torch.save(task.model.state_dict(), sys.argv[3])
"""


@pytest.mark.nightly  # real kills; the tests above interrupt in the same places without a process
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_real_kill_loses_nothing_but_time(tmp_path, whole):
    from pathlib import Path

    words = [sys.executable, "-c", RUN, str(Path(__file__).parent), str(tmp_path / "run"), str(tmp_path / "end.pt")]
    process = subprocess.Popen(words)
    wait_for((tmp_path / "run" / "checkpoints" / "step-00000003").exists, process)
    process.kill()
    process.wait()
    assert not (tmp_path / "end.pt").exists()
    with (tmp_path / "run" / LOG_FILE).open("a") as log:
        log.write('{"step": 9, "lo')  # a line that the kill broke off
    task = Task()
    task.run(tmp_path / "run")
    assert 0 < len(task.steps) < 11
    assert same_weights(task.model, whole[0].model)
    assert without_time(log_of(tmp_path / "run")) == without_time(whole[1])


def test_a_finished_run_takes_no_step_and_gives_its_metrics(tmp_path, whole):
    again = Task()
    with torch.no_grad():
        again.model[0].weight.zero_()
    metrics = again.run(tmp_path / "whole")
    assert again.steps == []
    assert same_weights(again.model, whole[0].model)
    assert metrics["loss"] == whole[1][-1]["loss"]
    (tmp_path / "whole" / LOG_FILE).unlink()
    assert Task().run(tmp_path / "whole")["step"] == 11


def test_it_trains_in_training_mode_and_is_left_in_evaluation_mode(whole):
    assert all(whole[0].modes)
    assert not whole[0].model.training
    assert [line["step"] for line in whole[1] if "held_out" in line] == [4, 8, 11]
    assert whole[1][-1]["loss"] < whole[1][0]["loss"]


def refused(action, *words, kind=CheckpointError):
    with pytest.raises(kind) as refusal:
        action()
    assert "\n" not in str(refusal.value)
    for word in words:
        assert word in str(refusal.value)


def test_a_folder_of_other_settings_is_an_error(tmp_path, whole):
    folder = tmp_path / "whole"
    refused(lambda: Task().run(folder, replace(SETTINGS, lr=2e-2)), str(folder), "--to")
    Task().run(tmp_path / "sized", whole={"width": 32, "loop": {"steps": 11}})
    Task().run(tmp_path / "sized", whole={"width": 32, "loop": {"steps": 11}})
    refused(lambda: Task().run(tmp_path / "sized", whole={"width": 64, "loop": {"steps": 11}}), "--to")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_an_error_with_its_step(value, tmp_path):
    task = Task()

    def loss_of(step):
        loss, metrics = task.loss_of(step)
        return loss * (value if step == 4 else 1), metrics

    def run():
        run_steps("test", tmp_path, task.model, SETTINGS, loss_of, task.evaluate)

    refused(run, str(value), "step 5", "lower loop.lr", kind=SaySeeError)
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2, 3, 4]


def test_the_learning_rate_rises_in_a_line_and_falls_as_half_a_cosine():
    settings = replace(SETTINGS, steps=110, warmup_steps=10)
    assert [schedule(step, settings) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [schedule(step, settings) for step in (10, 60, 85)] == pytest.approx([1.0, 0.5, (1 - 0.5**0.5) / 2])
    assert 0 < schedule(109, settings) < 0.001
    assert schedule(0, replace(settings, warmup_steps=0)) == 1


@pytest.mark.parametrize("name", ["steps", "batch_size", "evaluate_every", "checkpoint_every"])
def test_numbers_that_no_run_can_have_are_errors(name):
    refused(lambda: replace(SETTINGS, **{name: 0}), f"loop.{name}", kind=ConfigError)
    refused(lambda: replace(SETTINGS, seed=-1), "loop.seed", kind=ConfigError)
