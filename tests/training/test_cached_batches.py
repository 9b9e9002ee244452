"""A batch in chunks has the loss and every gradient of the whole batch, with as little in memory as a chunk needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gradients import assert_same_gradients
from torch import Tensor

from saysee.data.loader import Batch
from saysee.errors import ConfigError
from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.settings.reading import resolve_recipe
from saysee.training.trainer import Trainer, slices

SEED = 7
DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")


@pytest.fixture
def settings(tiny_settings: dict[str, Any]) -> dict[str, Any]:
    tiny_settings["contrastive"] = {"learn_temperature": True}
    tiny_settings["optimizer"] |= {
        "clip_norm": 1e9,
        "weight_decay": 0,
    }  # so that the optimizer sees the gradient as it is
    return tiny_settings


def without_dropout(settings: dict[str, Any]) -> dict[str, Any]:
    settings["model"]["speech"] = settings["model"]["speech"] | dict.fromkeys(DROPOUTS, 0.0)
    settings["model"]["head_dropout"] = settings["fusion"]["dropout"] = 0.0
    return settings


def one_step(settings: dict[str, Any], *overrides: str) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The metrics of a first step and every parameter's gradient in it, from Adam's first moment."""
    trainer = Trainer(resolve_recipe(settings, overrides))
    trainer.objective.train()
    torch.manual_seed(SEED)
    metrics, _ = trainer.step(iter(trainer.loader), 0)
    states = trainer.optimizer.state
    gradients = {
        name: states[parameter]["exp_avg"] / 0.1
        for name, parameter in trainer.objective.named_parameters()
        if parameter in states
    }
    return metrics, gradients


@pytest.mark.parametrize("size", [2, 3, 7])
def test_chunks_have_the_loss_and_gradient_of_the_whole_batch(settings: dict[str, Any], size: int) -> None:
    settings = without_dropout(settings)
    settings["denoising"] = {"preset": "off"}
    settings["optimizer"]["accumulate"] = 2
    metrics, gradients = one_step(settings)
    in_chunks, in_chunks_gradients = one_step(settings, f"--data.chunk_size={size}")
    assert in_chunks.keys() == metrics.keys()
    assert in_chunks["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
    assert in_chunks["gradient_norm"] == pytest.approx(metrics["gradient_norm"], rel=1e-5)
    assert gradients["tasks.contrastive.log_scale"].abs() > 1e-3
    assert_same_gradients(in_chunks_gradients, gradients)


def test_accumulated_batches_give_their_mean_gradient(settings: dict[str, Any]) -> None:
    settings = without_dropout(settings)
    settings["denoising"] = {"preset": "off"}
    metrics, gradients = one_step(settings, "--optimizer.accumulate=2")

    trainer = Trainer(resolve_recipe(settings))
    objective, batches = trainer.objective.train(), iter(trainer.loader)
    losses = [objective(next(batches), {"contrastive": 1.0})["loss"] for _ in range(2)]
    mean = (losses[0] + losses[1]) / 2
    mean.backward()
    assert metrics["loss"] == pytest.approx(mean.item(), rel=1e-6)
    expected = {name: value.grad for name, value in objective.named_parameters() if value.grad is not None}
    assert_same_gradients(gradients, expected)


@pytest.mark.parametrize("speech_trainable", ["all", 0])  # a frozen HuBERT keeps its dropout in training
def test_dropout_is_drawn_once_for_both_passes_and_denoising_works_on_each_chunk(
    settings: dict[str, Any], speech_trainable: object
) -> None:
    """Against the same mathematics with all chunks in one graph: their features, the contrastive loss of all vectors
    together, the mean of the denoising loss of each."""
    settings["model"]["speech_trainable"] = speech_trainable
    metrics, gradients = one_step(settings, "--data.chunk_size=4")

    trainer = Trainer(resolve_recipe(settings))
    objective = trainer.objective.train()
    torch.manual_seed(SEED)
    batch = next(iter(trainer.loader))
    assert isinstance(batch, Batch)
    parts = [batch.part(slice(0, 4)), batch.part(slice(4, 8))]
    features = [objective.features(part) for part in parts]
    speech = torch.cat([of_speech.vector for of_speech, *_ in features])
    images = torch.cat([of_images.vector for _, of_images, _ in features])
    nothing, mask = torch.empty(8, 0, 16), torch.empty(8, 0, dtype=torch.bool)
    contrastive = objective.tasks["contrastive"](
        SpeechFeatures(speech, nothing, mask), ImageFeatures(images, nothing), batch.image_ids
    )["contrastive_loss"]
    denoising = [
        objective.tasks["denoising"](*of_part[:2], part.image_ids)["denoising_loss"]
        for of_part, part in zip(features, parts, strict=True)
    ]
    loss = contrastive + (denoising[0] + denoising[1]) / 2
    loss.backward()
    expected = {name: value.grad for name, value in objective.named_parameters() if value.grad is not None}

    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert metrics["contrastive_loss"] == pytest.approx(contrastive.item(), rel=1e-6)
    assert metrics["denoising_loss"] == pytest.approx(sum(denoising).item() / 2, rel=1e-6)
    assert_same_gradients(gradients, expected)


def test_kept_features_go_in_chunks_too(settings: dict[str, Any]) -> None:
    settings = without_dropout(settings)
    settings["model"] |= {"speech_trainable": 0, "image_trainable": 0}
    settings["data"]["crop_seconds"] = None
    settings["denoising"] = {"preset": "off"}
    settings["training"] |= {"steps": 2, "eval_every": 2}
    losses = []
    for name, overrides in (("whole", ()), ("chunks", ("--data.chunk_size=3",))):
        output = f"--output={settings['output']}-{name}"
        trainer = Trainer(resolve_recipe(settings, [*overrides, output]))
        trainer.fit()
        assert trainer.data.recomputed is None
        losses.append(trainer.state.previous_contrastive)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_no_more_than_a_chunk_is_encoded_at_a_time(settings: dict[str, Any]) -> None:
    trainer = Trainer(resolve_recipe(settings, ["--data.chunk_size=3"]))
    trainer.objective.train()
    sizes, with_graph = [], []

    def look(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        with_graph.append(output[0].requires_grad)

    trainer.model.speech_encoder.hubert.encoder.layers[0].register_forward_hook(look)
    trainer.step(iter(trainer.loader), 0)
    assert sizes == [2, 3, 3] * 2
    assert with_graph == [False] * 3 + [True] * 3


@pytest.mark.parametrize(("count", "most"), [(8, 3), (8, 8), (9, 2), (256, 24), (5, 7)])
def test_slices_cover_everything_once_and_are_as_equal_as_they_can_be(count: int, most: int) -> None:
    found = slices(count, most)
    assert [row for part in found for row in range(count)[part]] == list(range(count))
    sizes = [part.stop - part.start for part in found]
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-count // most)


@pytest.mark.parametrize("overrides", [["--data.chunk_size=1"], ["--data.chunk_size=4", "--contrastive.weight=0"]])
def test_settings_that_would_do_nothing_are_refused(settings: dict[str, Any], overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"data\.chunk_size"):
        resolve_recipe(settings, overrides)
