"""The model: made from checkpoints, saved and loaded; its vectors of files; what trains."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors import safe_open
from transformers import CLIPModel, CLIPVisionModelWithProjection, HubertModel

from saysee.errors import CheckpointError, MediaError, SaySeeError
from saysee.media.audio import load_audio
from saysee.model.configuration import FusionConfig, HeadConfig
from saysee.model.retriever import SpeechImageModel

FUSION = FusionConfig(width=16, layers=1, heads=2, query="image", global_token="blank")


@pytest.fixture
def model(hubert_configs, clip_config):
    torch.manual_seed(0)
    return SpeechImageModel.from_encoders(hubert_configs["base"], clip_config)


@pytest.fixture
def wav_files(tmp_path, sounds):
    paths = []
    for number, clip in enumerate(sounds):
        paths.append(tmp_path / f"{number}.wav")
        soundfile.write(paths[-1], clip, 16_000)
    return paths


@pytest.fixture
def image_files(tmp_path):
    rng = np.random.default_rng(4)
    paths = []
    for number in range(5):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 255, (40 + number, 60, 3), dtype=np.uint8)).save(paths[-1])
    return paths


def weights_equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def fails(error, action, *words):
    with pytest.raises(error) as raised:
        action()
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message
    return message


def test_configurations_give_random_weights_and_are_not_changed(hubert_configs, clip_config):
    before = copy.deepcopy(hubert_configs["base"]).to_dict(), copy.deepcopy(clip_config).to_dict()
    torch.manual_seed(0)
    model = SpeechImageModel.from_encoders(hubert_configs["base"], clip_config, head=HeadConfig(layers=2, heads=4))
    assert (hubert_configs["base"].to_dict(), clip_config.to_dict()) == before
    assert not model.training
    assert model.fusion is None
    assert model.config.projection_dim == 24
    assert model.config.patch_grid == 4
    assert len(model.speech_encoder.head.layers.layers) == 2


def test_the_same_seed_gives_the_same_model_with_and_without_fusion(hubert_configs, clip_config):
    states = []
    for fusion in (None, FUSION):
        torch.manual_seed(5)
        model = SpeechImageModel.from_encoders(hubert_configs["base"], clip_config, fusion=fusion)
        states.append({name: v for name, v in model.state_dict().items() if not name.startswith("fusion.")})
    assert weights_equal(*states)


def test_folders_give_the_checkpoints_weights_processors_and_tokenizer(hubert_folder, clip_folder):
    model = SpeechImageModel.from_encoders(hubert_folder, str(clip_folder))
    hubert, clip = HubertModel.from_pretrained(hubert_folder), CLIPModel.from_pretrained(clip_folder)
    assert weights_equal(model.speech_encoder.hubert.state_dict(), hubert.state_dict())
    assert weights_equal(model.image_encoder.clip.state_dict(), clip.state_dict())
    assert model.processor.image_processor.crop_size["height"] == 32
    assert model.encode_text(["two green stars"]).shape == (1, 24)


def test_without_text_the_vision_tower_is_taken_alone(hubert_folder, clip_folder, image_files):
    model = SpeechImageModel.from_encoders(hubert_folder, clip_folder, text=False)
    whole = SpeechImageModel.from_encoders(hubert_folder, clip_folder)
    assert not model.image_encoder.has_text
    assert model.processor.tokenizer is None
    np.testing.assert_allclose(model.encode_images(image_files), whole.encode_images(image_files), atol=1e-6)
    fails(SaySeeError, lambda: model.encode_text(["two"]), "text=True")


def test_a_vision_only_checkpoint_is_a_clip_too(hubert_folder, clip_folder, clip_config, tmp_path, image_files):
    whole = SpeechImageModel.from_encoders(hubert_folder, clip_folder)
    clip_config.vision_config.projection_dim = clip_config.projection_dim
    vision = CLIPVisionModelWithProjection(clip_config.vision_config)
    weights = whole.image_encoder.clip.state_dict()
    vision.load_state_dict({name: weights[name] for name in vision.state_dict()})
    vision.save_pretrained(tmp_path / "vision")
    shutil.copy(clip_folder / "preprocessor_config.json", tmp_path / "vision")
    model = SpeechImageModel.from_encoders(hubert_folder, tmp_path / "vision")
    assert not model.config.has_text
    np.testing.assert_allclose(model.encode_images(image_files), whole.encode_images(image_files), atol=1e-6)


def test_an_old_checkpoint_gives_equal_weights(hubert_folder, clip_folder, tmp_path):
    new = HubertModel.from_pretrained(hubert_folder)
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    old = {}
    for name, value in new.state_dict().items():
        for modern, ancient in names.items():
            name = name.replace(modern, ancient)
        old[f"hubert.{name}"] = value
    assert any(name.endswith("conv.weight_g") for name in old)
    shutil.copytree(hubert_folder, tmp_path / "old", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({**old, "lm_head.bias": torch.zeros(3)}, tmp_path / "old" / "pytorch_model.bin")
    model = SpeechImageModel.from_encoders(tmp_path / "old", clip_folder)
    assert weights_equal(model.speech_encoder.hubert.state_dict(), new.state_dict())


def test_a_checkpoint_that_cannot_be_used_is_an_error_of_one_line(hubert_folder, clip_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    saved = tmp_path / "saved"
    SpeechImageModel.from_encoders(hubert_folder, clip_folder).save_pretrained(saved)
    damaged, broken = tmp_path / "damaged", tmp_path / "broken"
    for copied in (damaged, broken):
        shutil.copytree(hubert_folder, copied)
        (copied / "model.safetensors").write_bytes(b"rubbish")
    (broken / "config.json").write_text("{")
    make, load = SpeechImageModel.from_encoders, SpeechImageModel.from_pretrained
    for place in (tmp_path / "none", tmp_path / "empty", broken, "nobody/nothing"):
        fails(CheckpointError, partial(make, place, clip_folder), place, "HuBERT", "give a folder")
        fails(CheckpointError, partial(make, hubert_folder, place), place, "CLIP", "give a folder")
        fails(CheckpointError, partial(load, place), place, "SaySee", "give a folder")
    fails(CheckpointError, lambda: make(damaged, clip_folder), damaged, "HuBERT")
    fails(CheckpointError, lambda: make(clip_folder, clip_folder), clip_folder, "HuBERT", "'clip'")
    fails(CheckpointError, lambda: make(hubert_folder, hubert_folder), hubert_folder, "CLIP", "'hubert'")
    fails(CheckpointError, lambda: make(hubert_folder, hubert_folder, text=False), hubert_folder, "CLIP")
    fails(CheckpointError, lambda: load(clip_folder), clip_folder, "SaySee", "'clip'")


@pytest.mark.parametrize("kind", ["hubert", "clip", "saysee"])
def test_a_checkpoint_with_missing_weights_is_an_error(kind, hubert_folder, clip_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    SpeechImageModel.from_encoders(hubert_folder, clip_folder).save_pretrained(tmp_path / "saysee")
    file = tmp_path / kind / "model.safetensors"
    weights = load_file(file)
    gone = next(name for name in sorted(weights) if name.endswith("q_proj.weight"))
    del weights[gone]
    save_file(weights, file, metadata={"format": "pt"})
    load = partial(SpeechImageModel.from_encoders, hubert_folder, clip_folder)
    if kind == "saysee":
        load = partial(SpeechImageModel.from_pretrained, tmp_path / kind)
    fails(CheckpointError, load, tmp_path / kind, "missing", gone)


def test_weights_without_their_processor_or_tokenizer_are_errors(hubert_folder, clip_folder):
    for file in clip_folder.glob("tokenizer*"):
        file.unlink()
    fails(CheckpointError, lambda: SpeechImageModel.from_encoders(hubert_folder, clip_folder), clip_folder, "tokenizer")
    SpeechImageModel.from_encoders(hubert_folder, clip_folder, text=False)
    (hubert_folder / "preprocessor_config.json").unlink()
    fails(
        CheckpointError,
        lambda: SpeechImageModel.from_encoders(hubert_folder, clip_folder, text=False),
        hubert_folder,
        "preprocessor_config.json",
    )


def saved_keys(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


@pytest.mark.parametrize("kind", ["base", "large"])
def test_what_is_saved_gives_the_same_vectors(kind, hubert_configs, clip_config, tmp_path, wav_files, image_files):
    model = SpeechImageModel.from_encoders(hubert_configs[kind], clip_config, head=HeadConfig(layers=2, heads=4))
    with torch.no_grad():
        model.speech_encoder.layer_mix.weights.normal_()
    model.save_pretrained(tmp_path / "saved")
    again = SpeechImageModel.from_pretrained(str(tmp_path / "saved"))
    assert not again.training
    assert weights_equal(again.state_dict(), model.state_dict())
    np.testing.assert_allclose(again.encode_speech(wav_files), model.encode_speech(wav_files), atol=1e-6)
    np.testing.assert_allclose(again.encode_images(image_files), model.encode_images(image_files), atol=1e-6)


def test_the_chosen_hidden_states_are_saved(hubert_configs, clip_config, tmp_path, wav_files):
    chosen = HeadConfig(speech_layers=[-2, 0])
    model = SpeechImageModel.from_encoders(hubert_configs["base"], clip_config, head=chosen)
    model.save_pretrained(tmp_path / "saved")
    again = SpeechImageModel.from_pretrained(tmp_path / "saved")
    assert again.speech_encoder.layers == [2, 0]
    np.testing.assert_allclose(again.encode_speech(wav_files), model.encode_speech(wav_files), atol=1e-6)


def test_fusion_is_only_saved_if_asked_for(model, tmp_path, wav_files):
    model.add_fusion(FUSION)
    vectors = model.encode_speech(wav_files)
    state = copy.deepcopy(model.state_dict())
    model.save_pretrained(tmp_path / "without")
    model.save_pretrained(tmp_path / "with", fusion=True)
    assert model.config.fusion == vars(FUSION)
    assert weights_equal(model.state_dict(), state)

    assert not [name for name in saved_keys(tmp_path / "without") if name.startswith("fusion.")]
    assert json.loads((tmp_path / "without" / "config.json").read_text())["fusion"] is None
    without = SpeechImageModel.from_pretrained(tmp_path / "without")
    assert without.fusion is None
    np.testing.assert_allclose(without.encode_speech(wav_files), vectors, atol=1e-6)

    kept = SpeechImageModel.from_pretrained(tmp_path / "with")
    assert kept.config.fusion == vars(FUSION)
    assert (kept.fusion.query, kept.fusion.global_token) == ("image", "blank")
    assert weights_equal(kept.state_dict(), state)
    np.testing.assert_allclose(kept.encode_speech(wav_files), vectors, atol=1e-6)


def test_the_processor_and_the_tokenizer_are_saved_beside(hubert_folder, clip_folder, tmp_path):
    model = SpeechImageModel.from_encoders(hubert_folder, clip_folder)
    model.processor.feature_extractor.do_normalize = False
    model.save_pretrained(tmp_path / "saved")
    again = SpeechImageModel.from_pretrained(tmp_path / "saved")
    assert again.processor.feature_extractor.do_normalize is False
    texts = ["two green stars", "a dog runs on the beach"]
    vectors = model.encode_text(texts)
    np.testing.assert_allclose(again.encode_text(texts), vectors, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_a_bf16_model_encodes_and_is_loaded_in_fp32_unless_asked(model, tmp_path, wav_files, image_files):
    speech, images = model.encode_speech(wav_files), model.encode_images(image_files)
    model.to(torch.bfloat16)
    for exact, rough in ((speech, model.encode_speech(wav_files)), (images, model.encode_images(image_files))):
        assert rough.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rough, axis=1), 1, atol=1e-5)
        assert (exact * rough).sum(1).min() > 0.99
    model.save_pretrained(tmp_path / "saved")
    assert SpeechImageModel.from_pretrained(tmp_path / "saved").dtype == torch.float32
    assert SpeechImageModel.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16).dtype == torch.bfloat16
    load = partial(SpeechImageModel.from_pretrained, tmp_path / "saved", torch_dtype=torch.bfloat16)
    fails(SaySeeError, load, "takes dtype", "torch_dtype")


def test_a_model_keeps_its_weights_when_another_is_copied_over_its_file(model, hubert_configs, clip_config, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    SpeechImageModel.from_encoders(hubert_configs["base"], clip_config).save_pretrained(tmp_path / "other")
    loaded = SpeechImageModel.from_pretrained(tmp_path / "saved")
    with (tmp_path / "saved" / "model.safetensors").open("r+b") as file:  # as cp, scp and rsync --inplace do
        file.write((tmp_path / "other" / "model.safetensors").read_bytes())
    assert weights_equal(loaded.state_dict(), model.state_dict())


def test_loading_is_silent(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    code = f"import saysee; saysee.SpeechImageModel.from_pretrained({str(tmp_path / 'saved')!r})"
    quiet = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    ended = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], env=quiet, capture_output=True)
    assert (ended.returncode, ended.stdout, [line for line in ended.stderr.splitlines() if b"Loading" not in line]) == (
        0,
        b"",
        [],
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_saved_files_have_the_mode_of_new_files(model, tmp_path, mask):
    before = os.umask(mask)
    try:
        model.save_pretrained(tmp_path / "saved")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "saved").iterdir()}
    assert set(modes.values()) == {0o666 & ~mask}, modes


def test_a_head_is_untrained_until_a_step_of_training(model, tmp_path):
    assert model.untrained
    model.save_pretrained(tmp_path / "saved")
    assert SpeechImageModel.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16).untrained
    model.train()
    optimizer = torch.optim.Adam(
        model.speech_encoder.head.parameters(), lr=1e-4
    )  # of a mix of one state, no more moves
    model(torch.randn(2, 4000), torch.ones(2, 4000, dtype=torch.bool), torch.randn(2, 3, 32, 32))[
        0
    ].vector.sum().backward()
    optimizer.step()
    assert not model.untrained
    model.save_pretrained(tmp_path / "trained")
    assert not SpeechImageModel.from_pretrained(tmp_path / "trained", dtype=torch.bfloat16).untrained


def test_clips_come_as_paths_bytes_or_arrays_in_order_and_any_batch_size(model, wav_files):
    vectors = model.encode_speech(wav_files, batch_size=1)
    assert vectors.shape == (5, 24)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    likeness = vectors @ vectors.T
    assert (likeness - np.eye(5)).max() < 0.9999  # equal vectors would not show the order

    mixed = [str(wav_files[0]), wav_files[1].read_bytes(), load_audio(wav_files[2]), wav_files[3], wav_files[4]]
    for batch_size in (1, 2, 8):
        found = model.encode_speech(mixed, batch_size=batch_size)
        assert (found * vectors).sum(1).min() > 1 - 1e-5
        np.testing.assert_allclose(found, vectors, atol=1e-4)


def test_arrays_of_another_rate_are_resampled(model):
    seconds = np.arange(32_000) / 32_000
    tone = (0.3 * np.sin(2 * np.pi * 300 * seconds) * (1 + np.sin(20 * seconds))).astype(np.float32)
    given = model.encode_speech([tone], sampling_rate=32_000)
    right = model.encode_speech([tone[::2]])
    default = model.encode_speech([tone])
    assert (given * right).sum() > max(0.999, (default * right).sum())


def test_images_come_as_paths_bytes_files_or_pillow_images(model, image_files):
    vectors = model.encode_images(image_files, batch_size=1)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors.dtype == np.float32
    with image_files[2].open("rb") as file:
        mixed = [
            str(image_files[0]),
            image_files[1].read_bytes(),
            file,
            Image.open(image_files[3]),
            io.BytesIO(image_files[4].read_bytes()),
        ]
        np.testing.assert_allclose(model.encode_images(mixed, batch_size=8), vectors, atol=1e-5)


def test_nothing_gives_no_rows(model):
    for encode in (model.encode_speech, model.encode_images):
        assert encode([]).shape == (0, 24)
        assert encode([]).dtype == np.float32


def test_a_single_input_is_an_error_instead_of_read_letter_by_letter(model, wav_files, image_files):
    clip = wav_files[0]
    for single in (str(clip), clip, clip.read_bytes(), load_audio(clip)):
        fails(SaySeeError, partial(model.encode_speech, single), "clips")
    with image_files[0].open("rb") as file:
        for single in (str(image_files[0]), image_files[0].read_bytes(), file, Image.open(image_files[0])):
            fails(SaySeeError, partial(model.encode_images, single), "images")


def test_a_bad_file_is_named_and_leaves_the_mode_as_it_was(model, tmp_path, wav_files):
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    model.train()
    fails(MediaError, lambda: model.encode_speech([wav_files[0], tmp_path / "bad.wav"]), "bad.wav")
    fails(MediaError, lambda: model.encode_images([tmp_path / "none.png"]), "none.png")
    assert model.training
    fails(SaySeeError, lambda: model.encode_speech(wav_files, batch_size=0), "batch_size")


def test_encoding_is_without_dropout_and_gives_the_training_mode_back(model, wav_files):
    vectors = model.encode_speech(wav_files)
    model.set_trainable(1, 0)
    model.train()
    modes = {name: module.training for name, module in model.named_modules()}
    np.testing.assert_allclose(model.encode_speech(wav_files), vectors, atol=1e-6)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert modes["speech_encoder.head"]
    model.eval()
    model.encode_speech(wav_files)
    assert not model.training


def test_text_is_only_where_a_tokenizer_is(model, hubert_configs, clip_config):
    fails(SaySeeError, lambda: model.encode_text(["two"]), "no text encoder")
    without = SpeechImageModel.from_encoders(hubert_configs["base"], clip_config, text=False)
    fails(SaySeeError, lambda: without.encode_text(["two"]), "no text encoder")


def test_similarity_is_the_cosine_whatever_the_lengths():
    a, b = np.array([[3.0, 0.0], [0.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 5.0], [-1.0, -1.0]])
    found = SpeechImageModel.similarity(a, b)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[1, 0, -np.sqrt(0.5)], [0, 0, 0]], atol=1e-6)
    assert SpeechImageModel.similarity(a[0], b[0]).shape == (1, 1)


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


HUBERT, CLIP = "speech_encoder.hubert.", "image_encoder.clip."


@pytest.mark.parametrize("speech", [0, 1, 3, "all"])
@pytest.mark.parametrize("image", [0, 2, "all"])
def test_exactly_what_is_asked_for_trains(model, speech, image):
    model.add_fusion(FUSION)
    model.set_trainable("all", "all")  # what was set before must not stay
    model.set_trainable(speech, image)
    names = {name for name, _ in model.named_parameters()}
    expected = {name for name in names if not name.startswith((HUBERT, CLIP))}
    if speech == "all":
        expected |= {name for name in names if name.startswith(HUBERT)}
    else:
        last = tuple(f"{HUBERT}encoder.layers.{layer}." for layer in range(3 - speech, 3))
        expected |= {name for name in names if name.startswith(last)}
    if image == "all":
        expected |= {name for name in names if name.startswith((CLIP + "vision_model.", CLIP + "visual_projection."))}
    elif image:
        last = tuple(f"{CLIP}vision_model.encoder.layers.{layer}." for layer in range(3 - image, 3))
        parts = (*last, CLIP + "vision_model.post_layernorm.", CLIP + "visual_projection.")
        expected |= {name for name in names if name.startswith(parts)}
    assert trained(model) == expected
    assert not any(name.startswith((CLIP + "text_", CLIP + "logit_scale")) for name in trained(model))

    model.train()
    assert model.speech_encoder.hubert.training == (speech != 0)
    assert model.image_encoder.clip.training == (image != 0)
    assert model.speech_encoder.head.training
    assert model.fusion.training


def test_frozen_encoders_are_in_evaluation_mode_at_once(model):
    model.train()
    model.set_trainable(0, 0)
    modules = [*model.speech_encoder.hubert.modules(), *model.image_encoder.clip.modules()]
    assert not any(module.training for module in modules)
    assert model.speech_encoder.head.training


@pytest.mark.parametrize(("speech", "image", "setting"), [(4, 0, "speech"), (-1, 0, "speech"), (0, 4, "image")])
def test_more_layers_than_there_are_is_an_error(model, speech, image, setting):
    fails(SaySeeError, lambda: model.set_trainable(speech, image), f"{setting}_trainable", "0 to 3 or all")


def test_training_the_last_layers_keeps_no_graph_of_the_frozen_convolutions(model):
    waveforms = torch.randn(1, 4000)
    for layers, graph in ((1, False), ("all", True), (2, False)):
        model.set_trainable(layers, 0)
        model.train()
        assert model.speech_encoder.hubert.feature_extractor(waveforms).requires_grad == graph
