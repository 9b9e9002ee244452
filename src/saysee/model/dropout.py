"""Dropout that is fast on a CPU.

On a CPU, torch 2.13 draws one random number for each value, on one core: a fifth of a training step of the recipe
``nano``, profiled on two AMD cores. Here a random number of 64 bits serves four values, 16 bits each. The distribution
is the same to 1 in 65,536.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_CHANCES = 2**16


def quicken_dropout(module: nn.Module) -> None:
    """Makes dropout fast on a CPU in every ``Dropout`` and ``MultiheadAttention``; nothing else of a module changes."""
    for part in module.modules():
        part.__class__ = _QUICK.get(type(part), type(part))


class QuickDropout(nn.Dropout):
    """``torch.nn.Dropout``, fast on a CPU."""

    def forward(self, values: Tensor) -> Tensor:
        """Any shape to the same; in training a share ``p`` of the values is 0 and the others are scaled up."""
        if not self.training or values.device.type != "cpu":
            return super().forward(values)
        return _dropout(values, self.p)


class QuickDropoutAttention(nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` whose dropout of attention weights is fast on a CPU.

    It is for modules with batches first and keys and values of the queries' width, as all of this package are. It
    applies where keys are values, and neither weights nor an attention mask are used; otherwise torch's implementation
    runs.
    """

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        **masks: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As torch's: [B, N, E] queries, [B, M, E] keys and their mask [B, M] to [B, N, E]; no row is padding alone."""
        drops = self.training and self.dropout > 0 and query.device.type == "cpu"
        masked = masks.get("attn_mask") is not None or masks.get("is_causal")
        if not drops or need_weights or masked or key is not value:
            return super().forward(query, key, value, key_padding_mask, need_weights, **masks)
        width, weight, bias = self.embed_dim, self.in_proj_weight, self.in_proj_bias
        if query is key:
            queries, keys, values = functional.linear(query, weight, bias).chunk(3, dim=-1)
        else:
            own, other = (None, None) if bias is None else (bias[:width], bias[width:])
            queries = functional.linear(query, weight[:width], own)
            keys, values = functional.linear(key, weight[width:], other).chunk(2, dim=-1)
        queries, keys, values = (
            each.view(*each.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)
            for each in (queries, keys, values)
        )
        scores = (queries * self.head_dim**-0.5) @ keys.transpose(-2, -1)
        if key_padding_mask is not None:
            if key_padding_mask.dtype == torch.bool:
                scores = scores.masked_fill(key_padding_mask[:, None, None], -math.inf)
            else:
                scores = scores + key_padding_mask[:, None, None].to(scores.dtype)
        attended = _dropout(scores.softmax(dim=-1), self.dropout) @ values
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


_QUICK: dict[type[nn.Module], type[nn.Module]] = {
    nn.Dropout: QuickDropout,
    nn.MultiheadAttention: QuickDropoutAttention,
}


def _dropout(values: Tensor, share: float) -> Tensor:
    """Each value is 0 with probability ``share``, else scaled so that the mean stays the same."""
    dropped = round(share * _CHANCES)
    if dropped == 0:
        return values
    if dropped == _CHANCES:
        return values * 0
    count = values.numel()
    drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    of_each = drawn.view(torch.int16)[:count].view(values.shape)
    # One product with a mask of numbers takes half of the time of masked_fill and a product.
    kept = (of_each >= torch.iinfo(torch.int16).min + dropped).to(values.dtype).mul_(_CHANCES / (_CHANCES - dropped))
    return values * kept
