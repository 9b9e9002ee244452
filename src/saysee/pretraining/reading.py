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
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPModel

from saysee.pretraining.loop import LoopSettings
from saysee.pretraining.pictures import PicturePool
from saysee.pretraining.words import drawn_captions
from saysee.tasks.contrastive import MAX_LOGIT_SCALE


class ReadingSettings(LoopSettings):
    """How long and how fast this stage is."""

    name = "reading"


def text_vectors(clip: CLIPModel, ids: Tensor) -> Tensor:
    """[B, D] vectors, of any length, of captions [B, N] int that are filled up with the padding's number."""
    ids = ids.to(clip.device)
    mask = ids != clip.config.text_config.pad_token_id
    vector: Tensor = clip.get_text_features(input_ids=ids, attention_mask=mask.long()).pooler_output
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
        tokens: the captions of each picture, as token numbers.
        pool: the pictures.
        candidates: pictures in which each caption must find its own, its batch's among them.
        settings: of the loop.
    """

    def __init__(
        self,
        clip: CLIPModel,
        see: Callable[[], Tensor],
        tokens: list[list[list[int]]],
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

    def loss_of(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """CLIP's loss on the batch of this step, whose captions are told from more pictures than the batch's."""
        draw = Random(f"{self.settings.seed} reading {step}")
        chosen = self.pool.draw(draw, self.settings.batch_size)
        more = draw.sample(range(len(self.tokens)), min(self.candidates, len(self.tokens)))
        in_batch = set(chosen)
        among = chosen + [number for number in more if number not in in_batch][: self.candidates - len(chosen)]
        text = text_vectors(self.clip, drawn_captions(self.tokens, chosen, draw)).float()
        with torch.autocast(text.device.type, enabled=False):
            scale = bounded_scale(self.clip)
            scores = scale * functional.normalize(text, dim=-1) @ self.pictures[among].T
            own = torch.arange(len(chosen), device=scores.device)
            to_picture = functional.cross_entropy(scores, own)
            to_text = functional.cross_entropy(scores[:, : len(chosen)].T, own)
        figures = {
            "text_to_image": round(float(to_picture.detach()), 4),
            "image_to_text": round(float(to_text.detach()), 4),
            "scale": round(float(scale.detach()), 2),
        }
        return (to_picture + to_text) / 2, figures
