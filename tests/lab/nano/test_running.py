"""The command lines of both encoders, and the settings by which the packaged ones were made."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml
from lab.nano.clip import ClipNanoSettings, pretrain_clip_nano
from lab.nano.hubert import HubertNanoSettings, pretrain_hubert_nano
from lab.nano.running import parser, run

import lab.nano
from saysee.errors import ConfigError

ENCODERS = {"clip": (ClipNanoSettings, pretrain_clip_nano), "hubert": (HubertNanoSettings, pretrain_hubert_nano)}
TINY = {
    "clip": (
        "--width 32 --layers 1 --text_width 32 --text_layers 1 --projection 16 --image_size 32 --patch_size 8 "
        "--scenes 8 --held_out 4 --seeing_steps 1 --seeing_batch 4 --loop.steps 2 --loop.batch_size 4"
    ),
    "hubert": "--width 32 --layers 1 --utterances 4 --held_out 2 --words 10 --loop.steps 2 --loop.batch_size 2",
}


def defaults(name):
    return Path(lab.nano.__file__).with_name(f"{name}.yaml")


def parsed(name, *words):
    made = parser(ENCODERS[name][0], defaults(name))
    return made.instantiate(made.parse_args(["--to", "x", *words]))


@pytest.mark.parametrize("name", ENCODERS)
def test_the_yaml_file_has_every_setting_and_is_the_default(name):
    values = yaml.safe_load(defaults(name).read_text(encoding="utf-8"))
    settings = ENCODERS[name][0]()
    assert set(values) == {field.name for field in fields(settings)}
    expected = asdict(settings)
    assert values["loop"] == {key: expected["loop"][key] for key in values["loop"]}
    assert {key: value for key, value in values.items() if key != "loop"} == {
        key: value for key, value in expected.items() if key != "loop"
    }
    found = parsed(name)
    assert {field.name: found[field.name] for field in fields(settings)} == {
        field.name: getattr(settings, field.name) for field in fields(settings)
    }


@pytest.mark.parametrize("name", ENCODERS)
def test_a_file_overrides_the_defaults_and_flags_override_both(name, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("width: 64\nloop: {steps: 7, batch_size: 3}\n")
    found = parsed(name, "--config", str(path), "--loop.steps", "9", "--loop.lr=3e-4")
    assert (found.width, found.loop.steps, found.loop.batch_size, found.loop.lr) == (64, 9, 3, 3e-4)
    assert found.layers == ENCODERS[name][0]().layers
    assert found.loop.weight_decay == ENCODERS[name][0]().loop.weight_decay


@pytest.mark.parametrize("words", [["--wdth", "3"], ["--loop.steps", "many"], ["--config", "none.yaml"], ["words"]])
def test_an_unknown_flag_or_value_ends_with_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        parsed("clip", *words)
    assert stop.value.code == 2
    assert words[0].split(".")[-1].strip("-") in capsys.readouterr().err


def test_a_value_out_of_range_is_reported_in_one_line(tmp_path, capsys):
    with pytest.raises(ConfigError, match="width is 33"):
        ClipNanoSettings(width=33)
    for words, name in ((["--width", "33"], "width is 33"), (["--loop.batch_size", "0"], "loop.batch_size is 0")):
        assert run(ClipNanoSettings, defaults("clip"), pretrain_clip_nano, ["--to", str(tmp_path), *words]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert name in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ENCODERS)
def test_the_program_makes_an_encoder_that_loads_and_a_finished_run_is_not_repeated(
    name, tmp_path, capsys, clip_config, hubert_configs
):
    from saysee.model.configuration import HeadConfig
    from saysee.model.retriever import SpeechImageModel

    if name == "hubert":
        pytest.importorskip("espeakng_loader", reason="needs the 'scenes' extra")
    settings, pretrain = ENCODERS[name]
    words = ["--to", str(tmp_path / "run"), *TINY[name].split()]
    assert run(settings, defaults(name), pretrain, words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["step"] == 2
    assert result["model"] == str(tmp_path / "run" / "model")
    speech, image = (result["model"], clip_config) if name == "hubert" else (hubert_configs["base"], result["model"])
    assert SpeechImageModel.from_encoders(speech, image, head=HeadConfig(heads=1)) is not None
    assert run(settings, defaults(name), pretrain, words) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == result["loss"]
    assert (tmp_path / "run" / "log.jsonl").read_text().count("\n") == 2
    assert run(settings, defaults(name), pretrain, [*words, "--loop.seed", "1"]) == 2
    assert str(tmp_path / "run") in capsys.readouterr().err
