"""hubert-nano: a small HuBERT, pre-trained by masked prediction of frame labels on synthesized English.

    python -m lab.nano.hubert --to runs/hubert-nano --start runs/many/model

is the last of three runs; ``hubert.yaml`` has the commands. The first hears espeak-ng alone, the second voices of
other synthesizers beside it, and the third brings what it makes of both closer together.

HuBERT's objective (arXiv 2106.07447): spans of frames are replaced by a learned vector, and a transformer predicts the
label of every frame, those of masked frames from their context. The labels are the synthesizer's phones with their
times, which HuBERT's clusters approximate where phones are unknown; clusters are available too. In addition the mean of
a word's frames predicts the word. ``docs/nano.md`` reports what each part is worth.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from lab.nano.labels import FrameLabels, PhoneLabels, hubert_labels, mfcc_labels, numbered
from lab.nano.loop import LoopSettings, run_steps
from lab.nano.probe import frame_middles, probe_phones
from lab.nano.running import run, save_encoder
from lab.nano.speech import ESPEAK, MANY, UNHEARD_VOICES, SpeechPool, SpokenItem
from saysee.errors import CheckpointError, ConfigError
from saysee.files import write_folder
from saysee.media.augmentation import augmented, vocal_tract
from saysee.model.configuration import HeadConfig
from saysee.model.pretrained.configuration import HubertConfig
from saysee.model.pretrained.weights import load_hubert
from saysee.model.processor import SpeechImageProcessor
from saysee.model.speech_encoder import SpeechEncoder

MASK_SPAN = 5
"""Frames masked together, 0.2 s, as in HuBERT."""


@dataclass(frozen=True)
class HubertNanoSettings:
    """Size and pre-training of hubert-nano.

    Attributes:
        width: width S; a multiple of 32.
        layers: transformer layers.
        utterances: number of sentences that are spoken to train on.
        held_out: number of further sentences, by voices of the validation split, for the learning curve.
        labels: what each frame predicts: "phones" (the synthesizer's), "mfcc" (clusters of MFCC frames, HuBERT's first
            labels), or the folder of a HuBERT whose middle hidden state is clustered (HuBERT's second labels).
        clusters: number of clusters, if clusters are the labels.
        mask_share: share of the frames at which a masked span begins.
        seen_weight: weight of the frames that are not masked (HuBERT's 1 - alpha over alpha).
        voices: who speaks: "espeak" for espeak-ng alone, or "many" for the other synthesizers' voices too.
        start: folder or packaged name of the HuBERT that training starts from; empty for random weights.
        words: number of words that are classified; rarer ones are ignored.
        word_weight: weight of the loss on words.
        align_weight: weight of the distance between two speakers of a sentence, see :func:`pair_distance`; with many
            voices.
        loop: see :class:`lab.nano.loop.LoopSettings`.
    """

    width: int = 192
    layers: int = 4
    utterances: int = 16_000
    held_out: int = 250
    labels: str = "phones"
    clusters: int = 100
    mask_share: float = 0.08
    seen_weight: float = 0.5
    voices: str = MANY
    start: str = ""
    words: int = 2_000
    word_weight: float = 0.5
    align_weight: float = 1.0
    loop: LoopSettings = field(
        default_factory=lambda: LoopSettings(steps=1600, batch_size=48, lr=1e-3, warmup_steps=100, evaluate_every=400)
    )

    def __post_init__(self) -> None:
        """Raises ConfigError for a size that no network can have."""
        if self.width < 32 or self.width % 32:
            raise ConfigError(f"width is {self.width}; it must be a multiple of 32")
        if self.voices not in (ESPEAK, MANY):
            raise ConfigError(f"voices is {self.voices!r}; it must be {ESPEAK} or {MANY}")
        for name in ("layers", "utterances", "held_out", "clusters", "words"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")


def pretrain_hubert_nano(folder: Path, settings: HubertNanoSettings) -> dict[str, Any]:
    """Pre-trains hubert-nano, and saves it with its feature extractor as ``folder/model``.

    Args:
        folder: of the speech, the log, the checkpoints and the model; an interrupted run is resumed.
        settings: see :class:`HubertNanoSettings`.

    Returns:
        The last metrics of the log, and those of the probe.

    Raises:
        ConfigError: ``labels`` names no HuBERT.
        MissingExtraError: the synthesizer is not installed.
        SaySeeError: as :func:`lab.nano.loop.run_steps` does.
    """
    seed = settings.loop.seed
    pool = SpeechPool(folder / "speech", settings.utterances, seed, "train", settings.voices)
    held_out = {"held_out": SpeechPool(folder / "held-out", settings.held_out, seed + 1, "val")}
    if settings.voices == MANY:
        held_out["unheard"] = SpeechPool(folder / "unheard", settings.held_out, seed + 2, "val", UNHEARD_VOICES)
    torch.manual_seed(seed)
    training = _Training(settings, _labels(settings, pool), pool, held_out)
    metrics = run_steps(
        "hubert-nano", folder, training.parts, settings.loop, training.loss_of, training.evaluate, asdict(settings)
    )
    hubert, extractor = training.encoder.hubert, training.processor.feature_extractor
    encoder = training.encoder.to("cpu").eval()
    metrics["probe"] = {name: probe_phones(encoder, pool, each).to_dict() for name, each in held_out.items()}
    write_folder(folder / "model", lambda temporary: save_encoder(hubert, extractor, temporary))
    return metrics


def hubert_nano_config(settings: HubertNanoSettings) -> HubertConfig:
    """HuBERT's architecture (the large kind, with layer norm) at a size for two CPU cores.

    The convolutions are coarser than HuBERT's: the first has 1,600 outputs a second instead of 3,200, and there are 25
    frames a second instead of 50, because the cost grows with both. The receptive field of a frame is 43 ms.
    """
    return HubertConfig(
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.width // 32,
        intermediate_size=4 * settings.width,
        conv_dim=(32, 64, 128, settings.width),
        conv_kernel=(20, 8, 4, 4),
        conv_stride=(10, 4, 4, 4),
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=settings.width // 32,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        initializer_range=0.06,
        feat_proj_dropout=0.0,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
    )


def _labels(settings: HubertNanoSettings, pool: SpeechPool) -> FrameLabels:
    if settings.labels == "phones":
        return PhoneLabels(pool)
    if settings.labels == "mfcc":
        encoder = SpeechEncoder(hubert_nano_config(settings), HeadConfig(heads=1), width=1)
        return mfcc_labels(pool, encoder.frame_seconds, settings.clusters, settings.loop.seed)
    try:
        return hubert_labels(pool, Path(settings.labels), settings.clusters, settings.loop.seed)
    except CheckpointError as error:
        raise ConfigError(
            f"labels is {settings.labels!r}, but there is no HuBERT ({' '.join(str(error).split())}); give phones, "
            "mfcc, or the folder of a HuBERT"
        ) from None


_Batch = tuple[list[int], list[NDArray[np.float32]], list[float], int]
"""Numbers of the utterances, clips as they are heard, the speed of each, and the seed of what is masked."""


class _Batches(Dataset[_Batch]):
    """The batch of each step, made by another process while the step before is computed."""

    def __init__(self, pool: SpeechPool, settings: LoopSettings, paired: bool) -> None:
        self._pool, self._settings = pool, settings
        alone: Sequence[tuple[int, ...]] = [(number,) for number in range(len(pool.items))]
        self._groups = pool.pairs if paired else alone

    def __getitem__(self, step: int) -> _Batch:
        draw = Random(f"{self._settings.seed} {step}")
        numbers = self._numbers(step)
        babble = [self._pool.waveform(draw.randrange(len(self._pool.items))) for _ in range(6)]
        clips, speeds = [], []
        for number in numbers:
            clip, speed = vocal_tract(self._pool.waveform(number), draw)
            clips.append(augmented(clip, draw, babble))
            speeds.append(speed)
        return numbers, clips, speeds, draw.getrandbits(63)

    def _numbers(self, step: int) -> list[int]:
        """Utterances of similar length, each at most once an epoch; or pairs of one sentence."""
        groups = self._groups
        size = max(1, self._settings.batch_size // len(groups[0]))
        batches = max(1, len(groups) // size)
        rng = Random(f"{self._settings.seed} epoch {step // batches}")
        length = [self._pool.items[first].length * (1 + 0.1 * rng.random()) for first, *_ in groups]
        order = sorted(range(len(length)), key=length.__getitem__)
        place = rng.sample(range(batches), batches)[step % batches] * size
        place += rng.randrange(max(1, len(order) - batches * size + 1))  # otherwise the longest would never be dropped
        return [number for each in order[place : place + size] for number in groups[each]]


class _Training:
    """The parts that are trained, and their data."""

    def __init__(
        self, settings: HubertNanoSettings, labels: FrameLabels, pool: SpeechPool, held_out: dict[str, SpeechPool]
    ) -> None:
        self.settings, self.labels, self.pool, self.held_out = settings, labels, pool, held_out
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.words = numbered((name for item in pool.items for name, _, _ in item.words), settings.words)
        self.encoder = SpeechEncoder(hubert_nano_config(settings), HeadConfig(heads=1), width=1)
        if settings.start:
            self.encoder.hubert.load_state_dict(load_hubert(settings.start).state_dict())
        self.parts = nn.ModuleDict(
            {
                "hubert": self.encoder.hubert,
                "label": nn.Linear(settings.width, labels.classes),
                "word": nn.Linear(settings.width, len(self.words) + 1),
            }
        ).to(self.device)
        self.processor = SpeechImageProcessor.from_sources(None, None, image_size=8, text=False)
        self.middles = frame_middles(self.encoder)
        self.aligns = bool(pool.pairs) and settings.align_weight > 0
        self._step: int | None = None
        self._loader: Iterator[_Batch]

    def loss_of(self, step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss of labels and words on the batch of this step."""
        numbers, clips, speeds, noise_seed = self._batch(step)
        hidden, frames = self._encode(clips, np.random.default_rng(noise_seed))
        labels = self._labels_at(self.pool, numbers, speeds, frames.shape[1])
        scores = self.parts["label"](hidden).float()
        masked = self._masked & frames
        masked_loss = functional.cross_entropy(scores[masked], labels[masked])
        seen_loss = functional.cross_entropy(scores[frames & ~masked], labels[frames & ~masked])
        loss = masked_loss + self.settings.seen_weight * seen_loss
        means, words = self._word_means(hidden, [self.pool.items[number] for number in numbers], speeds)
        word_loss, words_right = self._word_loss(means, words)
        if self.settings.word_weight:
            loss = loss + self.settings.word_weight * word_loss
        distance = torch.zeros((), device=self.device)
        if self.aligns:
            row, frame, share = self._same_phones(numbers, speeds, frames.shape[1])
            for state in (hidden, self._state_before):
                before, after = state[row, frame].float(), state[row, frame + 1].float()
                first, second = before.lerp(after, share[..., None])
                distance = distance + pair_distance(first, second, row[0])
            loss = loss + self.settings.align_weight * distance
        right = (scores.detach().argmax(dim=-1) == labels)[masked].float().mean()
        return loss, {
            "masked": masked_loss.detach(),
            "seen": seen_loss.detach(),
            "word": word_loss.detach(),
            "distance": distance.detach(),
            "masked_right": right,
            "words_right": words_right,
        }

    def evaluate(self) -> dict[str, float]:
        """Percent of held-out frames, nothing masked, and of held-out words that are classified right, by pool."""
        return {name: value for pool in self.held_out for name, value in self._evaluated(pool).items()}

    def _evaluated(self, name: str) -> dict[str, float]:
        pool = self.held_out[name]
        right, counted, words = 0.0, 0, []
        for start in range(0, len(pool.items), 25):
            numbers = list(range(start, min(start + 25, len(pool.items))))
            hidden, frames = self._encode([pool.waveform(number) for number in numbers], None)
            plain = [1.0] * len(numbers)
            labels = self._labels_at(pool, numbers, plain, frames.shape[1])
            counts = frames & (labels >= self.labels.least)
            right += float((self.parts["label"](hidden).argmax(dim=-1) == labels)[counts].sum())
            counted += int(counts.sum())
            means, spoken = self._word_means(hidden, [pool.items[number] for number in numbers], plain)
            words.append(self._word_loss(means, spoken)[1])
        return {f"{name}_labels_right": 100 * right / counted, f"{name}_words_right": 100 * sum(words) / len(words)}

    def _batch(self, step: int) -> _Batch:
        if step != self._step:  # the first; its process starts here, when the synthesizers' processes have ended
            batches = _Batches(self.pool, self.settings.loop, paired=self.aligns)
            order = range(step, max(step + 1, self.settings.loop.steps))
            self._loader = iter(DataLoader(batches, batch_size=None, sampler=order, num_workers=1, prefetch_factor=4))
        self._step = step + 1
        return next(self._loader)

    def _encode(self, clips: list[Any], noise: np.random.Generator | None) -> tuple[Tensor, Tensor]:
        """Last hidden states [B, F, S] and the mask of real frames [B, F]; with ``noise``, spans are masked."""
        waveforms, mask = self.processor.pad([self.processor.prepare_speech(clip) for clip in clips])
        lengths = self.encoder.frames(mask.sum(dim=1))
        frames = torch.arange(int(lengths.max())) < lengths[:, None]
        hidden = torch.zeros_like(frames)
        if noise is not None:
            starts = torch.from_numpy(noise.random(frames.shape) < self.settings.mask_share) & frames
            for ahead in range(MASK_SPAN):
                hidden[:, ahead:] |= starts[:, : frames.shape[1] - ahead]
            hidden[0, 0] = True  # never none, so that the learned vector always has a gradient
        self._masked = hidden.to(self.device)
        samples, masked = mask.sum(dim=1).to(self.device), self._masked if noise is not None else None
        *_, self._state_before, last = self.encoder.hubert(waveforms.to(self.device), samples, masked)
        return last, frames.to(self.device)

    def _labels_at(self, pool: SpeechPool, numbers: list[int], speeds: list[float], frames: int) -> Tensor:
        """[B, F] labels at the middle of each frame, of clips that are played at these speeds."""
        labels = [
            self.labels.at(pool, number, self.middles[:frames] * speed)
            for number, speed in zip(numbers, speeds, strict=True)
        ]
        return torch.from_numpy(np.stack(labels)).to(self.device)

    def _same_phones(self, numbers: list[int], speeds: list[float], frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """The middles of the phones that both speakers of a sentence have, in the order of the sentence.

        Returns:
            The rows of the batch, the frames before the middles, and the shares of the way to the next frame, all
            [2, N], espeak-ng first.
        """
        rows: list[tuple[int, int]] = []
        times: list[list[float]] = []
        for row in range(0, len(numbers), 2):
            said = [self.pool.items[number].phones for number in numbers[row : row + 2]]
            names = [[name for name, _, _ in phones] for phones in said]
            middles = [
                [(start + end) / 2 / speed for _, start, end in phones]
                for phones, speed in zip(said, speeds[row : row + 2], strict=True)
            ]
            for first, second, count in SequenceMatcher(a=names[0], b=names[1], autojunk=False).get_matching_blocks():
                rows += [(row, row + 1)] * count
                times += [[middles[0][first + each], middles[1][second + each]] for each in range(count)]
        places = (np.reshape(times, (-1, 2)) - self.middles[0]) / self.encoder.frame_seconds
        before = np.clip(places.astype(np.int64), 0, max(0, frames - 2))
        share = np.clip(places - before, 0, 1).astype(np.float32)
        row_of, frame, rest = (
            torch.from_numpy(each.T.copy()).to(self.device) for each in (np.reshape(rows, (-1, 2)), before, share)
        )
        return row_of, frame, rest

    def _word_means(self, hidden: Tensor, items: list[SpokenItem], speeds: list[float]) -> tuple[Tensor, Tensor]:
        """Mean of the frames of each known word [W, S], and the words' numbers [W]."""
        sums = functional.pad(hidden.float().cumsum(dim=1), (0, 0, 1, 0))
        rows, firsts, lasts, names = [], [], [], []
        for row, (item, speed) in enumerate(zip(items, speeds, strict=True)):
            for name, start, end in item.words:
                first, last = np.searchsorted(self.middles, (start / speed, end / speed))
                last = min(int(last), hidden.shape[1])
                if name in self.words and last > first:
                    rows.append(row)
                    firsts.append(int(first))
                    lasts.append(last)
                    names.append(self.words[name])
        place, first, last, word = (
            torch.tensor(each, dtype=torch.long, device=self.device) for each in (rows, firsts, lasts, names)
        )
        return (sums[place, last] - sums[place, first]) / (last - first)[:, None], word

    def _word_loss(self, means: Tensor, words: Tensor) -> tuple[Tensor, float]:
        """Cross-entropy of the words, each classified by the mean of its frames, and the share that is right."""
        if not len(words):
            return means.sum() * 0, 0.0
        scores = self.parts["word"](means).float()
        right = float((scores.detach().argmax(dim=-1) == words).float().mean())
        return functional.cross_entropy(scores, words), right


def pair_distance(first: Tensor, second: Tensor, sentences: Tensor) -> Tensor:
    """How far apart two speakers are in the same sounds: 0 where they are equal, some 2 where nothing is in common.

    The mean square of their differences, in variances of each dimension within a sentence. So neither smaller vectors
    help, nor vectors that tell the sentence, which both speakers share, instead of the sound. What a head learns from
    one speaker then holds for the other.

    Args:
        first: [N, S] vectors of one speaker.
        second: [N, S] vectors of another in the same places of the sentences.
        sentences: [N] number of the sentence of each.
    """
    if not len(first):
        return first.sum()
    both, groups = torch.cat([first, second]), sentences.repeat(2)
    sums = both.new_zeros(int(groups.max()) + 1, both.shape[1]).index_add(0, groups, both)
    means = sums / torch.bincount(groups).clamp_min(1)[:, None]
    variances = (both - means[groups]).square().mean(dim=0) + 1e-6
    return ((first - second).square().mean(dim=0) / variances).mean()


if __name__ == "__main__":
    sys.exit(run(HubertNanoSettings, Path(__file__).with_suffix(".yaml"), pretrain_hubert_nano))
