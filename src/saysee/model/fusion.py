"""The multimodal fusion encoder: tokens of one modality attend to the tokens of the other.

It is used in training (cross-modal denoising, matching), for attention maps and to re-rank the first results. Retrieval
does not need it, and a model is saved without it by default.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from saysee.model.configuration import FusionConfig
from saysee.model.dropout import quicken_dropout
from saysee.model.features import ImageFeatures, SpeechFeatures


@dataclass(frozen=True)
class FusionOutput:
    """The output of the fusion encoder."""

    global_token: Tensor  # [B, W] the fused global token
    tokens: Tensor  # [B, N, W] the fused query tokens; [B, 0, W] with ``global_only``
    # [B, 1 + N, M] attention weights of the last layer over the context, averaged over heads, global token first; rows
    # sum to 1. None without ``need_attention``, which rules out the fast attention kernels
    attention: Tensor | None


class FusionEncoder(nn.Module):
    """Cross-attention layers over frames and global vectors of width D, and patches of width V."""

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
        self.score = nn.Linear(config.width, 1) if config.matching else None

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
        """Query tokens attend to the context.

        Args:
            query: [B, N, W] query tokens, from :attr:`speech_in` or :attr:`image_in`.
            context: [B, M, W] key and value tokens.
            query_mask, context_mask: [B, N] and [B, M] bool, True on real tokens; None when all are.
            vector: [B, D] global vector put in front of the queries; None puts a learned blank token there, for tasks
                in which the vector would reveal the target.
            need_attention: return the attention of the last layer too.
            global_only: return the global token alone, which saves about two thirds of the last layer.
        """
        front = self.blank.expand(len(query), -1) if vector is None else self.vector_in(vector.to(self.blank.dtype))
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

    def fuse(
        self, query: str, speech: SpeechFeatures, images: ImageFeatures, vector: Tensor | None, **options: bool
    ) -> FusionOutput:
        """Frames ("speech") or patches ("image") as the queries, the others as context; the rest as :meth:`forward`."""
        frames, patches = self._inputs(speech, images)
        if query == "speech":
            return self(frames, patches, query_mask=speech.mask, vector=vector, **options)  # type: ignore[no-any-return]
        return self(patches, frames, context_mask=speech.mask, vector=vector, **options)  # type: ignore[no-any-return]

    def match(self, speech: SpeechFeatures, images: ImageFeatures, clips: Tensor, of_clips: Tensor) -> Tensor:
        """[N] logits of whether clip ``clips[n]`` and image ``of_clips[n]`` of two batches belong together.

        The frames are the queries, whatever other tasks use. The encoder must have been made with matching.
        """
        assert self.score is not None
        frames, patches = self._inputs(speech, images)
        mask, vector = speech.mask[clips], speech.vector[clips]
        output = self(frames[clips], patches[of_clips], query_mask=mask, vector=vector, global_only=True)
        return self.score(output.global_token)[:, 0]  # type: ignore[no-any-return]

    def _inputs(self, speech: SpeechFeatures, images: ImageFeatures) -> tuple[Tensor, Tensor]:
        dtype = self.blank.dtype
        return self.speech_in(speech.frames.to(dtype)), self.image_in(images.patches.to(dtype))

    def attend(self, speech: SpeechFeatures, images: ImageFeatures) -> Tensor:
        """Attention of each speech frame over the patches: [B, F, P], each row sums to 1.

        With speech as the query these are the last layer's weights. With patches as the query, the weights that the
        patches give to a frame are transposed and normalized over the patches.
        """
        asking, other = (speech, images) if self.query == "speech" else (images, speech)
        vector = {"vector": asking.vector, "other": other.vector, "blank": None}[self.global_token]
        attention = self.fuse(self.query, speech, images, vector, need_attention=True).attention
        assert attention is not None
        if self.query == "speech":
            return attention[:, 1:]
        by_frame = attention[:, 1:].transpose(1, 2)
        return by_frame / by_frame.sum(dim=-1, keepdim=True).clamp_min(1e-12)


class FusionLayer(nn.Module):
    """Pre-norm: cross-attention to the context, self-attention among the queries, a feed-forward network.

    Without the self-attention the fused global token would not depend on the frames, nor teach them anything.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        feedforward = config.feedforward or 4 * config.width
        self.query_norm = nn.LayerNorm(config.width)
        self.context_norm = nn.LayerNorm(config.width)
        options = {"dropout": config.dropout, "batch_first": True}
        self.cross_attention = nn.MultiheadAttention(config.width, config.heads, **options)
        self.self_norm = nn.LayerNorm(config.width)
        self.self_attention = nn.MultiheadAttention(config.width, config.heads, **options)
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
        """[B, N, W] tokens and [B, M, W] context to new tokens and, with ``need_attention``, [B, N, M] cross-attention.

        With ``first_only`` the new tokens are [B, 1, W]: the first, which has attended to all others.
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
        queries = normed  # the same tensor: torch's attention is faster where queries are keys
        if first_only:
            tokens, queries = tokens[:, :1], normed[:, :1]
        shared, _ = self.self_attention(
            queries,
            normed,
            normed,
            key_padding_mask=None if token_mask is None else ~token_mask,
            need_weights=False,
        )
        tokens = tokens + self.dropout(shared)
        return tokens + self.dropout(self.feedforward(tokens)), weights
