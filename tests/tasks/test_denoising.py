"""Cross-modal denoising: its minimum, what it counts, where its gradient goes, and its diagnosis."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from saysee.data.loader import Batch
from saysee.errors import ConfigError
from saysee.model.configuration import FusionConfig
from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.model.fusion import FusionEncoder, FusionOutput
from saysee.settings.reading import resolve_recipe
from saysee.settings.recipe import DenoisingSettings, Recipe
from saysee.tasks import denoising
from saysee.tasks.denoising import DenoisingTask, another_image
from saysee.training.objective import build_objective as build_training_objective

B, F, P, D, V, W = 4, 6, 5, 8, 12, 16
IDS = torch.tensor([7, 7, 3, 5])  # two clips of one image

NOISE, QUERY, TARGET = ("image", "speech", "both"), ("speech", "image", "noisy"), ("global", "replaced", "all")
LOSS = ("contrastive", "cosine", "smooth_l1")
SOURCE = ("same_position", "any_position", "alike", "zeros", "gaussian")


def build(**settings):
    torch.manual_seed(0)
    fusion = FusionEncoder(FusionConfig(width=W, layers=1, heads=2, dropout=0.0), D, V)
    return DenoisingTask(DenoisingSettings(**settings), fusion, width=D, patch_width=V, fusion_width=W)


def fusion_of(task):
    return task._fusion[0]


def loss_of(task, features, ids=IDS):
    return task(*features, ids)["denoising_loss"]


@pytest.mark.parametrize("noise", ["image", "speech"])
@pytest.mark.parametrize("target", ["global", "all"])
@pytest.mark.parametrize("loss", LOSS)
def test_without_noise_and_with_perfect_fusion_the_loss_is_at_its_minimum(noise, target, loss, monkeypatch):
    rows, places = 4, 3
    vectors = torch.eye(rows)
    tokens = torch.eye(rows * places).reshape(rows, places, -1)
    task = build(noise=noise, query="noisy", target=target, loss=loss, share=0.0, temperature=0.5)
    monkeypatch.setattr(task, "_fuse", lambda *_: FusionOutput(vectors, tokens, None))
    # smooth_l1 rebuilds layer-normalised features, the others the direction.
    width = rows if target == "global" else rows * places
    task.rebuild[noise] = nn.LayerNorm(width, elementwise_affine=False) if loss == "smooth_l1" else nn.Identity()
    speech = SpeechFeatures(vectors, tokens, torch.ones(rows, places, dtype=torch.bool))
    images = ImageFeatures(vectors, tokens)
    found = task(speech, images, torch.arange(rows))
    # Right answers that are at right angles to each other: InfoNCE can come no lower.
    least = math.log(1 + (width - 1) * math.exp(-1 / 0.5)) if loss == "contrastive" else 0.0
    assert found["denoising_loss"].item() == pytest.approx(least, abs=1e-6)
    assert found["replaced_share"].item() == 0

    monkeypatch.setattr(task, "_fuse", lambda *_: FusionOutput(vectors.flip(-1), tokens.flip(-1), None))
    assert task(speech, images, torch.arange(rows))["denoising_loss"].item() > least + 0.1


def test_nothing_to_rebuild_is_no_loss(features):
    task = build(noise="image", query="noisy", target="replaced")
    loss = loss_of(task, features, torch.zeros(B, dtype=torch.long))  # one image: nothing can be replaced
    loss.backward()
    assert loss.item() == 0


def test_both_sides_count_alike(features):
    both = build(noise="both", query="noisy", source="zeros", share=1.0)
    losses = []
    for side in ("image", "speech"):
        rebuilt, clean, ids, _ = both.reconstruct(side, *features, IDS)
        losses.append(both.compare(rebuilt, clean, ids))
    torch.testing.assert_close(loss_of(both, features), (losses[0] + losses[1]) / 2)


@pytest.mark.parametrize("side", ["image", "speech"])
@pytest.mark.parametrize("loss", LOSS)
@pytest.mark.parametrize("target", ["replaced", "all"])
def test_the_places_that_the_target_names_are_the_ones_counted(side, loss, target, features, monkeypatch):
    task = build(noise=side, query="noisy", target=target, loss=loss)
    fused = torch.randn(B, P if side == "image" else F, W, requires_grad=True)
    monkeypatch.setattr(task, "_fuse", lambda *_: FusionOutput(fused[:, 0], fused, None))
    places = []

    def watched(*arguments):
        noisy, replaced = corrupt(*arguments)
        places.append(replaced)
        return noisy, replaced

    corrupt = denoising.corrupt
    monkeypatch.setattr(denoising, "corrupt", watched)
    loss_of(task, features).backward()
    real = features[0].mask if side == "speech" else torch.ones(B, P, dtype=torch.bool)
    assert places[0].any()
    assert not torch.equal(places[0], real)
    assert torch.equal(fused.grad.abs().sum(-1) > 0, places[0] if target == "replaced" else real)


def test_the_target_is_the_clean_token_at_its_own_place(features, monkeypatch):
    task = build(noise="image", query="noisy", target="replaced", source="zeros", share=1.0)
    numbers = torch.arange(B * P).float().reshape(B, P, 1).expand(B, P, W)
    monkeypatch.setattr(task, "_fuse", lambda *_: FusionOutput(numbers[:, 0], numbers, None))
    task.rebuild["image"] = nn.Identity()
    rebuilt, clean, ids, share = task.reconstruct("image", *features, IDS)
    assert share == 1
    assert torch.equal(clean, features[1].patches.reshape(-1, V)[rebuilt[:, 0].long()])
    # Clips 0 and 1 show one image: the same patch is one right answer, and nothing else is.
    assert ids.reshape(B, P)[0].tolist() == ids.reshape(B, P)[1].tolist()
    assert len(set(ids.tolist())) == 3 * P


def test_two_clips_of_one_image_share_the_image_s_answer_but_not_the_clip_s(features):
    for side, query, answers in (("image", "speech", 3), ("speech", "image", 4)):
        _, _, ids, _ = build(noise=side, query=query).reconstruct(side, *features, IDS)
        assert len(set(ids.tolist())) == answers


def test_more_tokens_than_may_be_compared_are_drawn_at_random(features, monkeypatch):
    task = build(noise="image", query="noisy", target="all", max_tokens=7)
    compared = []
    monkeypatch.setattr(
        denoising, "info_nce", lambda a, b, scale, ids: compared.append((len(a), len(b), len(ids))) or a.sum()
    )
    loss_of(task, features)
    assert compared == [(7, 7, 7)]


def allowed(noise, query, target):
    """Tokens can be rebuilt only where they are the queries."""
    sides = ("image", "speech") if noise == "both" else (noise,)
    return target == "global" or all(query in (side, "noisy") for side in sides)


@pytest.mark.parametrize(("noise", "query", "target"), list(itertools.product(NOISE, QUERY, TARGET)))
def test_every_combination_runs_or_is_refused(noise, query, target, features):
    for loss, source, stop_gradient in itertools.product(LOSS, SOURCE, (True, False)):
        settings = DenoisingSettings(
            noise=noise, query=query, target=target, loss=loss, source=source, stop_gradient=stop_gradient
        )
        if not allowed(noise, query, target):
            with pytest.raises(ConfigError, match=r"denoising\.target") as refusal:
                Recipe(denoising=settings)
            assert "\n" not in str(refusal.value)
            continue
        Recipe(denoising=settings)
        task, frames = build(**vars(settings)), features[0].frames
        frames.grad = None
        metrics = task(*features, IDS)
        assert metrics["denoising_loss"].isfinite()
        assert metrics["denoising_loss"] > 0
        assert 0.3 < metrics["replaced_share"] < 0.7
        metrics["denoising_loss"].backward()
        for learner in (task.rebuild, fusion_of(task).layers):
            gradients = [parameter.grad for parameter in learner.parameters()]
            assert all(gradient.isfinite().all() for gradient in gradients)
            assert any(gradient.any() for gradient in gradients)
        assert frames.grad.isfinite().all()
        assert frames.grad.any(), "what retrieval uses learns nothing"
        assert not frames.grad[~features[0].mask].any(), "padding takes part"


@pytest.mark.parametrize("query", QUERY)
@pytest.mark.parametrize("noise", NOISE)
def test_bf16_autocast_keeps_the_loss_in_fp32(noise, query, features):
    task = build(noise=noise, query=query)
    torch.manual_seed(2)
    exact = loss_of(task, features)
    torch.manual_seed(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = loss_of(task, features)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05)


def gradient_size(tensor):
    return 0.0 if tensor.grad is None else float(tensor.grad.abs().sum())


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("loss", LOSS)
def test_stop_gradient_keeps_the_target_out(stop_gradient, loss, features):
    speech, images = features
    # The noisy side is the query here, so its own vector is withheld and only the target could carry its gradient.
    for side, vector in (("image", images.vector), ("speech", speech.vector)):
        loss_of(build(noise=side, query="noisy", loss=loss, stop_gradient=stop_gradient), features).backward()
        assert (gradient_size(vector) == 0) == stop_gradient
    # All patches are replaced by zeros: the clean ones are the target and nothing else.
    images.patches.grad = None
    task = build(
        noise="image", query="noisy", target="all", loss=loss, stop_gradient=stop_gradient, source="zeros", share=1.0
    )
    loss_of(task, features).backward()
    assert (gradient_size(images.patches) == 0) == stop_gradient


def test_the_right_answer_is_not_in_front_of_the_queries(features):
    speech, images = features
    for noise, query, seen in (
        ("image", "speech", True),
        ("image", "image", False),
        ("speech", "speech", False),
        ("speech", "image", True),
    ):
        asker = speech if query == "speech" else images
        asker.vector.grad = None
        loss_of(build(noise=noise, query=query, stop_gradient=True), features).backward()
        assert (gradient_size(asker.vector) > 0) == seen


@pytest.mark.parametrize(("noise", "query"), [("image", "image"), ("speech", "speech")])
@pytest.mark.parametrize("front", ["blank", "other"])
def test_where_the_right_answer_is_withheld_the_other_side_s_vector_may_stand_in_front(noise, query, front, features):
    speech, images = features
    loss_of(build(noise=noise, query=query, target="replaced", front=front), features).backward()
    own, other = (speech.vector, images.vector) if query == "speech" else (images.vector, speech.vector)
    assert gradient_size(own) == 0
    assert (gradient_size(other) > 0) == (front == "other")


TINY = {
    "model": {
        "speech": {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "conv_dim": [8] * 7,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
            "initializer_range": 0.2,
        },
        "image": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "image_size": 16,
            "patch_size": 8,
            "projection_dim": 8,
        },
        "head_heads": 2,
    },
    "fusion": {"width": 16, "heads": 2, "layers": 2},
}


def build_objective(**settings):
    recipe = resolve_recipe({**TINY, "denoising": settings})
    return build_training_objective(recipe)


def batch():
    draw = torch.Generator().manual_seed(3)
    mask = torch.ones(4, 8000, dtype=torch.bool)
    mask[2, 5000:] = False
    waveforms = torch.randn(4, 8000, generator=draw) * mask
    pixels = torch.randn(4, 3, 16, 16, generator=draw)
    return Batch(waveforms, mask, pixels, torch.tensor([0, 1, 2, 1]), rows=[0, 1, 2, 3])


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "paper"},
        *(
            {"noise": noise, "query": query, "target": target}
            for noise, query, target in itertools.product(NOISE, QUERY, TARGET)
            if allowed(noise, query, target)
        ),
    ],
    ids=lambda settings: " ".join(settings.values()),
)
def test_denoising_teaches_what_makes_the_global_speech_vector(settings):
    objective = build_objective(**settings)
    metrics = objective(batch(), {"contrastive": 0.0, "denoising": 1.0})
    assert "contrastive_loss" not in metrics
    metrics["loss"].backward()
    encoder = objective.model.speech_encoder
    shared = {
        "head layers": encoder.head.layers.layers[0].linear1.weight,
        "head attention": encoder.head.layers.layers[0].self_attn.in_proj_weight,
        "projection": encoder.head.projection.weight,
        "layer mix": encoder.layer_mix.weights,
        "class token": encoder.head.cls,
    }
    assert [name for name, parameter in shared.items() if gradient_size(parameter) == 0] == []


DEEP = {"model": {**TINY["model"], "image": {**TINY["model"]["image"], "num_hidden_layers": 2}}}


def seen_with_noise(monkeypatch, **settings):
    """What the fusion encoder gets of two clips of two images, the batch, and the model."""
    objective = build_training_objective(resolve_recipe({**TINY, **DEEP, "denoising": settings})).eval()
    pairs = batch().part(slice(0, 2))
    speech, images, inputs = objective.features(pairs)
    task, seen = objective.tasks["denoising"], []
    fuse = task._fuse
    monkeypatch.setattr(task, "_fuse", lambda *sides: seen.append(sides) or fuse(*sides))
    assert task(speech, images, pairs.image_ids, inputs)["denoising_loss"].isfinite()
    return *seen[0][1:], pairs, objective.model


@pytest.mark.parametrize("block", [1, 2])
def test_noise_in_the_input_of_the_vision_transformer_is_noise_in_the_pixels(block, monkeypatch):
    # All patches are those of the only other image: its features are what is seen.
    settings = {"place": "input", "source": "alike", "share": 1.0, "block": block}
    speech, images, pairs, model = seen_with_noise(monkeypatch, **settings)
    other = model.image_encoder(pairs.pixels.flip(0))
    torch.testing.assert_close(images.patches, other.patches)
    torch.testing.assert_close(speech.frames, model.speech_encoder(pairs.waveforms, pairs.speech_mask).frames)


def test_without_a_source_the_pixels_are_black(monkeypatch):
    _, images, pairs, model = seen_with_noise(monkeypatch, place="input", source="zeros", share=1.0)
    torch.testing.assert_close(images.patches, model.image_encoder(torch.zeros_like(pairs.pixels)).patches)


def test_noise_in_the_middle_goes_through_the_layers_that_are_left(monkeypatch):
    _, images, pairs, model = seen_with_noise(monkeypatch, place="middle", source="alike", share=1.0)
    vision = model.image_encoder.clip.vision_model
    before = vision(pairs.pixels)[1]
    swapped = torch.cat([before[:, :1], before.flip(0)[:, 1:]], dim=1)
    torch.testing.assert_close(images.patches, vision.encoder.layers[1](swapped, causal=False)[:, 1:])


@pytest.mark.parametrize("speech", ["frames", "vector"])
def test_noise_in_speech_before_the_head_reaches_frames_and_vector(speech, monkeypatch):
    settings = {"noise": "speech", "query": "image", "place": "input", "source": "zeros", "share": 1.0}
    seen, _, pairs, model = seen_with_noise(monkeypatch, speech=speech, **settings)
    hidden, mask = model.speech_encoder.layer_states(pairs.waveforms, pairs.speech_mask)
    states = model.speech_encoder.layer_mix(hidden) * ~mask[..., None]
    expected = model.speech_encoder.head(states, mask)
    torch.testing.assert_close(seen.vector, expected.vector)
    torch.testing.assert_close(seen.frames, expected.frames)


def test_of_speech_the_fusion_encoder_may_read_the_vector_alone(features):
    speech, images = features
    for query in ("speech", "image"):
        loss_of(build(noise="image", query=query, speech="vector"), (speech, images)).backward()
        assert gradient_size(speech.vector) > 0
        assert gradient_size(speech.frames) == 0


def test_tokens_are_rebuilt_where_the_head_averages_frames():
    settings = {"noise": "speech", "query": "noisy", "target": "replaced", "place": "input"}
    recipe = resolve_recipe({**TINY, "head": {"stride": 3}, "denoising": settings})
    objective = build_training_objective(recipe)
    metrics = objective(batch(), objective.weights_at(0))
    assert metrics["denoising_loss"] > 0
    assert 0.4 < metrics["replaced_share"] < 0.6


def test_denoising_teaches_nothing_to_a_head_of_its_own():
    """The test above can fail: with frames and vector cut off from the head, nothing of it learns."""
    objective = build_objective(preset="paper")
    head = objective.model.speech_encoder.head

    def cut_off(module, inputs, output):
        return SpeechFeatures(output.vector.detach(), output.frames.detach(), output.mask)

    head.register_forward_hook(cut_off)
    objective(batch(), {"contrastive": 0.0, "denoising": 1.0})["loss"].backward()
    assert all(gradient_size(parameter) == 0 for parameter in head.parameters())


def test_off_builds_nothing_and_leaves_encoders_and_head_as_they_are():
    off, on = build_objective(preset="off"), build_objective(preset="paper")
    assert off.model.fusion is None
    assert list(off.tasks) == ["contrastive"]
    assert not list(off.tasks.parameters())
    assert on.model.fusion is not None
    ours, theirs = off.model.state_dict(), on.model.state_dict()
    assert ours.keys() == {name for name in theirs if not name.startswith("fusion.")}
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_task_of_weight_zero_is_not_computed_and_weights_are_summed():
    objective = build_objective(preset="paper", weight=2.0, start_step=10, warmup_steps=4)
    objective.eval()
    assert objective.weights_at(9) == {"contrastive": 1.0, "denoising": 0.0}
    assert objective.weights_at(11) == {"contrastive": 1.0, "denoising": 0.5}
    assert objective.weights_at(14) == {"contrastive": 1.0, "denoising": 2.0}
    early = objective(batch(), objective.weights_at(9))
    assert "denoising_loss" not in early
    assert early["loss"] == early["contrastive_loss"]
    late = objective(batch(), objective.weights_at(14))
    torch.testing.assert_close(late["loss"], late["contrastive_loss"] + 2 * late["denoising_loss"])


@pytest.mark.parametrize(
    ("settings", "query", "global_token"),
    [
        ({"noise": "image", "query": "speech"}, "speech", "vector"),
        ({"noise": "image", "query": "image"}, "image", "blank"),
        ({"noise": "image", "query": "noisy"}, "image", "blank"),
        ({"noise": "speech", "query": "speech"}, "speech", "blank"),
        ({"noise": "speech", "query": "image"}, "image", "vector"),
        ({"noise": "speech", "query": "noisy"}, "speech", "blank"),
        ({"noise": "both", "query": "speech"}, "speech", "vector"),
        ({"noise": "both", "query": "noisy"}, "speech", "blank"),
    ],
)
def test_the_model_remembers_how_its_fusion_encoder_was_asked(settings, query, global_token):
    fusion = build_objective(**settings).model.fusion
    assert (fusion.query, fusion.global_token) == (query, global_token)


@pytest.mark.parametrize(("query", "unseen", "seen"), [("speech", "noisy", "clean"), ("image", "clean", "noisy")])
def test_a_fusion_encoder_that_ignores_its_context_shows(query, unseen, seen, features):
    task = build(noise="image", query=query)
    honest = task.diagnose(*features, IDS)
    assert honest[f"reconstruction_without_{unseen}"] != pytest.approx(honest["reconstruction_loss"], abs=1e-6)
    for layer in fusion_of(task).layers:
        nn.init.zeros_(layer.cross_attention.out_proj.weight)
    blind = task.diagnose(*features, IDS)
    assert blind[f"reconstruction_without_{unseen}"] == pytest.approx(blind["reconstruction_loss"], abs=1e-6)
    assert blind[f"reconstruction_without_{seen}"] != pytest.approx(blind["reconstruction_loss"], abs=1e-6)


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("target", TARGET)
def test_diagnosis_repeats_and_disturbs_neither_draws_nor_gradients(noise, target, features):
    task = build(noise=noise, query="noisy", target=target)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    metrics = task.diagnose(*features, IDS)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    assert task.diagnose(*features, IDS) == metrics
    assert all(math.isfinite(value) and isinstance(value, float) for value in metrics.values())
    assert all(parameter.grad is None for parameter in [*task.parameters(), *fusion_of(task).parameters()])
    assert all(value.grad is None for value in (features[0].vector, features[0].frames, features[1].patches))


def test_swapping_leaves_the_right_answers(features):
    task = build(noise="image", query="image", target="global")
    for swap in (None, "clean", "noisy"):
        _, clean, ids, _ = task.reconstruct("image", *features, IDS, swap)
        assert torch.equal(clean, features[1].vector)
        assert torch.equal(ids, IDS)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_another_image_is_another_wherever_there_is_one(ids):
    other = another_image(torch.tensor(ids))
    for item, found in enumerate(other.tolist()):
        assert (ids[found] != ids[item]) == (len(set(ids)) > 1)


def test_the_task_does_not_own_the_fusion_encoder(features):
    task = build()
    assert {name.split(".")[0] for name, _ in task.named_parameters()} == {"rebuild"}
    assert dataclasses.is_dataclass(task.settings)


@pytest.mark.parametrize(("loss", "chance"), [("contrastive", math.log(4)), ("cosine", 1.0)])
def test_chance_is_the_loss_of_a_rebuilding_that_says_nothing(loss, chance, features):
    diagnosis = build(noise="image", query="speech", loss=loss).diagnose(*features, torch.arange(len(IDS)))
    assert len(IDS) == 4
    assert diagnosis["reconstruction_chance"] == pytest.approx(chance, abs=1e-5)


@pytest.mark.parametrize(("noise", "query"), [("image", "speech"), ("image", "noisy"), ("speech", "image")])
def test_what_is_withheld_of_the_clean_side_changes_nothing(noise, query, features):
    task = build(noise=noise, query=query, source="zeros", front="other").eval()
    speech, images = features
    if noise == "image":
        others = SpeechFeatures(speech.vector + 1, speech.frames.flip(0), speech.mask.flip(0)), images
    else:
        others = speech, ImageFeatures(images.vector + 1, images.patches.flip(0))
    rebuilt = {}
    for swap, sides in itertools.product((None, "withheld"), (features, others)):
        torch.manual_seed(3)
        rebuilt[swap, sides is others] = task.reconstruct(noise, *sides, IDS, swap)[0]
    assert torch.equal(rebuilt["withheld", False], rebuilt["withheld", True])
    assert not torch.allclose(rebuilt[None, False], rebuilt[None, True])
