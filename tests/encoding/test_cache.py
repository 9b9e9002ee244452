"""Cached features are never those of another file or model, and safe when processes share them or are killed."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from feature_tools import keep, states_of, write_clip
from refusals import refused
from saysee.data.manifest import Manifest
from saysee.encoding.cache import FeatureCache, FileFingerprints
from saysee.encoding.encoder import Encoder
from saysee.encoding.features import CachedSide
from saysee.errors import ConfigError, MediaError, SaySeeError
from saysee.files import fingerprint
from saysee.model.configuration import HeadConfig
from saysee.model.retriever import SpeechImageModel
from saysee.settings.reading import resolve_recipe, save_recipe
from saysee.settings.recipe import FeatureSettings
from saysee.training.data import feature_cache
from saysee.training.objective import build_model
from saysee.training.trainer import Trainer
from saysee_process import Started, start_saysee, wait_for

PATIENCE = 300


def test_a_changed_file_is_computed_again_also_with_its_old_size_and_time(
    frozen_settings: dict[str, Any], corpus: Manifest, encoded: Any
) -> None:
    model = build_model(resolve_recipe(frozen_settings))
    before = states_of(keep(model, corpus), 2)
    assert encoded() == (6, 3)
    keep(model, corpus)
    assert encoded() == (0, 0)
    path = corpus.root / "2.wav"
    old = path.stat()
    write_clip(path, 99, 2000 + 900 * 2)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert path.stat().st_size == old.st_size
    kept = keep(model, corpus)
    assert encoded() == (1, 0)
    assert not torch.allclose(states_of(kept, 2), before, atol=0.1)
    Image.new("RGB", (32, 32), "white").save(corpus.root / "1.png")
    keep(model, corpus)
    assert encoded() == (0, 1)


def test_a_file_with_a_remembered_fingerprint_is_read_again_once_it_changes(
    frozen_settings: dict[str, Any],
    corpus: Manifest,
    encoded: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the fingerprints remembered, as they are of files that were not written in the last seconds."""
    monkeypatch.setattr("saysee.encoding.cache.STILL_SECONDS", -1.0)
    model = build_model(resolve_recipe(frozen_settings))
    keep(model, corpus)
    remembered = json.loads((corpus.root / "features" / "files.json").read_text())
    assert len(remembered) == 9
    assert encoded() == (6, 3)
    with monkeypatch.context() as context:
        context.setattr("saysee.encoding.cache._read_fingerprint", lambda path: pytest.fail(f"read {path}"))
        keep(model, corpus)
    assert encoded() == (0, 0)
    path = corpus.root / "2.wav"
    old = path.stat()
    write_clip(path, 99, 2000 + 900 * 2)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    keep(model, corpus)
    assert encoded() == (1, 0)


def test_changed_weights_preprocessing_or_layers_are_computed_again(
    frozen_settings: dict[str, Any], corpus: Manifest, encoded: Any
) -> None:
    model = build_model(resolve_recipe(frozen_settings))
    first = states_of(keep(model, corpus), 0)
    assert encoded() == (6, 3)
    with torch.no_grad():
        model.speech_encoder.head.cls.add_(1)  # the head is trained: it is no part of what is kept
    keep(model, corpus)
    assert encoded() == (0, 0)
    weight = model.speech_encoder.hubert.encoder.layers[1].attention.q_proj.weight
    old = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] += 0.5
    changed = keep(model, corpus)
    assert encoded() == (6, 0)
    assert not torch.equal(states_of(changed, 0), first)
    with torch.no_grad():
        weight.copy_(old)
        model.image_encoder.clip.visual_projection.weight[0, 0] += 1
    keep(model, corpus)
    assert encoded() == (0, 3)
    model.processor.feature_extractor.do_normalize = True  # a HuBERT of the base kind takes raw waveforms
    model.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    keep(model, corpus)
    assert encoded() == (6, 3)
    fewer = build_model(resolve_recipe(frozen_settings, ["--head.speech_layers=[-1]"]))
    kept = keep(fewer, corpus)
    assert encoded()[0] == 6
    torch.testing.assert_close(states_of(kept, 0), first[-1:], rtol=1e-3, atol=1e-3)


KEEPING = """
import sys
from saysee.settings.reading import load_recipe
from saysee.encoding import features
features.SHARD_FILES = 4
from saysee.training.trainer import Trainer
Trainer(load_recipe(sys.argv[1])).cache_features()
"""


def start_keeping(settings: dict[str, Any], folder: Path) -> Started:
    folder.mkdir(exist_ok=True)
    save_recipe(resolve_recipe(settings), folder / "recipe.yaml")
    return start_saysee(folder / "recipe.yaml", program=KEEPING)


def keys_in(folder: Path) -> list[list[str]]:
    """The keys of each finished shard of the hidden states."""
    return [
        list(json.loads(index.read_text())["places"])
        for index in sorted(folder.glob("speech-*/*.json"))
        if index.name != "about.json"
    ]


def test_killed_it_keeps_the_finished_shards_and_repeats_none_of_them(
    frozen_settings: dict[str, Any], tmp_path: Path, encoded: Any
) -> None:
    folder = Path(frozen_settings["features"]["folder"])
    process = start_keeping(frozen_settings, tmp_path / "killed")
    wait_for(lambda: len(keys_in(folder)) >= 3, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = keys_in(folder)
    finished = sum(len(keys) for keys in done)
    assert 3 * 4 <= finished < 60 + 20
    trainer = Trainer(resolve_recipe(frozen_settings))
    trainer.cache_features()
    assert encoded()[0] == 60 + 20 - finished
    every = [key for keys in keys_in(folder) for key in keys]
    assert len(every) == len(set(every)) == 60 + 20
    assert len(next(iter(trainer.loader))) == 8


def test_two_runs_that_start_at_once_both_end_with_whole_features(
    frozen_settings: dict[str, Any], tmp_path: Path, encoded: Any
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
    trainer.cache_features()
    assert encoded() == (0, 0)
    assert [batch.rows for batch in trainer.loader] == [batch.rows for batch in files]


def test_a_run_uses_what_another_has_finished_meanwhile(
    frozen_settings: dict[str, Any], corpus: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other finishes everything while this one has only looked at what is missing."""
    model = build_model(resolve_recipe(frozen_settings))
    settings = FeatureSettings()
    this = Encoder(model, precision="fp32", cache=feature_cache(settings, corpus.root))
    look = CachedSide.missing

    def slow_look(side: CachedSide, *arguments: Any) -> Any:
        missing = look(side, *arguments)
        monkeypatch.setattr(CachedSide, "missing", look)
        keep(model, corpus)
        monkeypatch.setattr("saysee.encoding.sides.load_audio", lambda *_, **__: pytest.fail("computed twice"))
        return missing

    monkeypatch.setattr(CachedSide, "missing", slow_look)
    clips = [str(corpus.clip_path(row)) for row in corpus]
    assert this.encode("clip", clips, "features", progress=False).gather([5])[0].shape[0] == 3


@pytest.mark.parametrize("damage", ["values", "index"])
def test_a_damaged_shard_is_reported_and_computed_again(
    frozen_settings: dict[str, Any], corpus: Manifest, damage: str, encoded: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_model(resolve_recipe(frozen_settings))
    expected = states_of(keep(model, corpus), 4)
    (values,) = (corpus.root / "features").glob("speech-*/*.values")
    hurt = values if damage == "values" else values.with_suffix(".json")
    with hurt.open("rb+") as file:
        file.truncate(hurt.stat().st_size - 2)
    encoded()
    with caplog.at_level("WARNING"):
        kept = keep(model, corpus)
    assert str(values) in caplog.text
    assert encoded() == (6, 0)
    assert torch.equal(states_of(kept, 4), expected)


def test_an_error_of_reading_removes_no_features(
    frozen_settings: dict[str, Any], corpus: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as too many open files, or a network drive that is out of reach for a moment."""
    model = build_model(resolve_recipe(frozen_settings))
    keep(model, corpus)
    (values,) = (corpus.root / "features").glob("speech-*/*.values")

    def out_of_reach(*_: Any, **__: Any) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_text", out_of_reach)
    with pytest.raises(SaySeeError, match="Too many open files"):
        keep(model, corpus)
    assert values.exists()
    assert values.with_suffix(".json").exists()


def test_cached_features_are_scored_within_bounded_memory(
    tmp_path: Path, corpus: Manifest, tiny_model_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [corpus.clip_path(row) for row in corpus.rows]
    encoder = Encoder(tiny(tiny_model_settings), cache=FeatureCache(tmp_path / "features"))
    vectors = encoder.encode_speech(clips)
    side, most = encoder.side("clip"), max(map(encoder.encode("clip", clips, "features").size, range(len(clips))))
    sizes: list[int] = []
    gather = side.gather

    def gathered(items: Any) -> Any:
        states, mask = gather(items)
        sizes.append(states.numel())
        return states, mask

    monkeypatch.setattr(side, "gather", gathered)
    monkeypatch.setattr("saysee.encoding.encoder.BATCH_VALUES", 2 * most)
    np.testing.assert_allclose(encoder.encode_speech(clips), vectors, atol=1e-5)
    assert 1 < len(sizes) < len(clips)
    assert max(sizes) <= 2 * most


def test_a_file_that_disappears_while_it_is_encoded_is_an_error(
    tmp_path: Path, corpus: Manifest, tiny_model_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [corpus.clip_path(row) for row in corpus.rows]
    encoder = Encoder(tiny(tiny_model_settings), cache=FeatureCache(tmp_path / "features"))
    fill = CachedSide._fill

    def disappearing(*values: Any) -> Any:
        errors = fill(*values)
        clips[1].unlink()
        return errors

    monkeypatch.setattr(CachedSide, "_fill", disappearing)
    bad: dict[int, Any] = {}
    vectors = encoder.encode("clip", clips, bad=bad)
    assert list(bad) == [1]
    assert np.isfinite(vectors).all(axis=1).tolist() == [True, False, *[True] * 4]
    refused(MediaError, lambda: encoder.encode("clip", clips), clips[1].name)


def tiny(settings: dict[str, Any]) -> SpeechImageModel:
    return SpeechImageModel.from_encoders(settings["speech"], settings["image"], head=HeadConfig(heads=2))


def test_a_key_that_is_missing_is_an_error_for_its_size_too(tmp_path: Path) -> None:
    store = FeatureCache(tmp_path).store("speech", {})
    for ask in (store.size, store.read):
        with pytest.raises(SaySeeError, match="try again"):
            ask("of a file that has just changed")


def test_interrupted_it_keeps_the_fingerprints_that_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saysee.encoding.cache.STILL_SECONDS", -1.0)
    paths = [str(tmp_path / f"{number}.wav") for number in range(500)]
    for number, path in enumerate(paths):
        Path(path).write_bytes(number.to_bytes(2, "big"))
    read: list[bytes] = []

    def counted(file: Any) -> str:
        read.append(file.read())
        if int.from_bytes(read[-1], "big") == 400:
            raise KeyboardInterrupt
        return fingerprint(read[-1])

    monkeypatch.setattr("saysee.encoding.cache.fingerprint", counted)
    with pytest.raises(KeyboardInterrupt):
        FileFingerprints(tmp_path / "files.json").of(paths, progress=False)
    read.clear()
    monkeypatch.setattr("saysee.encoding.cache.fingerprint", lambda file: fingerprint(read.append(b"") or file))
    found = FileFingerprints(tmp_path / "files.json").of(paths, progress=False)
    assert len(set(found.values())) == 500
    assert 100 <= len(read) <= 200  # a batch of 64 is lost at most


def test_fingerprints_that_cannot_be_kept_are_a_warning_and_hide_no_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("saysee.encoding.cache.STILL_SECONDS", -1.0)
    monkeypatch.setattr("saysee.encoding.cache._BATCH", 1)
    paths = [str(tmp_path / name) for name in ("a.wav", "b.wav")]
    for path in paths:
        Path(path).write_bytes(b"a")
    kept = tmp_path / "files.json"
    kept.mkdir()  # which no file replaces
    assert FileFingerprints(kept).of(paths, progress=False) == dict.fromkeys(paths, fingerprint(b"a"))
    assert str(kept) in caplog.text

    def interrupted(file: Any) -> str:
        if file.name == paths[1]:
            raise KeyboardInterrupt
        return fingerprint(file)

    monkeypatch.setattr("saysee.encoding.cache.fingerprint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        FileFingerprints(kept).of(paths, progress=False)


def test_unfinished_files_of_a_killed_run_are_removed_once_they_are_old(
    frozen_settings: dict[str, Any], corpus: Manifest
) -> None:
    model = build_model(resolve_recipe(frozen_settings))
    keep(model, corpus)
    (store,) = (corpus.root / "features").glob("speech-*")
    left = [store / ".writing-0123", store / "abc.values"]
    fresh = store / ".writing-4567-def.json"  # another process may be writing it
    for path in (*left, fresh):
        path.write_bytes(b"half")
    for path in left:
        os.utime(path, (0, 0))
    keep(model, corpus)
    assert [path.exists() for path in (*left, fresh)] == [False, False, True]


def test_the_size_is_known_before_and_over_the_limit_it_is_an_error(
    frozen_settings: dict[str, Any], corpus: Manifest
) -> None:
    model = build_model(resolve_recipe(frozen_settings))
    with pytest.raises(ConfigError) as raised:
        keep(model, corpus, limit_gb=1e-6)
    message = str(raised.value)
    for word in ("features.limit_gb", "1e-06", "head.speech_layers", "all 3 take", "[-1]", "features.keep to off"):
        assert word in message
    assert "\n" not in message
    assert not list((corpus.root / "features").glob("*/*.values"))
    encoder = Encoder(model, precision="fp32", cache=feature_cache(FeatureSettings(), corpus.root))
    paths = {
        "clip": [str(corpus.clip_path(row)) for row in corpus],
        "image": [str(corpus.image_path(row)) for row in corpus],
    }
    stated = [encoder.missing(kind, paths[kind]).bytes for kind in ("clip", "image")]
    keep(model, corpus)
    kept = [
        sum(path.stat().st_size for path in corpus.root.glob(f"features/{side}-*/*.values"))
        for side in ("speech", "image")
    ]
    assert stated == kept
    whole, last = (float(size) for size in re.findall(r"(?:all 3 take|\[-1\]) ([\d.e-]+) GB", message))
    assert whole * 1e9 == pytest.approx(kept[0], rel=0.01)
    assert last == pytest.approx(whole / 3, rel=0.01)


def test_a_run_over_the_limit_leaves_its_folder_free_for_other_settings(frozen_settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"features\.limit_gb"):
        Trainer(resolve_recipe(frozen_settings, ["--features.limit_gb=1e-6"])).fit()
    assert Trainer(resolve_recipe(frozen_settings, ["--head.speech_layers=[-1]"])).fit()["steps"] == 6


def test_a_folder_that_cannot_be_created_is_an_error(frozen_settings: dict[str, Any], corpus: Manifest) -> None:
    (corpus.root / "file").write_text("in the way")
    model = build_model(resolve_recipe(frozen_settings))
    with pytest.raises(SaySeeError, match=r"file.*features\.folder"):
        keep(model, corpus, folder=str(corpus.root / "file"))
