"""Speech-image matching, the idea of arXiv 2408.13119: whether a clip and an image belong together.

The fusion encoder judges each pair of a batch, each clip with a wrong image, and each image with a wrong clip. The
wrong ones are drawn by contrastive similarity, the more alike the more often, so it must see what the global vectors do
not tell apart. Like denoising, the task sees the pairs that are encoded together.

Shapes: B pairs, D width of vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.model.fusion import FusionEncoder
from saysee.tasks.base import Inputs, Task


class MatchingTask(Task):
    """Binary cross-entropy of right pairs and hard negatives, which count half each.

    ``temperature`` is of the softmax over cosines by which negatives are drawn.
    """

    name = "matching"

    def __init__(self, weight: float, fusion: FusionEncoder, temperature: float) -> None:
        super().__init__(weight)
        # In a list, because the fusion encoder belongs to the model and must not count among this module's parameters.
        self._fusion = [fusion]
        self.temperature = temperature

    def forward(
        self, speech: SpeechFeatures, images: ImageFeatures, image_ids: Tensor, inputs: Inputs | None = None
    ) -> dict[str, Tensor]:
        """See :meth:`Task.forward`; returns ``matching_loss`` and ``matched_share``, the share judged right.

        Pairs of one image alone have no negatives; their loss is 0.
        """
        del inputs
        pairs = torch.arange(len(image_ids), device=image_ids.device)
        wrong_images, has_wrong = hard_negatives(speech.vector, images.vector, image_ids, self.temperature)
        wrong_clips, _ = hard_negatives(images.vector, speech.vector, image_ids, self.temperature)
        clips = torch.cat([pairs, pairs[has_wrong], wrong_clips[has_wrong]])
        of_clips = torch.cat([pairs, wrong_images[has_wrong], pairs[has_wrong]])
        logits = self._fusion[0].match(speech, images, clips, of_clips).float()
        right = (torch.arange(len(logits), device=logits.device) < len(pairs)).float()
        losses = functional.binary_cross_entropy_with_logits(logits, right, reduction="none")
        own, wrong = losses[: len(pairs)], losses[len(pairs) :]
        loss = (own.mean() + wrong.mean()) / 2 if len(wrong) else 0 * own.sum()
        return {"matching_loss": loss, "matched_share": ((logits > 0) == (right > 0)).float().mean()}


def hard_negatives(queries: Tensor, candidates: Tensor, image_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """For each query [B] the number of a candidate of another image, and [B] whether there is any.

    Drawn by torch's global generator with the softmax of cosine / temperature over the candidates of other images: the
    lower the temperature, the more often the most similar. Vectors [B, D] may have any length.
    """
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        a, b = (functional.normalize(vectors.float(), dim=-1) for vectors in (queries, candidates))
        other = image_ids[:, None] != image_ids[None, :]
        has_other = other.any(dim=1)
        # Queries without another image still need a valid distribution; their draws are not used.
        chances = (a @ b.T / temperature).masked_fill(~other & has_other[:, None], -torch.inf).softmax(dim=1)
        # Of a diverged run they are NaN, and so is the loss, which training reports.
        return torch.multinomial(chances.nan_to_num(1.0), 1)[:, 0], has_other
