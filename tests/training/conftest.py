"""Fixtures."""

from __future__ import annotations
import pytest


TINY_SPEECH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [16, 16, 32],
    "conv_kernel": [20, 8, 4],
    "conv_stride": [10, 8, 4],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
TINY_IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 16,
}


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory):
    """Path of the manifest of a real scenes corpus: 12 pictures to train on, 4 to validate, 8 to test."""
    from saysee.data.scenes.corpus import build_scenes

    folder = tmp_path_factory.mktemp("corpus") / "scenes"
    return build_scenes(folder, images=24, val_images=4, test_images=8, seed=3, picture_size=64, workers=1)


@pytest.fixture(scope="session")
def tiny_manifest(tiny_scenes):
    from saysee.data.manifest import Manifest

    return Manifest.read(tiny_scenes)


@pytest.fixture(scope="session")
def tiny_model_settings():
    """Settings of tiny encoders with random weights, all of them trained."""
    return {
        "speech": TINY_SPEECH,
        "image": TINY_IMAGE,
        "speech_trainable": "all",
        "image_trainable": "all",
        "head_heads": 2,
    }


@pytest.fixture
def tiny_settings(tiny_scenes, tiny_model_settings, tmp_path):
    """Settings of a recipe that trains tiny encoders on the tiny corpus in a second."""
    return {
        "output": str(tmp_path / "run"),
        "data": {"manifest": str(tiny_scenes), "batch_size": 8, "bucket_batches": 3, "workers": 0},
        "model": dict(tiny_model_settings),
        "fusion": {"width": 16, "layers": 1, "heads": 2},
        "denoising": {"preset": "paper"},
        "optimizer": {"lr": 1e-3, "encoder_lr": 1e-3, "warmup_steps": 2},
        "training": {
            "steps": 6,
            "precision": "fp32",
            "eval_every": 3,
            "checkpoint_every": 2,
            "log_every": 1,
            "device": "cpu",
        },
    }
