"""clip-nano, tiny: it trains, it learns, and what is saved gives the vectors of what was trained."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from lab.nano.clip import ClipNanoSettings, pretrain_clip_nano, text_vectors
from lab.nano.images import LABELS, SURROUNDINGS
from lab.nano.loop import LoopSettings
from lab.nano.words import MAX_WORDS, SceneTokens, WordNumbers, word_tokenizer
from PIL import Image
from safetensors.torch import load_file

from lab.nano import clip as clip_nano
from saysee.errors import ConfigError
from saysee.model.retriever import SpeechImageModel

TINY = ClipNanoSettings(
    width=32,
    layers=1,
    text_width=32,
    text_layers=1,
    feed_forward=96,
    projection=16,
    image_size=32,
    patch_size=8,
    scenes=24,
    held_out=6,
    seeing_steps=2,
    seeing_batch=8,
    loop=LoopSettings(steps=4, batch_size=8, lr=3e-3, warmup_steps=1, evaluate_every=4, checkpoint_every=2),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny run: its folder, its metrics, and the trained parts with their vectors."""
    folder, kept = tmp_path_factory.mktemp("clip"), {}
    run_steps = clip_nano.run_steps

    def recorded(name, folder, model, settings, loss_of, evaluate, *rest):
        metrics = run_steps(name, folder, model, settings, loss_of, evaluate, *rest)
        kept["training"] = loss_of.__self__
        with torch.no_grad():
            kept.update(vectors_of(kept["training"]))
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_nano, "run_steps", recorded)
        metrics = pretrain_clip_nano(folder, TINY)
    kept["training"].parts.float()  # saving converted them to fp16
    return folder, metrics, kept


def vectors_of(training):
    pixels = torch.from_numpy(training.held_out.pixels).permute(0, 3, 1, 2).float() / 255
    image = training.clip.encode_image(training._normalized(pixels))[0]
    text = text_vectors(training.clip, training.held_out_tokens.firsts(0, TINY.held_out))
    unit = torch.nn.functional.normalize
    return {"images": unit(image, dim=-1).numpy(), "texts": unit(text, dim=-1).numpy()}


def test_what_is_saved_loads_like_any_clip_and_gives_the_same_vectors(trained, hubert_configs):
    folder, metrics, kept = trained
    assert metrics["step"] == 4
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    assert {"contrastive", "labels", "silhouettes", "surroundings", "shapes_right", "fills_right"} <= set(log[-1])
    for last in (log[-1], metrics):
        assert {"text_to_image_R@1", "image_to_text_R@1"} <= set(last)
        assert all(math.isfinite(value) for value in last.values() if not isinstance(value, str))
    model = SpeechImageModel.from_encoders(hubert_configs["base"], folder / "model")
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    held_out = kept["training"].held_out
    images = model.encode_images([Image.fromarray(picture) for picture in held_out.pixels])
    texts = model.encode_text([captions[0] for captions in held_out.captions])
    for found, before in ((images, kept["images"]), (texts, kept["texts"])):
        assert np.abs(found - before).max() < 1e-3  # saved as fp16
        assert np.abs(found[0] - found[1]).max() > 2e-3  # and not the same whatever is asked


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(monkeypatch, tmp_path):
    pretrain_clip_nano(tmp_path / "whole", TINY)
    loss_of, steps = clip_nano._Training.loss_of, []

    def dies(self, step):
        steps.append(step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return loss_of(self, step)

    monkeypatch.setattr(clip_nano._Training, "loss_of", dies)
    with pytest.raises(KeyboardInterrupt):
        pretrain_clip_nano(tmp_path / "killed", TINY)
    assert pretrain_clip_nano(tmp_path / "killed", TINY)["step"] == 4
    assert steps == [0, 1, 2, 3, 2, 3]
    whole, killed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert set(whole) == set(killed)
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_seeing_steps_learn_the_patches_alone(trained):
    folder, _, kept = trained
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert ["contrastive" in line for line in log] == [False, False, True, True]
    training = kept["training"]
    training.parts.train()
    loss, _ = training.loss_of(0)
    training.parts.zero_grad()
    loss.backward()
    moved = {name.split(".")[1] for name, each in training.parts.named_parameters() if each.grad is not None}
    assert "vision_model" in moved
    assert "text_model" not in moved


def test_the_same_step_is_the_same_batch_and_another_another(trained):
    training = trained[2]["training"]
    with torch.no_grad():
        once, again, other = (float(training.loss_of(step)[0]) for step in (3, 3, 2))
    assert once == again
    assert once != other


def test_batches_hold_each_scene_once_and_twins_together(trained):
    training = trained[2]["training"]
    twin = {number: set(unit) for unit in training.pool.units.tolist() for number in unit}
    for seed in range(20):
        chosen = training.pool.draw(np.random.default_rng(seed), 8).tolist()
        assert len(chosen) == len(set(chosen)) == 8
        assert all(twin[number] <= set(chosen) for number in chosen[:-1])


class Slice(torch.nn.Module):
    """Passes on some of the last dimension."""

    def __init__(self, start, stop):
        super().__init__()
        self.part = slice(start, stop)

    def forward(self, vectors):
        return vectors[..., self.part]


@pytest.fixture
def one_object(trained, monkeypatch):
    """A picture of 4 × 4 patches of 64 pixels whose patch 5 has an object on its upper half, with two of the
    surroundings; linear layers that pass on what they are given."""
    training = trained[2]["training"]
    labels = np.zeros((1, len(LABELS), 16), dtype=np.uint8)
    labels[0, :, 5] = (3, 2, 1, 4)
    silhouettes = np.zeros((1, 16, 8), dtype=np.uint8)
    silhouettes[0, 5, :4] = 255
    around = np.zeros((1, 16, len(SURROUNDINGS)), dtype=np.uint8)
    around[0, 5, [1, 40]] = 1
    arrays = {"surroundings": np.packbits(around, axis=2), "labels": labels, "silhouettes": silhouettes}
    for name, array in arrays.items():
        monkeypatch.setitem(training._kept, name, torch.from_numpy(array))
    before = {name: training.parts[name] for name in ("label", "silhouette", "surroundings")}
    labels_end = sum(len(values) + 1 for values in LABELS.values())
    training.parts["silhouette"] = torch.nn.Identity()
    training.parts["label"] = Slice(0, labels_end)  # of what both are given together
    training.parts["surroundings"] = Slice(labels_end, None)
    yield training
    for name, layer in before.items():
        training.parts[name] = layer


def test_the_loss_on_patches_is_that_of_patches_with_an_object(one_object):
    sizes = [len(values) + 1 for values in LABELS.values()]
    covered, scores = torch.zeros(1, 16, 64), torch.zeros(1, 16, sum(sizes) + len(SURROUNDINGS))
    loss, metrics = one_object._patch_loss(covered, scores, torch.tensor([0]))
    # Nothing told: the log of each label's values, the shape's on empty patches once more; half a chance a pixel.
    labels = sum(math.log(size) for size in sizes) + math.log(sizes[0])
    assert metrics["labels"] == pytest.approx(labels, abs=1e-3)
    assert metrics["silhouettes"] == pytest.approx(2 * math.log(2), abs=1e-3)
    assert metrics["surroundings"] == pytest.approx(2 * math.log(2), abs=1e-3)
    weights = TINY.silhouette_weight + TINY.surroundings_weight
    assert float(loss) == pytest.approx(labels + weights * 2 * math.log(2), rel=1e-4)
    starts = np.cumsum([0, *sizes[:-1]])
    scores[..., 0] = 30  # nothing there
    scores[0, 5, 0] = 0
    for start, value in zip(starts, (3, 2, 1, 4), strict=True):
        scores[0, 5, start + value] = 30
    scores[..., sum(sizes) :] = -30
    scores[0, 5, [sum(sizes) + 1, sum(sizes) + 40]] = 30
    covered -= 30
    covered[0, 5, :32] = 30
    loss, metrics = one_object._patch_loss(covered, scores, torch.tensor([0]))
    assert float(loss) == pytest.approx(0, abs=1e-4)
    assert [metrics[f"{name}s_right"] for name in LABELS] == [1, 1, 1, 1]


def test_position_embeddings_start_apart_and_alike_where_patches_are_near():
    places = clip_nano._places(4, 32)
    assert places.shape == (16, 32)
    alike = torch.nn.functional.cosine_similarity(places[:, None], places[None], dim=-1)
    assert (alike - torch.eye(16)).max() < 0.99
    assert alike[0, 1] > alike[0, 2] > alike[0, 3]
    assert alike[0, 4] > alike[0, 8] > alike[0, 12]


def test_shapes_weigh_the_same_however_many_patches_are_empty(one_object):
    """The mean over all patches, of which most are empty, made shapes the last thing to be learned."""
    sizes = [len(values) + 1 for values in LABELS.values()]
    scores = torch.zeros(1, 16, sum(sizes) + len(SURROUNDINGS), requires_grad=True)
    loss, _ = one_object._patch_loss(torch.zeros(1, 16, 64), scores, torch.tensor([0]))
    loss.backward()
    # Of a cross-entropy over n even scores, the right one's gradient is 1/n - 1, with the whole weight on one patch.
    assert float(scores.grad[0, 5, 3]) == pytest.approx(1 / sizes[0] - 1, abs=1e-5)


def test_the_loss_falls(tmp_path):
    settings = replace(TINY, seeing_steps=0, loop=replace(TINY.loop, steps=50, evaluate_every=50, checkpoint_every=50))
    pretrain_clip_nano(tmp_path, settings)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:4])


def test_a_run_of_other_sizes_in_the_same_folder_is_an_error(trained):
    from saysee.errors import CheckpointError

    folder = trained[0]
    for other in (replace(TINY, patch_weight=1.0), replace(TINY, image_size=64)):
        with pytest.raises(CheckpointError) as refusal:
            pretrain_clip_nano(folder, other)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"width": 48}, "width"),
        ({"text_width": 0}, "text_width"),
        ({"width": 224}, "width"),
        ({"patch_size": 5}, "patch_size"),
        ({"feed_forward": 0}, "feed_forward"),
        ({"scenes": 1}, "scenes"),
    ],
)
def test_sizes_that_no_network_can_have_are_errors(wrong, name):
    with pytest.raises(ConfigError, match=f"^{name} is"):
        replace(TINY, **wrong)


def test_words_are_tokens_between_the_marks_and_unknown_words_have_a_token_of_their_own():
    tokenizer = word_tokenizer(["A red star", "two blue rings"])
    ids = tokenizer("a Blue giraffe")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<begin>", "a", "blue", "<unknown>", "<end>"]
    assert ids[-1] == max(tokenizer.get_vocab().values())  # where CLIP's text encoder reads its vector


def test_tokens_made_of_word_numbers_are_the_tokenizer_s():
    tokenizer = word_tokenizer(["a red star, and two RINGS"])
    captions = ["a red star", "A star, and two rings with a red giraffe", "a " * 60, "a giraffe"]
    tokens = WordNumbers.of(captions).tokens(tokenizer)
    theirs = tokenizer(captions, truncation=True, max_length=MAX_WORDS, padding="max_length")["input_ids"]
    assert tokens.tolist() == theirs


def test_a_scene_s_captions_are_drawn_alike_often_and_are_its_own():
    tokenizer = word_tokenizer(["one two three four"])
    tokens = WordNumbers.of(["one", "two two", "three", "four four four"]).tokens(tokenizer)
    scenes = SceneTokens(tokens, np.array([0, 1, 4]))
    assert scenes.firsts(0, 9).tolist() == [[*tokenizer("one").input_ids, 0], tokenizer("two two").input_ids]
    drawn = scenes.drawn(np.array([1] * 300 + [0] * 5), np.random.default_rng(0))
    assert drawn.shape == (305, 5)
    said = [tokenizer.decode(row, skip_special_tokens=True) for row in drawn]
    assert set(said[300:]) == {"one"}
    assert {text: said[:300].count(text) > 70 for text in set(said[:300])} == {
        "two two": True, "three": True, "four four four": True
    }  # fmt: skip


def test_what_is_filled_up_behind_the_end_mark_changes_no_vector(trained):
    """Why the text tower needs no mask."""
    training = trained[2]["training"]
    ids = training.held_out_tokens.firsts(0, 1)
    with torch.no_grad():
        alone = text_vectors(training.clip, ids)
        filled = text_vectors(training.clip, torch.nn.functional.pad(ids, (0, 7)))
    assert filled.allclose(alone, atol=1e-6)
