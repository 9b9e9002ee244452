"""The encoders that come with the package: found by name, without a network, small, and described correctly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from saysee.encoding.encoder import Encoder
from saysee.errors import CheckpointError
from saysee.media.audio import load_audio
from saysee.model.pretrained.weights import ENCODERS, load_clip, load_hubert, place_of
from saysee.model.processor import SpeechImageProcessor
from saysee.model.retriever import SpeechImageModel

NAMES = ("hubert-nano", "clip-nano")


@pytest.fixture(scope="module")
def model():
    return SpeechImageModel.from_encoders("saysee/hubert-nano", "saysee/clip-nano")


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_package_is_its_folder(name):
    assert Path(place_of(f"saysee/{name}")) == ENCODERS / name


def test_any_other_name_or_path_stays_as_it_is(tmp_path):
    for name in ("facebook/hubert-base-ls960", "hubert-nano", "sayseeing/hubert-nano", "./saysee/hubert-nano"):
        assert place_of(name) == name
    assert place_of(tmp_path / "saysee" / "mine") == str(tmp_path / "saysee" / "mine")


def test_a_folder_of_ones_own_goes_before_the_package(tmp_path, monkeypatch):
    (tmp_path / "saysee" / "clip-nano").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert place_of("saysee/clip-nano") == "saysee/clip-nano"


@pytest.mark.parametrize("name", ["saysee/hubert-giga", "saysee/", "saysee/README.md"])
def test_a_name_that_the_package_does_not_have_is_an_error_with_those_it_has(name):
    with pytest.raises(CheckpointError) as raised:
        place_of(name)
    assert "\n" not in str(raised.value)
    for known in NAMES:
        assert f"saysee/{known}" in str(raised.value)


@pytest.mark.parametrize(
    "load",
    [
        lambda name: load_hubert(name),
        lambda name: load_clip(name, text=True),
        lambda name: load_clip(name, text=False),
        lambda name: SpeechImageModel.from_pretrained(name),
        lambda name: SpeechImageProcessor.from_pretrained(name),
        lambda name: SpeechImageProcessor.from_sources(name, None, 64, text=False),
        lambda name: SpeechImageProcessor.from_sources(None, name, 64, text=False),
        lambda name: Encoder(name),
    ],
)
def test_no_entry_point_looks_for_a_name_of_the_package_on_the_hub(load, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError(f"asks the hub: {arguments} {options}")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(CheckpointError, match="saysee/clip-nano"):
        load("saysee/no-such")


def test_the_loaders_and_processors_know_the_names_of_the_package():
    assert load_hubert("saysee/hubert-nano").config.num_hidden_layers > 1
    assert load_clip("saysee/clip-nano", text=False).config.text_config is None
    processor = SpeechImageProcessor.from_sources("saysee/hubert-nano", "saysee/clip-nano", 64, text=True)
    assert processor.tokenizer is not None
    with pytest.raises(CheckpointError, match="clip-nano"):
        SpeechImageModel.from_pretrained("saysee/clip-nano")  # a CLIP of the package is no SaySee model


# ---------------------------------------------------------------------- the encoders


def test_both_load_without_a_network_as_float32_with_less_than_four_million_parameters(model):
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    for part in (model.speech_encoder.hubert, model.image_encoder.clip):
        assert 1e6 < sum(parameter.numel() for parameter in part.parameters()) <= 4e6


def test_they_are_small_on_disk_and_hold_what_loading_needs():
    files = [path for name in NAMES for path in (ENCODERS / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    for name in NAMES:
        found = {path.name for path in (ENCODERS / name).iterdir()}
        assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= found
        assert json.loads((ENCODERS / name / "config.json").read_text())["dtype"] == "float16"
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in (ENCODERS / "clip-nano").iterdir()}


def test_all_three_kinds_of_query_give_unit_vectors_of_one_width(model, tiny_manifest):
    rows = tiny_manifest.rows[::5][:4]
    speech = model.encode_speech([tiny_manifest.clip_path(row) for row in rows])
    images = model.encode_images([tiny_manifest.image_path(row) for row in rows])
    texts = model.encode_text([row.text for row in rows])
    for vectors in (speech, images, texts):
        assert vectors.shape == (4, model.config.projection_dim)
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


def test_clip_nano_finds_images_of_the_corpus_by_their_captions(model, tiny_manifest):
    """It must know what it was made for: by chance, one of 24 is first."""
    rows = tiny_manifest.rows[::5]
    scores = (
        model.encode_text([row.text for row in rows])
        @ model.encode_images([tiny_manifest.image_path(row) for row in rows]).T
    )
    assert len(rows) == 24
    assert (scores.argmax(axis=1) == np.arange(24)).mean() > 0.9


def test_frames_of_hubert_nano_tell_one_sound_from_another(model, tiny_manifest):
    clips = [tiny_manifest.clip_path(row) for row in tiny_manifest.rows[:2]]
    processor = model.processor
    waveforms, mask = processor.pad([processor.prepare_speech(load_audio(clip)) for clip in clips])
    with torch.no_grad():
        states = model.speech_encoder.hubert(waveforms, mask.sum(dim=1))[-1]
    assert torch.isfinite(states).all()
    assert states.std(dim=(0, 1)).mean() > 0.1


# ---------------------------------------------------------------------- the cards


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_it_is_how_it_was_made_and_what_it_is_not_for(name):
    text = (ENCODERS / name / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    head = yaml.safe_load(front)
    assert (head["license"], head["library_name"]) == ("apache-2.0", "transformers")
    assert head["tags"]
    for word in ("What it is for", "What it is not for", "test split", "docs/nano.md", f"saysee/{name}"):
        assert word in body, word
    kind = name.split("-")[0]
    assert f"python -m lab.nano.{kind} --to runs/{name}" in body
    assert "espeak-ng" in body if kind == "hubert" else "drawn scenes" in body


@pytest.mark.parametrize("name", NAMES)
def test_the_card_tells_the_sizes_of_the_configuration(name, model):
    text = (ENCODERS / name / "README.md").read_text(encoding="utf-8")
    config = json.loads((ENCODERS / name / "config.json").read_text())
    parts = [config] if name == "hubert-nano" else [config["vision_config"], config["text_config"]]
    for part in parts:
        assert f"{part['num_hidden_layers']} layers of width {part['hidden_size']}" in text
    module = model.speech_encoder.hubert if name == "hubert-nano" else model.image_encoder.clip
    millions = sum(parameter.numel() for parameter in module.parameters()) / 1e6
    assert f"{millions:.1f} M parameters" in text


def test_words_beyond_the_vocabulary_are_named(model):
    unknown = Encoder(model).unknown_words
    assert unknown("Two large striped Stars, and a ring-ring") == []
    assert unknown("coffee") == ["coffee"]
    assert unknown("A red coffee, two dogs’ bowls ☕; café-coffee!") == ["coffee", "dogs", "☕", "café"]


def test_what_the_image_encoder_knows_is_said_by_its_configuration(model, tmp_path):
    said = "drawn scenes of colored shapes, not photographs"
    assert Encoder(model).trained_on == said
    model.save_pretrained(tmp_path)
    assert Encoder(tmp_path).trained_on == said


def test_loading_a_clip_does_not_import_the_compiler_of_torch():
    code = (
        "import sys; from saysee.model.loading import PlainClip; PlainClip('saysee/clip-nano'); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
