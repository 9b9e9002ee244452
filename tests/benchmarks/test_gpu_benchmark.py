"""The benchmark of a GPU, tried on a CPU at a tiny size."""

from __future__ import annotations

import json

import pytest

from benchmarks import gpu


@pytest.mark.nightly  # torch.compile calls a C++ compiler, which takes a minute
def test_it_measures_steps_passes_and_encoding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"ROUNDS": 1, "CLIPS": 2, "SECONDS": 1, "IMAGES": 2}.items():
        monkeypatch.setattr(gpu, name, value)
    gpu.main(["--sizes", "tiny", "--batch-size", "4", "--images", "20", "--device", "cpu"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found["steps"]) == {"encoders frozen", "encoders trained"}
    assert set(found["encoders"]) == {"speech", "speech, compiled", "images", "images, compiled"}
    assert all(step["seconds_without_loader"] > 0 and step["peak_gib"] > 0 for step in found["steps"].values())
    assert all(value > 0 for value in found["encoding"].values())


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU"):
        gpu.main([])
