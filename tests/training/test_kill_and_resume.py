"""Real processes, really killed: a resumed run ends with the same weights, bit for bit, as one never killed."""

from __future__ import annotations

import copy
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from saysee.settings.reading import resolve_recipe, save_recipe
from saysee.training.checkpoint import find_checkpoints, load_checkpoint
from saysee_process import Started, start_saysee, wait_for

PATIENCE = 120


def write_recipe(settings: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    settings = copy.deepcopy(settings)
    settings["output"] = str(folder / "run")
    settings["data"]["workers"] = 1
    settings["training"] |= {"checkpoint_every": 1, "keep_checkpoints": 3}
    save_recipe(resolve_recipe(settings), folder / "recipe.yaml")
    return folder / "recipe.yaml"


def start(recipe: Path) -> Started:
    return start_saysee("train", recipe, "--resume", "auto", "--json")


def finish(recipe: Path) -> dict[str, Any]:
    process = start(recipe)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    result: dict[str, Any] = json.loads(output)
    return result


def final_state(run: Path) -> dict[str, Any]:
    return load_checkpoint(find_checkpoints(run / "checkpoints")[-1])


def assert_same(one: Any, other: Any, where: str = "") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{index}]")
    else:
        assert one == other, where


def assert_same_run(one: Path, other: Path) -> None:
    states = [final_state(run) for run in (one, other)]
    for state in states:
        del state["progress"]["seconds"]
    assert_same(*states)
    best = [(run / "best" / "model.safetensors").read_bytes() for run in (one, other)]
    assert best[0] == best[1]
    metrics = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)]
    for lines in metrics:
        for line in lines:
            line.pop("clips_per_second", None)
    assert metrics[0] == metrics[1]


@pytest.fixture(scope="module")
def never_killed(
    tiny_scenes: Path, tiny_model_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    settings = {
        "data": {"manifest": str(tiny_scenes), "batch_size": 8, "bucket_batches": 3, "crop_seconds": 2.0},
        "model": tiny_model_settings | {"speech_trainable": 0, "image_trainable": 1},  # with HuBERT's dropout
        "fusion": {"width": 16, "layers": 1, "heads": 2},
        "denoising": {"preset": "paper"},
        "contrastive": {"learn_temperature": True},
        "optimizer": {"lr": 1e-3, "encoder_lr": 1e-3, "warmup_steps": 2},
        "training": {"steps": 10, "precision": "auto", "eval_every": 4, "log_every": 1, "device": "cpu"},
    }
    folder = tmp_path_factory.mktemp("never-killed")
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    finish(write_recipe(settings, folder))
    return folder


def settings_of(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((folder / "settings.yaml").read_text())
    return settings


def test_killed_at_checkpoints_and_between_steps_it_ends_with_the_same_weights(
    never_killed: Path, tmp_path: Path
) -> None:
    """SIGKILL while a checkpoint is written or an old one removed (an incomplete one must not be taken), once at the
    very first checkpoint and once later; then between two steps."""
    recipe = write_recipe(settings_of(never_killed), tmp_path)
    checkpoints, metrics = tmp_path / "run" / "checkpoints", tmp_path / "run" / "metrics.jsonl"

    def incomplete(finished: int) -> bool:
        names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
        return len([name for name in names if name.startswith("step-")]) >= finished and any(
            name.startswith(".writing-") for name in names
        )

    for condition in (
        lambda: incomplete(finished=0),
        lambda: incomplete(finished=3),
        lambda: len(metrics.read_text().splitlines()) >= 8,
    ):
        process = start(recipe)
        wait_for(condition, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (tmp_path / "run" / "result.json").exists()
    finish(recipe)
    assert_same_run(never_killed / "run", tmp_path / "run")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups to signal")
def test_interrupted_it_keeps_what_is_done_exits_130_and_can_be_resumed(never_killed: Path, tmp_path: Path) -> None:
    """As by a terminal's Ctrl-C or a job scheduler: the whole group receives it, the loader's workers too."""
    recipe = write_recipe(settings_of(never_killed), tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    # A study sends SIGTERM to a training that has the terminal's SIGINT already: no second request to stop.
    for kinds, lines in (((signal.SIGINT, signal.SIGTERM), 2), ((signal.SIGTERM,), 6)):
        process = start(recipe)
        wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= lines, process)  # noqa: B023
        before = final_state(tmp_path / "run")["progress"]["step"] if lines > 2 else 0
        for kind in kinds:
            os.killpg(process.pid, kind)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130, errors
        assert "Traceback" not in errors
        assert before < final_state(tmp_path / "run")["progress"]["step"] < 10
    finish(recipe)
    assert_same_run(never_killed / "run", tmp_path / "run")
