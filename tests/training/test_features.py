"""Kept features change nothing but the time: the same batches, losses and scores, and never those of another file."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from saysee.data.loader import Plan, build_loader
from saysee.data.manifest import Manifest, Row
from saysee.encoding.precision import arithmetic_of
from saysee.errors import ConfigError, MediaError, SaySeeError
from saysee.evaluation.protocols import evaluate
from saysee.media.audio import load_audio
from saysee.model.retriever import SpeechImageModel
from saysee.settings.reading import load_recipe, resolve_recipe, save_recipe
from saysee.settings.recipe import FeatureSettings, Recipe
from saysee.training import feature_computing
from saysee.training.feature_loader import FeatureLoader
from saysee.training.features import KeptFeatures, evaluate_kept, keep_features, why_recomputed
from saysee.training.log_records import read_metrics
from saysee.training.objective import build_model
from saysee.training.trainer import Trainer

PATIENCE = 300
STATED = re.compile(r"features of frozen encoders: ([\d,]+) clips \(.* GB\) and ([\d,]+) pictures")


@pytest.fixture
def frozen_settings(tiny_settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The tiny recipe with frozen encoders, whole clips, and features of its own."""
    tiny_settings["model"] |= {"speech_trainable": 0, "image_trainable": 0}
    tiny_settings["data"]["crop_seconds"] = None
    tiny_settings["features"] = {"folder": str(tmp_path / "features")}
    return tiny_settings


@pytest.fixture
def corpus(tmp_path: Path) -> Manifest:
    """Six clips of noise and three pictures, in a folder that a test may change."""
    root = tmp_path / "corpus"
    root.mkdir()
    rows = []
    for number in range(6):
        write_clip(root / f"{number}.wav", number, 2000 + 900 * number)
        image = number // 2
        Image.new("RGB", (32, 32), (40 * image, 200 - 30 * image, 7)).save(root / f"{image}.png")
        rows.append(Row(f"{number}.wav", f"{image}.png", f"picture {image}", "test"))
    return Manifest(rows, root)


def write_clip(path: Path, seed: int, samples: int) -> None:
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.1, samples), 16_000)


def keep(model: SpeechImageModel, manifest: Manifest, skip: bool = False, **settings: Any) -> KeptFeatures:
    chosen = FeatureSettings(**settings)
    kept = KeptFeatures(model, chosen, manifest.root, "fp32", workers=0)
    keep_features([(kept, manifest, skip)], chosen, progress=False)
    return kept


def computed(capsys: pytest.CaptureFixture[str]) -> tuple[int, int]:
    """How many clips and pictures were said to be computed since the last time."""
    found = STATED.findall(capsys.readouterr().err)
    return sum(int(clips) for clips, _ in found), sum(int(pictures) for _, pictures in found)


def states_of(kept: KeptFeatures, manifest: Manifest, row: int) -> torch.Tensor:
    paths = str(manifest.clip_path(manifest.rows[row])), str(manifest.image_path(manifest.rows[row]))
    return kept.batch(paths[:1], paths[1:], torch.tensor([0]), [row]).to("cpu").states[:, 0]


def losses(run: str) -> list[dict[str, float]]:
    names = ("loss", "gradient_norm", "mean_R@1", "reconstruction_loss", "reconstruction_without_clean")
    return [
        {name: line[name] for name in ("step", *names) if name in line and line["kind"] == kind}
        for kind in ("train", "val")
        for line in read_metrics(Path(run))
        if line["kind"] == kind
    ]


# --- nothing but the time changes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_with_kept_features_is_training_without(
    frozen_settings: dict[str, Any],
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "saysee")
    overrides = [f"--training.precision={precision}"]
    output = frozen_settings["output"]
    Trainer(resolve_recipe(frozen_settings, [*overrides, "--features.keep=off"])).fit()
    assert "features are recomputed at each step: features.keep is off" in caplog.text
    Trainer(resolve_recipe(frozen_settings, [*overrides, f"--output={output}-kept"])).fit()
    assert computed(capsys)[0] == 60 + 20

    def opened(*_: Any, **__: Any) -> None:
        pytest.fail("a file was decoded though its features are kept")

    for module in ("training.feature_computing", "data.loader", "model.retriever"):
        monkeypatch.setattr(f"saysee.{module}.load_audio", opened)
        monkeypatch.setattr(f"saysee.{module}.load_image", opened)
    Trainer(resolve_recipe(frozen_settings, [*overrides, f"--output={output}-again"])).fit()
    assert computed(capsys) == (0, 0)
    # What is saved has the same encoders and preprocessing: it finds what the training kept for validation.
    best = SpeechImageModel.from_pretrained(f"{output}-kept/best")
    settings = FeatureSettings(**frozen_settings["features"])
    evaluate_kept(best, Manifest.read(frozen_settings["data"]["manifest"]), features=settings, split="val", workers=0)
    assert computed(capsys) == (0, 0)
    without, kept, again = (losses(run) for run in (output, f"{output}-kept", f"{output}-again"))
    assert len(without) == 6 + 2
    assert again == kept
    # Without instructions for bf16, torch's own way is coarser: gradients were seen to differ by 5 %.
    noise = 2e-3 if precision == "fp32" else 2e-2 if arithmetic_of("auto", "cpu") == "bf16" else 0.1
    for one, other in zip(without, kept, strict=True):
        assert one == pytest.approx(other, rel=noise, abs=noise)


def test_kept_hidden_states_and_patches_are_what_the_encoders_give(
    frozen_settings: dict[str, Any], corpus: Manifest
) -> None:
    model = build_model(resolve_recipe(frozen_settings))
    kept = keep(model, corpus)
    files = loader_of(corpus, model)
    for batch, found in zip(files, FeatureLoader(files.plan, corpus, kept, {}), strict=True):
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
@pytest.mark.parametrize(("norm", "passes"), [("group", [6]), ("layer", [3, 3])])
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
        kept = KeptFeatures(model, FeatureSettings(), corpus.root, arithmetic, workers=0)
        keep_features([(kept, corpus, False)], FeatureSettings(), progress=False)
    finally:
        torch.set_num_threads(before)
    assert seen == [(clips, True, arithmetic == "bf16") for clips in passes]
    for row, clip in enumerate(corpus.rows):
        waveform = model.processor.prepare_speech(load_audio(corpus.clip_path(clip)))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=arithmetic == "bf16"):
            states, _ = layer_states(*model.processor.pad([waveform]))
        found = states_of(kept, corpus, row).float()
        near = 1e-3 if arithmetic == "fp32" else 0.1
        torch.testing.assert_close(found, torch.cat(states).float(), rtol=near, atol=near)


def loader_of(manifest: Manifest, model: SpeechImageModel, **options: Any) -> Any:
    return build_loader(
        manifest,
        prepare_speech=model.processor.prepare_speech,
        prepare_image=model.processor.prepare_image,
        **({"batch_size": 4, "seed": 1, "drop_last": False} | options),
    )


def test_positions_of_either_loader_are_the_other_s(frozen_settings: dict[str, Any], corpus: Manifest) -> None:
    model = build_model(resolve_recipe(frozen_settings))
    kept = keep(model, corpus)
    files = loader_of(corpus, model, batch_size=1)
    features = FeatureLoader(files.plan, corpus, kept, {})
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


def test_evaluate_kept_gives_evaluate_s_scores(
    frozen_settings: dict[str, Any], tiny_manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = FeatureSettings(folder=str(tmp_path / "features"))
    model = build_model(resolve_recipe(frozen_settings))
    options: dict[str, Any] = {"by": ["novel_pair"], "resamples": 100, "keep_vectors": True, "progress": False}
    for seed in (0, 1):  # another head over the same encoders: their features are there already
        torch.manual_seed(seed)
        model.speech_encoder.head.reset_parameters()
        expected = evaluate(model, tiny_manifest, **options)
        found = evaluate_kept(model, tiny_manifest, features=settings, workers=0, **options)
        assert computed(capsys)[0] == (40 if seed == 0 else 0)
        assert found.speech is not None
        assert found.images is not None
        np.testing.assert_allclose(found.speech, expected.speech, atol=2e-3)
        np.testing.assert_allclose(found.images, expected.images, atol=2e-3)
        assert not np.allclose(expected.speech[0], expected.speech[1:], atol=2e-3)
        assert found.encode_speech_seconds is None
        for group, truth in {"all": expected.overall, **expected.groups["novel_pair"]}.items():
            scores = {"all": found.overall, **found.groups["novel_pair"]}[group]
            # A clip whose vector is nearly another's may change places with it.
            assert scores.speech_to_image == pytest.approx(truth.speech_to_image, abs=6)
            assert scores.clips == truth.clips
    off = evaluate_kept(model, tiny_manifest, features=FeatureSettings(keep="off"), **options)
    np.testing.assert_array_equal(off.speech, expected.speech)


# --- never stale ------------------------------------------------------------------------------------------------------


def test_a_changed_file_is_computed_again_also_with_its_old_size_and_time(
    frozen_settings: dict[str, Any], corpus: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_model(resolve_recipe(frozen_settings))
    before = states_of(keep(model, corpus), corpus, 2)
    assert computed(capsys) == (6, 3)
    keep(model, corpus)
    assert computed(capsys) == (0, 0)
    path = corpus.root / "2.wav"
    old = path.stat()
    write_clip(path, 99, 2000 + 900 * 2)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert path.stat().st_size == old.st_size
    kept = keep(model, corpus)
    assert computed(capsys) == (1, 0)
    assert not torch.allclose(states_of(kept, corpus, 2), before, atol=0.1)
    Image.new("RGB", (32, 32), "white").save(corpus.root / "1.png")
    keep(model, corpus)
    assert computed(capsys) == (0, 1)


def test_a_file_that_was_still_for_long_is_read_again_once_it_changes(
    frozen_settings: dict[str, Any],
    corpus: Manifest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the fingerprints remembered, as they are of files that were not written in the last seconds."""
    monkeypatch.setattr("saysee.encoding.cache.STILL_SECONDS", -1.0)
    model = build_model(resolve_recipe(frozen_settings))
    keep(model, corpus)
    remembered = json.loads((corpus.root / "features" / "files.json").read_text())
    assert len(remembered) == 9
    assert computed(capsys) == (6, 3)
    monkeypatch.setattr("saysee.encoding.cache._read_fingerprint", lambda path: pytest.fail(f"read {path}"))
    keep(model, corpus)
    assert computed(capsys) == (0, 0)
    monkeypatch.undo()
    path = corpus.root / "2.wav"
    old = path.stat()
    write_clip(path, 99, 2000 + 900 * 2)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    keep(model, corpus)
    assert computed(capsys) == (1, 0)


def test_changed_weights_preprocessing_or_layers_are_computed_again(
    frozen_settings: dict[str, Any], corpus: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_model(resolve_recipe(frozen_settings))
    first = states_of(keep(model, corpus), corpus, 0)
    assert computed(capsys) == (6, 3)
    with torch.no_grad():
        model.speech_encoder.head.cls.add_(1)  # the head is trained: it is no part of what is kept
    keep(model, corpus)
    assert computed(capsys) == (0, 0)
    weight = model.speech_encoder.hubert.encoder.layers[1].attention.q_proj.weight
    old = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] += 0.5
    changed = keep(model, corpus)
    assert computed(capsys) == (6, 0)
    assert not torch.equal(states_of(changed, corpus, 0), first)
    with torch.no_grad():
        weight.copy_(old)
        model.image_encoder.clip.visual_projection.weight[0, 0] += 1
    keep(model, corpus)
    assert computed(capsys) == (0, 3)
    model.processor.feature_extractor.do_normalize = False
    model.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    keep(model, corpus)
    assert computed(capsys) == (6, 3)
    fewer = build_model(resolve_recipe(frozen_settings, ["--model.speech_layers=[-1]"]))
    kept = keep(fewer, corpus)
    assert computed(capsys)[0] == 6
    torch.testing.assert_close(states_of(kept, corpus, 0), first[-1:], rtol=1e-3, atol=1e-3)


# --- safe -------------------------------------------------------------------------------------------------------------

KEEPING = """
import sys
from saysee.settings.reading import load_recipe
from saysee.training import feature_computing
feature_computing.SHARD_FILES = 4
from saysee.training.trainer import Trainer
Trainer(load_recipe(sys.argv[1])).keep_features()
"""


def start_keeping(settings: dict[str, Any], folder: Path) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    save_recipe(resolve_recipe(settings), folder / "recipe.yaml")
    command = [sys.executable, "-c", KEEPING, str(folder / "recipe.yaml")]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def keys_in(folder: Path) -> list[list[str]]:
    """The keys of each finished shard of the hidden states."""
    return [
        list(json.loads(index.read_text())["places"])
        for index in sorted(folder.glob("speech-*/*.json"))
        if index.name != "about.json"
    ]


def test_killed_it_keeps_the_finished_shards_and_repeats_none_of_them(
    frozen_settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(frozen_settings["features"]["folder"])
    process = start_keeping(frozen_settings, tmp_path / "killed")
    deadline = time.monotonic() + PATIENCE
    while len(keys_in(folder)) < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = keys_in(folder)
    finished = sum(len(keys) for keys in done)
    assert 3 * 4 <= finished < 60 + 20
    trainer = Trainer(resolve_recipe(frozen_settings))
    trainer.keep_features()
    assert computed(capsys)[0] == 60 + 20 - finished
    every = [key for keys in keys_in(folder) for key in keys]
    assert len(every) == len(set(every)) == 60 + 20
    assert len(next(iter(trainer.loader))) == 8


def test_two_runs_that_start_at_once_both_end_with_whole_features(
    frozen_settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(frozen_settings["features"]["folder"])
    processes = [start_keeping(frozen_settings, tmp_path / name) for name in ("one", "other")]
    for process in processes:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        assert "damaged" not in errors
    assert len({key for keys in keys_in(folder) for key in keys}) == 60 + 20
    trainer = Trainer(resolve_recipe(frozen_settings))
    files = list(trainer.loader)
    trainer.keep_features()
    assert computed(capsys) == (0, 0)
    assert [batch.rows for batch in trainer.loader] == [batch.rows for batch in files]


def test_a_run_takes_what_another_has_finished_meanwhile(
    frozen_settings: dict[str, Any], corpus: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other finishes everything while this one has only looked at what is missing."""
    model = build_model(resolve_recipe(frozen_settings))
    settings = FeatureSettings()
    this = KeptFeatures(model, settings, corpus.root, "fp32", workers=0)
    missing = this.missing(corpus, skip=False, progress=False)
    keep(model, corpus)
    monkeypatch.setattr(feature_computing, "load_audio", lambda source: pytest.fail("computed twice"))
    assert this.compute(missing, progress=False) == {}
    assert states_of(this, corpus, 5).shape[0] == 3


@pytest.mark.parametrize("damage", ["values", "index"])
def test_a_damaged_shard_is_told_and_computed_again(
    frozen_settings: dict[str, Any], corpus: Manifest, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_model(resolve_recipe(frozen_settings))
    expected = states_of(keep(model, corpus), corpus, 4)
    (values,) = (corpus.root / "features").glob("speech-*/*.values")
    hurt = values if damage == "values" else values.with_suffix(".json")
    with hurt.open("rb+") as file:
        file.truncate(hurt.stat().st_size - 2)
    capsys.readouterr()
    kept = keep(model, corpus)
    errors = capsys.readouterr().err
    assert f"{values} is damaged" in errors
    assert "features of frozen encoders: 6 clips" in errors
    assert torch.equal(states_of(kept, corpus, 4), expected)


def test_what_a_killed_run_left_half_written_is_removed_once_it_is_old(
    frozen_settings: dict[str, Any], corpus: Manifest
) -> None:
    model = build_model(resolve_recipe(frozen_settings))
    keep(model, corpus)
    (store,) = (corpus.root / "features").glob("speech-*")
    left = [store / ".writing-0123", store / "abc.values"]
    fresh = store / ".writing-4567"
    for path in (*left, fresh):
        path.write_bytes(b"half")
    for path in left:
        os.utime(path, (0, 0))
    keep(model, corpus)
    assert [path.exists() for path in (*left, fresh)] == [False, False, True]


# --- limits, layers, reasons ------------------------------------------------------------------------------------------


def test_the_size_is_stated_as_it_comes_out_and_over_the_limit_it_is_refused(
    frozen_settings: dict[str, Any], corpus: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_model(resolve_recipe(frozen_settings))
    with pytest.raises(ConfigError) as refusal:
        keep(model, corpus, limit_gb=1e-6)
    message = str(refusal.value)
    for word in ("features.limit_gb", "1e-06", "model.speech_layers", "all 3 take", "[-1]", "features.keep to off"):
        assert word in message
    assert "\n" not in message
    assert not list((corpus.root / "features").glob("*/*.values"))
    capsys.readouterr()
    keep(model, corpus)
    stated = capsys.readouterr().err
    sizes = [float(size) * 1e9 for size in re.findall(r"\(([\d.e-]+) GB\)", stated)]
    kept = [
        sum(path.stat().st_size for path in corpus.root.glob(f"features/{side}-*/*.values"))
        for side in ("speech", "image")
    ]
    assert sizes == pytest.approx(kept, rel=0.01)
    whole, last = (float(size) for size in re.findall(r"(?:all 3 take|\[-1\]) ([\d.e-]+) GB", stated))
    assert whole * 1e9 == pytest.approx(kept[0], rel=0.01)
    assert last == pytest.approx(whole / 3, rel=0.01)


def test_a_refused_run_leaves_its_folder_free_for_other_settings(frozen_settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"features\.limit_gb"):
        Trainer(resolve_recipe(frozen_settings, ["--features.limit_gb=1e-6"])).fit()
    assert Trainer(resolve_recipe(frozen_settings, ["--model.speech_layers=[-1]"])).fit()["steps"] == 6


def test_a_folder_that_cannot_be_made_is_told(frozen_settings: dict[str, Any], corpus: Manifest) -> None:
    (corpus.root / "file").write_text("in the way")
    model = build_model(resolve_recipe(frozen_settings))
    with pytest.raises(SaySeeError, match=r"file.*features\.folder"):
        keep(model, corpus, folder=str(corpus.root / "file"))


def plan(seconds: list[float], crop: float | None) -> Plan:
    return Plan([], np.array(seconds), 2, 0, 1, True, crop)


@pytest.mark.parametrize(
    ("flags", "crop", "reason"),
    [
        ([], None, None),
        ([], 2.0, None),
        ([], 1.5, "data.crop_seconds is 1.5"),
        (["--features.keep=off"], None, "features.keep is off"),
        (["--model.speech_trainable=1"], None, "model.speech_trainable is 1"),
        (["--model.image_trainable=all"], None, "model.image_trainable is all"),
    ],
)
def test_features_are_kept_unless_something_forbids_it(
    flags: list[str], crop: float | None, reason: str | None
) -> None:
    recipe: Recipe = resolve_recipe({}, flags)
    found = why_recomputed(recipe, plan([1.0, 2.0], crop))
    assert found is None if reason is None else reason in (found or "")


def test_a_run_whose_features_cannot_be_kept_says_why_and_keeps_none(
    frozen_settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "saysee")
    Trainer(resolve_recipe(frozen_settings, ["--model.speech_trainable=1", "--training.steps=1"])).fit()
    assert "run: features are recomputed at each step: model.speech_trainable is 1" in caplog.text
    assert not Path(frozen_settings["features"]["folder"]).exists()


# --- bad files --------------------------------------------------------------------------------------------------------


def test_bad_files_are_refused_by_name_or_left_out_as_the_file_loader_does(
    frozen_settings: dict[str, Any], corpus: Manifest
) -> None:
    model = build_model(resolve_recipe(frozen_settings))
    for name in ("1.wav", "4.wav"):  # the same rubbish twice
        (corpus.root / name).write_bytes(b"this is no sound")
    (corpus.root / "3.wav").unlink()
    with pytest.raises(MediaError, match=r"1\.wav|3\.wav|4\.wav"):
        keep(model, corpus)
    settings = FeatureSettings()
    kept = KeptFeatures(model, settings, corpus.root, "fp32", workers=0)
    bad = keep_features([(kept, corpus, True)], settings, progress=False)
    assert {Path(path).name for path in bad} == {"1.wav", "3.wav", "4.wav"}
    files = loader_of(corpus, model, on_bad_file="skip", batch_size=2)
    features = FeatureLoader(files.plan, corpus, kept, bad)
    for _ in range(2):
        assert [batch.rows for batch in features] == [batch.rows for batch in files]
    assert [path for path, _ in features.bad_files] == [path for path, _ in files.bad_files]


def test_a_recipe_file_names_the_settings_of_features(tmp_path: Path) -> None:
    save_recipe(resolve_recipe({}, ["--features.keep=off", "--model.speech_layers=[0, -1]"]), tmp_path / "recipe.yaml")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert (recipe.features.keep, recipe.head.speech_layers) == ("off", [0, -1])
