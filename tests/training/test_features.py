"""Training with cached features is training without: the same batches, losses and scores."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import HubertConfig

from feature_tools import keep, states_of
from saysee.data.loader import Plan, SpeechImageLoader
from saysee.data.manifest import Manifest
from saysee.encoding.encoder import Encoder
from saysee.encoding.precision import arithmetic_of
from saysee.errors import MediaError
from saysee.evaluation.protocols import evaluate
from saysee.media.audio import load_audio
from saysee.model.retriever import SpeechImageModel
from saysee.settings.reading import load_recipe, resolve_recipe, save_recipe
from saysee.settings.recipe import FeatureSettings, Recipe
from saysee.tasks.contrastive import ContrastiveTask
from saysee.training.data import FeatureLoader, cache_features, feature_cache, why_recomputed
from saysee.training.objective import build_model
from saysee.training.records import read_metrics
from saysee.training.trainer import Trainer


def losses(run: str) -> list[dict[str, float]]:
    names = ("loss", "gradient_norm", "mean_R@1", "reconstruction_loss", "reconstruction_without_clean")
    return [
        {name: line[name] for name in ("step", *names) if name in line and line["kind"] == kind}
        for kind in ("train", "val")
        for line in read_metrics(Path(run))
        if line["kind"] == kind
    ]


def test_training_clips_alone_are_augmented_and_kept_so(frozen_settings: dict[str, Any], encoded: Any) -> None:
    def states(augment: bool) -> torch.Tensor:
        settings = resolve_recipe(frozen_settings, [f"--data.augment={augment}", "--data.workers=0"])
        trainer = Trainer(settings)
        trainer.cache_features()
        return torch.cat(
            [next(iter(trainer.loader)).states.float().flatten(), trainer.data.val_batch().states.flatten()]
        )

    plain = states(False)
    assert encoded()[0] == 60 + 20
    augmented = states(True)
    assert encoded()[0] == 60, "the validation split is as it was"
    assert not torch.equal(augmented, plain)
    assert torch.equal(states(True), augmented)
    assert encoded()[0] == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_with_kept_features_is_training_without(
    frozen_settings: dict[str, Any],
    precision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoded: Any,
) -> None:
    overrides = [f"--training.precision={precision}", "--training.steps=3"]
    output = frozen_settings["output"]
    Trainer(resolve_recipe(frozen_settings, [*overrides, "--features.keep=off"])).fit()
    assert encoded() == (0, 0)
    Trainer(resolve_recipe(frozen_settings, [*overrides, f"--output={output}-kept"])).fit()
    assert encoded()[0] == 60 + 20

    def opened(*_: Any, **__: Any) -> None:
        pytest.fail("a file was decoded though its features are kept")

    for module in ("encoding.sides", "data.loader"):
        monkeypatch.setattr(f"saysee.{module}.load_audio", opened)
        monkeypatch.setattr(f"saysee.{module}.load_image", opened)
    Trainer(resolve_recipe(frozen_settings, [*overrides, f"--output={output}-again"])).fit()
    assert encoded() == (0, 0)
    # What is saved has the same encoders and preprocessing: it finds what the training kept for validation.
    best = SpeechImageModel.from_pretrained(f"{output}-kept/best")
    settings = FeatureSettings(**frozen_settings["features"])
    encoder = Encoder(best, cache=feature_cache(settings, tmp_path))
    evaluate(encoder, Manifest.read(frozen_settings["data"]["manifest"]), split="val")
    assert encoded() == (0, 0)
    without, kept, again = (losses(run) for run in (output, f"{output}-kept", f"{output}-again"))
    assert len(without) == 3 + 1
    assert again == kept
    # Without instructions for bf16, torch's own way is coarser: gradients were seen to differ by 5 %.
    noise = 2e-3 if precision == "fp32" else 2e-2 if arithmetic_of("auto", "cpu") == "bf16" else 0.1
    for one, other in zip(without, kept, strict=True):
        assert one == pytest.approx(other, rel=noise, abs=noise)


@pytest.mark.parametrize("noise", ["image", "speech"])
def test_noise_before_the_encoders_is_the_same_with_kept_features(
    frozen_settings: dict[str, Any], noise: str, encoded: Any
) -> None:
    overrides = ["--training.precision=fp32", "--training.steps=2", "--denoising.place=input"]
    output, found = frozen_settings["output"], []
    for keep_now in ("off", "auto"):
        run = f"{output}-{keep_now}"
        changes = [f"--features.keep={keep_now}", f"--denoising.noise={noise}", f"--output={run}"]
        Trainer(resolve_recipe(frozen_settings, [*overrides, *changes])).fit()
        found.append(losses(run))
    assert encoded()[0] == 60 + 20
    for without, kept in zip(*found, strict=True):
        assert without == pytest.approx(kept, rel=2e-3, abs=2e-3)


def test_kept_hidden_states_and_patches_are_what_the_encoders_give(
    frozen_settings: dict[str, Any], corpus: Manifest
) -> None:
    model = build_model(resolve_recipe(frozen_settings))
    kept = keep(model, corpus)
    files = loader_of(corpus, model)
    for batch, found in zip(files, FeatureLoader(files, kept), strict=True):
        found = found.to("cpu")
        with torch.no_grad():
            states, mask = model.speech_encoder.layer_states(batch.waveforms, batch.speech_mask)
            images = model.image_encoder(batch.pixels)
        assert found.rows == batch.rows
        assert torch.equal(found.frame_mask, mask)
        assert torch.equal(found.image_ids, batch.image_ids)
        assert not found.states[:, ~mask].any()
        torch.testing.assert_close(found.states[:, mask], torch.stack(states)[:, mask], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.patches, images.patches, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.vectors, images.vector, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("arithmetic", ["fp32", "bf16"])
@pytest.mark.parametrize(("norm", "passes"), [("group", [1] * 6), ("layer", [2, 2, 1, 1])])
def test_a_small_hubert_without_a_group_norm_runs_on_each_core(
    frozen_settings: dict[str, Any],
    corpus: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    norm: str,
    passes: list[int],
    arithmetic: Any,
) -> None:
    kind = {"feat_extract_norm": norm, "do_stable_layer_norm": norm == "layer"}
    frozen_settings["model"]["speech"] = {**frozen_settings["model"]["speech"], **kind}
    model = build_model(resolve_recipe(frozen_settings))
    layer_states, seen = model.speech_encoder.layer_states, []

    def spied(waveforms: torch.Tensor, mask: torch.Tensor) -> Any:
        # Both are told to each thread by itself.
        seen.append((len(waveforms), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))
        return layer_states(waveforms, mask)

    monkeypatch.setattr(model.speech_encoder, "layer_states", spied)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        precision = "autocast" if arithmetic == "bf16" else "fp32"
        encoder = Encoder(model, precision=precision, cache=feature_cache(FeatureSettings(), corpus.root))
        (kept,) = cache_features([(encoder, corpus, False)], model, progress=False)
    finally:
        torch.set_num_threads(before)
    assert sorted(seen, reverse=True) == [(clips, True, arithmetic == "bf16") for clips in passes]
    for row, clip in enumerate(corpus.rows):
        waveform = model.processor.prepare_speech(load_audio(corpus.clip_path(clip)))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=arithmetic == "bf16"):
            states, _ = layer_states(*model.processor.pad([waveform]))
        found = states_of(kept, row).float()
        near = 1e-3 if arithmetic == "fp32" else 0.1
        torch.testing.assert_close(found, torch.cat(states).float(), rtol=near, atol=near)


def loader_of(manifest: Manifest, model: SpeechImageModel, **options: Any) -> Any:
    return SpeechImageLoader(
        manifest,
        prepare_speech=model.processor.prepare_speech,
        prepare_image=model.processor.prepare_image,
        **({"batch_size": 4, "seed": 1, "drop_last": False} | options),
    )


def test_positions_of_either_loader_are_the_other_s(frozen_settings: dict[str, Any], corpus: Manifest) -> None:
    model = build_model(resolve_recipe(frozen_settings))
    kept = keep(model, corpus)
    files = loader_of(corpus, model, batch_size=1)
    features = FeatureLoader(files, kept)
    expected = [[batch.rows for batch in files] for _ in range(3)]
    taken = [batch.rows for batch, _ in zip(features, range(2), strict=False)]
    assert taken == expected[0][:2]
    state = json.loads(json.dumps(features.state_dict()))
    at = state["next_batch"]
    files.load_state_dict(state)
    assert [batch.rows for batch in files] == expected[0][at:]
    features.load_state_dict(files.state_dict())
    assert [batch.rows for batch in features] == expected[1]
    assert features.epoch == 2


def test_a_resumed_run_may_turn_kept_features_on_or_off(frozen_settings: dict[str, Any]) -> None:
    flags = ["--training.checkpoint_every=3", "--training.keep_checkpoints=9"]
    run = Path(frozen_settings["output"])
    Trainer(resolve_recipe(frozen_settings, flags)).fit()
    whole = losses(str(run))
    for keep_now, noise in (("auto", 0.0), ("off", 2e-3)):
        (run / "result.json").unlink()
        shutil.rmtree(run / "checkpoints" / "step-00000006")
        Trainer(resolve_recipe(frozen_settings, [*flags, f"--features.keep={keep_now}"])).fit("auto")
        for one, other in zip(whole, losses(str(run)), strict=True):
            assert one == pytest.approx(other, rel=noise, abs=noise)


def test_an_evaluation_with_cached_features_gives_the_same_scores(
    frozen_settings: dict[str, Any], tiny_manifest: Manifest, tmp_path: Path, encoded: Any
) -> None:
    settings = FeatureSettings(folder=str(tmp_path / "features"))
    model = build_model(resolve_recipe(frozen_settings))
    options: dict[str, Any] = {"by": ["novel_pair"], "resamples": 100, "keep_vectors": True, "progress": False}
    for seed in (0, 1):  # another head over the same encoders: their features are there already
        torch.manual_seed(seed)
        for parameter in model.speech_encoder.head.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        expected = evaluate(model, tiny_manifest, **options)
        found = evaluate(Encoder(model, cache=feature_cache(settings, tmp_path)), tiny_manifest, **options)
        assert encoded()[0] == (40 if seed == 0 else 0)
        assert found.speech is not None
        assert found.images is not None
        np.testing.assert_allclose(found.speech, expected.speech, atol=2e-3)
        np.testing.assert_allclose(found.images, expected.images, atol=2e-3)
        assert not np.allclose(expected.speech[0], expected.speech[1:], atol=2e-3)
        for group, truth in {"all": expected.overall, **expected.groups["novel_pair"]}.items():
            scores = {"all": found.overall, **found.groups["novel_pair"]}[group]
            # A clip whose vector is nearly another's may change places with it.
            assert scores.speech_to_image == pytest.approx(truth.speech_to_image, abs=6)
            assert scores.clips == truth.clips


def plan(seconds: list[float], crop: float | None) -> Plan:
    return Plan([], np.array(seconds), 0, 2, 0, 1, True, crop)


@pytest.mark.parametrize(
    ("flags", "crop", "reason"),
    [
        ([], None, None),
        ([], 2.0, None),
        ([], 1.5, "data.crop_seconds is 1.5"),
        (["--model.frozen_dropout=true"], None, "model.frozen_dropout"),
        (["--features.keep=off"], None, "features.keep is off"),
        (["--model.speech_trainable=1"], None, "model.speech_trainable is 1"),
        (["--model.image_trainable=all"], None, "model.image_trainable is all"),
    ],
)
def test_features_are_kept_unless_something_forbids_it(
    flags: list[str], crop: float | None, reason: str | None
) -> None:
    recipe: Recipe = resolve_recipe({"model": {"frozen_dropout": False}}, flags)
    found = why_recomputed(recipe, plan([1.0, 2.0], crop), HubertConfig())
    assert found is None if reason is None else reason in (found or "")


def test_frozen_dropout_forbids_nothing_where_hubert_has_none() -> None:
    """As HuBERT large and hubert-nano."""
    none = HubertConfig(hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0)
    assert why_recomputed(resolve_recipe({}), plan([1.0], None), none) is None


def test_a_run_whose_features_cannot_be_kept_says_why_and_keeps_none(
    frozen_settings: dict[str, Any], encoded: Any
) -> None:
    Trainer(resolve_recipe(frozen_settings, ["--model.speech_trainable=1", "--training.steps=1"])).fit()
    assert encoded() == (0, 0)
    assert not Path(frozen_settings["features"]["folder"]).exists()


@pytest.mark.parametrize("keep_now", ["auto", "off"])
def test_all_images_of_the_split_are_negatives(frozen_settings: dict[str, Any], tmp_path: Path, keep_now: str) -> None:
    manifest = Path(frozen_settings["data"]["manifest"])
    copy = shutil.copytree(manifest.parent, tmp_path / "copy") / manifest.name
    damaged = Manifest.read(copy).select("train").images()[1].image
    (copy.parent / damaged).write_bytes(b"this is no image")
    flags = ["--contrastive.negatives=all", f"--features.keep={keep_now}", f"--data.manifest={copy}"]
    with pytest.raises(MediaError, match=re.escape(damaged)):
        Trainer(resolve_recipe(frozen_settings, flags)).compare_with_all()
    trainer = Trainer(resolve_recipe(frozen_settings, [*flags, "--data.on_bad_file=skip", "--training.steps=2"]))
    trainer.fit()
    task = trainer.objective.tasks["contrastive"]
    assert isinstance(task, ContrastiveTask)
    assert task.among is not None
    train = trainer.data.train_rows
    used = [number for number, row in enumerate(train.images()) if row.image != damaged]
    assert 1 < len(used) == len(train.images()) - 1
    assert task.among.ids.tolist() == used
    batch = next(iter(trainer.loader)).to("cpu")
    own = torch.nn.functional.normalize(trainer.objective.features(batch)[1].vector.float(), dim=-1)
    among = task.among.vectors[torch.searchsorted(task.among.ids, batch.image_ids)]
    torch.testing.assert_close(among, own, atol=2e-3, rtol=0)


def test_clips_have_gaps_in_training_alone(frozen_settings: dict[str, Any]) -> None:
    flags = ["--speech_noise.clips=1", "--speech_noise.share=0.9", "--speech_noise.source=zeros"]
    trainer = Trainer(resolve_recipe(frozen_settings, flags))
    batch = trainer.data.val_batch()
    plain = Trainer(resolve_recipe(frozen_settings)).objective.eval().features(batch)[0].vector
    assert torch.equal(trainer.objective.eval().features(batch)[0].vector, plain)
    assert not torch.allclose(trainer.objective.train().features(batch)[0].vector, plain, rtol=1e-2)


def test_bad_files_are_refused_by_name_or_left_out_as_the_file_loader_does(
    frozen_settings: dict[str, Any], corpus: Manifest
) -> None:
    model = build_model(resolve_recipe(frozen_settings))
    for name in ("1.wav", "4.wav"):  # the same rubbish twice
        (corpus.root / name).write_bytes(b"this is no sound")
    (corpus.root / "3.wav").unlink()
    with pytest.raises(MediaError, match=r"1\.wav|3\.wav|4\.wav"):
        keep(model, corpus)
    kept = keep(model, corpus, skip=True)
    assert {Path(path).name for path in kept.bad} == {"1.wav", "3.wav", "4.wav"}
    files = loader_of(corpus, model, on_bad_file="skip", batch_size=2)
    features = FeatureLoader(files, kept)
    for _ in range(2):
        assert [batch.rows for batch in features] == [batch.rows for batch in files]
    assert [path for path, _ in features.bad_files] == [path for path, _ in files.bad_files]


def test_a_recipe_file_names_the_settings_of_features(tmp_path: Path) -> None:
    save_recipe(resolve_recipe({}, ["--features.keep=off", "--head.speech_layers=[0, -1]"]), tmp_path / "recipe.yaml")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert (recipe.features.keep, recipe.head.speech_layers) == ("off", [0, -1])
