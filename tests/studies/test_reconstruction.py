"""The study of reconstruction: closed-form values of stand-ins, and the command on a trained model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from saysee.cli import main
from saysee.errors import CheckpointError, SaySeeError
from saysee.model.configuration import FusionConfig
from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.model.fusion import FusionEncoder, FusionOutput
from saysee.settings.reading import resolve_recipe
from saysee.settings.recipe import DenoisingSettings
from saysee.studies.reconstruction import OTHERS, measure, nearest, reconstruct
from saysee.tasks.denoising import DenoisingTask
from saysee.training.trainer import Trainer

N, P = 4, 4  # items and tokens of a batch


def stand_in(**settings: Any) -> DenoisingTask:
    """A task of features of width N * P; its linear layers change nothing."""
    width = N * P
    fusion = FusionEncoder(FusionConfig(width=width, layers=1, heads=1), width, width)
    task = DenoisingTask(DenoisingSettings(**settings), fusion, width=width, patch_width=width, fusion_width=width)
    for side in task.noisy_sides:
        task.rebuild[side] = nn.Identity()
    return task


def features(ids: range) -> tuple[SpeechFeatures, ImageFeatures, torch.Tensor, None]:
    """Tokens and vectors at right angles to each other; a clip and its image have the same."""
    tokens = torch.eye(N * P).reshape(N, P, -1)
    vectors = tokens.sum(dim=1)
    speech = SpeechFeatures(vectors, tokens, torch.ones(N, P, dtype=torch.bool))
    return speech, ImageFeatures(vectors, tokens), torch.tensor(list(ids)), None


@pytest.fixture
def trained(tiny_settings: dict[str, Any]) -> Path:
    """The folder of a model with its fusion encoder."""
    tiny_settings["training"] |= {"steps": 2, "eval_every": 2, "checkpoint_every": 2, "save_fusion": True}
    Trainer(resolve_recipe(tiny_settings)).fit()
    return Path(tiny_settings["output"]) / "best"


def test_an_identity_is_right_and_a_constant_is_chance() -> None:
    clean = torch.eye(5)
    assert nearest(clean, clean).tolist() == [1] * 5
    assert nearest(2 * clean.roll(1, 0), clean).tolist() == [0] * 5
    assert nearest(clean[:1].expand(5, -1), clean).mean() == 1 / 5
    assert nearest(torch.zeros(5, 5), clean).tolist() == [0] * 5  # ties count against it


@pytest.mark.parametrize("side", ["image", "speech"])
def test_tokens_that_noise_spares_come_back_and_the_others_do_not(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = stand_in(noise=side, query="noisy", target="all", loss="cosine", source="zeros", share=0.5)

    def unchanged(_: str, speech: SpeechFeatures, images: ImageFeatures) -> FusionOutput:
        return FusionOutput(speech.vector, images.patches if side == "image" else speech.frames, None)

    monkeypatch.setattr(task, "_fuse", unchanged)
    before, settings = torch.get_rng_state(), task.settings
    qualities, gains, chance = measure(task, [features(range(N)), features(range(N, 2 * N))], seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert task.settings is settings
    assert chance == 1 / (N * P)
    assert {one.place for one in qualities} == {side}
    for one in qualities:
        if one.source == "zeros":
            assert one.nearest == one.cosine == pytest.approx(1 - one.share)
            assert one.loss == pytest.approx(one.share)
            assert one.nearest_interval == pytest.approx((1 - one.share, 1 - one.share))  # all images alike
        if one.share == 0:
            assert one.nearest == 1
    assert gains == {side: {other: (0.0, 0.0, 0.0) for other in OTHERS if other != "right"}}


def test_the_other_modality_is_right_another_item_s_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    task = stand_in(noise="image", query="speech", target="global", loss="cosine", source="alike", share=0.25)
    monkeypatch.setattr(task, "_fuse", lambda _, speech, images: FusionOutput(speech.vector, speech.frames, None))
    qualities, gains, chance = measure(task, [features(range(N))], seed=0)
    found = {(one.share, one.source, one.other): (one.nearest, one.loss) for one in qualities}
    assert len(found) == 5 * 5 * 3
    assert chance == 1 / N
    for (_, _, other), values in found.items():
        assert values == pytest.approx((1, 0) if other == "right" else (0, 1), abs=1e-6)
    assert gains == {"image": {"another's": (1.0, 1.0, 1.0), "none": (1.0, 1.0, 1.0)}}


def test_the_command_writes_table_values_and_picture(
    trained: Path, tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "study"
    assert main(["reconstruction", str(trained), str(tiny_scenes), "--to", str(to), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert json.loads((to / "results.json").read_text()) == {key: values[key] for key in values if key != "to"}
    assert (values["images"], values["candidates"], values["chance"]) == (8, 8, 1 / 8)
    assert len(values["qualities"]) == 5 * 5 * 3
    clean = {json.dumps({**one, "source": ""}) for one in values["qualities"] if one["share"] == 0}
    assert len(clean) == 3, "without noise its source matters"
    for one in values["qualities"]:
        assert one["nearest_interval"][0] <= one["nearest"] <= one["nearest_interval"][1]
        assert one["nearest"] * 8 == pytest.approx(round(one["nearest"] * 8))
    assert (to / "table.md").read_text().count("any_position") >= 5
    with Image.open(to / "reconstruction.png") as picture:
        assert min(picture.size) > 300

    assert main(["reconstruction", str(trained), str(tiny_scenes), "--to", str(to), "--images", "1"]) == 2
    assert main(["reconstruction", str(trained), str(tiny_scenes), "--to", str(to), "--split", "tset"]) == 2
    assert "tset" in capsys.readouterr().err


def test_tasks_are_saved_with_the_model_or_found_in_the_checkpoint_of_an_earlier_release(
    trained: Path, tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = reconstruct(trained, tiny_scenes, seed=1)
    (trained / "tasks.safetensors").unlink()
    assert reconstruct(trained, tiny_scenes, seed=1) == expected
    alone = shutil.copytree(trained, tmp_path / "alone")
    with pytest.raises(CheckpointError, match=r"alone.*tasks\.safetensors"):
        reconstruct(alone, tiny_scenes)


def test_a_model_whose_fusion_encoder_learned_another_task_is_named(trained: Path, tiny_scenes: Path) -> None:
    facts = json.loads((trained / "training.json").read_text())
    facts["recipe"]["denoising"]["weight"] = 0
    (trained / "training.json").write_text(json.dumps(facts))
    with pytest.raises(SaySeeError, match=r"denoising\.weight"):
        reconstruct(trained, tiny_scenes)


def test_a_model_without_its_fusion_encoder_is_named(
    finished_run: Path, tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(finished_run / "best")
    assert main(["reconstruction", model, str(tiny_scenes), "--to", str(tmp_path / "study")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert model in error
    assert "save_fusion" in error
    assert not (finished_run / "best" / "tasks.safetensors").exists()
    assert not (tmp_path / "study").exists()
