from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from saysee.data.manifest import Manifest, Row
from saysee.errors import CheckpointError, ConfigError, MediaError, SaySeeError
from saysee.model.retriever import SpeechImageModel
from saysee.settings.reading import load_recipe, resolve_recipe
from saysee.training.checkpoint import TrainingState
from saysee.training.records import read_metrics
from saysee.training.trainer import Trainer


@pytest.fixture
def run(finished_run: Path, tiny_settings: dict[str, Any]) -> Path:
    """A finished run of the tiny settings, in their output folder."""
    return Path(shutil.copytree(finished_run, tiny_settings["output"]))


def train(settings: dict[str, Any], *overrides: str, resume: str = "never") -> dict[str, Any]:
    return Trainer(resolve_recipe(settings, overrides)).fit(resume)


def test_a_run_leaves_recipe_environment_metrics_best_model_and_result(tiny_settings: dict[str, Any]) -> None:
    result = train(tiny_settings, "--training.save_fusion=true")
    run = Path(tiny_settings["output"])
    assert load_recipe(run / "recipe.yaml") == resolve_recipe(tiny_settings, ["--training.save_fusion=true"])
    environment = json.loads((run / "environment.json").read_text())
    assert environment["seed"] == 0
    assert environment["versions"]["torch"] == torch.__version__
    assert {"git_commit", "processors", "threads", "python"} <= environment.keys()
    assert result == json.loads((run / "result.json").read_text())
    assert result["steps"] == 6
    assert result["clips"] == 6 * 8
    assert any((run / "tensorboard").iterdir())
    model = SpeechImageModel.from_pretrained(run / "best")
    assert model.fusion is not None
    lines = read_metrics(run)
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if line["kind"] == "val"] == [3, 6]
    for line in lines:
        if line["kind"] == "train":
            assert line["loss"] == pytest.approx(line["contrastive_loss"] + line["denoising_loss"], rel=1e-5)
        else:
            assert {"mean_R@1", "reconstruction_loss", "reconstruction_without_clean", "attention_lift"} <= line.keys()


def test_the_best_model_is_the_one_with_the_best_mean_recall(tiny_settings: dict[str, Any]) -> None:
    result = train(tiny_settings, "--training.eval_every=1")
    scores = {
        line["step"]: line["mean_R@10"] for line in read_metrics(Path(tiny_settings["output"])) if line["kind"] == "val"
    }
    assert result["best_step"] == min(step for step, score in scores.items() if score == max(scores.values()))


@pytest.mark.parametrize(("words", "measured"), [(None, True), (["a", "dog"], False)])
def test_words_of_another_form_are_not_measured_and_null_is_no_words(
    tiny_settings: dict[str, Any],
    tiny_manifest: Manifest,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    words: Any,
    measured: bool,
) -> None:
    rows = [
        dataclasses.replace(row, clip=str(tiny_manifest.clip_path(row)), image=str(tiny_manifest.image_path(row)))
        for row in tiny_manifest
    ]
    first = next(number for number, row in enumerate(rows) if row.split == "val")
    others = rows[first].extra["words"] if measured else words
    rows = [
        dataclasses.replace(row, extra={**row.extra, "words": words if number == first else others})
        for number, row in enumerate(rows)
    ]
    Manifest(rows, tmp_path).write(tmp_path / "manifest.jsonl")
    tiny_settings["data"]["manifest"] = str(tmp_path / "manifest.jsonl")
    train(tiny_settings, "--training.steps=2", "--training.eval_every=1")
    scores = [line for line in read_metrics(Path(tiny_settings["output"])) if line["kind"] == "val"]
    assert [("attention_lift" in line) for line in scores] == [measured, measured]
    assert caplog.text.count(rows[first].clip) == (not measured)


def test_zero_evaluates_after_each_epoch(tiny_settings: dict[str, Any]) -> None:
    trainer = Trainer(resolve_recipe(tiny_settings, ["--training.eval_every=0", "--data.batch_size=20"]))
    assert len(trainer.loader) == 3
    trainer.fit()
    lines = read_metrics(Path(tiny_settings["output"]))
    assert [line["step"] for line in lines if line["kind"] == "val"] == [3, 6]


@pytest.mark.parametrize(
    ("flags", "clips"),
    [
        (["--training.steps=5"], 0.0),
        (["--training.steps=6"], 0.5),
        (["--training.steps=3", "--optimizer.accumulate=2"], 0.5),
        (["--training.steps=5", "--speech_noise.min_epochs=0"], 0.5),
    ],
)
def test_gaps_are_left_out_where_clips_are_heard_seldom(
    tiny_settings: dict[str, Any], caplog: pytest.LogCaptureFixture, flags: list[str], clips: float
) -> None:
    """20 of 60 clips in a batch, so that six batches are two epochs."""
    noise = ["--speech_noise.clips=0.5", "--speech_noise.min_epochs=2", "--data.batch_size=20"]
    with caplog.at_level("INFO"):
        trainer = Trainer(resolve_recipe(tiny_settings, [*noise, *flags]))
    assert trainer.objective.speech_noise.clips == clips
    assert ("speech_noise.min_epochs" in caplog.text) == (clips == 0)


def test_the_best_is_chosen_by_the_recall_that_is_named() -> None:
    scores = [{"mean_R@1": 5.0, "mean_R@10": 20.0}, {"mean_R@1": 4.0, "mean_R@10": 30.0}]
    for best_by, step, recall in (("mean_R@1", 0, 5.0), ("mean_R@10", 1, 4.0), ("step", 1, 4.0)):
        state = TrainingState()
        for state.step, metrics in enumerate(scores):
            state.add_evaluation(metrics, 0, best_by)
        assert (state.best_step, state.best_recall) == (step, recall), best_by


def test_the_optimizer_is_adam_with_an_l2_penalty_on_all_that_is_trained(tiny_settings: dict[str, Any]) -> None:
    optimizer = Trainer(resolve_recipe(tiny_settings, ["--optimizer.weight_decay=0.1"])).optimizer.optimizer
    assert type(optimizer) is torch.optim.Adam
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1}


def test_a_frozen_hubert_is_in_training_mode_only_between_evaluations(tiny_settings: dict[str, Any]) -> None:
    tiny_settings["model"] |= {"speech_trainable": 0}
    trainer = Trainer(resolve_recipe(tiny_settings))
    seen = []
    hubert = trainer.model.speech_encoder.hubert
    hubert.register_forward_pre_hook(lambda module, inputs: seen.append((trainer.model.training, module.training)))
    trainer.fit()
    assert set(seen) == {(True, True), (False, False)}


def test_it_learns_the_pairs_of_a_tiny_corpus(tiny_settings: dict[str, Any]) -> None:
    train(
        tiny_settings,
        "--denoising.preset=off",
        "--training.steps=30",
        "--training.eval_every=30",
        "--optimizer.schedule=constant",
        "--optimizer.lr=3e-3",
        "--optimizer.encoder_lr=3e-3",
        "--data.batch_size=12",
    )
    losses = [
        line["contrastive_loss"] for line in read_metrics(Path(tiny_settings["output"])) if "contrastive_loss" in line
    ]
    assert sum(losses[-5:]) / 5 < 0.8 * sum(losses[:5]) / 5


def test_training_stops_early_when_the_score_stays(tiny_settings: dict[str, Any]) -> None:
    result = train(
        tiny_settings,
        "--optimizer.lr=0",
        "--optimizer.encoder_lr=0",
        "--training.eval_every=1",
        "--training.steps=50",
        "--training.patience=2",
    )
    assert result["stopped_early"]
    assert (result["best_step"], result["steps"]) == (1, 3)


def test_the_best_model_is_that_of_the_highest_recall_or_the_latest(tiny_settings: dict[str, Any]) -> None:
    flags = ("--optimizer.lr=0", "--optimizer.encoder_lr=0", "--training.eval_every=1", "--training.steps=3")
    assert train(tiny_settings, *flags)["best_step"] == 1
    tiny_settings["output"] += "-latest"
    assert train(tiny_settings, *flags, "--training.best_by=step")["best_step"] == 3
    facts = json.loads((Path(tiny_settings["output"]) / "best" / "training.json").read_text())
    assert facts["best"]["step"] == 3


def test_a_frozen_encoder_does_not_move_and_is_not_in_the_checkpoints(tiny_settings: dict[str, Any]) -> None:
    settings = tiny_settings
    settings["model"] |= {"speech_trainable": 0, "image_trainable": 0}
    trainer = Trainer(resolve_recipe(settings))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.fit()
    after = trainer.model.state_dict()
    encoders = ("speech_encoder.hubert.", "image_encoder.")
    for name, value in before.items():
        if name.startswith(encoders):
            assert torch.equal(value, after[name]), name
    assert not torch.equal(before["speech_encoder.head.cls"], after["speech_encoder.head.cls"])
    state = torch.load(next(Path(settings["output"]).glob("checkpoints/*/state.pt")), weights_only=True)
    assert not [name for name in state["weights"] if "hubert" in name or "image_encoder" in name]


@pytest.mark.parametrize("changed", ["weights", "shapes"])
def test_a_run_is_not_resumed_with_another_encoder_in_the_place_of_its_own(
    tiny_settings: dict[str, Any], changed: str
) -> None:
    tiny_settings["model"] |= {"speech_trainable": 0, "image_trainable": 0}
    train(tiny_settings)
    (Path(tiny_settings["output"]) / "result.json").unlink()
    trainer = Trainer(resolve_recipe(tiny_settings))
    if changed == "weights":
        next(trainer.model.speech_encoder.hubert.parameters()).data += 1
    else:
        trainer.model.speech_encoder.head.cls = torch.nn.Parameter(torch.zeros(7))
    with pytest.raises(CheckpointError):
        trainer.fit(resume="auto")


def test_baseline_and_cmd_start_from_the_same_weights_and_see_the_same_batches(tiny_settings: dict[str, Any]) -> None:
    with_cmd = Trainer(resolve_recipe(tiny_settings))
    baseline = Trainer(resolve_recipe(tiny_settings, ["--denoising.preset=off"]))
    assert baseline.model.fusion is None
    for name, value in baseline.model.state_dict().items():
        assert torch.equal(value, with_cmd.model.state_dict()[name]), name
    for one, other in zip(baseline.loader, with_cmd.loader, strict=True):
        assert one.rows == other.rows
        assert torch.equal(one.waveforms, other.waveforms)


def test_a_folder_with_a_run_is_refused_unless_resumed(run: Path, tiny_settings: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="--resume auto"):
        train(tiny_settings)
    assert train(tiny_settings, resume="auto") == json.loads((run / "result.json").read_text())


def test_a_run_of_other_settings_is_refused_by_name(run: Path, tiny_settings: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"another optimizer\.lr \(0\.001, now 0\.002\)"):
        train(tiny_settings, "--optimizer.lr=0.002", resume="auto")
    train(tiny_settings, "--training.keep_checkpoints=1", resume="auto")  # no weight depends on it


def test_a_checkpoint_of_an_older_release_is_refused(run: Path, tiny_settings: dict[str, Any]) -> None:
    (run / "result.json").unlink()
    for file in run.glob("checkpoints/*/state.pt"):
        state = torch.load(file, weights_only=True)
        del state["validation"]
        torch.save(state, file)
    with pytest.raises(CheckpointError, match="step-00000006"):
        train(tiny_settings, resume="auto")


def test_a_missing_manifest_or_split_is_reported(tiny_settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"data\.manifest"):
        train(tiny_settings, "--data.manifest=")
    with pytest.raises(SaySeeError, match=r"train.*val.*test"):
        train(tiny_settings, "--data.train_split=training")


def test_a_batch_larger_than_the_corpus_is_refused(tiny_settings: dict[str, Any]) -> None:
    with pytest.raises(SaySeeError, match="batch"):
        train(tiny_settings, "--data.batch_size=1000")


def with_a_bad_clip(manifest: Manifest, folder: Path, split: str = "train") -> Path:
    """The manifest with the third clip of a split replaced by rubbish."""
    third = [number for number, row in enumerate(manifest) if row.split == split][2]
    bad = folder / "rubbish.wav"
    bad.write_bytes(b"this is no sound")
    rows = [
        Row(
            str(bad) if number == third else str(manifest.clip_path(row)),
            str(manifest.image_path(row)),
            row.image_id,
            row.split,
            row.text,
            row.speaker,
            row.language,
            row.extra,
        )
        for number, row in enumerate(manifest.rows)
    ]
    path = folder / "manifest.parquet"
    Manifest(rows, folder).write(path)
    return path


def test_a_bad_file_stops_training_with_its_name_or_is_skipped_and_listed(
    tiny_settings: dict[str, Any], tiny_manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_settings["data"]["manifest"] = str(with_a_bad_clip(tiny_manifest, tmp_path))
    whole_epochs = ("--training.steps=9", "--training.eval_every=9", "--data.batch_size=8")
    with pytest.raises(MediaError, match=r"rubbish\.wav"):
        train(tiny_settings, *whole_epochs)
    result = train(tiny_settings, *whole_epochs, "--data.on_bad_file=skip", f"--output={tmp_path / 'other'}")
    assert {Path(one["path"]).name for one in result["skipped_files"]} == {"rubbish.wav"}
    assert "rubbish.wav" in caplog.text


@pytest.mark.parametrize("cached", [False, True])
def test_a_bad_file_of_the_validation_split_is_found_before_the_first_step(
    frozen_settings: dict[str, Any],
    tiny_manifest: Manifest,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    cached: bool,
) -> None:
    frozen_settings["data"]["manifest"] = str(with_a_bad_clip(tiny_manifest, tmp_path, "val"))
    flags = [] if cached else ["--features.keep=off"]
    with pytest.raises(MediaError, match=r"rubbish\.wav"):
        train(frozen_settings, *flags)
    assert not Path(frozen_settings["output"]).exists()
    result = train(frozen_settings, *flags, "--data.on_bad_file=skip")
    assert [Path(one["path"]).name for one in result["skipped_files"]] == ["rubbish.wav"]
    assert "rubbish.wav" in caplog.text


def test_a_validation_split_without_a_good_file_is_refused(
    tiny_settings: dict[str, Any], tiny_manifest: Manifest, tmp_path: Path
) -> None:
    rows = [
        dataclasses.replace(row, clip=f"no/{number}.wav" if row.split == "val" else str(tiny_manifest.clip_path(row)))
        for number, row in enumerate(tiny_manifest)
    ]
    rows = [dataclasses.replace(row, image=str(tiny_manifest.image_path(row))) for row in rows]
    Manifest(rows, tmp_path).write(tmp_path / "manifest.parquet")
    tiny_settings["data"]["manifest"] = str(tmp_path / "manifest.parquet")
    with pytest.raises(SaySeeError, match="'val'"):
        train(tiny_settings, "--data.on_bad_file=skip")


def with_swapped(manifest: Manifest, folder: Path, split: str, columns: tuple[str, ...]) -> Path:
    """The manifest with values of the first two images of a split swapped under the same clips."""
    one, other = [row for row in manifest.images() if row.split == split][:2]
    swap = {one.image_id: other, other.image_id: one}
    rows = [
        dataclasses.replace(row, clip=str(manifest.clip_path(row)), image=str(manifest.image_path(row)))
        for row in manifest
    ]
    places = {"image": lambda row: str(manifest.image_path(row)), "image_id": lambda row: row.image_id}
    rows = [
        dataclasses.replace(row, **{name: places[name](swap[row.image_id]) for name in columns})
        if row.image_id in swap
        else row
        for row in rows
    ]
    path = folder / "manifest.parquet"
    Manifest(rows, folder).write(path)
    return path


def move(run: Path, settings: dict[str, Any], manifest: Path) -> None:
    """Makes a run one of a manifest at another place, and not finished."""
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(settings["data"]["manifest"], str(manifest)))
    settings["data"]["manifest"] = str(manifest)
    (run / "result.json").unlink()


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("columns", [(), ("image",), ("image_id",)])
def test_a_run_is_not_resumed_on_swapped_images_or_ids(
    run: Path,
    tiny_settings: dict[str, Any],
    tiny_manifest: Manifest,
    tmp_path: Path,
    split: str,
    columns: tuple[str, ...],
) -> None:
    move(run, tiny_settings, with_swapped(tiny_manifest, tmp_path, split, columns))
    if not columns:
        train(tiny_settings, resume="auto")
        return
    with pytest.raises(CheckpointError):
        train(tiny_settings, resume="auto")


def test_a_run_is_not_resumed_where_the_image_files_themselves_were_swapped(
    tiny_settings: dict[str, Any], tiny_manifest: Manifest, tmp_path: Path
) -> None:
    root = tmp_path / "corpus"
    shutil.copytree(tiny_manifest.root, root)
    tiny_settings["data"]["manifest"] = str(root / "manifest.parquet")
    train(tiny_settings)
    (Path(tiny_settings["output"]) / "result.json").unlink()
    one, other = (root / row.image for row in tiny_manifest.images()[:2])
    assert one.stat().st_size != other.stat().st_size
    swapped = one.read_bytes(), other.read_bytes()
    other.write_bytes(swapped[0])
    one.write_bytes(swapped[1])
    with pytest.raises(CheckpointError):
        train(tiny_settings, resume="auto")


def test_a_loss_that_is_not_finite_stops_with_a_fix(tiny_settings: dict[str, Any]) -> None:
    trainer = Trainer(resolve_recipe(tiny_settings))
    with torch.no_grad():
        trainer.model.speech_encoder.head.projection.weight.fill_(float("nan"))
    with pytest.raises(SaySeeError, match=r"the loss is nan at step 1.*optimizer\.lr"):
        trainer.fit()


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(tiny_settings: dict[str, Any]) -> None:
    trainer = Trainer(resolve_recipe(tiny_settings))
    weight = trainer.model.speech_encoder.head.projection.weight
    weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(SaySeeError, match=r"gradient.*step 1.*optimizer\.lr"):
        trainer.fit()
    assert torch.isfinite(weight).all()


def test_a_batch_too_large_for_the_gpu_stops_with_a_fix(
    tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(resolve_recipe(tiny_settings))

    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.accelerator, "backward", full)
    with pytest.raises(SaySeeError, match=r"data\.chunk_size"):
        trainer.fit()


def test_trainers_of_other_arithmetic_can_follow_each_other_in_one_process(
    tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    for precision in ("bf16", "fp32", "bf16"):
        trainer = Trainer(resolve_recipe(tiny_settings, [f"--training.precision={precision}"]))
        assert trainer.accelerator.mixed_precision == ("bf16" if precision == "bf16" else "no")


def test_a_killed_prune_leaves_no_half_checkpoint_to_resume_from(tiny_settings: dict[str, Any]) -> None:
    train(tiny_settings, "--training.checkpoint_every=1", "--training.keep_checkpoints=1")
    names = sorted(path.name for path in (Path(tiny_settings["output"]) / "checkpoints").iterdir())
    assert names == ["step-00000006"]
