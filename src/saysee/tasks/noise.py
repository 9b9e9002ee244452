"""Noisy features: some tokens are replaced, by default by tokens of other images of the batch."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from saysee.settings.recipe import SpeechNoiseSettings

NoiseSource = Literal["same_position", "any_position", "alike", "zeros", "gaussian"]


def blocks(side: str, tokens: int, size: int, device: torch.device) -> Tensor:
    """[N] for each of N tokens the number of the block in which it is replaced, from 0 on.

    Blocks are squares of ``size`` by ``size`` patches ("image"), or runs of ``size`` frames ("speech"); those at the
    end may be smaller.
    """
    places = torch.arange(tokens, device=device)
    if side == "speech":
        return places // size
    width = math.isqrt(tokens)
    return places // width // size * -(-width // size) + places % width // size


def corrupt(
    tokens: Tensor,
    mask: Tensor,
    image_ids: Tensor,
    share: float,
    source: NoiseSource,
    vectors: Tensor,
    together: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Replaces a share of each item's tokens.

    Draws from torch's global generator. Where a replacement would come from another image and the batch has none, the
    item keeps its tokens, and the returned mask is False there.

    Args:
        tokens: [B, N, W] clean tokens (patches or frames).
        mask: [B, N] bool, True on real tokens; only these are replaced and only these replace.
        image_ids: [B] int; a replacement never comes from the same image.
        share: 0 to 1, of each item's real tokens, rounded to whole tokens.
        source: "same_position" and "any_position" take each token from another image, drawn independently (the first
            wraps around where the other item is shorter); "alike" takes all tokens from the same positions of one other
            image, the one whose vector has the highest cosine with the item's; "zeros"; "gaussian" has the mean and
            standard deviation of the batch's real tokens, per feature.
        vectors: [B, D] global vectors of the items, which "alike" compares.
        together: [N] as of :func:`blocks`: whole blocks are replaced, each by one donor's (from any position on), up to
            a last one that is cut to keep the share; None replaces each token for itself.

    Returns the noisy tokens [B, N, W], and a mask [B, N] bool of the replaced ones.
    """
    lengths, places = mask.sum(dim=1), torch.arange(tokens.shape[1], device=tokens.device)
    together, count = (places, len(places)) if together is None else (together, int(together[-1]) + 1)
    turns = torch.rand(len(mask), count, device=tokens.device)[:, together].masked_fill(~mask, 2.0)
    order = turns.argsort(dim=1, stable=True).argsort(dim=1)
    replaced = order < (lengths * share).round()[:, None]
    if source == "zeros":
        replacement = torch.zeros_like(tokens)
    elif source == "gaussian":
        real = tokens[mask].float()
        noise = torch.randn(tokens.shape, device=tokens.device)
        replacement = (real.mean(dim=0) + real.std(dim=0, correction=0) * noise).to(tokens.dtype)
    else:
        if source == "alike":
            donors, has_donor = _most_alike(vectors, image_ids, count)
        else:
            donors, has_donor = _draw_donors(image_ids, count)
        donors, replaced = donors[:, together], replaced & has_donor[:, None]
        positions = places.expand(mask.shape)
        if source == "any_position":
            first = (torch.rand(len(mask), count, device=tokens.device)[:, together] * lengths[donors]).long()
            starts = torch.full_like(places, len(places)).scatter_reduce(0, together, places, "amin")
            positions = first + places - starts[together]
        replacement = tokens[donors, positions % lengths[donors]]
    return torch.where(replaced[..., None], replacement, tokens), replaced


def with_gaps(
    states: Tensor, mask: Tensor, image_ids: Tensor, settings: SpeechNoiseSettings, frame_seconds: float
) -> Tensor:
    """Replaces spans of some clips, each clip's by one clip of another image. Draws from torch's global generator.

    Only real frames, of which the mask [B, F] is True, are replaced and replace others. Without another image a clip
    stays as it is. ``frame_seconds`` are from one frame to the next. Returns the noisy frames [B, F, S].
    """
    span = max(1, round(settings.seconds / frame_seconds))
    # A frame is kept if none of the ``span`` frames up to it begins a gap.
    begins = torch.rand(mask.shape, device=mask.device) < 1 - (1 - settings.share) ** (1 / span)
    gap = functional.max_pool1d(functional.pad(begins.float(), (span - 1, 0)), span, stride=1) > 0
    gap = gap & mask & (torch.rand(len(mask), 1, device=mask.device) < settings.clips)
    if settings.source == "zeros":
        return states.masked_fill(gap[..., None], 0)
    donors, has_donor = _draw_donors(image_ids, 1)
    lengths = mask.sum(dim=1)[donors]
    first = (torch.rand(len(mask), 1, device=mask.device) * lengths).long()
    positions = (first + torch.arange(mask.shape[1], device=mask.device)) % lengths
    return torch.where((gap & has_donor[:, None])[..., None], states[donors, positions], states)


def _most_alike(vectors: Tensor, image_ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As :func:`_draw_donors`, with the same donor for all ``count``: the most similar item of another image."""
    unit = functional.normalize(vectors.detach().float(), dim=-1)
    other = image_ids[:, None] != image_ids[None, :]
    nearest = (unit @ unit.T).masked_fill(~other, -torch.inf).argmax(dim=1)
    return nearest[:, None].expand(-1, count), other.any(dim=1)


def _draw_donors(image_ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """For each item, ``count`` random items of other images [B, count], and whether there is any [B]."""
    other = image_ids[:, None] != image_ids[None, :]
    has_donor = other.any(dim=1)
    # Items without another image still need a valid distribution; their draws are not used.
    chances = torch.where(has_donor[:, None], other, torch.ones_like(other)).float()
    return torch.multinomial(chances, count, replacement=True), has_donor
