from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from saysee.errors import CheckpointError
from saysee.settings.reading import resolve_recipe
from saysee.training.checkpoint import find_checkpoints, load_checkpoint, save_checkpoint
from saysee.training.records import environment
from saysee.training.trainer import Trainer


def test_the_newest_are_kept_and_found_in_order(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        save_checkpoint(tmp_path, step, {"step": step, "tensor": torch.arange(3)}, keep=2)
    assert [folder.name for folder in find_checkpoints(tmp_path)] == ["step-00000010", "step-00000100"]
    state = load_checkpoint(find_checkpoints(tmp_path)[-1])
    assert state["step"] == 100
    assert torch.equal(state["tensor"], torch.arange(3))


def test_a_broken_checkpoint_is_reported_in_one_line(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 1, {"step": 1}, keep=1)
    content = (folder / "state.pt").read_bytes()
    (folder / "state.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="step-00000001") as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_no_code_of_a_checkpoint_is_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path(tmp_path / "ran").touch, ())  # type: ignore[return-value]

    folder = tmp_path / "step-00000001"
    folder.mkdir()
    torch.save({"step": Evil()}, folder / "state.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("saved_by", "restored"), [(["own"], "own"), (["of GPU 0", "of GPU 1", "of GPU 2"], "of GPU 1")]
)
def test_the_draws_of_the_run_s_own_gpu_are_saved_and_restored_on_a_machine_with_fewer(
    tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved_by: list[str], restored: str
) -> None:
    trainer = Trainer(resolve_recipe(tiny_settings))
    resumable, gpu, states = trainer._resumable(), torch.device("cuda:1"), dict[torch.device, str]()
    monkeypatch.setattr(resumable.processes, "accelerator", SimpleNamespace(device=gpu))
    monkeypatch.setattr(torch.cuda, "get_rng_state", {gpu: "own"}.get)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({device: state}))
    state = resumable.state_dict()
    assert [each["cuda"] for each in state["draws"]] == [["own"]]
    state["draws"][0]["cuda"] = saved_by
    resumable.load(save_checkpoint(tmp_path, 1, state, keep=1), seed=0)
    assert states == {gpu: restored}


def test_the_environment_names_the_device_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"GPU {device}")
    assert environment(0, torch.device("cpu"))["device"] == "cpu"
    assert environment(0, torch.device("cuda:1"))["device"] == "GPU cuda:1"
