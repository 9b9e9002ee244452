"""Checkpoints as users have them: older forms give what transformers gives, damaged ones an error of one line."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from saysee import SpeechImageModel
from saysee.errors import CheckpointError, ConfigError
from saysee.model.configuration import SpeechImageConfig
from saysee.model.loading import PlainClip
from saysee.model.pretrained.weights import load_clip, load_hubert
from saysee.model.processor import ImagePreparation


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_values_in_the_second_dictionaries_of_older_clips_override_the_first(clip_folder):
    values = json.loads((clip_folder / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        values[f"{part}_dict"] = {name: value for name, value in values[part].items() if name != "hidden_act"}
        values[part] |= {"hidden_act": "gelu", "layer_norm_eps": 0.1}  # the default is quick_gelu
    change(clip_folder / "config.json", **values)
    expected = CLIPConfig.from_pretrained(clip_folder)
    clip = load_clip(clip_folder, text=True)
    assert clip.config.text_config.hidden_act == expected.text_config.hidden_act == "quick_gelu"
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        wanted = CLIPModel.from_pretrained(clip_folder).eval().get_image_features(pixels).pooler_output
        torch.testing.assert_close(clip.encode_image(pixels)[0], wanted)
    change(clip_folder / "config.json", logit_scale_init_value=2)
    assert load_clip(clip_folder, text=True).logit_scale.is_floating_point()


@pytest.mark.parametrize(
    "values",
    [
        {"num_attention_heads": 0},
        {"num_conv_pos_embedding_groups": 7},
        {"hidden_dropout": 2.0},
        {"num_hidden_layers": -1},
        {"conv_stride": ["5"] * 7},
        {"model_type": "wav2vec2"},
    ],
)
def test_a_configuration_that_no_hubert_has_is_an_error(hubert_folder, values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        SpeechImageConfig(values)
    change(hubert_folder / "config.json", **values)
    word = "kind 'wav2vec2'" if "model_type" in values else next(iter(values))
    with pytest.raises(CheckpointError, match=f"hubert: .*{word}") as raised:
        load_hubert(hubert_folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
def test_a_part_of_clip_that_is_no_dictionary_is_an_error(clip_folder, part):
    change(clip_folder / "config.json", **{part: "large"})
    with pytest.raises(CheckpointError, match=f"{part} is 'large'"):
        PlainClip(clip_folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_weights_are_an_error_that_names_the_file_and_runs_nothing(hubert_folder, name):
    (hubert_folder / "model.safetensors").unlink()
    for content, word in ((b"", name), (b"x" * 999, name), (b"version https://git-lfs.github.com/spec/v1\n", "lfs")):
        (hubert_folder / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=word) as raised:
            load_hubert(hubert_folder)
        assert "weights_only" not in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("tokenizer.json", "", r"tokenizer\.json"),
        ("tokenizer.json", "[]", r"tokenizer\.json"),
        ("tokenizer_config.json", '{"model_max_length": "77"}', "model_max_length"),
        ("tokenizer_config.json", '{"model_max_length": 1}', "model_max_length"),
        ("preprocessor_config.json", '{"size": "32"}', "size"),
        ("preprocessor_config.json", '{"size": {"shortest_edge": 32, "longest_edge": 40}}', "longest_edge"),
        ("preprocessor_config.json", '{"size": 32, "crop_size": {"shortest_edge": 32}}', "crop_size"),
        ("preprocessor_config.json", '{"size": 40, "crop_size": 40}', "40 x 40 .* 32 x 32"),
        ("preprocessor_config.json", '{"size": 32, "do_center_crop": false}', "32 x 64 .* 32 x 32"),
        ("preprocessor_config.json", '{"size": 32, "crop_size": 32, "image_mean": [0.5, 0.5]}', "shapes"),
        ("preprocessor_config.json", '{"size": 32, "crop_size": 32, "resample": 9}', "9"),
    ],
)
def test_a_damaged_processor_is_an_error_of_one_line(clip_folder, hubert_folder, name, content, word):
    for file in clip_folder.glob("processor_config.json"):
        file.unlink()
    (clip_folder / name).write_text(content)
    for load in (PlainClip, lambda place: SpeechImageModel.from_encoders(hubert_folder, place)):
        with pytest.raises(CheckpointError, match=rf"{clip_folder.name}.*{word}") as raised:
            load(clip_folder)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("size", [32, [32, 32], {"height": 32, "width": 32}, {"shortest_edge": 32, "height": None}])
def test_sizes_of_all_releases_are_read(tmp_path, size):
    values = {"size": size, "crop_size": [32, 32] if isinstance(size, list) else 32}
    known = {name: value for name, value in size.items() if value} if isinstance(size, dict) else size
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values | {"size": known}))
    image = Image.radial_gradient("L").resize((50, 90))
    expected = CLIPImageProcessorPil.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(ImagePreparation.of(values)(image), expected)


def test_a_tokenizer_in_the_form_of_openai_s_first_files_gives_the_same_tokens(clip_folder):
    letters = [letter + end for letter in "abcdeghnot" for end in ("", "</w>")]
    known = [*letters, "th", "the</w>", "<|startoftext|>", "<|endoftext|>"]
    (clip_folder / "tokenizer.json").unlink()
    (clip_folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(known)}))
    (clip_folder / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 9}
    (clip_folder / "tokenizer_config.json").write_text(json.dumps(settings))
    texts = ["The cat", "a\tdog and", "the <|endoftext|> hat", "", "the " * 20]
    own = AutoTokenizer.from_pretrained(clip_folder)
    tokenizer = PlainClip(clip_folder).processor.tokenizer
    for text in texts:
        assert tokenizer.ids([text], 77)[0].tolist() == own(text, truncation=True, max_length=9)["input_ids"]
    (clip_folder / "vocab.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"vocab\.json"):
        PlainClip(clip_folder)
