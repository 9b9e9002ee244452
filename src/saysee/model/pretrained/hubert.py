"""HuBERT (arXiv 2106.07447), with the weights' names of Hugging Face's checkpoints, exact in any batch.

Written here, and not taken from transformers, because a clip's vector must not depend on what it is batched with (see
:class:`ClipGroupNorm`), bf16 is wrong in one place on some CPUs (see :class:`Positions`), and because importing
transformers' models takes twice the time of importing torch, which every command would pay.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from saysee.model.pretrained.configuration import HubertConfig
from saysee.model.pretrained.layers import Attention, activation, initialize

NARROW_GROUP = 16
"""Channels in a group of a convolution below which bf16 is not trusted on a CPU; see :class:`Positions`."""


class Hubert(nn.Module):
    """Waveforms to all hidden states, the last after the final layer norm, which only the large kind has, if asked."""

    def __init__(self, config: HubertConfig, final_norm: bool = True) -> None:
        super().__init__()
        self.config = config
        self.feature_extractor = Convolutions(config)
        self.feature_projection = Projection(config)
        if config.mask_time_prob > 0:
            self.masked_spec_embed = nn.Parameter(torch.empty(config.hidden_size).uniform_())
        self.encoder = Transformer(config, final_norm)
        self.apply(self._initialize)
        if config.mask_time_prob > 0:
            nn.init.uniform_(self.masked_spec_embed)

    def forward(self, waveforms: Tensor, samples: Tensor | None = None, masked: Tensor | None = None) -> list[Tensor]:
        """The L + 1 hidden states, each [B, F, S], of waveforms [B, T] at 16 kHz, zero beyond each clip's end.

        The first is the input of the first layer. ``samples`` [B] is the length of each clip; None where none is
        shorter than T. In pre-training a learned vector replaces the frames in ``masked`` [B, F].
        """
        hidden = self.feature_projection(self.feature_extractor(waveforms, samples).transpose(1, 2))
        if masked is not None:
            hidden = torch.where(masked[..., None], self.masked_spec_embed.to(hidden.dtype), hidden)
        mask = None
        if samples is not None:
            mask = torch.arange(hidden.shape[1], device=hidden.device) < self.frames(samples)[:, None]
        return self.encoder(hidden, mask)  # type: ignore[no-any-return]

    def frames(self, samples: Tensor) -> Tensor:
        """Number of frames of clips with these numbers of samples."""
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride, strict=True):
            samples = torch.div(samples - kernel, stride, rounding_mode="floor") + 1
        return samples

    def _initialize(self, module: nn.Module) -> None:
        # The convolution of the positions keeps torch's weights: what weight norm returns is a copy.
        initialize(module, self.config.initializer_range)
        if isinstance(module, nn.Conv1d):
            with torch.no_grad():
                nn.init.kaiming_normal_(module.weight)


class Convolutions(nn.Module):
    """Waveforms [B, T] to [B, C, F]."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        widths = [1, *config.conv_dim]
        self.conv_layers = nn.ModuleList(
            Convolution(config, number, *widths[number : number + 2]) for number in range(len(config.conv_dim))
        )

    def forward(self, waveforms: Tensor, samples: Tensor | None = None) -> Tensor:
        """See :meth:`Hubert.forward`."""
        hidden = waveforms[:, None]
        for layer in self.conv_layers:
            hidden, samples = layer(hidden, samples), None  # only the first layer mixes over time what is padded
        return hidden


class Convolution(nn.Module):
    """One convolution with its norm: over each clip's time in the first layer of the base kind, over channels in every
    layer of the large kind."""

    def __init__(self, config: HubertConfig, number: int, inputs: int, outputs: int) -> None:
        super().__init__()
        kernel, stride = config.conv_kernel[number], config.conv_stride[number]
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, bias=config.conv_bias)
        self.activation = activation(config.feat_extract_activation)
        self.layer_norm: nn.Module | None = None
        if config.feat_extract_norm == "layer":
            self.layer_norm = nn.LayerNorm(outputs)
        elif number == 0:
            self.layer_norm = ClipGroupNorm(outputs, outputs)

    def forward(self, hidden: Tensor, samples: Tensor | None) -> Tensor:
        """[B, C, T] to [B, C', T']."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        if isinstance(self.layer_norm, nn.LayerNorm):
            # One matrix product leaves the channels last, where the norm needs them: on a CPU in half of the time.
            windows = hidden.transpose(1, 2).unfold(1, kernel, stride).transpose(2, 3)
            weight = self.conv.weight.transpose(1, 2).flatten(1)
            hidden = functional.linear(windows.reshape(-1, weight.shape[1]), weight, self.conv.bias)
            hidden = self.layer_norm(hidden.view(*windows.shape[:2], -1))
            return self.activation(hidden).transpose(1, 2)
        hidden = self.conv(hidden)
        if self.layer_norm is not None:
            hidden = self.layer_norm(hidden, None if samples is None else ((samples - kernel) // stride + 1).tolist())
        return self.activation(hidden)


class ClipGroupNorm(nn.GroupNorm):
    """HuBERT base's group norm over time, taken over each clip's own steps only.

    HuBERT base normalizes its first convolution over the whole time axis, so zero padding changes the features of the
    real frames and a clip's vector depends on what it was batched with. Here each clip is normalized alone, by the same
    kernel as when it comes unpadded, which is how HuBERT was pre-trained.
    """

    def forward(self, hidden: Tensor, lengths: list[int] | None = None) -> Tensor:
        """[B, C, steps] to the same shape; zeros beyond each clip's own steps, where ``lengths`` gives them."""
        steps = hidden.shape[-1]
        if lengths is None or all(length == steps for length in lengths):
            return super().forward(hidden)
        return torch.cat(
            [
                functional.pad(super(ClipGroupNorm, self).forward(clip[None, :, :length]), (0, steps - length))
                for clip, length in zip(hidden, lengths, strict=True)
            ]
        )


class Projection(nn.Module):
    """Convolved features [B, F, C] to HuBERT's width [B, F, S]."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        width = config.conv_dim[-1]
        self.layer_norm = nn.LayerNorm(width, config.layer_norm_eps) if config.feat_proj_layer_norm else None
        self.projection = nn.Linear(width, config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, F, C] to [B, F, S]."""
        hidden = hidden if self.layer_norm is None else self.layer_norm(hidden)
        return self.dropout(self.projection(hidden))  # type: ignore[no-any-return]


class Positions(nn.Module):
    """HuBERT's positional convolution, in fp32 where the CPU's bf16 convolution is wrong.

    With 2 to 12 channels in a group and HuBERT's wide kernel, the bf16 convolution of torch 2.13 gave errors as large
    as its result on a CPU with AMX (its gradient was right, so training continued and learned little). The published
    sizes have 48 and 64 channels in a group and keep their precision.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        width, kernel, groups = config.hidden_size, config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        self.batch_norm = nn.BatchNorm1d(width) if config.conv_pos_batch_norm else None
        if self.batch_norm is None:
            self.conv = weight_norm(self.conv, dim=2)
        self.activation = activation(config.feat_extract_activation)
        self.extra = 1 - kernel % 2  # frames that padding adds
        self.narrow = width // groups < NARROW_GROUP

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, F, S], zero where ``mask`` [B, F] is False, to the same shape."""
        if self.narrow and hidden.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self._convolved(hidden.float(), mask)
        return self._convolved(hidden, mask)

    def _convolved(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        hidden = hidden.transpose(1, 2)
        if self.batch_norm is not None:
            hidden = self.batch_norm(hidden)
            if mask is not None:  # the norm's bias would reach real frames, as no padding does when the clip is alone
                hidden = hidden.masked_fill(~mask[:, None], 0.0)
        hidden = self.conv(hidden)
        return self.activation(hidden[..., : hidden.shape[-1] - self.extra]).transpose(1, 2)


class FeedForward(nn.Module):
    """The two linear layers of a transformer layer."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.intermediate_dropout = nn.Dropout(config.activation_dropout)
        self.intermediate_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = activation(config.hidden_act)
        self.output_dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, F, S] to the same shape."""
        hidden = self.intermediate_dropout(self.activation(self.intermediate_dense(hidden)))
        return self.output_dropout(self.output_dense(hidden))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """A transformer layer: norms come first in the large kind, last in the base kind."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.norm_first = config.do_stable_layer_norm
        self.attention = Attention(config.hidden_size, config.num_attention_heads, config.attention_dropout)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """[B, F, S] to the same shape."""
        if self.norm_first:
            hidden = hidden + self.dropout(self.attention(self.layer_norm(hidden), mask))
            return hidden + self.feed_forward(self.final_layer_norm(hidden))  # type: ignore[no-any-return]
        hidden = self.layer_norm(hidden + self.dropout(self.attention(hidden, mask)))
        return self.final_layer_norm(hidden + self.feed_forward(hidden))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Positions and layers: the input of each layer, and the output of the last."""

    def __init__(self, config: HubertConfig, final_norm: bool) -> None:
        super().__init__()
        self.norm_first, self.final_norm = config.do_stable_layer_norm, final_norm
        self.pos_conv_embed = Positions(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden: Tensor, mask: Tensor | None) -> list[Tensor]:
        """[B, F, S] and the mask [B, F] of real frames, None where all are, to L + 1 hidden states [B, F, S]."""
        if mask is not None:
            hidden = hidden.masked_fill(~mask[..., None], 0.0)
        hidden = hidden + self.pos_conv_embed(hidden, mask)
        mask = None if mask is None else mask[:, None, None]
        states = [self.dropout(hidden if self.norm_first else self.layer_norm(hidden))]
        for layer in self.layers:
            states.append(layer(states[-1], mask))
        if self.norm_first and self.final_norm:
            states[-1] = self.layer_norm(states[-1])
        return states
