"""The multimodal fusion encoder: tokens of one modality attend to the tokens of the other.

It exists for training (cross-modal denoising) and for pictures of attention. It is no part of retrieval, and a saved
model leaves it out unless asked: the cost of a query is the dual encoder's alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from saysee.model.configuration import FusionConfig
from saysee.model.dropout import quicken_dropout
from saysee.model.features import ImageFeatures, SpeechFeatures


@dataclass(frozen=True)
class FusionOutput:
    """What the fusion encoder gives.

    Attributes:
        global_token: [B, W] the fused global token.
        tokens: [B, N, W] the fused query tokens; [B, 0, W] where only the global token was asked for.
        attention: [B, 1 + N, M] weights by which the last layer looks at the context, averaged over heads, global
            token first; rows sum to 1. None unless asked for, because asking leaves the fast attention kernels.
    """

    global_token: Tensor
    tokens: Tensor
    attention: Tensor | None


class FusionEncoder(nn.Module):
    """Cross-attention layers over speech frames and image patches.

    Args:
        config: width, depth and which modality asks.
        speech_width: D, width of frames and of global vectors.
        image_width: V, width of patches.
    """

    def __init__(self, config: FusionConfig, speech_width: int, image_width: int) -> None:
        super().__init__()
        self.query = config.query
        self.global_token = config.global_token
        self.speech_in = nn.Sequential(nn.LayerNorm(speech_width), nn.Linear(speech_width, config.width))
        self.image_in = nn.Sequential(nn.LayerNorm(image_width), nn.Linear(image_width, config.width))
        self.vector_in = nn.Sequential(nn.LayerNorm(speech_width), nn.Linear(speech_width, config.width))
        self.blank = nn.Parameter(torch.randn(config.width) * 0.02)
        self.layers = nn.ModuleList([FusionLayer(config) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(config.width)

    def forward(
        self,
        query: Tensor,
        context: Tensor,
        *,
        query_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        vector: Tensor | None = None,
        need_attention: bool = False,
        global_only: bool = False,
    ) -> FusionOutput:
        """Lets queries look at the context.

        Args:
            query: [B, N, W] tokens that ask, from :attr:`speech_in` or :attr:`image_in`.
            context: [B, M, W] tokens that are looked at.
            query_mask: [B, N] bool, True on real tokens; None when all are.
            context_mask: [B, M] bool, True on real tokens; None when all are.
            vector: [B, D] global vector to put in front of the queries; None puts a learned blank there, for when the
                true one would give away what is to be rebuilt.
            need_attention: also return the last layer's attention.
            global_only: the fused query tokens are of no use; the last layer then leaves out what only they need, about
                two thirds of it.
        """
        front = self.blank.expand(len(query), -1) if vector is None else self.vector_in(vector)
        tokens = torch.cat([front[:, None], query], dim=1)
        if query_mask is not None:
            query_mask = functional.pad(query_mask, (1, 0), value=True)
        attention: Tensor | None = None
        for index, layer in enumerate(self.layers):
            last = index == len(self.layers) - 1
            tokens, attention = layer(
                tokens, query_mask, context, context_mask, need_attention and last, global_only and last
            )
        tokens = self.norm(tokens)
        return FusionOutput(global_token=tokens[:, 0], tokens=tokens[:, 1:], attention=attention)

    def attend(self, speech: SpeechFeatures, images: ImageFeatures) -> Tensor:
        """Where each moment of speech looks: [B, F, P], each row sums to 1.

        With speech as the query these are the last layer's weights. With patches as the query, the weights that each
        patch gives to a frame are read the other way and normalised over patches.
        """
        frames, patches = self.speech_in(speech.frames), self.image_in(images.patches)
        asker, other = (speech, images) if self.query == "speech" else (images, speech)
        vector = {"vector": asker.vector, "other": other.vector, "blank": None}[self.global_token]
        if self.query == "speech":
            output: FusionOutput = self(frames, patches, query_mask=speech.mask, vector=vector, need_attention=True)
            assert output.attention is not None
            return output.attention[:, 1:]
        output = self(patches, frames, context_mask=speech.mask, vector=vector, need_attention=True)
        assert output.attention is not None
        by_frame = output.attention[:, 1:].transpose(1, 2)
        return by_frame / by_frame.sum(dim=-1, keepdim=True).clamp_min(1e-12)


class FusionLayer(nn.Module):
    """Pre-norm: queries look at the context, then at each other, then a feed-forward network.

    Without the look at each other the fused global token could not know what the frames have seen, and a task on it
    would teach the frames nothing.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        feedforward = config.feedforward or 4 * config.width
        self.query_norm = nn.LayerNorm(config.width)
        self.context_norm = nn.LayerNorm(config.width)
        self.cross_attention = nn.MultiheadAttention(
            config.width, config.heads, dropout=config.dropout, batch_first=True
        )
        self.self_norm = nn.LayerNorm(config.width)
        self.self_attention = nn.MultiheadAttention(
            config.width, config.heads, dropout=config.dropout, batch_first=True
        )
        self.feedforward = nn.Sequential(
            nn.LayerNorm(config.width),
            nn.Linear(config.width, feedforward),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(feedforward, config.width),
        )
        self.dropout = nn.Dropout(config.dropout)
        quicken_dropout(self)

    def forward(
        self,
        tokens: Tensor,
        token_mask: Tensor | None,
        context: Tensor,
        context_mask: Tensor | None,
        need_attention: bool,
        first_only: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """[B, N, W] tokens and [B, M, W] context to new tokens and, if asked, [B, N, M] cross-attention.

        With ``first_only`` the new tokens are [B, 1, W]: the first, which has looked at all the others.
        """
        context = self.context_norm(context)
        seen, weights = self.cross_attention(
            self.query_norm(tokens),
            context,
            context,
            key_padding_mask=None if context_mask is None else ~context_mask,
            need_weights=need_attention,
        )
        tokens = tokens + self.dropout(seen)
        normed = self.self_norm(tokens)
        asking = normed  # the same tensor: torch's attention is quicker where queries are keys
        if first_only:
            tokens, asking = tokens[:, :1], normed[:, :1]
        shared, _ = self.self_attention(
            asking,
            normed,
            normed,
            key_padding_mask=None if token_mask is None else ~token_mask,
            need_weights=False,
        )
        tokens = tokens + self.dropout(shared)
        return tokens + self.dropout(self.feedforward(tokens)), weights
