"""The recipes of the real corpora: SpeechCLIP parallel's settings (arXiv 2210.00705) and the preset, one by one."""

from __future__ import annotations

import dataclasses
import functools
import re
import shlex

import pytest
import yaml

from saysee.settings.reading import RECIPES, load_recipe, recipe_names, resolve_recipe
from saysee.settings.recipe import DENOISING_PRESETS

BOTH = {
    "data.batch_size": 256,
    "data.crop_seconds": 102_400 / 16_000,
    "data.bucket_batches": 1,
    "model.frozen_dropout": True,
    "model.speech_trainable": 0,
    "model.image_trainable": 0,
    "head.speech_layers": None,
    "head.layers": 1,
    "head.heads": 8,
    "head.dropout": 0.1,
    "contrastive.weight": 1.0,
    "contrastive.temperature": 0.07,
    "optimizer.lr": 1e-4,
    "optimizer.weight_decay": 1e-6,
    "optimizer.betas": [0.9, 0.999],
    "optimizer.warmup_steps": 5_000,
    "optimizer.schedule": "linear",
    "optimizer.clip_norm": 4.0,
    "optimizer.accumulate": 1,
    "training.steps": 50_000,
    "training.eval_every": 0,
    "training.best_by": "mean_R@10",
}
KINDS = {
    "base": BOTH
    | {
        "model.speech": "facebook/hubert-base-ls960",
        "model.image": "openai/clip-vit-base-patch32",
        "head.feedforward": 3072,
        "head.normalize_hidden_states": False,
        "contrastive.learn_temperature": False,
    },
    "large": BOTH
    | {
        "model.speech": "facebook/hubert-large-ll60k",
        "model.image": "openai/clip-vit-large-patch14",
        "head.feedforward": 4096,
        "head.normalize_hidden_states": True,
        "contrastive.learn_temperature": True,
    },
}
packaged = functools.cache(load_recipe)  # a second to parse, and no test here changes one
BASELINES = ["speechclip-base", "speechclip-large"]
NAMES = [*BASELINES, "flickr8k-base", "flickr8k-large", "spokencoco-base", "spokencoco-large", "places-base"]


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_the_baseline_is_the_published_one(name):
    assert name in recipe_names()
    recipe = packaged(name)
    for setting, value in KINDS[name.split("-")[1]].items():
        section, key = setting.split(".")
        found = getattr(getattr(recipe, section), key)
        assert found == value, setting
        assert type(found) is type(value), setting


def test_the_base_recipe_states_the_published_values_and_so_outlives_a_changed_default():
    written = yaml.safe_load((RECIPES / "speechclip-base.yaml").read_text(encoding="utf-8"))
    for setting in KINDS["base"]:
        section, key = setting.split(".")
        assert key in written[section], setting


@pytest.mark.parametrize("name", sorted({*NAMES} - {*BASELINES}))
def test_it_is_the_baseline_but_for_corpus_denoising_and_output(name):
    recipe, baseline = packaged(name), packaged(f"speechclip-{name.split('-')[1]}")
    data = dataclasses.replace(baseline.data, manifest=recipe.data.manifest)
    assert dataclasses.replace(baseline, output=recipe.output, data=data, denoising=recipe.denoising) == recipe


@pytest.mark.parametrize("name", BASELINES)
def test_the_baseline_has_no_denoising(name):
    assert packaged(name).denoising.weight == 0


@pytest.mark.parametrize("name", sorted({*NAMES} - {*BASELINES}))
def test_denoising_is_the_paper_preset_and_goes_off_by_one_flag(name):
    paper = resolve_recipe({"denoising": {"preset": "paper"}}).denoising
    assert packaged(name).denoising == paper
    assert DENOISING_PRESETS["paper"].items() <= dataclasses.asdict(paper).items()
    off = load_recipe(name, ["--denoising.preset", "off"])
    assert off.denoising.weight == 0
    assert off.model == packaged(name).model


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_with_commands_that_fit_each_other(name):
    """The manifest that is written is the one trained on, and the model that is evaluated is the one trained."""
    from saysee.cli import parse

    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    data, train, evaluate = (shlex.split(line)[1:] for line in re.findall(r"^#   (saysee .*)$", text, re.MULTILINE))
    recipe = packaged(name)
    data, train, evaluate = (parse(words).arguments for words in (data, train, evaluate))
    assert str(data["to"]) == recipe.data.manifest
    assert train["recipe"] == name
    assert list(evaluate["models_and_manifests"]) == [f"{recipe.output}/best", recipe.data.manifest]
    assert recipe.output == f"runs/{name}"
