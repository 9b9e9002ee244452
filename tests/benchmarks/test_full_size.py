"""The benchmark of a whole training at published sizes, at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def output_of(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.full_size", *words]
    process = subprocess.run(command, capture_output=True, text=True, timeout=1800, cwd=Path(__file__).parents[2])
    assert process.returncode == 0, process.stderr
    found: dict[str, Any] = json.loads(process.stdout)
    return found


@pytest.mark.nightly  # eight processes; kill and resume are tested in tests/training
def test_a_run_in_the_published_formats_is_killed_resumed_scored_exported_and_loaded(tmp_path: Path) -> None:
    """The program itself compares the steps before and after the kill, and the vectors of the exported model."""
    sizes = ("--size=tiny", "--steps=20", "--batch-size=4", "--images=8", "--seconds", "0.5", "1")
    found = output_of(*sizes, "--old-clip", f"--to={tmp_path}", "--json")
    assert found["steps"] == 20
    assert 10 <= found["killed_at"] < 20
    assert len(found["stages"]) == 7
    assert all(stage["seconds"] > 0 and stage["peak_mib"] > 0 for stage in found["stages"])
    for encoder in ("hubert", "clip"):
        assert (tmp_path / encoder / "pytorch_model.bin").exists()
        assert not (tmp_path / encoder / "model.safetensors").exists()
    assert (tmp_path / "exported" / "model.safetensors").exists()
    assert not any("fusion" in name for name in tensors(tmp_path / "exported"))


def tensors(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


def test_old_formats_load_with_no_missing_key_and_the_same_values(tmp_path: Path, hubert_configs, clip_config) -> None:
    """``weight_g``, ``weight_v``, ``position_ids`` and ``pytorch_model.bin``, of both kinds of HuBERT."""
    import torch
    from benchmarks.full_size import old_clip, old_hubert
    from transformers import CLIPModel, HubertModel

    from saysee.model.pretrained.weights import load_clip, load_hubert

    for kind, config in hubert_configs.items():
        new, folder = HubertModel(config), tmp_path / kind
        old = old_hubert(new.state_dict())
        assert {name.rsplit(".", 1)[1] for name in old if "pos_conv_embed.conv" in name} == {
            "weight_g",
            "weight_v",
            "bias",
        }
        config.save_pretrained(folder)
        torch.save(old, folder / "pytorch_model.bin")
        loaded = load_hubert(folder).state_dict()
        assert loaded.keys() == new.state_dict().keys()
        assert all(torch.equal(loaded[name], value) for name, value in new.state_dict().items())
    clip = CLIPModel(clip_config)
    old = old_clip(clip.state_dict())
    assert sum(name.endswith("position_ids") for name in old) == 2
    clip_config.save_pretrained(tmp_path / "clip")
    torch.save(old, tmp_path / "clip" / "pytorch_model.bin")
    for text in (True, False):
        loaded = load_clip(tmp_path / "clip", text).state_dict()
        assert loaded.keys() <= clip.state_dict().keys()
        assert all(torch.equal(value, clip.state_dict()[name]) for name, value in loaded.items())
