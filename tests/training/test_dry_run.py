"""A dry run takes real steps and leaves nothing behind; what it reports is what a training then takes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from saysee.cli import main
from saysee.data.manifest import Manifest
from saysee.errors import SaySeeError
from saysee.settings.reading import resolve_recipe
from saysee.training.dry_run import dry_run
from saysee.training.trainer import Trainer


def files_below(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


def test_the_command_prints_a_result_and_writes_no_file(
    frozen_settings: dict[str, Any], tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(frozen_settings))
    before = files_below(tmp_path, tiny_scenes.parent)
    assert main(["train", str(recipe), "--dry-run", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert main(["train", str(recipe), "--dry-run", "--data.chunk_size", "4"]) == 0
    assert "GiB" in capsys.readouterr().out
    assert files_below(tmp_path, tiny_scenes.parent) == before
    assert result["seconds_per_step"] > 0
    assert result["hours"] == pytest.approx(6 * result["seconds_per_step"] / 3600)
    assert result["clips_per_second"] == pytest.approx(8 / result["seconds_per_step"])
    assert result["peak_memory_bytes"] > 2**20


def test_parameters_and_disk_are_those_of_the_training(frozen_settings: dict[str, Any], tmp_path: Path) -> None:
    frozen_settings["model"]["speech_layers"] = [-1, 1]
    result = dry_run(Trainer(resolve_recipe(frozen_settings)))
    trainer = Trainer(resolve_recipe(frozen_settings))
    trainer.cache_features()
    assert result.recomputed is None
    assert result.feature_bytes == sum(path.stat().st_size for path in (tmp_path / "features").rglob("*.values"))
    parameters = list(trainer.objective.parameters())
    assert result.parameters["all"] == {
        "all": sum(parameter.numel() for parameter in parameters),
        "trained": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    }
    assert result.parameters["HuBERT"]["trained"] == 0


def test_features_of_trained_encoders_are_not_cached(tiny_settings: dict[str, Any]) -> None:
    tiny_settings["optimizer"]["accumulate"] = 2
    result = dry_run(Trainer(resolve_recipe(tiny_settings)))
    assert result.recomputed is not None
    assert result.feature_bytes == result.feature_hours == 0
    assert result.clips_per_second == pytest.approx(16 / result.seconds_per_step)


def test_a_split_without_a_file_that_can_be_used_is_an_error(
    tiny_settings: dict[str, Any], tiny_manifest: Manifest, tmp_path: Path
) -> None:
    rows = [dataclasses.replace(row, clip=f"no/{number}.wav") for number, row in enumerate(tiny_manifest)]
    Manifest(rows, tmp_path).write(tmp_path / "manifest.parquet")
    tiny_settings["data"]["manifest"] = str(tmp_path / "manifest.parquet")
    with pytest.raises(SaySeeError, match="'train'"):
        dry_run(Trainer(resolve_recipe(tiny_settings, ["--data.on_bad_file=skip"])))
