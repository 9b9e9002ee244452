"""The recipes of the package's encoders, and the verb that runs them."""

from __future__ import annotations

import json
from dataclasses import asdict, fields

import pytest
import yaml
from lab.nano.recipes import ENCODERS, load_settings

from saysee.cli import main
from saysee.errors import ConfigError
from saysee.settings.recipe import RECIPES

TINY = {
    "clip": (
        "--width 32 --layers 1 --text_width 32 --text_layers 1 --projection 16 --image_size 32 --patch_size 8 "
        "--scenes 8 --held_out 4 --seeing_steps 1 --seeing_batch 4 --loop.steps 2 --loop.batch_size 4"
    ),
    "hubert": "--width 32 --layers 1 --utterances 4 --held_out 2 --words 10 --loop.steps 2 --loop.batch_size 2",
}


def refused(action, *words):
    with pytest.raises(ConfigError) as refusal:
        action()
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("name", ENCODERS)
def test_the_recipe_of_the_package_is_the_defaults_and_leaves_nothing_of_size_out(name):
    values = yaml.safe_load((RECIPES / "nano" / f"{name}.yaml").read_text(encoding="utf-8"))
    defaults = ENCODERS[name].settings()
    assert load_settings(name, None, []) == defaults
    assert set(values) == {field.name for field in fields(defaults)}
    assert values == {
        name: {key: each for key, each in value.items() if key in values[name]} if isinstance(value, dict) else value
        for name, value in asdict(defaults).items()
    }
    for loop in (value for value in values.values() if isinstance(value, dict)):
        assert {"steps", "batch_size", "lr", "warmup_steps", "seed"} <= set(loop)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_file_and_flags_override_and_what_they_leave_out_stays(name, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("width: 64\nloop: {steps: 7, batch_size: 3, lr: 1.0e-3, warmup_steps: 1}\n")
    settings = load_settings(name, str(path), ["--loop.steps", "9", "--loop.lr=3e-4"])
    assert (settings.width, settings.loop.steps, settings.loop.batch_size, settings.loop.lr) == (64, 9, 3, 3e-4)
    assert settings.layers == ENCODERS[name].settings().layers
    assert settings.loop.weight_decay == ENCODERS[name].settings().loop.weight_decay


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wdth: 64", ["wdth"]),
        ("width: broad", ["width", "broad"]),
        ("width: 2.5", ["width"]),
        ("loop: {stepps: 3}", ["stepps"]),
        ("loop: 3", ["loop"]),
        ("- width", []),
        ("just words", []),
        ("width: [", ["is not YAML"]),
        ("width: 40", ["width", "multiple of 32"]),
        ("loop: {steps: 0, batch_size: 3, lr: 1.0e-3, warmup_steps: 1}", ["steps", "at least 1"]),
    ],
)
def test_mistakes_in_a_file_are_told_in_one_line(text, words, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    refused(lambda: load_settings("hubert", str(path), []), "mine.yaml", *words)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--nothing", "3"], "nothing"),
        (["--loop.nothing", "3"], "nothing"),
        (["--loop.steps", "many"], "steps"),
        (["--loop.steps"], "steps"),
        (["words"], "words"),
        (["--width", "33"], "width"),
        (["--loop.batch_size", "0"], "loop.batch_size"),
        (["--feed_forward", "0"], "feed_forward"),
    ],
)
def test_wrong_flags_are_told_in_one_line(flags, word):
    refused(lambda: load_settings("clip", None, flags), word)


def test_a_file_that_is_not_there_is_told_with_what_to_do(tmp_path):
    refused(lambda: load_settings("clip", str(tmp_path / "none.yaml"), []), "none.yaml", "leave it out")
    refused(lambda: load_settings("clip", str(tmp_path), []), str(tmp_path))


# ---------------------------------------------------------------------- the verb


def test_the_verb_is_in_the_help_and_says_what_it_takes(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "pretrain" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for word in ("hubert", "clip", "--to", "--recipe", "--loop.steps"):
        assert word in text


@pytest.mark.parametrize("name", ENCODERS)
def test_the_verb_makes_an_encoder_that_loads_offline(name, tmp_path, capsys, clip_config, hubert_configs):
    from saysee.model.retriever import SpeechImageModel

    if name == "hubert":
        pytest.importorskip("espeakng_loader", reason="needs the 'scenes' extra")
    words = ["pretrain", name, "--to", str(tmp_path / "run"), *TINY[name].split()]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["step"] == 2
    assert result["model"] == str(tmp_path / "run" / "model")
    speech, image = (result["model"], clip_config) if name == "hubert" else (hubert_configs["base"], result["model"])
    from saysee.model.configuration import HeadConfig

    assert SpeechImageModel.from_encoders(speech, image, head=HeadConfig(heads=1)) is not None

    assert main(words) == 0  # finished: nothing is done again
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 1
    assert "loss" in lines[0]
    assert (tmp_path / "run" / "log.jsonl").read_text().count("\n") == 2

    assert main([*words, "--loop.seed", "1"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("saysee: ")
    assert "--to" in error


def test_mistakes_of_the_verb_are_told_in_one_line(tmp_path, capsys):
    for words, told in (
        (["clip", "--to", str(tmp_path), "--recipe", str(tmp_path / "none.yaml")], "none.yaml"),
        (["clip", "--to", str(tmp_path), "--wdth", "3"], "wdth"),
    ):
        assert main(["pretrain", *words]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert told in lines[0]
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "flamingo", "--to", str(tmp_path)])
    assert stop.value.code == 2
    assert "flamingo" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
