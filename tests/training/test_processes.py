"""Two real processes: the same mathematics as one, and one end for both, by torchrun as a user starts them."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gradients import assert_same_gradients
from torch import Tensor

from saysee.cli import main
from saysee.errors import ConfigError
from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.model.retriever import SpeechImageModel
from saysee.settings.reading import resolve_recipe, save_recipe
from saysee.training.checkpoint import find_checkpoints, load_checkpoint
from saysee.training.processes import Processes
from saysee.training.records import read_metrics
from saysee.training.trainer import Trainer
from saysee_process import Started, start_saysee, wait_for

PATIENCE = 240
NO_DROPOUT = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0)

# torchrun starts Python anew for each process, and each imports torch. What these tests check does not depend on it:
# it only sets the variables that `start` sets.
BY_TORCHRUN = pytest.mark.parametrize("by_torchrun", [False, pytest.param(True, marks=pytest.mark.nightly)])
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torchrun and gloo as tested here are Linux's")


def start(recipe: Path, *words: str, machines: int = 1) -> list[Started]:
    """Two processes that find each other as torchrun's do, on one machine or on one each."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    place["LOCAL_WORLD_SIZE"] = str(2 // machines)
    return [
        start_saysee("train", recipe, "--json", *words, RANK=str(rank), LOCAL_RANK=str(rank // machines), **place)
        for rank in range(2)
    ]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def start_by_torchrun(recipe: Path, *words: object) -> Started:
    words = (*(words or ("--standalone", "--nproc-per-node", "2")), "-m", "saysee", "train", recipe, "--json")
    return start_saysee(*words, program="from torch.distributed.run import main; main()")


def finish(processes: list[Started]) -> tuple[dict[str, Any], str]:
    """The one result that two processes print, and what they say meanwhile."""
    written = [process.communicate(timeout=PATIENCE) for process in processes]
    output, errors = ("".join(of_both) for of_both in zip(*written, strict=True))
    assert [process.returncode for process in processes] == [0, 0], errors
    (line,) = output.splitlines()
    return json.loads(line), errors


def write(settings: dict[str, Any], folder: Path, **training: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    settings = copy.deepcopy(settings)
    settings["output"] = str(folder / "run")
    settings["training"] |= training
    save_recipe(resolve_recipe(settings), folder / "recipe.yaml")
    return folder / "recipe.yaml"


def last_state(run: Path) -> dict[str, Any]:
    return load_checkpoint(find_checkpoints(run / "checkpoints")[-1])


def gradients_of(trainer: Trainer, state: dict[str, Any]) -> dict[str, Tensor]:
    """Every parameter's gradient in the first step of a run, from Adam's first moment."""
    names = {parameter: name for name, parameter in trainer.objective.named_parameters()}
    parameters = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    return {
        names[parameters[number]]: values["exp_avg"] / 0.1 for number, values in state["optimizer"]["state"].items()
    }


@pytest.fixture
def settings(tiny_settings: dict[str, Any]) -> dict[str, Any]:
    """All is trained, nothing is drawn, and the optimizer sees the gradient as it is."""
    tiny_settings["model"]["speech"] = tiny_settings["model"]["speech"] | NO_DROPOUT
    tiny_settings["model"]["head_dropout"] = tiny_settings["fusion"]["dropout"] = 0.0
    tiny_settings["contrastive"] = {"learn_temperature": True}
    tiny_settings["optimizer"] |= {"clip_norm": 1e9, "weight_decay": 0}
    tiny_settings["training"] |= {"steps": 1, "eval_every": 1, "checkpoint_every": 1}
    return tiny_settings


def test_two_processes_have_the_loss_and_gradient_of_one_with_the_whole_batch(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    settings["denoising"] = {"preset": "off"}
    settings["optimizer"]["accumulate"] = 2
    two = start(write(settings, tmp_path / "two"))
    trainer = Trainer(resolve_recipe(settings))
    # Captions of one image fall to both processes: they must not be negatives of each other there either.
    batches = iter(trainer.loader)
    ids = [next(batches).image_ids for _ in range(2)]
    assert any(set(of_batch[::2].tolist()) & set(of_batch[1::2].tolist()) for of_batch in ids)
    trainer = Trainer(resolve_recipe(settings))
    result = trainer.fit()
    result_of_two, errors = finish(two)

    assert "2 processes, 4 pairs each, 8 together (global batch)" in " ".join(errors.split())
    assert result_of_two["clips"] == result["clips"] == 16
    one_line, two_line = (read_metrics(path)[0] for path in (Path(settings["output"]), tmp_path / "two" / "run"))
    assert one_line.keys() == two_line.keys()
    for metric in ("loss", "contrastive_loss", "gradient_norm"):
        assert two_line[metric] == pytest.approx(one_line[metric], rel=1e-5), metric
    states = [last_state(path) for path in (Path(settings["output"]), tmp_path / "two" / "run")]
    one_gradients, two_gradients = (gradients_of(trainer, state) for state in states)
    assert one_gradients["tasks.contrastive.log_scale"].abs() > 1e-3
    assert_same_gradients(two_gradients, one_gradients)


def test_chunks_have_that_gradient_too_with_denoising_on_each_chunk(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Against the same mathematics in one graph: the contrastive loss of all vectors, the mean of the denoising loss of
    the four chunks. One process resumes what two have left, and the best model loads."""
    settings["denoising"] = {"preset": "paper", "share": 0.0}
    settings["data"]["chunk_size"] = 2
    settings["training"] |= {"steps": 2, "eval_every": 2}
    recipe = write(settings, tmp_path)
    two = start(recipe)

    trainer = Trainer(resolve_recipe(settings))
    objective = trainer.objective.train()
    batch = next(iter(trainer.loader))
    rows = [torch.arange(8)[process::2][chunk * 2 : chunk * 2 + 2] for process in range(2) for chunk in range(2)]
    speech, images, _ = objective.features(batch)
    nothing, mask = torch.empty(8, 0, 16), torch.empty(8, 0, dtype=torch.bool)
    loss = objective.tasks["contrastive"](
        SpeechFeatures(speech.vector, nothing, mask), ImageFeatures(images.vector, nothing), batch.image_ids
    )["contrastive_loss"]
    for part in rows:
        of_part = SpeechFeatures(speech.vector[part], speech.frames[part], speech.mask[part])
        of_images = ImageFeatures(images.vector[part], images.patches[part])
        metrics = objective.tasks["denoising"](of_part, of_images, batch.image_ids[part])
        loss = loss + metrics["denoising_loss"] / len(rows)
    loss.backward()
    expected = {name: value.grad for name, value in objective.named_parameters() if value.grad is not None}

    finish(two)
    run = tmp_path / "run"
    first = find_checkpoints(run / "checkpoints")[0]
    assert read_metrics(run)[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert_same_gradients(gradients_of(trainer, load_checkpoint(first)), expected)

    best = SpeechImageModel.from_pretrained(run / "best")
    final = last_state(run)["weights"]
    for name, value in best.state_dict().items():
        if f"model.{name}" in final:
            torch.testing.assert_close(value, final[f"model.{name}"], rtol=0, atol=0)

    lines = read_metrics(run)
    find_checkpoints(run / "checkpoints")[-1].rename(tmp_path / "aside")
    (run / "result.json").unlink()
    resumed = resolve_recipe(settings, [f"--output={run}"])
    caplog.set_level("INFO", "saysee")
    Trainer(resumed).fit("auto")
    assert "a run of 2 processes is resumed by 1" in caplog.text
    again = [line for line in read_metrics(run) if line["kind"] == "train"]
    assert [line["step"] for line in again] == [1, 2]
    assert again[1]["contrastive_loss"] == pytest.approx(lines[1]["contrastive_loss"], rel=1e-4)


@pytest.mark.usefixtures("frozen_settings")
def test_features_are_computed_by_one_process_and_read_by_both(settings: dict[str, Any], tmp_path: Path) -> None:
    settings["denoising"] = {"preset": "off"}
    settings["training"] |= {"steps": 3, "eval_every": 3}
    _, errors = finish(start(write(settings, tmp_path / "two")))
    assert errors.count("to compute") == 1
    Trainer(resolve_recipe(settings)).fit()
    one, two = (
        [line["loss"] for line in read_metrics(path) if line["kind"] == "train"]
        for path in (Path(settings["output"]), tmp_path / "two" / "run")
    )
    assert two == pytest.approx(one, rel=1e-4)


@pytest.fixture(scope="module")
def never_killed(
    tiny_scenes: Path, tiny_model_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    settings = {
        "data": {"manifest": str(tiny_scenes), "batch_size": 8, "bucket_batches": 3, "crop_seconds": 2.0, "workers": 0},
        "model": tiny_model_settings,
        "fusion": {"width": 16, "layers": 1, "heads": 2},
        "denoising": {"preset": "paper"},
        "optimizer": {"lr": 1e-3, "encoder_lr": 1e-3, "warmup_steps": 2},
        "training": {
            "steps": 8,
            "precision": "fp32",
            "eval_every": 8,
            "checkpoint_every": 1,
            "keep_checkpoints": 3,
            "log_every": 1,
            "device": "cpu",
        },
    }
    folder = tmp_path_factory.mktemp("never-killed")
    finish(start(write(settings, folder)))
    return settings, folder / "run"


def steps_logged(run: Path) -> int:
    return len((run / "metrics.jsonl").read_text().splitlines()) if (run / "metrics.jsonl").exists() else 0


def children_of(process: Started) -> list[int]:
    """Ids of the processes that torchrun has started, in their order."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [
        int(child) for child in path.read_text().split() if b"saysee" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def assert_same_end(one: Path, other: Path) -> None:
    """The weights, bit by bit, and the draws of both processes."""
    states = [last_state(run) for run in (one, other)]
    assert [state["progress"]["step"] for state in states] == [8, 8]
    for name, value in states[0]["weights"].items():
        assert torch.equal(value, states[1]["weights"][name]), name
    draws = [[of_rank["cpu"] for of_rank in state["draws"]] for state in states]
    assert [len(of_run) for of_run in draws] == [2, 2]
    assert all(torch.equal(one, other) for one, other in zip(*draws, strict=True))
    assert not torch.equal(*draws[0])


@BY_TORCHRUN
def test_a_killed_process_ends_the_other_within_a_minute(
    never_killed: tuple[dict[str, Any], Path], tmp_path: Path, by_torchrun: bool
) -> None:
    recipe, run = write(never_killed[0], tmp_path), tmp_path / "run"
    started = [start_by_torchrun(recipe)] if by_torchrun else start(recipe)
    wait_for(lambda: steps_logged(run) >= 3, started[0])
    victims = children_of(started[0]) if by_torchrun else [process.pid for process in started]
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    for process in started:
        process.communicate(timeout=60)
        assert process.returncode != 0
    assert not any(Path(f"/proc/{victim}").exists() for victim in victims)


@BY_TORCHRUN
def test_interrupted_both_end_at_one_step_and_are_resumed_from_there(
    never_killed: tuple[dict[str, Any], Path], tmp_path: Path, by_torchrun: bool
) -> None:
    """As a terminal's Ctrl-C does it: torchrun and both processes receive it, and torchrun sends them another."""
    settings, whole_run = never_killed
    recipe, run = write(settings, tmp_path, checkpoint_every=100), tmp_path / "run"
    started = [start_by_torchrun(recipe)] if by_torchrun else start(recipe)
    wait_for(lambda: steps_logged(run) >= 2, started[0])
    for process in started:
        os.killpg(process.pid, signal.SIGINT)
    if not by_torchrun:
        started[1].send_signal(signal.SIGINT)
    errors = "".join(process.communicate(timeout=60)[1] for process in started)
    assert all(process.returncode != 0 for process in started)
    assert errors.count("saysee: interrupted") == 1
    assert 0 < last_state(run)["progress"]["step"] < 8
    finish(start(recipe, "--resume", "auto"))
    assert_same_end(whole_run, run)


@BY_TORCHRUN
def test_two_machines_have_the_result_of_two_processes_on_one(
    never_killed: tuple[dict[str, Any], Path], tmp_path: Path, by_torchrun: bool
) -> None:
    """Told where they are as by torchrun, and by two torchruns that know each other by one address alone."""
    settings, whole_run = never_killed
    recipe = write(settings, tmp_path)
    words = ["--nnodes", 2, "--nproc-per-node", 1, "--rdzv-backend", "c10d", "--rdzv-id", "two-machines"]
    words += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--local-addr", "127.0.0.1"]
    if by_torchrun:
        machines = [start_by_torchrun(recipe, *words, "--node-rank", rank) for rank in range(2)]
    else:
        machines = start(recipe, machines=2)
    finish(machines)
    assert_same_end(whole_run, tmp_path / "run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU of CUDA no other is asked for")
def test_the_gpu_of_a_mac_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("is_available", "is_built"):
        monkeypatch.setattr(torch.backends.mps, name, lambda: True)
    assert Processes("fp32", cpu=False).accelerator.device.type == "cpu"


def test_what_does_not_go_in_several_processes_is_refused(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["evaluate", "model", "manifest.parquet"]) == 2
    assert "torchrun" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="each is alone"):
        Trainer(resolve_recipe(settings))
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="FSDP"):
        Trainer(resolve_recipe(settings))
