"""HuBERT, the mix of its layers, and the head: a global vector, frame features and their mask.

The recipe is SpeechCLIP parallel's (arXiv 2210.00705): a softmax-weighted sum of HuBERT's hidden states, a
learnable CLS token in front, post-norm transformer layers, a layer norm, and one linear layer to CLIP's width. The
frames come out of the same head as the global vector, so what cross-modal denoising teaches the frames reaches what
retrieval uses.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from saysee.errors import ConfigError
from saysee.media.audio import SAMPLE_RATE
from saysee.model.configuration import HeadConfig
from saysee.model.dropout import quicken_dropout
from saysee.model.features import SpeechFeatures
from saysee.model.pretrained.configuration import HubertConfig
from saysee.model.pretrained.hubert import Hubert


class SpeechEncoder(nn.Module):
    """Waveforms to :class:`SpeechFeatures`.

    The same clip has the same features alone and in any batch, for both kinds of HuBERT. ``width`` is D. Raises
    ConfigError if the head's attention heads do not divide HuBERT's width, or it names a hidden state that HuBERT does
    not have.

    Attributes:
        config: HuBERT's.
        layers: numbers of the N hidden states that are mixed, 0 to L.
        unnormed_last: the last hidden state is taken before HuBERT's final layer norm, which only the large kind has.
        frame_seconds: from one frame of HuBERT to the next: 0.02 for its published sizes.
        feature_seconds: from one frame of the features to the next: ``frame_seconds`` times the head's stride.
        frame_samples: T of a single frame, 400 for HuBERT's published sizes; shorter clips are padded with silence.
    """

    def __init__(self, config: HubertConfig, head: HeadConfig, width: int) -> None:
        super().__init__()
        if config.hidden_size % head.heads:
            raise ConfigError(
                f"the speech head has {head.heads} attention heads (head.heads); give a number that divides "
                f"HuBERT's width, {config.hidden_size}"
            )
        self.config = config
        self.unnormed_last = config.do_stable_layer_norm and head.as_published
        self.hubert = Hubert(config, final_norm=not self.unnormed_last)
        stride, self.frame_samples = 1, 1
        for kernel, step in zip(config.conv_kernel, config.conv_stride, strict=True):
            self.frame_samples += (kernel - 1) * stride
            stride *= step
        self.frame_seconds = stride / SAMPLE_RATE
        self.feature_seconds = self.frame_seconds * head.stride
        self.layers = _layer_numbers(head.speech_layers, config.num_hidden_layers)
        normalize = head.normalize_hidden_states
        self.layer_mix = LayerMix(len(self.layers), config.do_stable_layer_norm if normalize is None else normalize)
        self.head = SpeechHead(config.hidden_size, head, width)

    def forward(self, waveforms: Tensor, mask: Tensor) -> SpeechFeatures:
        """Encodes clips [B, T] of 16 kHz as the processor prepares them, zero where ``mask`` is False.

        The mask [B, T] bool is True on real samples, in each row up to its clip's end.
        """
        return self.from_layer_states(*self.layer_states(waveforms, mask))

    def from_layer_states(self, states: Sequence[Tensor] | Tensor, mask: Tensor) -> SpeechFeatures:
        """The second half of :meth:`forward`: takes what :meth:`layer_states` returned, the states also as a tensor."""
        return self.head(self.layer_mix(states), mask)  # type: ignore[no-any-return]

    def layer_states(self, waveforms: Tensor, mask: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The N hidden states that are mixed, each [B, F, S], and the mask of real frames [B, F]."""
        short = self.frame_samples - waveforms.shape[1]
        if short > 0:
            waveforms, mask = functional.pad(waveforms, (0, short)), functional.pad(mask, (0, short))
        mask = mask | (torch.arange(mask.shape[1], device=mask.device) < self.frame_samples)
        samples = mask.sum(dim=1)
        trains = any(parameter.requires_grad for parameter in self.hubert.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            states = self.hubert(waveforms, None if _is_whole(mask) else samples)
        frame_mask = torch.arange(states[0].shape[1], device=mask.device) < self.frames(samples)[:, None]
        return tuple(states[layer] for layer in self.layers), frame_mask

    def frames(self, samples: Tensor) -> Tensor:
        """Number of frames, at least one, of clips with these numbers of samples."""
        return self.hubert.frames(samples.clamp_min(self.frame_samples))


def _is_whole(mask: Tensor) -> bool:
    """Whether nothing is padded: attention without a mask is faster. On a GPU the check would wait for the device."""
    return mask.device.type == "cpu" and bool(mask.all())


def _layer_numbers(chosen: list[int] | None, last: int) -> list[int]:
    """The chosen hidden states as numbers from 0 to ``last``."""
    if chosen is None:
        return list(range(last + 1))
    numbers = [layer if layer >= 0 else last + 1 + layer for layer in chosen]
    if not numbers or len(set(numbers)) < len(numbers) or not all(0 <= number <= last for number in numbers):
        raise ConfigError(
            f"head.speech_layers is {chosen}; this HuBERT has hidden states 0 to {last}, or {-last - 1} to -1 counted "
            "from the last: name some of them, each once"
        )
    return numbers


class LayerMix(nn.Module):
    """Softmax-weighted sum of N hidden states, layer-normalized first with ``normalize``; the weights start equal."""

    def __init__(self, states: int, normalize: bool) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(states))
        self.normalize = normalize

    def forward(self, hidden_states: Sequence[Tensor] | Tensor) -> Tensor:
        """N x [B, F, S], as one tensor or several, to [B, F, S]."""
        mixed: Tensor | None = None
        for weight, state in zip(self.weights.softmax(dim=0), hidden_states, strict=True):
            if self.normalize:
                state = functional.layer_norm(state, state.shape[-1:])
            mixed = weight * state if mixed is None else mixed + weight * state
        assert mixed is not None
        return mixed


class SpeechHead(nn.Module):
    """A learnable CLS in front of the frames, transformer layers, a norm, and one linear layer to the joint space.

    With a stride the frames are averaged in runs of so many first, and the features have one for each run.
    As SpeechCLIP's code, CLS starts from N(0, 1) and everything else as torch initializes it.
    """

    def __init__(self, speech_width: int, config: HeadConfig, width: int) -> None:
        super().__init__()
        self.pooling, self.stride = config.pooling, config.stride
        self.cls = nn.Parameter(torch.randn(speech_width))
        layer = nn.TransformerEncoderLayer(
            speech_width,
            config.heads,
            dim_feedforward=config.feedforward or 4 * speech_width,
            dropout=config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=False,
        )
        norm = nn.LayerNorm(speech_width) if config.as_published else None
        # Nested tensors would drop the rows of padded frames and change the shape that the mask describes.
        self.layers = nn.TransformerEncoder(layer, config.layers, norm, enable_nested_tensor=False)
        quicken_dropout(self.layers)
        self.projection = nn.Linear(speech_width, width)

    def forward(self, states: Tensor, mask: Tensor) -> SpeechFeatures:
        """[B, F, S] mixed states and their [B, F] mask to features in the joint space, of F / stride frames."""
        if self.stride > 1:
            states, mask = _averaged(states, mask, self.stride)
        tokens = torch.cat([self.cls.expand(len(states), 1, -1), states], dim=1)
        padding = None if _is_whole(mask) else ~functional.pad(mask, (1, 0), value=True)
        tokens = self.projection(self.layers(tokens, src_key_padding_mask=padding))
        vector, frames = tokens[:, 0], tokens[:, 1:]
        if self.pooling == "mean":
            real = mask[..., None].to(frames.dtype)
            vector = (frames * real).sum(dim=1) / real.sum(dim=1)
        return SpeechFeatures(vector=vector, frames=frames, mask=mask)


def _averaged(states: Tensor, mask: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """The means of the real frames of each run of ``stride``, and whether it has any."""
    batch, short = len(mask), -mask.shape[1] % stride
    groups = functional.pad(states, (0, 0, 0, short)).reshape(batch, -1, stride, states.shape[2])
    real = functional.pad(mask, (0, short)).reshape(batch, -1, stride)
    counts = real.sum(dim=2, keepdim=True).clamp_min(1).to(states.dtype)
    return groups.masked_fill(~real[..., None], 0).sum(dim=2) / counts, real.any(dim=2)
