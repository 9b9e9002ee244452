"""What HuBERT and CLIP have in common: attention, activations and the first weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from saysee.errors import ConfigError


class Attention(nn.Module):
    """Self-attention of several heads, with the weights' names of Hugging Face's HuBERT and CLIP."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """[B, N, W] to the same shape; no token attends to those on which the ``mask`` [B, 1, 1, N] is False."""
        query, key, value = (
            part(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, mask, dropout, causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of a name that Hugging Face uses; ConfigError for an unknown one."""
    known: dict[str, Callable[[Tensor], Tensor]] = {"gelu": functional.gelu, "relu": functional.relu}
    known["quick_gelu"] = lambda values: values * torch.sigmoid(1.702 * values)
    if name not in known:
        raise ConfigError(f"the activation {name!r} is unknown; give one of {', '.join(known)}")
    return known[name]


@torch.no_grad()
def initialize(module: nn.Module, std: float) -> None:
    """Draws the weights of one layer from N(0, std), its biases 0, as transformers does; norms are left as they are."""
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding):
        module.weight.normal_(0.0, std)
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and module.bias is not None:
        module.bias.zero_()
