"""hubert-nano, tiny: labels where they belong, frames hidden, and saved as it was trained."""

from __future__ import annotations

import copy
import json
import math
import shutil
from ctypes.util import find_library
from dataclasses import replace

import numpy as np
import pytest
import torch
from lab.nano.hubert import MASK_SPAN, HubertNanoSettings, hubert_nano_config, pretrain_hubert_nano
from lab.nano.loop import LoopSettings
from lab.nano.probe import frame_middles
from lab.nano.speech import SpeechPool, SpokenItem
from safetensors.torch import load_file
from transformers import HubertModel

from lab.nano import hubert as hubert_nano
from saysee.errors import CheckpointError, ConfigError
from saysee.model.configuration import HeadConfig
from saysee.model.pretrained.hubert import Hubert
from saysee.model.retriever import SpeechImageModel

pytest.importorskip("espeakng_loader", reason="needs the 'scenes' extra")
needs_voices = pytest.mark.skipif(
    shutil.which("festival") is None or find_library("flite") is None,
    reason="needs Debian's packages flite, festival, festvox-kallpc16k, festvox-kdlpc16k, festvox-us-slt-hts",
)

TINY = HubertNanoSettings(
    width=64,
    layers=1,
    utterances=8,
    held_out=4,
    voices="espeak",
    words=30,
    loop=LoopSettings(steps=3, batch_size=4, lr=3e-3, warmup_steps=1, evaluate_every=3, checkpoint_every=2),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny run, with what it trained kept in hand."""
    folder, kept = tmp_path_factory.mktemp("hubert"), {}
    with pytest.MonkeyPatch.context() as patch:
        run_steps = hubert_nano.run_steps

        def recorded(name, folder, model, settings, loss_of, evaluate, *rest):
            metrics = run_steps(name, folder, model, settings, loss_of, evaluate, *rest)
            # A copy, because saving makes it fp16, and says that nothing is to be hidden any more.
            training = loss_of.__self__
            del training._loader  # a process, which cannot be copied
            training._step = None
            training = kept["training"] = copy.deepcopy(training)
            clips = [training.pool.waveform(number) for number in range(3)]
            with torch.no_grad():
                kept["states"], kept["frames"] = training._encode(clips, None)
            kept["clips"] = clips
            return metrics

        patch.setattr(hubert_nano, "run_steps", recorded)
        metrics = pretrain_hubert_nano(folder, TINY)
    return folder, metrics, kept


def test_what_is_saved_loads_like_any_hubert_and_gives_the_same_frames(trained, clip_config):
    folder, metrics, kept = trained
    assert metrics["step"] == 3
    expected = {
        "masked",
        "seen",
        "word",
        "masked_right",
        "words_right",
        "held_out_labels_right",
        "held_out_words_right",
    }
    assert expected <= set(metrics)
    assert all(math.isfinite(value) for name, value in metrics.items() if isinstance(value, int | float))
    model = SpeechImageModel.from_encoders(folder / "model", clip_config, text=False, head=HeadConfig(heads=2))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    processor = model.processor
    waveforms, mask = processor.pad([processor.prepare_speech(clip) for clip in kept["clips"]])
    with torch.no_grad():
        states = model.speech_encoder.hubert(waveforms, mask.sum(dim=1))[-1]
        theirs = HubertModel.from_pretrained(folder / "model", dtype=torch.float32).encoder.layers.state_dict()
    ours = model.speech_encoder.hubert.encoder.layers.state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())
    real = kept["frames"]
    assert (states - kept["states"])[real].abs().max() < 2e-2 * kept["states"][real].abs().max()
    assert (states[real].std(dim=0) > 1e-3).any()
    vectors = model.encode_speech(kept["clips"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)


def test_a_saved_encoder_hides_nothing_by_itself(trained):
    config = json.loads((trained[0] / "model" / "config.json").read_text())
    assert config["apply_spec_augment"] is False
    assert config.get("layerdrop", 0.1) == 0
    assert config["dtype"] == "float16"


def test_a_frame_is_40_ms_and_its_receptive_field_little_more(trained):
    encoder = trained[2]["training"].encoder
    middles = frame_middles(encoder)
    assert encoder.frame_seconds == 0.04
    assert np.diff(middles) == pytest.approx(0.04)
    # By hand: 20 + 7 * 10 + 3 * 40 + 3 * 160 = 690 samples, of which the middle is the 345th.
    assert encoder.frame_samples == 690
    assert middles[0] == pytest.approx(345 / 16_000)
    assert int(encoder.frames(torch.tensor([16_000]))) == 24


def item(phones=(), words=(), seconds=0.3):
    return SpokenItem(0, round(16_000 * seconds), list(phones), list(words))


def test_frames_are_labelled_by_the_phone_at_their_middle(trained, monkeypatch):
    training = trained[2]["training"]
    (a, one), (b, two), *_ = training.labels.phones.items()
    # Middles at 0.0216, 0.0616, 0.1016, 0.1416, 0.1816, 0.2216 s.
    items = [
        item([(a, 0.04, 0.12), (b, 0.12, 0.20)]),
        item([(b, 0.0, 0.06), ("never met", 0.06, 0.10), (a, 0.14, 9.0)]),
    ]
    monkeypatch.setattr(training.pool, "items", items)
    labels = training._labels_at(training.pool, [0, 1], [1.0, 1.0], 6)
    assert labels.tolist() == [[0, one, one, two, two, 0], [two, 0, 0, one, one, one]]
    # Played twice as fast, the frames hear what was said at 0.0431, 0.1231, 0.2031 s.
    assert training._labels_at(training.pool, [0], [2.0], 3).tolist() == [[one, two, 0]]


def test_a_word_is_classified_by_the_mean_of_its_frames(trained, monkeypatch):
    training = trained[2]["training"]
    (a, one), (b, two), *_ = training.words.items()
    means = []

    def recorded(vectors):
        means.append(vectors)
        return torch.nn.functional.one_hot(torch.tensor([one, one]), len(training.words) + 1).float() * 30

    hidden = torch.arange(2 * 6 * 64).reshape(2, 6, 64).float()
    items = [item(words=[(a, 0.04, 0.12), ("never met", 0.12, 0.20)]), item(words=[(b, 0.10, 9.0), (a, 5.0, 6.0)])]
    before = training.parts["word"]
    training.parts["word"] = Telling(recorded)
    try:
        vectors, words = training._word_means(hidden, items, [1.0, 1.0])
        loss, right = training._word_loss(vectors, words)
    finally:
        training.parts["word"] = before
    assert torch.allclose(means[0][0], hidden[0, 1:3].mean(dim=0))
    assert torch.allclose(means[0][1], hidden[1, 2:6].mean(dim=0))
    assert words.tolist() == [one, two]
    assert right == 0.5  # the first was told rightly, the second taken for the first
    assert float(loss) == pytest.approx(15, abs=0.1)
    assert two != one


class Telling(torch.nn.Module):
    def __init__(self, tell):
        super().__init__()
        self.tell = tell

    def forward(self, vectors):
        return self.tell(vectors)


def test_a_batch_without_a_known_word_has_no_loss_of_words_and_is_no_failure(trained):
    training = trained[2]["training"]
    hidden = torch.ones(1, 6, 64, requires_grad=True)
    means, words = training._word_means(hidden, [item(words=[("never met", 0.0, 0.1)])], [1.0])
    loss, right = training._word_loss(means, words)
    assert (float(loss.detach()), right) == (0, 0)
    loss.backward()


def test_hidden_frames_are_spans_and_the_encoder_does_not_hear_them(trained):
    training = trained[2]["training"]
    clips = [training.pool.waveform(number) for number in range(3)]
    training.parts.train()
    with torch.no_grad():
        states, frames = training._encode(clips, np.random.default_rng(4))
        hidden = training._masked.clone()
        open_states, _ = training._encode(clips, None)
        assert not training._masked.any()
        runs = spans(hidden[0].tolist())
    training.parts.eval()
    assert hidden[:, : frames.shape[1]][frames].float().mean() > 0.1
    assert not torch.allclose(states, open_states, atol=1e-3)
    # The lone first frame is always hidden; every other span is a mask's length or runs into the next or the end.
    assert all(length >= MASK_SPAN or start == 0 or start + length == hidden.shape[1] for start, length in runs)
    assert frames.shape == hidden.shape


def spans(flags):
    """(start, length) of each run of True."""
    found, start = [], None
    for at, flag in enumerate([*flags, False]):
        if flag and start is None:
            start = at
        elif not flag and start is not None:
            found.append((start, at - start))
            start = None
    return found


def test_masked_frames_do_not_reach_the_encoder(trained):
    """With all frames hidden, two sounds of one length give the same states."""
    training = trained[2]["training"]
    length = 8000
    clips = [[training.pool.waveform(number)[2000 : 2000 + length]] for number in (0, 1)]
    everything = replace(training.settings, mask_share=1.0)
    training.parts.train()
    states = []
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "settings", everything)
        for clip in clips:
            states.append(training._encode(clip, np.random.default_rng(0))[0])
        assert training._masked.all()
    training.parts.eval()
    assert torch.allclose(*states, atol=1e-5)
    with torch.no_grad():
        heard = [training._encode(clip, None)[0] for clip in clips]
    assert not torch.allclose(*heard, atol=1e-2)


def test_the_same_step_is_the_same_batch_and_another_another(trained):
    training = trained[2]["training"]
    with torch.no_grad():
        once, again, other = (float(training.loss_of(step)[0]) for step in (3, 3, 2))
    assert once == again
    assert once != other


def test_an_epoch_takes_each_utterance_at_most_once_and_like_lengths_together(trained):
    training = trained[2]["training"]
    with pytest.MonkeyPatch.context() as patch:
        rng = np.random.default_rng(0)
        lengths = rng.integers(16_000, 80_000, 43).tolist()
        patch.setattr(training.pool, "items", [SpokenItem(0, length, [], []) for length in lengths])
        left_out = set()
        for epoch in range(6):
            batches = hubert_nano._Batches(training.pool, training.settings.loop, paired=False)
            taken = [batches._numbers(epoch * 10 + step) for step in range(10)]
            assert all(len(batch) == 4 for batch in taken)
            flat = [number for batch in taken for number in batch]
            assert len(set(flat)) == 40
            left_out |= set(range(43)) - set(flat)
            assert all(max(lengths[i] for i in b) < 1.6 * min(lengths[i] for i in b) + 8000 for b in taken)
        assert len(left_out) > 5  # not always the longest


def test_the_distance_of_a_pair_is_that_of_its_vectors_in_variances_within_a_sentence():
    first, second = torch.tensor([[0.0, 0], [2, 2], [50, 50]]), torch.tensor([[2.0, 0], [2, 6], [50, 50]])
    sentences = torch.tensor([0, 0, 4])
    within = torch.cat([first[:2], second[:2]]).var(dim=0, correction=0) * 4 / 6
    expected = float((4 / 3 / within[0] + 16 / 3 / within[1]) / 2)
    assert float(hubert_nano.pair_distance(first, second, sentences)) == pytest.approx(expected, rel=1e-5)
    assert float(hubert_nano.pair_distance(first, first, sentences)) == 0
    smaller = hubert_nano.pair_distance(0.1 * first, 0.1 * second, sentences)
    assert float(smaller) == pytest.approx(expected, rel=1e-3)
    noise = torch.randn(2, 20_000, 3, generator=torch.Generator().manual_seed(0))
    of_sentence = 100 * torch.randn(10, 3)[torch.arange(20_000) % 10]  # the same for both, and no sign of the sound
    apart = hubert_nano.pair_distance(*(noise + of_sentence), torch.arange(20_000) % 10)
    assert float(apart) == pytest.approx(2, abs=0.05)
    assert float(hubert_nano.pair_distance(first[:0], first[:0], sentences[:0])) == 0


def test_speakers_are_compared_where_both_have_the_same_phones(trained):
    training = trained[2]["training"]
    hop, start = training.encoder.frame_seconds, training.middles[0]
    # The second says the same but for one phone, at half the pace, and is played twice as fast.
    said = [("a", start, 0), ("b", start + 4 * hop, 0), ("c", start + 6.5 * hop, 0)]
    one = SpokenItem(0, 0, [(name, time, time) for name, time, _ in said], [])
    slow = [(name, 2 * time, 2 * time) for name, time, _ in said]
    other = SpokenItem(0, 0, [slow[0], ("x", *slow[1][1:]), slow[2]], [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.pool, "items", [one, other, other, one])
        rows, frames, shares = training._same_phones([0, 1, 2, 3], [1, 2, 2, 1], 20)
    assert rows.tolist() == [[0, 0, 2, 2], [1, 1, 3, 3]]
    assert frames.tolist() == [[0, 6, 0, 6]] * 2
    assert torch.allclose(shares, torch.tensor([0, 0.5, 0, 0.5]), atol=1e-4)


@needs_voices
def test_both_speakers_of_a_sentence_are_in_one_batch(tmp_path):
    pool = SpeechPool(tmp_path, 9, 0, "train", "many")
    assert pool.pairs == [(0, 5), (1, 6), (2, 7), (3, 8)]
    for one, other in pool.pairs:
        assert pool.items[one].words[0][0] == pool.items[other].words[0][0]
    batches = hubert_nano._Batches(pool, TINY.loop, paired=True)
    for step in range(4):
        numbers = batches._numbers(step)
        assert list(zip(numbers[::2], numbers[1::2], strict=True)) == [
            pair for pair in zip(numbers[::2], numbers[1::2], strict=True) if pair in pool.pairs
        ]
        assert len(numbers) == TINY.loop.batch_size


@pytest.mark.nightly  # 48 steps; every other test takes three
def test_the_loss_falls(tmp_path):
    loop = replace(TINY.loop, steps=48, warmup_steps=3, evaluate_every=48, checkpoint_every=48)
    pretrain_hubert_nano(tmp_path, replace(TINY, loop=loop))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert np.mean(losses[-5:]) < 0.85 * np.mean(losses[:3])


def test_a_run_of_other_sizes_in_the_same_folder_is_an_error(trained):
    for other in (replace(TINY, width=128), replace(TINY, word_weight=0.1)):
        with pytest.raises(CheckpointError) as refusal:
            pretrain_hubert_nano(trained[0], other)
        assert "\n" not in str(refusal.value)


def test_hubert_s_own_labels_come_from_mfcc_and_then_from_the_first_model(tmp_path):
    """Its two iterations, each a run of its own; a run that is called again tells the same labels and is not redone."""
    clusters = replace(TINY, labels="mfcc", clusters=12, word_weight=0.0)
    first = pretrain_hubert_nano(tmp_path / "first", clusters)
    second = pretrain_hubert_nano(tmp_path / "second", replace(clusters, labels=str(tmp_path / "first" / "model")))
    for metrics in (first, second):
        assert 0 <= metrics["held_out_labels_right"] <= 100
        assert math.isfinite(metrics["loss"])
        assert metrics["probe"]["held_out"]["phones_right_by_layer"][0] > 0
    assert pretrain_hubert_nano(tmp_path / "first", clusters)["loss"] == first["loss"]


@needs_voices
def test_many_voices_are_trained_from_a_start_and_scored_on_voices_that_stay_unheard(trained, tmp_path):
    many = replace(TINY, voices="many", start=str(trained[0] / "model"))
    metrics = pretrain_hubert_nano(tmp_path, replace(many, loop=replace(TINY.loop, lr=1e-9)))
    assert set(metrics["probe"]) == {"held_out", "unheard"}
    assert 0 <= metrics["unheard_labels_right"] <= 100
    assert {folder.name for folder in tmp_path.iterdir()} >= {"speech", "held-out", "unheard"}
    before, after = (load_file(folder / "model" / "model.safetensors") for folder in (trained[0], tmp_path))
    assert all(torch.allclose(before[name], after[name], atol=1e-3) for name in before)


def test_labels_that_name_no_hubert_are_an_error_of_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"labels is .*nothing") as refusal:
        pretrain_hubert_nano(tmp_path, replace(TINY, labels=str(tmp_path / "nothing")))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("wrong", "name"), [({"width": 48}, "width"), ({"utterances": 0}, "utterances")])
def test_sizes_that_no_network_can_have_are_errors(wrong, name):
    with pytest.raises(ConfigError, match=name):
        replace(TINY, **wrong)


def test_the_default_is_as_small_as_it_says():
    count = sum(each.numel() for each in Hubert(hubert_nano_config(HubertNanoSettings())).parameters())
    assert 2e6 < count < 2.5e6
