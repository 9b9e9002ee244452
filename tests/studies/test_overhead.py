"""The study of overhead: FLOPs in closed form, and the command at tiny size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from saysee.cli import main
from saysee.settings.reading import resolve_recipe
from saysee.studies import overhead
from saysee.studies.overhead import CONTRASTIVE, FUSION, HEAD, IMAGE, LOSS, REST, SPEECH, count_flops, flops_of_step
from saysee.training.dry_run import timed_batches
from saysee.training.trainer import Trainer

B, D = 8, 16  # batch size and width of the joint space of the tiny recipe


def parts_of(settings: dict[str, Any], *overrides: str) -> dict[str, int]:
    trainer = Trainer(resolve_recipe(settings, overrides))
    trainer.objective.train()
    return flops_of_step(trainer, timed_batches(trainer))


def test_a_linear_layer_counts_its_products() -> None:
    layer, rows = nn.Linear(10, 20), torch.zeros(3, 10)
    product = 2 * 3 * 10 * 20
    assert count_flops(lambda: layer(rows)) == 2 * product  # forward, and the gradient of the weights
    assert count_flops(lambda: {"out": layer(rows.requires_grad_())}) == 3 * product  # and that of the rows
    assert count_flops(lambda: (layer.requires_grad_(False)(rows.detach()),)) == product


def test_the_parts_of_a_step_are_the_step(frozen_settings: dict[str, Any]) -> None:
    cached = parts_of(frozen_settings)
    similarities = 4 * B * B * D  # two directions, a product of [B, D] and [D, B] each
    assert cached.keys() == {HEAD, CONTRASTIVE, FUSION, LOSS}, "a step is its parts: nothing is left"
    assert cached[CONTRASTIVE] == cached[LOSS] == 2 * similarities  # forward, and the gradient of one of two sides
    recomputed = parts_of(frozen_settings, "--features.keep=off")
    assert recomputed.keys() - cached.keys() == {SPEECH, IMAGE}
    assert cached.items() <= recomputed.items()
    assert parts_of(frozen_settings, "--denoising.weight=0").items() == cached.items() - {
        (FUSION, cached[FUSION]), (LOSS, cached[LOSS])
    }  # fmt: skip
    deeper = parts_of(frozen_settings, "--fusion.layers=2")
    assert {part for part in cached if deeper[part] != cached[part]} == {FUSION}
    chunks = parts_of(frozen_settings, "--data.chunk_size=4")
    assert 0 < chunks[REST] < chunks[HEAD], "the first pass has no backward pass"


def test_trained_encoders_have_a_backward_pass(tiny_settings: dict[str, Any]) -> None:
    parts = parts_of(tiny_settings)
    forward = parts_of(tiny_settings, "--model.speech_trainable=0", "--model.image_trainable=0")
    assert parts.keys() == forward.keys() == {SPEECH, IMAGE, HEAD, CONTRASTIVE, FUSION, LOSS}
    assert parts[CONTRASTIVE] == 12 * B * B * D
    assert parts[SPEECH] > 2.5 * forward[SPEECH]
    assert parts[IMAGE] > 2.5 * forward[IMAGE]


@pytest.fixture
def recipe(frozen_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe file; its turns are in this process, which is faster."""
    monkeypatch.setattr(overhead, "run_alone", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr("saysee.training.dry_run.MEASURED_STEPS", 1)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(frozen_settings))
    return str(path)


def test_the_command_writes_table_values_and_picture(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "study"
    command = ["overhead", recipe, "--to", str(to), "--batch-sizes", "4,8", "--depths", "1", "--rounds", "1", "--json"]
    assert main(command) == 0
    values = json.loads(capsys.readouterr().out)
    assert json.loads((to / "results.json").read_text()) == {key: values[key] for key in values if key != "to"}
    assert [(row["batch_size"], row["cached"], row["layers"]) for row in values["rows"]] == [
        (size, cached, layers) for size in (4, 8) for cached in (True, False) for layers in (0, 1)
    ]
    for baseline, cmd in zip(values["rows"][::2], values["rows"][1::2], strict=True):
        assert baseline["ratio"] == [1, 1, 1]
        assert cmd["flops"] - baseline["flops"] == sum(cmd["turns"][0]["flops"][part] for part in (FUSION, LOSS))
        assert cmd["memory"] > 2**20
    assert values["query"]["flops"][0] == values["query"]["flops"][1] > 0
    assert (to / "table.md").read_text().count("CMD, 1 layer") == 8
    with Image.open(to / "overhead.png") as picture:
        assert min(picture.size) > 300


def test_rows_that_cannot_be_are_left_out_with_the_reason_or_refused(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["overhead", recipe, "--to", str(tmp_path / "study"), "--depths", "1", "--rounds", "2"]
    assert main([*command, "--batch-sizes", "4", "--model.speech_trainable", "1", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert "speech_trainable" in values["recomputed"]
    assert {row["cached"] for row in values["rows"]} == {False}
    _, cmd = values["rows"]
    assert len(cmd["turns"]) == 2
    assert cmd["ratio"][1] <= cmd["ratio"][0] <= cmd["ratio"][2]
    for words, named in (
        (["--denoising.weight", "0"], "preset"),
        (["--batch-sizes", "4,four"], "four"),
        (["--batch-sizes", "1"], "--batch-sizes"),
        (["--data.manifset", "x"], "manifset"),
    ):
        assert main([*command, *words]) == 2
        assert named in capsys.readouterr().err
