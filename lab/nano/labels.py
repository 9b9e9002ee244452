"""The labels that hubert-nano predicts: the synthesizer's phones, or clusters as in HuBERT.

HuBERT (arXiv 2106.07447, section IV-B) has no phones: its first labels are clusters of MFCC frames, its second ones
clusters of a hidden state of the model that the first gave. ``docs/nano.md`` compares both with phones.

Shapes: F frames, W width of what is clustered, K clusters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.audio_utils import mel_filter_bank, spectrogram

from lab.nano.speech import SpeechPool
from saysee.log import progress_bar
from saysee.media.audio import SAMPLE_RATE
from saysee.model.configuration import HeadConfig
from saysee.model.pretrained.weights import load_hubert
from saysee.model.processor import SpeechImageProcessor
from saysee.model.speech_encoder import SpeechEncoder

SILENCE = 0
"""Label of a frame without speech."""
FITTED_UTTERANCES = 2_000
"""Utterances whose frames the clusters are fitted to: some 80,000 frames for 100 clusters."""
ROUNDS = 30  # of Lloyd's algorithm; the last ones moved no center by more than a hundredth of its distance to the next
CEPSTRA = 13  # with their first and second differences 39 values, as in HuBERT's first labels
MEL_BANDS = 40


class FrameLabels(Protocol):
    """Labels of the utterances of a pool, 0 to ``classes`` - 1.

    Attributes:
        classes: number of labels.
        least: the first label that counts for accuracy: silence, which is easy, does not.
    """

    classes: int
    least: int

    def at(self, pool: SpeechPool, number: int, times: NDArray[np.float64]) -> NDArray[np.int64]:
        """Labels of an utterance at these times, in seconds of the clean clip, ascending."""
        ...


class PhoneLabels:
    """The synthesizer's phones, and :data:`SILENCE`.

    Args:
        pool: its phones are the labels.
    """

    def __init__(self, pool: SpeechPool) -> None:
        self.phones = numbered(name for item in pool.items for name, _, _ in item.phones)
        self.classes, self.least = len(self.phones) + 1, SILENCE + 1

    def at(self, pool: SpeechPool, number: int, times: NDArray[np.float64]) -> NDArray[np.int64]:
        """See :class:`FrameLabels`."""
        labels = np.full(len(times), SILENCE, dtype=np.int64)
        for name, start, end in pool.items[number].phones:
            first, last = np.searchsorted(times, (start, end))
            labels[first:last] = self.phones.get(name, SILENCE)
        return labels


class ClusterLabels:
    """The nearest of K centers that k-means finds among the frames of a pool.

    Args:
        pool: its first ``FITTED_UTTERANCES`` are clustered.
        features: a clean clip's frames [F, W], one every ``frame_seconds``.
        frame_seconds: see ``features``.
        clusters: K.
        seed: of the initial centers.
    """

    def __init__(
        self,
        pool: SpeechPool,
        features: Callable[[NDArray[np.float32]], NDArray[np.float32]],
        frame_seconds: float,
        clusters: int,
        seed: int,
    ) -> None:
        self.classes, self.least = clusters, 0
        self._features, self._frame_seconds = features, frame_seconds
        self._labels: dict[int, list[NDArray[np.int64]]] = {}
        fitted = range(min(FITTED_UTTERANCES, len(pool.items)))
        frames = torch.from_numpy(np.concatenate([features(pool.waveform(number)) for number in fitted]))
        self._mean, self._std = frames.mean(dim=0), frames.std(dim=0) + 1e-5
        generator = torch.Generator().manual_seed(seed)
        self._centers = k_means((frames - self._mean) / self._std, clusters, ROUNDS, generator)

    def at(self, pool: SpeechPool, number: int, times: NDArray[np.float64]) -> NDArray[np.int64]:
        """See :class:`FrameLabels`."""
        if id(pool) not in self._labels:
            self._labels[id(pool)] = [self._nearest_labels(pool.waveform(each)) for each in range(len(pool.items))]
        labels = self._labels[id(pool)][number]
        return labels[np.clip((times / self._frame_seconds).astype(np.int64), 0, len(labels) - 1)]

    def _nearest_labels(self, waveform: NDArray[np.float32]) -> NDArray[np.int64]:
        frames = (torch.from_numpy(self._features(waveform)) - self._mean) / self._std
        nearest: NDArray[np.int64] = _nearest(frames, self._centers).numpy()
        return nearest


def mfcc_labels(pool: SpeechPool, frame_seconds: float, clusters: int, seed: int) -> ClusterLabels:
    """HuBERT's first labels: clusters of MFCC frames with their first and second differences."""
    return ClusterLabels(pool, lambda waveform: mfcc(waveform, frame_seconds), frame_seconds, clusters, seed)


def hubert_labels(pool: SpeechPool, folder: Path, clusters: int, seed: int) -> ClusterLabels:
    """HuBERT's second labels: clusters of the middle hidden state of an earlier model (HuBERT base: 6 of 12).

    Args:
        pool: as for :class:`ClusterLabels`.
        folder: the earlier model, in the Hugging Face layout.
        clusters: K.
        seed: of the initial centers.

    Raises:
        CheckpointError: there is no such model.
    """
    hubert = load_hubert(folder)
    middle = hubert.config.num_hidden_layers // 2
    encoder = SpeechEncoder(hubert.config, HeadConfig(heads=1, speech_layers=[middle]), width=1)
    encoder.hubert.load_state_dict(hubert.state_dict())
    encoder.eval()
    processor = SpeechImageProcessor.from_sources(None, None, image_size=8, text=False)

    @torch.no_grad()
    def states(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        (state,), _ = encoder.layer_states(*processor.pad([processor.prepare_speech(waveform)]))
        return np.asarray(state[0].float())

    return ClusterLabels(pool, states, encoder.frame_seconds, clusters, seed)


def mfcc(waveform: NDArray[np.float32], frame_seconds: float) -> NDArray[np.float32]:
    """Mel-frequency cepstra with their first and second differences: [F, 39], one row every ``frame_seconds``."""
    hop = round(frame_seconds * SAMPLE_RATE)
    bins = 1 << (hop - 1).bit_length()
    filters = mel_filter_bank(bins // 2 + 1, MEL_BANDS, 20.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney")
    padded = np.pad(waveform, (0, max(0, hop - len(waveform))))
    bands = spectrogram(
        padded, np.hanning(hop), hop, hop, fft_length=bins, power=2.0, center=False, mel_filters=filters, log_mel="log"
    )
    angles = np.pi / MEL_BANDS * np.outer(np.arange(CEPSTRA), np.arange(MEL_BANDS) + 0.5)
    cepstra = (np.cos(angles) @ bands).T
    first = np.gradient(cepstra, axis=0) if len(cepstra) > 1 else np.zeros_like(cepstra)
    second = np.gradient(first, axis=0) if len(cepstra) > 1 else first
    return np.concatenate([cepstra, first, second], axis=1).astype(np.float32)


def k_means(points: Tensor, clusters: int, rounds: int, generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm from centers drawn as k-means++ does; a center without points moves to a random point.

    Args:
        points: [N, W].
        clusters: K, at most N.
        rounds: number of updates of the centers.
        generator: of the random draws.

    Returns:
        [K, W].
    """
    centers = points[torch.randint(len(points), (1,), generator=generator)]
    distances = (points - centers).square().sum(dim=1)
    for _ in range(clusters - 1):
        drawn = torch.multinomial(distances.clamp_min(1e-12), 1, generator=generator)
        centers = torch.cat([centers, points[drawn]])
        distances = torch.minimum(distances, (points - points[drawn]).square().sum(dim=1))
    with progress_bar("clustering", rounds) as bar:
        for _ in range(rounds):
            nearest = _nearest(points, centers)
            counts = torch.bincount(nearest, minlength=clusters)
            sums = torch.zeros_like(centers).index_add_(0, nearest, points)
            empty = points[torch.randint(len(points), (clusters,), generator=generator)]
            centers = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], empty)
            bar.update()
    return centers


def _nearest(points: Tensor, centers: Tensor) -> Tensor:
    """[N] number of the nearest center of each point."""
    return (centers.square().sum(dim=1) - 2 * points @ centers.T).argmin(dim=1)


def numbered(names: Iterable[str], most: int | None = None) -> dict[str, int]:
    """Names and their numbers from 1, by descending frequency."""
    return {name: number for number, (name, _) in enumerate(Counter(names).most_common(most), start=1)}
