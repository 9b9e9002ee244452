"""Cross-modal denoising (CMD), the idea of arXiv 2408.13705.

Some features of one modality are made noisy; the multimodal fusion encoder, which sees the other modality, must rebuild
clean semantic features. Every choice that the paper's abstract leaves open is an option of ``DenoisingSettings``. The
frames that the fusion encoder reads come from the head that makes the global speech vector, so the loss reaches what
retrieval uses.

The task sees the pairs that are encoded together: noise and the negatives of its losses come from the process's own
share of the batch, and from one chunk of it (``data.chunk_size``).

Shapes: B pairs, F frames, P patches, D width of vectors and frames, V width of patches, W width of the fusion encoder,
K rebuilt features.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from saysee.model.features import ImageFeatures, SpeechFeatures
from saysee.model.fusion import FusionEncoder, FusionOutput
from saysee.settings.recipe import DenoisingSettings
from saysee.tasks.base import Inputs, Task
from saysee.tasks.contrastive import info_nce
from saysee.tasks.noise import blocks, corrupt

DIAGNOSIS_SEED = 20408
"""Every diagnosis draws the same noise, so that its metrics differ only by the weights and by what is swapped."""


class DenoisingTask(Task):
    """Rebuilds clean features of one modality from noisy ones and from the other modality.

    ``fusion`` is the model's; ``width`` is D, ``patch_width`` V and ``fusion_width`` W.
    """

    name = "denoising"

    def __init__(
        self, settings: DenoisingSettings, fusion: FusionEncoder, width: int, patch_width: int, fusion_width: int
    ) -> None:
        super().__init__(settings.weight, settings.start_step, settings.warmup_steps)
        self.settings = settings
        # In a list, because the fusion encoder belongs to the model and must not count among this module's parameters.
        self._fusion = [fusion]
        self.noisy_sides = ("image", "speech") if settings.noise == "both" else (settings.noise,)
        widths = {"image": patch_width, "speech": width}
        self.rebuild = nn.ModuleDict(
            {
                side: nn.Linear(fusion_width, width if settings.target == "global" else widths[side])
                for side in self.noisy_sides
            }
        )

    def forward(
        self, speech: SpeechFeatures, images: ImageFeatures, image_ids: Tensor, inputs: Inputs | None = None
    ) -> dict[str, Tensor]:
        """See :meth:`Task.forward`; returns ``denoising_loss`` (mean over the noisy sides) and ``replaced_share``."""
        losses, shares = [], []
        for side in self.noisy_sides:
            rebuilt, clean, ids, share = self.reconstruct(side, speech, images, image_ids, inputs=inputs)
            losses.append(self.compare(rebuilt, clean, ids))
            shares.append(share)
        return {"denoising_loss": torch.stack(losses).mean(), "replaced_share": torch.stack(shares).mean()}

    def reconstruct(
        self,
        side: str,
        speech: SpeechFeatures,
        images: ImageFeatures,
        image_ids: Tensor,
        swap: str | None = None,
        inputs: Inputs | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Makes one side ("image" or "speech") noisy and rebuilds it.

        Args:
            swap: for diagnosis: the fusion encoder sees another image's features of the "clean" or of the "noisy" side,
                or nothing of the clean one ("withheld": zeros, as one token and as the vector); the targets stay.
            inputs: what the features were made of; read where noise is put before the features.

        Returns the rebuilt features [K, D or V], their targets (same shape), an id for each (features that share an id
        have the same target), and the share of tokens that was replaced. K is B for the global target, else the number
        of tokens that count.
        """
        patches = torch.ones(images.patches.shape[:2], dtype=torch.bool, device=images.patches.device)
        tokens, mask = (images.patches, patches) if side == "image" else (speech.frames, speech.mask)
        seen_speech, seen_images, replaced, share = self._with_noise(side, speech, images, image_ids, inputs)
        if swap == "withheld" and side == "image":
            blank = torch.zeros_like(speech.frames[:, :1]), torch.ones_like(speech.mask[:, :1])
            seen_speech = SpeechFeatures(torch.zeros_like(speech.vector), *blank)
        elif swap == "withheld":
            seen_images = ImageFeatures(torch.zeros_like(images.vector), torch.zeros_like(images.patches[:, :1]))
        elif swap is not None:
            other = another_image(image_ids)
            if (swap == "noisy") == (side == "speech"):
                seen_speech = SpeechFeatures(*(value[other] for value in vars(seen_speech).values()))
            else:
                seen_images = ImageFeatures(*(value[other] for value in vars(seen_images).values()))
        output = self._fuse(side, seen_speech, seen_images)

        # Two clips of one image share the image as their target; each clip is a target of its own.
        owners = image_ids if side == "image" else torch.arange(len(mask), device=mask.device)
        if self.settings.target == "global":
            rebuilt, ids = self.rebuild[side](output.global_token), owners
            clean = images.vector if side == "image" else speech.vector
        else:
            counted = mask if self.settings.target == "all" else replaced
            rebuilt, clean = self.rebuild[side](output.tokens[counted]), tokens[counted]
            positions = torch.arange(mask.shape[1], device=mask.device)
            ids = (owners[:, None] * mask.shape[1] + positions)[counted]
        if self.settings.stop_gradient:
            clean = clean.detach()
        return rebuilt, clean, ids, share

    def compare(self, rebuilt: Tensor, clean: Tensor, ids: Tensor) -> Tensor:
        """The loss between rebuilt and clean features [K, ·], in fp32; 0 if K is 0.

        contrastive: InfoNCE among the K features; features that share an id are not negatives of each other.
        cosine: 1 - cosine.
        smooth_l1: Huber loss on layer-normalized targets, so that it does not depend on the encoder's scale.
        """
        if len(rebuilt) == 0:
            return rebuilt.float().sum()
        rebuilt, clean = rebuilt.float(), clean.float()
        if self.settings.loss == "contrastive":
            if self.settings.target != "global" and len(rebuilt) > self.settings.max_tokens:
                drawn = torch.randperm(len(rebuilt), device=rebuilt.device)[: self.settings.max_tokens]
                rebuilt, clean, ids = rebuilt[drawn], clean[drawn], ids[drawn]
            return info_nce(rebuilt, clean, 1 / self.settings.temperature, ids)
        if self.settings.loss == "cosine":
            return (1 - functional.cosine_similarity(rebuilt, clean, dim=-1)).mean()
        return functional.smooth_l1_loss(rebuilt, functional.layer_norm(clean, clean.shape[-1:]))

    @torch.no_grad()
    def diagnose(
        self, speech: SpeechFeatures, images: ImageFeatures, image_ids: Tensor, inputs: Inputs | None = None
    ) -> dict[str, float]:
        """Whether the reconstruction uses both sides.

        ``reconstruction_loss`` is the loss as trained, ``reconstruction_without_clean`` the loss when each item sees
        another image's clean side instead of its own, ``reconstruction_without_noisy`` when its noisy side is another
        image's. If one of the two is no higher, the fusion encoder does not use that side. ``reconstruction_chance`` is
        the loss of zeros, which say nothing.
        """
        metrics = {f"reconstruction_{name}": 0.0 for name in ("loss", "without_clean", "without_noisy", "chance")}
        device = speech.vector.device
        for side in self.noisy_sides:
            for key, swap in zip(metrics, (None, "clean", "noisy", None), strict=True):
                with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                    torch.manual_seed(DIAGNOSIS_SEED)
                    rebuilt, clean, ids, _ = self.reconstruct(side, speech, images, image_ids, swap, inputs)
                    if key == "reconstruction_chance":
                        rebuilt = torch.zeros_like(rebuilt)
                    metrics[key] += float(self.compare(rebuilt, clean, ids)) / len(self.noisy_sides)
        return metrics

    def _with_noise(
        self, side: str, speech: SpeechFeatures, images: ImageFeatures, image_ids: Tensor, inputs: Inputs | None
    ) -> tuple[SpeechFeatures, ImageFeatures, Tensor, Tensor]:
        """Both sides, one of them noisy; which of its tokens were replaced [B, N]; and their share of the real ones."""
        settings = self.settings
        vectors = images.vector if side == "image" else speech.vector
        drawn: list[Tensor] = []

        def change(tokens: Tensor, mask: Tensor) -> Tensor:
            size = settings.block
            together = None if size == 1 else blocks(side, tokens.shape[1], size, tokens.device)
            noisy, replaced = corrupt(tokens, mask, image_ids, settings.share, settings.source, vectors, together)
            drawn[:] = replaced, mask
            return noisy

        def change_patches(patches: Tensor) -> Tensor:
            return change(patches, torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device))

        if settings.place == "features" and side == "image":
            images = replace(images, patches=change_patches(images.patches))
        elif settings.place == "features":
            speech = replace(speech, frames=change(speech.frames, speech.mask))
        elif inputs is None:
            raise ValueError(f"noise in place {settings.place!r} needs what the features were made of")
        elif side == "image":
            images = inputs.images(change_patches, middle=settings.place == "middle")
        else:
            speech = inputs.speech(change)
        replaced, real = drawn
        share = replaced.sum() / real.sum()
        if side == "speech" and (stride := -(-replaced.shape[1] // speech.mask.shape[1])) > 1:
            # The head has averaged frames in runs of so many.
            replaced = functional.max_pool1d(replaced.float(), stride, ceil_mode=True).bool()
        return speech, images, replaced, share

    def _fuse(self, side: str, speech: SpeechFeatures, images: ImageFeatures) -> FusionOutput:
        query = side if self.settings.query == "noisy" else self.settings.query
        if self.settings.speech == "vector":
            speech = SpeechFeatures(speech.vector, speech.vector[:, None], torch.ones_like(speech.mask[:, :1]))
        own, other = (speech.vector, images.vector) if query == "speech" else (images.vector, speech.vector)
        # The global vector precedes the queries, unless it is the target or gives it away.
        vector = own if query != side else (other if self.settings.front == "other" else None)
        global_only = self.settings.target == "global"
        return self._fusion[0].fuse(query, speech, images, vector, global_only=global_only)


def another_image(image_ids: Tensor) -> Tensor:
    """[B] for each item, the next item (cyclically) of another image; any item if the batch has one image only."""
    count = len(image_ids)
    other = (torch.arange(count, device=image_ids.device) + 1) % count
    for _ in range(count - 1):
        same = image_ids[other] == image_ids
        if not bool(same.any()):
            break
        other = torch.where(same, (other + 1) % count, other)
    return other
