"""A plan against what training does: parameters, FLOPs and memory of real steps, real features on a real disk."""

from __future__ import annotations

import copy
import functools
import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from saysee.cli import main
from saysee.data.loader import Batch
from saysee.data.manifest import Manifest
from saysee.errors import ConfigError, SaySeeError
from saysee.media.audio import SAMPLE_RATE
from saysee.settings.recipe import Recipe, load_recipe, resolve_recipe
from saysee.training.feature_loader import FeatureBatch
from saysee.training.objective import Objective, build_model, build_tasks
from saysee.training.plan import TrainingPlan, plan_training
from saysee.training.plan_chips import CHIPS, Chip, chip_of
from saysee.training.processes import Processes
from saysee.training.steps import Steps
from saysee.training.trainer import Trainer

SECONDS = 2.0
FROZEN = {"speech_trainable": 0, "image_trainable": 0}


def changed(settings: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    """Settings with some replaced."""
    settings = copy.deepcopy(settings)
    for name, values in sections.items():
        settings[name] = {**settings[name], **values}
    return settings


def real_step(settings: dict[str, Any]) -> tuple[Objective, Steps, Any]:
    """A real objective, what takes its steps, and a real batch: noise of ``SECONDS``, the last clip a frame shorter."""
    recipe = resolve_recipe(settings)
    model = build_model(recipe)
    objective = Objective(model, build_tasks(recipe, model)).train()
    precision = "bf16" if recipe.training.precision == "bf16" else "fp32"
    steps = Steps(objective, recipe, Processes(precision, cpu=True))  # type: ignore[arg-type]
    size, side = recipe.data.batch_size, model.config.vision_config.image_size
    waveforms = torch.randn(size, round(SECONDS * SAMPLE_RATE))
    mask = torch.ones_like(waveforms, dtype=torch.bool)
    mask[-1, -round(model.speech_encoder.frame_seconds * SAMPLE_RATE) :] = False
    waveforms = waveforms * mask
    batch = Batch(waveforms, mask, torch.randn(size, 3, side, side), torch.arange(size), list(range(size)))
    return objective, steps, batch


def planned(settings: dict[str, Any], **arguments: Any) -> TrainingPlan:
    return plan_training(resolve_recipe(settings), peak="1", clip_seconds=SECONDS, **arguments)


CASES: dict[str, dict[str, dict[str, Any]]] = {
    "frozen encoders and the preset": {"model": FROZEN},
    "the baseline": {"model": FROZEN, "denoising": {"preset": "off"}},
    "trained encoders": {},
    "some trained layers in bf16": {
        "model": {"speech_trainable": 1, "image_trainable": 1},
        "training": {"precision": "bf16"},
    },
    "replaced tokens": {
        "model": FROZEN,
        "denoising": {"query": "noisy", "noise": "both", "target": "replaced", "source": "gaussian"},
    },
    "every token": {"denoising": {"query": "noisy", "target": "all", "loss": "cosine"}},
    "chunks": {"data": {"chunk_size": 4}},
    "two batches": {"model": FROZEN, "optimizer": {"accumulate": 2}},
}


@pytest.fixture
def plain_settings(tiny_model_settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Of tiny encoders; the manifest is not there, and its clips are as long as the crop."""
    return {
        "output": str(tmp_path / "run"),
        "data": {"manifest": "none.parquet", "batch_size": 8, "crop_seconds": SECONDS},
        "model": dict(tiny_model_settings),
        "fusion": {"width": 16, "layers": 1, "heads": 2},
        "denoising": {"preset": "paper"},
        "optimizer": {},
        "training": {"steps": 6, "precision": "fp32", "device": "cpu"},
    }


@pytest.mark.parametrize("case", CASES)
def test_flops_and_held_memory_are_those_of_a_real_step(plain_settings: dict[str, Any], case: str) -> None:
    settings = changed(plain_settings, **CASES[case])
    plan = planned(settings)
    objective, steps, batch = real_step(settings)
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    count = sum(parameter.numel() for parameter in objective.parameters())
    assert plan.parameters["all"] == (count, sum(parameter.numel() for parameter in trained))
    # Plain attention, because torch's counter leaves out the processor's fused kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
        steps.take(iter([batch] * settings["optimizer"].get("accumulate", 1)), plan.recipe.training.steps - 1)
    assert plan.flops == pytest.approx(flops.get_total_flops(), rel=0.03)
    held = [*objective.parameters(), *objective.buffers()]
    assert plan.step.weights == sum(tensor.nbytes for tensor in held)
    # The preset leaves the fusion encoder's learned blank out.
    assert plan.step.gradients == sum(parameter.nbytes for parameter in steps.optimizer.state)
    state = [value for values in steps.optimizer.state.values() for value in values.values()]
    assert plan.step.optimizer == sum(value.nbytes for value in state if isinstance(value, torch.Tensor))


@pytest.mark.parametrize(
    "case", ["frozen encoders and the preset", "some trained layers in bf16", "chunks", "two batches"]
)
def test_activations_are_those_that_the_allocator_sees(plain_settings: dict[str, Any], case: str) -> None:
    """Beside weights and optimiser, within a hundredth."""
    settings = changed(plain_settings, **CASES[case])
    step = planned(settings).step
    _, steps, batch = real_step(settings)
    batches = [batch] * settings["optimizer"].get("accumulate", 1)
    inputs = sum(value.nbytes for value in (batch.waveforms, batch.speech_mask, batch.pixels, batch.image_ids))
    found = most_allocated(lambda: steps.take(iter(batches), 0)) + inputs
    assert step.peak - step.weights - step.optimizer == pytest.approx(found, rel=0.01)
    assert step.activations <= step.peak - step.weights - step.optimizer <= step.activations + step.gradients


def most_allocated(work: Any) -> int:
    """The most bytes that torch's allocator held for some work, at once."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    assert profile.profiler is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def test_kept_features_on_the_disk_and_in_the_batch_are_as_planned(
    tiny_settings: dict[str, Any], tiny_manifest: Manifest, tmp_path: Path
) -> None:
    settings = changed(tiny_settings, model={**FROZEN, "speech_layers": [-1, 1]}, data={"crop_seconds": None})
    settings["features"] = {"folder": str(tmp_path / "features")}
    recipe = resolve_recipe(settings)
    plan = plan_training(recipe, peak="1")
    assert plan.recomputed is None
    told = [row.extra["seconds"] for row in tiny_manifest.select("train")]
    assert plan.lengths.longest == pytest.approx(max(told))
    assert plan.lengths.mean == pytest.approx(sum(told) / len(told))

    trainer = Trainer(recipe)
    trainer.keep_features()
    on_disk = sum(path.stat().st_size for path in (tmp_path / "features").rglob("*.values"))
    assert plan.disk.total == on_disk
    batch = next(iter(trainer.loader))
    assert isinstance(batch, FeatureBatch)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
        trainer.steps.take(iter([batch]), 5)
    seconds = (batch.frame_mask.shape[1] + 0.5) * trainer.model.speech_encoder.frame_seconds
    without_manifest = changed(settings, data={"manifest": "none.parquet"})  # so that lengths are as said
    as_long = plan_training(resolve_recipe(without_manifest), peak="1", clip_seconds=seconds)
    assert as_long.flops == pytest.approx(flops.get_total_flops(), rel=0.03)


def test_published_sizes_are_known_without_a_file() -> None:
    """Parameters as the checkpoints on the hub have them, and FLOPs as their formula gives them."""
    base = plan_training(load_recipe("flickr8k-base", ["--denoising.preset=off", "--data.batch_size=2"]))
    large = plan_training(load_recipe("flickr8k-large", ["--data.batch_size=2"]))
    assert base.parameters["HuBERT"] == (94_371_712, 0)
    assert large.parameters["HuBERT"] == (315_438_720, 0)
    for plan, clip in ((base, 151_277_313), (large, 427_616_513)):
        assert plan.parameters["CLIP's image side"][0] + plan.parameters["CLIP's text side"][0] == clip
    assert base.flops == pytest.approx(2 * flops_of_the_base_baseline(6.4), rel=0.03)
    assert base.chip is CHIPS["a100"]
    assert base.recomputed is not None


def flops_of_the_base_baseline(seconds: float) -> float:
    """Of one pair: HuBERT-base and CLIP ViT-B/32 forward, the head forward and backward."""

    def layer(tokens: int, width: int) -> float:
        return tokens * 24 * width**2 + 4 * tokens**2 * width

    steps, channels, total = round(seconds * SAMPLE_RATE), 1, 0.0
    for kernel, stride in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), strict=True):
        steps = (steps - kernel) // stride + 1
        total += 2 * steps * channels * 512 * kernel
        channels = 512
    total += 2 * steps * 512 * 768 + 2 * steps * 768 * 768 // 16 * 128  # to HuBERT's width, and where each frame is
    total += 12 * layer(steps, 768)
    total += 2 * 49 * 3 * 32**2 * 768 + 12 * layer(50, 768)
    return total + 3 * (layer(steps + 1, 768) + 2 * (steps + 1) * 768 * 512)


def test_hours_follow_from_peak_share_cards_and_lengths(plain_settings: dict[str, Any]) -> None:
    plan = planned(plain_settings, share=0.5)
    assert plan.seconds_per_step == pytest.approx(plan.flops / 0.5e12)
    assert plan.hours == pytest.approx(6 * plan.seconds_per_step / 3600)
    told = plan.to_dict()
    assert told["clips_per_second"] == pytest.approx(8 / plan.seconds_per_step)
    assert json.loads(json.dumps(told)) == told
    shared = planned(plain_settings, share=0.5, cards=4)
    assert shared.flops == pytest.approx(plan.flops, rel=0.02)
    assert shared.seconds_per_step == pytest.approx(plan.seconds_per_step / 4, rel=0.02)
    assert shared.step.activations < plan.step.activations / 3
    half = plan_training(plan.recipe, peak="1", clip_seconds=SECONDS / 2)
    assert half.flops < 0.7 * plan.flops
    assert half.step == plan.step  # the longest clips are as long as before


def test_an_accelerator_keeps_no_matrix_of_attention_and_norms_in_fp32(plain_settings: dict[str, Any]) -> None:
    """So it takes less memory than the processor's way where clips are long, and more where they are short."""

    def on_both(seconds: float, model: dict[str, Any]) -> tuple[TrainingPlan, TrainingPlan]:
        settings = changed(plain_settings, data={"crop_seconds": seconds}, training={"precision": "bf16"}, model=model)
        card = changed(settings, training={"device": "auto"})
        return plan_training(resolve_recipe(settings), peak="1"), plan_training(resolve_recipe(card), peak="1")

    processor, card = on_both(40.0, {})
    assert card.step.activations < 0.7 * processor.step.activations
    # Fused attention computes its matrix again in the backward pass.
    assert processor.flops < card.flops < 1.15 * processor.flops
    processor, card = on_both(0.5, FROZEN)
    assert card.step.activations > 1.1 * processor.step.activations


def test_what_does_not_fit_is_said(plain_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resolve_recipe(changed(plain_settings, training={"device": "auto"}))
    needs = plan_training(whole, peak="1").step.peak / 2**30
    monkeypatch.setitem(CHIPS, "small", Chip("small card", 1.0, 1.0, memory_gib=0.9 * needs))
    monkeypatch.setitem(CHIPS, "large", Chip("large card", 1.0, 1.0, memory_gib=1.1 * needs))
    assert plan_training(whole, peak="large").warnings() == []
    (warning,) = plan_training(whole, peak="small").warnings()
    assert "data.chunk_size" in warning
    assert "small card" in warning
    whole.data.chunk_size = 4
    assert plan_training(whole, peak="small").warnings() == []


@pytest.mark.parametrize(
    ("section", "setting", "value", "arguments", "word"),
    [
        ("model", "speech", "nobody/hubert", {}, "facebook/hubert-base-ls960"),
        ("model", "image", "nobody/clip", {}, "openai/clip-vit-base-patch32"),
        ("model", "image", "saysee/hubert-nano", {}, "model.image"),
        ("model", "speech", "/nowhere/at/all", {}, "no such folder"),
        ("data", "crop_seconds", None, {}, "--clip-seconds"),
        ("training", "precision", "bf16", {"peak": "t4"}, "T4 has none"),
        ("training", "device", "cpu", {"peak": "h100"}, "training.device is cpu"),
        ("training", "shard", True, {}, "training.shard"),
        ("data", "batch_size", 4, {"peak": "abacus"}, "h100"),
        ("data", "batch_size", 4, {"peak": "-1"}, "--peak"),
        ("data", "batch_size", 4, {"share": 0.0}, "--share"),
        ("data", "batch_size", 4, {"share": 40.0}, "--share"),
        ("data", "batch_size", 4, {"cards": 3}, "--cards"),
        ("data", "batch_size", 4, {"clip_seconds": -1.0}, "--clip-seconds"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(
    section: str, setting: str, value: Any, arguments: dict[str, Any], word: str
) -> None:
    recipe = copy.deepcopy(flickr8k_base())
    setattr(getattr(recipe, section), setting, value)
    with pytest.raises(SaySeeError) as refusal:
        plan_training(recipe, **arguments)
    assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


@functools.cache
def flickr8k_base() -> Recipe:
    return load_recipe("flickr8k-base")


def test_this_machine_can_be_measured() -> None:
    chip = chip_of("here", "fp32", "cpu")
    assert chip.bf16 is None
    assert 1e-3 < chip.fp32 < 100  # TFLOP/s: a busy core, and more than any processor


def test_the_command_plans_and_trains_nothing(
    plain_settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(plain_settings))
    words = ["train", str(recipe), "--plan", "--peak", "2", "--share", "0.25", "--clip-seconds", "1.5"]
    assert main([*words, "--json", "--data.batch_size", "4"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["batch_size"], told["share"], told["clip_seconds"]["mean"]) == (4, 0.25, 1.5)
    assert main(words) == 0
    assert "25% of 2 TFLOP/s" in capsys.readouterr().out
    assert not Path(plain_settings["output"]).exists()
    assert main(["train", str(recipe), "--peak", "2"]) == 2
    assert "--plan" in capsys.readouterr().err


def test_no_weight_is_read(hubert_folder: Path, clip_folder: Path, plain_settings: dict[str, Any]) -> None:
    """A folder with a configuration and no weights is enough, and with rubbish for weights too."""
    (hubert_folder / "model.safetensors").write_bytes(b"rubbish")
    (clip_folder / "model.safetensors").unlink()
    places = {"speech": str(hubert_folder), "image": str(clip_folder)}
    plan = planned(changed(plain_settings, model=places))
    assert plan.parameters["CLIP's text side"][0] > 0
    with pytest.raises(SaySeeError):
        build_model(plan.recipe)
    with pytest.raises(ConfigError, match="no such folder"):
        planned(changed(plain_settings, model={**places, "speech": str(hubert_folder) + "2"}))
