"""HuBERT, the mix of its layers, and the head: a global vector, frame features and their mask.

The recipe is SpeechCLIP parallel's (arXiv 2210.00705): a softmax-weighted sum of HuBERT's hidden states, a
learnable CLS token in front, post-norm transformer layers, a layer norm, and one linear layer to CLIP's width. The
frames come out of the same head as the global vector, so what cross-modal denoising teaches the frames reaches what
retrieval uses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import HubertConfig, HubertModel
from transformers.models.hubert.modeling_hubert import HubertPositionalConvEmbedding

from saysee.errors import ConfigError
from saysee.media.audio import SAMPLE_RATE
from saysee.model.configuration import HeadConfig
from saysee.model.dropout import quicken_dropout
from saysee.model.features import SpeechFeatures

NARROW_GROUP = 16
"""Channels in a group of a convolution below which bf16 is not trusted on a CPU; see :class:`ExactPositions`."""


class SpeechEncoder(nn.Module):
    """Waveforms to :class:`SpeechFeatures`.

    The same clip has the same features alone and in any batch, for both kinds of HuBERT.

    Args:
        config: of a HuBERT of the base kind (group norm) or the large kind (layer norm).
        head: configuration of the head.
        width: D, width of the joint space.

    Raises:
        ConfigError: the head's attention heads do not divide HuBERT's width, or it names a hidden state that HuBERT
            does not have.

    Attributes:
        layers: numbers of the N hidden states that are mixed, 0 to L.
        unnormed_last: the last hidden state is taken before HuBERT's final layer norm, which only the large kind has.
        frame_seconds: from one frame to the next: 0.02 for HuBERT's published sizes.
        frame_samples: T of a single frame, 400 for HuBERT's published sizes; shorter clips are padded with silence.
    """

    def __init__(self, config: HubertConfig, head: HeadConfig, width: int) -> None:
        super().__init__()
        if config.hidden_size % head.heads:
            raise ConfigError(
                f"the speech head has {head.heads} attention heads (head.heads); give a number that divides "
                f"HuBERT's width, {config.hidden_size}"
            )
        # SpecAugment would mask padding and fail on short clips; LayerDrop would leave the mix one state short.
        config.apply_spec_augment = False
        config.layerdrop = 0.0
        self.hubert = HubertModel(config)
        # Other classes rather than other modules, so that the weights keep their names.
        self.hubert.encoder.pos_conv_embed.__class__ = ExactPositions
        norm = getattr(self.hubert.feature_extractor.conv_layers[0], "layer_norm", None)
        if isinstance(norm, nn.GroupNorm):
            norm.__class__ = ClipGroupNorm
        self.unnormed_last = config.do_stable_layer_norm and head.as_published
        if self.unnormed_last:
            self.hubert.encoder.layer_norm.__class__ = UnusedNorm
        stride, self.frame_samples = 1, 1
        for kernel, step in zip(config.conv_kernel, config.conv_stride, strict=True):
            self.frame_samples += (kernel - 1) * stride
            stride *= step
        self.frame_seconds = stride / SAMPLE_RATE
        self.layers = _layer_numbers(head.speech_layers, config.num_hidden_layers)
        normalize = head.normalize_hidden_states
        self.layer_mix = LayerMix(len(self.layers), config.do_stable_layer_norm if normalize is None else normalize)
        self.head = SpeechHead(config.hidden_size, head, width)

    def forward(self, waveforms: Tensor, mask: Tensor) -> SpeechFeatures:
        """Encodes a batch of clips.

        Args:
            waveforms: [B, T] 16 kHz samples as the processor prepares them, zero where ``mask`` is False.
            mask: [B, T] bool, True on real samples; each row is True up to its clip's end.
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
        frames = self.frames(mask.sum(dim=1))
        self._set_lengths(mask)
        trains = any(parameter.requires_grad for parameter in self.hubert.parameters())
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            attended = None if _is_whole(mask) else mask.long()
            output = self.hubert(waveforms, attention_mask=attended, output_hidden_states=True)
        frame_mask = torch.arange(output.last_hidden_state.shape[1], device=mask.device) < frames[:, None]
        # Releases of transformers disagree on which side of the large kind's final norm the last hidden state is; the
        # output is the side that this encoder has chosen.
        states = (*output.hidden_states[:-1], output.last_hidden_state)
        return tuple(states[layer] for layer in self.layers), frame_mask

    def frames(self, samples: Tensor) -> Tensor:
        """Number of frames, at least one, of clips with these numbers of samples."""
        frames: Tensor = self.hubert._get_feat_extract_output_lengths(samples.clamp_min(self.frame_samples))
        return frames

    def _set_lengths(self, mask: Tensor) -> None:
        layer = self.hubert.feature_extractor.conv_layers[0]
        if isinstance(norm := getattr(layer, "layer_norm", None), ClipGroupNorm):
            # None where nothing is padded, so that several threads may encode whole clips at once.
            kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
            norm.lengths = None if _is_whole(mask) else ((mask.sum(dim=1) - kernel) // stride + 1).tolist()


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


class ClipGroupNorm(nn.GroupNorm):
    """HuBERT base's group norm over time, taken over each clip's own steps only.

    HuBERT base normalizes its first convolution over the whole time axis, so zero padding changes the features of the
    real frames and a clip's vector depends on what it was batched with. Here each clip is normalized alone, by the same
    kernel as when it comes unpadded, which is how HuBERT was pre-trained.

    Attributes:
        lengths: steps of each clip of the next batch, set before each forward pass; None normalizes over all.
    """

    lengths: list[int] | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, C, steps] to the same shape; zeros beyond each clip's own steps."""
        steps = hidden.shape[-1]
        if self.lengths is None or all(length == steps for length in self.lengths):
            return super().forward(hidden)
        return torch.cat(
            [
                functional.pad(super(ClipGroupNorm, self).forward(clip[None, :, :length]), (0, steps - length))
                for clip, length in zip(hidden, self.lengths, strict=True)
            ]
        )


class UnusedNorm(nn.LayerNorm):
    """The final layer norm of HuBERT large, which keeps its weights and is not applied."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Any shape, unchanged."""
        return hidden


class ExactPositions(HubertPositionalConvEmbedding):  # type: ignore[misc]
    """HuBERT's positional convolution, in fp32 where the CPU's bf16 convolution is wrong.

    With 2 to 12 channels in a group and HuBERT's wide kernel, the bf16 convolution of torch 2.13 gave errors as large
    as its result on a CPU with AMX (its gradient was right, so training continued and learned little). The published
    sizes have 48 and 64 channels in a group and keep their precision.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, F, S] to the same shape."""
        narrow = self.conv.in_channels // self.conv.groups < NARROW_GROUP
        if hidden.device.type != "cpu" or not narrow or not torch.is_autocast_enabled("cpu"):
            return super().forward(hidden)  # type: ignore[no-any-return]
        with torch.autocast("cpu", enabled=False):
            return super().forward(hidden.float())  # type: ignore[no-any-return]


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

    As SpeechCLIP's code, CLS starts from N(0, 1) and everything else as torch initializes it.
    """

    def __init__(self, speech_width: int, config: HeadConfig, width: int) -> None:
        super().__init__()
        self.pooling = config.pooling
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
        """[B, F, S] mixed states and their [B, F] mask to features in the joint space."""
        tokens = torch.cat([self.cls.expand(len(states), 1, -1), states], dim=1)
        padding = None if _is_whole(mask) else ~functional.pad(mask, (1, 0), value=True)
        tokens = self.projection(self.layers(tokens, src_key_padding_mask=padding))
        vector, frames = tokens[:, 0], tokens[:, 1:]
        if self.pooling == "mean":
            real = mask[..., None].to(frames.dtype)
            vector = (frames * real).sum(dim=1) / real.sum(dim=1)
        return SpeechFeatures(vector=vector, frames=frames, mask=mask)
