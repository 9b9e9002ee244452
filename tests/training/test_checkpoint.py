from __future__ import annotations

from pathlib import Path

import pytest
import torch

from saysee.errors import CheckpointError
from saysee.training.checkpoint import find_checkpoints, load_checkpoint, save_checkpoint


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
