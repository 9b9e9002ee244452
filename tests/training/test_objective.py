from __future__ import annotations

from typing import Any

import pytest

from saysee.settings.reading import resolve_recipe
from saysee.settings.recipe import OptimizerSettings
from saysee.training.objective import build_objective, learning_rate_factor, parameter_groups


def test_the_learning_rate_rises_linearly_and_falls_to_zero() -> None:
    settings = OptimizerSettings(warmup_steps=10, schedule="linear")
    factors = [learning_rate_factor(step, 110, settings) for step in range(111)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1
    assert factors[60] == pytest.approx(0.5)
    assert factors[110] == 0
    cosine = OptimizerSettings(warmup_steps=10, schedule="cosine")
    assert learning_rate_factor(60, 110, cosine) == pytest.approx(0.5)
    assert learning_rate_factor(35, 110, cosine) > learning_rate_factor(35, 110, settings)
    assert learning_rate_factor(109, 110, OptimizerSettings(warmup_steps=0, schedule="constant")) == 1


def test_every_trained_parameter_is_in_one_group_and_no_frozen_one(tiny_settings: dict[str, Any]) -> None:
    tiny_settings["model"] |= {"speech_trainable": 1, "image_trainable": 0}
    recipe = resolve_recipe(tiny_settings, ["--optimizer.encoder_lr=5e-6"])
    objective = build_objective(recipe)
    groups = parameter_groups(objective, recipe.optimizer)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trained = [id(parameter) for parameter in objective.parameters() if parameter.requires_grad]
    assert sorted(grouped) == sorted(trained)
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            encoder = names[id(parameter)].startswith(("model.speech_encoder.hubert.", "model.image_encoder."))
            assert group["peak_lr"] == (5e-6 if encoder else 1e-3), names[id(parameter)]
