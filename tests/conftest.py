"""Small real parts that several rooms' tests share. No test reaches the network."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
# Before anything imports torch, here and in the processes that tests start: tensors as small as the tests' wait for a
# second thread longer than they compute, the more so on busy cores.
os.environ["OMP_NUM_THREADS"] = "1"
# A shell's background jobs ignore Ctrl-C, and so would all that tests start and then stop by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
import soundfile

# No test cuts the power, and to wait for the disk at each file takes milliseconds.
os.fsync = lambda file: None
gc.disable()  # until all is imported, of which it would take a quarter of the time

SLOW_ROOMS = ("docs", "golden", "page", "studies", "training")


def pytest_collection_modifyitems(items):
    """The slow rooms come first, so that of several workers none has a long test left when the others end."""
    items.sort(key=lambda item: item.nodeid.split("/")[1] not in SLOW_ROOMS)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop():
    gc.freeze()
    gc.enable()


CAPTIONS = ["a red square above a blue circle", "two green stars", "a dog runs on the beach"]


@pytest.fixture
def hubert_configs():
    return make_hubert_configs()


def make_hubert_configs():
    """HuBERT's two kinds, tiny: base (group norm) and large (layer norm, stable layers), with the real convolutions."""
    from transformers import HubertConfig

    # The usual 0.02 makes so small a model's vectors nearly constant, and a test on them blind.
    size = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "conv_dim": [16] * 7,
        "num_conv_pos_embeddings": 16,
        # 16 channels a group: with fewer, bf16 convolutions are wrong on processors with AMX (torch 2.13).
        "num_conv_pos_embedding_groups": 2,
        "initializer_range": 0.2,
    }
    return {
        "base": HubertConfig(**size, feat_extract_norm="group", do_stable_layer_norm=False),
        "large": HubertConfig(**size, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True),
    }


@pytest.fixture
def clip_config():
    return make_clip_config()


def make_clip_config():
    """A tiny CLIP whose text side fits the words of ``CAPTIONS``."""
    from lab.nano.words import MAX_WORDS, word_tokenizer
    from transformers import CLIPConfig

    tokenizer = word_tokenizer(CAPTIONS)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_WORDS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": 32, "patch_size": 8}
    return CLIPConfig(text_config=size | text, vision_config=size | vision, projection_dim=24, initializer_factor=4.0)


@pytest.fixture(scope="session")
def encoders_made_once(tmp_path_factory):
    """Folders of a HuBERT and a CLIP, each with the state of torch's generator after it."""
    import torch
    from lab.nano.words import word_tokenizer
    from transformers import (
        CLIPImageProcessorPil,
        CLIPModel,
        HubertModel,
        Wav2Vec2FeatureExtractor,
    )

    hubert, clip = (tmp_path_factory.mktemp("encoders") / name for name in ("hubert", "clip"))
    torch.manual_seed(1)
    HubertModel(make_hubert_configs()["base"]).save_pretrained(hubert)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(hubert)
    made = {"hubert": (hubert, torch.get_rng_state())}
    torch.manual_seed(2)
    CLIPModel(make_clip_config()).save_pretrained(clip)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(clip)
    word_tokenizer(CAPTIONS).save_pretrained(clip)
    return made | {"clip": (clip, torch.get_rng_state())}


@pytest.fixture
def hubert_folder(tmp_path, encoders_made_once):
    """A HuBERT checkpoint of the base kind, as the hub has it."""
    return _copy(*encoders_made_once["hubert"], tmp_path)


@pytest.fixture
def clip_folder(tmp_path, encoders_made_once):
    """A CLIP checkpoint with image processor and tokenizer, as the hub has it."""
    return _copy(*encoders_made_once["clip"], tmp_path)


def _copy(folder, generator_state, to):
    """A copy that a test may change; what it draws next is drawn after the same seed always."""
    import torch

    shutil.copytree(folder, to / folder.name)
    torch.set_rng_state(generator_state)
    return to / folder.name


@pytest.fixture
def sounds():
    """Clips [T] of noise of which each has a rhythm of its own, from the shortest HuBERT takes to a second."""
    rng = np.random.default_rng(3)
    clips = []
    for rhythm, samples in enumerate((16_000, 400, 9_041, 5_123, 12_345), start=1):
        rise = 1 + np.sin(np.arange(samples) * rhythm / 700)
        clips.append((0.1 * rise * rng.standard_normal(samples)).astype(np.float32))
    return clips


@pytest.fixture
def ctc_folder(tmp_path, hubert_configs):
    """Makes a CTC recognizer: wav2vec 2.0 of the base kind (group norm) or HuBERT of the large kind (layer norm)."""
    import torch
    from transformers import (
        HubertForCTC,
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    def make(kind):
        letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJ"]
        (tmp_path / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
        tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
        config = hubert_configs["base" if kind == "wav2vec2" else "large"]
        config.vocab_size, config.initializer_range = len(letters), 1.0
        if kind == "wav2vec2":
            given = {name: value for name, value in config.to_dict().items() if name != "model_type"}
            config = Wav2Vec2Config(**given)
        torch.manual_seed(0)
        model = (Wav2Vec2ForCTC if kind == "wav2vec2" else HubertForCTC)(config)
        model.save_pretrained(tmp_path / kind)
        extractor = Wav2Vec2FeatureExtractor(return_attention_mask=kind != "wav2vec2")
        Wav2Vec2Processor(extractor, tokenizer).save_pretrained(tmp_path / kind)
        return tmp_path / kind

    return make


@pytest.fixture(scope="module")
def heard_once():
    """Whisper hears each clip once: a second time it would write the same."""
    from faster_whisper import WhisperModel

    heard, transcribe = {}, WhisperModel.transcribe

    def once(self, waveform, **options):
        clip = waveform.tobytes(), str(options)
        if clip not in heard:
            segments, about = transcribe(self, waveform, **options)
            heard[clip] = list(segments), about
        return heard[clip]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WhisperModel, "transcribe", once)
        yield


@pytest.fixture
def wav_files(tmp_path, sounds):
    paths = []
    for number, clip in enumerate(sounds):
        paths.append(tmp_path / f"{number}.wav")
        soundfile.write(paths[-1], clip, 16_000, subtype="FLOAT")
    return paths


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
    return build_scenes(folder, images=24, val_images=4, test_images=8, seed=3, image_size=64, workers=1)


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
    return tiny_recipe(tiny_scenes, tiny_model_settings, tmp_path / "run")


def tiny_recipe(manifest, model, output):
    return {
        "output": str(output),
        "data": {"manifest": str(manifest), "batch_size": 8, "bucket_batches": 3, "workers": 0},
        "model": dict(model),
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


@pytest.fixture(scope="session")
def finished_run(tiny_scenes, tiny_model_settings, tmp_path_factory):
    """The folder of a run of the tiny recipe, to be copied."""
    from saysee.settings.reading import resolve_recipe
    from saysee.training.trainer import Trainer

    folder = tmp_path_factory.mktemp("finished") / "run"
    Trainer(resolve_recipe(tiny_recipe(tiny_scenes, tiny_model_settings, folder))).fit()
    return folder


@pytest.fixture
def frozen_settings(tiny_settings, tmp_path):
    """The tiny recipe with frozen encoders, whole clips, and features of its own."""
    tiny_settings["model"] |= {"speech_trainable": 0, "image_trainable": 0, "frozen_dropout": False}
    tiny_settings["data"]["crop_seconds"] = None
    tiny_settings["features"] = {"folder": str(tmp_path / "features")}
    return tiny_settings


@pytest.fixture
def corpus(tmp_path):
    """Six clips of noise and three images, in a folder that a test may change."""
    from PIL import Image

    from feature_tools import write_clip
    from saysee.data.manifest import Manifest, Row

    root = tmp_path / "corpus"
    root.mkdir()
    rows = []
    for number in range(6):
        write_clip(root / f"{number}.wav", number, 2000 + 900 * number)
        image = number // 2
        Image.new("RGB", (32, 32), (40 * image, 200 - 30 * image, 7)).save(root / f"{image}.png")
        rows.append(Row(f"{number}.wav", f"{image}.png", f"image {image}", "test"))
    return Manifest(rows, root)


@pytest.fixture
def encoded(monkeypatch):
    """How many clips and images went through the encoders into a cache since the last time."""
    from saysee.encoding.sides import ImageSide, SpeechSide

    counts = {"clip": 0, "image": 0}
    for side in (SpeechSide, ImageSide):

        def counting(self, prepared, features=side.features):
            counts[self.kind] += len(prepared)
            return features(self, prepared)

        monkeypatch.setattr(side, "features", counting)

    def taken():
        found = counts["clip"], counts["image"]
        counts.update(clip=0, image=0)
        return found

    return taken
