"""Cached features in tests: a small corpus that may be changed, and how often the encoders ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from saysee.data.manifest import Manifest
from saysee.encoding.encoder import Encoder
from saysee.model.retriever import SpeechImageModel
from saysee.settings.recipe import FeatureSettings
from saysee.training.data import RowFeatures, cache_features, feature_cache


def write_clip(path: Path, seed: int, samples: int) -> None:
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.1, samples), 16_000)


def keep(model: SpeechImageModel, manifest: Manifest, skip: bool = False, **settings: Any) -> RowFeatures:
    cache = feature_cache(FeatureSettings(**settings), manifest.root)
    return cache_features([(Encoder(model, precision="fp32", cache=cache), manifest, skip)], model, progress=False)[0]


def states_of(kept: RowFeatures, row: int) -> torch.Tensor:
    return kept.clips.gather([row])[0][:, 0].float()
