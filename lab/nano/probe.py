"""Linear probe: how well phones of unseen voices can be read from each hidden state of a frozen HuBERT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lab.nano.labels import SILENCE, PhoneLabels
from lab.nano.speech import SpeechPool
from saysee.model.processor import SpeechImageProcessor
from saysee.model.speech_encoder import SpeechEncoder

BATCH = 25
FRAMES = 30_000
"""Number of frames that the linear layer is fitted to, drawn at random."""
ITERATIONS = 60


@dataclass(frozen=True)
class ProbeResult:
    """Accuracy of a probe.

    Attributes:
        right: percent of held-out frames of speech whose phone is right, for each hidden state, from the input of the
            first layer on.
        chance: percent that the most frequent phone would get.
        frames: number of held-out frames.
    """

    right: list[float]
    chance: float
    frames: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, rounded to a tenth of a percent."""
        return {
            "phones_right_by_layer": [round(each, 1) for each in self.right],
            "chance": round(self.chance, 1),
            "frames": self.frames,
        }


def probe_phones(
    encoder: SpeechEncoder, fit: SpeechPool, held_out: SpeechPool, utterances: int = 500, seed: int = 0
) -> ProbeResult:
    """Fits a linear layer to each hidden state on ``fit``, and scores it on ``held_out``.

    Args:
        encoder: the HuBERT, with all its hidden states.
        fit: pool whose first ``utterances`` the layers are fitted to.
        held_out: other sentences by other voices; all of them are scored.
        utterances: see ``fit``.
        seed: of the drawn frames.
    """
    labels = PhoneLabels(fit)
    train_states, train_phones = _frames(encoder, fit, min(utterances, len(fit.items)), labels)
    test_states, test_phones = _frames(encoder, held_out, len(held_out.items), labels)
    drawn = torch.randperm(len(train_phones), generator=torch.Generator().manual_seed(seed))[:FRAMES]
    right = [
        _linear_probe(train[drawn], train_phones[drawn], test, test_phones, labels.classes - 1)
        for train, test in zip(train_states, test_states, strict=True)
    ]
    most = int(train_phones.bincount().argmax())
    return ProbeResult(right, 100 * float((test_phones == most).float().mean()), len(test_phones))


@torch.no_grad()
def _frames(
    encoder: SpeechEncoder, pool: SpeechPool, utterances: int, labels: PhoneLabels
) -> tuple[list[Tensor], Tensor]:
    """Hidden states of the first utterances' frames of speech, (L + 1) x [N, S], and their phones [N], from 0."""
    processor = SpeechImageProcessor.from_sources(None, None, image_size=8, text=False)
    parts: list[list[Tensor]] = []
    phones: list[Tensor] = []
    middles = frame_middles(encoder)
    for start in range(0, utterances, BATCH):
        numbers = range(start, min(start + BATCH, utterances))
        clips = [processor.prepare_speech(pool.waveform(number)) for number in numbers]
        states, mask = encoder.layer_states(*processor.pad(clips))
        times = middles[: mask.shape[1]]
        phone = torch.from_numpy(np.stack([labels.at(pool, number, times) for number in numbers]))
        spoken = mask & (phone != SILENCE)
        parts.append([state[spoken].float() for state in states])
        phones.append(phone[spoken] - 1)
    return [torch.cat(layer) for layer in zip(*parts, strict=True)], torch.cat(phones)


def frame_middles(encoder: SpeechEncoder) -> NDArray[np.float64]:
    """Middle of each frame in seconds, for clips of up to two minutes."""
    config = encoder.hubert.config
    stride, field = 1, 1
    for kernel, step in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * stride
        stride *= step
    return (np.arange(120 * 16_000 // stride) * stride + field / 2) / 16_000


def _linear_probe(train: Tensor, train_phones: Tensor, test: Tensor, test_phones: Tensor, classes: int) -> float:
    """Multinomial logistic regression on standardized features, by L-BFGS with a little weight decay."""
    mean, std = train.mean(dim=0), train.std(dim=0) + 1e-5
    train, test = (train - mean) / std, (test - mean) / std
    weight = torch.zeros(classes, train.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(train @ weight.T + bias, train_phones) + 1e-4 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return 100 * float(((test @ weight.T + bias).argmax(dim=1) == test_phones).float().mean())
