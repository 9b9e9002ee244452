"""Checkpoints of SpeechCLIP: converted exactly, and read without running anything that they name."""

from __future__ import annotations

import json
import math
import os
import pathlib
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPModel, HubertModel, Wav2Vec2FeatureExtractor

from saysee.cli import main
from saysee.errors import CheckpointError
from saysee.model.card import CARD_FILE, TRAINING_FILE
from saysee.model.retriever import SpeechImageModel
from saysee.model.speechclip import _head_config, _head_weights, convert_speechclip, read_checkpoint

PACKAGE = ("avssl", "avssl.base", "avssl.base.ordered_namespace")
TAU = 0.0213


class PublishedHead(nn.Module):
    """The published head as it is described: mix, CLS, a post-norm layer, a norm, a linear layer; plain torch."""

    def __init__(self, states: int, width: int, dimension: int, heads: int = 8) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(states))
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, activation="gelu", batch_first=True)
        self.model = nn.TransformerEncoder(layer, 1, nn.LayerNorm(width), enable_nested_tensor=False)
        self.linear_proj = nn.Linear(width, dimension)
        for parameter in self.model.parameters():
            if parameter.dim() == 1:  # biases and norms, which torch starts at 0 and 1
                nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.3)
        self.eval()

    def forward(self, states: list[Tensor], normalize: bool) -> Tensor:
        """States [B, F, S], one a layer, to vectors [B, D]."""
        stacked = torch.stack(states)
        if normalize:
            stacked = nn.functional.layer_norm(stacked, stacked.shape[-1:])
        mixed = (self.weights.softmax(0)[:, None, None, None] * stacked).sum(0)
        tokens = torch.cat([self.cls.expand(len(mixed), -1, -1), mixed], dim=1)
        return self.linear_proj(self.model(tokens)[:, 0])

    def published(self) -> dict[str, Tensor]:
        """Its weights by their published names."""
        names = {"weights": "audio_encoder.weightedsum_layer.weights", "cls": "parallel_branch.cls"}
        state = self.state_dict()
        own = {name: state.pop(key) for key, name in names.items()}
        starts = {"model": "parallel_branch.self_att.model", "linear_proj": "parallel_branch.linear_proj"}
        for key, value in state.items():
            start, _, rest = key.partition(".")
            own[f"{starts[start]}.{rest}"] = value
        return own


def as_object() -> type:
    """As SpeechCLIP has it: an object whose attributes are an ordered dictionary of its own."""

    class Namespace:
        def __init__(self, **values: Any) -> None:
            object.__setattr__(self, "_odict", OrderedDict(values))

        def __getstate__(self) -> Any:
            return self._odict

        def __setstate__(self, state: Any) -> None:
            (Path(os.environ["TMPDIR"]) / "ran").touch()

    return Namespace


def as_dict() -> type:
    return type("Namespace", (dict,), {})


def as_ordered_dict() -> type:
    return type("Namespace", (OrderedDict,), {})


def as_argparse() -> type:
    import argparse

    return type("Namespace", (argparse.Namespace,), {})


def write_checkpoint(
    path: Path,
    weights: dict[str, Tensor],
    make: Callable[[], type] = as_object,
    heads: int = 8,
    normalize: bool = False,
    others: Sequence[type] = (),
    **parts: Any,
) -> Path:
    """A checkpoint as PyTorch Lightning 1.5 writes it, of classes whose package is gone when it is read."""
    kind = make()
    kind.__name__ = kind.__qualname__ = "OrderedNamespace"
    modules = {name: types.ModuleType(name) for name in PACKAGE}
    for each in (kind, *others):
        each.__module__ = PACKAGE[-1]
        vars(modules[PACKAGE[-1]])[each.__name__] = each
    branch = kind(transformer_args=kind(n_layers=1, nhead=heads, d_model=8), need_projection=True)
    settings = kind(
        model_settings=kind(cascaded_branch=kind(transformer_args=kind(nhead=1)), parallel_branch=branch),
        audio_encoder=kind(type="FairseqHubert", normalize_hiddenstates=normalize, layers=[1, 2]),
    )
    device = torch.device("cpu")
    metric = {"meta": {"fx": "training_step", "reduce_fx": torch.mean}, "value": torch.tensor(1.0), "_device": device}
    content = {
        "epoch": 131,
        "global_step": 15443,
        "pytorch-lightning_version": "1.5.10",
        "state_dict": OrderedDict(weights),
        "loops": {"fit_loop": {"epoch_loop._results": {"items": {"loss": metric}, "device": device}, "seen": {1, 2}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': 'val_recall_mean_1'}": {
                "best_model_score": torch.tensor(36.01),
                "best_model_path": pathlib.PurePosixPath("/exp/a.ckpt"),
                "kth_value": np.float64(36.01),
            }
        },
        "optimizer_states": [{"state": {0: {"step": 1, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [{"last_epoch": 1, "lr_lambdas": [None]}],
        "hparams_name": "config",
        "hyper_parameters": {"config": settings},
    } | parts
    with patch.dict(sys.modules, modules):
        torch.save(content, path)
    return path


def frozen(size: int) -> dict[str, Tensor]:
    """What a checkpoint holds besides the head."""
    return {
        "audio_encoder.encoder.model.mask_emb": torch.randn(3),
        "clip.model.token_embedding.weight": torch.randn(7, 2),
        "criterion.eye_mat": torch.eye(size),
        "criterion.neg_eye_mat": ~torch.eye(size, dtype=torch.bool),
        "criterion.eye_mat_fl": torch.eye(size),
    }


@pytest.fixture
def encoders(tmp_path: Path, hubert_configs: Any, clip_folder: Path) -> dict[str, list[str]]:
    """``--speech`` and ``--image`` of both kinds: folders of tiny encoders."""
    for kind, config in hubert_configs.items():
        torch.manual_seed(3)
        hubert = HubertModel(config)
        nn.init.normal_(hubert.encoder.layer_norm.weight, 1, 0.3)  # the published one is no identity either
        hubert.save_pretrained(tmp_path / kind)
        Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=kind == "large").save_pretrained(
            tmp_path / kind
        )
    return {kind: ["--speech", str(tmp_path / kind), "--image", str(clip_folder)] for kind in hubert_configs}


def published_states(folder: str, waveform: np.ndarray, large: bool) -> list[Tensor]:
    """The states that SpeechCLIP mixes: fairseq's results of each layer, of a raw waveform for base."""
    hubert = HubertModel.from_pretrained(folder).eval()
    wave = torch.from_numpy(waveform)[None]
    if large:
        wave = nn.functional.layer_norm(wave, wave.shape)
    states: list[Tensor] = []
    for layer in hubert.encoder.layers:
        layer.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    hubert.encoder.layers[-1].register_forward_hook(
        lambda _, __, output: states.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        hubert(wave)
    return states


# ---------------------------------------------------------------------- conversion


@pytest.mark.parametrize("kind", ["base", "large"])
def test_a_converted_model_gives_the_published_heads_vector(
    kind: str, tmp_path: Path, encoders: Any, sounds: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    head = PublishedHead(states=4, width=32, dimension=24)
    large = kind == "large"
    weights = head.published() | frozen(size=5 if large else 9)
    if large:
        weights["criterion.temperature"] = torch.tensor(math.log(1 / TAU))
    path = write_checkpoint(tmp_path / "a.ckpt", weights, normalize=large)
    place = tmp_path / "model"
    assert main(["convert", "speechclip", str(path), "--to", str(place), *encoders[kind], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["converted"]) == len(head.published())
    assert found["converted"]["parallel_branch.self_att.model.norm.weight"] == "head.layers.norm.weight"
    assert sum(found["dropped"].values()) == len(frozen(1)) + large
    assert found["unknown"] == []
    assert found["temperature"] == (pytest.approx(TAU) if large else None)
    model = SpeechImageModel.from_pretrained(place)
    assert not model.untrained
    assert model.processor.feature_extractor.do_normalize == large
    clips = [sounds[0], sounds[4]]
    with torch.no_grad():
        states = [published_states(encoders[kind][1], clip, large) for clip in clips]
        expected = torch.cat([head(each, normalize=large) for each in states]).numpy()
    given = model.encode_speech(clips)
    cosines = (given * expected).sum(1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() >= 0.999999
    other = head([*states[0][:-1], torch.zeros_like(states[0][-1])], normalize=large).detach().numpy()[0]
    assert given[0] @ other / np.linalg.norm(other) < 0.9999  # the measure sees one state of four


@pytest.mark.parametrize(("heads", "dropped"), [(2, 8), (4, 8)])
def test_the_number_of_attention_heads_is_read_from_the_settings(
    heads: int, dropped: int, tmp_path: Path, encoders: Any
) -> None:
    path = write_checkpoint(tmp_path / "a.ckpt", PublishedHead(4, 32, 24).published(), heads=heads, normalize=True)
    _, speech, _, image = encoders["base"]
    convert_speechclip(path, tmp_path / "model", speech, image)
    head = SpeechImageModel.from_pretrained(tmp_path / "model").config.head
    assert (head["heads"], head["normalize_hidden_states"]) == (heads, True)
    assert heads != dropped


@pytest.mark.parametrize("kind", [as_object, as_dict, as_ordered_dict, as_argparse])
def test_settings_of_a_package_that_is_not_there_are_read_without_it(
    kind: Callable[[], type], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    weights = PublishedHead(4, 32, 24).published()
    content = read_checkpoint(write_checkpoint(tmp_path / "a.ckpt", weights, kind, heads=2))
    assert _head_config("a.ckpt", content["state_dict"], content["hyper_parameters"]).heads == 2
    assert content["epoch"] == 131
    assert not (tmp_path / "ran").exists()
    assert not set(PACKAGE) & set(sys.modules)


@pytest.mark.parametrize(
    ("states", "width", "dimension", "speech", "image"),
    [
        (13, 768, 512, "facebook/hubert-base-ls960", "openai/clip-vit-base-patch32"),
        (25, 1024, 768, "facebook/hubert-large-ll60k", "openai/clip-vit-large-patch14"),
    ],
)
def test_the_published_sizes_choose_their_encoders(
    states: int, width: int, dimension: int, speech: str, image: str, tmp_path: Path
) -> None:
    """Without a network, the first encoder that is looked for is an error with its name."""
    weights = PublishedHead(states, width, dimension).published()
    config = _head_config("a.ckpt", weights, {})
    head = _head_weights("a.ckpt", weights, config)
    assert (config.layers, config.heads, config.feedforward) == (1, 8, 4 * width)
    assert len(head) == len(weights) == 18
    path = write_checkpoint(tmp_path / "a.ckpt", weights)
    with pytest.raises(CheckpointError, match=speech):
        convert_speechclip(path, tmp_path / "model")
    from transformers import CLIPConfig, HubertConfig

    size = {"hidden_size": width, "num_hidden_layers": states - 1}
    HubertConfig(**size, num_attention_heads=16).save_pretrained(tmp_path / "hubert")
    with pytest.raises(CheckpointError, match=image):
        convert_speechclip(path, tmp_path / "model", tmp_path / "hubert")
    CLIPConfig(projection_dim=dimension + 1).save_pretrained(tmp_path / "clip")
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'clip'}: .*{dimension + 1}.*{dimension}"):
        convert_speechclip(path, tmp_path / "model", tmp_path / "hubert", tmp_path / "clip")
    HubertConfig(**size | {"num_hidden_layers": states}, num_attention_heads=16).save_pretrained(tmp_path / "hubert")
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'hubert'}: {states + 1} .*{states}"):
        convert_speechclip(path, tmp_path / "model", tmp_path / "hubert", tmp_path / "clip")
    assert not (tmp_path / "model").exists()


def test_the_card_says_where_the_weights_are_from(
    tmp_path: Path, encoders: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = PublishedHead(4, 32, 24).published() | {"criterion.temperature": torch.tensor([math.log(1 / TAU)])}
    path = write_checkpoint(tmp_path / "epoch_131.ckpt", weights)
    place = tmp_path / "mine"
    assert main(["convert", "speechclip", str(path), "--to", str(place), *encoders["base"]]) == 0
    for _ in range(2):
        text = (place / CARD_FILE).read_text(encoding="utf-8")
        for words in ("# mine\n", "speechclip/models", "epoch_131.ckpt", "2210.00705", "BSD-3-Clause", f"{TAU:.4f}"):
            assert words in text
        assert "does not state a license" in text
        assert str(tmp_path) not in text + (place / TRAINING_FILE).read_text(encoding="utf-8")
        assert main(["card", str(place)]) == 0  # made again of the same facts
    model = SpeechImageModel.from_pretrained(place)
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / TRAINING_FILE).read_text()) == model.trained


def test_an_existing_folder_is_left_alone(tmp_path: Path, encoders: Any) -> None:
    path = write_checkpoint(tmp_path / "a.ckpt", PublishedHead(4, 32, 24).published())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").touch()
    with pytest.raises(CheckpointError, match=str(tmp_path / "model")):
        convert_speechclip(path, tmp_path / "model", *encoders["base"][1::2])
    (tmp_path / "model" / "mine.txt").unlink()
    convert_speechclip(path, tmp_path / "model", *encoders["base"][1::2])


# ---------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"parallel_branch.cls": None}, ["parallel_branch.cls"]),
        ({"parallel_branch.self_att.model.norm.weight": None}, ["parallel_branch.self_att.model.norm.weight"]),
        ({"parallel_branch.self_att.model.layers.0.norm1.bias": None}, ["layers.0.norm1.bias"]),
        ({"parallel_branch.extra.weight": torch.zeros(2)}, ["parallel_branch.extra.weight"]),
        ({"parallel_branch.self_att.model.layers.0.norm3.bias": torch.zeros(2)}, ["layers.0.norm3.bias"]),
        ({"parallel_branch.linear_proj.bias": torch.zeros(3)}, ["parallel_branch.linear_proj.bias", "[3]", "[24]"]),
        ({"parallel_branch.cls": torch.zeros(1, 9, 32)}, ["parallel_branch.", "[288]"]),
        ({"parallel_branch.cls": torch.zeros(())}, ["parallel_branch.cls", "[]"]),
        ({"audio_encoder.weightedsum_layer.weights": torch.zeros(4, 1)}, ["weightedsum_layer.weights", "[4, 1]"]),
        (
            {"parallel_branch.cls": None, "cascaded_branch.cls": torch.zeros(1, 8, 32)},
            ["parallel_branch.cls", "cascaded"],
        ),
    ],
)
def test_missing_and_unknown_weights_are_named_in_one_line(
    change: dict[str, Tensor | None],
    named: list[str],
    tmp_path: Path,
    encoders: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = PublishedHead(4, 32, 24).published() | change
    weights = {name: value for name, value in changed.items() if value is not None}
    path = write_checkpoint(tmp_path / "a.ckpt", weights)
    words = ["convert", "speechclip", str(path), "--to", str(tmp_path / "model"), *encoders["base"]]
    assert main(words) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    for part in (str(path), *named):
        assert part in errors
    assert not (tmp_path / "model").exists()


def test_weights_elsewhere_that_are_not_known_are_listed(
    tmp_path: Path, encoders: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = PublishedHead(4, 32, 24).published() | {"recall.table": torch.zeros(2)}
    path = write_checkpoint(tmp_path / "a.ckpt", weights)
    words = ["convert", "speechclip", str(path), "--to", str(tmp_path / "model"), *encoders["base"], "--json"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["unknown"] == ["recall.table"]
    assert "recall.table" in captured.err


@pytest.mark.parametrize("option", [0, 2])
def test_an_encoder_of_another_kind_is_named(
    option: int, tmp_path: Path, encoders: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_checkpoint(tmp_path / "a.ckpt", PublishedHead(4, 32, 24).published())
    options = list(encoders["base"])
    options[option + 1] = options[3 - option]
    assert main(["convert", "speechclip", str(path), "--to", str(tmp_path / "model"), *options]) == 2
    assert options[option + 1] in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"legacy", None, b"PK zip"])
def test_a_file_of_another_form_is_an_error_of_one_line(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.ckpt"
    if content == b"legacy":
        torch.save({"state_dict": {}}, path, _use_new_zipfile_serialization=False)
    elif content == b"PK zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02broken")
    elif content is not None:
        path.write_bytes(content)
    assert main(["convert", "speechclip", str(path), "--to", str(tmp_path / "model")]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert str(path) in errors


@pytest.mark.parametrize("content", [{}, {"state_dict": [1]}, {"state_dict": {"a": 1}}, [1, 2]])
def test_a_checkpoint_without_weights_is_named(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt"):
        convert_speechclip(tmp_path / "a.ckpt", tmp_path / "model")


# ---------------------------------------------------------------------- what must not run


class Calls:
    """Reduces to a call of a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def side_effects(marker: Path) -> dict[str, Any]:
    """Objects that write the file when they are unpickled by pickle, and what an error must name."""
    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    return {
        "system": Calls(os.system, command),
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "getattr": Calls(getattr, OrderedDict, "fromkeys"),
        "Popen": Calls(__import__("subprocess").Popen, ["touch", str(marker)]),
        "Unknown": type("Unknown", (), {})(),
        "_load_from_bytes": Calls(torch.storage._load_from_bytes, b"x"),
    }


@pytest.mark.parametrize("place", ["state_dict", "hyper_parameters", "callbacks"])
@pytest.mark.parametrize("name", list(side_effects(Path("x"))))
def test_what_is_not_allowed_is_refused_by_name_and_never_runs(
    name: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "ran"
    effect = side_effects(marker)[name]
    others = [type(effect)] if name == "Unknown" else []  # beside the one class that is known
    path = write_checkpoint(tmp_path / "a.ckpt", {}, others=others, **{place: {"a": effect}})
    assert main(["convert", "speechclip", str(path), "--to", str(tmp_path / "model")]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert name in errors
    assert str(path) in errors
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_any_protocol_is_refused_by_name(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"a": Calls(os.system, f"touch {marker}")}, protocol))
        archive.writestr("a/version", "3\n")
    with pytest.raises(CheckpointError, match="system"):
        read_checkpoint(tmp_path / "a.ckpt")
    assert not marker.exists()


def test_an_attribute_of_an_allowed_class_cannot_be_reached(tmp_path: Path) -> None:
    """``getattr`` stands in Lightning's own checkpoints, for functions of torch: of anything else it is refused."""
    settings = as_object()
    for owner in (settings, OrderedDict, torch.Size):
        effect = Calls(getattr, owner, "__init__")
        path = write_checkpoint(tmp_path / "a.ckpt", {}, lambda: settings, callbacks={"a": effect})
        with pytest.raises(CheckpointError, match="getattr"):
            read_checkpoint(path)


def test_a_clip_and_hubert_are_not_read_from_the_checkpoint(tmp_path: Path, encoders: Any) -> None:
    weights = PublishedHead(4, 32, 24).published() | frozen(3)
    path = write_checkpoint(tmp_path / "a.ckpt", weights)
    _, speech, _, image = encoders["large"]
    convert_speechclip(path, tmp_path / "model", speech, image)
    model = SpeechImageModel.from_pretrained(tmp_path / "model")
    expected = CLIPModel.from_pretrained(image).state_dict() | HubertModel.from_pretrained(speech).state_dict()
    given = model.image_encoder.clip.state_dict() | model.speech_encoder.hubert.state_dict()
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[name], expected[name]) for name in given)
