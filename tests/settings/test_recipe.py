"""Recipes: what is written is what is trained, and every mistake is reported in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from saysee.errors import ConfigError
from saysee.settings.reading import load_recipe, recipe_help, recipe_names, resolve_recipe, save_recipe
from saysee.settings.recipe import DENOISING_PRESETS, HeadConfig, Recipe


@pytest.fixture
def write(tmp_path):
    def write_recipe(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_recipe


def refused(action, *words):
    with pytest.raises(ConfigError) as refusal:
        action()
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def test_an_empty_recipe_is_the_defaults_and_the_defaults_are_the_paper_preset(write):
    assert load_recipe(write("")) == Recipe()
    assert resolve_recipe({"denoising": {"preset": "paper"}}) == Recipe()


def test_what_a_file_leaves_out_keeps_its_default(write):
    recipe = load_recipe(write("data: {batch_size: 8}\noptimizer:\n  lr: 1.0e-3\n"))
    assert (recipe.data.batch_size, recipe.optimizer.lr) == (8, 1e-3)
    recipe.data.batch_size, recipe.optimizer.lr = Recipe().data.batch_size, Recipe().optimizer.lr
    assert recipe == Recipe()


def test_an_encoder_is_a_name_or_values_and_its_layers_a_number_or_all():
    recipe = resolve_recipe({"model": {"speech": {"hidden_size": 32, "conv_dim": [8, 8]}, "speech_trainable": "all"}})
    assert recipe.model.speech == {"hidden_size": 32, "conv_dim": [8, 8]}
    assert recipe.model.speech_trainable == "all"
    assert resolve_recipe({"model": {"speech": "some/name", "speech_trainable": 3}}).model.speech_trainable == 3
    assert load_recipe("nano", ["--model.image", "a/folder", "--model.text=false"]).model.image == "a/folder"


def test_a_preset_is_where_own_values_start_from():
    recipe = resolve_recipe({"denoising": {"preset": "paper", "share": 0.3, "loss": "cosine"}})
    assert (recipe.denoising.share, recipe.denoising.loss, recipe.denoising.weight) == (0.3, "cosine", 1.0)
    assert resolve_recipe({"denoising": {"preset": "off"}}).denoising.weight == 0
    assert resolve_recipe({"denoising": {"preset": "off", "weight": 0.5}}).denoising.weight == 0.5


@pytest.mark.parametrize("word", ["off", "'off'", '"off"'])
def test_off_is_a_preset_also_where_yaml_reads_false(word, write):
    assert load_recipe(write(f"denoising:\n  preset: {word}\n")).denoising.weight == 0


@pytest.mark.parametrize("word", ["off", "'off'"])
def test_features_are_off_also_where_yaml_reads_false(word, write):
    assert load_recipe(write(f"features: {{keep: {word}}}\n")).features.keep == "off"
    assert load_recipe(write(""), ["--features.keep", "off"]).features.keep == "off"


def test_a_preset_by_flag_is_taken_as_it_is_and_later_flags_add_to_it(write):
    path = write("denoising: {preset: paper, share: 0.3, noise: speech}")
    for flags in (["--denoising.preset", "paper"], ["--denoising.preset=paper"]):
        assert load_recipe(path, flags).denoising == Recipe().denoising
    mixed = load_recipe(path, ["--denoising.share=0.7", "--denoising.preset", "paper"]).denoising
    assert (mixed.share, mixed.noise) == (0.7, "image")
    last = load_recipe(path, ["--denoising.preset=paper", "--denoising.preset=off"])
    assert last.denoising.weight == 0
    assert load_recipe(path).denoising.share == 0.3


@pytest.mark.parametrize("preset", ["papper", "true", "[paper]", "{a: b}"])
def test_an_unknown_preset_is_refused_with_those_there_are(preset, write):
    refused(lambda: load_recipe(write(f"denoising: {{preset: {preset}}}")), "denoising.preset", *DENOISING_PRESETS)
    refused(lambda: load_recipe("nano", ["--denoising.preset"]), "denoising.preset", *DENOISING_PRESETS)


def test_flags_override_the_file_and_the_last_word_wins(write):
    path = write("output: runs/a\ndata: {batch_size: 8}\n")
    recipe = load_recipe(
        path,
        [
            "--data.batch_size",
            "16",
            "--data.batch_size=32",
            "--output=runs/b",
            "--data.crop_seconds=null",
            "--denoising.noise",
            "both",
            "--optimizer.betas=[0.8, 0.9]",
            "--contrastive.learn_temperature=true",
        ],
    )
    assert (recipe.data.batch_size, recipe.output, recipe.data.crop_seconds) == (32, "runs/b", None)
    assert (recipe.denoising.noise, recipe.optimizer.betas) == ("both", [0.8, 0.9])
    assert recipe.contrastive.learn_temperature is True


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dta: {}", ["unknown setting 'dta'", "data"]),
        ("data: {batch_sise: 3}", ["data.batch_sise", "batch_size"]),
        ("data: {batch_size: many}", ["batch_size", "many"]),
        ("data: {batch_size: 2.5}", ["batch_size"]),
        ("data: 3", ["data"]),
        ("denoising: off", ["denoising"]),
        ("denoising: {noise: texts}", ["denoising.noise", "texts", "image or speech or both"]),
        ("model: {speech_trainable: some}", ["model.speech_trainable", "some", "a whole number or all"]),
        ("fusion: {query: image}", ["fusion.query"]),
        ("optimizer: {betas: [0.9]}", ["optimizer.betas"]),
        ("optimizer: {lr: fast}", ["lr", "fast"]),
        ("- a\n- b", ["mapping"]),
        ("just words", ["mapping"]),
        ("data: {batch_size: 8", ["is not YAML"]),
        ("data: {manifest: 2024-13-01}", ["is not YAML"]),
        ("output: \x00", ["is not YAML"]),
    ],
)
def test_unknown_names_and_wrong_types_are_reported_in_one_line(text, words, write):
    refused(lambda: load_recipe(write(text)), "recipe", *words)


@pytest.mark.parametrize(
    ("flag", "word"),
    [
        ("--data.batch_size=many", "batch_size"),
        ("--data.batch_sise=3", "batch_sise"),
        ("--training.step=3", "training.step"),
        ("--nothing", "nothing"),
        ("words", "words"),
        ("--data.batch_size", "batch_size"),
    ],
)
def test_wrong_flags_are_reported_in_one_line(flag, word):
    refused(lambda: load_recipe("nano", [flag]), "recipe nano", word)


def test_a_recipe_that_is_not_there_is_reported_with_those_that_exist(tmp_path):
    refused(lambda: load_recipe(tmp_path / "none.yaml"), "none.yaml", "nano")
    refused(lambda: load_recipe(tmp_path), str(tmp_path))
    refused(lambda: load_recipe("namo"), "namo", "nano")


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"denoising": {"target": "replaced"}}, "denoising.target"),
        ({"denoising": {"target": "all", "noise": "both", "query": "image"}}, "denoising.target"),
        ({"denoising": {"share": 1.01}}, "denoising.share"),
        ({"denoising": {"share": -0.1}}, "denoising.share"),
        ({"denoising": {"target": "replaced", "query": "noisy", "share": 0.0}}, "denoising.share"),
        ({"denoising": {"weight": -1.0}}, "weight"),
        ({"denoising": {"max_tokens": 1}}, "denoising.max_tokens"),
        ({"denoising": {"noise": "both", "query": "noisy", "place": "middle"}}, "denoising.place"),
        ({"denoising": {"noise": "speech", "speech": "vector"}}, "denoising.speech"),
        (
            {"denoising": {"noise": "speech", "speech": "vector", "place": "input", "query": "noisy", "target": "all"}},
            "denoising.speech",
        ),
        ({"denoising": {"start_step": -1}}, "denoising.start_step"),
        ({"denoising": {"warmup_steps": -1}}, "denoising.warmup_steps"),
        ({"denoising": {"weight": 0.0}, "contrastive": {"weight": 0.0}}, "contrastive.weight"),
        ({"denoising": {"warmup_steps": 5}, "contrastive": {"weight": 0.0}}, "contrastive.weight"),
        ({"denoising": {"start_step": 5}, "contrastive": {"weight": 0.0}}, "contrastive.weight"),
        ({"contrastive": {"negatives": "all"}, "model": {"image_trainable": 2}}, "contrastive.negatives"),
        ({"contrastive": {"temperature": 0.0}}, "temperature"),
        ({"denoising": {"temperature": -0.1}}, "temperature"),
        ({"data": {"batch_size": 1}}, "data.batch_size"),
        ({"fusion": {"width": 100, "heads": 8}}, "fusion.width"),
        ({"fusion": {"heads": 0}}, "fusion.heads"),
        ({"fusion": {"layers": 0}}, "fusion.layers"),
        ({"head": {"layers": 0}}, "head.layers"),
        ({"model": {"head_heads": 0}}, "head.heads"),
        ({"training": {"steps": 0}}, "training.steps"),
        ({"features": {"limit_gb": 0}}, "features.limit_gb"),
        ({"head": {"speech_layers": []}}, "head.speech_layers"),
        ({"head": {"speech_layers": [2, 2]}}, "head.speech_layers"),
        ({"training": {"patience": -1}}, "training.patience"),
        ({"training": {"patience": 2, "best_by": "step"}}, "training.patience"),
        ({"optimizer": {"accumulate": 0}}, "optimizer.accumulate"),
        ({"optimizer": {"warmup_steps": -1}}, "optimizer.warmup_steps"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "optimizer.betas"),
        ({"data": {"crop_seconds": 0.0}}, "data.crop_seconds"),
    ],
)
def test_values_that_do_not_go_together_are_refused_by_name(settings, setting):
    refused(lambda: resolve_recipe(settings), setting)


def test_a_recipe_of_an_older_release_loads_unless_it_spread_encoders(write):
    assert load_recipe(write("training: {shard: false}")) == Recipe()
    refused(lambda: load_recipe(write("training: {shard: true}")), "training.shard")


def test_old_names_of_the_speech_head_are_accepted(write):
    text = (
        "model: {head_layers: 2, head_heads: 4, head_dropout: 0.0, speech_layers: [-1], normalize_hidden_states: true}"
    )
    head = load_recipe(write(text), ["--model.head_feedforward", "64", "--model.head_layers=3"]).head
    assert head == HeadConfig(3, 4, 64, 0.0, True, [-1])


def test_denoising_that_is_off_is_not_judged_by_its_target():
    assert resolve_recipe({"denoising": {"preset": "off", "target": "replaced"}}).denoising.weight == 0


def test_a_saved_recipe_loads_as_the_same(tmp_path):
    recipe = load_recipe(
        "nano", ["--denoising.preset=off", "--data.crop_seconds=null", "--output=läufe/1", "--optimizer.lr=3e-4"]
    )
    save_recipe(recipe, tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml") == recipe
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text(encoding="utf-8"))["output"] == "läufe/1"
    save_recipe(Recipe(), tmp_path / "defaults.yaml")
    assert load_recipe(tmp_path / "defaults.yaml") == Recipe()


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_loads_and_checks(name, tmp_path):
    recipe = load_recipe(name)
    save_recipe(recipe, tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml") == recipe
    for preset in DENOISING_PRESETS:
        load_recipe(name, [f"--denoising.preset={preset}"])


def test_loading_a_recipe_does_not_change_it_or_the_presets(write):
    settings = {"denoising": {"preset": "paper", "share": 0.25}, "data": {"batch_size": 4}}
    before = {name: dict(value) for name, value in settings.items()}
    presets = {name: dict(value) for name, value in DENOISING_PRESETS.items()}
    resolve_recipe(settings, ["--denoising.preset=off", "--data.batch_size=8"])
    assert settings == before
    assert presets == DENOISING_PRESETS
    assert Recipe() == resolve_recipe({})


def test_help_lists_every_setting():
    text = recipe_help()
    for name in ("--data.batch_size", "--denoising.stop_gradient", "--model.speech_trainable", "--optimizer.betas"):
        assert name in text
    assert "Pairs in a batch" in text


def test_settings_are_read_without_torch():
    code = (
        "import saysee.settings.reading as c, sys; c.load_recipe('nano'); c.recipe_help(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_recipe_builds_on_another_setting_by_setting(tmp_path):
    (tmp_path / "base.yaml").write_text("data: {batch_size: 8, workers: 3}\ndenoising: {preset: paper, share: 0.2}\n")
    base = tmp_path / "base.yaml"
    (tmp_path / "own.yaml").write_text(f"from: {base}\ndata: {{batch_size: 4}}\ndenoising: {{loss: cosine}}\n")
    own = load_recipe(tmp_path / "own.yaml", ["--data.workers=2"])
    assert (own.data.batch_size, own.data.workers) == (4, 2)
    assert (own.denoising.weight, own.denoising.share, own.denoising.loss) == (1.0, 0.2, "cosine")


def test_a_preset_replaces_the_denoising_of_the_recipe_below(tmp_path):
    (tmp_path / "base.yaml").write_text("denoising: {preset: paper, share: 0.2}\n")
    (tmp_path / "own.yaml").write_text(f"from: {tmp_path / 'base.yaml'}\ndenoising: {{preset: paper}}\n")
    assert load_recipe(tmp_path / "own.yaml").denoising.share == 0.5


def test_old_names_count_in_each_recipe_alone(tmp_path):
    (tmp_path / "base.yaml").write_text("model: {head_layers: 2}\ntraining: {best_by: recall}\n")
    (tmp_path / "own.yaml").write_text(f"from: {tmp_path / 'base.yaml'}\nhead: {{layers: 3}}\n")
    own = load_recipe(tmp_path / "own.yaml")
    assert (own.head.layers, own.training.best_by) == (3, "mean_R@1")


@pytest.mark.parametrize("base", ["one.yaml", "two.yaml"])
def test_a_recipe_that_builds_on_itself_is_refused(tmp_path, base, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("one.yaml").write_text(f"from: {base}\n")
    Path("two.yaml").write_text("from: one.yaml\n")
    with pytest.raises(ConfigError, match=r"one\.yaml"):
        load_recipe("one.yaml")


def test_a_recipe_on_a_missing_one_is_refused_by_its_name(tmp_path):
    (tmp_path / "own.yaml").write_text("from: speechclip-huge\n")
    with pytest.raises(ConfigError, match=r"speechclip-huge.*speechclip-base"):
        load_recipe(tmp_path / "own.yaml")
