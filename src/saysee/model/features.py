"""The features of the two encoders, which every task and every search reads.

Shape letters, here and in the whole room: B batch, T samples, F frames, P patches, D width of the joint space,
S width of the speech encoder, V width of the vision transformer, W width of the fusion encoder, L layers.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SpeechFeatures:
    """One batch of encoded clips."""

    vector: Tensor  # [B, D] the global vector of each clip, in CLIP's joint space, not normalized
    # [B, F, D] one vector a frame (every ``SpeechEncoder.feature_seconds``), out of the same head; rows beyond a clip's
    # end have no meaning
    frames: Tensor
    mask: Tensor  # [B, F] bool, True on real frames


@dataclass(frozen=True)
class ImageFeatures:
    """One batch of encoded images."""

    vector: Tensor  # [B, D] CLIP's own projected image vector, not normalized
    patches: Tensor  # [B, P, V] the last hidden states of the patches, row by row from the top left
