"""Labels of frames: clusters are what k-means makes of frames, and lie where the frames lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lab.nano.labels import ClusterLabels, hubert_labels, k_means, mfcc
from transformers import HubertModel

from saysee.model.processor import SpeechImageProcessor


class Clips:
    """A pool of given waveforms."""

    def __init__(self, *clips):
        self.clips, self.items = clips, clips

    def waveform(self, number):
        return self.clips[number]


def tone(hertz, seconds):
    return np.sin(2 * np.pi * hertz * np.arange(round(16_000 * seconds)) / 16_000).astype(np.float32)


def test_k_means_finds_heaps_that_lie_apart():
    heaps = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [30.0, 30.0]])
    generator = torch.Generator().manual_seed(0)
    points = heaps.repeat(50, 1) + torch.randn(200, 2, generator=generator) * 0.1
    centers = k_means(points, 4, 10, generator)
    assert torch.allclose(centers[centers.sum(dim=1).argsort()].sum(dim=1), torch.tensor([0.0, 10, 10, 60]), atol=0.3)


def test_k_means_is_the_same_for_the_same_seed_and_outlives_points_that_are_all_alike():
    points = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    once, again = (k_means(points, 5, 8, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(once, again)
    assert torch.isfinite(k_means(torch.ones(20, 3), 4, 5, torch.Generator().manual_seed(0))).all()


def test_mfcc_has_a_row_a_hop_separates_tones_and_has_loudness_in_the_first_coefficient_only():
    low, high = mfcc(tone(300, 1.0), 0.04), mfcc(tone(3000, 1.0), 0.04)
    assert low.shape == high.shape == (25, 39)
    assert np.abs(low[:, 1:13].mean(axis=0) - high[:, 1:13].mean(axis=0)).max() > 5
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    loud, quiet = mfcc(noise, 0.04), mfcc(0.1 * noise, 0.04)
    assert quiet[:, 1:13] == pytest.approx(loud[:, 1:13], abs=0.01)
    assert (quiet[:, 0] < loud[:, 0]).all()
    assert mfcc(tone(300, 0.01), 0.04).shape == (1, 39)


def test_clusters_follow_the_sound_and_its_times():
    """Half a second of one tone, then of another: two clusters, changing at half a second."""
    pool = Clips(np.concatenate([tone(300, 0.5), tone(3000, 0.5)]), np.concatenate([tone(3000, 0.5), tone(300, 0.5)]))
    labels = ClusterLabels(pool, lambda clip: mfcc(clip, 0.04)[:, :13], 0.04, 2, seed=0)
    times = np.array([0.1, 0.2, 0.3, 0.6, 0.7, 0.9, 5.0])
    there, back = labels.at(pool, 0, times), labels.at(pool, 1, times)
    assert labels.classes == 2
    assert there.tolist() in ([0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0])
    assert (there == 1 - back).all()


def test_second_labels_are_clusters_of_the_middle_hidden_state(tmp_path, hubert_configs):
    torch.manual_seed(0)
    hubert = HubertModel(hubert_configs["large"]).eval()
    hubert.save_pretrained(tmp_path)
    clip = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    found = hubert_labels(Clips(clip), tmp_path, 3, seed=0)
    middle = hubert.config.num_hidden_layers // 2
    waveform, mask = SpeechImageProcessor.pad([(clip - clip.mean()) / np.sqrt(clip.var() + 1e-7)])
    with torch.no_grad():
        states = hubert(waveform, attention_mask=mask.long(), output_hidden_states=True).hidden_states[middle][0]
    assert torch.from_numpy(found._features(clip)).allclose(states, atol=1e-4)
