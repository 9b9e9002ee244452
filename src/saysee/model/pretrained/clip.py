"""CLIP (arXiv 2103.00020), with the weights' names of Hugging Face's checkpoints.

Written here because importing transformers' models takes twice the time of importing torch.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from saysee.model.pretrained.configuration import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from saysee.model.pretrained.layers import Attention, activation, initialize

Change = Callable[[Tensor], Tensor]
"""Makes other patches [B, P, V] of patches."""
LEGACY_END = 2
"""``eos_token_id`` in the files of OpenAI's CLIPs; it stands for the token of the highest number."""


class CLIP(nn.Module):
    """A vision transformer, a text transformer unless ``config.text_config`` is None, and their projections."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        text, vision = config.text_config, config.vision_config
        self.text_model = None if text is None else TextTransformer(text)
        self.vision_model = VisionTransformer(vision)
        self.visual_projection = nn.Linear(vision.hidden_size, config.projection_dim, bias=False)
        factors = [(self.visual_projection, config.initializer_factor if text else vision.initializer_factor)]
        if text is not None:
            self.text_projection = nn.Linear(text.hidden_size, config.projection_dim, bias=False)
            self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
            factors.append((self.text_projection, config.initializer_factor))
        for projection, _ in factors:
            initialize(projection, 1.0)
        for projection, factor in reversed(factors):
            initialize(projection, projection.in_features**-0.5 * factor)

    def encode_image(self, pixels: Tensor, change: Change | None = None, layer: int = 0) -> tuple[Tensor, Tensor]:
        """Pixels [B, 3, H, W] to vectors [B, D] and patches [B, P, V]; ``change`` as of the vision transformer."""
        tokens = self.vision_model(pixels, change, layer)[-1]
        return self.image_vectors(tokens), tokens[:, 1:]

    def image_vectors(self, tokens: Tensor) -> Tensor:
        """The last state [B, 1 + P, V] of the vision transformer to vectors [B, D]."""
        return self.visual_projection(self.vision_model.post_layernorm(tokens[:, 0]))  # type: ignore[no-any-return]

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids [B, N], whatever they are beyond the mark of the end, to vectors [B, D]; with text encoder only."""
        assert self.text_model is not None
        return self.text_projection(self.text_model(ids))  # type: ignore[no-any-return]


class VisionEmbeddings(nn.Module):
    """Patches with their positions, and the class token in front."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.image_size = config.image_size
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)

    def forward(self, pixels: Tensor, change: Change | None = None) -> Tensor:
        """[B, 3, H, W] to [B, 1 + P, V]; ``change`` is applied to the patches before they get their positions."""
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(f"pixels of {list(pixels.shape[-2:])}, the model takes {self.image_size}: resize them")
        patches = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        if change is not None:
            patches = change(patches)
        front = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([front, patches], dim=1) + self.position_embedding.weight


class VisionTransformer(nn.Module):
    """Pixels to the input of each layer and the output of the last: L + 1 tensors [B, 1 + P, V], class token first."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)  # so spelled in the checkpoints
        self.encoder = Layers(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.apply(lambda module: _initialize(module, config))

    def forward(self, pixels: Tensor, change: Change | None = None, layer: int = 0) -> list[Tensor]:
        """[B, 3, H, W] to the hidden states.

        ``change`` is applied to the patches before this layer; before the first (0), to what one linear layer makes of
        each patch's pixels: to change that is to change the pixels.
        """
        hidden = self.pre_layrnorm(self.embeddings(pixels, None if layer else change))
        return self.encoder(hidden, causal=False, change=change, at=layer)  # type: ignore[no-any-return]


class TextEmbeddings(nn.Module):
    """Tokens with their positions."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        """[B, N] to [B, N, T]."""
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]  # type: ignore[no-any-return]


class TextTransformer(nn.Module):
    """Token ids [B, N] to the state of the mark of the end [B, T], which nothing after it reaches."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.end = config.eos_token_id
        self.embeddings = TextEmbeddings(config)
        self.encoder = Layers(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.apply(lambda module: _initialize(module, config))

    def forward(self, ids: Tensor) -> Tensor:
        """[B, N] to [B, T]."""
        hidden = self.final_layer_norm(self.encoder(self.embeddings(ids), causal=True)[-1])
        ends = ids if self.end == LEGACY_END else (ids == self.end).int()
        return hidden[torch.arange(len(ids), device=ids.device), ends.argmax(dim=-1)]  # type: ignore[no-any-return]


class MLP(nn.Module):
    """The two linear layers of a transformer layer."""

    def __init__(self, config: CLIPVisionConfig | CLIPTextConfig) -> None:
        super().__init__()
        self.activation = activation(config.hidden_act)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, N, W] to the same shape."""
        return self.fc2(self.activation(self.fc1(hidden)))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """A transformer layer with its norms first."""

    def __init__(self, config: CLIPVisionConfig | CLIPTextConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attn = Attention(width, config.num_attention_heads, config.attention_dropout)
        self.layer_norm1 = nn.LayerNorm(width, config.layer_norm_eps)
        self.mlp = MLP(config)
        self.layer_norm2 = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, hidden: Tensor, causal: bool) -> Tensor:
        """[B, N, W] to the same shape."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden), causal=causal)
        return hidden + self.mlp(self.layer_norm2(hidden))  # type: ignore[no-any-return]


class Layers(nn.Module):
    """The layers: the input of each, and the output of the last."""

    def __init__(self, config: CLIPVisionConfig | CLIPTextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden: Tensor, causal: bool, change: Change | None = None, at: int = 0) -> list[Tensor]:
        """[B, N, W] to L + 1 tensors of this shape; before layer ``at`` all but the first token are changed."""
        states = [hidden]
        for number, layer in enumerate(self.layers):
            if change is not None and 0 < at == number:
                states[-1] = torch.cat([states[-1][:, :1], change(states[-1][:, 1:])], dim=1)
            states.append(layer(states[-1], causal))
        return states


def _initialize(module: nn.Module, config: CLIPVisionConfig | CLIPTextConfig) -> None:
    """Draws first weights as OpenAI and transformers do, in the order of the latter: a seed gives the same model."""
    width, factor = config.hidden_size, config.initializer_factor
    inner = width**-0.5 * (2 * config.num_hidden_layers) ** -0.5 * factor
    initialize(module, config.initializer_range)
    if isinstance(module, VisionEmbeddings):
        nn.init.normal_(module.class_embedding, std=width**-0.5 * factor)
    if isinstance(module, VisionEmbeddings | TextEmbeddings):
        std = (config.initializer_range if isinstance(module, VisionEmbeddings) else 0.02) * factor
        for part in module.children():
            initialize(part, std)
    elif isinstance(module, Attention):
        for part in (module.q_proj, module.k_proj, module.v_proj):
            initialize(part, inner)
        initialize(module.out_proj, width**-0.5 * factor)
    elif isinstance(module, MLP):
        initialize(module.fc1, (2 * width) ** -0.5 * factor)
        initialize(module.fc2, inner)
