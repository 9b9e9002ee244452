"""The last stage of clip-nano: the text tower learns on alone, deeper, and against pictures whose vectors stay.

While both towers learn, a step is mostly the vision tower's, and a caption is told from the pictures of its batch. When
the pictures' vectors stay, they are computed once, and each caption can be told from thousands. What that is worth is
in ``docs/nano.md``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPModel

from saysee.pretraining.loop import LoopSettings
from saysee.pretraining.pictures import PicturePool
from saysee.pretraining.words import SceneTokens
from saysee.tasks.contrastive import MAX_LOGIT_SCALE


class ReadingSettings(LoopSettings):
    """How long and how fast this stage is."""

    name = "reading"


def text_vectors(clip: CLIPModel, ids: Tensor) -> Tensor:
    """[B, D] vectors, of any length, of captions [B, N] int that are filled up behind the end mark.

    No mask: attention is causal, and the vector is read at the end mark, which so sees no filling.
    """
    vector: Tensor = clip.get_text_features(input_ids=ids.to(clip.device)).pooler_output
    return vector


def bounded_scale(clip: CLIPModel) -> Tensor:
    """One over the learned temperature, once it is kept from falling below CLIP's bound."""
    with torch.no_grad():
        clip.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
    scale: Tensor = clip.logit_scale.exp()
    return scale


def deepen_text(clip: CLIPModel, layers: int) -> None:
    """Gives the text tower this many layers more, behind the ones it has.

    Each is a copy of the last whose outputs start at 0, so that no vector changes before the first step.
    """
    tower = clip.text_model.encoder.layers
    for _ in range(layers):
        layer = copy.deepcopy(tower[-1])
        for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        tower.append(layer)
    clip.config.text_config.num_hidden_layers = len(tower)


class Reading:
    """What the loop trains in this stage, and on what.

    Args:
        clip: whose text tower, text projection and scale learn, in place.
        see: gives [N, D] unit vectors of the pool's pictures, as ``clip`` has them; called at the first step.
        tokens: the captions of the pictures.
        pool: the pictures.
        candidates: pictures in which each caption must find its own, its batch's among them.
        settings: of the loop.
    """

    def __init__(
        self,
        clip: CLIPModel,
        see: Callable[[], Tensor],
        tokens: SceneTokens,
        pool: PicturePool,
        candidates: int,
        settings: ReadingSettings,
    ) -> None:
        self.clip, self.see, self.tokens, self.pool = clip, see, tokens, pool
        self.candidates, self.settings = candidates, settings
        self.parts = nn.ModuleDict({"text_model": clip.text_model, "text_projection": clip.text_projection})
        self.parts.register_parameter("logit_scale", clip.logit_scale)

    @cached_property
    def pictures(self) -> Tensor:
        """[N, D] unit vectors, which stay."""
        return self.see()

    def loss_of(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """CLIP's loss on the batch of this step, whose captions are told from more pictures than the batch's."""
        rng = np.random.default_rng((self.settings.seed, step, 1))  # other numbers than the towers' steps take
        chosen = self.pool.draw(rng, self.settings.batch_size)
        scenes = len(self.tokens.first) - 1
        more = rng.choice(scenes, min(self.candidates, scenes), replace=False)
        among = np.concatenate([chosen, more[~np.isin(more, chosen)]])[: self.candidates]
        text = text_vectors(self.clip, self.tokens.drawn(chosen, rng)).float()
        with torch.autocast(text.device.type, enabled=False):
            scale = bounded_scale(self.clip)
            scores = scale * functional.normalize(text, dim=-1) @ self.pictures[among].T
            own = torch.arange(len(chosen), device=scores.device)
            to_picture = functional.cross_entropy(scores, own)
            to_text = functional.cross_entropy(scores[:, : len(chosen)].T, own)
        figures = {"text_to_image": to_picture.detach(), "image_to_text": to_text.detach(), "scale": scale.detach()}
        return (to_picture + to_text) / 2, figures
